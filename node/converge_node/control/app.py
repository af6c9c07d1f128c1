"""The control interface as an ASGI application: routes, permission, bounds, and errors in envelopes.

Knows: the routes that `converge_p2p.client.api` declares, and which function answers each. Must not know: sockets, or
who runs the node.
Source: docs/control.md.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final
from urllib.parse import unquote

import msgspec
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp, Receive, Scope as HttpScope, Send

from converge_node.control import about, blobs, explaining, identity, joins, meeting, observing, peers, pools, tasks
from converge_node.control.answers import Serve, error_answer, guarded, json_answer
from converge_node.control.openapi import openapi_document
from converge_node.control.requests import body_of, discard, paced, query_of, read
from converge_node.control.state import Asked, ControlState, Endpoint
from converge_node.control.stream import EventStream, Open
from converge_node.control.tokens import Tokens
from converge_node.errors import (
    Busy,
    NotAuthenticated,
    ScopeTooSmall,
    UsageError,
)
from converge_node.web.pages import page_routes
from converge_p2p.client import schema
from converge_p2p.client.api import all_routes
from converge_p2p.client.routes import Form, Route, Scope
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, ConvergeError, NotFound

_log = logging.getLogger("converge_node.control")

ENDPOINTS: Final[dict[str, Endpoint]] = {
    name: endpoint
    for part in (about, identity, observing, peers, joins, pools, tasks, explaining, meeting, blobs)
    for name, endpoint in part.ENDPOINTS.items()
}
"""What answers each route, by the name of the route."""
_ASKED_FOR: Final = {"health": "healthy", "ready": "ready"}


class ControlApi:
    """The endpoints."""

    def __init__(self, state: ControlState) -> None:
        self._state = state
        self._said_of_tokens = ""

    def app(self, tokens: Tokens | None = None) -> Starlette:
        """Return the ASGI application.

        Args:
            tokens: who may ask what; None is a listener that only the node's owner can reach.
        """
        routes = [
            HttpRoute(route.path, self._serves(route, ENDPOINTS[route.name], tokens), methods=[route.method])
            for route in all_routes().values()
        ]
        if tokens is not None:
            # only a browser wants the page, and no browser opens a Unix socket
            routes += page_routes()
        routes.append(HttpRoute("/openapi.json", self._permitted(Scope.READ, self._openapi, tokens), methods=["GET"]))
        app = Starlette(
            routes=routes, middleware=[Middleware(_AsSent)], exception_handlers={HTTPException: _http_error}
        )
        # where a name is missing in a path, an answer without an envelope would lead to the list beside it
        app.router.redirect_slashes = False
        return app

    def _serves(self, route: Route, endpoint: Endpoint, tokens: Tokens | None) -> Serve:
        async def serve(request: Request) -> Response:
            async with aclosing(paced(request.stream())) as parts:
                try:
                    # before anything of the body is kept
                    self._check_room()
                    return await answer(request, b"" if route.raw else await read(parts), parts)
                except ConvergeError:
                    await discard(parts, limits.BLOB_BYTES_MAX if route.raw else 8 * limits.CONTROL_REQUEST_BYTES_MAX)
                    raise

        async def answer(request: Request, content: bytes, parts: AsyncGenerator[bytes, None]) -> Response:
            body = None if route.body is None else body_of(content, route.body)
            query = None if route.query is None else query_of(request.query_params, route.query)
            places = {name: unquote(text) for name, text in request.path_params.items()}
            asked = Asked(self._state, places, body, query, parts)
            if route.raw or route.form is Form.BYTES:
                return await self._transferred(route, endpoint, asked)
            found = await endpoint(asked)
            match route.form:
                case Form.EVENTS:
                    return self._events(found, getattr(query, "timeout_s", None))
                case Form.ENVELOPE:
                    bad = isinstance(found, schema.HealthItem) and not getattr(found, _ASKED_FOR[route.name])
                    return json_answer(schema.success(found), 503 if bad else 200)
                case _:
                    assert isinstance(found, Response)
                    return found

        return self._permitted(route.scope, serve, tokens)

    def _permitted(self, scope: Scope, serve: Serve, tokens: Tokens | None) -> Serve:
        """Ask for permission, count requests, and turn every error into an answer."""

        async def permitted(request: Request) -> Response:
            if tokens is not None:
                # not counted, so that strangers cannot take the places of those who have a token
                await self._check(request, scope, tokens)
            self._state.requests += 1
            try:
                return await serve(request)
            finally:
                self._state.requests -= 1

        return guarded(permitted)

    async def _check(self, request: Request, scope: Scope, tokens: Tokens) -> None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            granted = tokens.scope_of(token.strip()) if kind.lower() == "bearer" else None
        except ConfigError as error:
            # whoever asks may be a stranger, who is not told about the files here, and must not fill the log
            if str(error) != self._said_of_tokens:
                self._said_of_tokens = str(error)
                _log.error("nobody is let in over TCP", extra={"error": str(error), "hint": error.hint})
            granted = None
        if granted is not None and granted >= scope:
            return
        self._state.tokens_refused += 1
        with trio.move_on_after(limits.CONTROL_BODY_WAIT_S):
            await discard(request.stream())
        if granted is None:
            raise NotAuthenticated(
                "no known token was given" if token else "a token is needed here",
                hint="send `Authorization: Bearer TOKEN`; `converge-node api token new` makes one",
            )
        raise ScopeTooSmall(
            f"the token allows to {granted.name.lower()}, and this needs {scope.name.lower()}",
            hint="`converge-node api token new --scope` makes one that allows more",
        )

    async def _openapi(self, _request: Request) -> Response:
        return Response(msgspec.json.encode(openapi_document()), media_type="application/json")

    def _check_room(self) -> None:
        if self._state.requests > limits.CONTROL_REQUESTS_MAX:
            self._state.refused += 1
            raise Busy(f"{limits.CONTROL_REQUESTS_MAX} requests are being served", hint="try again later")

    async def _transferred(self, route: Route, endpoint: Endpoint, asked: Asked) -> Response:
        """Take or give a content; its place is free again when all of it was taken or sent."""
        if self._state.transfers >= limits.CONTROL_TRANSFERS_MAX:
            self._state.refused += 1
            raise Busy(f"{limits.CONTROL_TRANSFERS_MAX} contents are being sent", hint="try again later")
        self._state.transfers += 1

        def ended() -> None:
            self._state.transfers -= 1

        try:
            found = await endpoint(asked)
        except BaseException:
            ended()
            raise
        if route.form is Form.BYTES:
            assert isinstance(found, Response)
            return _Sent(found, ended)
        ended()
        return json_answer(schema.success(found), 200)

    def _events(self, source: Open, timeout_s: float | None) -> EventStream:
        if self._state.streams >= limits.CONTROL_STREAMS_MAX:
            self._state.refused += 1
            raise Busy(f"{limits.CONTROL_STREAMS_MAX} streams are open", hint="close one first")
        self._state.streams += 1

        def ended() -> None:
            self._state.streams -= 1

        return EventStream(source, stopping=self._state.stopping, on_end=ended, timeout_s=timeout_s)


class _AsSent:
    """Lets routes match the path as it was sent, so that the name of a pool may hold a slash."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self._app(scope, receive, send)


class _Sent(Response):
    """An answer, and what is done when it was sent, or could not be."""

    def __init__(self, answer: Response, on_end: Callable[[], None]) -> None:
        super().__init__()
        self._answer = answer
        self._on_end = on_end

    async def __call__(self, scope: HttpScope, receive: Receive, send: Send) -> None:
        """Serve the answer."""
        try:
            await self._answer(scope, receive, send)
        finally:
            self._on_end()


async def _http_error(request: Request, error: Exception) -> Response:
    # as for any refusal: see `requests.read`
    await discard(paced(request.stream()))
    status = getattr(error, "status_code", 500)
    known: ConvergeError = NotFound(f"there is no {request.method} {request.url.path}")
    if status == 405:
        known = UsageError(f"{request.url.path} does not take {request.method}")
    return error_answer(known)
