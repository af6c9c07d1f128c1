"""What a vote costs when 1, 16 or 256 ballots stand under one signature, and how much of a task's cost is signatures.

Knows: the pure core. Must not know: networks or stores.
A democratic pool of five electors settles 256 tasks in the three phases, all electors voting; the only difference is
how many ballots an operation carries. Last comes the mixture that replicas make of their own accord when many tasks are
open (see `bench_core`). Each figure is processor time, the median of several runs, and the batches take turns.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench_core import make_operations

from converge_p2p.core.codec import encode_value
from converge_p2p.core.identity import SIGNATURE_BYTES, Identity, verify
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, TaskValue, task_id
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    Genesis,
    Phase,
    ReportBody,
    SubmitBody,
    VoteBody,
)
from converge_p2p.core.oplog.operation import OPERATION_TAG, Operation, author_of, decode_operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.core.view.fold import View

ELECTORS, TASKS, RUNS, BATCHES, FRAME = 5, 256, 5, (1, 16, 256), 64


class Chain:
    """An author and its chain."""

    def __init__(self, identity: Identity, pool: PoolId) -> None:
        self.identity, self.key, self._pool = identity, identity.public_key, pool
        self._seq = 0
        self._prev: OperationId | None = None

    def sign(self, body: Body) -> Operation:
        """Sign the next operation."""
        seq = self._seq
        made = sign_operation(self.identity, self._pool, body, seq=seq, prev=self._prev, epoch=0, hlc=seq + 1)
        self._seq, self._prev = seq + 1, made.id
        return made


@dataclass
class History:
    """The operations of a pool that settles its tasks.

    Attributes:
        order: all of them, in an order in which a replica may take them.
        votes: those that carry ballots.
        sign_s: seconds of processor time it took to make and sign the votes.
    """

    pool: PoolId
    order: list[Operation] = field(default_factory=list)
    votes: list[Operation] = field(default_factory=list)
    sign_s: float = 0.0

    def vote(self, electors: list[Chain], ballots: list[Ballot], batch: int) -> list[list[Operation]]:
        """Let all electors cast the ballots, so many in each operation."""
        parts = [tuple(ballots[start : start + batch]) for start in range(0, len(ballots), batch)]
        began = time.process_time()
        made = [[elector.sign(VoteBody(part)) for part in parts] for elector in electors]
        self.sign_s += time.process_time() - began
        for operations in made:
            self.votes.extend(operations)
            self.order.extend(operations)
        return made


def settle_tasks(batch: int) -> History:
    """Make the whole history of the tasks, with so many ballots under each signature."""
    people = [Identity.from_seed(bytes([index + 1]) * 32) for index in range(ELECTORS)]
    spec = PoolSpec("bench", bytes(16), GovernanceKind.DEMOCRATIC, tuple(sorted(who.public_key for who in people)))
    pool = pool_id(people[0].public_key, spec)
    electors = [Chain(who, pool) for who in people]
    boss, worker, history = electors[0], electors[1], History(pool)
    history.order.append(boss.sign(Genesis(spec)))
    keys = [b"key%d" % number for number in range(TASKS)]
    tasks = [task_id(pool, boss.key, key) for key in keys]
    history.order.extend(boss.sign(SubmitBody(TaskSpec(key, "work", encode_value({"key": key})))) for key in keys)
    claims = [worker.sign(ClaimBody(task)) for task in tasks]
    history.order.extend(claims)
    grants = [Ballot(Phase.GRANT, task, 0, claim.id) for task, claim in zip(tasks, claims, strict=True)]
    promised = history.vote(electors, grants, batch)
    values = [TaskValue(Outcome.COMPLETED, worker.key, encode_value({"number": number})) for number in range(TASKS)]
    for number, (task, value) in enumerate(zip(tasks, values, strict=True)):
        named = tuple(sorted(promised[elector][number // batch].id for elector in range(3)))
        history.order.append(worker.sign(ReportBody(task, 0, value, named)))
    for phase in (Phase.ENDORSE, Phase.ACCEPT):
        ballots = [Ballot(phase, task, 0, value.hash) for task, value in zip(tasks, values, strict=True)]
        history.vote(electors, ballots, batch)
    return history


def seconds(run: Callable[[], object]) -> float:
    """How much processor time it takes."""
    began = time.process_time()
    run()
    return time.process_time() - began


def fold_votes_s(history: History) -> float:
    """Seconds the fold spends on votes, with everything else applied at its place."""
    view, spent = View(history.pool), 0.0
    for votes, operations in itertools.groupby(history.order, lambda made: isinstance(made.body, VoteBody)):
        taken = list(operations)
        took = seconds(lambda taken=taken: [view.apply(operation) for operation in taken])
        spent += took if votes else 0
    assert all(task.state is TaskState.COMPLETED for task in view.tasks())
    return spent


def replicate(pool: PoolId, stored: list[bytes]) -> None:
    """What a member does with what comes from the network: from received bytes to state."""
    replica = Replica(Identity.from_seed(bytes([99]) * 32), pool)
    for start in range(0, len(stored), FRAME):
        replica.handle(ev.Received(tuple(stored[start : start + FRAME])), ev.Now(start, start))
    assert all(task.state.terminal for task in replica.view.tasks())


def check_signatures(stored: list[bytes]) -> None:
    """The same signatures that the replica checks, and nothing else."""
    for signed in stored:
        assert verify(author_of(signed), OPERATION_TAG, signed[SIGNATURE_BYTES:], signed[:SIGNATURE_BYTES])


def say_shares(streams: dict[str, tuple[PoolId, list[bytes], int]]) -> None:
    """Print what a settled task costs whoever takes it in, and the share of its signatures."""
    whole: dict[str, list[float]] = {name: [] for name in streams}
    signatures: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(RUNS):
        for name, (pool, stored, _) in streams.items():
            whole[name].append(seconds(lambda pool=pool, stored=stored: replicate(pool, stored)))
            signatures[name].append(seconds(lambda stored=stored: check_signatures(stored)))
    for name, (_, stored, tasks) in streams.items():
        cost, checks = statistics.median(whole[name]), statistics.median(signatures[name])
        print(
            f"a settled task, {name}: {len(stored) / tasks:.1f} signatures, {sum(map(len, stored)) / tasks:.0f} bytes, "
            f"{cost / tasks * 1e6:.0f} µs from received bytes to state, of which signatures {100 * checks / cost:.0f} %"
        )


def main() -> None:
    """Print one line for each figure."""
    print(f"{ELECTORS} electors, {TASKS} tasks, three phases, processor time, medians of {RUNS} runs")
    signing: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    decoding: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    folding: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    histories = {batch: settle_tasks(batch) for batch in BATCHES}
    for _ in range(RUNS):
        for batch, history in histories.items():
            signing[batch].append(settle_tasks(batch).sign_s)
            decoding[batch].append(
                seconds(lambda history=history: [decode_operation(vote.signed, history.pool) for vote in history.votes])
            )
            folding[batch].append(fold_votes_s(history))
    ballots = ELECTORS * TASKS * 3
    for batch, history in histories.items():
        size = sum(len(vote.signed) for vote in history.votes) / ballots
        figures = [statistics.median(times[batch]) / ballots * 1e6 for times in (signing, decoding, folding)]
        print(
            f"{batch} ballots a signature: {size:.0f} bytes a ballot; µs a ballot: sign {figures[0]:.1f}, "
            f"verify and decode {figures[1]:.1f}, fold {figures[2]:.1f}, together {sum(figures):.1f}"
        )
    streams = {
        f"{batch} ballots a signature": (history.pool, [operation.signed for operation in history.order], TASKS)
        for batch, history in histories.items()
    }
    pool, stored = make_operations()
    tasks = sum(type(decode_operation(signed, pool, trusted=True).body) is SubmitBody for signed in stored)
    streams["as replicas batch of their own accord"] = (pool, stored, tasks)
    say_shares(streams)


if __name__ == "__main__":
    main()
