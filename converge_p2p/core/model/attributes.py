"""Names and attributes: the structured parts that topics and capabilities are made of.

Knows: which names are allowed, and how a map of attributes is frozen and bounded. Must not know: who uses them.
Source: the concepts page ("structured, not free-text").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError

AttributeValue = str | int | bool
"""What an attribute can be. No floats: they have more than one sensible encoding."""

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_bytes(limit: str, what: str, size: int) -> None:
    """Check a size against a bound of `limits`.

    Raises:
        LimitExceeded: `size` is larger than the bound called `limit`.
    """
    bound = getattr(limits, limit)
    if size > bound:
        raise LimitExceeded(limit, f"{what} has {size}, at most {bound} allowed")


def check_name(what: str, name: object, *, segments: bool = False) -> None:
    """Check a name: ASCII, so that no two names look alike and no normalisation is needed.

    Args:
        what: what is named, for the message.
        name: 1 to `limits.NAME_BYTES_MAX` letters, digits, dots, underscores and dashes; begins with a letter or digit.
        segments: whether several such names may be joined by slashes.

    Raises:
        LocalError: another form.
        LimitExceeded: too long.
    """
    if not isinstance(name, str):
        raise LocalError(f"{what} is of type {type(name).__name__}; expected text")
    check_bytes("NAME_BYTES_MAX", what, len(name))
    if not all(_SEGMENT.fullmatch(part) for part in (name.split("/") if segments else [name])):
        slash = ", in parts joined by single slashes" if segments else ""
        raise LocalError(f"{what} is {name!r}; expected ASCII letters, digits, '.', '_' and '-'{slash}")


def check_text(what: str, text: object) -> None:
    """Check free text: at most `limits.TEXT_BYTES_MAX` bytes of UTF-8.

    Raises:
        LocalError: not text, or text that has no UTF-8 form (a lone surrogate).
        LimitExceeded: too long.
    """
    if not isinstance(text, str):
        raise LocalError(f"{what} is of type {type(text).__name__}; expected text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise LocalError(f"{what} cannot be written as UTF-8: {error.reason}") from error
    check_bytes("TEXT_BYTES_MAX", what, size)


def check_integer(what: str, number: object, bound: int) -> None:
    """Check that a number is an integer from 0 up to and including `bound`.

    Raises:
        LocalError: it is not.
    """
    if type(number) is not int or not 0 <= number <= bound:
        raise LocalError(f"{what} is {number!r}; expected an integer from 0 to {bound}")


def freeze_attributes(what: str, attributes: object) -> Mapping[str, AttributeValue]:
    """Return a read-only copy of a map of attributes, sorted by name.

    Raises:
        LocalError: not a map, or a name or value of another form.
        LimitExceeded: more than `limits.ATTRIBUTES_MAX`, or a text too long.
    """
    if not isinstance(attributes, Mapping):
        raise LocalError(f"attributes of {what} are of type {type(attributes).__name__}; expected a map")
    check_bytes("ATTRIBUTES_MAX", f"attributes of {what}", len(attributes))
    for name, value in attributes.items():
        check_name(f"attribute name of {what}", name)
        if type(value) is str:
            check_text(f"attribute {name} of {what}", value)
        elif type(value) is int:
            if not -(2**63) <= value < 2**63:
                raise LocalError(f"attribute {name} of {what} is {value}; expected a 64-bit integer")
        elif type(value) is not bool:
            raise LocalError(
                f"attribute {name} of {what} is of type {type(value).__name__}; expected text, integer or truth value"
            )
    return MappingProxyType({name: attributes[name] for name in sorted(attributes)})


def attributes_match(wanted: Mapping[str, AttributeValue], offered: Mapping[str, AttributeValue]) -> bool:
    """Say whether every wanted attribute is offered with the same value of the same type."""
    # in Python True equals 1; on the wire they differ, so they differ here
    return all(
        name in offered and type(offered[name]) is type(value) and offered[name] == value
        for name, value in wanted.items()
    )
