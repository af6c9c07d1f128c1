"""What a request brings: its body and the values of its query, bounded and checked.

Knows: JSON, and the shapes of the schema. Must not know: what is done with them.
Source: docs/control.md.
"""

from __future__ import annotations

import math
from contextlib import aclosing
from typing import TypeVar

import msgspec
from starlette.requests import Request

from converge_node.errors import UsageError
from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError

_R = TypeVar("_R")


async def read(request: Request) -> bytes:
    """Read the body of a request, also where nothing is asked of it: a server that answers and closes while the client
    still sends makes the client's kernel throw the answer away.

    Raises:
        LimitExceeded: larger than `limits.CONTROL_REQUEST_BYTES_MAX`; of a body not much larger the rest is read, too.
    """
    bound, size, data = limits.CONTROL_REQUEST_BYTES_MAX, 0, bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size <= bound:
                data += chunk
            elif size > 8 * bound:
                break
    if size > bound:
        raise LimitExceeded("CONTROL_REQUEST_BYTES_MAX", f"a request has at most {bound} bytes")
    return bytes(data)


def body_of(request: Request, kind: type[_R]) -> _R:
    """Decode the body that was read.

    Raises:
        UsageError: not JSON, or not of that shape.
    """
    try:
        return msgspec.json.decode(request.state.body or b"{}", type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"the request is not as expected: {error}") from error


def number(text: str, name: str, low: int, high: int) -> int:
    """Read a number of a query. Raises `LocalError` if it is none, or not from `low` to `high`."""
    if not text.isascii() or not text.isdigit() or len(text) > 16 or not low <= int(text) <= high:
        raise LocalError(f"{name} is {text!r}; expected {low} to {high}")
    return int(text)


def seconds(text: str) -> float:
    """Read a time of a query. Raises `LocalError` if it is none, or not more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise LocalError(f"timeout_s is {text!r}; expected seconds, more than 0")
    return value


def milliseconds(time_s: float) -> int:
    """Return whole milliseconds, no more than the library takes."""
    return min(round(time_s * 1000), 2**53)
