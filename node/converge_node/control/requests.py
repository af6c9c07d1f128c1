"""What a request brings: its body and the values of its query, bounded and checked.

Knows: JSON, and the shapes of the schema. Must not know: what is done with them.
Source: docs/control.md.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TypeVar

import msgspec
import trio
from starlette.datastructures import QueryParams

from converge_node.complaints import in_words
from converge_node.errors import TimedOut, UsageError
from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded

_R = TypeVar("_R")


async def paced(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Pass a body on, whose sender must not hold its place for ever. Only the time counts in which it is waited for.

    Raises:
        TimedOut: slower than `limits.CONTROL_BODY_BYTES_PER_SECOND_MIN`, beyond `limits.CONTROL_BODY_WAIT_S`.
    """
    left_s = limits.CONTROL_BODY_WAIT_S
    async with aclosing(chunks):
        while True:
            begun, chunk = trio.current_time(), b""
            with trio.move_on_after(max(0.0, left_s)) as patience:
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
            if patience.cancelled_caught:
                raise TimedOut("the request did not arrive in time", hint="send it faster, or in smaller parts")
            left_s += len(chunk) / limits.CONTROL_BODY_BYTES_PER_SECOND_MIN - (trio.current_time() - begun)
            yield chunk


async def read(parts: AsyncGenerator[bytes, None]) -> bytes:
    """Read the body of a request, also where nothing is asked of it: a server that answers and closes while the client
    still sends makes the client's kernel throw the answer away.

    Raises:
        LimitExceeded: larger than `limits.CONTROL_REQUEST_BYTES_MAX`; of a body not much larger the rest is read, too.
    """
    bound, size, data = limits.CONTROL_REQUEST_BYTES_MAX, 0, bytearray()
    async with aclosing(parts) as chunks:
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
    """Read what is left of a request that is refused, keeping nothing; of one too large or too slow only a part."""
    with suppress(TimedOut):
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
        raise UsageError(f"the request is not as expected: {in_words(str(error))}") from error


def query_of(given: QueryParams, kind: type[_R]) -> _R:
    """Decode the query of a request. Of a name that is given twice the last one counts.

    Raises:
        UsageError: not of that shape.
    """
    try:
        query = msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"the query is not as expected: {in_words(str(error))}") from error
    if math.isnan(getattr(query, "timeout_s", None) or 0.0):
        raise UsageError("the query is not as expected: timeout_s is not a number")
    return query


def milliseconds(time_s: float) -> int:
    """Return whole milliseconds."""
    return round(time_s * 1000)
