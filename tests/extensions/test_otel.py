"""Traces arrive in OpenTelemetry with the ids, times and parents that they have here."""

from __future__ import annotations

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from converge_p2p.core.model.trace import TraceContext
from converge_p2p.extensions.otel import SCOPE, OtelExporter
from converge_p2p.runtime.tracing import Tracer

WHOLE = TraceContext(bytes(range(16)), bytes(range(8)))


def test_spans_keep_their_ids_parents_times_and_errors() -> None:
    memory = InMemorySpanExporter()
    times = iter(range(1000, 2000, 100))
    tracer = Tracer(OtelExporter(SimpleSpanProcessor(memory), service="mesh"), node="a", now_ns=lambda: next(times))
    first = tracer.begin("message.send", WHOLE, attributes={"to": "agent", "bytes": 5})
    assert first is not None
    second = tracer.begin("task.execute", first.context, link=WHOLE)
    assert second is not None
    second.end("it broke")
    first.end()
    broken, good = memory.get_finished_spans()
    assert (good.name, good.kind, good.status.status_code) == ("message.send", SpanKind.PRODUCER, StatusCode.OK)
    assert good.context.trace_id == broken.context.trace_id == int.from_bytes(WHOLE.trace_id, "big")
    assert good.parent is not None
    assert broken.parent is not None
    assert good.parent.span_id == int.from_bytes(WHOLE.span_id, "big")
    assert broken.parent.span_id == good.context.span_id
    assert (good.start_time, good.end_time) == (1000, 1300)
    assert dict(good.attributes or {}) == {"to": "agent", "bytes": 5}
    assert (broken.status.status_code, broken.status.description) == (StatusCode.ERROR, "it broke")
    assert broken.links[0].context.trace_id == good.context.trace_id
    assert good.resource.attributes["service.name"] == "mesh"
    assert good.instrumentation_scope is not None
    assert good.instrumentation_scope.name == SCOPE


def test_an_exporter_is_fed_in_batches_and_emptied_at_the_end() -> None:
    memory = InMemorySpanExporter()
    exporter = OtelExporter(memory)
    span = Tracer(exporter).begin("task", WHOLE)
    assert span is not None
    span.end()
    exporter.shutdown()
    assert [each.name for each in memory.get_finished_spans()] == ["task"]
