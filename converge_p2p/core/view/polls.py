"""Polls: a question, an electorate that is fixed when it is put, and when the answer can no longer change.

Knows: how votes of a poll are counted. Must not know: clocks, or who is asked to vote.
Source: `docs/protocol.md`, polls. Members of the electorate are counted, never only the votes cast: a majority of those
who happened to be heard is another majority on every replica.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import NamedTuple

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.oplog.coordination import PollCloseBody, PollOpenBody, PollRule, PollVoteBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.delegation import Act, Delegations
from converge_p2p.core.view.firsts import FirstOfAuthor


class PollPhase(Enum):
    """How far a poll is."""

    OPEN = "open"
    DECIDED = "decided"
    UNDECIDABLE = "undecidable"
    CLOSED_BY_OPENER = "closed_by_opener"


class Poll(NamedTuple):
    """A question as it was put."""

    id: OperationId
    opener: PublicKey
    terms: PollOpenBody


class Choice(NamedTuple):
    """The vote of one member that counts.

    Attributes:
        delegated: a delegate cast it. The member can still take it back, by a vote of its own or a revocation.
    """

    operation: OperationId
    option: int
    delegated: bool


class PollView(NamedTuple):
    """A poll as a replica sees it.

    Attributes:
        votes: member → its vote.
        counts: votes for each option.
        phase: OPEN; DECIDED: no further vote changes the winner; UNDECIDABLE: no option can win any more;
            CLOSED_BY_OPENER: the opener stopped waiting, and the winner is that of the votes it named.
        winner: index of the option, or None.
        final: nothing but a fork of a voter can change it. False while it rests on delegated votes, and whenever the
            opener closed the poll: members it did not name may still decide otherwise.
        missing: votes that the opener named and that are not here yet, or were taken back.
    """

    id: OperationId
    opener: PublicKey
    question: str
    options: tuple[str, ...]
    rule: PollRule
    quorum: int
    electorate: tuple[PublicKey, ...]
    expires_ms: int
    votes: Mapping[PublicKey, Choice]
    counts: tuple[int, ...]
    phase: PollPhase
    winner: int | None
    final: bool
    missing: int


class Polls:
    """All polls of a pool."""

    def __init__(self, delegations: Delegations) -> None:
        self._delegations = delegations
        self._polls: dict[OperationId, Poll] = {}
        self._votes: FirstOfAuthor[OperationId, int] = FirstOfAuthor()
        self._acts: dict[OperationId, dict[OperationId, Act]] = {}
        self._closes: FirstOfAuthor[OperationId, tuple[OperationId, ...]] = FirstOfAuthor()

    # ------------------------------------------------------------ adding

    def apply(self, operation: Operation, body: PollOpenBody | PollVoteBody | PollCloseBody) -> None:
        """Note an operation."""
        match body:
            case PollOpenBody():
                self._polls[operation.id] = Poll(operation.id, operation.author, body)
            case PollVoteBody(poll, choice):
                self._votes.add(poll, operation, choice)
            case PollCloseBody(poll, votes):
                self._closes.add(poll, operation, votes)

    def void(self, operation: Operation, body: PollOpenBody | PollVoteBody | PollCloseBody) -> None:
        """Take an operation back whose author forked."""
        match body:
            case PollOpenBody():
                self._polls.pop(operation.id, None)
            case PollVoteBody(poll):
                self._votes.void(poll, operation)
            case PollCloseBody(poll):
                self._closes.void(poll, operation)

    def add_act(self, act: Act, body: PollVoteBody) -> None:
        """Note a vote in another's name."""
        self._acts.setdefault(body.poll, {})[act.operation] = act

    def void_act(self, act: Act, body: PollVoteBody) -> None:
        """Take a vote in another's name back, whose author forked."""
        self._acts.get(body.poll, {}).pop(act.operation, None)

    # ------------------------------------------------------------ reading

    @property
    def ids(self) -> list[OperationId]:
        """Every poll, by id."""
        return sorted(self._polls)

    def view(self, poll: OperationId) -> PollView | None:
        """A poll, or None if it is not known or its opener forked."""
        put = self._polls.get(poll)
        if put is None:
            return None
        terms, votes = put.terms, self._tally(put)
        phase, winner, final, missing = self._result(put, votes)
        return PollView(
            poll,
            put.opener,
            terms.question,
            terms.options,
            terms.rule,
            terms.quorum,
            terms.electorate,
            terms.expires_ms,
            votes,
            _counts(terms, votes),
            phase,
            winner,
            final,
            missing,
        )

    def _tally(self, put: Poll, named: Collection[OperationId] | None = None) -> dict[PublicKey, Choice]:
        """The vote of each member: its own first one, else the least of those cast in its name.

        An own vote goes before a delegate's, whichever came first: between two chains nobody can say which that was.
        """
        electorate, options = set(put.terms.electorate), len(put.terms.options)
        votes: dict[PublicKey, Choice] = {}
        for member, said in sorted(self._votes.by_author(put.id).items()):
            if member in electorate and said.content < options and (named is None or said.operation in named):
                votes[member] = Choice(said.operation, said.content, False)
        acts = self._acts.get(put.id, {})
        for operation in sorted(acts):
            act = acts[operation]
            assert isinstance(act.inner, PollVoteBody)
            if act.inner.choice >= options or (named is not None and operation not in named):
                continue
            member_or_none = self._delegations.principal(act)
            if member_or_none in electorate and member_or_none is not None:
                votes.setdefault(member_or_none, Choice(operation, act.inner.choice, True))
        return votes

    def _result(self, put: Poll, votes: Mapping[PublicKey, Choice]) -> tuple[PollPhase, int | None, bool, int]:
        own = {member: choice for member, choice in votes.items() if not choice.delegated}
        winner, possible = decide(put, votes)
        if winner is not None:
            return PollPhase.DECIDED, winner, decide(put, own)[0] == winner, 0
        if not possible:
            return PollPhase.UNDECIDABLE, None, not decide(put, own)[1], 0
        close = self._closes.of(put.id, put.opener)
        if close is None:
            return PollPhase.OPEN, None, False, 0
        named = self._tally(put, set(close.content))
        missing = len(set(close.content) - {choice.operation for choice in named.values()})
        return PollPhase.CLOSED_BY_OPENER, best_of(put, named), False, missing


def _counts(terms: PollOpenBody, votes: Mapping[PublicKey, Choice]) -> tuple[int, ...]:
    counts = [0] * len(terms.options)
    for choice in votes.values():
        counts[choice.option] += 1
    return tuple(counts)


def decide(put: Poll, votes: Mapping[PublicKey, Choice]) -> tuple[int | None, bool]:
    """The option that wins whatever the others vote, and whether any option can still win.

    Stable: more votes never change a winner, and never make an undecidable poll decidable.
    """
    terms, counts = put.terms, _counts(put.terms, votes)
    silent = len(terms.electorate) - len(votes)
    if terms.rule is PollRule.MAJORITY:
        possible = 2 * (max(counts) + silent) > len(terms.electorate)
    else:
        possible = True
    if not votes or len(votes) < terms.quorum:
        return None, possible
    leader = _leader(put, counts)
    if terms.rule is PollRule.MAJORITY:
        return (leader if 2 * counts[leader] > len(terms.electorate) else None), possible
    mine = _standing(put, counts[leader], leader)
    overtaken = any(
        _standing(put, count + silent, option) > mine for option, count in enumerate(counts) if option != leader
    )
    return (None if overtaken else leader), possible


def best_of(put: Poll, votes: Mapping[PublicKey, Choice]) -> int | None:
    """The winner if nobody else were to vote, or None."""
    terms, counts = put.terms, _counts(put.terms, votes)
    if not votes or len(votes) < terms.quorum:
        return None
    leader = _leader(put, counts)
    if terms.rule is PollRule.MAJORITY and 2 * counts[leader] <= len(terms.electorate):
        return None
    return leader


def _standing(put: Poll, count: int, option: int) -> tuple[int, bytes]:
    # a tie of a plurality goes to the greater hash, which nobody who votes can choose
    return count, tagged_hash("poll-rank", put.id, bytes((option,)))


def _leader(put: Poll, counts: tuple[int, ...]) -> int:
    return max(range(len(counts)), key=lambda option: _standing(put, counts[option], option))
