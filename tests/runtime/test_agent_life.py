"""An agent's life in its runtime: states, events, supervision, hooks, claims kept alive and given back."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, LocalError
from converge_p2p.core.model.decision import ClaimTask, Decision, LeavePool, ReleaseTask, ReportTask, SendMessage
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Outcome, Task, TaskState, TaskView
from converge_p2p.core.types import AgentId, PoolId, PublicKey, TaskId
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.claims import Claims, Standing
from converge_p2p.runtime.events import DecisionOutcome, OutcomeKind
from converge_p2p.runtime.executor import Refused, StandardExecutor
from converge_p2p.runtime.hooks import HookedMessages
from converge_p2p.runtime.loop import AgentRuntime, RuntimeConfig
from converge_p2p.runtime.scheduler import Scheduler

POOL, TASK = PoolId(b"p" * 32), TaskId(b"t" * 32)
LEAVE = LeavePool(POOL)
CLAIM, REPORT = ClaimTask(POOL, TASK), ReportTask(POOL, TASK, 1)


def view(state: TaskState = TaskState.PENDING, round_: int = 0) -> TaskView:
    return TaskView(TASK, POOL, PublicKey(b"s" * 32), Task("x").to_spec(key=b"k"), state, round=round_)


class Board:
    """The tasks of a pool: notes what it is asked, and answers what the test says."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.now = view()
        self.error: Exception | None = None
        self.while_claiming: Callable[[], None] = lambda: None

    def _note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def claim(self, pool_id: PoolId, task_id: TaskId, bid: int) -> None:
        self._note("claim")
        self.while_claiming()

    async def report(self, pool_id: PoolId, task_id: TaskId, outcome: Outcome, result: bytes) -> None:
        self._note("report")

    async def release(self, pool_id: PoolId, task_id: TaskId, failed: bool, reason: str) -> None:
        self._note("release", reason)

    def renew(self, pool_id: PoolId, task_id: TaskId) -> None:
        self._note("renew", trio.current_time())

    def renewal_interval_s(self, pool_id: PoolId, task_id: TaskId, round_: int) -> float:
        return 10.0

    def task(self, pool_id: PoolId, task_id: TaskId) -> TaskView:
        return self.now

    def tasks_for(self, capabilities: frozenset[str], limit: int) -> Sequence[TaskView]:
        return ()


class Scripted(Agent):
    """Answers with what the test puts there, and keeps what it is told."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.answers: list[Any] = []
        self.told: list[DecisionOutcome] = []
        self.turns = 0
        self.hooks: list[tuple[str, float]] = []
        self.got: list[Any] = []
        self.states: list[str] = []

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
        self.turns += 1
        self.states.append(self.state)
        self.told += self.outcomes
        self.got += [message.payload for message in messages]
        answer = self.answers.pop(0) if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        decided: Iterable[Decision] = answer
        return decided

    def on_start(self) -> None:
        self.hooks.append(("start", trio.current_time()))

    def on_stop(self) -> None:
        self.hooks.append(("stop", trio.current_time()))

    @property
    def kinds(self) -> list[OutcomeKind]:
        return [outcome.kind for outcome in self.told]


def make(board: Board, agent: Agent, **options: Any) -> AgentRuntime:
    executor = StandardExecutor(tasks=board, custom_handlers={LeavePool: lambda _: None})  # type: ignore[arg-type]
    return AgentRuntime(agent, executor, tasks=board, claims=board, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def running(runtime: AgentRuntime) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(runtime.run)
        await wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


async def test_others_see_whether_an_agent_is_idle_busy_or_offline_or_what_it_says_itself(
    autojump_clock: MockClock,
) -> None:
    agent = Scripted()
    assert agent.state == "offline"
    agent.state = "draining"
    assert agent.state == "offline", "who does not run says nothing"
    agent.state = ""
    async with running(make(Board(), agent)):
        assert agent.states == ["busy"]
        assert agent.state == "idle"
        agent.state = "draining"
        assert agent.state == "draining"
    assert agent.state == "offline"


async def test_a_claim_is_told_as_done_then_granted_then_lost_and_each_of_these_wakes(
    autojump_clock: MockClock,
) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM]]
    runtime = make(board, agent)
    async with running(runtime):
        assert agent.turns == 1, "that it was done is no reason for a turn"
        runtime.claim_won(POOL, TASK, (0, 0), None)
        await wait_all_tasks_blocked()
        assert agent.kinds == [OutcomeKind.DONE, OutcomeKind.GRANTED]
        assert agent.told[-1].token == (0, 0)
        runtime.claim_lost(POOL, TASK, (0, 0), "too slow", view=None, denied=False)
        runtime.claim_lost(POOL, TASK, (0, 0), "told again", view=None, denied=False)
        await wait_all_tasks_blocked()
        assert (agent.kinds[2:], agent.told[-1].reason) == ([OutcomeKind.LOST], "too slow")
        runtime.task_changed(POOL, TASK, view(TaskState.COMPLETED))
        await wait_all_tasks_blocked()
        assert (agent.kinds[3:], agent.told[-1].value) == ([OutcomeKind.SETTLED], "completed")
        runtime.task_changed(POOL, TASK, view(TaskState.COMPLETED))
        assert len(runtime.outcomes) == 0


async def test_an_answer_that_comes_while_the_decision_is_carried_out_is_not_lost(autojump_clock: MockClock) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM]]
    runtime = make(board, agent)
    board.while_claiming = lambda: runtime.claim_won(POOL, TASK, (0, 3), None)
    async with running(runtime):
        assert OutcomeKind.GRANTED in agent.kinds
        assert runtime.claims is not None
        assert [claim.token for claim in runtime.claims.held()] == [(0, 3)]


async def test_a_task_that_was_settled_before_its_submit_returned_is_told_as_settled(
    autojump_clock: MockClock,
) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[REPORT]]
    board.now = view(TaskState.CANCELLED)
    runtime = make(board, agent)
    async with running(runtime):
        await wait_all_tasks_blocked()
        assert agent.kinds == [OutcomeKind.DONE, OutcomeKind.SETTLED]
        assert runtime.claims is not None
        assert len(runtime.claims) == 0


async def test_a_refusal_is_told_with_its_reason_and_leaves_no_claim(autojump_clock: MockClock) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM]]
    board.error = Conflict("it is settled")
    runtime = make(board, agent)
    async with running(runtime):
        runtime.notify()
        await wait_all_tasks_blocked()
        assert agent.kinds == [OutcomeKind.REFUSED]
        assert agent.told[0].reason == "it is settled"
        assert runtime.health().claims == 0
        assert runtime.health().followed == 0


async def test_outcomes_of_a_failed_turn_are_told_again_until_the_agent_is_started_anew(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM], ValueError("one"), ValueError("two")]
    runtime = make(board, agent, config=RuntimeConfig(backoff_s=1, restart_after=2))
    with caplog.at_level(logging.CRITICAL, logger="converge_p2p.runtime.loop"):
        async with running(runtime):
            runtime.claim_won(POOL, TASK, (0, 0), None)
            await trio.sleep(1.5)
            assert agent.kinds == [OutcomeKind.DONE, OutcomeKind.GRANTED] * 2, "told again after the first failure"
            await trio.sleep(50)
            assert agent.kinds == [OutcomeKind.DONE, OutcomeKind.GRANTED] * 2, "and not after the second"
            assert ("release", "the agent failed too often") in board.asked
            assert [name for name, _ in agent.hooks] == ["start", "stop", "start"]
            health = runtime.health()
            assert (health.restarts, health.ok, health.failures, health.claims) == (1, True, 2, 0)


async def test_an_agent_that_always_raises_backs_off_and_another_does_not_notice(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    times: list[float] = []

    class Broken(Agent):
        def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
            times.append(trio.current_time())
            raise ValueError("always")

    broken, good = Broken(), Scripted()
    config = RuntimeConfig(backoff_s=1, backoff_max_s=16, restart_after=3)
    bad_one, other = make(Board(), broken, config=config), make(Board(), good)
    with caplog.at_level(logging.CRITICAL, logger="converge_p2p.runtime.loop"):
        async with running(bad_one), running(other):
            await trio.sleep(100)
            pauses = [round(later - sooner) for sooner, later in itertools.pairwise(times)]
            assert pauses[:6] == [1, 2, 4, 8, 16, 16], "starting it again does not begin the pauses anew"
            assert not bad_one.health().ok
            assert bad_one.health().restarts >= 2
            other.deliver(Message.create(AgentId("a" * 64), "hello"))
            await wait_all_tasks_blocked()
            assert good.got == ["hello"]
            assert other.health().ok


async def test_a_claim_is_renewed_while_it_is_held_and_given_back_when_the_agent_stops(
    autojump_clock: MockClock,
) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM]]
    runtime = make(board, agent)
    async with running(runtime):
        runtime.claim_won(POOL, TASK, (0, 0), None)
        await trio.sleep(25)
        assert [entry for entry in board.asked if entry[0] == "renew"] == [("renew", 0), ("renew", 10), ("renew", 20)]
    assert board.asked[-1] == ("release", "the agent stops")
    assert runtime.claims is not None
    assert len(runtime.claims) == 0


async def test_a_reported_task_is_renewed_and_not_given_back(autojump_clock: MockClock) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM], [REPORT]]
    runtime = make(board, agent)
    async with running(runtime):
        runtime.claim_won(POOL, TASK, (0, 0), None)
        await trio.sleep(15)
        assert runtime.claims is not None
        assert runtime.claims.standing(TASK) is Standing.REPORTED
        assert len([entry for entry in board.asked if entry[0] == "renew"]) == 2
    assert "release" not in [entry[0] for entry in board.asked]


async def test_a_claim_that_the_agent_holds_too_long_is_given_back_and_told_as_lost(autojump_clock: MockClock) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM]]
    runtime = make(board, agent, config=RuntimeConfig(claim_ttl_s=12))
    async with running(runtime):
        runtime.claim_won(POOL, TASK, (0, 0), None)
        await trio.sleep(13)
        assert agent.kinds[-1] is OutcomeKind.LOST
        assert "12 s" in agent.told[-1].reason
        assert [entry[0] for entry in board.asked] == ["claim", "renew", "renew", "release"]


async def test_a_claim_granted_after_the_agent_released_it_is_not_taken_for_its_own(autojump_clock: MockClock) -> None:
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM, ReleaseTask(POOL, TASK)]]
    runtime = make(board, agent)
    async with running(runtime):
        runtime.claim_won(POOL, TASK, (0, 0), None)
        await wait_all_tasks_blocked()
        assert OutcomeKind.GRANTED not in agent.kinds
        assert runtime.claims is not None
        assert runtime.claims.held() == ()


async def test_an_agent_that_acts_in_the_middle_of_a_method_waits_for_the_answer(autojump_clock: MockClock) -> None:
    agent, board = Scripted(), Board()
    runtime = make(board, agent)
    async with running(runtime):
        assert agent.runtime is runtime
        ticket = await runtime.act(CLAIM)
        assert not ticket.answered
        assert ticket.outcome is not None
        assert ticket.outcome.kind is OutcomeKind.DONE
        async with trio.open_nursery() as nursery:
            answers: list[DecisionOutcome] = []

            async def wait() -> None:
                answers.append(await ticket.wait())

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            runtime.claim_won(POOL, TASK, (1, 2), None)
        assert (answers[0].kind, answers[0].token) == (OutcomeKind.GRANTED, (1, 2))
        done = await runtime.act(LEAVE)
        assert (await done.wait()).kind is OutcomeKind.DONE
    assert agent.runtime is None


async def test_an_agent_asks_for_a_turn_at_a_time_and_gets_it_then(autojump_clock: MockClock) -> None:
    agent = Scripted()
    runtime = make(Board(), agent, config=RuntimeConfig(receive_timeout_s=None))
    async with running(runtime):
        runtime.wake_after(7)
        await trio.sleep(6.9)
        assert agent.turns == 1
        await trio.sleep(0.2)
        assert agent.turns == 2
        await trio.sleep(1000)
        assert agent.turns == 2, "without events, tasks and times nothing wakes it"


async def test_hooks_change_hold_back_and_may_raise_without_harm(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []

    class Post:
        async def send(self, message: Message) -> None:
            sent.append(message.payload)

    def before(message: Message) -> Message | None:
        if message.payload == "secret":
            return None
        return Message.create(message.sender, f"{message.payload}!")

    async def after(message: Message) -> Message | None:
        if message.payload == "bad":
            raise ValueError("bad")
        return None if message.payload == "spam" else message

    agent, post = Scripted(), Post()
    sender = AgentId("a" * 64)
    agent.answers = [[SendMessage(Message.create(sender, text)) for text in ("hello", "secret")]]
    executor = StandardExecutor(messages=HookedMessages(post, before))
    runtime = AgentRuntime(agent, executor, after_receive=after)
    async with running(runtime):
        assert sent == ["hello!"]
        assert executor.refused == 1
        for text in ("bad", "spam", "good"):
            runtime.deliver(Message.create(sender, text))
        await wait_all_tasks_blocked()
        assert agent.got == ["good"]
        assert runtime.health().held_back == 2
        assert runtime.health().ok


async def test_what_is_followed_and_told_is_bounded_and_counted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OUTCOMES_FOLLOWED_MAX", 3)
    monkeypatch.setattr(limits, "AGENT_EVENTS_MAX", 4)
    agent, board = Scripted(), Board()
    agent.answers = [[ClaimTask(POOL, TaskId(bytes([n]) * 32)) for n in range(6)]]
    runtime = make(board, agent)
    async with running(runtime):
        assert runtime.health().followed == 3
        assert runtime.outcomes.counters["outcomes_forgotten"] == 3
        assert runtime.outcomes.waiting == 4
        assert runtime.health().events_dropped == 5


async def test_an_agent_stands_for_a_bounded_number_of_tasks(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AGENT_CLAIMS_MAX", 1)
    agent, board = Scripted(), Board()
    agent.answers = [[CLAIM, ClaimTask(POOL, TaskId(b"u" * 32))]]
    results: list[Any] = []
    agent.on_results = results.extend  # type: ignore[method-assign,assignment]
    async with running(make(board, agent)):
        assert isinstance(results[1], Refused)
        assert board.asked == [("claim",)]


def test_a_name_that_could_be_no_key_of_a_store_is_refused() -> None:
    for name in ("a/b", "ü", "x" * 65, "a b"):
        with pytest.raises(LocalError, match="name of an agent"):
            Scripted(name=name)
    assert Scripted(name="reviewer-2.eu_west").name == "reviewer-2.eu_west"


async def test_an_old_round_takes_nothing_from_who_holds_a_later_one(autojump_clock: MockClock) -> None:
    claims = Claims(Board(), claim_ttl_s=None)  # type: ignore[arg-type]
    claims.asked(POOL, TASK)
    assert claims.won(TASK, (0, 2))
    assert not claims.lost(TASK, (0, 1))
    assert claims.standing(TASK) is Standing.HELD
    assert not claims.won(TASK, (0, 2)), "told twice"
    assert claims.lost(TASK, (0, 2))
    assert not claims.lost(TASK, (0, 2))
    assert claims.won(TASK, (0, 3)), "a claim stands until it is released, and may be won later"


async def test_a_thousand_seconds_of_nothing_wake_only_who_ticks_or_has_open_tasks(autojump_clock: MockClock) -> None:
    class Ticking(Scripted):
        ticks = 0

        def on_tick(self) -> None:
            self.ticks += 1

    class Busy(Board):
        def tasks_for(self, capabilities: frozenset[str], limit: int) -> Sequence[TaskView]:
            return (view(),)

    still, ticking, busy = Scripted(), Ticking(), Scripted()
    waits: list[float | None] = []

    class Watched(Scheduler):
        async def wait_for_work(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return await super().wait_for_work(timeout)

    runtimes = [make(Board(), still, scheduler=Watched()), make(Board(), ticking), make(Busy(), busy)]
    async with running(runtimes[0]), running(runtimes[1]), running(runtimes[2]):
        await trio.sleep(1000)
        assert waits == [None], "it is not even asked whether something happened"
        assert (still.turns, busy.turns) == (1, 34)
        assert ticking.ticks == 34


async def test_a_ticket_that_nobody_holds_is_forgotten_and_a_repeated_refusal_ends_no_earlier_claim(
    autojump_clock: MockClock,
) -> None:
    agent, board = Scripted(), Board()
    runtime = make(board, agent)
    async with running(runtime):
        first = await runtime.act(CLAIM)
        for _ in range(10):
            await runtime.act(CLAIM)
        assert len(runtime.outcomes._tickets) == 1, "that of the only ticket that is held"
        board.error = Conflict("not again")
        again = await runtime.act(CLAIM)
        assert (await again.wait()).kind is OutcomeKind.REFUSED
        assert not first.answered
        assert runtime.health().claims == 1
        board.error = None
        same = await runtime.act(CLAIM)
        runtime.claim_won(POOL, TASK, (0, 0), None)
        assert (await first.wait()).kind is OutcomeKind.GRANTED
        assert (await same.wait()).kind is OutcomeKind.GRANTED, "who asks twice is answered twice"
        with trio.move_on_after(1):
            board.while_claiming = lambda: None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.act, LEAVE)
                nursery.cancel_scope.cancel()
        assert len(runtime.outcomes._tickets) == 0
