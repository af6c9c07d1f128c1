"""Traces for OpenTelemetry: spans of a node become spans of its SDK, with the ids they have.

Knows: the SDK. Must not know: nodes. The packages of the extra `otel` (`opentelemetry-api` and `-sdk`) are imported
when an exporter is made.
Source: OpenTelemetry's specification of span processors and exporters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converge_p2p.core.model.trace import TraceContext
from converge_p2p.runtime.tracing import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter as SdkExporter

SCOPE = "converge_p2p"


class OtelExporter:
    """Hands spans to OpenTelemetry (`runtime.tracing.SpanExporter`)."""

    def __init__(self, target: SdkExporter | SpanProcessor, *, service: str = "converge-node") -> None:
        """Choose where spans go.

        Args:
            target: an exporter of the SDK, which is then fed in batches by a thread of the SDK; or a processor.
            service: the name under which the traces are shown.

        Raises:
            ImportError: the extra `otel` is not installed.
        """
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanProcessor
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._processor: Any = target if isinstance(target, SpanProcessor) else BatchSpanProcessor(target)
        self._resource = Resource.create({"service.name": service})
        self._scope = InstrumentationScope(SCOPE)

    def export(self, span: Span) -> None:
        """See `SpanExporter`. It only queues, if the processor does."""
        self._processor.on_end(self._readable(span))

    def shutdown(self) -> None:
        """Send what waits, and end the SDK's thread. Blocks, so call it in a thread."""
        self._processor.shutdown()

    def _readable(self, span: Span) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode

        parent = TraceContext(span.context.trace_id, span.parent, span.context.sampled) if span.parent else None
        kinds = {"message.send": SpanKind.PRODUCER, "message.receive": SpanKind.CONSUMER}
        return ReadableSpan(
            name=span.name,
            context=_context(span.context, remote=False),
            parent=None if parent is None else _context(parent, remote=True),
            resource=self._resource,
            attributes=dict(span.attributes),
            links=[] if span.link is None else [Link(_context(span.link, remote=True))],
            kind=kinds.get(span.name, SpanKind.INTERNAL),
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.OK),
            start_time=span.started_ns,
            end_time=span.ended_ns,
            instrumentation_scope=self._scope,
        )


def _context(context: TraceContext, *, remote: bool) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(
        int.from_bytes(context.trace_id, "big"),
        int.from_bytes(context.span_id, "big"),
        is_remote=remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT),
    )
