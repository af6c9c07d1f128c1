"""The invariants, checked by counting again: what was signed, what replicas said, and what they hold at the end.

Knows: every operation that any node ever made durable, and the pool's quorum. Must not know: how a replica derives
its state; where this file and the core count alike, they do so by different code.
Source: `docs/protocol.md`, invariants; the numbers are those of that list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from converge_p2p.core.model.pool import GovernanceKind, PoolSpec
from converge_p2p.core.model.task import Outcome
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Phase, Purpose, ReportBody, Token, VoteBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash


class InvariantViolated(Exception):
    """An invariant does not hold.

    Attributes:
        invariant: its number in the list, 0 for what the machine itself promises (no crash, no refused operation).
    """

    def __init__(self, invariant: int, message: str) -> None:
        super().__init__(f"invariant {invariant}: {message}")
        self.invariant = invariant

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """Let it cross a process boundary."""
        return InvariantViolated, (self.invariant, str(self).split(": ", 1)[1])


@dataclass(frozen=True, slots=True)
class _Reported:
    author: PublicKey
    value: ValueHash
    worker: PublicKey
    outcome: Outcome


class Ledger:
    """Everything that was signed and may have been seen, and what follows from it by plain counting."""

    def __init__(self, spec: PoolSpec, liars: Collection[PublicKey]) -> None:
        self._electors = frozenset(spec.electors)
        self._liars = frozenset(liars)
        dictatorial = spec.governance is GovernanceKind.DICTATORIAL
        self._quorum = 1 if dictatorial else spec.quorum or (len(spec.electors) + spec.faults) // 2 + 1
        self._ids: set[OperationId] = set()
        self._claims: dict[OperationId, tuple[PublicKey, Purpose]] = {}
        self._ballots: dict[tuple[PublicKey, TaskId, int, int, Phase], Ballot] = {}
        self._votes: dict[tuple[Phase, TaskId, Token], dict[bytes, set[PublicKey]]] = defaultdict(dict)
        self._reports: dict[tuple[TaskId, Token], list[_Reported]] = defaultdict(list)
        self._settled: dict[TaskId, dict[ValueHash, Token]] = defaultdict(dict)
        self._shown: dict[TaskId, tuple[object, ...]] = {}
        self._winners: dict[tuple[TaskId, Token], int] = {}
        self.chains: dict[PublicKey, dict[int, set[OperationId]]] = defaultdict(dict)
        self.acknowledged: dict[OperationId, int] = {}

    # ------------------------------------------------------------ while it runs

    def signed(self, operation: Operation) -> None:
        """An operation became durable at its author, so that others may see it.

        Raises:
            InvariantViolated: 2, 3 or 7, by the votes alone.
        """
        if operation.id in self._ids:
            return
        self._ids.add(operation.id)
        branch = self.chains[operation.author].setdefault(operation.seq, set())
        branch.add(operation.id)
        if len(branch) > 1 and operation.author not in self._liars:
            raise InvariantViolated(8, f"{_short(operation.author)} is honest and forked at seq {operation.seq}")
        match operation.body:
            case ClaimBody(_, purpose):
                self._claims[operation.id] = operation.author, purpose
            case ReportBody(task, number, value):
                reported = _Reported(operation.author, value.hash, value.worker, value.outcome)
                self._reports[task, Token(operation.epoch, number)].append(reported)
            case VoteBody(ballots) if operation.author in self._electors:
                for ballot in ballots:
                    self._cast(operation.author, operation.epoch, ballot)

    def _cast(self, elector: PublicKey, epoch: int, ballot: Ballot) -> None:
        subject = (elector, ballot.task, epoch, ballot.round, ballot.phase)
        if self._ballots.setdefault(subject, ballot) != ballot:
            raise InvariantViolated(7, f"{_short(elector)} voted twice: {self._ballots[subject]} and {ballot}")
        token = Token(epoch, ballot.round)
        voters = self._votes[ballot.phase, ballot.task, token].setdefault(ballot.ref, set())
        voters.add(elector)
        if len(voters) < self._quorum:
            return
        if ballot.phase is Phase.GRANT and len(self._certified(ballot.task, token)) > 1:
            raise InvariantViolated(2, f"two claims of task {_short(ballot.task)} are certified in round {token}")
        if ballot.phase is Phase.ACCEPT:
            settled = self._settled[ballot.task]
            settled.setdefault(ValueHash(ballot.ref), token)
            if len(settled) > 1:
                rounds = sorted(settled.values())
                raise InvariantViolated(3, f"task {_short(ballot.task)} is settled twice, in rounds {rounds}")

    def _certified(self, task: TaskId, token: Token) -> list[OperationId]:
        options = self._votes.get((Phase.GRANT, task, token), {})
        return [OperationId(claim) for claim, voters in options.items() if len(voters) >= self._quorum]

    def told(self, node: int, notice: ev.Notice, replica: Replica, *, honest: bool) -> None:
        """A replica told its application something.

        Raises:
            InvariantViolated: it contradicts what was said before, here or elsewhere.
        """
        match notice:
            case ev.Acknowledged(operation):
                self.acknowledged[operation] = node
            case ev.ClaimWon(task, epoch, number):
                token = Token(epoch, number)
                if self._winners.setdefault((task, token), node) != node:
                    other = self._winners[task, token]
                    raise InvariantViolated(
                        2, f"nodes {other} and {node} both won round {token} of task {_short(task)}"
                    )
            case ev.TaskChanged(task, state):
                register = replica.view.registers[task]
                if not state.terminal:
                    return
                shown = (state, register.settled)
                if self._shown.setdefault(task, shown) != shown:
                    raise InvariantViolated(
                        3, f"node {node} shows task {_short(task)} as {state.value}, another showed another outcome"
                    )
            case ev.ForkDetected(author, seq) if author not in self._liars:
                raise InvariantViolated(8, f"node {node} froze honest {_short(author)} from seq {seq}")
            case ev.Rejected(_, reason) if honest and not self._liars and reason != "no_genesis":
                raise InvariantViolated(0, f"node {node} refused an honest operation or message: {reason}")

    # ------------------------------------------------------------ at the end

    def check_settlements(self) -> None:
        """Check invariant 9 for every settled value.

        Raises:
            InvariantViolated: the value was not reported by whoever held the round, or is credited to somebody else.
        """
        for task, values in self._settled.items():
            for value, token in values.items():
                if not any(report.value == value for report in self._held_reports(task, token)):
                    raise InvariantViolated(9, f"task {_short(task)}: the holder of {token} never reported the result")
                # where electors voted for the value first, it was no lock yet: its own author must have held the round
                first = min(
                    voted
                    for phase, name, voted in self._votes
                    if name == task and phase is not Phase.GRANT and value in self._votes[phase, name, voted]
                )
                reports = self._held_reports(task, first)
                if not any(report.value == value and report.worker == report.author for report in reports):
                    raise InvariantViolated(9, f"task {_short(task)}: the result is credited to somebody else")

    def _held_reports(self, task: TaskId, token: Token) -> list[_Reported]:
        holders = {self._claims[claim][0] for claim in self._certified(task, token) if claim in self._claims}
        return [report for report in self._reports.get((task, token), ()) if report.author in holders]

    def check_replicas(self, replicas: Mapping[int, Replica]) -> None:
        """Check what honest replicas hold after healing.

        Raises:
            InvariantViolated: 1, 3, 5 or 8.
        """
        nodes = list(replicas)
        first = replicas[nodes[0]]
        for node in nodes[1:]:
            if replicas[node].view.state_bytes() != first.view.state_bytes():
                raise InvariantViolated(1, f"nodes {nodes[0]} and {node} hold the same operations and other states")
        for node, replica in replicas.items():
            for task, register in replica.view.registers.items():
                if register.conflict:
                    raise InvariantViolated(3, f"node {node} saw two certificates for task {_short(task)}")
            for operation, author in self.acknowledged.items():
                if author in replicas and not replica.log.holds(operation):
                    raise InvariantViolated(
                        5, f"node {node} lacks operation {_short(operation)}, acknowledged by node {author}"
                    )
        self._check_forks(replicas)

    def _check_forks(self, replicas: Mapping[int, Replica]) -> None:
        for author, chain in self.chains.items():
            for seq, branches in sorted(chain.items()):
                seen = {branch for branch in branches for replica in replicas.values() if replica.log.holds(branch)}
                if len(seen) < 2:
                    continue
                for node, replica in replicas.items():
                    frozen = replica.log.frozen_at(author)
                    if frozen is None or frozen > seq:
                        raise InvariantViolated(8, f"node {node} misses the fork of {_short(author)} at seq {seq}")


def lagging(replicas: Mapping[int, Replica]) -> list[int]:
    """Nodes whose frontier is not that of most."""
    digests = {node: replica.log.digest() for node, replica in replicas.items()}
    counts = list(digests.values())
    most = max(counts, key=counts.count)
    return [node for node, digest in digests.items() if digest != most]


def held_operations(replica: Replica) -> Iterable[bytes]:
    """Every operation a replica holds, those of forked authors too."""
    for author in sorted(replica.log.chains):
        yield from replica.log.read(author, 0, replica.log.length(author))
        yield from replica.log.read_loose(author)


def _short(name: bytes) -> str:
    return name.hex()[:8]
