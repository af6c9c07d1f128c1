"""A trace context: which trace a piece of work belongs to, and which span caused it.

Knows: its bytes, its text, and which trace a task belongs to. Must not know: clocks, spans, or who records them.
Source: W3C Trace Context, version 00; `docs/protocol.md`, messages.

A task needs no field for it: its trace follows from its id, so that all nodes agree on it and no operation is changed.
An application that has a trace of its own already puts it into the task's inputs, see `TRACEPARENT`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.types import TaskId

TRACE_BYTES: Final = 25
TRACEPARENT: Final = "traceparent"
"""The input of a task that says in which trace it was asked for, in the form of the HTTP header of that name."""

_TEXT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Attributes:
    trace_id: 16 bytes, not all zero.
    span_id: 8 bytes, not all zero.
    sampled: whether whoever began the trace records it.

    Raises:
        CodecError: an id of another length, or of zeros.
    """

    trace_id: bytes
    span_id: bytes
    sampled: bool = True

    def __post_init__(self) -> None:
        for what, value, size in (("trace", self.trace_id, 16), ("span", self.span_id, 8)):
            if type(value) is not bytes or len(value) != size or not any(value):
                raise CodecError(f"a {what} id is {value!r}; expected {size} bytes that are not all zero")

    def to_bytes(self) -> bytes:
        """Return `TRACE_BYTES` bytes: both ids, and one byte of flags."""
        return self.trace_id + self.span_id + bytes([self.sampled])

    @classmethod
    def from_bytes(cls, data: bytes) -> TraceContext:
        """Read what `to_bytes` wrote; flags that are not known are ignored.

        Raises:
            CodecError: of another length, or an id of zeros.
        """
        if len(data) != TRACE_BYTES:
            raise CodecError(f"a trace context has {len(data)} bytes; expected {TRACE_BYTES}")
        return cls(data[:16], data[16:24], bool(data[24] & _SAMPLED))

    def __str__(self) -> str:
        """The header `traceparent`."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{int(self.sampled):02x}"

    @classmethod
    def from_text(cls, text: str) -> TraceContext:
        """Read a `traceparent`.

        Raises:
            CodecError: of another form or version, or an id of zeros.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise CodecError(f"{text[:80]!r} is no traceparent; expected 00-<32 digits>-<16 digits>-<2 digits>")
        trace_id, span_id, flags = map(bytes.fromhex, found.groups())
        return cls(trace_id, span_id, bool(flags[0] & _SAMPLED))


def trace_of_task(task: TaskId) -> TraceContext:
    """Return the trace of a task, and the span that stands for the whole of it: both are parts of the task's id.

    An id is a hash, so it has no part of zeros, which the standard does not allow; ones would stand for it.
    """
    trace_id, span_id = task[:16], task[16:24]
    return TraceContext(trace_id if any(trace_id) else b"\xff" * 16, span_id if any(span_id) else b"\xff" * 8)


def asked_in(view: TaskView) -> TraceContext | None:
    """Return the trace that a task's author says it was asked for in; None if it says nothing, or no `traceparent`."""
    if TRACEPARENT.encode() not in view.spec.inputs:
        return None
    try:
        inputs = view.inputs
        text = inputs.get(TRACEPARENT) if isinstance(inputs, Mapping) else None
        return TraceContext.from_text(text) if isinstance(text, str) else None
    except CodecError:
        return None


def context_of(view: TaskView) -> TraceContext:
    """Return the span that stands for the whole of a task, in the trace that it was asked for in."""
    own, asked = trace_of_task(view.id), asked_in(view)
    return own if asked is None else TraceContext(asked.trace_id, own.span_id, asked.sampled)
