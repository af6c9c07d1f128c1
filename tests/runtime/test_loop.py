"""The agent's loop: nothing an agent does stops it, and what went wrong can be seen."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import LimitExceeded, LocalError, NotAuthorised
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.decision import Decision, InvokeTool, LeavePool
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import TaskSpec, TaskState, TaskView
from converge_p2p.core.types import AgentId, PoolId, PublicKey, TaskId
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.executor import Executed, Refused, Result, StandardExecutor
from converge_p2p.runtime.inbox import Inbox
from converge_p2p.runtime.loop import AgentRuntime, RuntimeConfig
from converge_p2p.runtime.safety import ActionPolicy, SafetyPolicy
from converge_p2p.runtime.tools import ToolRegistry

LEAVE = LeavePool(PoolId(b"p"))


def letter(number: int = 0) -> Message:
    return Message.create(AgentId("a" * 64), number)


class Scripted(Agent):
    """Notes what it is shown, and answers with `script(turn)`."""

    def __init__(self, script: Callable[[int], Any] = lambda turn: [], **options: Any) -> None:
        super().__init__(**options)
        self.script = script
        self.seen: list[tuple[Any, ...]] = []
        self.times: list[float] = []
        self.results: list[Sequence[Result]] = []
        self.hooks: list[str] = []

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
        self.seen.append((tuple(m.payload for m in messages), tuple(tasks), self.tool_results))
        self.times.append(trio.current_time())
        decided: Iterable[Decision] = self.script(len(self.seen))
        return decided

    def on_results(self, results: Sequence[Result]) -> None:
        self.results.append(results)

    def on_start(self) -> None:
        self.hooks.append("start")

    def on_stop(self) -> None:
        self.hooks.append("stop")


def count_executor(counted: list[Decision]) -> StandardExecutor:
    return StandardExecutor(custom_handlers={LeavePool: counted.append})


@asynccontextmanager
async def running(runtime: AgentRuntime) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(runtime.run)
        await wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


async def test_messages_are_handed_over_once_and_at_once_and_decisions_carried_out(autojump_clock: MockClock) -> None:
    agent, done = Scripted(lambda turn: [LEAVE] if turn == 2 else []), []  # type: ignore[var-annotated]
    runtime = AgentRuntime(agent, count_executor(done))
    async with running(runtime):
        assert runtime.ready()
        runtime.deliver(letter(1))
        runtime.deliver(letter(2))
        await wait_all_tasks_blocked()
        assert [seen[0] for seen in agent.seen] == [(), (1, 2)]
        assert done == [LEAVE]
        assert trio.current_time() == 0, "no poll interval may stand between a message and its turn"
        assert agent.results[-1] == [Executed(LEAVE)]
        assert runtime.health().ok
    assert agent.hooks == ["start", "stop"]
    assert not runtime.ready()
    assert not runtime.health().running


async def test_a_backlog_is_worked_off_without_waiting(autojump_clock: MockClock) -> None:
    agent = Scripted()
    runtime = AgentRuntime(agent, StandardExecutor(), config=RuntimeConfig(batch_messages=10))
    for number in range(95):
        runtime.deliver(letter(number))
    async with running(runtime):
        assert [number for seen in agent.seen for number in seen[0]] == list(range(95))
        assert len(agent.seen) == 10
        assert trio.current_time() == 0


async def test_an_exception_in_decide_is_counted_shown_and_survived(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def script(turn: int) -> list[Decision]:
        if turn <= 6:
            raise ValueError(f"turn {turn}")
        return [LEAVE]

    agent, done = Scripted(script), []  # type: ignore[var-annotated]
    config = RuntimeConfig(backoff_s=1, backoff_max_s=5)
    runtime = AgentRuntime(agent, count_executor(done), config=config)
    with caplog.at_level(logging.CRITICAL, logger="converge_p2p.runtime.loop"):
        async with running(runtime):
            health = runtime.health()
            assert not health.ok
            assert health.running
            assert health.failures_in_row == 1
            assert "ValueError: turn 1" in health.last_error
            await trio.sleep(100)
            assert agent.times[:7] == [0, 1, 3, 7, 12, 17, 22], "doubled, up to the bound"
            assert done == [LEAVE], "the loop went on and the agent was asked again"
            health = runtime.health()
            assert health.ok
            assert (health.failures, health.failures_in_row, health.turns) == (6, 0, 1)


@pytest.mark.parametrize("nonsense", [None, 7, ["leave"], [LEAVE, None]])
async def test_a_decide_that_returns_nonsense_is_a_failure_and_nothing_is_done(
    nonsense: Any, autojump_clock: MockClock
) -> None:
    agent, done = Scripted(lambda turn: nonsense if turn == 1 else []), []  # type: ignore[var-annotated]
    runtime = AgentRuntime(agent, count_executor(done))
    async with running(runtime):
        assert "TypeError: decide returned" in runtime.health().last_error
        await trio.sleep(10)
        assert runtime.health().ok
    assert done == []


async def test_a_decide_that_hangs_is_cancelled_when_it_has_a_time_limit(autojump_clock: MockClock) -> None:
    class Hanging(Agent):
        calls = 0

        async def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
            self.calls += 1
            if self.calls == 1:
                await trio.sleep_forever()
            return []

    agent = Hanging()
    config = RuntimeConfig(decide_timeout_s=20, stall_after_s=5)
    runtime = AgentRuntime(agent, StandardExecutor(), config=config)
    async with running(runtime):
        assert runtime.health().ok
        await trio.sleep(10)
        health = runtime.health()
        assert health.stalled
        assert not health.ok
        await trio.sleep(20)
        assert agent.calls == 2
        assert runtime.health().ok
        assert runtime.health().failures == 1


async def test_a_blocking_decide_can_run_in_a_thread() -> None:
    import threading

    class Blocking(Agent):
        decide_in_thread = True
        thread: threading.Thread | None = None

        def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
            self.thread = threading.current_thread()
            return [LEAVE]

    done = trio.Event()
    agent = Blocking()
    executor = StandardExecutor(custom_handlers={LeavePool: lambda decision: done.set()})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(AgentRuntime(agent, executor).run)
        with trio.fail_after(10):
            await done.wait()
        nursery.cancel_scope.cancel()
    assert agent.thread not in (None, threading.main_thread())


async def test_no_turn_before_on_start_succeeded(autojump_clock: MockClock) -> None:
    class Slow(Scripted):
        def on_start(self) -> None:
            super().on_start()
            if len(self.hooks) < 3:
                raise OSError("not yet")

    agent = Slow()
    runtime = AgentRuntime(agent, StandardExecutor(), config=RuntimeConfig(backoff_s=1))
    async with running(runtime):
        assert not runtime.ready()
        assert not runtime.health().ok
        assert agent.seen == []
        await trio.sleep(2.5)
        assert not runtime.ready()
        await trio.sleep(1)
        assert runtime.ready()
        assert len(agent.seen) == 1
        assert runtime.health().ok


async def test_on_stop_is_not_called_without_on_start_and_has_a_bounded_time(autojump_clock: MockClock) -> None:
    class Stuck(Agent):
        stopped = 0

        def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
            return []

        async def on_stop(self) -> None:
            self.stopped += 1
            await trio.sleep_forever()

    class NeverStarts(Stuck):
        def on_start(self) -> None:
            raise OSError("never")

    for agent, stopped in ((Stuck(), 1), (NeverStarts(), 0)):
        before = trio.current_time()
        async with running(AgentRuntime(agent, StandardExecutor())):
            pass
        assert agent.stopped == stopped
        assert trio.current_time() - before == (5 if stopped else 0)


async def test_an_idle_loop_ticks_but_does_not_decide(autojump_clock: MockClock) -> None:
    class Ticking(Scripted):
        ticks = 0

        def on_tick(self) -> None:
            self.ticks += 1

    agent = Ticking()
    runtime = AgentRuntime(agent, StandardExecutor(), config=RuntimeConfig(receive_timeout_s=10))
    async with running(runtime):
        await trio.sleep(35)
        assert agent.ticks == 4
        assert len(agent.seen) == 1, "with nothing to show it, the agent is only asked at the start"
        runtime.notify()
        await wait_all_tasks_blocked()
        assert len(agent.seen) == 2


# ---------------------------------------------------------------- tasks


class Tasks:
    def __init__(self, views: Sequence[TaskView]) -> None:
        self.views = views
        self.asked: list[tuple[frozenset[str], int]] = []

    def tasks_for(self, capabilities: frozenset[str], limit: int) -> Sequence[TaskView]:
        self.asked.append((capabilities, limit))
        return self.views


async def test_tasks_are_shown_by_capability_and_again_on_a_timeout(autojump_clock: MockClock) -> None:
    spec = TaskSpec(b"k", "x", b"")
    view = TaskView(TaskId(b"t"), PoolId(b"p"), PublicKey(b"s" * 32), spec, TaskState.PENDING)
    tasks, agent = Tasks([view]), Scripted(capabilities=[Capability("ocr")])
    config = RuntimeConfig(receive_timeout_s=10)
    runtime = AgentRuntime(agent, StandardExecutor(), tasks=tasks, config=config)  # type: ignore[arg-type]
    async with running(runtime):
        await trio.sleep(15)
    assert tasks.asked[0] == (frozenset({"ocr"}), limits.TASKS_PER_TURN_MAX)
    assert [seen[1] for seen in agent.seen] == [(view,), (view,)]


# ---------------------------------------------------------------- the tool loop


class Counter:
    name = "counter"

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, params: Mapping[str, Any]) -> int:
        self.runs += 1
        if params.get("fail"):
            raise ValueError("asked to")
        return self.runs


def executor_with(tool: Counter, **options: Any) -> StandardExecutor:
    registry = ToolRegistry()
    registry.register(tool)
    return StandardExecutor(tools=registry, **options)


async def test_tool_results_come_back_to_decide_in_order(autojump_clock: MockClock) -> None:
    good, bad = InvokeTool("counter", {}, "1"), InvokeTool("counter", {"fail": True}, "2")
    agent = Scripted(lambda turn: [good, bad] if turn == 1 else [])
    runtime = AgentRuntime(agent, executor_with(Counter()))
    async with running(runtime):
        assert len(agent.seen) == 2
        first, second = agent.seen[1][2]
        assert (first.call, first.value, first.error) == (good, 1, None)
        assert second.call == bad
        assert "asked to" in str(second.error)
        assert agent.tool_results == (), "they belong to one call of decide"


async def test_the_tool_loop_ends_and_every_tool_that_ran_was_seen(autojump_clock: MockClock) -> None:
    tool = Counter()
    agent = Scripted(lambda turn: [InvokeTool("counter")])
    runtime = AgentRuntime(agent, executor_with(tool))
    async with running(runtime):
        assert len(agent.seen) == limits.TOOL_TURNS_MAX == 5
        assert tool.runs == 4
        assert agent.seen[-1][2][0].value == 4
        last = agent.results[-1][0]
        assert isinstance(last, Refused)
        assert isinstance(last.error, LimitExceeded)
        assert last.error.limit == "TOOL_TURNS_MAX"


async def test_the_tool_loop_obeys_the_same_policy(autojump_clock: MockClock) -> None:
    tool = Counter()
    agent = Scripted(lambda turn: [InvokeTool("counter")] if turn == 1 else [])
    safety = SafetyPolicy(actions=ActionPolicy([LeavePool]))
    runtime = AgentRuntime(agent, executor_with(tool, safety=safety))
    async with running(runtime):
        assert tool.runs == 0
        assert isinstance(agent.seen[1][2][0].error, NotAuthorised)


async def test_decisions_beyond_the_bound_are_refused_and_counted(autojump_clock: MockClock) -> None:
    agent, done = Scripted(lambda turn: [LEAVE] * (limits.DECISIONS_PER_TURN_MAX + 3)), []  # type: ignore[var-annotated]
    runtime = AgentRuntime(agent, count_executor(done))
    async with running(runtime):
        assert len(done) == limits.DECISIONS_PER_TURN_MAX
        assert runtime.health().decisions_dropped == 3
        assert sum(isinstance(result, Refused) for result in agent.results[0]) == 3


# ---------------------------------------------------------------- health, checkpoints


async def test_health_shows_what_waits_and_what_was_lost() -> None:
    runtime = AgentRuntime(Scripted(), StandardExecutor(), inbox=Inbox(2))
    assert [runtime.deliver(letter(number)) for number in range(3)] == [True, True, False]
    health = runtime.health()
    assert (health.inbox, health.dropped, health.running, health.ok) == (2, 1, False, False)


async def test_checkpoints_are_written_when_something_happened_and_a_broken_store_is_survived() -> None:
    written: list[tuple[str, Any]] = []
    wrote = [trio.Event(), trio.Event()]
    token = trio.lowlevel.current_trio_token()

    class Store:
        calls = 0

        def put(self, key: str, value: bytes) -> None:
            self.calls += 1
            if self.calls == 1:
                raise OSError("disk full")
            written.append((key, decode_value(value)))
            token.run_sync_soon(wrote[len(written) - 1].set)

        def get(self, key: str) -> bytes | None:
            return None

    agent, config = Scripted(), RuntimeConfig(checkpoint_interval_s=0.001)
    runtime = AgentRuntime(agent, StandardExecutor(), checkpoint_store=Store(), config=config, wall_clock=lambda: 2.5)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            await nursery.start(runtime.run)
            await wrote[0].wait()
            runtime.deliver(letter())
            await wrote[1].wait()
        nursery.cancel_scope.cancel()
    note = {"v": 1, "agent": "Scripted", "turns": 1, "failures": 0, "at_ms": 2500}
    assert written == [("checkpoint/Scripted", note), ("checkpoint/Scripted", note | {"turns": 2})]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_times_that_make_no_sense_are_refused(seconds: float) -> None:
    with pytest.raises(LocalError):
        RuntimeConfig(receive_timeout_s=seconds)
    with pytest.raises(LocalError):
        RuntimeConfig(batch_messages=0)
