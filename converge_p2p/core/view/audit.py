"""The audit of a pool: electors that broke a rule, each with the operations that show it.

Knows: what no honest elector signs, and which votes the log supports. Must not know: what a verdict leads to.
Source: `docs/protocol.md`, audit; accountable safety as in Sheng et al., BFT Protocol Forensics (2021).

Two kinds of findings. A *contradiction* lies in what the elector signed itself: whoever holds the operations can check
it, and nothing that arrives later takes it back. A vote without *support* is one for which nothing held here speaks; an
honest elector held what it voted on and passes it on, so such a finding stands once frontiers are equal. If two values
were certified, one kind or the other names at least as many electors as any two quorums share. What a checkpoint covers
is not judged: a quorum attested it, and what it rests on is held by nobody.

An honest elector has one chain. So of two votes with different `seq` the lower was signed first, or their author forked
and is guilty anyway. Registers forget promises when they are settled; that is why the log is read here, and not they.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Lock, Phase, ReportBody, Token, VoteBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.epochs import Counting, Epochs, EpochValue
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import NOBODY, Grant, Offer, Proposal, Register, Vote
from converge_p2p.core.view.settled import SettledTable


class Rule(Enum):
    """What an elector did."""

    FORK = "signed two operations with one sequence number, or a clock that ran backwards"
    TWO_BALLOTS = "voted twice in one round and phase, for different things"
    VOTE_BELOW_PROMISE = "endorsed or accepted in a round below one that it had promised"
    PROMISE_TOO_LOW = "promised a round that is not above every round it had voted in"
    HIDDEN_LOCK = "hid in a promise what it had accepted"
    FALSE_LOCK = "named in a promise a value that it never accepted"
    VOTE_AFTER_SEAL = "voted in an epoch after its promise for the next one"
    UNSUPPORTED_ENDORSEMENT = "endorsed a value that no report proposed in accordance with the promises it names"
    UNSUPPORTED_ACCEPT = "accepted a value that no quorum endorsed"

    @property
    def is_contradiction(self) -> bool:
        """Whether the elector's own signatures are the proof, whatever else there is that is not held here."""
        return self not in (Rule.UNSUPPORTED_ENDORSEMENT, Rule.UNSUPPORTED_ACCEPT)


class Finding(NamedTuple):
    """An elector broke a rule.

    Attributes:
        elector: who.
        rule: which.
        proof: operations that show it, in the order of their sequence numbers. Of a false lock it is the promise, and
            the elector's chain below it; of a vote without support it is the vote.
        subject: what was voted on; None for a fork.
    """

    elector: PublicKey
    rule: Rule
    proof: tuple[OperationId, ...]
    subject: TaskId | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """Subjects that a checkpoint covers."""

    table: SettledTable
    vetoes: frozenset[TaskId]

    def __contains__(self, subject: object) -> bool:
        """Whether it is one of them."""
        return subject in self.table or subject in self.vetoes


class HeldChain(NamedTuple):
    """What is held of an author.

    Attributes:
        prefix, loose: signed operations; of what a checkpoint covers, what was retained.
        complete: whether everything of it that others hold, and that is judged, is kept here as well.
    """

    author: PublicKey
    prefix: tuple[bytes, ...]
    loose: tuple[bytes, ...]
    complete: bool


def held_chains(log: OperationLog) -> list[HeldChain]:
    """What the log holds now, as values: an audit of a large log can then run in a thread of its own."""
    return [
        HeldChain(
            author,
            (*(item.signed for item in log.retained_of(author)), *chain.signed),
            tuple(chain.loose.values()),
            not chain.overflowing and chain.cut is None,
        )
        for author, chain in sorted(log.chains.items())
    ]


def audit(log: OperationLog, view: View) -> list[Finding]:
    """Find electors that broke a rule, by what the log holds. See `audit_chains`."""
    return audit_chains(held_chains(log), view.pool, view.epochs, Decided(view.compacted, view.vetoes.closed))


def culprits(findings: Iterable[Finding], *, contradictions_only: bool = False) -> list[PublicKey]:
    """Who is named, sorted, each once.

    Args:
        findings: of an audit.
        contradictions_only: leave out who only voted for something that nothing held here supports.
    """
    return sorted({found.elector for found in findings if found.rule.is_contradiction or not contradictions_only})


def audit_chains(
    chains: Iterable[HeldChain], pool: PoolId, epochs: Epochs, decided: Container[object] = ()
) -> list[Finding]:
    """Find electors that broke a rule.

    Args:
        chains: every chain that is held.
        pool: whose they are.
        epochs: those in force so far; votes that name others are not judged.
        decided: subjects that a checkpoint covers; what is said about them is not judged.

    Returns:
        The findings in order of elector, rule and proof; of an elector and a rule at most `limits.AUDIT_FINDINGS_MAX`.
    """
    docket = _Docket(epochs, decided)
    for chain in chains:
        prefix = [decode_operation(signed, pool, trusted=True) for signed in chain.prefix]
        loose = [decode_operation(signed, pool, trusted=True) for signed in chain.loose]
        if not chain.complete:
            docket.incomplete.add(chain.author)
        if epochs.was_elector(chain.author, epochs.number):
            docket.look_for_fork(chain.author, [*prefix, *loose])
        sealed_at = docket.seals([*prefix, *loose])
        for operation in prefix:
            docket.take(operation, sealed_at, whole=True)
        for operation in sorted(loose, key=lambda item: (item.seq, item.id)):
            docket.take(operation, sealed_at, whole=False)
    found = sorted(
        {*docket.findings, *docket.unsupported()},
        key=lambda finding: (finding.elector, _ORDER[finding.rule], finding.proof, finding.subject or b""),
    )
    counts: dict[tuple[PublicKey, Rule], int] = {}
    kept = []
    for finding in found:
        place = (finding.elector, finding.rule)
        counts[place] = counts.get(place, 0) + 1
        if counts[place] <= limits.AUDIT_FINDINGS_MAX:
            kept.append(finding)
    return kept


_Fit = Callable[[int, Iterable[Grant]], bool]
"""Whether the next epoch may be made of these promises, given in an epoch."""

_ORDER = {rule: place for place, rule in enumerate(Rule)}


# ---------------------------------------------------------------- contradictions


@dataclass(slots=True)
class _Said:
    """What an elector said about one subject so far, in the order of its chain."""

    ballots: dict[tuple[Phase, Token], tuple[Ballot, OperationId]] = field(default_factory=dict)
    promised: tuple[Token, OperationId] | None = None
    highest: tuple[Token, OperationId] | None = None
    accepted: dict[Token, tuple[ValueHash, OperationId]] = field(default_factory=dict)
    order: list[Token] = field(default_factory=list)

    def accept(self, token: Token, value: ValueHash, vote: OperationId) -> None:
        """Remember an accept; of two in one round the first."""
        if token not in self.accepted:
            self.accepted[token] = (value, vote)
            insort(self.order, token)

    def accepted_below(self, token: Token) -> Lock | None:
        """The highest accept of the same epoch below a token."""
        place = bisect_left(self.order, token)
        if not place or self.order[place - 1].epoch != token.epoch:
            return None
        return Lock(self.order[place - 1], self.accepted[self.order[place - 1]][0])


class _Docket:
    """Collects what electors said, and what is wrong with it."""

    def __init__(self, epochs: Epochs, decided: Container[object]) -> None:
        self.findings: list[Finding] = []
        self.incomplete: set[PublicKey] = set()
        self._epochs = epochs
        self._decided = decided
        self._said: dict[tuple[PublicKey, TaskId], _Said] = {}
        self._cases: dict[tuple[TaskId, bool], _Case] = {}

    def look_for_fork(self, author: PublicKey, operations: list[Operation]) -> None:
        """Find two operations of one number, or one whose clock is not above its predecessor's."""
        by_id = {operation.id: operation for operation in operations}
        first: dict[int, OperationId] = {}
        for operation in sorted(operations, key=lambda item: (item.seq, item.id)):
            before = None if operation.prev is None else by_id.get(operation.prev)
            other = first.setdefault(operation.seq, operation.id)
            if other != operation.id:
                self.findings.append(Finding(author, Rule.FORK, (other, operation.id)))
            elif before is not None and operation.hlc <= before.hlc:
                self.findings.append(Finding(author, Rule.FORK, (before.id, operation.id)))

    def seals(self, operations: list[Operation]) -> dict[int, Operation]:
        """The first promise of an elector for each epoch, by the epoch that it ends for the elector."""
        found: dict[int, Operation] = {}
        for operation in operations:
            for ballot in self._ballots(operation):
                if ballot.phase is not Phase.GRANT or not self._changes(operation, ballot):
                    continue
                other = found.setdefault(operation.epoch, operation)
                if (operation.seq, operation.id) < (other.seq, other.id):
                    found[operation.epoch] = operation
        return found

    def _ballots(self, operation: Operation) -> tuple[Ballot, ...]:
        epoch = self._epochs.find(operation.epoch)
        if not isinstance(operation.body, VoteBody) or epoch is None or operation.author not in epoch.electors:
            return ()
        return tuple(ballot for ballot in operation.body.ballots if ballot.task not in self._decided)

    def _changes(self, operation: Operation, ballot: Ballot) -> bool:
        """Whether a ballot is about the next epoch."""
        return self._epochs.changes(ballot.task) == operation.epoch + 1

    def _case(self, subject: TaskId, changing: bool) -> _Case:
        case = self._cases.get((subject, changing))
        if case is None:
            case = self._cases[subject, changing] = _Case(subject, self._epochs, changing)
        return case

    def take(self, operation: Operation, sealed_at: Mapping[int, Operation], *, whole: bool) -> None:
        """Judge an operation by what its author said before, and remember it.

        Args:
            operation: the next one.
            sealed_at: see `seals`.
            whole: everything its author signed before it was taken before.
        """
        match operation.body:
            case ClaimBody(task) if task not in self._decided:
                self._case_of(operation, task).authors[operation.id] = operation.author
            case ReportBody(task) as body if task not in self._decided:
                self._case_of(operation, task).take_report(operation, body)
        together: dict[TaskId, dict[Token, ValueHash]] = {}
        for ballot in self._ballots(operation):
            if ballot.phase is Phase.ACCEPT:
                together.setdefault(ballot.task, {})[Token(operation.epoch, ballot.round)] = ValueHash(ballot.ref)
        for ballot in self._ballots(operation):
            changing = self._changes(operation, ballot)
            self._case(ballot.task, changing).take_ballot(operation, ballot)
            said = self._said.setdefault((operation.author, ballot.task), _Said())
            self._judge(operation, ballot, said, together.get(ballot.task, {}), whole=whole)
            seal = sealed_at.get(operation.epoch)
            # a promise stands in a vote of its own: what is in the same one counts as after it
            if seal is not None and not changing and operation.seq >= seal.seq:
                proof = (seal.id,) if seal is operation else (seal.id, operation.id)
                self.findings.append(Finding(operation.author, Rule.VOTE_AFTER_SEAL, proof, ballot.task))
        for ballot in self._ballots(operation):
            _remember(operation, ballot, self._said[operation.author, ballot.task])

    def _case_of(self, operation: Operation, subject: TaskId) -> _Case:
        return self._case(subject, self._epochs.changes(subject) == operation.epoch + 1)

    def _judge(
        self, operation: Operation, ballot: Ballot, said: _Said, together: Mapping[Token, ValueHash], *, whole: bool
    ) -> None:
        """Judge a ballot.

        Args:
            operation: its vote.
            ballot: one of it.
            said: what its elector said about the subject before.
            together: what the same vote accepts.
            whole: see `take`.
        """
        token, elector = Token(operation.epoch, ballot.round), operation.author

        def accuse(rule: Rule, *proof: OperationId) -> None:
            self.findings.append(Finding(elector, rule, proof, ballot.task))

        earlier = said.ballots.get((ballot.phase, token))
        if earlier is not None and earlier[0] != ballot:
            accuse(Rule.TWO_BALLOTS, earlier[1], operation.id)
        if ballot.phase is not Phase.GRANT:
            if said.promised is not None and token < said.promised[0]:
                accuse(Rule.VOTE_BELOW_PROMISE, said.promised[1], operation.id)
            return
        if said.highest is not None and token <= said.highest[0] and earlier is None:
            accuse(Rule.PROMISE_TOO_LOW, said.highest[1], operation.id)
        vote = operation.id
        lock, highest = ballot.lock, said.accepted_below(token)
        # accepts of the same vote count as well: one after the promise, in a lower round, would be wrong anyway
        here = max((at for at in together if at < token), default=None)
        if here is not None and (highest is None or here >= highest.token):
            highest = Lock(here, together[here])
        elif highest is not None:
            vote = said.accepted[highest.token][1]
        if highest is not None and (
            lock is None or lock.token < highest.token or (lock.token == highest.token and lock.value != highest.value)
        ):
            accuse(Rule.HIDDEN_LOCK, *dict.fromkeys((vote, operation.id)))
        elif lock is not None and whole:
            before = said.accepted.get(lock.token)
            if lock.value not in (together.get(lock.token), None if before is None else before[0]):
                accuse(Rule.FALSE_LOCK, operation.id)

    # ------------------------------------------------------------ support

    def unsupported(self) -> Iterator[Finding]:
        """Votes for which nothing held here speaks."""
        for case in self._cases.values():
            for token, votes in sorted(case.rounds.items()):
                if case.hidden(token, self.incomplete):
                    continue
                for value, voters in sorted(votes.endorsed.items()):
                    if not case.proposed(token, value, self._fit):
                        for elector in sorted(voters):
                            vote = case.endorsements[token, value, elector]
                            yield Finding(elector, Rule.UNSUPPORTED_ENDORSEMENT, (vote.operation,), case.id)
                for value, accepts in sorted(votes.accepted.items()):
                    if not case.acceptable(token, value, self._fit):
                        for elector, vote in sorted(accepts.items()):
                            yield Finding(elector, Rule.UNSUPPORTED_ACCEPT, (vote.operation,), case.id)

    def _fit(self, epoch: int, promises: Iterable[Grant]) -> bool:
        """Whether all that the electors accepted in an epoch, before they promised the next one, was endorsed.

        What is below a certificate does not matter: the lock that the next epoch begins with is above it.
        """
        promised = {grant.elector: grant.seq for grant in promises}
        for (_, changing), case in self._cases.items():
            if changing:
                continue
            floor = case.certified_at()
            for token, votes in case.rounds.items():
                if token.epoch != epoch or (floor is not None and token < floor):
                    continue
                for value, voters in votes.accepted.items():
                    before = any(vote.seq < promised.get(elector, -1) for elector, vote in voters.items())
                    if before and not case.justified(Lock(token, value)):
                        return False
        return True


def _remember(operation: Operation, ballot: Ballot, said: _Said) -> None:
    token = Token(operation.epoch, ballot.round)
    said.ballots.setdefault((ballot.phase, token), (ballot, operation.id))
    if said.highest is None or token > said.highest[0]:
        said.highest = (token, operation.id)
    if ballot.phase is Phase.GRANT and (said.promised is None or token > said.promised[0]):
        said.promised = (token, operation.id)
    if ballot.phase is Phase.ACCEPT:
        said.accept(token, ValueHash(ballot.ref), operation.id)


class _Case(Register):
    """A register that is never settled, so that it forgets nothing, and that counts data of frozen authors as well.

    They may have had an effect when an elector voted, so what is proposed here is never less than what it saw.
    """

    __slots__ = ("_changing", "authors", "endorsements")

    def __init__(self, subject: TaskId, epochs: Epochs, changing: bool) -> None:
        super().__init__(subject, epochs)
        self._changing = changing
        self.authors: dict[OperationId, PublicKey] = {}
        """Who made each claim."""
        self.endorsements: dict[tuple[Token, ValueHash, PublicKey], Vote] = {}

    @property
    def is_open(self) -> bool:
        """Always: nothing is settled here."""
        return True

    @property
    def now(self) -> int:
        """The present epoch."""
        return self.epochs.number

    def counting(self, epoch: int) -> Counting:
        """How votes of an epoch are counted."""
        return self.epochs[epoch].changing if self._changing else self.epochs[epoch].counting

    def allows(self, offer: Offer) -> bool:
        """Any value, where no lock binds it: what a claimant may propose is not what certificates differ about."""
        del offer
        return True

    def initial_lock(self, epoch: int, /) -> Lock | None:
        """As in the register of a task; that of an epoch has none."""
        return None if self._changing else super().initial_lock(epoch)

    def add_accept(self, token: Token, elector: PublicKey, value: ValueHash, vote: Vote) -> None:
        """Note an accept; it settles nothing."""
        voters = self.round(token).accepted.setdefault(value, {})
        voters[elector] = min(vote, voters.get(elector, vote))

    # ------------------------------------------------------------ taking

    def take_report(self, operation: Operation, body: ReportBody) -> None:
        """Note a proposal."""
        if self.epochs.find(operation.epoch) is not None:
            self.add_report(Token(operation.epoch, body.round), operation.id, operation.author, body)

    def take_ballot(self, operation: Operation, ballot: Ballot) -> None:
        """Note a vote."""
        token, elector, vote = Token(operation.epoch, ballot.round), operation.author, Vote(operation.seq, operation.id)
        value = ValueHash(ballot.ref)
        match ballot.phase:
            case Phase.GRANT:
                grant = Grant(elector, OperationId(ballot.ref), ballot.lock, None, operation.seq, ballot.held)
                self.add_grant(token, operation.id, grant)
            case Phase.ENDORSE:
                self.add_endorsement(token, elector, value)
                place = (token, value, elector)
                self.endorsements[place] = min(vote, self.endorsements.get(place, vote))
            case Phase.ACCEPT:
                self.add_accept(token, elector, value, vote)

    # ------------------------------------------------------------ judging

    def hidden(self, token: Token, incomplete: set[PublicKey]) -> bool:
        """Whether a valid report of a round may exist of which nothing is kept here."""
        if not incomplete:
            return False
        claimants = [self.authors.get(claim) for claim in self.rounds[token].granted if claim != NOBODY]
        return len(claimants) < len(self.rounds[token].granted) or any(
            claimant is None or claimant in incomplete for claimant in claimants
        )

    def proposed(self, token: Token, value: ValueHash, fit: _Fit) -> bool:
        """Whether some report proposed the value in accordance with the promises it names."""
        return any(
            report.value == value and self._in_accordance(token, report, fit)
            for report in self.rounds[token].reports.values()
        )

    def acceptable(self, token: Token, value: ValueHash, fit: _Fit) -> bool:
        """Whether the value might be accepted in a round."""
        counting = self.counting(token.epoch)
        if counting.rules.endorse is None or not counting.protocol.endorse_phase:
            return self.proposed(token, value, fit)
        return self.justified(Lock(token, value))

    def _in_accordance(self, token: Token, report: Proposal, fit: _Fit) -> bool:
        votes, counting = self.rounds[token], self.counting(token.epoch)
        named = [votes.grants[vote] for vote in report.grants if vote in votes.grants]
        electors = {grant.elector for grant in named}
        # the first round of the fast path is promised to one by everybody, and nothing was accepted before it
        alone = bool(electors) and not token.round and self.epochs[token.epoch].spec.policy.fast_path
        if len(named) != len(report.grants):
            return False
        if not (alone and not self._changing) and not counting.enough(counting.rules.grant, electors, votes.granted):
            return False
        lock = self.binding_lock(token, named)
        if lock is not None:
            usable = all(self.usable(token, grant, counting.protocol) for grant in named)
            return usable and lock.value == report.value
        return not self._changing or fit(token.epoch, self._promises(report))

    def _promises(self, report: Proposal) -> Iterable[Grant]:
        """The promises that a proposed epoch is made of."""
        try:
            names = EpochValue.from_bytes(self.values[report.value].result).promises
        except CodecError:
            return ()
        grants = {vote: grant for votes in self.rounds.values() for vote, grant in votes.grants.items()}
        return [grants[name] for name in names if name in grants]

    def certified_at(self) -> Token | None:
        """The lowest round in which a value was certified."""
        for token, votes in sorted(self.rounds.items()):
            counting = self.counting(token.epoch)
            for voters in votes.accepted.values():
                if counting.enough(counting.rules.accept, voters, votes.accepted):
                    return token
        return None
