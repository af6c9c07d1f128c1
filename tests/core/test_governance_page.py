"""The worked examples of the governance page: each one is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from converge_p2p.core.governance.custom import forget_model
from converge_p2p.core.model.pool import GovernanceKind

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "governance.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^##+ ", PAGE, flags=re.MULTILINE)
PREAMBLE, *EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_governance_has_an_example() -> None:
    named = {title for section in SECTIONS if "```python" in section for title in [section.partition("\n")[0].lower()]}
    assert {kind.name.lower() for kind in GovernanceKind} <= named


@pytest.mark.parametrize("name", [kind.name.lower() for kind in GovernanceKind] + ["which terms are refused"])
def test_an_example_does_what_the_page_says(name: str) -> None:
    section = next(part for part in SECTIONS if part.lower().startswith(f"{name}\n"))
    space: dict[str, Any] = {"__name__": "page"}
    exec(PREAMBLE, space)
    try:
        blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        assert blocks
        for block in blocks:
            exec(compile(block, f"governance.md, {name}", "exec"), space)
            assert "assert" in block
    finally:
        forget_model("unanimous")
