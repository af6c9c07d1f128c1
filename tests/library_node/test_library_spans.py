"""The spans of a task: each step once, with its parent, all in the trace that the task's id stands for."""

from __future__ import annotations

from typing import Any

import pytest
from node_library_kit import DriverRig, spec_of

from converge_p2p.core import limits
from converge_p2p.core.model.task import Outcome, task_id
from converge_p2p.core.model.trace import TraceContext, trace_of_task
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import TaskId
from converge_p2p.node.observation import Observation
from converge_p2p.runtime.tracing import MemoryExporter, Span, Tracer


class Traced:
    """A pool of one node that is traced."""

    def __init__(self) -> None:
        self.memory = MemoryExporter()
        self.rig = DriverRig()
        self.driver = self.rig.found()
        self.observation = Observation(tracer=Tracer(self.memory, node="me"))
        self.driver.watcher = self.observation.watch(self.driver.replica)

    def task(self, key: bytes = b"k") -> TaskId:
        return task_id(self.driver.pool, self.rig.identity.public_key, key)

    def spans(self) -> dict[str, Span]:
        return {span.name: span for span in self.memory.spans}


async def test_submit_claim_grant_execute_report_and_settle_are_one_trace(autojump_clock: Any) -> None:
    traced = Traced()
    rig, driver, task = traced.rig, traced.driver, traced.task()
    async with rig.running():
        for command in (ev.Submit(spec_of()), ev.Claim(task), ev.Report(task, Outcome.COMPLETED, b"\xf6")):
            driver.propose(command)
            await rig.passes(1.0)
    spans = traced.spans()
    steps = ["submit", "claim", "grant", "execute", "report", "settle"]
    assert set(spans) == {"task", *(f"task.{step}" for step in steps)}
    assert len(traced.memory.spans) == len(spans), "each step once"
    whole = trace_of_task(task)
    assert spans["task"].context == whole
    assert {span.context.trace_id for span in spans.values()} == {whole.trace_id}
    parents = {name: span.parent for name, span in spans.items()}
    assert parents["task"] == b""
    assert {parents[f"task.{step}"] for step in ("submit", "claim", "grant", "settle")} == {whole.span_id}
    assert parents["task.execute"] == spans["task.claim"].context.span_id
    assert parents["task.report"] == spans["task.execute"].context.span_id
    assert spans["task.execute"].attributes["round"] == 0
    assert spans["task"].attributes | {"x": 1} == {
        "pool": driver.pool.hex(), "task": task.hex(), "node": "me", "objective": "count", "state": "completed", "x": 1,
    }  # fmt: skip
    assert all(not span.error for span in spans.values())


async def test_a_task_that_was_asked_for_in_a_trace_goes_on_in_it(autojump_clock: Any) -> None:
    traced, asked = Traced(), TraceContext(b"t" * 16, b"s" * 8)
    async with traced.rig.running():
        traced.driver.propose(ev.Submit(spec_of(traceparent=str(asked))))
        await traced.rig.passes(1.0)
        traced.driver.propose(ev.Cancel(traced.task()))
        await traced.rig.passes(1.0)
    spans = traced.spans()
    assert {span.context.trace_id for span in spans.values()} == {asked.trace_id}
    assert spans["task"].parent == asked.span_id


async def test_what_is_given_back_or_submitted_twice_leaves_no_span_open(autojump_clock: Any) -> None:
    traced = Traced()
    rig, driver, task = traced.rig, traced.driver, traced.task()
    async with rig.running():
        driver.propose(ev.Submit(spec_of()))
        driver.propose(ev.Submit(spec_of()))
        await rig.passes(1.0)
        driver.propose(ev.Claim(task))
        await rig.passes(1.0)
        driver.propose(ev.Release(task, True, "too hard"))
        await rig.passes(1.0)
        assert [span.error for span in traced.memory.spans if span.name == "task.execute"] == ["given back: too hard"]
        driver.propose(ev.Cancel(task))
        await rig.passes(2.0)
        driver.propose(ev.Submit(spec_of()))
        await rig.passes(1.0)
    watcher = driver.watcher
    assert watcher is not None
    assert [name for (_, name) in watcher._spans._open] == []  # type: ignore[attr-defined]
    assert [span.name for span in traced.memory.spans].count("task") == 1


async def test_spans_that_are_open_are_bounded(monkeypatch: pytest.MonkeyPatch, autojump_clock: Any) -> None:
    monkeypatch.setattr(limits, "TRACE_SPANS_OPEN_MAX", 8)
    traced = Traced()
    async with traced.rig.running():
        for number in range(20):
            traced.driver.propose(ev.Submit(spec_of(key=b"%d" % number)))
            traced.rig.writer.commit()
    watcher = traced.driver.watcher
    assert watcher is not None
    assert len(watcher._spans) <= 8  # type: ignore[attr-defined]
    assert "too many spans were open" in {span.error for span in traced.memory.spans}


async def test_a_share_of_none_records_none(autojump_clock: Any) -> None:
    traced = Traced()
    traced.observation.tracer = Tracer(traced.memory, sample=0)
    traced.driver.watcher = traced.observation.watch(traced.driver.replica)
    async with traced.rig.running():
        traced.driver.propose(ev.Submit(spec_of()))
        await traced.rig.passes(1.0)
    assert not traced.memory.spans
