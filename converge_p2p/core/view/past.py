"""What is kept of a task that was settled, when a checkpoint lets go of the operations that it came from.

Knows: how it ended, and which of what was said may still matter: a late vote can complete what was short of a quorum.
Must not know: tables and snapshots (see `settled`), or what trust makes of it.
Source: `docs/protocol.md`, checkpoints.

Everything here is a function of the operations inside a cut. From the round on in which a task was settled first
nothing counts any more but its result, so that of a task that went well hardly anything has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from converge_p2p.core.model.task import Outcome
from converge_p2p.core.oplog.bodies import Purpose, Token
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.epochs import Epochs
from converge_p2p.core.view.register import StandingClaim, Vote
from converge_p2p.core.view.tasks import TaskRegister

SEVERAL = ValueHash(b"")
"""In place of a value: more than one was reported in one round, and that is all that matters."""


@dataclass(slots=True)
class Evidence:
    """What is known of the attempts at one task, settled or not.

    Attributes:
        granted: round → claim → electors that granted it.
        expired: round → electors that said that its holder ran out of time.
        reported: (round, author) → report operation → value.
    """

    granted: dict[Token, dict[OperationId, set[PublicKey]]] = field(default_factory=dict)
    expired: dict[Token, set[PublicKey]] = field(default_factory=dict)
    reported: dict[tuple[Token, PublicKey], dict[OperationId, ValueHash]] = field(default_factory=dict)


class Attempts(NamedTuple):
    """What was said about rounds, each part sorted. Sets of electors are bits, by the order of their keys.

    Attributes:
        accepted: rounds before the one that settled it, in which some accepted the same value.
        granted: rounds and claims.
        expired: rounds whose holder ran out of time.
        claims: claims to work, and whose; only where rounds before the one that settled it are of interest.
        releases: author, round, and whether it failed.
        reported: round, author and value.
        strays: round, value, elector and the number of the vote, where another value was accepted.
    """

    accepted: tuple[tuple[Token, int], ...] = ()
    granted: tuple[tuple[Token, OperationId, int], ...] = ()
    expired: tuple[tuple[Token, int], ...] = ()
    claims: tuple[tuple[OperationId, PublicKey], ...] = ()
    releases: tuple[tuple[PublicKey, Token, bool], ...] = ()
    reported: tuple[tuple[Token, PublicKey, ValueHash], ...] = ()
    strays: tuple[tuple[Token, ValueHash, PublicKey, int], ...] = ()

    def tokens(self) -> Iterator[Token]:
        """Every round that is named."""
        for part in (self.accepted, self.granted, self.expired, self.reported, self.strays):
            yield from (row[0] for row in part)
        yield from (token for _, token, _ in self.releases)


class Past(NamedTuple):
    """A task that was settled.

    Attributes:
        value: hash of what it was settled on.
        final: hash of what it ended with: another one if that was denied.
        asked: whether it was for vetoers to deny it.
        outcome, worker: of what it was settled on.
        submitter: who asked for it.
        contexts: what work on it says something about.
        first: the first round in which enough electors accepted.
        accepted: who did.
        attempts: what else was said.
    """

    value: ValueHash
    final: ValueHash
    asked: bool
    outcome: Outcome
    worker: PublicKey
    submitter: PublicKey
    contexts: tuple[bytes, ...]
    first: Token
    accepted: int
    attempts: Attempts

    @property
    def ended(self) -> Outcome:
        """How it ended for whoever asked for it."""
        return self.outcome if self.final == self.value else Outcome.FAILED

    @property
    def plain(self) -> Attempts:
        """What was said if all went well: whoever it is credited to reported it once, where it was settled."""
        return Attempts(reported=((self.first, self.worker, self.value),))


class PastTask(TaskRegister):
    """The register of a task of which only this is left. It counts whatever still comes, like any other."""

    __slots__ = ("past",)

    def __init__(self, task: TaskId, epochs: Epochs, past: Past) -> None:
        super().__init__(task, epochs)
        self.past = past
        self.settled, self.settled_token = past.value, past.first
        for token, voters in ((past.first, past.accepted), *past.attempts.accepted):
            accepted = self.round(token).accepted.setdefault(past.value, {})
            for elector in _electors(epochs, token, voters):
                accepted[elector] = Vote(0, OperationId(b""))
        for token, value, elector, seq in past.attempts.strays:
            self.round(token).accepted.setdefault(value, {})[elector] = Vote(seq, OperationId(b""))
        for operation, author in past.attempts.claims:
            self.claims[operation] = StandingClaim(operation, author, 0, Purpose.WORK, 0, "")
        for author, token, failed in past.attempts.releases:
            self.releases[author, token] = {OperationId(b""): failed}

    @property
    def submitter(self) -> PublicKey | None:
        """Who asked for it."""
        return self.past.submitter

    @property
    def contexts(self) -> tuple[bytes, ...]:
        """What work on it says something about."""
        return self.past.contexts

    @property
    def credited(self) -> tuple[Outcome, PublicKey] | None:
        """How it ended, and who did it."""
        return self.past.outcome, self.past.worker

    def decided(self) -> list[object]:
        """What it ended with."""
        return [1, self.past.final]

    def evidence(self) -> Evidence:
        """What is known of the attempts."""
        found, attempts = Evidence(), self.past.attempts
        for token, claim, voters in attempts.granted:
            found.granted.setdefault(token, {})[claim] = set(_electors(self.epochs, token, voters))
        for token, voters in attempts.expired:
            found.expired[token] = set(_electors(self.epochs, token, voters))
        for token, author, value in attempts.reported:
            names = (b"first", b"second") if value == SEVERAL else (value,)
            found.reported[token, author] = {OperationId(name): ValueHash(name) for name in names}
        return found


def past_of(register: TaskRegister, evidence: Evidence, first: Token) -> Past | None:
    """What is to be kept of a task, or None if it has to stay whole for now.

    It stays whole as long as its result may be denied, or its submit or the content of its value is not known; and if
    somebody submitted it in another's name, which a revocation can still take back.

    Args:
        register: of a task that was settled.
        evidence: what is known of the attempts.
        first: the first round in which enough electors accepted.
    """
    epochs, credited, submitter = register.epochs, register.credited, register.submitter
    if register.settled is None or credited is None or submitter is None:
        return None
    final, asked = register.settled, register.veto is not None
    if isinstance(register, PastTask):
        final, asked = register.past.final, register.past.asked
    elif register.final is None or register.submitted is None or register.submitted.delegate is not None:
        return None
    else:
        final = register.final.hash
    outcome, worker = credited
    # who gave up held the round that was settled: whoever else gave up meanwhile held one before
    last = Token(first.epoch, first.round + 1) if outcome is Outcome.FAILED else first
    accepted = {token: votes.accepted.get(register.settled, {}) for token, votes in register.rounds.items()}
    below = sorted(
        (token, _bits(epochs, token, voters)) for token, voters in accepted.items() if token < first and voters
    )
    granted = tuple(sorted(
        (token, claim, _bits(epochs, token, voters))
        for token, claims in evidence.granted.items() if token < last
        for claim, voters in claims.items() if voters
    ))  # fmt: skip
    expired = tuple(
        (token, _bits(epochs, token, voters))
        for token, voters in sorted(evidence.expired.items())
        if token < last and voters
    )
    claims: tuple[tuple[OperationId, PublicKey], ...] = ()
    if granted or expired or first.round or outcome is Outcome.FAILED:
        work = (claim for claim in register.claims.values() if claim.purpose is Purpose.WORK)
        claims = tuple(sorted((claim.operation, claim.author) for claim in work))
    releases = tuple(
        (author, token, any(said.values()))
        for (author, token), said in sorted(register.releases.items())
        if said and token.round >= 0 and token < last
    )
    attempts = Attempts(
        tuple(below), granted, expired, claims, releases, tuple(_reported(evidence)), tuple(_strays(register))
    )
    return Past(
        register.settled, final, asked, outcome, worker, submitter, register.contexts,
        first, _bits(epochs, first, accepted[first]), attempts,
    )  # fmt: skip


def _reported(evidence: Evidence) -> Iterator[tuple[Token, PublicKey, ValueHash]]:
    for (token, author), values in sorted(evidence.reported.items()):
        several = set(values.values())
        if several:
            yield token, author, SEVERAL if len(several) > 1 else several.pop()


def _strays(register: TaskRegister) -> list[tuple[Token, ValueHash, PublicKey, int]]:
    return sorted(
        (token, value, elector, vote.seq)
        for token, votes in register.rounds.items()
        for value, voters in votes.accepted.items()
        if value != register.settled
        for elector, vote in voters.items()
    )


def _bits(epochs: Epochs, token: Token, voters: Iterable[PublicKey]) -> int:
    """Electors of an epoch as a number: bit 0 is the least key."""
    order = epochs[token.epoch].ranks
    return sum(1 << order[elector] for elector in voters)


def _electors(epochs: Epochs, token: Token, bits: int) -> Iterator[PublicKey]:
    for elector, rank in epochs[token.epoch].ranks.items():
        if bits >> rank & 1:
            yield elector
