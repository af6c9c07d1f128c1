"""The examples of the pages on tools, models and policies run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str) -> tuple[dict[str, str], list[str]]:
    """Return the files that a page shows, by name, and its programs."""
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M | re.S)
    files = {match[1]: block for block in found if (match := re.match(r"# (\w+\.py)\n", block))}
    return files, [block for block in found if block not in files.values()]


@pytest.mark.parametrize(
    ("page", "output"),
    [
        ("policy.md", ["0.5\n"]),
        ("mcp.md", ["('clock/add',) {'result': 2}\n"]),
        ("tools.md", ["HI\n{'words': 2}\n"]),
    ],
)
def test_every_program_of_the_page_runs_and_prints_what_it_should(page: str, output: list[str], tmp_path: Path) -> None:
    files, programs = blocks(page)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    printed = []
    for program in programs:
        (tmp_path / "program.py").write_text(program, encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert run.returncode == 0, run.stderr
        printed.append(run.stdout)
    assert printed == output
