"""What became of decisions: followed until it is known, and handed to the agent.

Knows: which decision waits for which task, poll, auction or negotiation. Must not know: how any of them is decided.
Source: the concepts page (decisions); design rule "every table is bounded, and what is dropped is counted".

Most decisions end when they are carried out. A claim, a report, a submit, a bid, a vote or an offer only asks: what
comes of it is decided by others, later. Such a decision is followed here, from before it is carried out, because an
answer may come while it is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakSet

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded
from converge_p2p.core.model.coordination_decision import OpenAuction, OpenPoll
from converge_p2p.core.model.decision import (
    AcceptProposal,
    CancelTask,
    ClaimTask,
    Decision,
    Propose,
    ReleaseTask,
    ReportTask,
    SubmitBid,
    SubmitTask,
    Vote,
)
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.core.view.auctions import AuctionPhase, AuctionView
from converge_p2p.core.view.negotiation import SessionView
from converge_p2p.core.view.polls import PollPhase, PollView
from converge_p2p.runtime.events import AgentEvent, CoordinationEvent, DecisionOutcome, OutcomeKind
from converge_p2p.runtime.executor import Executed, Failed, Result

Subject: TypeAlias = tuple[PoolId, bytes]
"""What a decision waits for: a task, poll, auction (by its task) or negotiation of a pool."""

_WORK = (ClaimTask, ReportTask)
TASK_DECISIONS = (SubmitTask, ClaimTask, ReportTask, CancelTask)


class Ticket:
    """One decision that somebody waits for. See `AgentRuntime.act`.

    Attributes:
        decision: which.
        outcome: what became of it so far; None before it was carried out.
    """

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.outcome: DecisionOutcome | None = None
        self._answered = trio.Event()

    @property
    def answered(self) -> bool:
        """Whether `wait` returns at once."""
        return self._answered.is_set()

    async def wait(self) -> DecisionOutcome:
        """Wait for the answer: of a claim whether it was granted, of other requests what came of them in the end."""
        await self._answered.wait()
        assert self.outcome is not None, "an answer is an outcome"
        return self.outcome

    def take(self, outcome: DecisionOutcome, *, answer: bool) -> None:
        """Called by the outcomes; the first answer stays."""
        if not self.answered:
            self.outcome = outcome
            if answer:
                self._answered.set()


class Outcomes:
    """The decisions of one agent that others have to answer, and what it was not told yet.

    Attributes:
        counters: outcomes_<kind>, events_dropped (not handed over for want of room), outcomes_forgotten (decisions that
            are followed no more for want of room).
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """Follow nothing yet.

        Args:
            wake: called when the agent should be asked soon.
        """
        self._wake = wake
        self._followed: OrderedDict[Subject, list[Decision]] = OrderedDict()
        self._count = 0
        self._events: OrderedDict[object, AgentEvent] = OrderedDict()
        # a ticket that nobody holds any more is forgotten
        self._tickets: WeakSet[Ticket] = WeakSet()
        self._begun: dict[int, bool] = {}
        """Decisions under way: whether they are followed since they began, and not because of an equal one before."""
        self._order = 0
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how many decisions wait for an answer."""
        return self._count

    @property
    def waiting(self) -> int:
        """How many events were not handed over yet."""
        return len(self._events)

    def take(self) -> tuple[AgentEvent, ...]:
        """Return what happened since the last call, in order."""
        events, self._events = tuple(self._events.values()), OrderedDict()
        return events

    # ------------------------------------------------------------ a decision and its result

    def begin(self, decision: Decision, ticket: Ticket | None = None) -> None:
        """A decision is about to be carried out.

        Raises:
            LimitExceeded: too many are waited for with a ticket.
        """
        if ticket is not None:
            if len(self._tickets) >= limits.OUTCOMES_FOLLOWED_MAX:
                raise LimitExceeded("OUTCOMES_FOLLOWED_MAX", "too many decisions wait for their answer")
            self._tickets.add(ticket)
        subject = _subject_before(decision)
        self._begun[id(decision)] = subject is not None and self._follow(subject, decision)

    def end(self, result: Result) -> Subject | None:
        """A decision was carried out, or not.

        Returns:
            What it waits for, if that is known only now: an answer may have come before, so it has to be looked at.
        """
        decision = result.decision
        subject = _subject_before(decision)
        fresh = self._begun.pop(id(decision), False)
        if not isinstance(result, Executed):
            kind = OutcomeKind.FAILED if isinstance(result, Failed) else OutcomeKind.REFUSED
            if subject is not None and fresh:
                self._unfollow(subject, decision)
            self._tell(DecisionOutcome(decision, kind, reason=str(result.error), error=result.error), final=True)
            return None
        if isinstance(decision, ReleaseTask):
            self._drop_work((decision.pool_id, decision.task_id))
        late = _subject_after(decision, result.value) if subject is None else None
        if late is not None:
            subject = late
            self._follow(late, decision)
        still_followed = subject is not None and decision in self._followed.get(subject, ())
        # what was answered while it was carried out is not told as merely done afterwards
        answered_already = subject is not None and not still_followed
        if isinstance(decision, ReportTask) and still_followed and subject is not None:
            # who reports is told how the task ends, and not a second time as who claimed it
            self._drop_work(subject, but=decision)
        if not answered_already:
            self._tell(DecisionOutcome(decision, OutcomeKind.DONE, result.value), final=subject is None)
        return late

    def given_up(self, decision: Decision) -> None:
        """It was cancelled while a decision was carried out; what came of it is not known."""
        self._begun.pop(id(decision), None)

    # ------------------------------------------------------------ what others decide

    def adopted(self, view: TaskView, token: tuple[int, int]) -> None:
        """The agent goes on with a claim from before a restart, as if it had just been granted."""
        decision = ClaimTask(view.pool_id, view.id)
        self._follow((view.pool_id, view.id), decision)
        # it is shown the task in this very turn, so it need not be woken
        self._tell(DecisionOutcome(decision, OutcomeKind.GRANTED, token=token, task=view), wake=False)

    def claim_won(self, pool: PoolId, task: TaskId, token: tuple[int, int], view: TaskView | None) -> None:
        """The electors granted a claim."""
        for decision in self._about(pool, task):
            if isinstance(decision, ClaimTask):
                self._tell(DecisionOutcome(decision, OutcomeKind.GRANTED, token=token, task=view))
                return

    def claim_lost(
        self, pool: PoolId, task: TaskId, token: tuple[int, int], reason: str, view: TaskView | None
    ) -> None:
        """A claim is another's, or nobody's any more."""
        for decision in self._about(pool, task):
            if isinstance(decision, _WORK):
                self._tell(DecisionOutcome(decision, OutcomeKind.LOST, None, reason, token=token, task=view))

    def task_settled(self, pool: PoolId, task: TaskId, view: TaskView | None) -> None:
        """A task has ended; without a view it is known only that it did, before a checkpoint."""
        for decision in self._about(pool, task):
            if isinstance(decision, TASK_DECISIONS):
                self._unfollow((pool, task), decision)
                reason = "" if view is not None else "settled before the last checkpoint; its content was pruned"
                value = None if view is None else view.state.value
                self._tell(DecisionOutcome(decision, OutcomeKind.SETTLED, value, reason, task=view))

    def matter_changed(self, event: CoordinationEvent, *, own: bytes, concerns: bool) -> None:
        """An auction, poll, negotiation or delegation looks different.

        Args:
            event: how it is now.
            own: public key of this agent.
            concerns: the agent may take part in it, and is told of it.
        """
        view = event.view
        if isinstance(view, AuctionView):
            self._auction_changed(event.pool_id, view, own)
        elif isinstance(view, PollView) and view.phase is not PollPhase.OPEN:
            option = None if view.winner is None else _options(event)[view.winner]
            self._settle((event.pool_id, view.id), option, view.phase.value)
        elif isinstance(view, SessionView) and view.agreement is not None:
            self._settle((event.pool_id, view.id), view.agreement, "")
        if concerns:
            # of one matter only the last state is of interest
            self._put((event.pool_id, event.id), event)
            self._wake()

    def _auction_changed(self, pool: PoolId, view: AuctionView, own: bytes) -> None:
        if view.phase is not AuctionPhase.SETTLED or view.missing:
            return
        for decision in self._about(pool, view.task):
            if isinstance(decision, SubmitBid):
                self._unfollow((pool, view.task), decision)
                won = view.winner == own
                kind = OutcomeKind.GRANTED if won else OutcomeKind.LOST
                other = "nobody's bid" if view.winner is None else f"the bid of {view.winner.hex()[:12]}"
                self._tell(DecisionOutcome(decision, kind, view.price, "" if won else f"{other} won"))
            elif isinstance(decision, OpenAuction):
                self._unfollow((pool, view.task), decision)
                self._tell(DecisionOutcome(decision, OutcomeKind.SETTLED, view.winner))

    def _settle(self, subject: Subject, value: object, reason: str) -> None:
        for decision in list(self._followed.get(subject, ())):
            self._unfollow(subject, decision)
            self._tell(DecisionOutcome(decision, OutcomeKind.SETTLED, value, reason))

    # ------------------------------------------------------------ inside

    def _about(self, pool: PoolId, task: TaskId) -> list[Decision]:
        return list(self._followed.get((pool, task), ()))

    def _follow(self, subject: Subject, decision: Decision) -> bool:
        """Follow a decision; say whether no equal one was followed before."""
        followed = self._followed.setdefault(subject, [])
        if decision in followed:
            return False
        followed.append(decision)
        self._count += 1
        if self._count > limits.OUTCOMES_FOLLOWED_MAX:
            oldest = next(iter(self._followed))
            for forgotten in list(self._followed[oldest]):
                self._unfollow(oldest, forgotten)
                self.counters["outcomes_forgotten"] += 1
                reason = "too many decisions are followed; this one is followed no more"
                self._tell(DecisionOutcome(forgotten, OutcomeKind.FAILED, reason=reason), final=True)
        return True

    def _unfollow(self, subject: Subject, decision: Decision) -> None:
        followed = self._followed.get(subject)
        if followed is None or decision not in followed:
            return
        followed.remove(decision)
        self._count -= 1
        if not followed:
            del self._followed[subject]

    def _drop_work(self, subject: Subject, *, but: Decision | None = None) -> None:
        for decision in list(self._followed.get(subject, ())):
            if isinstance(decision, _WORK) and decision is not but:
                self._unfollow(subject, decision)

    def _tell(self, outcome: DecisionOutcome, *, final: bool = False, wake: bool = True) -> None:
        self.counters[f"outcomes_{outcome.kind.value}"] += 1
        answer = final or outcome.kind is not OutcomeKind.DONE
        at_once = outcome.kind in (OutcomeKind.DONE, OutcomeKind.REFUSED, OutcomeKind.FAILED)
        for ticket in list(self._tickets):
            # what others answer is for every equal decision, since only the first of them is followed
            if ticket.decision is outcome.decision or (not at_once and ticket.decision == outcome.decision):
                ticket.take(outcome, answer=answer)
                if answer:
                    self._tickets.discard(ticket)
        self._order += 1
        self._put(self._order, outcome)
        if wake and outcome.kind in (OutcomeKind.GRANTED, OutcomeKind.LOST, OutcomeKind.SETTLED):
            # an agent that decides the same whenever it is asked must not wake itself with what it was just answered
            self._wake()

    def _put(self, name: object, event: AgentEvent) -> None:
        self._events.pop(name, None)
        self._events[name] = event
        if len(self._events) > limits.AGENT_EVENTS_MAX:
            self._events.popitem(last=False)
            self.counters["events_dropped"] += 1


def _options(event: CoordinationEvent) -> tuple[str, ...]:
    view = event.view
    assert isinstance(view, PollView)
    content = event.content
    return tuple(content["options"]) if isinstance(content, dict) else view.options


def _subject_before(decision: Decision) -> Subject | None:
    """What a decision waits for, if that is known before it is carried out."""
    match decision:
        case ClaimTask(pool, task) | ReportTask(pool, task) | CancelTask(pool, task):
            return pool, task
        case SubmitBid(pool, task) | OpenAuction(pool, task):
            return pool, task
        case Vote(pool, question):
            return pool, question
        case Propose(pool, session) if session:
            return pool, session
    return None


def _subject_after(decision: Decision, value: object) -> Subject | None:
    """What a decision waits for, if that is known only from its result."""
    if isinstance(decision, SubmitTask | OpenPoll | Propose | AcceptProposal) and isinstance(value, bytes):
        return decision.pool_id, value
    return None
