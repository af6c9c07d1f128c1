"""What the application may ask for to coordinate, and the operation that answers it.

Knows: who may do what, as far as it is known here. Must not know: how an operation is signed, stored or sent.
Source: `docs/protocol.md`, coordination. The fold checks everything again, on every replica; what is refused here would
have no effect there. The local clock is asked only here, and only to stop offering what expired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, Conflict, LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.core.model.task import TaskSpec, task_id
from converge_p2p.core.oplog.bodies import (
    ActBody,
    Body,
    ClaimBody,
    Purpose,
    SubmitBody,
    decode_body,
    encode_body,
    kind_of,
)
from converge_p2p.core.oplog.coordination import (
    AnswerBody,
    DelegateBody,
    PollCloseBody,
    PollOpenBody,
    PollRule,
    PollVoteBody,
    RevokeBody,
    Scope,
)
from converge_p2p.core.replica.auction_commands import (
    AuctionCommand,
    AuctionCommands,
    CloseAuction,
    CommitBid,
    OpenAuction,
    RevealBid,
    SettleAuction,
)
from converge_p2p.core.replica.negotiation_commands import (
    AnswerProposal,
    CounterProposal,
    NegotiationCommands,
    OpenNegotiation,
)
from converge_p2p.core.replica.refusals import check_epoch, check_time, short
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.core.view.delegation import Act, DelegationView
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.polls import PollPhase, PollView


class Electorate(Enum):
    """Whose answer a poll asks for."""

    MEMBERS = "members"
    ELECTORS = "electors"


@dataclass(frozen=True, slots=True)
class OpenPoll:
    """Command: put a question to the members or electors there are now.

    Attributes:
        quorum: how many must have voted before anything is decided; 0 is none.
        expires_ms: Unix time until which votes are welcome, 0 for no end. Only told.
    """

    question: str
    options: tuple[str, ...]
    rule: PollRule = PollRule.MAJORITY
    quorum: int = 0
    electorate: Electorate = Electorate.MEMBERS
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class CastVote:
    """Command: vote for an option, by its index. It cannot be changed."""

    poll: OperationId
    choice: int


@dataclass(frozen=True, slots=True)
class ClosePoll:
    """Command of the opener: stop waiting, and go by the votes that are here."""

    poll: OperationId


@dataclass(frozen=True, slots=True)
class GiveDelegation:
    """Command: let somebody act in the own name. See `DelegateBody` for the fields."""

    delegate: PublicKey
    scopes: tuple[Scope, ...]
    subject: bytes | None = None
    topic: bytes = b""
    until_epoch: int = 0
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class RevokeDelegation:
    """Command of the delegator: take a delegation back. What the delegate did and is known here stays."""

    delegation: OperationId


@dataclass(frozen=True, slots=True)
class SubmitFor:
    """Inner command of `ActFor`: submit a task."""

    spec: TaskSpec


@dataclass(frozen=True, slots=True)
class CancelFor:
    """Inner command of `ActFor`: stand for cancelling a task."""

    task: TaskId
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ActFor:
    """Command: do something in another's name, by its delegation."""

    delegation: OperationId
    what: SubmitFor | CancelFor | CastVote | AnswerProposal


CoordinationCommand = (
    AuctionCommand
    | OpenPoll
    | CastVote
    | ClosePoll
    | OpenNegotiation
    | CounterProposal
    | AnswerProposal
    | GiveDelegation
    | RevokeDelegation
    | ActFor
)


class CoordinationCommands:
    """Turns commands of the local identity into operation bodies."""

    def __init__(self, key: PublicKey, view: View, length_of: Callable[[PublicKey], int]) -> None:
        """Make it for one pool.

        Args:
            key: the local identity.
            view: the fold.
            length_of: how many operations of an author's chain are here.
        """
        self._key = key
        self._view = view
        self._length_of = length_of
        self._auctions = AuctionCommands(key, view)
        self._negotiation = NegotiationCommands(key, view)

    def body_for(self, command: CoordinationCommand, *, epoch: int = 0, wall_ms: int = 0) -> Body | None:
        """Return the operation a command asks for, or None if it was done already.

        Args:
            command: what is asked for.
            epoch: the epoch the operation will name.
            wall_ms: Unix time; 0 is unknown, and then nothing counts as expired.

        Raises:
            LocalError, LimitExceeded: it cannot be done; nothing was changed.
        """
        if not self._view.members.active(self._key):
            raise NotAuthorised("this node is not an active member of the pool", hint="join the pool first")
        body = self._body(command, epoch, wall_ms)
        if body is not None:
            try:
                # what nobody would decode must never be signed: it would be the end of the own chain
                decode_body(kind_of(body), encode_body(body))
            except CodecError as error:
                raise LocalError(str(error)) from error
        return body

    def _body(self, command: CoordinationCommand, epoch: int, wall_ms: int) -> Body | None:
        match command:
            case OpenAuction() | CommitBid() | CloseAuction() | RevealBid() | SettleAuction():
                return self._auctions.body_for(command, wall_ms)
            case OpenPoll():
                return self._open_poll(command)
            case CastVote():
                return self._vote(command, self._key, wall_ms)
            case ClosePoll(poll):
                return self._close_poll(poll)
            case OpenNegotiation():
                return self._negotiation.negotiate(command, epoch)
            case CounterProposal():
                return self._negotiation.counter(command, epoch, wall_ms)
            case AnswerProposal():
                return self._negotiation.answer(command, self._key, epoch, wall_ms)
            case GiveDelegation():
                return self._delegate(command, epoch)
            case RevokeDelegation(delegation):
                return self._revoke(delegation)
            case ActFor():
                return self._act(command, epoch, wall_ms)
            case _:
                assert_never(command)

    # ------------------------------------------------------------ polls

    def _open_poll(self, command: OpenPoll) -> Body:
        members = self._view.members
        keys = self._view.electors if command.electorate is Electorate.ELECTORS else members.all()
        electorate = tuple(sorted(key for key in keys if members.active(key)))
        if len(electorate) > limits.ELECTORATE_MAX:
            raise LimitExceeded(
                "ELECTORATE_MAX",
                f"the pool has {len(electorate)} members, at most {limits.ELECTORATE_MAX} can vote",
                hint="ask the electors",
            )
        return PollOpenBody(
            command.question, command.options, command.rule, command.quorum, electorate, command.expires_ms
        )

    def _poll(self, poll: OperationId) -> PollView:
        view = self._view.coordination.polls.view(poll)
        if view is None:
            raise NotFound(f"no poll {short(poll)} in this pool")
        return view

    def _vote(self, command: CastVote, voter: PublicKey, wall_ms: int) -> PollVoteBody | None:
        poll = self._poll(command.poll)
        if not 0 <= command.choice < len(poll.options):
            raise LocalError(f"option {command.choice} does not exist; the poll has {len(poll.options)}, from 0")
        if voter not in poll.electorate:
            raise NotAuthorised("not in the electorate of this poll, which was fixed when it was opened")
        before = poll.votes.get(voter)
        if before is not None and (not before.delegated or voter != self._key):
            if before.option == command.choice:
                return None
            raise Conflict(f"the vote was cast for option {before.option} already, and the first one counts")
        if poll.phase is PollPhase.CLOSED_BY_OPENER:
            raise Conflict("the opener closed the poll")
        check_time("the poll", poll.expires_ms, wall_ms)
        return PollVoteBody(command.poll, command.choice)

    def _close_poll(self, poll: OperationId) -> Body | None:
        view = self._poll(poll)
        if view.opener != self._key:
            raise NotAuthorised("only its opener can close a poll")
        if view.phase is not PollPhase.OPEN:
            return None
        return PollCloseBody(poll, tuple(sorted(choice.operation for choice in view.votes.values())))

    # ------------------------------------------------------------ delegation

    def _delegate(self, command: GiveDelegation, epoch: int) -> Body:
        if command.delegate == self._key:
            raise LocalError("an agent acts in its own name without a delegation")
        if not self._view.members.has(command.delegate):
            raise NotFound("the delegate is not a member of the pool", hint="it has to join first")
        if not command.scopes:
            raise LocalError("a delegation without scopes allows nothing")
        check_epoch("the delegation", command.until_epoch, epoch)
        scopes = tuple(sorted(set(command.scopes)))
        return DelegateBody(
            command.delegate, scopes, command.subject, command.topic, command.until_epoch, command.expires_ms
        )

    def _delegation(self, delegation: OperationId) -> DelegationView:
        given = self._view.coordination.delegations.get(delegation)
        if given is None:
            raise NotFound(f"no delegation {short(delegation)} in this pool")
        return given

    def _revoke(self, delegation: OperationId) -> Body | None:
        given = self._delegation(delegation)
        if given.delegator != self._key:
            raise NotAuthorised("only the delegator can revoke a delegation")
        if given.revoked_at is not None:
            return None
        return RevokeBody(delegation, self._length_of(given.delegate))

    def _act(self, command: ActFor, epoch: int, wall_ms: int) -> Body | None:
        given = self._delegation(command.delegation)
        if given.delegate != self._key:
            raise NotAuthorised("the delegation is for another agent")
        if not self._view.members.active(given.delegator):
            raise NotAuthorised("the delegator is not an active member of the pool")
        check_epoch("the delegation", given.until_epoch, epoch)
        check_time("the delegation", given.expires_ms, wall_ms)
        length = self._length_of(self._key)
        if given.revoked_at is not None and given.revoked_at <= length:
            raise NotAuthorised("the delegation is revoked")
        inner = self._inner(command.what, given.delegator, epoch, wall_ms)
        if inner is None:
            return None
        act = Act(OperationId(b""), given.id, self._key, length, epoch, inner)
        if not self._view.coordination.delegations.covers(given, act):
            raise NotAuthorised(
                "the delegation does not cover this",
                hint="see its scopes, subject and topic, and whether it is revoked",
            )
        return ActBody(given.id, inner)

    def _submit(self, spec: TaskSpec, principal: PublicKey) -> SubmitBody | None:
        spec.check()
        register = self._view.registers.get(task_id(self._view.pool, principal, spec.key))
        if register is None or register.submitted is None:
            return SubmitBody(spec)
        if register.submitted.spec != spec:
            raise Conflict("a different task was submitted with this key", hint="use another key")
        return None

    def _inner(
        self, what: SubmitFor | CancelFor | CastVote | AnswerProposal, principal: PublicKey, epoch: int, wall_ms: int
    ) -> SubmitBody | ClaimBody | PollVoteBody | AnswerBody | None:
        match what:
            case SubmitFor(spec):
                return self._submit(spec, principal)
            case CancelFor(task, reason):
                register = self._view.registers.get(task)
                if register is None or register.submitted is None:
                    raise NotFound(f"no task {short(task)} in this pool")
                if register.settled is not None:
                    raise Conflict(f"task {short(task)} is settled as {register.state.value}")
                if register.submitted.author != principal:
                    raise NotAuthorised("only the submitter, or whoever acts for it, can cancel a task")
                return ClaimBody(task, Purpose.CANCEL, 0, reason)
            case CastVote():
                return self._vote(what, principal, wall_ms)
            case AnswerProposal():
                return self._negotiation.answer(what, principal, epoch, wall_ms)
            case _:
                assert_never(what)
