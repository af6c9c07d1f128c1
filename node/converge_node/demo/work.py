"""The work of the demonstration: index the modules of the standard library of Python.

Knows: files, tokens, imports. Must not know: nodes, pools, tasks beyond their inputs.
Source: the `tokenize` module's documentation. The same functions run in the workers and, to compare, in one process.
"""

from __future__ import annotations

import hashlib
import io
import sysconfig
import token
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converge_p2p.core.model.task import TaskView
    from converge_p2p.runtime.attempt import WorkContext

Index = dict[str, Any]
"""files, lines, bytes: integers; tokens and imports: counts by name."""

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


def library_root() -> Path:
    """The folder of the standard library of this interpreter."""
    return Path(sysconfig.get_path("stdlib"))


def library_modules(root: Path) -> list[str]:
    """Paths of all modules below the folder, relative to it, sorted.

    Installed packages are left out, and so are the library's tests, which many systems do not install.
    """
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not _SKIPPED_FOLDERS.intersection(parts):
            found.append("/".join(parts))
    return sorted(found)


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def index_file(path: Path) -> Index:
    """Count lines, tokens by kind, and imported modules of one file.

    Of a file that is no valid source, what comes before the fault counts.
    """
    data = path.read_bytes()
    tokens: Counter[str] = Counter()
    imports: Counter[str] = Counter()
    statement: list[str] = []
    for kind, text in _tokens(data):
        tokens[kind] += 1
        if kind in ("NEWLINE", "SEMICOLON"):
            imports.update(_imported(statement))
            statement = []
        elif kind in ("NAME", "OP"):
            statement.append(text)
    return {
        "files": 1,
        "lines": data.count(b"\n"),
        "bytes": len(data),
        "tokens": dict(tokens),
        "imports": dict(imports),
    }


def _tokens(data: bytes) -> Iterator[tuple[str, str]]:
    try:
        for item in tokenize.tokenize(io.BytesIO(data).readline):
            kind = "SEMICOLON" if item.string == ";" and item.type == token.OP else token.tok_name[item.type]
            yield kind, item.string
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):
        yield "UNREADABLE", ""


def _imported(statement: list[str]) -> Iterator[str]:
    """Top-level names of the modules that a statement imports."""
    if statement[:1] == ["import"]:
        expecting = True
        for text in statement[1:]:
            if expecting and text.isidentifier():
                yield text
                expecting = False
            elif text == ",":
                expecting = True
    elif statement[:1] == ["from"] and len(statement) > 1 and statement[1].isidentifier():
        yield statement[1]


def merge(indexes: Iterable[Mapping[str, Any]]) -> Index:
    """Add indexes up. The order does not matter."""
    total: Index = {"files": 0, "lines": 0, "bytes": 0, "tokens": {}, "imports": {}}
    for index in indexes:
        for name in ("files", "lines", "bytes"):
            total[name] += index[name]
        for name in ("tokens", "imports"):
            counts = total[name]
            for key, count in index[name].items():
                counts[key] = counts.get(key, 0) + count
    for name in ("tokens", "imports"):
        total[name] = dict(sorted(total[name].items()))
    return total


# ---------------------------------------------------------------- handlers


def index_module(task: TaskView, _context: WorkContext) -> Index:
    """Handler of `index-module`: `{"module": relative path, "sha256": what the file must hash to}`."""
    inputs = task.inputs
    path = library_root() / inputs["module"]
    if file_digest(path) != inputs["sha256"]:
        raise ValueError(f"{inputs['module']} differs from the submitter's file")
    return index_file(path)


def merge_indexes(task: TaskView, _context: WorkContext) -> Index:
    """Handler of `merge-indexes`: `{"indexes": [index, …]}`."""
    return merge(task.inputs["indexes"])
