"""A way from a browser to a node that listens on no address: the page on a loopback port, and its questions passed on
to the node's Unix socket.

Knows: which questions the page asks, and how they reach the socket. Must not know: what the answers mean.
Source: docs/web.md; docs/decisions/0028-web-page.md for why this and not a listener that the node opens when it is
asked to; RFC 9112 for HTTP/1.0, whose answers end with the connection.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from converge_node.control.answers import error_answer
from converge_node.control.requests import discard
from converge_node.errors import Busy, NotAuthenticated
from converge_node.web.pages import page_routes
from converge_p2p.client import NodeUnreachable
from converge_p2p.client.api import all_routes
from converge_p2p.client.routes import Scope as Allowed
from converge_p2p.core import limits
from converge_p2p.core.errors import NotFound

QUESTIONS: Final = (
    "status", "peers", "pool", "tasks", "task", "motions", "evidence", "hosted", "agents", "health", "metrics",
    "events", "explain",
)  # fmt: skip
"""What the page asks, by the names of the routes; nothing else is passed on."""
DOCUMENT: Final = "/openapi.json"
"""Which routes the node has: it can be older than the page."""
PASSED_ON_MAX: Final = 64
"""Questions and streams that are passed on at a time."""
CONNECT_S: Final = 5.0
SILENCE_S: Final = 35.0
"""A node that says nothing for this long is given up; on a stream it gives a sign of life every ten seconds."""
HEAD_BYTES_MAX: Final = 64 * 1024
PIECE_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class _Count:
    """How many questions are being passed on."""

    now: int = 0


def gateway_app(socket: Path, token: str) -> Starlette:
    """Return the application.

    Args:
        socket: of the node.
        token: what a browser has to send with every question.
    """
    known, count = all_routes(), _Count()
    passed = [known[name] for name in QUESTIONS if name in known]
    assert all(route.method == "GET" and route.scope is Allowed.READ for route in passed)

    async def pass_on(request: Request) -> Response:
        try:
            with trio.move_on_after(limits.CONTROL_BODY_WAIT_S):
                await discard(request.stream())
        except ClientDisconnect:
            return Response(status_code=499)
        kind, _, sent = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), token.encode()):
            hint = "open the address that `converge-node web` printed last"
            return error_answer(NotAuthenticated("this page does not know the right token", hint=hint))
        if count.now >= PASSED_ON_MAX:
            return error_answer(Busy(f"{PASSED_ON_MAX} questions are being passed on", hint="close other windows"))
        target = request.scope["raw_path"]
        if request.scope["query_string"]:
            target += b"?" + request.scope["query_string"]
        return _Passed(socket, target, count)

    routes = [Route(path, pass_on, methods=["GET"]) for path in [*(route.path for route in passed), DOCUMENT]]
    return Starlette(routes=[*page_routes(), *routes], exception_handlers={HTTPException: _http_error})


class _Passed(Response):
    """Asks the node, and gives its answer as it comes."""

    def __init__(self, socket: Path, target: bytes, count: _Count) -> None:
        super().__init__()
        self._socket, self._target, self._count = socket, target, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the answer. Cancellation: ends the question."""
        self._count.now += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_disconnect, receive, nursery.cancel_scope)
                await self._answer(scope, receive, send)
                nursery.cancel_scope.cancel()
        finally:
            self._count.now -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async with _asked(self._socket, self._target) as (status, kind, parts):
                headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
                await send({"type": "http.response.start", "status": status, "headers": headers})
                begun = True
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except (OSError, ValueError, trio.BrokenResourceError, trio.TooSlowError):
            if not begun:
                gone = NodeUnreachable("no node answers", hint="start it; this page goes on by itself")
                await error_answer(gone)(scope, receive, send)
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def _asked(socket: Path, target: bytes) -> AsyncIterator[tuple[int, bytes, AsyncGenerator[bytes, None]]]:
    """Ask the node; yields status, content type, and the content in pieces.

    Raises:
        OSError, BrokenResourceError, TooSlowError: it does not answer.
        ValueError: what answers speaks no HTTP.
    """
    with trio.fail_after(CONNECT_S):
        stream = await trio.open_unix_socket(socket)
    async with stream:
        with trio.fail_after(CONNECT_S):
            await stream.send_all(b"GET " + target + b" HTTP/1.0\r\nhost: node\r\n\r\n")
        head, end, rest = b"", b"", b""
        while not end:
            part = await _some(stream)
            if not part or len(head) > HEAD_BYTES_MAX:
                raise ValueError("no head of an answer")
            head, end, rest = (head + part).partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        status = int(first.partition(b" ")[2].partition(b" ")[0])
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        async with aclosing(_parts(stream, rest)) as parts:
            yield status, fields.get(b"content-type", b"application/octet-stream"), parts


async def _parts(stream: trio.SocketStream, first: bytes) -> AsyncGenerator[bytes, None]:
    part = first or await _some(stream)
    while part:
        yield part
        part = await _some(stream)


async def _some(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(SILENCE_S):
        return bytes(await stream.receive_some(PIECE_BYTES))


async def _until_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _http_error(request: Request, _error: Exception) -> Response:
    return error_answer(NotFound(f"{request.method} {request.url.path} is not passed on to the node"))


async def run_gateway(socket: Path, token: str, port: int, task_status: trio.TaskStatus[str]) -> None:
    """Serve the page until cancelled; started with the URL.

    Raises:
        ConfigError: the port cannot be listened on.
    """
    from converge_node.control.server import open_tcp_server

    async with open_tcp_server(gateway_app(socket, token), [f"127.0.0.1:{port}"]) as (url,):
        task_status.started(url)
        await trio.sleep(math.inf)
