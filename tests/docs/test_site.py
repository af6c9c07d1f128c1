"""The documentation site: every page is in it, and what looks for things from elsewhere finds them.

`make docs` builds it; that takes packages that `make test` does without.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from page_kit import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(entries: object) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    parts = entries.values() if isinstance(entries, dict) else entries
    assert not isinstance(entries, str)
    return [page for part in parts for page in pages(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(pages(CONFIG["nav"])) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_first_page_names_every_other_one() -> None:
    named = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert {*named, "index.md"} == set(pages(CONFIG["nav"]))


def test_the_theme_loads_no_fonts_and_the_build_is_strict() -> None:
    assert CONFIG["theme"]["font"] is False
    assert CONFIG["validation"]["links"]["anchors"] == "warn"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"mkdocs build --strict.*\n\t.*scripts/check-site site", makefile)
    assert re.search(r"^phase docs make docs$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_reference_and_the_decisions_are_taken_from_the_checkout() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import site_hooks  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    shown = site_hooks.on_page_markdown(page)
    assert "\n::: converge_p2p.Node\n" in shown
    assert "\n::: converge_p2p.aio.Node\n" in shown
    assert "::: converge_p2p.node.Node\n" not in shown, "one thing has one place"
    assert site_hooks.on_page_markdown("# else") == "# else"

    config = SimpleNamespace(nav=[{"Home": "index.md"}, {"Decisions": []}])
    (listed,) = site_hooks.on_config(config).nav[1].values()
    assert listed == [f"decisions/{path.name}" for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]


def checked(site: Path) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check-site", site], capture_output=True, text=True, timeout=60, check=False
    )
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.html", '<a href="https://example.org">x</a><img src="x.svg"><script src="../x.js"></script>', None),
        ("a.html", '<script src="https://example.org/x.js"></script>', "example.org/x.js"),
        ("a.html", '<img src="//example.org/x.png">', "//example.org/x.png"),
        ("a.html", '<link rel="stylesheet" href="https://example.org/x.css">', "x.css"),
        ("a.html", '<link rel="preconnect" href="https://fonts.example.org" crossorigin>', "fonts"),
        ("a.html", '<link rel="canonical" href="https://example.org/">', None),
        ("a.html", "<style>@import 'https://example.org/x.css';</style>", "x.css"),
        ("a.html", '<p style="background: url(https://example.org/x.png)">', "x.png"),
        ("a.html", '<pre class="mermaid">', "diagrams"),
        ("a/b.css", "@font-face { src: url(https://example.org/x.woff2) }", "x.woff2"),
        ("a/b.css", "p { background: url(data:image/png;base64,AAAA) } /* https://example.org */", None),
    ],
)
def test_what_a_page_would_load_from_elsewhere_is_found(
    name: str, text: str, found: str | None, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("<p>", encoding="utf-8")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    code, said = checked(tmp_path)
    assert code == (0 if found is None else 1), said
    assert found is None or (found in said and name in said)


def test_a_site_that_is_not_there_is_told_how_to_make(tmp_path: Path) -> None:
    code, said = checked(tmp_path)
    assert code == 2
    assert "make docs" in said
