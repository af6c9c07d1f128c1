"""Which error a group of errors stands for.

Knows: the error tree of the library. Must not know: where the errors came from.
Source: trio's nurseries raise groups; an application wants the one error that it can do something about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from converge_p2p.core.errors import ConvergeError


def known_error(group: BaseExceptionGroup[BaseException]) -> ConvergeError | None:
    """The error of this library that a group consists of, or None if there is anything else in it."""
    # one fault, such as a full disk, can be met in several places at once: the first stands for all
    first: ConvergeError | None = None
    for error in group.exceptions:
        known = known_error(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(known, ConvergeError):
            return None
        first = first or known
    return first


@contextmanager
def known_error_alone() -> Iterator[None]:
    """Let a known error out of the group it comes in; other groups come out as they are."""
    try:
        yield
    except BaseExceptionGroup as group:
        known = known_error(group)
        if known is None:
            raise
        raise known from group
