"""Watching a node over the control interface: health, metrics, events, the log, and agents' checkpoints.

Knows: requests and answers, and the node through `control.ports`. Must not know: sockets, or how numbers are made.
Source: docs/observability.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from starlette.responses import Response

from converge_node.control.state import Asked, ControlState, Endpoint
from converge_node.control.stream import Open
from converge_node.errors import NotReady
from converge_node.log_book import LogBook
from converge_node.logs import log_level, set_log_level
from converge_p2p.client import schema, watch_schema
from converge_p2p.client.json_values import to_json_value

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


async def health_item(state: ControlState) -> schema.HealthItem:
    """Return whether the node does its work and takes requests, and what is wrong."""
    troubles = []
    if state.node is not None:
        troubles = [
            schema.TroubleItem(what=each.what, text=each.text, hint=each.hint, fatal=each.fatal)
            for each in await state.node.observation.troubles()
        ]
    healthy = not any(trouble.fatal for trouble in troubles)
    if not state.ready:
        said = schema.TroubleItem(what="stage", text=f"the node is not ready: {state.stage}", fatal=False)
        troubles.insert(0, said)
    return schema.HealthItem(healthy=healthy, ready=state.ready and healthy, stage=state.stage, reasons=troubles)


def metrics_response(state: ControlState) -> Response:
    """Return all metrics, as Prometheus reads them. Raises `NotReady` while there is no node."""
    if state.node is None:
        raise NotReady(f"the node is not ready: {state.stage}", hint="wait for `converge-node health --ready`")
    own = {
        "control_requests_refused": state.refused,
        "control_tokens_refused": state.tokens_refused,
        "ready": int(state.ready),
    }
    return Response(state.node.observation.metrics_text(own), media_type=METRICS_TYPE)


async def health(asked: Asked) -> schema.HealthItem:
    """Say whether the node does its work, and is ready."""
    return await health_item(asked.state)


async def metrics(asked: Asked) -> Response:
    """Return all metrics."""
    return metrics_response(asked.state)


async def events(asked: Asked) -> Open:
    """Return what opens the events of the node."""
    node, kind = asked.node, "" if asked.query is None else asked.query.kind

    @asynccontextmanager
    async def source() -> AsyncIterator[AsyncGenerator[object, None]]:
        async with node.observation.watch_events() as seen:
            yield chosen(seen)

    async def chosen(seen: trio.MemoryReceiveChannel[Any]) -> AsyncGenerator[object, None]:
        async for event in seen:
            if kind in ("", event.kind):
                yield watch_schema.EventItem(at=schema.utc_time(event.at), kind=event.kind, about=event.about)

    return source


async def logs(asked: Asked) -> list[watch_schema.LogLine]:
    """Return the newest lines of the log."""
    return [watch_schema.LogLine(line=line) for line in _book(asked).newest(asked.query.lines)]


async def follow_logs(asked: Asked) -> Open:
    """Return what opens the log."""
    book = _book(asked)

    @asynccontextmanager
    async def source() -> AsyncIterator[AsyncGenerator[object, None]]:
        yield lines()

    async def lines() -> AsyncGenerator[object, None]:
        async for line in book.follow(asked.query.lines):
            yield watch_schema.LogLine(line=line)

    return source


def _book(asked: Asked) -> LogBook:
    if asked.state.log_book is None:
        raise NotReady("this node keeps no lines of its log")
    return asked.state.log_book


async def level(_asked: Asked) -> watch_schema.LogLevelItem:
    """Return the least severity that is written."""
    return watch_schema.LogLevelItem(level=log_level())


async def set_level(asked: Asked) -> watch_schema.LogLevelItem:
    """Change the least severity that is written."""
    set_log_level(asked.body.level)
    return watch_schema.LogLevelItem(level=log_level())


async def checkpoints(asked: Asked) -> list[watch_schema.AgentCheckpointItem]:
    """Return the newest checkpoint of each agent."""
    hosting = asked.node.hosting
    running = {agent.name for agent in hosting.hosted()}
    return [
        watch_schema.AgentCheckpointItem(
            agent=note.agent,
            turns=note.turns,
            failures=note.failures,
            at=schema.utc_time(note.at_ms / 1000),
            running=note.agent in running,
            state=to_json_value(note.state),
        )
        for note in await trio.to_thread.run_sync(hosting.checkpoints)
    ]


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "health": health,
    "ready": health,
    "metrics": metrics,
    "events": events,
    "logs": logs,
    "follow_logs": follow_logs,
    "log_level": level,
    "set_log_level": set_level,
    "checkpoints": checkpoints,
}
