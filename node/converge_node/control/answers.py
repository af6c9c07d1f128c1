"""What a request is answered: envelopes in JSON, and an error for whatever goes wrong.

Knows: the envelope, and the status of each error. Must not know: what is asked.
Source: docs/control.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from converge_node.error_catalogue import http_status_of
from converge_node.errors import NotAuthenticated, known_error
from converge_p2p.client import schema
from converge_p2p.core.errors import ConvergeError

Serve = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger("converge_node.control")


def json_answer(envelope: dict[str, Any], status: int) -> Response:
    """Return an answer in JSON."""
    return Response(msgspec.json.encode(envelope), status_code=status, media_type="application/json")


def error_answer(error: ConvergeError) -> Response:
    """Return the answer that an error is."""
    answer = json_answer(schema.failure(error), http_status_of(error.code))
    if isinstance(error, NotAuthenticated):
        answer.headers["www-authenticate"] = 'Bearer realm="converge-node"'
    return answer


def guarded(serve: Serve) -> Serve:
    """Turn every error into an answer: a request never harms the node."""

    async def answer(request: Request) -> Response:
        try:
            return await serve(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - the edge: one bad request must not end the node
            known = known_error(error)
            if known is None:
                _log.exception("control request %s %s failed", request.method, request.url.path)
                known = ConvergeError(f"internal error: {type(error).__name__}", hint="see the log of the node")
            return error_answer(known)

    return answer
