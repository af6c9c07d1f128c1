"""Who may act in whose name.

Knows: delegations, revocations, and acts that rest on them. Must not know: what an act does.
Source: `docs/protocol.md`, delegation. A delegation is checked wherever an act is counted, so an act that its
delegation does not cover has no effect on any replica, whatever the delegate's own node thought of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, assert_never

from converge_p2p.core import limits
from converge_p2p.core.model.task import task_id
from converge_p2p.core.oplog.bodies import ActBody, ClaimBody, SubmitBody
from converge_p2p.core.oplog.coordination import AnswerBody, DelegateBody, PollVoteBody, RevokeBody, Scope
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId
from converge_p2p.core.view.firsts import FirstOfAuthor
from converge_p2p.core.view.members import Members

Inner = SubmitBody | ClaimBody | PollVoteBody | AnswerBody


class DelegationView(NamedTuple):
    """A delegation as a replica sees it.

    Attributes:
        id: the delegate operation.
        delegator, delegate: in whose name, and who.
        epoch: the epoch it was given in.
        revoked_at: acts of the delegate from this seq on are void; None while it is not revoked.
    """

    id: OperationId
    delegator: PublicKey
    delegate: PublicKey
    scopes: tuple[Scope, ...]
    subject: bytes | None
    topic: bytes
    epoch: int
    until_epoch: int
    expires_ms: int
    revoked_at: int | None = None


class Act(NamedTuple):
    """Something done in another's name, if its delegation covers it."""

    operation: OperationId
    delegation: OperationId
    author: PublicKey
    seq: int
    epoch: int
    inner: Inner


class Delegations:
    """All delegations of a pool, and the acts under them."""

    def __init__(self, pool: PoolId, members: Members, topic_of: Callable[[TaskId], bytes | None]) -> None:
        """Make an empty set.

        Args:
            pool: id of the pool.
            members: who is frozen.
            topic_of: the topic of a task that was asked for, or None.
        """
        self._pool = pool
        self._members = members
        self._topic_of = topic_of
        self._given: dict[OperationId, DelegationView] = {}
        self._by_delegator: dict[PublicKey, dict[OperationId, None]] = {}
        self._expelled: dict[PublicKey, int] = {}
        self._revoked: FirstOfAuthor[OperationId, int] = FirstOfAuthor()
        self._acts: dict[tuple[OperationId, PublicKey], dict[tuple[Scope, bytes], Act]] = {}

    # ------------------------------------------------------------ adding

    def add(self, operation: Operation, body: DelegateBody) -> None:
        """Note a delegation."""
        self._given[operation.id] = DelegationView(
            operation.id,
            operation.author,
            body.delegate,
            body.scopes,
            body.subject,
            body.topic,
            operation.epoch,
            body.until_epoch,
            body.expires_ms,
        )
        self._by_delegator.setdefault(operation.author, {})[operation.id] = None

    def void(self, operation: Operation) -> None:
        """Take a delegation back whose author forked."""
        if self._given.pop(operation.id, None) is not None:
            self._by_delegator[operation.author].pop(operation.id, None)

    def revoke(self, operation: Operation, body: RevokeBody) -> bool:
        """Note a revocation; returns whether it is the delegator's first one, which is the one that counts."""
        first = self._revoked.add(body.delegation, operation, body.delegate_length)
        return first and self._is_delegator(operation.author, body.delegation)

    def void_revoke(self, operation: Operation, body: RevokeBody) -> bool:
        """Take a revocation back whose author forked; returns whether it counted."""
        first = self._revoked.void(body.delegation, operation)
        return first and self._is_delegator(operation.author, body.delegation)

    def _is_delegator(self, author: PublicKey, delegation: OperationId) -> bool:
        given = self._given.get(delegation)
        return given is not None and given.delegator == author

    def expel(self, author: PublicKey, epoch: int) -> None:
        """An author was removed by an epoch."""
        self._expelled.setdefault(author, epoch)

    def add_act(self, operation: Operation, body: ActBody) -> Act | None:
        """Note an act, whether or not its delegation is known.

        Returns:
            None if it does not count: the delegate did the same under this delegation before, or too much in all.
        """
        acts = self._acts.setdefault((body.delegation, operation.author), {})
        key = (scope_of(body.inner), _what(body.inner))
        # both by the delegate's chain, so the same for everybody
        if key in acts or len(acts) >= limits.ACTS_PER_DELEGATION_MAX:
            return None
        act = Act(operation.id, body.delegation, operation.author, operation.seq, operation.epoch, body.inner)
        acts[key] = act
        return act

    def void_act(self, operation: Operation, body: ActBody) -> Act | None:
        """Take an act back whose author forked; returns it if it was noted."""
        acts = self._acts.get((body.delegation, operation.author), {})
        key = (scope_of(body.inner), _what(body.inner))
        return acts.pop(key) if key in acts and acts[key].operation == operation.id else None

    # ------------------------------------------------------------ reading

    def get(self, delegation: OperationId) -> DelegationView | None:
        """A delegation, or None if it is not known or its author forked."""
        given = self._given.get(delegation)
        if given is None:
            return None
        cut = self._revoked.of(delegation, given.delegator)
        return given if cut is None else given._replace(revoked_at=cut.content)

    def all(self) -> Iterator[DelegationView]:
        """Every delegation, by id."""
        for delegation in sorted(self._given):
            given = self.get(delegation)
            assert given is not None
            yield given

    def given_by(self, delegator: PublicKey) -> list[OperationId]:
        """Ids of what an author delegated."""
        return list(self._by_delegator.get(delegator, ()))

    def acts(self, given: DelegationView) -> list[Act]:
        """The delegate's acts under a delegation, covered or not, in the order of its chain."""
        return list(self._acts.get((given.id, given.delegate), {}).values())

    def principal(self, act: Act) -> PublicKey | None:
        """In whose name an act counts, or None if no delegation covers it.

        Whether the delegate was a member when it acted is the fold's to see before the act is noted.
        """
        given = self.get(act.delegation)
        return given.delegator if given is not None and self.covers(given, act) else None

    def covers(self, given: DelegationView, act: Act) -> bool:
        """Whether an act is one that a delegation allows."""
        if act.author != given.delegate or given.delegator == given.delegate:
            return False
        if given.delegator in self._members.frozen():
            # whoever forked can revoke nothing any more, so nobody acts in its name either
            return False
        if not given.epoch <= act.epoch <= given.until_epoch:
            return False
        if act.epoch >= self._expelled.get(given.delegator, limits.SEQ_MAX + 1):
            # what was done in the name of a member before it was removed stands, like what it did itself
            return False
        if given.revoked_at is not None and act.seq >= given.revoked_at:
            return False
        if scope_of(act.inner) not in given.scopes:
            return False
        if given.subject is not None and given.subject != self.subject_of(act.inner, given.delegator):
            return False
        return not given.topic or given.topic == self._topic(act.inner)

    def subject_of(self, inner: Inner, principal: PublicKey) -> bytes:
        """The task, poll or session that an act is about."""
        match inner:
            case SubmitBody(spec):
                return task_id(self._pool, principal, spec.key)
            case ClaimBody(task):
                return task
            case PollVoteBody(poll):
                return poll
            case AnswerBody(session):
                return session
            case _:
                assert_never(inner)

    def _topic(self, inner: Inner) -> bytes | None:
        match inner:
            case SubmitBody(spec):
                return spec.topic
            case ClaimBody(task):
                return self._topic_of(task)
            case PollVoteBody() | AnswerBody():
                return None
            case _:
                assert_never(inner)


def _what(inner: Inner) -> bytes:
    """What can be done once: a task to submit or cancel, a poll to vote in, a proposal to answer."""
    match inner:
        case SubmitBody(spec):
            return spec.key
        case ClaimBody(task):
            return task
        case PollVoteBody(poll):
            return poll
        case AnswerBody(_, _, proposal):
            return proposal
        case _:
            assert_never(inner)


def scope_of(inner: Inner) -> Scope:
    """What a delegate must be allowed for an act."""
    match inner:
        case SubmitBody():
            return Scope.SUBMIT
        case ClaimBody():
            return Scope.CANCEL
        case PollVoteBody():
            return Scope.VOTE
        case AnswerBody():
            return Scope.ANSWER
        case _:
            assert_never(inner)
