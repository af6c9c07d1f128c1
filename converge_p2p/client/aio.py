"""A client for programs with an event loop: trio or asyncio, whichever runs.

Knows: httpx, which finds the running loop itself. Must not know: what is asked, or libp2p.
Source: docs/decisions/0025-control-schema.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import IO, Any, Self

import httpx

from converge_p2p.client import wire
from converge_p2p.client.api import Api
from converge_p2p.client.routes import Form, Question


class AsyncClient(Api):
    """Asks a node's control interface. Use it as `async with AsyncClient(…) as client`; connections are kept."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        timeout_s: float = wire.ANSWER_TIMEOUT_S,
    ) -> None:
        """Say where the node is, as for `Client`. Nothing is opened yet."""
        self.place = wire.place_of(socket, url, token)
        self._timeout_s = timeout_s
        transport = httpx.AsyncHTTPTransport(uds=self.place.socket) if self.place.socket else None
        base = self.place.url or "http://node"
        # trust_env: a proxy of the environment must not be given the token, and does not know the socket
        self._http = httpx.AsyncClient(
            transport=transport,
            base_url=base,
            headers={**self.place.headers, "accept-encoding": "identity"},
            trust_env=False,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, question: Question) -> Any:
        """Ask, and return the data of the answer. Raises as `Client.ask`. Cancellation: the node may have done it."""
        async with self._request(question, self._timeout_s + question.wait_s) as response:
            if question.to is not None and response.status_code == 200:
                return await _download(response, question.to)
            content = await _whole(response)
            if question.route.form is Form.TEXT and response.status_code == 200:
                return content.decode("utf-8", "replace")
            return wire.data_of(content, question.route.answer)

    @asynccontextmanager
    async def listen(self, question: Question) -> AsyncIterator[AsyncIterator[Any]]:
        """Open a stream; it ends with the block. Raises as `Client.ask`, also while it is read."""
        async with self._request(question, wire.SILENCE_TIMEOUT_S) as response:
            if response.status_code != 200:
                wire.data_of(await _whole(response), question.route.answer)
            async with aclosing(self._events(response, question)) as events:
                yield events

    async def _events(self, response: httpx.Response, question: Question) -> AsyncGenerator[Any, None]:
        events, rest = wire.Events(), b""
        try:
            async with _chunks(response) as chunks:
                async for chunk in chunks:
                    *lines, rest = (rest + chunk).split(b"\n")
                    if len(rest) > wire.EVENT_LINE_BYTES_MAX:
                        raise wire.too_large()
                    for line in lines:
                        for event in events.take(line.rstrip(b"\r")):
                            yield wire.data_of(event, question.route.answer)
        except httpx.TimeoutException as error:
            raise wire.too_slow() from error
        except httpx.HTTPError as error:
            raise wire.not_there(self.place, opened=True) from error

    @asynccontextmanager
    async def _request(self, question: Question, timeout_s: float) -> AsyncIterator[httpx.Response]:
        headers = {} if question.body is None else {"content-type": Form.ENVELOPE.value}
        content: bytes | AsyncIterator[bytes] | None = question.body
        if question.content is not None:
            size = wire.size_of(question.content)
            headers |= {"content-type": Form.BYTES.value, "content-length": str(size)}
            content = _pieces(question.content, size)
        request = self._http.build_request(
            question.route.method,
            question.target,
            content=content,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=wire.CONNECT_TIMEOUT_S),
        )
        try:
            response = await self._http.send(request, stream=True)
        except httpx.TimeoutException as error:
            raise wire.too_slow() from error
        except httpx.HTTPError as error:
            forbidden = _cause(error, PermissionError)
            opened = not isinstance(error, httpx.ConnectError)
            raise wire.not_there(self.place, opened=opened, forbidden=forbidden) from error
        try:
            yield response
        finally:
            await response.aclose()


async def _pieces(file: IO[bytes], size: int) -> AsyncGenerator[bytes, None]:
    for piece in wire.pieces_of(file, size):
        yield piece


async def _download(response: httpx.Response, to: IO[bytes]) -> None:
    left = wire.announced(response.headers.get("content-length"))
    try:
        async with _chunks(response) as chunks:
            async for chunk in chunks:
                to.write(chunk)
                left -= len(chunk)
    except httpx.RemoteProtocolError as error:
        raise wire.too_short() from error
    if left:
        raise wire.too_short()


async def _whole(response: httpx.Response) -> bytes:
    content = bytearray()
    async with _chunks(response) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) > wire.ANSWER_BYTES_MAX:
                raise wire.too_large()
    return bytes(content)


@asynccontextmanager
async def _chunks(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """Open the content of a response.

    httpx stands on generators in generators, and leaves the inner ones to the garbage collector if the outer one is
    closed before its end, which trio reports. Reading on from a closed connection ends all of them.
    """
    chunks = response.aiter_raw()
    ended = False
    try:
        yield chunks
        ended = response.is_stream_consumed and response.is_closed
    finally:
        if not ended:
            try:
                await response.extensions["network_stream"].aclose()
            finally:
                with contextlib.suppress(httpx.HTTPError, httpx.StreamError, StopAsyncIteration):
                    await anext(chunks)


def _cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
