"""Metrics and health on a TCP port, for programs that cannot read a Unix socket. Nothing else is answered there.

Knows: the three paths. Must not know: what is measured.
Source: docs/observability.md. It is off by default: whoever reaches the port may read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from converge_node.control.answers import guarded, json_answer
from converge_node.control.observing import health_item, metrics_response
from converge_node.control.server import serving
from converge_node.control.state import ControlState
from converge_p2p.client import schema


def metrics_app(state: ControlState) -> Starlette:
    """Return the application: `/metrics`, `/healthz`, `/readyz`."""

    async def metrics(_request: Request) -> Response:
        return metrics_response(state)

    async def health(_request: Request) -> Response:
        item = await health_item(state)
        return json_answer(schema.success(item), 200 if item.healthy else 503)

    async def ready(_request: Request) -> Response:
        item = await health_item(state)
        return json_answer(schema.success(item), 200 if item.ready else 503)

    paths = {"/metrics": metrics, "/healthz": health, "/readyz": ready}
    return Starlette(routes=[Route(path, guarded(endpoint)) for path, endpoint in paths.items()])


@asynccontextmanager
async def open_metrics_server(app: Starlette, host: str, port: int) -> AsyncIterator[int]:
    """Answer on a TCP port while the block runs, and give its number; port 0 is any that is free.

    Raises:
        ConfigError: it cannot be listened on.
    """
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    async with serving(app, [bind], f"{bind} for metrics", "see metrics.listen") as (place,):
        yield int(place.rpartition(":")[2])
