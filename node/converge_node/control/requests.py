"""What a request brings: its body and the values of its query, bounded and checked.

Knows: JSON, and the shapes of the schema. Must not know: what is done with them.
Source: docs/control.md.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request

from converge_node.errors import UsageError
from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded

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


async def discard(chunks: AsyncGenerator[bytes, None], bytes_max: int = 8 * limits.CONTROL_REQUEST_BYTES_MAX) -> None:
    """Read what is left of a request that is refused, keeping nothing; of one far too large only a part."""
    async with aclosing(chunks):
        async for chunk in chunks:
            bytes_max -= len(chunk)
            if bytes_max < 0:
                break


def body_of(content: bytes, kind: type[_R]) -> _R:
    """Decode the body that was read.

    Raises:
        UsageError: not JSON, or not of that shape.
    """
    try:
        return msgspec.json.decode(content or b"{}", type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"the request is not as expected: {error}") from error


def query_of(given: QueryParams, kind: type[_R]) -> _R:
    """Decode the query of a request. Of a name that is given twice the last one counts.

    Raises:
        UsageError: not of that shape.
    """
    try:
        query = msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"the query is not as expected: {error}") from error
    if math.isnan(getattr(query, "timeout_s", None) or 0.0):
        raise UsageError("the query is not as expected: timeout_s is not a number")
    return query


def milliseconds(time_s: float) -> int:
    """Return whole milliseconds."""
    return round(time_s * 1000)
