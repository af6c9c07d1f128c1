"""Server-sent events: a response that goes on until the client leaves, the task is settled, or the node stops.

Knows: the event stream format, and when to end. Must not know: what the events mean.
Source: WHATWG HTML, server-sent events. A comment line every few seconds shows a client that the node lives.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Final

import msgspec
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from converge_node.errors import NotReady, TimedOut
from converge_p2p.client.schema import failure, success

KEEP_ALIVE_S: Final = 10.0

Open = Callable[[], AbstractAsyncContextManager[AsyncGenerator[object, None]]]


class EventStream(Response):
    """Sends each item of a source as one event, in the envelope of every answer."""

    def __init__(
        self, source: Open, *, stopping: trio.Event, on_end: Callable[[], None], timeout_s: float | None = None
    ) -> None:
        """Prepare the response.

        Args:
            source: opens the items. It is opened before the first byte is sent.
            stopping: when set, the stream says so and ends.
            on_end: called once, however the stream ends.
            timeout_s: after this long the stream says so and ends; None is never.
        """
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._source = source
        self._stopping = stopping
        self._on_end = on_end
        self._timeout_s = math.inf if timeout_s is None else timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the ASGI signature
        """Serve the stream. Cancellation: ends it without a last event."""
        lock, finished = trio.Lock(), False

        async def write(chunk: bytes, more: bool = True) -> None:
            async with lock:
                await send({"type": "http.response.body", "body": chunk, "more_body": more})

        try:
            async with self._source() as items, aclosing(items), trio.open_nursery() as nursery:
                nursery.cancel_scope.deadline = trio.current_time() + self._timeout_s
                headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                nursery.start_soon(_until_disconnect, receive, nursery.cancel_scope)
                nursery.start_soon(_until_set, self._stopping, nursery.cancel_scope)
                nursery.start_soon(_keep_alive, write)
                async for item in items:
                    await write(b"data: " + msgspec.json.encode(success(item)) + b"\n\n")
                finished = True
                nursery.cancel_scope.cancel()
            if not finished:
                # after a disconnect this goes nowhere
                stopping = self._stopping.is_set()
                error = NotReady("the node is stopping") if stopping else TimedOut("the time to watch is over")
                await write(b"event: error\ndata: " + msgspec.json.encode(failure(error)) + b"\n\n")
            await write(b"", more=False)
        finally:
            self._on_end()


async def _until_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _until_set(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _keep_alive(write: Callable[[bytes], Awaitable[None]]) -> None:
    while True:
        await trio.sleep(KEEP_ALIVE_S)
        await write(b": alive\n\n")
