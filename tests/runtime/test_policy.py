"""Numbers without sense are refused, budgets hold, and trust fades."""

from __future__ import annotations

import math
from typing import Any

import pytest
from test_executor import LETTER, POOL, TASK, Node
from test_tool_calls import give_back

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, NotAuthorised
from converge_p2p.core.model import decision as d
from converge_p2p.core.model.task import Task, TaskSpec, TaskState, TaskView
from converge_p2p.core.types import AgentId, PublicKey, TaskId
from converge_p2p.runtime.budget import RequestBudget, charged
from converge_p2p.runtime.executor import Executed, Refused, StandardExecutor
from converge_p2p.runtime.safety import KINDS, ActionPolicy, ResourceLimits, SafetyPolicy
from converge_p2p.runtime.tools import FunctionTool, ToolRegistry
from converge_p2p.runtime.trust import TrustModel
from converge_p2p.runtime.workbook import WorkBook

NO_NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.5, 1e300, True, "4", None.__class__]
AGENT = AgentId("a" * 64)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["cpu", "memory_mb", "network_requests"])
def test_a_limit_that_is_no_sensible_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(LocalError, match="expected"):
        ResourceLimits(**{name: value})


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True])
def test_a_period_that_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(LocalError, match="period_s"):
        ResourceLimits(network_requests=1, network_period_s=value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["cpu", "memory_mb"])
def test_a_task_that_asks_for_no_sensible_number_is_refused_even_without_limits(name: str, value: Any) -> None:
    constraints = {name: value}
    with pytest.raises(LocalError, match=f"constraint {name}"):
        ResourceLimits().check(constraints.get("cpu", 0), constraints.get("memory_mb", 0))


def test_more_than_the_limit_is_refused_and_the_limit_itself_allowed() -> None:
    limit = ResourceLimits(cpu=2, memory_mb=100)
    limit.check(2, 100)
    assert limit.allows(2, 100)
    assert not limit.allows(2.001, 0)
    with pytest.raises(LimitExceeded, match="at most 100"):
        limit.check(0, 101)


# ---------------------------------------------------------------- actions


def test_kinds_are_named_as_their_classes_are() -> None:
    assert KINDS["SendMessage"] is d.SendMessage
    assert "Decision" not in KINDS
    policy = ActionPolicy.named(["SendMessage", "LeavePool"], denied=["LeavePool"])
    policy.check(d.SendMessage(LETTER))
    for refused in (d.LeavePool(POOL), d.ClaimTask(POOL, TASK)):
        with pytest.raises(NotAuthorised):
            policy.check(refused)
    with pytest.raises(NotAuthorised):
        ActionPolicy.named([]).check(d.SendMessage(LETTER))
    with pytest.raises(LocalError, match="SendMesage"):
        ActionPolicy.named(["SendMesage"])


# ---------------------------------------------------------------- the budget of requests


def test_a_budget_is_spent_at_once_and_fills_again_evenly() -> None:
    clock = Clock()
    budget = RequestBudget(3, 60, clock=clock)
    for _ in range(3):
        budget.spend()
    with pytest.raises(LimitExceeded, match=r"3 requests in 60 s are allowed; the next one in 20\.0 s"):
        budget.spend()
    clock.now += 20
    budget.spend()
    with pytest.raises(LimitExceeded):
        budget.spend()
    clock.now += 1e9
    for _ in range(3):
        budget.spend()
    with pytest.raises(LimitExceeded):
        budget.spend()
    assert (budget.spent, budget.refused) == (7, 3)


def test_no_requests_means_none_and_no_budget_means_any_number() -> None:
    with pytest.raises(LimitExceeded, match="not allowed"):
        RequestBudget(0, clock=Clock()).spend()
    unbounded = RequestBudget(None, clock=Clock())
    for _ in range(10_000):
        unbounded.spend()


async def test_an_agent_that_floods_the_network_is_stopped_by_its_budget_and_still_ends_its_work() -> None:
    node = Node()
    safety = SafetyPolicy(resources=ResourceLimits(network_requests=3, network_period_s=1e6))
    executor = StandardExecutor(messages=node, tasks=node, pools=node, safety=safety)
    results = [await executor.execute(d.SendMessage(LETTER)) for _ in range(1000)]
    assert sum(isinstance(result, Executed) for result in results) == 3 == len(node.asked)
    assert isinstance(results[-1], Refused)
    assert isinstance(results[-1].error, LimitExceeded)
    for ending in (d.ReportTask(POOL, TASK, 1), d.ReleaseTask(POOL, TASK)):
        assert isinstance(await executor.execute(ending), Executed)
    assert isinstance(await executor.execute(d.ClaimTask(POOL, TASK)), Refused)


async def test_a_tool_that_says_it_uses_the_network_is_counted_and_others_are_not() -> None:
    tools = ToolRegistry()
    tools.register(FunctionTool(give_back, name="far", network=True))
    tools.register(FunctionTool(give_back, name="near"))
    safety = SafetyPolicy(resources=ResourceLimits(network_requests=1, network_period_s=1e6))
    executor = StandardExecutor(tools=tools, safety=safety)
    assert isinstance(await executor.execute(d.InvokeTool("far")), Executed)
    assert isinstance(await executor.execute(d.InvokeTool("far")), Refused)
    assert isinstance(await executor.execute(d.InvokeTool("near")), Executed)


def test_every_kind_that_is_signed_and_sent_is_charged() -> None:
    free = {name for name, kind in KINDS.items() if not charged(kind.__new__(kind))}
    assert free == {"InvokeTool", "ReportTask", "ReleaseTask"}


def test_a_task_that_asks_for_too_much_is_left_to_others_by_workers() -> None:
    book = WorkBook(PublicKey(b"w" * 32), wake=lambda: None, start=lambda slot: None)
    spec = Task("x", constraints={"memory_mb": 200}).to_spec(key=b"k")
    assert isinstance(spec, TaskSpec)
    view = TaskView(TaskId(b"t" * 32), POOL, PublicKey(b"s" * 32), spec, TaskState.PENDING)
    assert book.fits(view)
    book.resources = ResourceLimits(memory_mb=100)
    assert not book.fits(view)


# ---------------------------------------------------------------- trust


def test_trust_fades_towards_the_default_from_both_sides() -> None:
    clock = Clock()
    model = TrustModel(default=0.4, half_life_s=10, clock=clock)
    model.set(AGENT, 0.8)
    model.set(AGENT, 0.0, "translate")
    clock.now += 10
    assert model.score(AGENT) == pytest.approx(0.6)
    assert model.score(AGENT, "translate") == pytest.approx(0.2)
    clock.now += 1e12
    assert model.score(AGENT) == pytest.approx(0.4)
    assert model.meets(AGENT, 0.4)


def test_an_outcome_starts_from_the_faded_score() -> None:
    clock = Clock()
    model = TrustModel(rate=0.5, half_life_s=10, clock=clock)
    model.set(AGENT, 1.0)
    clock.now += 10
    assert model.record(AGENT, True) == pytest.approx(0.875)
    assert model.to_dict() == {AGENT: {"": pytest.approx(0.875)}}


def test_without_a_half_life_trust_stays() -> None:
    clock = Clock()
    model = TrustModel(clock=clock)
    model.set(AGENT, 0.9)
    clock.now += 1e12
    assert model.score(AGENT) == 0.9


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1"])
def test_a_half_life_that_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(LocalError, match="half_life_s"):
        TrustModel(half_life_s=value)


def test_bounds_are_those_of_no_machine() -> None:
    ResourceLimits(cpu=limits.TASK_CPU_CORES_MAX, memory_mb=limits.TASK_MEMORY_MB_MAX)
