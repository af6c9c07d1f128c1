"""The executor: every decision has one way, and a refusal is a value that says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import (
    CodecError,
    Conflict,
    ConvergeError,
    LimitExceeded,
    LocalError,
    NotAuthorised,
    NotFound,
)
from converge_p2p.core.limits import BLOB_VALUE_BYTES_MAX
from converge_p2p.core.model import decision as d
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Outcome, Task, TaskSpec, TaskState, TaskView
from converge_p2p.core.types import AgentId, PoolId, PublicKey, TaskId
from converge_p2p.runtime.executor import Executed, Failed, Refused, StandardExecutor
from converge_p2p.runtime.safety import ActionPolicy, ResourceLimits, SafetyPolicy
from converge_p2p.runtime.tools import ToolRegistry

POOL, TASK = PoolId(b"p" * 32), TaskId(b"t" * 32)
LETTER = Message.create(AgentId("a" * 64), "hi")


class Node:
    """All three ports; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def send(self, message: Message) -> None:
        self.note("send", message)

    async def submit(self, pool_id: PoolId, task: Task) -> TaskId:
        self.note("submit", pool_id, task)
        return TASK

    async def claim(self, pool_id: PoolId, task_id: TaskId, bid: int) -> None:
        self.note("claim", pool_id, task_id, bid)

    async def report(self, pool_id: PoolId, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        self.note("report", pool_id, task_id, outcome, decode_value(result))

    async def release(self, pool_id: PoolId, task_id: TaskId, failed: bool, reason: str) -> None:
        self.note("release", pool_id, task_id, failed, reason)

    async def cancel(self, pool_id: PoolId, task_id: TaskId, reason: str) -> None:
        self.note("cancel", pool_id, task_id, reason)

    def task(self, pool_id: PoolId, task_id: TaskId) -> TaskView:
        if task_id != TASK:
            raise NotFound("no such task")
        spec = TaskSpec(b"k", "x", b"", cpu_milli=4000)
        return TaskView(TASK, POOL, PublicKey(b"s" * 32), spec, TaskState.PENDING)

    def tasks_for(self, capabilities: frozenset[str], limit: int) -> Sequence[TaskView]:
        return ()

    async def create(self, spec: d.CreatePool) -> PoolId:
        self.note("create", spec.name)
        return POOL

    async def join(self, pool_id: PoolId, capabilities: tuple[str, ...], proof: bytes) -> None:
        self.note("join", pool_id, capabilities, proof)

    async def leave(self, pool_id: PoolId) -> None:
        self.note("leave", pool_id)


class Echo:
    name = "echo"

    def run(self, params: Mapping[str, Any]) -> Any:
        if "fail" in params:
            raise ValueError("asked to fail")
        return dict(params)


def executor_of(node: Node, **options: Any) -> StandardExecutor:
    tools = ToolRegistry()
    tools.register(Echo())
    return StandardExecutor(messages=node, tasks=node, pools=node, tools=tools, **options)


JOB = Task("x")
WAYS: list[tuple[d.Decision, tuple[Any, ...], Any]] = [
    (d.SendMessage(LETTER), ("send", LETTER), None),
    (d.CreatePool("a"), ("create", "a"), POOL),
    (d.JoinPool(POOL, ("c",), b"proof"), ("join", POOL, ("c",), b"proof"), None),
    (d.LeavePool(POOL), ("leave", POOL), None),
    (d.SubmitTask(POOL, JOB), ("submit", POOL, JOB), TASK),
    (d.ClaimTask(POOL, TASK, 3), ("claim", POOL, TASK, 3), None),
    (d.ReportTask(POOL, TASK, {"n": 1}), ("report", POOL, TASK, Outcome.COMPLETED, {"n": 1}), None),
    (d.ReportTask(POOL, TASK, "why", failed=True), ("report", POOL, TASK, Outcome.FAILED, "why"), None),
    (d.ReleaseTask(POOL, TASK, True, "why"), ("release", POOL, TASK, True, "why"), None),
    (d.CancelTask(POOL, TASK, "why"), ("cancel", POOL, TASK, "why"), None),
]


@pytest.mark.parametrize(("decision", "asked", "value"), WAYS, ids=lambda item: type(item).__name__)
async def test_each_decision_goes_to_its_port(decision: d.Decision, asked: tuple[Any, ...], value: Any) -> None:
    node = Node()
    assert await executor_of(node).execute(decision) == Executed(decision, value)
    assert node.asked == [asked]


@pytest.mark.parametrize("decision", [way[0] for way in WAYS] + [d.InvokeTool("echo")])
async def test_a_decision_without_its_port_is_refused_with_a_hint(decision: d.Decision) -> None:
    result = await StandardExecutor().execute(decision)
    assert isinstance(result, Refused)
    assert isinstance(result.error, LocalError)
    assert "port" in str(result.error)
    assert result.error.hint


COORDINATION = [
    d.SubmitBid(POOL, TASK, 1),
    d.Vote(POOL, b"q", "yes"),
    d.Propose(POOL, b"", {}),
    d.AcceptProposal(POOL, b"o"),
    d.RejectProposal(POOL, b"o"),
    d.Delegate(POOL, AgentId("a" * 64), ("claim",), 1),
    d.RevokeDelegation(POOL, b"d"),
]


@pytest.mark.parametrize("decision", COORDINATION, ids=lambda item: type(item).__name__)
async def test_coordination_without_a_protocol_is_refused_and_with_a_handler_it_runs(decision: d.Decision) -> None:
    node = Node()
    result = await executor_of(node).execute(decision)
    assert isinstance(result, Refused)
    assert type(decision).__name__ in str(result.error)
    assert node.asked == []
    handled = executor_of(node, custom_handlers={type(decision): lambda given: ("seen", given)})
    assert await handled.execute(decision) == Executed(decision, ("seen", decision))


def test_every_coordination_decision_was_tried() -> None:
    assert {type(decision) for decision in COORDINATION} == set(d.COORDINATION)


@dataclass(frozen=True, slots=True)
class Paint(d.Decision):
    colour: str


async def test_a_custom_kind_runs_by_its_handler_plain_or_async_under_the_same_policy() -> None:
    async def paint(decision: Paint) -> str:
        return "async " + decision.colour

    decision = Paint("red")
    assert isinstance(await StandardExecutor().execute(decision), Refused)
    assert await StandardExecutor(custom_handlers={Paint: paint}).execute(decision) == Executed(decision, "async red")
    safety = SafetyPolicy(actions=ActionPolicy([d.LeavePool]))
    refused = await StandardExecutor(custom_handlers={Paint: paint}, safety=safety).execute(decision)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, NotAuthorised)


async def test_the_policy_is_asked_before_the_port() -> None:
    node = Node()
    executor = executor_of(node, safety=SafetyPolicy(actions=ActionPolicy([])))
    for decision, _, _ in WAYS:
        assert isinstance(await executor.execute(decision), Refused)
    assert node.asked == []
    assert (executor.refused, executor.executed) == (len(WAYS), 0)


@pytest.mark.parametrize(
    ("decision", "error"),
    [
        (d.SubmitTask(POOL, Task("x", constraints={"cpu": 3})), LimitExceeded),
        (d.SubmitTask(POOL, Task("x", constraints={"cpu": float("nan")})), LocalError),
        (d.ClaimTask(POOL, TASK), LimitExceeded),
        (d.ClaimTask(POOL, TaskId(b"?" * 32)), NotFound),
        (d.ReportTask(POOL, TASK, object()), CodecError),
        (d.ReportTask(POOL, TASK, bytes(BLOB_VALUE_BYTES_MAX)), LimitExceeded),
    ],
)
async def test_what_cannot_be_is_refused_before_the_port(decision: d.Decision, error: type[ConvergeError]) -> None:
    node = Node()
    result = await executor_of(node, safety=SafetyPolicy(ResourceLimits(cpu=2))).execute(decision)
    assert isinstance(result, Refused)
    assert isinstance(result.error, error)
    assert node.asked == []


async def test_a_refusal_of_the_port_and_a_defect_behind_it_are_told_apart() -> None:
    node = Node()
    executor = executor_of(node)
    node.error = Conflict("settled")
    refused = await executor.execute(d.LeavePool(POOL))
    assert isinstance(refused, Refused)
    assert refused.error is node.error
    node.error = RuntimeError("defect")
    failed = await executor.execute(d.LeavePool(POOL))
    assert isinstance(failed, Failed)
    assert failed.error is node.error
    node.error = None
    assert isinstance(await executor.execute(d.LeavePool(POOL)), Executed)
    assert (executor.executed, executor.refused, executor.failed) == (1, 1, 1)


async def test_a_tool_gives_its_value_or_its_failure() -> None:
    executor = executor_of(Node())
    good = d.InvokeTool("echo", {"x": 1})
    assert await executor.execute(good) == Executed(good, {"x": 1})
    assert isinstance(await executor.execute(d.InvokeTool("echo", {"fail": 1})), Failed)
    assert isinstance(await executor.execute(d.InvokeTool("missing")), Refused)


@pytest.mark.parametrize("amount", [-1, 1.5, float("nan"), True])
def test_an_amount_that_nodes_could_order_differently_is_refused(amount: Any) -> None:
    with pytest.raises(LocalError):
        d.SubmitBid(POOL, TASK, amount)
    with pytest.raises(LocalError):
        d.ClaimTask(POOL, TASK, amount)
