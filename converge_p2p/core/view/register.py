"""One task as a register: the claims, promises, reports and votes about it, and what follows from them.

Knows: how votes of one task are counted. Must not know: clocks, the network, or what the local node wants.
Source: `docs/protocol.md`, task register; CASPaxos (arXiv 1802.07000) for a register per key without a log.

Everything here is a set that grows (or loses the data operations of an author that forked), and everything derived is
a function of those sets. That is why the order of arrival does not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.governance.models import ProtocolRules, Ruleset
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, TaskValue
from converge_p2p.core.oplog.bodies import Lock, Purpose, ReportBody, Token
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash


class Submitted(NamedTuple):
    """Who asked for the task, and what for.

    Attributes:
        delegate: who asked in the author's name, or None.
    """

    operation: OperationId
    author: PublicKey
    spec: TaskSpec
    delegate: PublicKey | None = None


class StandingClaim(NamedTuple):
    """A claim operation of a member.

    Attributes:
        principal: in whose name the author claims, or None. The author holds the claim all the same, and reports.
    """

    operation: OperationId
    author: PublicKey
    seq: int
    purpose: Purpose
    bid: int
    reason: str
    principal: PublicKey | None = None

    @property
    def entitled(self) -> PublicKey:
        """Whose right the claim rests on."""
        return self.author if self.principal is None else self.principal


class Grant(NamedTuple):
    """A promise: the elector grants the round to a claim, and tells the highest value it accepted.

    Attributes:
        expired: the round whose holder ran out of time on the elector's clock, if that is why it grants this one.
    """

    elector: PublicKey
    claim: OperationId
    lock: Lock | None
    expired: int | None = None


class Proposal(NamedTuple):
    """A report: a value proposed in a round."""

    operation: OperationId
    author: PublicKey
    value: ValueHash
    grants: tuple[OperationId, ...]


@dataclass(slots=True)
class RoundVotes:
    """Everything about one (epoch, round)."""

    grants: dict[OperationId, Grant] = field(default_factory=dict)
    granted: dict[OperationId, set[PublicKey]] = field(default_factory=dict)
    reports: dict[OperationId, Proposal] = field(default_factory=dict)
    endorsed: dict[ValueHash, set[PublicKey]] = field(default_factory=dict)
    accepted: dict[ValueHash, dict[PublicKey, OperationId]] = field(default_factory=dict)


class Counting(NamedTuple):
    """How votes are counted in an epoch."""

    rules: Ruleset
    protocol: ProtocolRules

    def enough(
        self, threshold: Threshold, voters: Collection[PublicKey], options: Mapping[Any, Collection[PublicKey]]
    ) -> bool:
        """Whether the voters for one option decide, given the voters for each option."""
        if self.protocol.count_members:
            return threshold.satisfied_by(voters)
        return 2 * len(voters) > len({voter for option in options.values() for voter in option})


class TaskRegister:
    """The register of one task."""

    __slots__ = (
        "_certified",
        "_doubled",
        "_proposed",
        "certificate",
        "claims",
        "conflict",
        "counting",
        "expired",
        "id",
        "releases",
        "rounds",
        "settled",
        "settled_token",
        "submitted",
        "top_granted",
        "values",
        "voted",
        "withdrawn",
    )

    def __init__(self, task: TaskId, counting: Counting) -> None:
        self.id = task
        self.counting = counting
        self.submitted: Submitted | None = None
        self.claims: dict[OperationId, StandingClaim] = {}
        self.withdrawn: dict[PublicKey, set[int]] = {}
        """Seqs of the releases of each author: earlier claims of it no longer stand."""
        self.releases: dict[tuple[PublicKey, Token], dict[OperationId, bool]] = {}
        self.rounds: dict[Token, RoundVotes] = {}
        self.voted: dict[Token, RoundVotes] = {}
        """Those of the rounds that electors granted or endorsed in: reports alone cannot make them many."""
        self.top_granted: dict[PublicKey, Token] = {}
        self.values: dict[ValueHash, TaskValue] = {}
        self.expired: dict[Token, set[PublicKey]] = {}
        """Electors that said that the holder of a round ran out of time."""
        self.settled: ValueHash | None = None
        self.settled_token: Token | None = None
        self.certificate: dict[PublicKey, OperationId] = {}
        """The accepts that settled the task: elector → vote operation."""
        self.conflict = False
        """Two values were certified. Cannot happen with at most f lying electors."""
        self._certified: dict[Token, OperationId] = {}
        self._proposed: dict[tuple[Token, PublicKey], ValueHash] = {}
        self._doubled: set[PublicKey] = set()

    # ------------------------------------------------------------ adding

    def round(self, token: Token) -> RoundVotes:
        """The votes of a round, made when first asked for."""
        votes = self.rounds.get(token)
        if votes is None:
            votes = self.rounds[token] = RoundVotes()
        return votes

    def add_grant(self, token: Token, vote: OperationId, grant: Grant) -> None:
        """Count a promise."""
        if self.settled is not None:
            return
        votes = self.voted[token] = self.round(token)
        votes.grants[vote] = grant
        voters = votes.granted.setdefault(grant.claim, set())
        voters.add(grant.elector)
        if token > self.top_granted.get(grant.elector, _BEFORE_ALL):
            self.top_granted[grant.elector] = token
        if grant.expired is not None:
            self.expired.setdefault(Token(token.epoch, grant.expired), set()).add(grant.elector)
        if self.counting.enough(self.counting.rules.grant, voters, votes.granted):
            # two certificates in one round need lying electors; the smaller id is kept so that all replicas agree
            self._certified[token] = min(grant.claim, self._certified.get(token, grant.claim))

    def add_report(self, token: Token, operation: OperationId, author: PublicKey, report: ReportBody) -> None:
        """Note a proposal and the content of its value."""
        self.add_value(report.value)
        if self.settled is not None:
            return
        value = report.value.hash
        self.round(token).reports[operation] = Proposal(operation, author, value, report.grants)
        if self._proposed.setdefault((token, author), value) != value:
            self._doubled.add(author)

    def add_value(self, value: TaskValue) -> None:
        """Remember what a value hash stands for."""
        if self.settled in (None, value.hash):
            self.values[value.hash] = value

    def add_endorsement(self, token: Token, elector: PublicKey, value: ValueHash) -> None:
        """Count an endorsement."""
        if self.settled is not None:
            return
        votes = self.voted[token] = self.round(token)
        votes.endorsed.setdefault(value, set()).add(elector)

    def add_accept(self, token: Token, elector: PublicKey, value: ValueHash, vote: OperationId) -> None:
        """Count an accept; enough of them settle the task for ever."""
        votes = self.round(token)
        voters = votes.accepted.setdefault(value, {})
        voters[elector] = vote
        if not self.counting.enough(self.counting.rules.accept, voters, votes.accepted):
            return
        if self.settled is None:
            self.settled, self.settled_token, self.certificate = value, token, dict(voters)
            self._forget_the_way()
        elif self.settled != value:
            self.conflict = True

    def _forget_the_way(self) -> None:
        """Drop what only mattered until settlement. Accepts stay, so that a second certificate would be noticed."""
        for votes in self.rounds.values():
            votes.grants.clear()
            votes.granted.clear()
            votes.reports.clear()
            votes.endorsed.clear()
        self.voted.clear()
        self._proposed.clear()
        self.values = {key: value for key, value in self.values.items() if key == self.settled}

    # ------------------------------------------------------------ reading

    @property
    def value(self) -> TaskValue | None:
        """The settled value, if settled and its content is known."""
        return None if self.settled is None else self.values.get(self.settled)

    @property
    def top(self) -> Token | None:
        """The highest round that more than f electors granted, at it or above."""
        faults = self.counting.rules.faults
        tokens = self.top_granted.values()
        if len(tokens) <= faults:
            return None
        return max(tokens) if faults == 0 else sorted(tokens, reverse=True)[faults]

    def certified_claim(self, token: Token) -> StandingClaim | None:
        """The claim that holds a round, if a quorum granted it and the claim is known."""
        claim = self._certified.get(token)
        return None if claim is None else self.claims.get(claim)

    def certified_id(self, token: Token) -> OperationId | None:
        """Id of the claim that a quorum granted the round to."""
        return self._certified.get(token)

    @property
    def holder(self) -> StandingClaim | None:
        """The claim that holds the highest round, unless its author released it or the task is settled."""
        token = self.top
        if token is None or self.settled is not None:
            return None
        claim = self.certified_claim(token)
        if claim is None or (claim.author, token) in self.releases:
            return None
        return claim

    @property
    def state(self) -> TaskState:
        """The derived state."""
        value = self.value
        if value is not None:
            return value.outcome.state
        if self.settled is not None:
            # settled on a value whose content is still on its way: nobody has to take it up again
            return TaskState.ASSIGNED
        holder = self.holder
        return TaskState.ASSIGNED if holder is not None and holder.purpose is Purpose.WORK else TaskState.PENDING

    def held_rounds(self) -> Iterator[tuple[Token, StandingClaim]]:
        """Every round whose holder is known."""
        for token, claim in self._certified.items():
            standing = self.claims.get(claim)
            if standing is not None:
                yield token, standing

    def attempts(self) -> int:
        """Rounds in which work was certified."""
        return sum(1 for _, claim in self.held_rounds() if claim.purpose is Purpose.WORK)

    def failures(self) -> int:
        """Rounds of work that failed, or that more than f electors saw run out of time.

        A round that was merely superseded (its promises came too late, say) is nobody's failure.
        """
        count = 0
        for token, claim in self.held_rounds():
            if claim.purpose is not Purpose.WORK:
                continue
            release = self.releases.get((claim.author, token))
            if release is not None:
                count += any(release.values())
            elif len(self.expired.get(token, ())) > self.counting.rules.faults:
                count += 1
        return count

    def exhausted(self, default_retries: int) -> bool:
        """Whether only a failure (or the value of a lock) may still be settled."""
        if self.submitted is None:
            return False
        allowed = self.submitted.spec.max_retries
        return self.failures() > (default_retries if allowed is None else allowed)

    def stands(self, claim: StandingClaim) -> bool:
        """Whether a claim was not withdrawn."""
        return claim.seq > max(self.withdrawn.get(claim.author, ()), default=-1)

    def reported_twice(self, author: PublicKey) -> bool:
        """Whether the author proposed two values in one round."""
        return author in self._doubled

    # ------------------------------------------------------------ the rules of a proposal

    def justified(self, lock: Lock) -> bool:
        """Whether a lock counts: a quorum endorsed its value in its round (where there is an endorse phase)."""
        endorse = self.counting.rules.endorse
        if endorse is None or not self.counting.protocol.endorse_phase:
            return True
        votes = self.rounds.get(lock.token)
        if votes is None:
            return False
        voters = votes.endorsed.get(lock.value, set())
        return self.counting.enough(endorse, voters, votes.endorsed)

    def valid(self, token: Token, report: Proposal) -> bool:
        """Whether a proposal may be endorsed: it rests on a quorum of promises and obeys their highest lock.

        False may still become true, when a promise or the justification of a lock arrives.
        """
        votes, value = self.rounds[token], self.values.get(report.value)
        if value is None:
            return False
        named = [votes.grants[vote] for vote in report.grants if vote in votes.grants]
        if len(named) != len(report.grants) or len({grant.claim for grant in named}) != 1:
            return False
        claim = self.claims.get(named[0].claim)
        if claim is None or claim.author != report.author:
            return False
        if not self.counting.enough(self.counting.rules.grant, {grant.elector for grant in named}, votes.granted):
            return False
        lock = highest_lock(named)
        if lock is None or not self.counting.protocol.lock_rule:
            return self._free_value_allowed(claim, value)
        return lock.value == report.value and self.justified(lock)

    def _free_value_allowed(self, claim: StandingClaim, value: TaskValue) -> bool:
        if value.worker != claim.author:
            return False
        match claim.purpose:
            case Purpose.WORK:
                return value.outcome is not Outcome.CANCELLED
            case Purpose.CANCEL:
                return value.outcome is Outcome.CANCELLED
            case Purpose.FAIL:
                return value.outcome is Outcome.FAILED


def highest_lock(grants: Collection[Grant]) -> Lock | None:
    """The lock of the highest round among promises, or None if none carries one."""
    locks = [grant.lock for grant in grants if grant.lock is not None]
    return max(locks, key=lambda lock: lock.token) if locks else None


_BEFORE_ALL = Token(-1, -1)
