"""Trace contexts: one form in bytes, one in text, and the trace that a task's id stands for."""

from __future__ import annotations

import pytest

from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.task import Task, TaskState, TaskView
from converge_p2p.core.model.trace import TraceContext, asked_in, trace_of_task
from converge_p2p.core.types import PoolId, PublicKey, TaskId

CONTEXT = TraceContext(bytes(range(16)), bytes(range(8)), sampled=False)


def task(**inputs: object) -> TaskView:
    spec = Task("count", inputs).to_spec(key=b"k")
    return TaskView(TaskId(bytes(range(32))), PoolId(bytes(32)), PublicKey(bytes(32)), spec, TaskState.PENDING)


def test_a_context_survives_bytes_and_text() -> None:
    assert TraceContext.from_bytes(CONTEXT.to_bytes()) == CONTEXT
    assert TraceContext.from_text(str(CONTEXT)) == CONTEXT
    assert str(CONTEXT) == "00-000102030405060708090a0b0c0d0e0f-0001020304050607-00"


@pytest.mark.parametrize(
    "text",
    ["", "00-0-0-0", str(CONTEXT)[:-1], "01" + str(CONTEXT)[2:], str(CONTEXT).replace("a", "A"), str(CONTEXT) + "\n",
     f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01"],
)  # fmt: skip
def test_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(CodecError):
        TraceContext.from_text(text)


@pytest.mark.parametrize("data", [b"", bytes(25), CONTEXT.to_bytes() + b"\0", CONTEXT.to_bytes()[:-1]])
def test_bytes_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        TraceContext.from_bytes(data)


def test_all_nodes_take_the_same_trace_from_a_tasks_id_and_different_tasks_have_different_ones() -> None:
    first, other = trace_of_task(TaskId(bytes(range(32)))), trace_of_task(TaskId(bytes(range(1, 33))))
    assert first.trace_id == bytes(range(16))
    assert first.trace_id != other.trace_id


def test_a_task_may_say_in_which_trace_it_was_asked_for_and_nonsense_says_nothing() -> None:
    assert asked_in(task(traceparent=str(CONTEXT))) == CONTEXT
    for inputs in ({}, {"text": "traceparent"}, {"traceparent": 5}, {"traceparent": "00-1-2-3"}):
        assert asked_in(task(**inputs)) is None
