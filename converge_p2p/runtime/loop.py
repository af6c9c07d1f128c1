"""The agent's loop: inbox and tasks in, `decide`, executor, and again.

Knows: the order of a turn, and that an agent is foreign code that may raise or hang. Must not know: what decisions
mean, and where messages come from.
Source: the concepts page (execution loop, tool loop); the retry rule is capped exponential backoff.

An error in the agent is logged, counted and shown in `health`, and the loop goes on. The messages of the failed turn
are not handed over again: one that always makes `decide` raise would stop the agent for good.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError, LimitExceeded
from converge_p2p.core.model.decision import ClaimTask, Decision, InvokeTool, ReleaseTask, ReportTask, SubmitTask
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.runtime.agent import Agent, AgentState, ToolResult
from converge_p2p.runtime.checkpoints import Checkpoints
from converge_p2p.runtime.claims import Claims, HeldClaim, Standing
from converge_p2p.runtime.events import AgentEvent, CoordinationEvent
from converge_p2p.runtime.executor import Executed, Executor, Refused, Result
from converge_p2p.runtime.hooks import MessageHook, let_through
from converge_p2p.runtime.inbox import Inbox, InboxLike
from converge_p2p.runtime.outcomes import TASK_DECISIONS, Outcomes, Ticket
from converge_p2p.runtime.ports import CheckpointStore, ClaimPort, Mailbox, TaskPort, TurnRecorder
from converge_p2p.runtime.scheduler import Scheduler, SchedulerLike
from converge_p2p.runtime.settings import Health as Health, RuntimeConfig as RuntimeConfig
from converge_p2p.runtime.threads import BoundedThreads
from converge_p2p.runtime.tracing import NO_TRACER, Tracer, turn_of

_logger = logging.getLogger(__name__)


class AgentRuntime:
    """Runs one agent. `deliver` and `notify` are called from the trio thread, and never block."""

    def __init__(
        self,
        agent: Agent,
        executor: Executor,
        *,
        tasks: TaskPort | None = None,
        inbox: InboxLike | None = None,
        scheduler: SchedulerLike | None = None,
        claims: ClaimPort | None = None,
        after_receive: MessageHook | None = None,
        matters: Callable[[PoolId, bytes], CoordinationEvent | None] | None = None,
        mailbox: Mailbox | None = None,
        recorder: TurnRecorder | None = None,
        checkpoint_store: CheckpointStore | None = None,
        config: RuntimeConfig | None = None,
        tracer: Tracer = NO_TRACER,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Put a runtime together; `run` starts it.

        Args:
            agent: what decides.
            executor: carries decisions out.
            tasks: where the agent's tasks come from; None shows it none.
            inbox: None makes one.
            scheduler: None makes one.
            claims: where the agent's claims are renewed and given back; None leaves that to whoever claims.
            after_receive: see `Hooks`.
            matters: returns how a poll or negotiation looks now.
            mailbox: told of messages that the agent has seen.
            recorder: told of each turn.
            checkpoint_store: gets a small note of the agent's progress now and then.
            config: times and sizes.
            tracer: records turns about messages that were sent in a trace.
            wall_clock: Unix time in seconds, for checkpoints.
        """
        self.agent = agent
        self.inbox = Inbox() if inbox is None else inbox
        self._executor = executor
        self._tasks = tasks
        self._scheduler = Scheduler() if scheduler is None else scheduler
        self._checkpoints, self._tracer = checkpoint_store, tracer
        self.config = RuntimeConfig() if config is None else config
        self.outcomes = Outcomes(self._scheduler.notify)
        self.claims = None if claims is None else Claims(
            claims, claim_ttl_s=self.config.claim_ttl_s, on_overdue=self._claim_overdue
        )  # fmt: skip
        self._after_receive = after_receive
        self._matters = matters
        self.mailbox = mailbox
        self._recorder = recorder
        self._unseen: tuple[AgentEvent, ...] = ()
        self._tasks_open = False
        self._held_back = 0
        self._restarts = 0
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

    def wake_after(self, seconds: float) -> None:
        """Ask for a turn some time from now, whether or not anything happens. The earliest such time counts."""
        self._scheduler.wake_at(trio.current_time() + max(0.0, seconds))

    async def act(self, decision: Decision) -> Ticket:
        """Carry a decision out at once, from an async method of the agent, and return what tells how it ends.

        Policy and hooks hold as for decisions that `decide` returns.

        Raises:
            LimitExceeded: too many decisions wait for their answer.
        """
        # a copy: the same decision may be waited for twice
        ticket = Ticket(copy.copy(decision))
        await self._carry_out(ticket.decision, ticket)
        return ticket

    # ------------------------------------------------------------ what the node says

    def task_changed(self, pool: PoolId, task: TaskId, view: TaskView | None) -> None:
        """A task looks different; None: it is settled, and no longer here."""
        if view is None or view.state.terminal:
            if self.claims is not None:
                self.claims.gone(task)
            self.outcomes.task_settled(pool, task, view)

    def claim_won(self, pool: PoolId, task: TaskId, token: tuple[int, int], view: TaskView | None) -> None:
        """A claim of this agent was granted."""
        if self.claims is None or self.claims.won(task, token):
            self.outcomes.claim_won(pool, task, token, view)

    def claim_lost(
        self, pool: PoolId, task: TaskId, token: tuple[int, int], reason: str, *, view: TaskView | None, denied: bool
    ) -> None:
        """A claim of this agent is not granted, or not any more."""
        if self.claims is None or self.claims.lost(task, token, denied=denied):
            self.outcomes.claim_lost(pool, task, token, reason, view)

    def matter_changed(self, event: CoordinationEvent, *, own: bytes, concerns: bool) -> None:
        """An auction, poll, negotiation or delegation looks different. See `Outcomes.matter_changed`."""
        self.outcomes.matter_changed(event, own=own, concerns=concerns)

    # ------------------------------------------------------------ what it is shown

    def fits(self, view: TaskView) -> bool:
        """Whether the agent can do what a task requires."""
        return self._capabilities().issuperset(view.spec.required_capabilities)

    def wants(self, view: TaskView) -> bool:
        """Whether the agent is to be shown a task: not while an answer to what it did about it is awaited."""
        standing = None if self.claims is None else self.claims.standing(view.id)
        if view.claimable:
            return standing is not Standing.OUT
        return standing is not Standing.REPORTED

    def adopt(self, view: TaskView) -> bool:
        """A claim of this node that nobody owns becomes this agent's; say whether it goes on with the task."""
        if self.claims is None:
            return True
        token = (view.epoch, view.round)
        if not self.config.resume_claims:
            self.claims.give_up(view.pool_id, view.id, token)
            return False
        self.claims.adopted(view.pool_id, view.id, token)
        self.outcomes.adopted(view, token)
        return True

    def _capabilities(self) -> frozenset[str]:
        return frozenset(capability.name for capability in self.agent.capabilities)

    def _claim_overdue(self, claim: HeldClaim) -> None:
        assert claim.token is not None, "only what was granted is given back"
        self.outcomes.claim_lost(claim.pool, claim.task, claim.token, claim.why, None)

    # ------------------------------------------------------------ how it is doing

    def ready(self) -> bool:
        """Whether `on_start` succeeded and the loop takes work."""
        return self._running and self._started

    def progress(self) -> tuple[int, int]:
        """Return turns and failures since the start."""
        return self._turns, self._failures

    def checkpoint(self) -> Any:
        """Return what the agent wants to have noted."""
        return self.agent.checkpoint()

    def health(self) -> Health:
        """Return how the loop is doing."""
        stalled = self._turn_began is not None and self._elapsed() > self.config.stall_after_s
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
            restarts=self._restarts,
            blocked=self.inbox.blocked,
            held_back=self._held_back,
            events_dropped=self.outcomes.counters["events_dropped"],
            claims=0 if self.claims is None else len(self.claims),
            followed=len(self.outcomes),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the agent until cancelled.

        Cancellation: `on_stop` is called, an async one for at most `RuntimeConfig.stop_timeout_s`; then the agent's
        claims are handed back, which may take as long again.
        """
        self._running, notes = True, None
        self.agent.runtime = self
        try:
            async with trio.open_nursery() as nursery:
                if self.claims is not None:
                    claims = self.claims
                    claims.start(lambda: nursery.start_soon(claims.run))
                if self._recorder is not None:
                    nursery.start_soon(self._recorder.run)
                if self._checkpoints is not None:
                    notes = Checkpoints(self._checkpoints, self.called, self, self._wall_clock)
                    self.agent.last_checkpoint = await notes.load()
                    nursery.start_soon(notes.run, self.config.checkpoint_interval_s)
                task_status.started()
                await self._start_agent()
                await self._loop()
        finally:
            self._running = False
            if self.claims is not None:
                self.claims.stop()
            await self._stop_agent("the agent stops")
            if notes is not None and type(self.agent).checkpoint is not Agent.checkpoint:
                with trio.move_on_after(self.config.stop_timeout_s, shield=True):
                    await notes.write()
            self.agent.enter(AgentState.OFFLINE)
            self.agent.runtime = None

    # ------------------------------------------------------------ the loop

    async def _start_agent(self) -> None:
        while True:
            if await self._guarded("on_start", self.agent.on_start):
                break
            await trio.sleep(self._backoff())
        self._started = True
        self._failures_in_row = 0
        self.agent.enter(AgentState.IDLE)

    async def _stop_agent(self, reason: str) -> None:
        """Let the agent say goodbye, and give back what it holds."""
        if self._started:
            self._started = False
            with trio.move_on_after(self.config.stop_timeout_s, shield=True):
                await self._guarded("on_stop", self.agent.on_stop)
        if self.claims is not None and len(self.claims):
            with trio.move_on_after(self.config.stop_timeout_s, shield=True):
                await self.claims.hand_back(reason)

    async def _restart_agent(self) -> None:
        """Start the agent again: whatever it remembers makes it fail. What it was told of last is not told again."""
        failures, error = self._failures_in_row, self._last_error
        _logger.warning("agent %s failed %d times in a row and is started again: %s", self.called, failures, error)
        self._unseen = ()
        self.agent.enter(AgentState.OFFLINE)
        await self._stop_agent("the agent failed too often")
        self._restarts += 1
        await self._start_agent()
        # it has to show first that it works: until then it is waited for as long as before, and health says so
        self._failures_in_row = failures

    async def _loop(self) -> None:
        woken, every = True, self.config.restart_after
        while True:
            messages = self.inbox.poll(self.config.batch_messages)
            self._turn_began = trio.current_time()
            with turn_of(self._tracer, self.called, messages):
                good = await self._guarded("turn", self._turn, messages, woken)
            self._turn_began = None
            self.agent.enter(AgentState.IDLE)
            if good:
                self._failures_in_row = 0
            if self.mailbox is not None and messages:
                await self.mailbox.done(messages)
            # a hook that fails does not undo a turn that succeeded, but it is slowed down in the same way
            ticked = await self._guarded("on_tick", self.agent.on_tick)
            if not (good and ticked):
                await trio.sleep(self._backoff())
                if every and not good and self._failures_in_row % every == 0:
                    await self._restart_agent()
            if len(self.inbox) or not good:
                # what woke the failed turn may still wait to be done, and nobody will notify again
                # the wait of no time takes the notification of those messages, which would else cause an empty turn
                await self._scheduler.wait_for_work(0)
                woken = True
            else:
                woken = await self._scheduler.wait_for_work(self._idle_wait_s())

    async def _turn(self, messages: Sequence[Message], woken: bool) -> None:
        """One turn: `decide` and its decisions, again with the results of the tools it called."""
        if self._after_receive is not None:
            kept = await let_through(self._after_receive, messages, self.called)
            self._held_back += len(messages) - len(kept)
            messages = kept
        tool_results: tuple[ToolResult, ...] = ()
        for step in range(1, limits.TOOL_TURNS_MAX + 1):
            tasks = self._visible_tasks()
            # events that matter wake; one that only says "done" is no reason for a turn, or turns would never end
            if not (messages or tasks or tool_results or woken):
                return
            # of what a failed turn was told, it is told again: the outcome of a decision must not vanish
            events = self._unseen = (*self._unseen, *self.outcomes.take())[-limits.AGENT_EVENTS_MAX :]
            self.agent.enter(AgentState.BUSY)
            decisions = await self._decide(messages, tasks, tool_results, events)
            self._unseen = ()
            results = await self._execute(decisions, tools=step < limits.TOOL_TURNS_MAX)
            if self._recorder is not None:
                self._recorder.record((messages, tasks, events, tool_results), decisions, results)
            await _maybe_await(self.agent.on_results(results))
            tool_results = tuple(_tool_result(result) for result in results if type(result.decision) is InvokeTool)
            if not tool_results:
                return
            messages = ()

    def _visible_tasks(self) -> Sequence[TaskView]:
        if self._tasks is None:
            return ()
        tasks = self._tasks.tasks_for(self._capabilities(), limits.TASKS_PER_TURN_MAX)
        self._tasks_open = bool(tasks)
        return tasks

    def _idle_wait_s(self) -> float | None:
        """How long to wait for something: without end, if there is nothing that a timeout would be for."""
        ticks = type(self.agent).on_tick is not Agent.on_tick
        return self.config.receive_timeout_s if ticks or self._tasks_open or self._failures_in_row else None

    async def _decide(
        self,
        messages: Sequence[Message],
        tasks: Sequence[TaskView],
        tool_results: tuple[ToolResult, ...],
        events: tuple[AgentEvent, ...],
    ) -> list[Decision]:
        agent, timeout = self.agent, self.config.decide_timeout_s
        agent.tool_results, agent.events = tool_results, events
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
            agent.tool_results, agent.events = (), ()
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
                refused = _refused(decision, "DECISIONS_PER_TURN_MAX", limits.DECISIONS_PER_TURN_MAX, "decisions")
                self.outcomes.end(refused)
                results.append(refused)
            elif not tools and type(decision) is InvokeTool:
                # the agent would never see what it gave
                results.append(_refused(decision, "TOOL_TURNS_MAX", limits.TOOL_TURNS_MAX, "calls of decide"))
            else:
                results.append(await self._carry_out(decision))
        return results

    async def _carry_out(self, decision: Decision, ticket: Ticket | None = None) -> Result:
        """Carry one decision out, and follow what others make of it from before that on."""
        self.outcomes.begin(decision, ticket)
        try:
            restore = self._note_claim(decision)
        except LimitExceeded as error:
            refused = Refused(decision, error)
            self.outcomes.end(refused)
            return refused
        try:
            result = await self._executor.execute(decision)
        except BaseException:
            self.outcomes.given_up(decision)
            raise
        if isinstance(result, Refused):
            restore()
        late = self.outcomes.end(result)
        if isinstance(result, Executed):
            if isinstance(decision, ReleaseTask) and self.claims is not None:
                self.claims.gone(decision.task_id)
            if isinstance(decision, TASK_DECISIONS):
                task = result.value if isinstance(decision, SubmitTask) else decision.task_id
                if isinstance(task, bytes):
                    # a handler of the application may give something else
                    self._look_at_task(decision.pool_id, TaskId(task))
            elif late is not None and self._matters is not None and (event := self._matters(*late)) is not None:
                self.outcomes.matter_changed(event, own=b"", concerns=False)
        return result

    def _note_claim(self, decision: Decision) -> Callable[[], None]:
        """A claim or report is about to be made; return what undoes the note of it."""
        if self.claims is None or not isinstance(decision, ClaimTask | ReportTask):
            return lambda: None
        undo = self.claims.undo(decision.task_id)
        if isinstance(decision, ClaimTask):
            self.claims.asked(decision.pool_id, decision.task_id)
        else:
            self.claims.reported(decision.pool_id, decision.task_id)
        return undo

    def _look_at_task(self, pool: PoolId, task: TaskId) -> None:
        """A task may have been settled while the decision about it was carried out."""
        if self._tasks is None:
            return
        try:
            self.task_changed(pool, task, self._tasks.task(pool, task))
        except ConvergeError as error:
            _logger.debug("the task of a decision cannot be read: %s", error)

    # ------------------------------------------------------------ errors

    async def _guarded(self, what: str, function: Callable[..., Any], *args: Any) -> bool:
        """Call foreign code; log and count what it raises, and say whether it went well."""
        try:
            await _maybe_await(function(*args))
        except Exception as error:
            self._failures += 1
            self._failures_in_row += 1
            self._last_error = f"{what}: {type(error).__name__}: {error}"
            _logger.exception("agent %s failed in %s", self.called, what)
            return False
        return True

    @property
    def called(self) -> str:
        """What the agent is called in logs and checkpoints."""
        return self.agent.name or self.agent.id or type(self.agent).__name__

    def _backoff(self) -> float:
        # the exponent is bounded because 2**failures itself grows without end
        doublings = min(max(0, self._failures_in_row - 1), 32)
        return min(self.config.backoff_max_s, self.config.backoff_s * 2.0**doublings)

    def _elapsed(self) -> float:
        return 0.0 if self._turn_began is None else trio.current_time() - self._turn_began


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
