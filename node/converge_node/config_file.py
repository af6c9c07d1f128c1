"""On which line of a TOML file a key stands.

Knows: how sections and keys look in TOML. Must not know: which keys exist.
Source: TOML 1.0. The standard parser gives no positions; two levels of keys need no second parser.
"""

from __future__ import annotations

import re
from typing import Final

_PART: Final = r"""(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)"""
_DOTTED: Final = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER: Final = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]")
_ASSIGNMENT: Final = re.compile(rf"\s*({_DOTTED})\s*=(.*)")
_INLINE: Final = re.compile(rf"({_PART})\s*=")


class KeyLines:
    """The line numbers, from 1, of the sections and keys of a file that is known to be TOML."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        section: tuple[str, ...] = ()
        for number, line in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(line):
                section = _parts(header.group(1))
                self._note(section, number)
            elif assignment := _ASSIGNMENT.match(line):
                path = section + _parts(assignment.group(1))
                self._note(path, number)
                if assignment.group(2).lstrip().startswith("{"):
                    for inner in _INLINE.findall(assignment.group(2)):
                        self._note(path + _parts(inner), number)

    def of(self, *path: str) -> int:
        """Return the line of a key, or of the nearest section around it, or 1."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return 1

    def _note(self, path: tuple[str, ...], number: int) -> None:
        for end in range(1, len(path) + 1):
            self._lines.setdefault(path[:end], number)


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))
