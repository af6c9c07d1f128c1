"""What a settled task costs after compaction, and how long a newcomer takes that begins from a checkpoint.

Knows: the pure core. Must not know: networks or stores.

A few thousand tasks are made of real operations: submitted, claimed, granted, reported and accepted by the rules,
signed, and folded. What a newcomer pays for the other settled tasks is a record each, so those are drawn at random and
put into the same table; the root over it is attested by real signatures of a quorum. Above the checkpoint stands a tail
of real operations. Then two replicas speak to each other in memory: one that begins from its own store, and one that
knows nothing but the pool's id. The figure is the time the newcomer's machine spends until both frontiers are equal.
All times are of the processor, so that other work beside it does not count.
"""

from __future__ import annotations

import hashlib
import time

from converge_p2p.core.codec import encode_value
from converge_p2p.core.governance.trust import COMPLETED, TrustEvent, TrustSums
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, PoolPolicy, PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue, task_id
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    Genesis,
    JoinBody,
    Phase,
    ReportBody,
    SubmitBody,
    VoteBody,
)
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.operation import Operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PeerId, TaskId, ValueHash
from converge_p2p.core.view.snapshot import Snapshot
from converge_p2p.core.view.summary import Summary

ELECTORS, WORKERS, BATCH = 5, 8, 64
REAL_TASKS, TAIL_TASKS, ADDED_TASKS, ALL_TASKS = 3_000, 200, 2_000, 100_000


class Person:
    """A chain of operations."""

    def __init__(self, number: int) -> None:
        self.identity = Identity.from_seed(bytes([number + 1]) * 32)
        self.seq, self.prev, self.hlc = 0, None, 0
        self.prev: OperationId | None

    def sign(self, body: Body) -> Operation:
        """Sign the next operation."""
        self.hlc += 1
        operation = sign_operation(self.identity, POOL, body, seq=self.seq, prev=self.prev, epoch=0, hlc=self.hlc)
        self.seq, self.prev = self.seq + 1, operation.id
        return operation


PEOPLE = [Person(number) for number in range(ELECTORS + WORKERS)]
SPEC = PoolSpec(
    "bench",
    bytes(16),
    GovernanceKind.DEMOCRATIC,
    tuple(sorted(person.identity.public_key for person in PEOPLE[:ELECTORS])),
    policy=PoolPolicy(trusted_workers=True),
)
POOL = pool_id(PEOPLE[0].identity.public_key, SPEC)


def rounds(first: int, count: int) -> list[Operation]:
    """Tasks from submit to settlement; electors gather ballots, as they do under load."""
    made: list[Operation] = []
    for start in range(first, first + count, BATCH):
        tasks, claims = [], []
        for number in range(start, min(start + BATCH, first + count)):
            spec = TaskSpec(b"%d" % number, "work", encode_value({"number": number}))
            made.append(PEOPLE[0].sign(SubmitBody(spec)))
            tasks.append(task_id(POOL, PEOPLE[0].identity.public_key, spec.key))
            claims.append(PEOPLE[ELECTORS + number % WORKERS].sign(ClaimBody(tasks[-1])))
        made += claims
        quorum = PEOPLE[: ELECTORS // 2 + 1]
        ballots = tuple(Ballot(Phase.GRANT, task, 0, own.id) for task, own in zip(tasks, claims, strict=True))
        grants = [elector.sign(VoteBody(ballots)) for elector in quorum]
        names = tuple(sorted(grant.id for grant in grants))
        values = []
        for index, task in enumerate(tasks):
            worker = PEOPLE[ELECTORS + (start + index) % WORKERS]
            values.append(TaskValue(Outcome.COMPLETED, worker.identity.public_key, encode_value({"done": index})))
            made.append(worker.sign(ReportBody(task, 0, values[-1], names)))
        made[len(made) - len(tasks) : len(made) - len(tasks)] = grants
        ballots = tuple(Ballot(Phase.ACCEPT, task, 0, value.hash) for task, value in zip(tasks, values, strict=True))
        made += [elector.sign(VoteBody(ballots)) for elector in quorum]
    return made


def grown(snapshot: Snapshot, count: int) -> Snapshot:
    """The snapshot with as many settled tasks as are wanted, the last of them as many as one checkpoint adds."""
    like = next(past for task, _ in snapshot.settled.endings() if (past := snapshot.settled.get(task)) is not None)
    workers = [person.identity.public_key for person in PEOPLE[ELECTORS:]]
    pasts, sums = {}, TrustSums()
    sums.add(snapshot.settled.sums)
    for number in range(count - len(snapshot.settled)):
        task = TaskId(hashlib.sha256(b"task %d" % number).digest())
        value = ValueHash(hashlib.sha256(task).digest())
        past = like._replace(value=value, final=value, worker=workers[number % WORKERS])
        pasts[task] = past._replace(attempts=past.plain)
        sums.count(TrustEvent(task, past.worker, past.contexts, 0, COMPLETED))
    names = list(pasts)
    table = snapshot.settled.extended({name: pasts[name] for name in names[:-ADDED_TASKS]}, sums)
    began = time.process_time()
    table = table.extended({name: pasts[name] for name in names[-ADDED_TASKS:]}, sums)
    made = Snapshot.make(POOL, snapshot.rows, settled=table, epochs=(), retained=snapshot.retained, last=snapshot.last)
    print(f"write a snapshot of {count:,} tasks, in one piece: {time.process_time() - began:.2f} s")
    return made


def converse(helper: Replica, newcomer: Replica) -> tuple[float, int]:
    """Let them speak until both hold the same; return the newcomer's seconds and the bytes it received."""
    names = {id(helper): PeerId("helper"), id(newcomer): PeerId("newcomer")}
    other = {id(helper): newcomer, id(newcomer): helper}
    queue: list[tuple[Replica, ev.Event]] = [(one, ev.PeerUp(names[id(other[id(one)])])) for one in (helper, newcomer)]
    spent, received, now_ms = 0.0, 0, 0
    while helper.log.digest() != newcomer.log.digest() or not newcomer.ready:
        if not queue:
            # nothing is on its way: the digest timers fire
            now_ms += 1000
            queue = [(one, ev.TimerFired(ev.TimerKey(kind))) for one in (helper, newcomer)
                     for kind in (ev.TimerKind.DIGEST, ev.TimerKind.SYNC, ev.TimerKind.CHECKPOINT)]  # fmt: skip
        at, event = queue.pop(0)
        began = time.process_time()
        effects = at.handle(event, ev.Now(now_ms, now_ms))
        if at is newcomer:
            spent += time.process_time() - began
        for effect in effects:
            if isinstance(effect, ev.Send):
                if at is helper:
                    received += len(effect.payload)
                queue.append((other[id(at)], ev.SyncReceived(names[id(at)], effect.payload)))
    return spent, received


def main() -> None:
    """Print the figures."""
    founding = PEOPLE[0].sign(Genesis(SPEC))
    joins = [worker.sign(JoinBody()) for worker in PEOPLE[ELECTORS:]]
    inside = [founding, *joins, *rounds(0, REAL_TASKS)]
    size = sum(len(operation.signed) for operation in inside)
    print(f"{REAL_TASKS:,} real tasks: {len(inside):,} operations, {size / REAL_TASKS:,.0f} bytes a task at first")

    began = time.process_time()
    summary = Summary(POOL)
    for operation in inside:
        assert summary.add(operation, known=lambda _: False)
    folded = time.process_time() - began
    began = time.process_time()
    snapshot = summary.snapshot()
    written = time.process_time() - began
    assert len(snapshot.settled) == REAL_TASKS
    print(f"fold the cut: {len(inside) / folded:,.0f} operations/s, without decoding; write it: {written:.3f} s")
    print(f"after compaction: {len(snapshot.data) / REAL_TASKS:.1f} bytes a settled task, all included")

    large = grown(snapshot, ALL_TASKS)
    print(f"snapshot of {ALL_TASKS:,} settled tasks: {len(large.data) / ALL_TASKS:.1f} bytes a task")
    delta = tuple(Cut(row.author, row.length, row.head) for row in large.rows)
    proposed = PEOPLE[0].sign(CheckpointBody(1, POOL, delta, (), large.root))
    attests = [elector.sign(AttestBody(proposed.id, large.root)) for elector in PEOPLE[: ELECTORS // 2 + 1]]
    tail = [proposed, *attests, *rounds(REAL_TASKS, TAIL_TASKS)]

    helper = Replica(Identity.from_seed(b"h" * 32), POOL)
    began = time.process_time()
    helper.handle(ev.Restored(tuple(operation.signed for operation in tail), snapshot=large.data), ev.Now(0, 0))
    print(f"start from the own store: {time.process_time() - began:.2f} s")
    helper.handle(ev.TimerFired(ev.TimerKey(ev.TimerKind.CHECKPOINT)), ev.Now(0, 0))

    newcomer = Replica(Identity.from_seed(b"n" * 32), POOL)
    spent, received = converse(helper, newcomer)
    assert len(newcomer.view.compacted) == ALL_TASKS
    assert newcomer.view.state_bytes() == helper.view.state_bytes()
    assert newcomer.view.trust.ledger.state() == helper.view.trust.ledger.state()
    print(f"newcomer ready, with a tail of {len(tail):,} operations: {spent:.2f} s, {received / 1e6:.1f} MB received")


if __name__ == "__main__":
    main()
