"""Blobs over the control interface: put, get, list and remove them, and the whole result of a task.

Knows: requests, and the node through `control.ports`. Must not know: who may have a blob.
Source: docs/control.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from converge_p2p.core.model.blob_text import TEXT_PREFIX, parse_reference, reference_text
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from converge_node.control import views
from converge_node.control.ports import NodeLike
from converge_node.control.state import Asked, Endpoint
from converge_p2p.client import schema
from converge_p2p.client.blob_schema import BlobItem, PutItem, RemovedBlob
from converge_p2p.core.errors import Conflict, LocalError, NotFound
from converge_p2p.core.types import BlobForm, BlobId
from converge_p2p.store.blobs import Hold

_DIGITS_MIN = 6
_CONTENT = "application/octet-stream"


async def listed(asked: Asked) -> list[BlobItem]:
    """Return the blobs that are kept."""
    return [
        BlobItem(
            id=info.id.hex(),
            size=info.size,
            held_bytes=info.held_bytes,
            hold=info.hold.name.lower(),
            used_at=schema.utc_time(info.used_s),
        )
        for info in asked.node.blobs.list()
    ]


async def put(asked: Asked) -> PutItem:
    """Keep a content."""
    query = asked.query
    reference = await asked.node.blobs.put_stream(
        asked.parts, sealed=query.sealed, form=BlobForm[query.form.upper()], hold=Hold[query.hold.upper()]
    )
    return PutItem(reference=reference_text(reference), id=reference.id.hex(), size=reference.size)


async def content(asked: Asked) -> Response:
    """Fetch a content, and send it on."""
    node, query = asked.node, asked.query
    reference, connected = parse_reference(query.reference), {peer.public_key for peer in node.peers()}
    members = () if query.pool is None else views.find_pool(node, query.pool).members()
    providers = [member.public_key for member in members if member.public_key in connected]
    pieces = node.blobs.stream(reference, providers=providers)
    # an error is an answer as long as nothing was sent
    return _Content(pieces, await anext(pieces, b""), reference.size)


async def remove(asked: Asked) -> RemovedBlob:
    """Keep a blob no longer."""
    blob = _find(asked.node, asked.body.blob)
    await asked.node.blobs.remove(blob)
    return RemovedBlob(id=blob.hex())


async def result(asked: Asked) -> schema.TaskDetail:
    """Return a settled task with its whole result."""
    pool = asked.pool()
    view = views.find_task(pool, asked.places["task"])
    if not view.state.terminal:
        raise Conflict("the task is not settled", hint="wait for it: converge-node task watch")
    return views.task_detail(await pool.blobs.bring_result(view))


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


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "blobs": listed,
    "put_blob": put,
    "blob": content,
    "remove_blob": remove,
    "result": result,
}
