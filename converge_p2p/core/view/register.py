"""A register: the promises, proposals and votes about one subject, and what follows from them.

Knows: how votes on one subject are counted, in rounds of several epochs. Must not know: clocks, the network, what a
subject is about (see `tasks` and `changes`), or what the local node wants.
Source: `docs/protocol.md`, registers; CASPaxos (arXiv 1802.07000) for a register per key without a log.

Everything here is a set that grows (or loses the data operations of an author that forked), and everything derived is
a function of those sets. That is why the order of arrival does not matter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from converge_p2p.core.governance.models import ProtocolRules
from converge_p2p.core.model.task import TaskValue
from converge_p2p.core.oplog.bodies import Lock, Purpose, ReportBody, Token
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.epochs import Counting, Epochs

NOBODY = OperationId(bytes(32))
"""What a grant names where a round is opened for several workers at once."""


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
    ref: bytes = b""
    principal: PublicKey | None = None

    @property
    def entitled(self) -> PublicKey:
        """Whose right the claim rests on."""
        return self.author if self.principal is None else self.principal


class Grant(NamedTuple):
    """A promise: the elector grants the round to a claim, and tells the highest value it accepted.

    Attributes:
        seq: its position in the elector's chain.
        expired: the round whose holder ran out of time on the elector's clock, if that is why it grants this one.
        held: in a promise for the next epoch, how much of each author that it removes the elector holds.
    """

    elector: PublicKey
    claim: OperationId
    lock: Lock | None
    expired: int | None = None
    seq: int = 0
    held: tuple[Cut, ...] = ()


class Proposal(NamedTuple):
    """A report: a value proposed in a round."""

    operation: OperationId
    author: PublicKey
    value: ValueHash
    grants: tuple[OperationId, ...]


class Offer(NamedTuple):
    """A proposal whose content and whose claim are known."""

    token: Token
    claim: StandingClaim
    value: TaskValue
    grants: tuple[OperationId, ...]


class Vote(NamedTuple):
    """Where a vote stands: the position in the elector's chain, and the operation."""

    seq: int
    operation: OperationId


@dataclass(slots=True)
class RoundVotes:
    """Everything about one (epoch, round)."""

    grants: dict[OperationId, Grant] = field(default_factory=dict)
    granted: dict[OperationId, set[PublicKey]] = field(default_factory=dict)
    reports: dict[OperationId, Proposal] = field(default_factory=dict)
    endorsed: dict[ValueHash, set[PublicKey]] = field(default_factory=dict)
    accepted: dict[ValueHash, dict[PublicKey, Vote]] = field(default_factory=dict)


class Register:
    """The register of one subject.

    Abstract to the type checker only: `isinstance` with a class of `ABC` runs code of Python's own, and electors ask
    several times a turn which kind of register they look at.
    """

    __slots__ = (
        "_certified",
        "_doubled",
        "_proposed",
        "_top",
        "_top_at",
        "certificate",
        "claims",
        "conflict",
        "epochs",
        "expired",
        "id",
        "releases",
        "rounds",
        "settled",
        "settled_token",
        "top_granted",
        "values",
        "voted",
        "withdrawn",
    )

    def __init__(self, subject: TaskId, epochs: Epochs) -> None:
        self.id = subject
        self.epochs = epochs
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
        """The accepts that settled the subject: elector → vote operation."""
        self.conflict = False
        """Two values were certified. Cannot happen with at most f lying electors."""
        self._certified: dict[Token, OperationId] = {}
        self._proposed: dict[tuple[Token, PublicKey], ValueHash] = {}
        self._doubled: set[PublicKey] = set()
        self._top: Token | None = None
        self._top_at = _UNKNOWN
        """The epoch in which `_top` was found; the electors' grants in it and its rules are all it follows from."""

    # ------------------------------------------------------------ what a subject is about

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether the subject may be voted on: it was asked for, and nothing is settled."""

    @abstractmethod
    def counting(self, epoch: int) -> Counting:
        """How the votes of an epoch are counted."""

    @property
    @abstractmethod
    def now(self) -> int:
        """The epoch in which the subject is voted on now."""

    @abstractmethod
    def allows(self, offer: Offer) -> bool:
        """Whether a claimant may propose this value, on these promises, where no lock binds it."""

    def initial_lock(self, epoch: int, /) -> Lock | None:
        """The lock that every elector of an epoch begins with.

        It is the highest value that an elector whose promise the epoch is made of had accepted before it promised.

        An honest elector accepts only what a quorum endorsed, and whoever endorsed the epoch saw that. What a forked
        elector says besides counts only if a quorum did endorse it.
        """
        best: Lock | None = None
        for token, votes in self.rounds.items():
            if token.epoch >= epoch:
                continue
            promised = self.epochs[token.epoch + 1].promised
            for value, voters in votes.accepted.items():
                lock = Lock(token, value)
                if best is not None and lock <= best:
                    continue
                before = [elector for elector, vote in voters.items() if vote.seq < promised.get(elector, -1)]
                if not before:
                    continue
                if self.epochs.frozen.issuperset(before) and not self.justified(lock):
                    continue
                best = lock
        return best

    def inherits_justly(self, epoch: int, promised: Mapping[PublicKey, int]) -> bool:
        """Whether what these electors accepted in an epoch, before those seqs, may bind the next one.

        A quorum must have endorsed it. Once a value is settled no quorum endorses another one above it, and what is
        below it does not bind.
        """
        settled, floor = self.settled, self.settled_token
        for token, votes in self.rounds.items():
            if token.epoch != epoch or (floor is not None and token < floor):
                continue
            for value, voters in votes.accepted.items():
                if value == settled or not any(
                    vote.seq < promised.get(elector, -1) for elector, vote in voters.items()
                ):
                    continue
                if settled is not None or not self.justified(Lock(token, value)):
                    return False
        return True

    def confirms(self, token: Token, voters: Collection[PublicKey], votes: RoundVotes) -> bool:
        """Whether the promises of these electors are enough in a round."""
        counting = self.counting(token.epoch)
        return counting.enough(counting.rules.grant, voters, votes.granted)

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
        self._top_at = _UNKNOWN
        if grant.expired is not None:
            self.expired.setdefault(Token(token.epoch, grant.expired), set()).add(grant.elector)
        certified = self._certified.get(token)
        # two certificates in one round need lying electors; the smaller id is kept so that all replicas agree
        if (certified is None or grant.claim < certified) and self.confirms(token, voters, votes):
            self._certified[token] = grant.claim

    def recount(self) -> None:
        """Count the promises of first rounds again, after something changed on which it depends who may grant them."""
        self._top_at = _UNKNOWN
        for token, votes in self.voted.items():
            if token.round == 0:
                enough = [claim for claim, voters in votes.granted.items() if self.confirms(token, voters, votes)]
                self._certified.pop(token, None)
                if enough:
                    self._certified[token] = min(enough)

    def add_report(self, token: Token, operation: OperationId, author: PublicKey, report: ReportBody) -> None:
        """Note a proposal and the content of its value."""
        self.add_value(report.value)
        if self.settled is not None:
            return
        value = report.value.hash
        self.round(token).reports[operation] = Proposal(operation, author, value, report.grants)
        if self._proposed.setdefault((token, author), value) != value:
            self._doubled.add(author)

    def void_release(self, author: PublicKey, operation: Operation) -> None:
        """Take a release back."""
        for key in [key for key in self.releases if key[0] == author]:
            self.releases[key].pop(operation.id, None)
            if not self.releases[key]:
                del self.releases[key]
        self.withdrawn.get(author, set()).discard(operation.seq)

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

    def add_accept(self, token: Token, elector: PublicKey, value: ValueHash, vote: Vote) -> None:
        """Count an accept; enough of them settle the subject for ever."""
        votes = self.round(token)
        voters = votes.accepted.setdefault(value, {})
        # a liar may say it twice; the smaller is kept so that all replicas agree
        voters[elector] = min(vote, voters.get(elector, vote))
        if value == self.settled:
            return
        counting = self.counting(token.epoch)
        if not counting.enough(counting.rules.accept, voters, votes.accepted):
            return
        if self.settled is None:
            self.settled, self.settled_token = value, token
            self.certificate = {voter: said.operation for voter, said in voters.items()}
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
        """The highest round of the present epoch that more than f electors granted, at it or above."""
        now = self.now
        if self._top_at != now:
            self._top, self._top_at = self._find_top(now), now
        return self._top

    def _find_top(self, now: int) -> Token | None:
        faults = self.counting(now).rules.faults
        tokens = [token for token in self.top_granted.values() if token.epoch == now]
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
        """The claim that holds the highest round, unless its author released it or the subject is settled."""
        token = self.top
        if token is None or self.settled is not None:
            return None
        claim = self.certified_claim(token)
        if claim is None or (claim.author, token) in self.releases:
            return None
        return claim

    def held_rounds(self) -> Iterator[tuple[Token, StandingClaim]]:
        """Every round whose holder is known."""
        for token, claim in self._certified.items():
            standing = self.claims.get(claim)
            if standing is not None:
                yield token, standing

    def stands(self, claim: StandingClaim) -> bool:
        """Whether a claim was not withdrawn."""
        return claim.seq > max(self.withdrawn.get(claim.author, ()), default=-1)

    def reported_twice(self, author: PublicKey) -> bool:
        """Whether the author proposed two values in one round."""
        return author in self._doubled

    # ------------------------------------------------------------ the rules of a proposal

    def justified(self, lock: Lock) -> bool:
        """Whether a lock counts: a quorum endorsed its value in its round (where there is an endorse phase)."""
        counting = self.counting(lock.token.epoch)
        endorse = counting.rules.endorse
        if endorse is None or not counting.protocol.endorse_phase:
            return True
        votes = self.rounds.get(lock.token)
        if votes is None:
            return False
        voters = votes.endorsed.get(lock.value, set())
        return counting.enough(endorse, voters, votes.endorsed)

    def usable(self, token: Token, grant: Grant, protocol: ProtocolRules) -> bool:
        """Whether a proposal may rest on a promise: a lock that it carries is of an earlier round, and justified."""
        lock = grant.lock
        if lock is None or not protocol.lock_by_epoch or lock.token.epoch != token.epoch:
            return True
        return lock.token < token and self.justified(lock)

    def binding_lock(self, token: Token, grants: Iterable[Grant]) -> Lock | None:
        """The lock that promises of a round carry, or that the epoch began with; None leaves the value free.

        Locks of another epoch do not count: what mattered of them is in the epoch's initial lock.
        """
        locks = [grant.lock for grant in grants if grant.lock is not None]
        protocol = self.counting(token.epoch).protocol
        initial = self.initial_lock(token.epoch) if protocol.initial_locks else None
        if not protocol.lock_by_epoch:
            every = locks if initial is None else [*locks, initial]
            return max(every, key=lambda lock: lock.token.round, default=None)
        own = [lock for lock in locks if lock.token.epoch == token.epoch]
        return max(own) if own else initial

    def valid(self, token: Token, report: Proposal) -> bool:
        """Whether a proposal may be endorsed: it rests on a quorum of promises and obeys their highest lock.

        False may still become true, when a promise or the justification of a lock arrives.
        """
        votes, value = self.rounds[token], self.values.get(report.value)
        if value is None:
            return False
        named = [votes.grants[vote] for vote in report.grants if vote in votes.grants]
        claims = self._claims_behind(token, report, named)
        if not claims:
            return False
        protocol = self.counting(token.epoch).protocol
        lock = self.binding_lock(token, named)
        if lock is None or not protocol.lock_rule:
            return any(self.allows(Offer(token, claim, value, report.grants)) for claim in claims)
        if not protocol.check_value_against_lock:
            return True
        # whoever endorsed an epoch saw that the locks it begins with are justified
        return lock.value == report.value and all(self.usable(token, grant, protocol) for grant in named)

    def _claims_behind(self, token: Token, report: Proposal, named: list[Grant]) -> list[StandingClaim]:
        """The claim a proposal rests on, if the promises it names are a quorum for it; or any of several, see below."""
        votes, protocol = self.rounds[token], self.counting(token.epoch).protocol
        if not (protocol.check_named_grants and protocol.claims_need_promises):
            return self.claims_of(report.author)
        if len(named) != len(report.grants) or len({grant.claim for grant in named}) != 1:
            return []
        if not self.confirms(token, {grant.elector for grant in named}, votes):
            return []
        if named[0].claim == NOBODY:
            return self.claims_of(report.author)
        claim = self.claims.get(named[0].claim)
        return [claim] if claim is not None and claim.author == report.author else []

    def claims_of(self, author: PublicKey) -> list[StandingClaim]:
        """The claims of an author. Where a round names no claimant, a proposal may rest on any of them.

        Were it the last one, a valid proposal would become invalid when its author claims for something else.
        """
        return [claim for claim in self.claims.values() if claim.author == author]


_BEFORE_ALL = Token(-1, -1)
_UNKNOWN = -2
"""No epoch, and not what stands for none either."""
