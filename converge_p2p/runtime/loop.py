"""The agent's loop: inbox and tasks in, `decide`, executor, and again.

Knows: the order of a turn, and that an agent is foreign code that may raise or hang. Must not know: what decisions
mean, and where messages come from.
Source: the concepts page (execution loop, tool loop); the retry rule is capped exponential backoff.

An error in the agent is logged, counted and shown in `health`, and the loop goes on. The messages of the failed turn
are not handed over again: one that always makes `decide` raise would stop the agent for good.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import LimitExceeded, LocalError
from converge_p2p.core.model.decision import Decision, InvokeTool
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import TaskView
from converge_p2p.runtime.agent import Agent, ToolResult
from converge_p2p.runtime.executor import Executed, Executor, Refused, Result
from converge_p2p.runtime.inbox import Inbox
from converge_p2p.runtime.ports import CheckpointStore, TaskPort
from converge_p2p.runtime.scheduler import Scheduler
from converge_p2p.runtime.threads import BoundedThreads

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The times and sizes of a loop.

    Attributes:
        receive_timeout_s: the longest idle wait before `on_tick` is called again; None waits without end.
        batch_messages: how many messages one turn gets at most.
        decide_timeout_s: `decide` is cancelled after this time and counts as failed; None lets it take its time.
        stall_after_s: `health` reports a turn that takes longer.
        backoff_s, backoff_max_s: pause after the first failure in a row, doubled by each further one, and its bound.
        stop_timeout_s: time for `on_stop`.
        checkpoint_interval_s: a checkpoint is written this often, if there is a store for it.
    """

    receive_timeout_s: float | None = 30.0
    batch_messages: int = 256
    decide_timeout_s: float | None = None
    stall_after_s: float = 60.0
    backoff_s: float = 0.1
    backoff_max_s: float = 30.0
    stop_timeout_s: float = 5.0
    checkpoint_interval_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_messages <= limits.INBOX_MESSAGES_MAX:
            raise LocalError(f"batch_messages is {self.batch_messages}; expected 1 to {limits.INBOX_MESSAGES_MAX}")
        for name in (
            "receive_timeout_s", "decide_timeout_s", "stall_after_s", "backoff_s", "backoff_max_s", "stop_timeout_s",
            "checkpoint_interval_s",
        ):  # fmt: skip
            seconds = getattr(self, name)
            # written so that NaN, which compares false with everything, is refused too
            if seconds is not None and not seconds > 0:
                raise LocalError(f"{name} is {seconds}; expected a number of seconds above 0")


@dataclass(frozen=True, slots=True)
class Health:
    """How an agent's loop is doing.

    Attributes:
        ok: it runs, the last turn succeeded, and no turn hangs.
        running: the loop was started and has not ended.
        stalled: the present turn takes longer than `RuntimeConfig.stall_after_s`.
        turns: calls of `decide` that returned.
        failures: errors of the agent in all; `failures_in_row` since the last turn that succeeded.
        last_error: the last one, for people; empty if there was none.
        inbox: messages that wait; `dropped`: messages lost for want of room.
        decisions_dropped: decisions beyond `limits.DECISIONS_PER_TURN_MAX`.
    """

    ok: bool
    running: bool
    stalled: bool
    turns: int
    failures: int
    failures_in_row: int
    last_error: str
    inbox: int
    dropped: int
    decisions_dropped: int


class AgentRuntime:
    """Runs one agent. `deliver` and `notify` are called from the trio thread, and never block."""

    def __init__(
        self,
        agent: Agent,
        executor: Executor,
        *,
        tasks: TaskPort | None = None,
        inbox: Inbox | None = None,
        scheduler: Scheduler | None = None,
        checkpoint_store: CheckpointStore | None = None,
        config: RuntimeConfig | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Put a runtime together; `run` starts it.

        Args:
            agent: what decides.
            executor: carries decisions out.
            tasks: where the agent's tasks come from; None shows it none.
            inbox: None makes one.
            scheduler: None makes one.
            checkpoint_store: gets a small note of the agent's progress, for people who watch.
            config: times and sizes.
            wall_clock: Unix time in seconds, for checkpoints.
        """
        self.agent = agent
        self.inbox = Inbox() if inbox is None else inbox
        self._executor = executor
        self._tasks = tasks
        self._scheduler = Scheduler() if scheduler is None else scheduler
        self._checkpoints = checkpoint_store
        self._config = RuntimeConfig() if config is None else config
        self._wall_clock = wall_clock
        self._threads = BoundedThreads(1)
        self._running = False
        self._started = False
        self._turn_began: float | None = None
        self._turns = 0
        self._failures = 0
        self._failures_in_row = 0
        self._decisions_dropped = 0
        self._last_error = ""

    def deliver(self, message: Message) -> bool:
        """Put a verified message into the inbox and wake the loop; say whether there was room."""
        kept = self.inbox.push(message)
        self._scheduler.notify()
        return kept

    def notify(self) -> None:
        """Wake the loop: a task changed."""
        self._scheduler.notify()

    def ready(self) -> bool:
        """Whether `on_start` succeeded and the loop takes work."""
        return self._running and self._started

    def health(self) -> Health:
        """Return how the loop is doing."""
        stalled = self._turn_began is not None and self._elapsed() > self._config.stall_after_s
        return Health(
            ok=self._running and not stalled and self._failures_in_row == 0,
            running=self._running,
            stalled=stalled,
            turns=self._turns,
            failures=self._failures,
            failures_in_row=self._failures_in_row,
            last_error=self._last_error,
            inbox=len(self.inbox),
            dropped=self.inbox.dropped,
            decisions_dropped=self._decisions_dropped,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the agent until cancelled.

        Cancellation: `on_stop` is called, an async one for at most `RuntimeConfig.stop_timeout_s`.
        """
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                if self._checkpoints is not None:
                    nursery.start_soon(self._run_checkpoints, self._checkpoints)
                task_status.started()
                await self._start_agent()
                await self._loop()
        finally:
            self._running = False
            if self._started:
                self._started = False
                with trio.move_on_after(self._config.stop_timeout_s, shield=True):
                    await self._guarded("on_stop", self.agent.on_stop)

    # ------------------------------------------------------------ the loop

    async def _start_agent(self) -> None:
        while True:
            if await self._guarded("on_start", self.agent.on_start):
                break
            await trio.sleep(self._backoff())
        self._started = True
        self._failures_in_row = 0

    async def _loop(self) -> None:
        woken = True
        while True:
            messages = self.inbox.poll(self._config.batch_messages)
            self._turn_began = trio.current_time()
            good = await self._guarded("turn", self._turn, messages, woken)
            self._turn_began = None
            if good:
                self._failures_in_row = 0
            # a hook that fails does not undo a turn that succeeded, but it is slowed down in the same way
            ticked = await self._guarded("on_tick", self.agent.on_tick)
            if not (good and ticked):
                await trio.sleep(self._backoff())
            if len(self.inbox) or not good:
                # what woke the failed turn may still wait to be done, and nobody will notify again
                # the wait of no time takes the notification of those messages, which would else cause an empty turn
                await self._scheduler.wait_for_work(0)
                woken = True
            else:
                woken = await self._scheduler.wait_for_work(self._config.receive_timeout_s)

    async def _turn(self, messages: Sequence[Message], woken: bool) -> None:
        """One turn: `decide` and its decisions, again with the results of the tools it called."""
        tool_results: tuple[ToolResult, ...] = ()
        for step in range(1, limits.TOOL_TURNS_MAX + 1):
            tasks = self._visible_tasks()
            if not (messages or tasks or tool_results or woken):
                return
            decisions = await self._decide(messages, tasks, tool_results)
            results = await self._execute(decisions, tools=step < limits.TOOL_TURNS_MAX)
            await _maybe_await(self.agent.on_results(results))
            tool_results = tuple(_tool_result(result) for result in results if type(result.decision) is InvokeTool)
            if not tool_results:
                return
            messages = ()

    def _visible_tasks(self) -> Sequence[TaskView]:
        if self._tasks is None:
            return ()
        names = frozenset(capability.name for capability in self.agent.capabilities)
        return self._tasks.tasks_for(names, limits.TASKS_PER_TURN_MAX)

    async def _decide(
        self, messages: Sequence[Message], tasks: Sequence[TaskView], tool_results: tuple[ToolResult, ...]
    ) -> list[Decision]:
        agent, timeout = self.agent, self._config.decide_timeout_s
        agent.tool_results = tool_results
        try:
            with trio.fail_after(float("inf") if timeout is None else timeout):
                if agent.decide_in_thread and not inspect.iscoroutinefunction(agent.decide):
                    decided = await self._threads.run(agent.decide, messages, tasks)
                else:
                    decided = agent.decide(messages, tasks)
                decided = await _maybe_await(decided)
            if not isinstance(decided, Iterable):
                raise TypeError(f"decide returned {decided!r}; expected an iterable of decisions, empty for none")
            decisions = list(decided)
        finally:
            agent.tool_results = ()
        for decision in decisions:
            if not isinstance(decision, Decision):
                raise TypeError(f"decide returned {decision!r} among its decisions; expected instances of Decision")
        self._turns += 1
        return decisions

    async def _execute(self, decisions: Sequence[Decision], *, tools: bool) -> list[Result]:
        excess = len(decisions) - limits.DECISIONS_PER_TURN_MAX
        if excess > 0:
            self._decisions_dropped += excess
            _logger.warning("%d decisions of one turn were dropped: at most %d", excess, limits.DECISIONS_PER_TURN_MAX)
        results: list[Result] = []
        for index, decision in enumerate(decisions):
            if index >= limits.DECISIONS_PER_TURN_MAX:
                results.append(_refused(decision, "DECISIONS_PER_TURN_MAX", limits.DECISIONS_PER_TURN_MAX, "decisions"))
            elif not tools and type(decision) is InvokeTool:
                # the agent would never see what it gave
                results.append(_refused(decision, "TOOL_TURNS_MAX", limits.TOOL_TURNS_MAX, "calls of decide"))
            else:
                results.append(await self._executor.execute(decision))
        return results

    # ------------------------------------------------------------ errors, checkpoints

    async def _guarded(self, what: str, function: Callable[..., Any], *args: Any) -> bool:
        """Call foreign code; log and count what it raises, and say whether it went well."""
        try:
            await _maybe_await(function(*args))
        except Exception as error:
            self._failures += 1
            self._failures_in_row += 1
            self._last_error = f"{what}: {type(error).__name__}: {error}"
            _logger.exception("agent %s failed in %s", self.agent.id or type(self.agent).__name__, what)
            return False
        return True

    def _backoff(self) -> float:
        # the exponent is bounded because 2**failures itself grows without end
        doublings = min(max(0, self._failures_in_row - 1), 32)
        return min(self._config.backoff_max_s, self._config.backoff_s * 2.0**doublings)

    def _elapsed(self) -> float:
        return 0.0 if self._turn_began is None else trio.current_time() - self._turn_began

    async def _run_checkpoints(self, store: CheckpointStore) -> None:
        written = -1
        while True:
            await trio.sleep(self._config.checkpoint_interval_s)
            if self._turns == written:
                continue
            turns = self._turns
            name = self.agent.id or type(self.agent).__name__
            note = {"v": 1, "agent": name, "turns": turns, "failures": self._failures,
                    "at_ms": round(self._wall_clock() * 1000)}  # fmt: skip
            try:
                await trio.to_thread.run_sync(store.put, f"checkpoint/{name}", encode_value(note))
                written = turns
            except Exception:
                # a checkpoint is for people who watch: losing one must not stop the agent
                _logger.exception("checkpoint of agent %s was not written", name)


async def _maybe_await(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value


def _tool_result(result: Result) -> ToolResult:
    call = result.decision
    assert isinstance(call, InvokeTool)
    if isinstance(result, Executed):
        return ToolResult(call, result.value)
    return ToolResult(call, error=result.error)


def _refused(decision: Decision, limit: str, bound: int, what: str) -> Refused:
    return Refused(decision, LimitExceeded(limit, f"at most {bound} {what} in one turn"))
