"""What honest replicas hold at the end of a run, against what was signed in it.

Knows: the replicas that live and are honest, and the ledger. Must not know: how a replica came to hold it.
Source: `docs/protocol.md`, invariants; the numbers are those of that list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from converge_p2p.core import limits
from converge_p2p.core.oplog.bodies import JoinBody, LeaveBody, ReportBody
from converge_p2p.core.oplog.key_bodies import PrekeyBody
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica.installing import out_of_chain
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.retention import subjects_of
from converge_p2p.testing.ledger import InvariantViolated as InvariantViolated, Ledger, short


def check_replicas(ledger: Ledger, replicas: Mapping[int, Replica]) -> None:
    """Check what honest replicas hold after healing.

    Raises:
        InvariantViolated: 1, 3, 4, 5, 6, 8 or 12.
    """
    nodes = list(replicas)
    first = replicas[nodes[0]]
    for node in nodes[1:]:
        if replicas[node].view.state_bytes() != first.view.state_bytes():
            raise InvariantViolated(1, f"nodes {nodes[0]} and {node} hold the same operations and other states")
    for node, replica in replicas.items():
        _check_settled(ledger, node, replica)
        if replica.ready and replica.view.epochs.number != first.view.epochs.number:
            raise InvariantViolated(
                4, f"node {node} is in epoch {replica.view.epochs.number}, another in {first.view.epochs.number}"
            )
        _check_bounds(node, replica)
    _check_acknowledged(ledger, replicas)
    _check_cuts(ledger, replicas)
    _check_forks(ledger, replicas)


def _check_settled(ledger: Ledger, node: int, replica: Replica) -> None:
    for task, register in (*replica.view.registers.items(), *replica.view.changes.items()):
        if register.conflict:
            raise InvariantViolated(3, f"node {node} saw two certificates for {short(task)}")
        number = getattr(register, "number", 0)
        subject = ledger.subjects.get((task, number))
        known = set() if subject is None else set(subject.settled)
        if register.settled is not None and register.settled not in known:
            raise InvariantViolated(3, f"node {node} settled {short(task)} without a certificate")
    for task, _ in replica.view.compacted.endings():
        subject, past = ledger.subjects.get((task, 0)), replica.view.compacted.get(task)
        if subject is None or past is None or set(subject.settled) != {past.value}:
            raise InvariantViolated(3, f"a checkpoint at node {node} settles {short(task)} without a certificate")


def _check_acknowledged(ledger: Ledger, replicas: Mapping[int, Replica]) -> None:
    cuts = _cuts(ledger, replicas)
    places = {name: (author, seq) for author, chain in ledger.chains.items() for seq in chain for name in chain[seq]}
    for operation, author_node in ledger.acknowledged.items():
        author, seq = ledger.data.get(operation, (None, 0))
        if author_node not in replicas or (author is not None and seq >= cuts.get(author, seq + 1)):
            continue
        author_seq = places[operation]
        for node, replica in replicas.items():
            # what a checkpoint covers is in effect, though it is not held: there is one branch of an honest author
            covered = author_seq[1] < replica.log.base(author_seq[0])
            if not (covered or replica.log.holds(operation)):
                raise InvariantViolated(
                    5, f"node {node} lacks operation {short(operation)}, acknowledged by node {author_node}"
                )


def _cuts(ledger: Ledger, replicas: Mapping[int, Replica]) -> dict[PublicKey, int]:
    """Where the data of removed authors ends, by the epoch that the replicas are in."""
    return ledger.cuts(max(0, next(iter(replicas.values())).view.epochs.number))


def _check_cuts(ledger: Ledger, replicas: Mapping[int, Replica]) -> None:
    """What a removed author did beyond its cut has no effect; what it submitted before has."""
    cuts = _cuts(ledger, replicas)
    beyond = {name for name, (author, seq) in ledger.data.items() if author in cuts and seq >= cuts[author]}
    below = {
        task: name
        for name, task in ledger.submits.items()
        if name not in beyond
        and ledger.data[name][0] in cuts
        and ledger.data[name][0] not in ledger.liars
        and any(replica.log.holds(name) for replica in replicas.values())
    }
    for node, replica in replicas.items():
        for register in (*replica.view.registers.values(), *replica.view.changes.values()):
            named = {*register.claims, *(name for one in register.releases.values() for name in one)}
            named.update(name for votes in register.rounds.values() for name in votes.reports)
            submitted = getattr(register, "submitted", None)
            if submitted is not None:
                named.add(submitted.operation)
            if named & beyond:
                raise InvariantViolated(6, f"node {node}: what a removed author did later counts in a task")
        for name in beyond:
            signed = replica.log.get(name)
            if signed is not None and not isinstance(
                decode_operation(signed, replica.pool, trusted=True).body, ReportBody
            ):
                raise InvariantViolated(6, f"node {node} keeps what a removed author did later")
        for task in below:
            survivor = replica.view.registers.get(task)
            if task in replica.view.compacted:
                continue
            if survivor is None or survivor.submitted is None:
                raise InvariantViolated(5, f"node {node} lost task {short(task)} of a member that was removed later")
        for author in cuts:
            if replica.view.members.has(author):
                raise InvariantViolated(6, f"node {node} still counts a removed author as a member")


def _check_forks(ledger: Ledger, replicas: Mapping[int, Replica]) -> None:
    cuts = _cuts(ledger, replicas)
    for author, chain in ledger.chains.items():
        for seq, branches in sorted(chain.items()):
            if seq >= cuts.get(author, seq + 1):
                break
            # below a checkpoint a quorum attested one branch; whoever counts votes of the other passes them on no more
            whole = [replica for replica in replicas.values() if replica.log.base(author) <= seq]
            seen = {branch for branch in branches for replica in whole if replica.log.holds(branch)}
            if len(seen) < 2:
                continue
            for node, replica in replicas.items():
                frozen = replica.log.frozen_at(author)
                if replica not in whole:
                    continue
                if frozen is None or frozen > seq:
                    raise InvariantViolated(8, f"node {node} misses the fork of {short(author)} at seq {seq}")


def _check_bounds(node: int, replica: Replica) -> None:
    """What anybody can make a replica keep is bounded."""
    for author, chain in replica.log.chains.items():
        if replica.log.parking.count(author) > limits.PARKED_PER_AUTHOR_MAX:
            raise InvariantViolated(12, f"node {node} parks too much of {short(author)}")
        if chain.data_count > limits.FORK_LOOSE_PER_AUTHOR_MAX + 1:
            raise InvariantViolated(12, f"node {node} keeps too many loose operations of {short(author)}")
    _check_compacted(node, replica)
    if len(replica.peers) > limits.PEERS_MAX:
        raise InvariantViolated(12, f"node {node} keeps the state of too many peers")


def _check_compacted(node: int, replica: Replica) -> None:
    """Below a checkpoint nothing is kept but the ends of chains and what is not decided, or asked for ever."""
    log, view = replica.log, replica.view
    ends = {chain.base_head for chain in log.chains.values()}
    standing: dict[tuple[PublicKey, str], int] = {}
    for name, signed in log.below.items():
        operation = decode_operation(signed, replica.pool, trusted=True)
        subjects = subjects_of(replica.pool, operation)
        if name in ends:
            continue
        if subjects is not None and all(subject in view.compacted for subject in subjects):
            raise InvariantViolated(12, f"node {node} keeps an operation about tasks that a checkpoint covers")
        kind = {JoinBody: "membership", LeaveBody: "membership", PrekeyBody: "prekey"}.get(type(operation.body))
        if kind is not None and operation.seq < view.successions.revocable_from(operation.author):
            standing[operation.author, kind] = standing.get((operation.author, kind), 0) + 1
    # of a key whose place was taken two may stay: the last, and the last before its end
    if any(count > 2 for count in standing.values()):
        raise InvariantViolated(12, f"node {node} keeps joins or prekeys that others took the place of")


def lagging(replicas: Mapping[int, Replica]) -> list[int]:
    """Nodes whose frontier is not that of most."""
    digests = {node: replica.log.digest() for node, replica in replicas.items()}
    counts = list(digests.values())
    most = max(counts, key=counts.count, default=None)
    return [node for node, digest in digests.items() if digest != most]


def held_operations(replica: Replica) -> Iterable[bytes]:
    """Every operation a replica holds, those of forked authors too."""
    for author in sorted(replica.log.chains):
        yield from replica.log.read(author, 0, replica.log.length(author))
        yield from replica.log.read_loose(author)
    yield from out_of_chain(replica.view, replica.log)
