"""Spans: whole traces or nothing of them, kept within bounds, and never in the way of what they are about."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError, NetworkError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.trace import TraceContext
from converge_p2p.runtime.tracing import (
    NO_TRACER,
    JsonLinesExporter,
    MemoryExporter,
    Span,
    Tracer,
    child_of,
    current,
    entered,
    received,
    sending,
    turn_of,
)

WHOLE = TraceContext(bytes(range(16)), bytes(range(8)))
LETTER = Message.create(Identity.from_seed(bytes(32)).id, "hello")


def test_without_an_exporter_nothing_is_made_and_nothing_sent_along() -> None:
    assert NO_TRACER.begin("task", WHOLE) is None
    with entered(WHOLE), sending(NO_TRACER, LETTER) as sent:
        assert sent is LETTER
    received(NO_TRACER, LETTER)
    with turn_of(NO_TRACER, "agent", [replace(LETTER, trace=WHOLE.to_bytes())]):
        assert current() is None


def test_what_is_sent_while_a_trace_is_entered_belongs_to_it_and_what_it_causes_too() -> None:
    memory = MemoryExporter()
    tracer = Tracer(memory)
    with entered(WHOLE), sending(tracer, LETTER) as sent:
        assert current() == WHOLE
    assert current() is None
    assert sent.trace_context is not None
    received(tracer, sent)
    with turn_of(tracer, "agent", [LETTER, sent]), sending(tracer, LETTER) as answer:
        pass
    names = {span.name: span for span in memory.spans}
    assert {span.context.trace_id for span in memory.spans} == {WHOLE.trace_id}
    assert [span.name for span in memory.spans] == ["message.send", "message.receive", "message.send", "agent.turn"]
    assert memory.spans[0].parent == WHOLE.span_id
    assert names["message.receive"].parent == names["agent.turn"].parent == sent.trace_context.span_id
    assert answer.trace_context == names["message.send"].context
    assert names["message.send"].parent == names["agent.turn"].context.span_id


def test_a_message_that_was_not_delivered_says_why_and_a_signed_one_is_left_alone() -> None:
    memory = MemoryExporter()

    def fail() -> None:
        with sending(Tracer(memory), LETTER):
            raise NetworkError("nobody is there")

    with pytest.raises(NetworkError):
        fail()
    assert [span.error for span in memory.spans] == ["nobody is there"]
    signed = LETTER.stamp(1).sign(Identity.from_seed(bytes(32)))
    with sending(Tracer(memory), signed) as sent:
        assert sent is signed


def test_a_share_of_the_traces_is_whole_traces_and_the_same_ones_everywhere() -> None:
    here, there = (Tracer(MemoryExporter(), sample=0.5) for _ in range(2))
    traces = [child_of(None) for _ in range(400)]
    wanted = [here.wants(trace) for trace in traces]
    assert wanted == [there.wants(child_of(trace)) for trace in traces]
    assert 100 < sum(wanted) < 300
    assert not Tracer(MemoryExporter(), sample=0).wants(WHOLE)
    assert not here.wants(replace(WHOLE, sampled=False))
    with pytest.raises(LocalError):
        Tracer(sample=float("nan"))


def test_memory_keeps_the_newest_spans_and_counts_the_others() -> None:
    memory = MemoryExporter(2)
    for name in "abc":
        span = Tracer(memory).begin(name)
        assert span is not None
        span.end()
    assert [span.name for span in memory.spans] == ["b", "c"]
    assert memory.dropped == 1
    with pytest.raises(LocalError):
        MemoryExporter(0)


def test_an_exporter_that_raises_is_counted_and_harms_nobody() -> None:
    class Broken:
        def export(self, _span: Span) -> None:
            raise ValueError("no")

    tracer = Tracer(Broken())
    for _ in range(3):
        span = tracer.begin("task")
        assert span is not None
        span.end()
    assert tracer.failures == 3


async def test_spans_are_lines_of_json_in_a_private_file_that_makes_room_for_the_next(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    exporter = JsonLinesExporter(file, bytes_max=400)
    times = iter(range(100))
    tracer = Tracer(exporter, now_ns=lambda: next(times))

    async def one(name: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exporter.run)
            span = tracer.begin(name, WHOLE, attributes={"task": "ab"}, link=WHOLE)
            assert span is not None
            span.end("broke" if name == "second" else "")
            await trio.testing.wait_all_tasks_blocked()
            # what waits is written although the node ends
            nursery.cancel_scope.cancel()

    await one("first")
    (item,) = map(json.loads, file.read_text().splitlines())
    assert item["trace_id"] == WHOLE.trace_id.hex()
    assert (item["parent_id"], item["start_ns"], item["end_ns"]) == (WHOLE.span_id.hex(), 0, 1)
    assert (item["attributes"], item["link"]) == ({"task": "ab"}, str(WHOLE))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await one("second")
    await one("third")
    kept = [
        json.loads(line)
        for name in ("spans.jsonl.1", "spans.jsonl")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert [item["name"] for item in kept] == ["first", "second", "third"]
    assert kept[1]["error"] == "broke"


async def test_spans_that_cannot_be_written_are_dropped_and_counted(tmp_path: Path) -> None:
    exporter = JsonLinesExporter(tmp_path / "missing" / "spans")
    tracer = Tracer(exporter)
    for _ in range(limits.TRACE_SPANS_WAITING_MAX + 3):
        span = tracer.begin("task")
        assert span is not None
        span.end()
    assert exporter.dropped == 3
    with trio.move_on_after(0):
        await exporter.run()
    assert exporter.dropped == limits.TRACE_SPANS_WAITING_MAX + 3
