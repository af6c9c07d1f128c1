"""Folding the same operations again: in another order, with duplicates, after a restart, and under other clocks.

Knows: how to rewrite a whole log with other clock readings. Must not know: how the log came about.
Source: `docs/protocol.md`, invariants 1 and 10.

Invariant 10 says that perturbing every hybrid logical clock leaves the decided state unchanged. An hlc is part of what
an operation's id commits to, so a perturbed log has other ids, and a run with other clocks breaks ties between ids in
another way and is another run. What can be asked soundly is this: take the final log, give every operation a new hlc
(later than its predecessor's, otherwise arbitrary), rewrite every reference to the new ids, sign everything again, fold
it, and compare what was decided. A fold that looked at a clock anywhere would differ.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.models import ProtocolRules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import pool_id
from converge_p2p.core.model.task import TaskValue
from converge_p2p.core.oplog.bodies import Ballot, Body, ClaimBody, Genesis, Phase, ReportBody, VoteBody
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.motions import OpinionBody
from converge_p2p.core.oplog.operation import Operation, decode_operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PoolId, PublicKey, ValueHash
from converge_p2p.core.view.epochs import EpochValue
from converge_p2p.core.view.fold import View
from converge_p2p.testing.checkers import held_operations
from converge_p2p.testing.ledger import InvariantViolated

OBSERVER = Identity.from_seed(b"observer of the simulator".ljust(32, b"."))
"""Neither elector nor member: it folds and never acts."""

HLC_GAP_MAX = 10**6


def check_refold(
    replica: Replica, stored: tuple[bytes, ...], snapshot: bytes | None, protocol: ProtocolRules, rng: random.Random
) -> None:
    """Fold a replica's operations again in three ways and compare the bytes of the state.

    Args:
        replica: whose log is folded.
        stored: what its disk holds, in the order written.
        snapshot: what that builds on.
        protocol: the rules it ran under.
        rng: draws the order.

    Raises:
        InvariantViolated: 1.
    """
    expected, digest = replica.view.state_bytes(), replica.log.digest()
    operations = list(held_operations(replica))
    rng.shuffle(operations)
    operations += rng.sample(operations, len(operations) // 4)
    # nothing can be judged before the founding terms are known, so they come first, as they do between nodes
    shuffled = Replica(OBSERVER, replica.pool, protocol=protocol)
    if snapshot is None:
        genesis = next(signed for signed in operations if _is_genesis(signed, replica.pool))
        shuffled.handle(ev.Received((genesis,)), ev.Now(0, 0))
    else:
        shuffled.handle(ev.Restored((), snapshot=snapshot), ev.Now(0, 0))
    held = -1
    while held != len(shuffled.log):
        # what names an epoch that is not known yet is refused of a stranger, and comes again
        held = len(shuffled.log)
        start = 0
        while start < len(operations):
            size = rng.randint(1, 8)
            shuffled.handle(ev.Received(tuple(operations[start : start + size])), ev.Now(0, 0))
            start += size
    restored = Replica(OBSERVER, replica.pool, protocol=protocol)
    restored.handle(ev.Restored(stored, snapshot=snapshot), ev.Now(0, 0))
    for name, again in (("in another order", shuffled), ("from its own disk", restored)):
        if again.log.digest() != digest:
            raise InvariantViolated(1, f"the same operations, read {name}, give another frontier")
        if again.view.state_bytes() != expected:
            raise InvariantViolated(1, f"the same operations, read {name}, give another state")
        if again.view.trust.ledger.state() != replica.view.trust.ledger.state():
            raise InvariantViolated(1, f"the same operations, read {name}, give another trust")


def _is_genesis(signed: bytes, pool: PoolId) -> bool:
    operation = decode_operation(signed, pool, trusted=True)
    return isinstance(operation.body, Genesis) and pool_id(operation.author, operation.body.spec) == pool


def check_perturbed(
    replica: Replica, identities: Sequence[Identity], protocol: ProtocolRules, seed: int, *, honest: bool
) -> None:
    """Rewrite a replica's log under other clocks and compare what it decides.

    Args:
        replica: whose log.
        identities: who signed it.
        protocol: the rules it ran under.
        seed: draws the clocks.
        honest: no elector lied. A granter that lies can name two claimants, and their ids break that tie.

    Raises:
        InvariantViolated: 10.
    """
    signers = {identity.public_key: identity for identity in identities}
    originals = [decode_operation(signed, replica.pool, trusted=True) for signed in held_operations(replica)]
    rewritten = _Rewriter(originals, signers, seed).all()
    again = Replica(OBSERVER, replica.pool, protocol=protocol)
    rewritten.sort(key=lambda operation: not isinstance(operation.body, Genesis))
    for _ in range(len(replica.view.epochs)):
        again.handle(ev.Received(tuple(operation.signed for operation in rewritten)), ev.Now(0, 0))
    if decided(again.view, honest=honest) != decided(replica.view, honest=honest):
        raise InvariantViolated(10, "other clock readings on the same operations decide something else")


def decided(view: View, *, honest: bool = True) -> dict[str, object]:
    """What a view decides, without any operation id; of open tasks only who asked for them, if electors lied."""
    tasks: dict[bytes, object] = {}
    for task, register in view.registers.items():
        if register.settled is not None:
            tasks[task] = (register.settled, register.final, register.state)
        elif register.submitted is not None and not honest:
            tasks[task] = register.submitted.author
        elif register.submitted is not None:
            holder = register.holder
            tasks[task] = (
                register.submitted.author,
                register.top,
                None if holder is None else holder.author,
                register.failures(),
                register.attempts(),
            )
    known = [view.motions.get(name) for name, _ in view.motions.state()]
    motions = {
        (motion.author, motion.seq, motion.terms): view.motions.decided(motion.id)
        for motion in known
        if motion is not None
    }
    return {
        "epochs": [view.epochs[number].spec for number in range(len(view.epochs))],
        "members": view.members.all(),
        "frozen": dict(view.members.frozen()),
        "removed": dict(view.members.expelled()),
        "motions": motions,
        "tasks": tasks,
    }


class _Rewriter:
    """Signs every operation again under other clocks, references first."""

    def __init__(self, operations: list[Operation], signers: Mapping[PublicKey, Identity], seed: int) -> None:
        self._operations = {operation.id: operation for operation in operations}
        self._signers = signers
        self._rng = random.Random(seed)
        self._done: dict[OperationId, Operation] = {}
        self._epochs: dict[ValueHash, EpochValue] = {}
        self._values: dict[ValueHash, TaskValue] = {}
        for operation in operations:
            if isinstance(operation.body, ReportBody):
                self._learn(operation.body.value)

    def _learn(self, value: TaskValue) -> None:
        """Note what a value of an epoch register refers to; any other value refers to nothing."""
        try:
            self._epochs[value.hash] = EpochValue.from_bytes(value.result)
        except CodecError:
            return
        self._values[value.hash] = value

    def all(self) -> list[Operation]:
        """Every operation, rewritten, those that others refer to first."""
        for name in sorted(self._operations):
            self._visit(name)
        return list(self._done.values())

    def _visit(self, name: OperationId) -> None:
        waiting = [name]
        while waiting:
            operation = self._operations[waiting[-1]]
            wanted = [ref for ref in self._references(operation) if ref in self._operations and ref not in self._done]
            if wanted and operation.id not in self._done:
                waiting.extend(wanted)
                continue
            waiting.pop()
            if operation.id not in self._done:
                self._done[operation.id] = self._rewrite(operation)

    def _rewrite(self, operation: Operation) -> Operation:
        before = None if operation.prev is None else self._done.get(operation.prev)
        last = self._rng.randint(0, 2**60) if before is None else before.hlc
        prev = operation.prev if before is None else before.id
        hlc = last + self._rng.randint(1, HLC_GAP_MAX)
        return sign_operation(
            self._signers[operation.author],
            operation.pool,
            self._body(operation.body),
            seq=operation.seq,
            prev=prev,
            epoch=operation.epoch,
            hlc=hlc,
            deps=tuple(sorted(self._new(ref) for ref in operation.deps)),
        )

    # ------------------------------------------------------------ what is referred to

    def _references(self, operation: Operation) -> list[OperationId]:
        names = [*operation.deps] if operation.prev is None else [operation.prev, *operation.deps]
        match operation.body:
            case ReportBody(_, _, value, grants):
                names.extend(grants)
                names.extend(self._value_references(value.hash))
            case VoteBody(ballots):
                for ballot in ballots:
                    names.extend(self._ballot_references(ballot))
            case ClaimBody(ref=motion) if motion:
                names.append(OperationId(motion))
            case OpinionBody(motion, _, evidence):
                names.extend((motion, *evidence))
        return names

    def _ballot_references(self, ballot: Ballot) -> list[OperationId]:
        names = [cut.head for cut in ballot.held if cut.head is not None]
        if ballot.lock is not None:
            names.extend(self._value_references(ballot.lock.value))
        if ballot.phase is Phase.GRANT:
            names.append(OperationId(ballot.ref))
        else:
            names.extend(self._value_references(ValueHash(ballot.ref)))
        return names

    def _value_references(self, name: ValueHash) -> list[OperationId]:
        names: list[OperationId] = []
        while name in self._epochs:
            epoch = self._epochs[name]
            names.extend((epoch.motion, *epoch.promises))
            names.extend(cut.head for cut in epoch.cuts if cut.head is not None)
            name = ValueHash(epoch.before)
        return names

    # ------------------------------------------------------------ what takes its place

    def _new(self, name: OperationId) -> OperationId:
        return self._done[name].id if name in self._done else name

    def _new_cuts(self, cuts: tuple[Cut, ...]) -> tuple[Cut, ...]:
        return tuple(cut if cut.head is None else cut._replace(head=self._new(cut.head)) for cut in cuts)

    def _new_value(self, name: ValueHash) -> TaskValue | None:
        """The value of an epoch register with the new names in it; None for every other value."""
        epoch = self._epochs.get(name)
        if epoch is None:
            return None
        before = self._new_value(ValueHash(epoch.before))
        renamed = replace(
            epoch,
            motion=self._new(epoch.motion),
            before=epoch.before if before is None else before.hash,
            cuts=self._new_cuts(epoch.cuts),
            promises=tuple(sorted(self._new(promise) for promise in epoch.promises)),
        )
        return replace(self._values[name], result=renamed.to_bytes())

    def _new_hash(self, name: bytes) -> ValueHash:
        value = self._new_value(ValueHash(name))
        return ValueHash(name) if value is None else value.hash

    def _body(self, body: Body) -> Body:
        match body:
            case ReportBody(_, _, value, grants):
                renamed = self._new_value(value.hash)
                names = tuple(sorted(self._new(grant) for grant in grants))
                return replace(body, grants=names, value=value if renamed is None else renamed)
            case VoteBody(ballots):
                return VoteBody(tuple(self._ballot(ballot) for ballot in ballots))
            case ClaimBody(ref=motion) if motion:
                return replace(body, ref=self._new(OperationId(motion)))
            case OpinionBody(motion, choice, evidence):
                return OpinionBody(self._new(motion), choice, tuple(sorted(self._new(name) for name in evidence)))
            case _:
                return body

    def _ballot(self, ballot: Ballot) -> Ballot:
        lock = ballot.lock
        if lock is not None:
            lock = lock._replace(value=self._new_hash(lock.value))
        if ballot.phase is Phase.GRANT:
            ref: bytes = self._new(OperationId(ballot.ref))
        else:
            ref = self._new_hash(ballot.ref)
        return ballot._replace(ref=ref, lock=lock, held=self._new_cuts(ballot.held))
