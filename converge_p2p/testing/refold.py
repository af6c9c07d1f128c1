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

from converge_p2p.core.governance.models import ProtocolRules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import pool_id
from converge_p2p.core.oplog.bodies import Body, ClaimBody, Genesis, Phase, ReportBody, VoteBody
from converge_p2p.core.oplog.motions import OpinionBody
from converge_p2p.core.oplog.operation import Operation, decode_operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PoolId, PublicKey
from converge_p2p.core.view.fold import View
from converge_p2p.testing.checkers import InvariantViolated, held_operations

OBSERVER = Identity.from_seed(b"observer of the simulator".ljust(32, b"."))
"""Neither elector nor member: it folds and never acts."""

HLC_GAP_MAX = 10**6


def check_refold(replica: Replica, stored: tuple[bytes, ...], protocol: ProtocolRules, rng: random.Random) -> None:
    """Fold a replica's operations again in three ways and compare the bytes of the state.

    Args:
        replica: whose log is folded.
        stored: what its disk holds, in the order written.
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
    genesis = next(signed for signed in operations if _is_genesis(signed, replica.pool))
    shuffled = Replica(OBSERVER, replica.pool, protocol=protocol)
    shuffled.handle(ev.Received((genesis,)), ev.Now(0, 0))
    while operations:
        size = rng.randint(1, 8)
        shuffled.handle(ev.Received(tuple(operations[:size])), ev.Now(0, 0))
        del operations[:size]
    restored = Replica(OBSERVER, replica.pool, protocol=protocol)
    restored.handle(ev.Restored(stored), ev.Now(0, 0))
    for name, again in (("in another order", shuffled), ("from its own disk", restored)):
        if again.log.digest() != digest:
            raise InvariantViolated(1, f"the same operations, read {name}, give another frontier")
        if again.view.state_bytes() != expected:
            raise InvariantViolated(1, f"the same operations, read {name}, give another state")


def _is_genesis(signed: bytes, pool: PoolId) -> bool:
    operation = decode_operation(signed, pool, trusted=True)
    return isinstance(operation.body, Genesis) and pool_id(operation.author, operation.body.spec) == pool


def check_perturbed(replica: Replica, identities: Sequence[Identity], protocol: ProtocolRules, seed: int) -> None:
    """Rewrite a replica's log under other clocks and compare what it decides.

    Raises:
        InvariantViolated: 10.
    """
    signers = {identity.public_key: identity for identity in identities}
    originals = [decode_operation(signed, replica.pool, trusted=True) for signed in held_operations(replica)]
    rewritten = _Rewriter(originals, signers, seed).all()
    again = Replica(OBSERVER, replica.pool, protocol=protocol)
    rewritten.sort(key=lambda operation: not isinstance(operation.body, Genesis))
    again.handle(ev.Received(tuple(operation.signed for operation in rewritten)), ev.Now(0, 0))
    if decided(again.view) != decided(replica.view):
        raise InvariantViolated(10, "other clock readings on the same operations decide something else")


def decided(view: View) -> dict[str, object]:
    """What a view decides, without any operation id."""
    tasks: dict[bytes, object] = {}
    for task, register in view.registers.items():
        if register.settled is not None:
            tasks[task] = (register.settled, register.final, register.state)
        elif register.submitted is not None:
            holder = register.holder
            tasks[task] = (
                register.submitted.author,
                register.top,
                None if holder is None else holder.author,
                register.failures(),
                register.attempts(),
            )
    return {"members": view.members.all(), "frozen": dict(view.members.frozen()), "tasks": tasks}


class _Rewriter:
    """Signs every operation again under other clocks, references first."""

    def __init__(self, operations: list[Operation], signers: Mapping[PublicKey, Identity], seed: int) -> None:
        self._operations = {operation.id: operation for operation in operations}
        self._signers = signers
        self._rng = random.Random(seed)
        self._done: dict[OperationId, Operation] = {}

    def all(self) -> list[Operation]:
        """Every operation, rewritten, those that others refer to first."""
        for name in sorted(self._operations):
            self._visit(name)
        return list(self._done.values())

    def _visit(self, name: OperationId) -> None:
        waiting = [name]
        while waiting:
            operation = self._operations[waiting[-1]]
            wanted = [ref for ref in _references(operation) if ref in self._operations and ref not in self._done]
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

    def _new(self, name: OperationId) -> OperationId:
        return self._done[name].id if name in self._done else name

    def _body(self, body: Body) -> Body:
        match body:
            case ReportBody(_, _, _, grants):
                return replace(body, grants=tuple(sorted(self._new(grant) for grant in grants)))
            case VoteBody(ballots):
                return VoteBody(
                    tuple(
                        ballot._replace(ref=self._new(OperationId(ballot.ref)))
                        if ballot.phase is Phase.GRANT
                        else ballot
                        for ballot in ballots
                    )
                )
            case ClaimBody() if body.ref:
                return replace(body, ref=self._new(OperationId(body.ref)))
            case OpinionBody(motion, choice):
                return OpinionBody(self._new(motion), choice)
            case _:
                return body


def _references(operation: Operation) -> list[OperationId]:
    names = [*operation.deps] if operation.prev is None else [operation.prev, *operation.deps]
    match operation.body:
        case ReportBody(_, _, _, grants):
            names.extend(grants)
        case VoteBody(ballots):
            names.extend(OperationId(ballot.ref) for ballot in ballots if ballot.phase is Phase.GRANT)
        case ClaimBody() as body if body.ref:
            names.append(OperationId(body.ref))
        case OpinionBody(motion):
            names.append(motion)
    return names
