"""What the documentation site takes from the checkout: the public names for the reference, and the list of decisions.

Knows: docs/api.txt and docs/decisions. Must not know: the code that is described.
Source: MkDocs' documentation of hooks.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- public names -->"
TITLES = {
    "converge_p2p": "For programs in trio",
    "converge_p2p.aio": "For programs in asyncio",
    "converge_p2p.decisions": "What agents decide",
    "converge_p2p.governance": "Governance",
    "converge_p2p.core.errors": "Errors",
}


def public_names() -> list[str]:
    """Return the full names of what docs/api.txt lists, in its order; what has two names under its short one."""
    lines = (ROOT / "docs" / "api.txt").read_text(encoding="utf-8").splitlines()
    names = [match[0] for line in lines if (match := re.match(r"converge_p2p[\w.]*", line))]
    return [name for name in names if name.replace(".node.", ".") == name or name.replace(".node.", ".") not in names]


def reference() -> str:
    """Return the body of the reference: a section for each module, and what mkdocstrings replaces for each name."""
    parts = []
    for module, names in itertools.groupby(public_names(), key=lambda name: name.rpartition(".")[0]):
        title = TITLES.get(module)
        parts.append(f"## {title}: `{module}`" if title else f"## `{module}`")
        parts.extend(f"::: {name}" for name in names)
    return "\n\n".join(parts)


def on_config(config: Any) -> Any:
    """Put the decisions into the navigation."""
    pages = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    for entry in config.nav:
        if isinstance(entry, dict) and "Decisions" in entry:
            entry["Decisions"] = [f"decisions/{page}" for page in pages]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the public names where a page asks for them."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown
