"""What msgspec says of a value that does not fit, in words for people.

Knows: the form of its messages. Must not know: what was asked for.
Source: msgspec's documentation of `ValidationError`.
"""

from __future__ import annotations

import re
from typing import Final

_KINDS: Final = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "null": "null",
    "object": "a map",
    "str": "text",
}


def in_words(complaint: str) -> str:
    """Return a complaint with its place first: `claim_ttl_s: expected a number > 0.0`."""
    said, _, place = complaint.partition(" - at `$")
    said = re.sub(r"`([a-z |]+)`", _kinds, said)
    said = said[0].lower() + said[1:] if said.startswith(("Expected", "Object", "Invalid")) else said
    place = place.removesuffix("`").removeprefix(".")
    return f"{place}: {said}" if place else said


def _kinds(quoted: re.Match[str]) -> str:
    kinds = quoted[1].split(" | ")
    return " or ".join(_KINDS[kind] for kind in kinds) if set(kinds) <= set(_KINDS) else quoted[0]
