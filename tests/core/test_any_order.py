"""The same operations make the same state, in any order, with duplicates, and across restarts."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings, strategies as st
from pool_kit import Author, Mesh, Pool, claim, now, release, report, settle_writes, signed, value_of

from converge_p2p.core.codec import encode, encode_value
from converge_p2p.core.model.pool import GovernanceKind, PoolPolicy
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, task_id
from converge_p2p.core.oplog import operation as operation_module
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    JoinBody,
    LeaveBody,
    Lock,
    Phase,
    Purpose,
    SubmitBody,
    Token,
    VoteBody,
)
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId


@pytest.fixture(autouse=True)
def _verify_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # verification is a pure function of its bytes, and the same bytes are given to many replicas here
    monkeypatch.setattr(operation_module, "verify", functools.lru_cache(None)(operation_module.verify))


EXAMPLES = int(os.environ.get("CONVERGE_EXAMPLES", "250"))
"""How many random sets of operations; more before a release."""


class Script:
    """Random operations of a pool: sensible ones, senseless ones, forks."""

    def __init__(self, seed: int, policy: PoolPolicy | None = None) -> None:
        self.random = random.Random(seed)
        policy = policy or PoolPolicy(max_retries=1)
        self.pool = Pool(electors=self.random.choice((1, 3)), workers=3, policy=policy)
        self.people = list(self.pool.people)
        self.made: list[Operation] = list(self.pool.base)
        self.claims: list[Operation] = []
        self.grants: list[Operation] = []
        people = self.pool.people
        self.tasks = [task_id(self.pool.id, people[index].key, b"%d" % index) for index in range(2)]
        self.values = [value_of(author, index) for index, author in enumerate(self.pool.workers)]

    def write(self, count: int) -> list[Operation]:
        for _ in range(count):
            author = self.random.choice(self.people)
            if self.random.random() < 0.03:
                # the first of the two to sign again proves a fork; sometimes the clock runs backwards as well
                author = author.branch()
                author.hlc -= self.random.choice((0, 0, 5))
                author.hlc = max(0, author.hlc)
                self.people.append(author)
            self.made.extend(self._round() if self.random.random() < 0.15 else [self._one(author)])
        return self.made

    def _round(self) -> list[Operation]:
        """A round as it should be: a claim, a quorum of grants, and a report that names them or a release."""
        pick, task, number = self.random, self.random.choice(self.tasks), self.random.randrange(3)
        worker = pick.choice(self.pool.workers)
        own = claim(worker, task)
        ballot = Ballot(Phase.GRANT, task, number, own.id, None, number - 1 if number and pick.random() < 0.5 else None)
        grants = [elector.sign(VoteBody((ballot,))) for elector in self.pool.electors]
        last = report(worker, task, number, value_of(worker, number), grants[:2])
        if pick.random() < 0.4:
            last = release(worker, task, number, failed=True)
        return [own, *grants, last]

    def _one(self, author: Author) -> Operation:
        pick, task, number = self.random, self.random.choice(self.tasks), self.random.randrange(3)
        kind = pick.randrange(12)
        if kind == 0:
            judge = f"agent:{pick.choice(self.pool.people).key.hex()}" if pick.random() < 0.5 else ""
            key, inputs = b"%d" % pick.randrange(2), encode_value(pick.random())
            return author.sign(SubmitBody(TaskSpec(key, "work", inputs, evaluator=judge)))
        if kind == 11:
            value = pick.choice((*self.values, *(value_of(worker, number) for worker in self.pool.workers)))
            return author.sign(VerdictBody(task, value.hash, pick.random() < 0.4))
        if kind <= 2:
            self.claims.append(claim(author, task, pick.choice((Purpose.WORK, Purpose.CANCEL, Purpose.FAIL))))
            return self.claims[-1]
        if kind == 3:
            return release(author, task, number - 1, failed=pick.random() < 0.5)
        if kind <= 5:
            grants = pick.sample(self.grants, min(len(self.grants), pick.randrange(3)))
            return report(author, task, number, pick.choice(self.values), grants)
        if kind == 6 and pick.random() < 0.5:
            return author.sign(pick.choice((JoinBody(), LeaveBody(), JoinBody(("gpu",)))))
        operation = author.sign(self._vote(task, number))
        self.grants.append(operation)
        return operation

    def _vote(self, task: TaskId, number: int) -> Body:
        pick = self.random
        if self.claims and pick.random() < 0.5:
            held = Lock(Token(0, number), pick.choice(self.values).hash) if pick.random() < 0.3 else None
            expired = number - 1 if number and pick.random() < 0.3 else None
            return VoteBody((Ballot(Phase.GRANT, task, number, pick.choice(self.claims).id, held, expired),))
        # few values are accepted: two that are certified end the comparison
        accepted = self.values[0] if pick.random() < 0.95 else self.values[1]
        endorse = Ballot(Phase.ENDORSE, task, number, pick.choice(self.values).hash)
        return VoteBody((endorse, Ballot(Phase.ACCEPT, task, number, accepted.hash))[: pick.choice((1, 1, 2))])


def deliveries(operations: list[Operation], order: random.Random) -> Iterator[tuple[bytes, ...]]:
    """The genesis, and then the rest in any order, some twice, in batches."""
    yield (operations[0].signed,)
    rest = operations[1:] + order.sample(operations, len(operations) // 4)
    order.shuffle(rest)
    while rest:
        size = order.randrange(1, 8)
        batch, rest = rest[:size], rest[size:]
        yield signed(batch)


def replayed(pool: Pool, operations: list[Operation], order: random.Random, *, restarts: bool) -> Replica:
    replica, stored = pool.replica(), list[bytes]()
    for batch in deliveries(operations, order):
        for effect in replica.handle(ev.Received(batch), now()):
            if isinstance(effect, ev.Persist):
                stored.extend(effect.operations)
        if restarts and order.random() < 0.1:
            replica = pool.replica()
            settle_writes(replica, replica.handle(ev.Restored(tuple(stored)), now()))
            # what was parked is not stored; anti-entropy brings it again
            replica.handle(ev.Received(signed(operations)), now())
    return replica


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@example(381274043)
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_operations_make_one_state(seed: int) -> None:
    script = Script(seed)
    operations = script.write(25)
    order = random.Random(seed)
    replicas = [replayed(script.pool, operations, order, restarts=number == 2) for number in range(3)]
    conflicts = [any(register.conflict for register in replica.view.registers.values()) for replica in replicas]
    # two certificates need more lying electors than the pool was made for; then the state is whichever came first,
    # but everybody notices
    assert len(set(conflicts)) == 1
    assert conflicts[0] or len({replica.view.state_bytes() for replica in replicas}) == 1
    assert len({replica.log.digest() for replica in replicas}) == 1
    assert conflicts[0] or len({encode(replica.view.trust.ledger.state()) for replica in replicas}) == 1
    views = [{view.id: (view.state, view.value, view.spec) for view in replica.view.tasks()} for replica in replicas]
    assert conflicts[0] or views[0] == views[1] == views[2]


def run_pool(seed: int) -> tuple[Pool, list[Operation], Mesh]:
    """A pool that really works for a while: rival claims, failures, cancellations, on links that lose."""
    pick = random.Random(seed)
    leader = pick.random() < 0.3
    pool = Pool(
        electors=1 if leader else 3,
        workers=2,
        governance=GovernanceKind.DICTATORIAL if leader else GovernanceKind.DEMOCRATIC,
        policy=PoolPolicy(grant_timer_ms=100, claim_ttl_ms=400, max_retries=1, trusted_workers=pick.random() < 0.3),
    )
    mesh = Mesh(
        [
            Replica(person.identity, pool.id, seed=index, digest_interval_ms=500)
            for index, person in enumerate(pool.people)
        ],
        seed=seed,
        loss=pick.choice((0.0, 0.1, 0.3)),
    )
    worker_from = len(pool.electors)

    def answer(node: int, notice: object) -> ev.Command | None:
        match notice:
            case ev.TaskChanged(task, TaskState.PENDING) if node >= worker_from:
                return ev.Claim(task)
            case ev.ClaimWon(task):
                return pick.choice((
                    ev.Report(task, Outcome.COMPLETED, encode_value(node)),
                    ev.Release(task, failed=True),
                    ev.Report(task, Outcome.FAILED, encode_value(node)),
                    None,
                ))  # fmt: skip
        return None

    mesh.on_notice = answer
    mesh.connect()
    mesh.at(0, 0, ev.Found(pool.spec))
    for index in range(worker_from, len(pool.people)):
        mesh.at(2500, index, ev.Join())
    for number in range(3):
        spec = TaskSpec(b"%d" % number, "work", encode_value(number))
        mesh.at(3000 + number, 0, ev.Submit(spec))
        if pick.random() < 0.3:
            mesh.at(3200, 0, ev.Cancel(task_id(pool.id, pool.people[0].key, spec.key)))
    mesh.run_for(pick.randrange(3500, 7000))
    operations = {}
    for replica in mesh.replicas:
        for author in replica.log.chains:
            for data in replica.log.read(author, 0, 10**6):
                decoded = operation_module.decode_operation(data, pool.id, trusted=True)
                operations[decoded.id] = decoded
    founding = next(item for item in operations.values() if item.seq == 0 and item.author == pool.people[0].key)
    return pool, [founding, *(item for item in operations.values() if item != founding)], mesh


@pytest.mark.parametrize("seed", range(24))
def test_the_operations_of_a_working_pool_make_one_state(seed: int) -> None:
    pool, operations, mesh = run_pool(seed)
    order = random.Random(seed)
    replicas = [replayed(pool, operations, order, restarts=number == 2) for number in range(3)]
    states = {replica.view.state_bytes() for replica in replicas}
    assert len(states) == 1
    # whoever holds all of them has that state too, though it folded them one by one as they came
    whole = [replica for replica in mesh.replicas if len(replica.log) == len(operations)]
    assert {replica.view.state_bytes() for replica in whole} <= states
    assert not any(register.conflict for replica in replicas for register in replica.view.registers.values())
