"""Traces: what caused what, and how long it took, across nodes.

Knows: spans, what stands for a message in them, and the way out to whoever keeps them. Must not know: tasks (see
`node.task_spans`), or OpenTelemetry (see `extensions.otel`).
Source: W3C Trace Context; OpenTelemetry's names for the parts of a span.

Without an exporter nothing is recorded and nothing is sent along: `NO_TRACER` costs one test of an attribute.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import trio
from nacl.utils import random as random_bytes

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError, StoreError
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.trace import TraceContext

_logger = logging.getLogger(__name__)

Value = str | int | float | bool

_current: ContextVar[TraceContext | None] = ContextVar("converge_trace", default=None)


@dataclass(frozen=True, slots=True)
class Span:
    """Something that happened, with its beginning and end.

    Attributes:
        name: what kind of thing, as `task.execute`.
        context: its ids.
        parent: id of the span that caused it, 8 bytes, or empty.
        started_ns, ended_ns: Unix time, nanoseconds.
        attributes: ids and sizes, never contents.
        error: why it went wrong; empty if it did not.
        link: another trace that it has to do with, or None.
    """

    name: str
    context: TraceContext
    parent: bytes
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""
    link: TraceContext | None = None


class SpanExporter(Protocol):
    """Keeps spans, or sends them somewhere."""

    def export(self, span: Span) -> None:
        """Take a finished span. Called in the event loop: it does not block, and raises nothing."""


class OpenSpan:
    """A span that has begun.

    Attributes:
        context: its ids, for what it causes.
    """

    __slots__ = ("_attributes", "_link", "_name", "_parent", "_started_ns", "_tracer", "context")

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        context: TraceContext,
        parent: bytes,
        attributes: dict[str, Value],
        link: TraceContext | None,
    ) -> None:
        """Made by `Tracer.begin`."""
        self.context = context
        self._tracer = tracer
        self._name = name
        self._parent = parent
        self._attributes = attributes
        self._link = link
        self._started_ns = tracer.now_ns()

    def end(self, error: str = "", **attributes: Value) -> None:
        """It is over; `error` says why it went wrong. To be called once."""
        tracer = self._tracer
        said = {**self._attributes, **attributes}
        tracer.hand_over(
            Span(self._name, self.context, self._parent, self._started_ns, tracer.now_ns(), said, error, self._link)
        )


class Tracer:
    """Makes spans, and hands them to an exporter.

    Attributes:
        enabled: whether anything is recorded at all.
        failures: spans that an exporter raised at.
    """

    def __init__(
        self,
        exporter: SpanExporter | None = None,
        *,
        sample: float = 1.0,
        node: str = "",
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Make a tracer.

        Args:
            exporter: where spans go; None records nothing.
            sample: which share of the traces is recorded, 0 to 1. It is chosen by their ids, so that all nodes with one
                share record the same ones, whole.
            node: agent id that stands in every span; a node fills it in if it is empty.
            now_ns: Unix time in nanoseconds.

        Raises:
            LocalError: a share out of its range.
        """
        if not 0 <= sample <= 1:
            raise LocalError(f"sample is {sample!r}; expected a share from 0 to 1")
        self.enabled = exporter is not None
        self.exporter = exporter
        self.node = node
        self.now_ns = now_ns
        self.failures = 0
        self._below = round(sample * 2**64)

    def wants(self, context: TraceContext) -> bool:
        """Whether this trace is recorded."""
        return self.enabled and context.sampled and int.from_bytes(context.trace_id[8:], "big") < self._below

    def begin(
        self,
        name: str,
        parent: TraceContext | None = None,
        *,
        context: TraceContext | None = None,
        link: TraceContext | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> OpenSpan | None:
        """Begin a span; None if it is not recorded.

        Args:
            name: what kind of thing it is.
            parent: what caused it; None begins a trace.
            context: its own ids, if they are not to be drawn at random.
            link: another trace that it has to do with.
            attributes: what is worth knowing.
        """
        if not self.enabled:
            return None
        if context is None:
            context = child_of(parent)
        if not self.wants(context):
            return None
        above = b"" if parent is None or parent.span_id == context.span_id else parent.span_id
        return OpenSpan(self, name, context, above, dict(attributes or {}), link)

    def hand_over(self, span: Span) -> None:
        """Give a finished span to the exporter. One that raises harms nobody."""
        if self.exporter is None:
            return
        try:
            self.exporter.export(span)
        except Exception:
            self.failures += 1
            if self.failures == 1:
                _logger.exception("the exporter of traces failed; further failures are only counted")


NO_TRACER: Final = Tracer()
"""Records nothing."""


def child_of(parent: TraceContext | None) -> TraceContext:
    """Return fresh ids: in the parent's trace, or in a new one."""
    if parent is None:
        return TraceContext(_fresh(16), _fresh(8))
    return TraceContext(parent.trace_id, _fresh(8), parent.sampled)


def _fresh(size: int) -> bytes:
    # the last bit makes sure that not all are zero
    drawn = random_bytes(size)
    return drawn[:-1] + bytes([drawn[-1] | 1])


def current() -> TraceContext | None:
    """Return the trace that the running task works in, if any."""
    return _current.get()


@contextmanager
def entered(context: TraceContext | None) -> Iterator[None]:
    """Work in a trace: what is sent meanwhile belongs to it. None changes nothing."""
    if context is None:
        yield
        return
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def turn_of(tracer: Tracer, agent: str, messages: Sequence[Message]) -> Iterator[None]:
    """Work on messages in the trace of the first of them that has one."""
    caused = next((message.trace_context for message in messages if message.trace), None) if tracer.enabled else None
    span = (
        None
        if caused is None
        else tracer.begin("agent.turn", caused, attributes={"agent": agent, "messages": len(messages)})
    )
    if span is None:
        yield
        return
    with entered(span.context):
        try:
            yield
        finally:
            span.end()


@contextmanager
def sending(tracer: Tracer, message: Message) -> Iterator[Message]:
    """Give the message that is to be sent: with the trace in which it is, if that is recorded."""
    span = None
    if tracer.enabled and not message.signed:
        to = "topics" if message.topics else "all" if message.recipient is None else "agent"
        span = tracer.begin("message.send", current(), attributes={"to": to, "bytes": len(message.body)})
    if span is None:
        yield message
        return
    error = "cancelled"
    try:
        yield replace(message, trace=span.context.to_bytes())
        error = ""
    except Exception as failure:
        error = str(failure)
        raise
    finally:
        span.end(error)


def received(tracer: Tracer, message: Message) -> None:
    """Note that a message came, where its sender records the trace of it."""
    if tracer.enabled and (caused := message.trace_context) is not None:
        said: dict[str, Value] = {"sender": message.sender, "bytes": len(message.body)}
        span = tracer.begin("message.receive", caused, attributes=said)
        if span is not None:
            span.end()


class MemoryExporter:
    """Keeps the newest spans in memory.

    Attributes:
        spans: oldest first.
        dropped: how many older ones were given up.
    """

    def __init__(self, spans_max: int = limits.TRACE_SPANS_KEPT_MAX) -> None:
        """Keep at most so many. Raises `LocalError` for a number that is not from 1 to the bound."""
        if not 1 <= spans_max <= limits.TRACE_SPANS_KEPT_MAX:
            raise LocalError(f"spans_max is {spans_max}; expected 1 to {limits.TRACE_SPANS_KEPT_MAX}")
        self.spans: deque[Span] = deque(maxlen=spans_max)
        self.dropped = 0

    def export(self, span: Span) -> None:
        """See `SpanExporter`."""
        self.dropped += len(self.spans) == self.spans.maxlen
        self.spans.append(span)


class JsonLinesExporter:
    """Appends spans to a file, one JSON object a line; `run` writes them.

    Attributes:
        dropped: spans that came faster than they could be written, or could not be.
    """

    def __init__(self, path: str | Path, *, bytes_max: int = limits.TRACE_FILE_BYTES_MAX) -> None:
        """Name a file, which is made readable for its owner alone; one of `bytes_max` makes room for a new one.

        The one before it is kept with `.1` behind its name.
        """
        self.dropped = 0
        self._path = Path(path).expanduser()
        self._bytes_max = bytes_max
        self._waiting: list[Span] = []
        self._wake = trio.Event()

    def export(self, span: Span) -> None:
        """See `SpanExporter`."""
        if len(self._waiting) >= limits.TRACE_SPANS_WAITING_MAX:
            self.dropped += 1
            return
        self._waiting.append(span)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled.

        Cancellation: what waits is written first.
        """
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                await self._write()
        finally:
            with trio.CancelScope(shield=True):
                await self._write()

    async def _write(self) -> None:
        spans, self._waiting = self._waiting, []
        if not spans:
            return
        try:
            await trio.to_thread.run_sync(self.write_now, spans)
        except StoreError as error:
            self.dropped += len(spans)
            _logger.warning("%d spans were not written: %s", len(spans), error)

    def write_now(self, spans: list[Span]) -> None:
        """Append spans. Blocks.

        Raises:
            StoreError: the file cannot be written.
        """
        try:
            if self._path.exists() and self._path.stat().st_size >= self._bytes_max:
                self._path.replace(f"{self._path}.1")
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write("".join(json.dumps(span_item(span)) + "\n" for span in spans).encode())
        except OSError as error:
            raise StoreError(f"cannot write {self._path}: {error.strerror}") from error


def span_item(span: Span) -> dict[str, object]:
    """Return a span as a JSON object: ids in hexadecimal, times in nanoseconds since 1970."""
    item: dict[str, object] = {
        "name": span.name,
        "trace_id": span.context.trace_id.hex(),
        "span_id": span.context.span_id.hex(),
        "parent_id": span.parent.hex(),
        "start_ns": span.started_ns,
        "end_ns": span.ended_ns,
        "attributes": dict(span.attributes),
    }
    if span.error:
        item["error"] = span.error
    if span.link is not None:
        item["link"] = str(span.link)
    return item
