"""How many operations one core signs, verifies and folds in a second.

Knows: the pure core, and the driver around it. Must not know: networks or stores.
The operations are those of real tasks of a democratic pool of five electors, made by running five replicas against each
other in memory. Each figure is the median of several runs, by processor time: others share the machine.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
import time
from collections.abc import Callable

import trio

from converge_p2p.core.codec import encode_value
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState
from converge_p2p.core.oplog.bodies import ClaimBody, Purpose
from converge_p2p.core.oplog.operation import decode_operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.node.driver import PoolDriver
from converge_p2p.node.observation import Observation
from converge_p2p.node.timers import Timers
from converge_p2p.runtime.tracing import MemoryExporter, Tracer

ELECTORS, TASKS, RUNS = 5, 400, 5
OBSERVED_RUNS = 21


def make_operations() -> tuple[PoolId, list[bytes]]:
    """Run a pool until its tasks are settled, and return every operation in the order one replica took them."""
    people = [Identity.from_seed(bytes([index + 1]) * 32) for index in range(ELECTORS)]
    electors = tuple(sorted(person.public_key for person in people))
    spec = PoolSpec("bench", bytes(16), GovernanceKind.DEMOCRATIC, electors)
    pool = pool_id(people[0].public_key, spec)
    replicas = [Replica(person, pool, seed=index) for index, person in enumerate(people)]
    heap: list[tuple[int, int, int, ev.Event]] = []
    order, stored, now, settled = itertools.count(), [], 0, 0

    def at(delay: int, index: int, event: ev.Event) -> None:
        heapq.heappush(heap, (now + delay, next(order), index, event))

    at(0, 0, ev.Found(spec))
    for number in range(TASKS):
        at(10 + number, 0, ev.Submit(TaskSpec(b"key%d" % number, "work", encode_value({"number": number}))))
    while settled < TASKS:
        now, _, index, event = heapq.heappop(heap)
        for effect in replicas[index].handle(event, ev.Now(now, 1_700_000_000_000 + now)):
            match effect:
                case ev.Persist(token, operations):
                    at(1, index, ev.Persisted((token,)))
                    stored.extend(operations if index == 0 else ())
                case ev.Publish(operations):
                    for other in range(ELECTORS):
                        if other != index:
                            at(1, other, ev.Received(operations))
                case ev.SetTimer(key, at_ms):
                    at(at_ms - now, index, ev.TimerFired(key))
                case ev.Emit(ev.TaskChanged(task, TaskState.PENDING)) if index == task[0] % ELECTORS:
                    at(0, index, ev.Claim(task))
                case ev.Emit(ev.ClaimWon(task)):
                    at(1, index, ev.Report(task, Outcome.COMPLETED, encode_value({"by": index})))
                case ev.Emit(ev.TaskChanged(_, state)) if index == 0 and state.terminal:
                    settled += 1
    return pool, stored


def per_second(count: int, run: Callable[[], object]) -> float:
    """Return the median rate of several runs, by processor time."""
    rates = []
    for _ in range(RUNS):
        began = time.process_time()
        run()
        rates.append(count / (time.process_time() - began))
    return statistics.median(rates)


def main() -> None:
    """Print one line for each figure."""
    pool, stored = make_operations()
    print(f"{len(stored)} operations of {TASKS} tasks, {ELECTORS} electors, {len(stored) / TASKS:.1f} per task; ")
    sizes = [len(signed) for signed in stored]
    print(f"median {statistics.median(sizes):.0f} bytes an operation, {sum(sizes) / TASKS:.0f} bytes a task")
    identity = Identity.from_seed(bytes(32))
    body = ClaimBody(TaskId(bytes(32)), Purpose.WORK)

    def sign() -> None:
        for number in range(2000):
            sign_operation(identity, pool, body, seq=number, prev=pool if number else None, epoch=0, hlc=number)  # type: ignore[arg-type]

    print(f"signed (encode, hash, sign): {per_second(2000, sign):.0f} operations/s")
    verified = per_second(len(stored), lambda: [decode_operation(signed, pool) for signed in stored])
    print(f"verified (signature, decode, encode again, compare): {verified:.0f} operations/s")
    decoded = per_second(len(stored), lambda: [decode_operation(signed, pool, trusted=True) for signed in stored])
    print(f"decoded without the signature: {decoded:.0f} operations/s")
    operations = [decode_operation(signed, pool, trusted=True) for signed in stored]

    def fold() -> None:
        view = View(pool)
        for operation in operations:
            view.apply(operation)

    def fold_with_trust() -> None:
        view = View(pool)
        for operation in operations:
            view.apply(operation)
        assert view.trust.ledger.authors()

    print(f"folded (already verified): {per_second(len(stored), fold):.0f} operations/s")
    print(f"the same, and then asked for the trust in everybody: {per_second(len(stored), fold_with_trust):.0f}")
    reader = Identity.from_seed(bytes([99]) * 32)

    def replicate() -> None:
        replica = Replica(reader, pool)
        for start in range(0, len(stored), 64):
            replica.handle(ev.Received(tuple(stored[start : start + 64])), ev.Now(start, start))

    print(f"taken by a replica, from received bytes to state: {per_second(len(stored), replicate):.0f} operations/s")
    measure_observation(pool, stored, reader)


def measure_observation(pool: PoolId, stored: list[bytes], reader: Identity) -> None:
    """Print what metrics and traces cost on the way from received bytes to notices, as a ratio of processor time.

    The versions take turns, so that what else the machine does falls on all of them.
    """

    async def drive(observation: Observation | None) -> float:
        read = decode_operation if observation is None else observation.read_operation
        timers, sink = Timers(), _Sink()
        replica = Replica(reader, pool, read=read)
        driver = PoolDriver(replica, writer=sink, timers=timers, wire=sink, notify=lambda _notice: None)  # type: ignore[arg-type]
        driver.watcher = None if observation is None else observation.watch(replica)
        began = time.process_time()
        for start in range(0, len(stored), 64):
            driver.feed(ev.Received(tuple(stored[start : start + 64])))
        return time.process_time() - began

    kinds: dict[str, Callable[[], Observation | None]] = {
        "nothing": lambda: None,
        "metrics": Observation,
        "metrics, traces": lambda: Observation(tracer=Tracer(MemoryExporter())),
    }
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(OBSERVED_RUNS):
        for kind, make in kinds.items():
            took[kind].append(trio.run(drive, make()))
    for kind in list(kinds)[1:]:
        ratios = [mine / bare for mine, bare in zip(took[kind], took["nothing"], strict=True)]
        print(f"processor time with {kind}, to that without: {statistics.median(ratios):.3f}")


class _Sink:
    """A writer and a wire that take everything."""

    full = False

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_more: None


if __name__ == "__main__":
    main()
