"""Watching a node over the control interface: health, metrics, events, the log, and agents' checkpoints.

Knows: requests and answers, and the node through `control.ports`. Must not know: sockets, or how numbers are made.
Source: docs/observability.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from converge_node import schema, watch_schema
from converge_node.control.requests import body_of, number
from converge_node.control.stream import EventStream, Open
from converge_node.errors import NotReady
from converge_node.json_values import to_json_value
from converge_node.logs import log_level, set_log_level
from converge_p2p.core import limits

if TYPE_CHECKING:
    from converge_node.control.app import ControlState

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Stream = Callable[[Open, Request], EventStream]


class Observing:
    """The endpoints."""

    def __init__(self, state: ControlState, stream: Stream) -> None:
        """Watch the node of a state; `stream` makes an answer of a source of items."""
        self._state = state
        self._stream = stream

    def endpoints(self) -> list[tuple[str, str, Callable[[Request], Awaitable[Any]]]]:
        """Return path, method and function of each."""
        return [
            ("/healthz", "GET", self.health),
            ("/readyz", "GET", self.ready),
            ("/metrics", "GET", self.metrics),
            ("/v1/events", "GET", self._events),
            ("/v1/logs", "GET", self._logs),
            ("/v1/logs/level", "GET", self._level),
            ("/v1/logs/level", "POST", self._set_level),
            ("/v1/checkpoints", "GET", self._checkpoints),
        ]

    async def health(self, _request: Request) -> Response:
        """Whether the node does its work: 200, or 503 with the reasons."""
        item = await self._item()
        return _json(item, 200 if item.healthy else 503)

    async def ready(self, _request: Request) -> Response:
        """Whether the node takes requests: 200, or 503 with the reasons."""
        item = await self._item()
        return _json(item, 200 if item.ready else 503)

    async def _item(self) -> schema.HealthItem:
        state, troubles = self._state, []
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

    async def metrics(self, _request: Request) -> Response:
        """All metrics, as Prometheus reads them."""
        state = self._state
        if state.node is None:
            raise NotReady(f"the node is not ready: {state.stage}", hint="wait for `converge-node health --ready`")
        own = {"control_requests_refused": state.refused, "ready": int(state.ready)}
        return Response(state.node.observation.metrics_text(own), media_type=METRICS_TYPE)

    async def _events(self, request: Request) -> EventStream:
        node, kind = self._state.running(), request.query_params.get("kind", "")

        @asynccontextmanager
        async def source() -> AsyncIterator[AsyncGenerator[object, None]]:
            async with node.observation.watch_events() as events:
                yield chosen(events)

        async def chosen(events: trio.MemoryReceiveChannel[Any]) -> AsyncGenerator[object, None]:
            async for event in events:
                if kind in ("", event.kind):
                    yield watch_schema.EventItem(at=schema.utc_time(event.at), kind=event.kind, about=event.about)

        return self._stream(source, request)

    async def _logs(self, request: Request) -> EventStream | list[watch_schema.LogLine]:
        book, query = self._state.log_book, request.query_params
        count = number(query.get("lines", "100"), "lines", 0, limits.LOG_LINES_KEPT_MAX)
        if book is None:
            raise NotReady("this node keeps no lines of its log")
        if query.get("follow", "") != "1":
            return [watch_schema.LogLine(line=line) for line in book.newest(count)]

        @asynccontextmanager
        async def source() -> AsyncIterator[AsyncGenerator[object, None]]:
            yield lines()

        async def lines() -> AsyncGenerator[object, None]:
            async for line in book.follow(count):
                yield watch_schema.LogLine(line=line)

        return self._stream(source, request)

    async def _level(self, _request: Request) -> watch_schema.LogLevelItem:
        return watch_schema.LogLevelItem(level=log_level())

    async def _set_level(self, request: Request) -> watch_schema.LogLevelItem:
        set_log_level(body_of(request, watch_schema.SetLogLevel).level)
        return watch_schema.LogLevelItem(level=log_level())

    async def _checkpoints(self, _request: Request) -> list[watch_schema.AgentCheckpointItem]:
        hosting = self._state.running().hosting
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


def _json(item: schema.HealthItem, status: int) -> Response:
    content = msgspec.json.encode(schema.success(item))
    return Response(content, status_code=status, media_type="application/json")
