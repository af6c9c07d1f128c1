"""The table of promises in `docs/concepts.md`: every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.partition("## What the concepts page promises")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| Promise")
]


def test_every_promise_names_a_test_that_exists() -> None:
    assert len(ROWS) > 50
    for promise, _, shown_by in ROWS:
        named = re.findall(r"`([\w/]+)::(\w+)`", shown_by)
        assert named, f"nothing shows that {promise!r}"
        for path, test in named:
            source = (ROOT / "tests" / f"{path}.py").read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {test}\(", source, re.MULTILINE), f"{path} has no {test}"


def test_no_promise_is_made_twice() -> None:
    promises = [promise for promise, *_ in ROWS]
    assert len(promises) == len(set(promises))
