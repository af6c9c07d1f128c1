"""Every example of the page about customising is run as it stands, and prints what it says it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.network

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "customization.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_prints_what_it_says(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    expected = re.findall(r"print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert expected, "an example shows what it does"
    exec(compile(example, f"docs/customization.md, {section}", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == expected


def test_every_part_of_the_table_has_its_section_or_page() -> None:
    for anchor in re.findall(r"\]\(#([a-z-]+)\)", PAGE):
        assert anchor in [section.lower().replace(" ", "-") for section in SECTIONS]
