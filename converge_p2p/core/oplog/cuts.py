"""How much of an author: a length of its chain, and the head that says which chain.

Knows: the shape. Must not know: what it is used for: removals, promises and checkpoints name cuts.
Source: `docs/protocol.md`, epochs and checkpoints.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.types import OperationId, PublicKey

_HASH_BYTES = 32


class Cut(NamedTuple):
    """How much of an author somebody holds; in an epoch, where the data of a removed author ends.

    Attributes:
        length: its operations from this number on are not held, or have no effect.
        head: id of the last operation before, None if length is 0.
    """

    author: PublicKey
    length: int
    head: OperationId | None


def read_cuts(items: Any, count_max: int = limits.MOTION_EXPELLED_MAX) -> tuple[Cut, ...]:
    """Read an array of `[author, length, head]`, sorted, one for each author.

    Raises:
        CodecError: not of that shape, or too many.
    """
    if type(items) is not list or len(items) > count_max:
        raise CodecError(f"at most {count_max} authors are cut at a time")
    cuts = []
    for item in items:
        match item:
            case [bytes() as author, int() as length, None | bytes() as head] if (
                type(length) is int and 0 <= length <= limits.SEQ_MAX and (head is None) == (length == 0)
            ):
                name = None if head is None else OperationId(_hash("the head of a cut", head))
                cuts.append(Cut(PublicKey(_hash("the author of a cut", author)), length, name))
            case _:
                raise CodecError("a cut is an array of author, length and head")
    authors = [cut.author for cut in cuts]
    if authors != sorted(set(authors)):
        raise CodecError("cuts are sorted by author, one for each")
    return tuple(cuts)


def _hash(what: str, value: Any) -> bytes:
    if type(value) is not bytes or len(value) != _HASH_BYTES:
        raise CodecError(f"{what} is a byte string of {_HASH_BYTES}")
    return value
