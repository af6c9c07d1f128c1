"""Checks of single fields of an operation body, shared by the bodies.

Knows: exact types and bounds. Must not know: which body a field belongs to.
Source: `docs/protocol.md`, bodies. Decoding is strict: another type than the expected one is refused, never converted.
"""

from __future__ import annotations

from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.types import OperationId, PublicKey

HASH_BYTES = 32


def check_shape(what: str, body: list[Any], *kinds: type) -> None:
    """Check the number of fields of a body, and the exact type of each.

    Raises:
        CodecError: another number, or another type.
    """
    if len(body) != len(kinds) or any(type(item) is not kind for item, kind in zip(body, kinds, strict=True)):
        raise CodecError(f"a {what} body is an array of {', '.join(kind.__name__ for kind in kinds)}")


def hash_field(what: str, value: Any) -> bytes:
    """Return a field that is a byte string of 32: an id, a key or a hash.

    Raises:
        CodecError: anything else.
    """
    if type(value) is not bytes or len(value) != HASH_BYTES:
        raise CodecError(f"{what} is a byte string of {HASH_BYTES}")
    return value


def optional_id(what: str, value: Any) -> OperationId | None:
    """Return a field that is an operation id or null.

    Raises:
        CodecError: anything else.
    """
    return None if value is None else OperationId(hash_field(what, value))


def round_field(value: Any) -> int:
    """Return a field that is a round.

    Raises:
        CodecError: not an integer in its range.
    """
    if type(value) is not int or not 0 <= value <= limits.ROUND_MAX:
        raise CodecError(f"a round is 0 to {limits.ROUND_MAX}")
    return value


def count_field(what: str, value: Any) -> int:
    """Return a field that counts something, or is an amount, an epoch or a time.

    Raises:
        CodecError: not an integer from 0 to `limits.SEQ_MAX`.
    """
    if type(value) is not int or not 0 <= value <= limits.SEQ_MAX:
        raise CodecError(f"{what} is an integer of 0 to {limits.SEQ_MAX}")
    return value


def text_field(value: str, bytes_max: int = limits.TEXT_BYTES_MAX) -> str:
    """Return a text that is not too long.

    Raises:
        CodecError: longer than `bytes_max` in UTF-8.
    """
    if len(value.encode()) > bytes_max:
        raise CodecError(f"text is longer than {bytes_max} bytes")
    return value


def sorted_ids(what: str, value: list[Any], count_max: int) -> tuple[OperationId, ...]:
    """Return a field that is a sorted array of ids, without repeats.

    Raises:
        CodecError: unsorted, repeated, too many, or not ids.
    """
    ids = tuple(OperationId(hash_field(what, item)) for item in value)
    if len(ids) > count_max or list(ids) != sorted(set(ids)):
        raise CodecError(f"{what}: at most {count_max}, sorted, without repeats")
    return ids


def sorted_keys(what: str, value: list[Any], count_max: int) -> tuple[PublicKey, ...]:
    """Return a field that is a sorted array of public keys, without repeats.

    Raises:
        CodecError: unsorted, repeated, too many, or not keys.
    """
    return tuple(PublicKey(item) for item in sorted_ids(what, value, count_max))
