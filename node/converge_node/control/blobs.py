"""Blobs over the control interface: put, get, list and remove them, and the whole result of a task.

Knows: requests, and the node through `control.ports`. Must not know: who may have a blob.
Source: docs/control.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from converge_node import schema
from converge_node.blob_schema import BlobItem, PutItem, RemoveBlob, RemovedBlob
from converge_node.control import views
from converge_node.control.ports import NodeLike
from converge_node.control.requests import body_of
from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, ConvergeError, LocalError, NotFound
from converge_p2p.core.model.blob import TEXT_PREFIX, parse_reference, reference_text
from converge_p2p.core.types import BlobForm, BlobId
from converge_p2p.store.blobs import Hold

_DIGITS_MIN = 6
_CONTENT = "application/octet-stream"
_FORMS = {form.name.lower(): form for form in BlobForm}


class State(Protocol):
    """What these requests see."""

    def running(self) -> NodeLike: ...


class Guard(Protocol):
    """Counts requests and turns errors into answers; without `whole` the endpoint reads the body itself."""

    def __call__(
        self, endpoint: Callable[[Request], Awaitable[Any]], whole: bool = True
    ) -> Callable[[Request], Awaitable[Response]]: ...


def blob_routes(state: State, guarded: Guard) -> list[Route]:
    """Return the routes about blobs."""

    async def listed(_request: Request) -> list[BlobItem]:
        return [
            BlobItem(
                id=info.id.hex(),
                size=info.size,
                held_bytes=info.held_bytes,
                hold=info.hold.name.lower(),
                used_at=schema.utc_time(info.used_s),
            )
            for info in state.running().blobs.list()
        ]

    async def put(request: Request) -> PutItem:
        query = request.query_params
        form, sealed = _FORMS.get(query.get("form", "handle")), query.get("sealed", "0") == "1"
        hold = {"pinned": Hold.PINNED, "kept": Hold.KEPT}.get(query.get("hold", "pinned"))
        async with aclosing(request.stream()) as parts:
            try:
                if form is None or hold is None:
                    raise LocalError(f"form is one of {', '.join(_FORMS)}, and hold is pinned or kept")
                reference = await state.running().blobs.put_stream(parts, sealed=sealed, form=form, hold=hold)
            except ConvergeError:
                await _drain(parts)
                raise
        return PutItem(reference=reference_text(reference), id=reference.id.hex(), size=reference.size)

    async def content(request: Request) -> Response:
        node, query = state.running(), request.query_params
        reference, connected = parse_reference(query.get("reference", "")), {peer.public_key for peer in node.peers()}
        members = views.find_pool(node, query["pool"]).members() if "pool" in query else ()
        providers = [member.public_key for member in members if member.public_key in connected]
        pieces = node.blobs.stream(reference, providers=providers)
        # an error is an answer as long as nothing was sent
        return _Content(pieces, await anext(pieces, b""), reference.size)

    async def remove(request: Request) -> RemovedBlob:
        node = state.running()
        blob = _find(node, body_of(request, RemoveBlob).blob)
        await node.blobs.remove(blob)
        return RemovedBlob(id=blob.hex())

    async def result(request: Request) -> schema.TaskDetail:
        pool = views.find_pool(state.running(), request.path_params["pool"])
        view = views.find_task(pool, request.path_params["task"])
        if not view.state.terminal:
            raise Conflict("the task is not settled", hint="wait for it: converge-node task watch")
        return views.task_detail(await pool.blobs.bring_result(view))

    return [
        Route("/v1/blobs", guarded(listed), methods=["GET"]),
        Route("/v1/blobs", guarded(put, False), methods=["POST"]),
        Route("/v1/blobs/content", guarded(content), methods=["GET"]),
        Route("/v1/blobs/remove", guarded(remove), methods=["POST"]),
        Route("/v1/pools/{pool}/tasks/{task}/result", guarded(result), methods=["GET"]),
    ]


async def _drain(parts: AsyncGenerator[bytes, None]) -> None:
    """Read what the client still sends: an answer before that would be thrown away by its kernel."""
    left = limits.BLOB_BYTES_MAX
    async for part in parts:
        left -= len(part)
        if left < 0:
            break


def _find(node: NodeLike, text: str) -> BlobId:
    if text.startswith(TEXT_PREFIX):
        return parse_reference(text).id
    wanted = text.lower()
    if len(wanted) < _DIGITS_MIN:
        raise LocalError(f"{text!r} is too short; give {_DIGITS_MIN} digits of the id at least, or a reference")
    found = [info.id for info in node.blobs.list() if info.id.hex().startswith(wanted)]
    if not found:
        raise NotFound(f"no blob {text!r} is kept here")
    if len(found) > 1:
        raise Conflict(f"{len(found)} blobs begin with {text!r}; give more digits")
    return found[0]


class _Content(Response):
    """Sends a content in pieces. If something goes wrong in the middle, the client sees less than was announced."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], first: bytes, size: int) -> None:
        super().__init__(media_type=_CONTENT, headers={"content-length": str(size)})
        self._pieces = pieces
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the ASGI signature
        """Serve the content."""
        async with aclosing(self._pieces) as pieces:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
