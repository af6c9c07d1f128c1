"""Coordination in the log: auctions, polls, negotiations and delegation of one pool.

Knows: which part of it an operation belongs to, and what an act does to a task. Must not know: votes of electors.
Source: `docs/protocol.md`, coordination. Everything is kept as sets of operations and derived when it is read, so that
the order of arrival has no say. Only what acts do to tasks is kept derived: it is made again whenever a delegation, a
revocation, an act or a freeze changes which acts count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, assert_never

from converge_p2p.core.governance.trust import topic_of
from converge_p2p.core.oplog.bodies import ActBody, ClaimBody, Purpose, SubmitBody
from converge_p2p.core.oplog.coordination import (
    AnswerBody,
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionSettleBody,
    BidCommitBody,
    BidRevealBody,
    CoordinationBody,
    DelegateBody,
    PollCloseBody,
    PollOpenBody,
    PollVoteBody,
    ProposeBody,
    RevokeBody,
)
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId
from converge_p2p.core.view.auctions import Auctions
from converge_p2p.core.view.delegation import Act, Delegations
from converge_p2p.core.view.members import Members
from converge_p2p.core.view.negotiation import Negotiations
from converge_p2p.core.view.polls import Polls
from converge_p2p.core.view.register import StandingClaim
from converge_p2p.core.view.tasks import Submitted, TaskRegister
from converge_p2p.core.view.trust import TrustFold

Coordinated: TypeAlias = CoordinationBody | ActBody
"""What is folded here."""


class Coordination:
    """Everything that members coordinate beside the register of a task."""

    def __init__(
        self,
        pool: PoolId,
        members: Members,
        registers: dict[TaskId, TaskRegister],
        register_of: Callable[[TaskId], TaskRegister],
        trust: TrustFold,
    ) -> None:
        """Make an empty one.

        Args:
            pool: id of the pool.
            members: who is frozen.
            registers: the tasks of the pool; only read.
            register_of: the register of a task, made if it is new.
            trust: whose table keeps who asked for tasks that were settled below a checkpoint.
        """
        self._registers = registers
        self._register_of = register_of
        self._trust = trust
        self.delegations = Delegations(pool, members, self._topic_of)
        self.auctions = Auctions(members, self._submitter_of)
        self.polls = Polls(self.delegations)
        self.negotiations = Negotiations(self.delegations)
        self._acts: dict[TaskId, dict[OperationId, Act]] = {}
        """Acts about a task: submits and cancellations, covered or not."""
        self._task_of_act: dict[OperationId, TaskId] = {}

    # ------------------------------------------------------------ applying

    def apply(self, operation: Operation, body: Coordinated) -> tuple[TaskId, ...]:
        """Apply an operation of a member; called in the order of its author's chain.

        Returns:
            The tasks it concerns.
        """
        match body:
            case (
                AuctionOpenBody() | AuctionCloseBody() | AuctionSettleBody() | BidCommitBody() | BidRevealBody()
            ) as step:
                return _one(self.auctions.apply(operation, step))
            case (PollOpenBody() | PollVoteBody() | PollCloseBody()) as step:
                self.polls.apply(operation, step)
            case (ProposeBody() | AnswerBody()) as step:
                self.negotiations.apply(operation, step)
            case DelegateBody():
                self.delegations.add(operation, body)
                return self._delegation_changed(operation.id)
            case RevokeBody(delegation):
                return self._delegation_changed(delegation) if self.delegations.revoke(operation, body) else ()
            case ActBody():
                act = self.delegations.add_act(operation, body)
                return () if act is None else self._add_act(act)
            case _:
                assert_never(body)
        return ()

    def void(self, operation: Operation, body: Coordinated) -> tuple[TaskId, ...]:
        """Take an operation back whose author forked; returns the tasks it concerned."""
        match body:
            case (
                AuctionOpenBody() | AuctionCloseBody() | AuctionSettleBody() | BidCommitBody() | BidRevealBody()
            ) as step:
                return _one(self.auctions.void(operation, step))
            case (PollOpenBody() | PollVoteBody() | PollCloseBody()) as step:
                self.polls.void(operation, step)
            case (ProposeBody() | AnswerBody()) as step:
                self.negotiations.void(operation, step)
            case DelegateBody():
                touched = self._tasks_under(operation.id)
                self.delegations.void(operation)
                return self._refresh(touched)
            case RevokeBody(delegation):
                return self._delegation_changed(delegation) if self.delegations.void_revoke(operation, body) else ()
            case ActBody():
                act = self.delegations.void_act(operation, body)
                return () if act is None else self._void_act(act)
            case _:
                assert_never(body)
        return ()

    def freeze(self, author: PublicKey) -> tuple[TaskId, ...]:
        """An author is frozen: nobody acts in its name any more. Returns the tasks this concerns."""
        self.auctions.forget_shown()
        touched: dict[TaskId, None] = {}
        for delegation in self.delegations.given_by(author):
            touched.update(dict.fromkeys(self._tasks_under(delegation)))
        return self._refresh(touched)

    def expel(self, author: PublicKey, epoch: int) -> None:
        """An author was removed by an epoch: nobody acts in its name from there on."""
        self.auctions.forget_shown()
        self.delegations.expel(author, epoch)

    # ------------------------------------------------------------ acts about tasks

    def _add_act(self, act: Act) -> tuple[TaskId, ...]:
        match act.inner:
            case PollVoteBody() as vote:
                self.polls.add_act(act, vote)
            case AnswerBody() as answer:
                self.negotiations.add_act(act, answer)
            case SubmitBody() | ClaimBody():
                task = self._keep(act)
                if task is not None:
                    self._count(task, act)
                return _one(task)
        return ()

    def _void_act(self, act: Act) -> tuple[TaskId, ...]:
        match act.inner:
            case PollVoteBody() as vote:
                self.polls.void_act(act, vote)
            case AnswerBody() as answer:
                self.negotiations.void_act(act, answer)
            case SubmitBody() | ClaimBody():
                # its delegation may be gone by now, and with it the name of the task
                task = self._task_of_act.pop(act.operation, None)
                if task is not None:
                    del self._acts[task][act.operation]
                    self._uncount(task, act)
                return _one(task)
        return ()

    def _keep(self, act: Act) -> TaskId | None:
        """Note which task an act is about, once that is known."""
        task = self._task_of(act)
        if task is not None:
            self._acts.setdefault(task, {})[act.operation] = act
            self._task_of_act[act.operation] = task
        return task

    def _task_of(self, act: Act) -> TaskId | None:
        """The task an act is about. Which one a submit makes depends on in whose name it is made."""
        if isinstance(act.inner, ClaimBody):
            return act.inner.task
        given = self.delegations.get(act.delegation)
        return None if given is None else TaskId(self.delegations.subject_of(act.inner, given.delegator))

    def _delegation_changed(self, delegation: OperationId) -> tuple[TaskId, ...]:
        given = self.delegations.get(delegation)
        if given is None:
            return ()
        touched: dict[TaskId, None] = {}
        for act in self.delegations.acts(given):
            task = self._keep(act) if isinstance(act.inner, SubmitBody | ClaimBody) else None
            if task is not None:
                touched[task] = None
        return self._refresh(touched)

    def _tasks_under(self, delegation: OperationId) -> list[TaskId]:
        given = self.delegations.get(delegation)
        acts = [] if given is None else self.delegations.acts(given)
        tasks = (self._task_of(act) for act in acts if isinstance(act.inner, SubmitBody | ClaimBody))
        return [task for task in tasks if task is not None]

    def _refresh(self, tasks: Iterable[TaskId]) -> tuple[TaskId, ...]:
        touched = tuple(dict.fromkeys(tasks))
        for task in touched:
            self.refresh(task)
        return touched

    def refresh(self, task: TaskId) -> None:
        """Make what acts do to a task anew: after a change of what counts, or of the task's own submit."""
        register, found = self._registers.get(task), None
        for _, act in sorted(self._acts.get(task, {}).items()):
            found = self._submitted_by(act) if found is None else found
        now = None if register is None else register.submitted
        if (now is None or now.delegate is not None) and now != found:
            self._register_of(task).set_submitted(found)
        self._refresh_claims(task)

    def _refresh_claims(self, task: TaskId) -> None:
        for act in self._acts.get(task, {}).values():
            if isinstance(act.inner, ClaimBody):
                self._count_claim(task, act)

    def _count(self, task: TaskId, act: Act) -> None:
        """Let one act take effect, if it is covered."""
        if isinstance(act.inner, ClaimBody):
            self._count_claim(task, act)
        elif self._count_submit(task, act):
            # a cancellation may be limited to a topic, which is that of the task as it was submitted
            self._refresh_claims(task)

    def _count_submit(self, task: TaskId, act: Act) -> bool:
        submitted = self._submitted_by(act)
        if submitted is None:
            return False
        register = self._register_of(task)
        now = register.submitted
        # the submitter's own submit goes before a delegate's; of several delegates' the least id stands
        if now is not None and (now.delegate is None or now.operation < act.operation):
            return False
        register.set_submitted(submitted)
        return True

    def _submitted_by(self, act: Act) -> Submitted | None:
        principal = self.delegations.principal(act)
        if principal is None or not isinstance(act.inner, SubmitBody):
            return None
        return Submitted(act.operation, principal, act.inner.spec, act.author)

    def _count_claim(self, task: TaskId, act: Act) -> None:
        principal = self.delegations.principal(act)
        if task in self._trust.table:
            # nothing is left to cancel
            return
        if principal is not None and isinstance(act.inner, ClaimBody):
            self._register_of(task).claims[act.operation] = StandingClaim(
                act.operation, act.author, act.seq, Purpose.CANCEL, 0, act.inner.reason, principal=principal
            )
        elif task in self._registers:
            self._registers[task].claims.pop(act.operation, None)

    def _uncount(self, task: TaskId, act: Act) -> None:
        register = self._registers.get(task)
        if register is None:
            return
        register.claims.pop(act.operation, None)
        if register.submitted is not None and register.submitted.operation == act.operation:
            self.refresh(task)

    def _topic_of(self, task: TaskId) -> bytes | None:
        register = self._registers.get(task)
        if register is not None and register.submitted is not None:
            return register.submitted.spec.topic
        past = self._trust.table.get(task)
        return None if past is None else topic_of(past.contexts)

    def _submitter_of(self, task: TaskId) -> PublicKey | None:
        register = self._registers.get(task)
        if register is not None:
            return register.submitter
        past = self._trust.table.get(task)
        return None if past is None else past.submitter

    # ------------------------------------------------------------ reading

    def winner(self, task: TaskId) -> PublicKey | None:
        """Who won the task's auction, or None: no auction, not settled, or not all of it is here."""
        auction = self.auctions.of_task(task)
        return None if auction is None else auction.winner

    def state(self) -> list[Any]:
        """What is decided, as a plain value: equal on all replicas that hold the same operations."""
        auctions = [
            [
                view.id, view.phase.value, [list(item) for item in view.commits.items()],
                [list(item) for item in view.reveals.items()], [list(bid) for bid in view.ranking],
                view.winner, view.price, view.missing,
            ]
            for view in self.auctions.views()
        ]  # fmt: skip
        polls, sessions = [], []
        for poll in self.polls.ids:
            seen = self.polls.view(poll)
            assert seen is not None
            polls.append([poll, list(seen.counts), seen.phase.value, seen.winner, seen.final, seen.missing])
        for session in self.negotiations.ids:
            talks = self.negotiations.view(session)
            if talks is not None:
                offers = [
                    [offer.id, list(offer.accepted_by), list(offer.rejected_by)] for offer in talks.proposals
                ]  # fmt: skip
                sessions.append([session, offers, talks.head, talks.agreement, talks.final])
        delegations = [
            [given.id, given.revoked_at, [act.operation for act in self.delegations.acts(given)
                                          if self.delegations.covers(given, act)]]
            for given in self.delegations.all()
        ]  # fmt: skip
        return [auctions, polls, sessions, delegations]


def _one(task: TaskId | None) -> tuple[TaskId, ...]:
    return () if task is None else (task,)
