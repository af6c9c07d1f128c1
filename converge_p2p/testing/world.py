"""The simulated world: virtual time, the heap of what is to come, the machines, and the plan of a run.

Knows: every machine and the order of everything. Must not know: how an invariant is checked (see `checkers`).
Source: deterministic simulation, after FoundationDB and TigerBeetle. One `random.Random(seed)` draws everything.

A run has three parts: *chaos*, with every fault the scenario drew; *healing*, when the network is whole and whoever is
not dead is up; and *quiet*, when only anti-entropy goes on, until all replicas hold the same.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import random
from collections.abc import Callable
from itertools import count

from converge_p2p.core.model.pool import pool_id
from converge_p2p.core.model.task import TaskSpec, task_id
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.wire import Operations, encode_message
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.testing.byzantine import Liar
from converge_p2p.testing.checkers import lagging
from converge_p2p.testing.counting import decides
from converge_p2p.testing.ledger import InvariantViolated, Ledger
from converge_p2p.testing.links import Links, Partition
from converge_p2p.testing.lying_electors import LyingElector
from converge_p2p.testing.machine import Machine
from converge_p2p.testing.politics import Politics
from converge_p2p.testing.scenario import Scenario, simulated_identity

HEALING_MS = 2000
"""Safety mode: how long the healed pool goes on working before it is stopped."""

LIVENESS_MS = 900_000
"""Liveness mode: when everything must be settled, after healing. Claim times double up to 64 times the first."""

QUIET_MS = 60_000
"""How long anti-entropy may take until all replicas hold the same."""

STEP_MS = 100
EVENTS_MAX = 150_000


class World:
    """One run."""

    def __init__(self, scenario: Scenario, rng: random.Random, trace: Callable[[str], None] | None = None) -> None:
        self.scenario = scenario
        self.rng = rng
        self.now_ms = 0
        self.quiet = False
        self.events = 0
        self.settled_at: dict[TaskId, int] = {}
        self._trace = trace
        self._digest = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = count()
        self._told_up: set[tuple[int, int]] = set()
        identities = [simulated_identity(index) for index in range(scenario.nodes)]
        self.identities = identities
        self.spec = scenario.spec
        self.pool = pool_id(identities[0].public_key, self.spec)
        workers = range(scenario.nodes - scenario.liars, scenario.nodes)
        self.liar_keys = frozenset(identities[index].public_key for index in (*workers, *scenario.lying))
        self.ledger = Ledger(self.spec, self.pool, self.liar_keys)
        self.links = Links(scenario, rng)
        self.politics = Politics(self)
        steady = scenario.electors if scenario.mode == "liveness" else -1
        self.steady_key = identities[steady].public_key if steady >= 0 else None
        self.machines = [
            Machine(
                self,
                index,
                identity,
                works=index >= scenario.electors or (index != steady and rng.random() < 0.15),
                steady=index == steady,
                liar=identity.public_key in self.liar_keys,
            )
            for index, identity in enumerate(identities)
        ]
        self._workers = {index: Liar(self, self.machines[index]) for index in (*workers, *scenario.lying)}
        self._electors = {index: LyingElector(self, self.machines[index]) for index in scenario.lying}
        self._dying: set[PublicKey] = set()
        self.compactions = 0
        """How often a machine put a checkpoint in force."""

    def reliable(self, key: PublicKey) -> bool:
        """Whether a node neither lies nor dies."""
        return key not in self.liar_keys and key not in self._dying

    def stirred(self, machine: Machine) -> None:
        """Something happened at a liar's machine."""
        liar = self._electors.get(machine.index)
        if liar is not None and not self.quiet:
            liar.stirred()

    # ------------------------------------------------------------ time

    def at(self, time_ms: int, action: Callable[[], None]) -> None:
        """Do something at a virtual time."""
        heapq.heappush(self._heap, (max(time_ms, self.now_ms), next(self._count), action))

    def run_until(self, time_ms: int) -> None:
        """Do everything that is due until a virtual time.

        Raises:
            InvariantViolated: what a machine said or signed breaks an invariant, or the run never calms down.
        """
        heap = self._heap
        while heap and heap[0][0] <= time_ms:
            self.now_ms, _, action = heapq.heappop(heap)
            self.events += 1
            if self.events > EVENTS_MAX:
                raise InvariantViolated(13, f"more than {EVENTS_MAX} events: the pool does not calm down")
            action()
        self.now_ms = time_ms

    def note(self, node: int, what: object, data: bytes) -> None:
        """Add something that happened to the trace and its hash."""
        name = what if isinstance(what, str) else type(what).__name__
        self._digest.update(b"%d %d %s " % (self.now_ms, node, name.encode()) + data)
        if self._trace is not None:
            self._trace(f"{self.now_ms:>8} node {node}: {_describe(what)}")

    def trace_hash(self) -> str:
        """A hash of everything that happened, in order."""
        digest = self._digest.copy()
        for machine in self.machines:
            if machine.replica is not None:
                digest.update(machine.replica.log.digest())
        return digest.hexdigest()

    # ------------------------------------------------------------ the network

    def deliver(self, sender: int, receiver: int, event: ev.Event) -> None:
        """Let a message travel."""
        machine = self.machines[receiver]
        for delay in self.links.delays(sender, receiver):
            machine.later(delay, functools.partial(machine.feed, event))

    def publish(self, machine: Machine, operations: tuple[bytes, ...]) -> None:
        """Send own operations to everybody, to each by gossip or by its replication stream."""
        self.note(machine.index, "publish", b"".join(signed[:16] for signed in operations))
        streamed = ev.SyncReceived(machine.peer, encode_message(Operations(operations)))
        gossiped = ev.Received(operations)
        for other in self.machines:
            if other is not machine and other.index not in machine.hidden:
                by_stream = self.rng.random() < self.scenario.by_stream
                self.deliver(machine.index, other.index, streamed if by_stream else gossiped)

    def send(self, machine: Machine, receiver: int, payload: bytes) -> None:
        """Send one sync message."""
        self.deliver(machine.index, receiver, ev.SyncReceived(machine.peer, payload))

    def _connect(self, one: int, other: int) -> None:
        """Tell two machines that they reach each other, if both are up."""
        if self.machines[one].replica is None or self.machines[other].replica is None:
            return
        for here, there in ((one, other), (other, one)):
            if (here, there) not in self._told_up:
                self._told_up.add((here, there))
                other_end = self.machines[there]
                self.machines[here].feed(ev.PeerUp(other_end.peer, other_end.identity.public_key))

    def _disconnect(self, one: int, other: int) -> None:
        for here, there in ((one, other), (other, one)):
            if (here, there) in self._told_up:
                self._told_up.discard((here, there))
                self.machines[here].feed(ev.PeerDown(self.machines[there].peer))

    def _pairs(self) -> list[tuple[int, int]]:
        nodes = len(self.machines)
        return [(one, other) for one in range(nodes) for other in range(one + 1, nodes)]

    # ------------------------------------------------------------ faults

    def _start(self, index: int) -> None:
        machine = self.machines[index]
        if machine.replica is not None or machine.dead or not machine.start():
            return
        machine.later(0, functools.partial(machine.command, ev.Found(self.spec)) if index == 0 else _nothing)
        if index and machine.identity.public_key not in self.spec.electors:
            self._join_until_member(machine)
        for other in range(len(self.machines)):
            if other != index:
                self.at(self.now_ms + self.rng.randint(0, 50), functools.partial(self._connect, index, other))

    def _join_until_member(self, machine: Machine) -> None:
        replica = machine.replica
        key = machine.identity.public_key
        if replica is None or replica.view.members.has(key) or key in replica.view.members.expelled():
            return
        machine.command(ev.Join())
        machine.later(200, functools.partial(self._join_until_member, machine))

    def _crash(self, index: int, *, for_ever: bool = False, restore: bool = False) -> None:
        machine = self.machines[index]
        if machine.replica is None:
            return
        self.note(index, "dies" if for_ever else "crashes", b"")
        machine.crash(restore=restore)
        if restore:
            self.ledger.forgets(index, machine.identity.public_key)
        machine.dead |= for_ever
        for other in range(len(self.machines)):
            # this side forgets at once; the others notice when they do
            self._told_up.discard((index, other))
            if (other, index) in self._told_up:
                self.at(self.now_ms + self.rng.randint(0, 300), functools.partial(self._noticed_down, other, index))
        if not for_ever:
            self.at(self.now_ms + self.rng.randint(0, 1500), functools.partial(self._start, index))

    def _noticed_down(self, here: int, there: int) -> None:
        if self.machines[there].replica is None and (here, there) in self._told_up:
            self._told_up.discard((here, there))
            self.machines[here].feed(ev.PeerDown(self.machines[there].peer))

    def _pause(self, index: int, for_ms: int) -> None:
        self.note(index, "pauses", b"")
        self.machines[index].paused_until = self.now_ms + for_ms

    def _split(self, partition: Partition, until_ms: int, *, noticed: bool) -> None:
        self.note(-1, f"partition {sorted(partition.side)} one_way={partition.one_way}", b"")
        self.links.split(partition)
        cut = [pair for pair in self._pairs() if partition.cuts(*pair) or partition.cuts(*pair[::-1])]
        if noticed:
            for one, other in cut:
                self.at(self.now_ms + self.rng.randint(0, 400), functools.partial(self._disconnect, one, other))
        self.at(until_ms, functools.partial(self._rejoin, partition, cut))

    def _rejoin(self, partition: Partition, cut: list[tuple[int, int]]) -> None:
        self.links.join(partition)
        for one, other in cut:
            self.at(self.now_ms + self.rng.randint(0, 200), functools.partial(self._connect, one, other))

    def lie(self, machine: Machine, notice: ev.ClaimWon) -> bool:
        """Let a liar abuse a claim it won."""
        return self._workers[machine.index].on_claim_won(notice)

    # ------------------------------------------------------------ the plan

    def prepare(self) -> None:
        """Plan starts, work and faults."""
        rng, scenario = self.rng, self.scenario
        for index in range(scenario.nodes):
            late = index >= scenario.electors and rng.random() < scenario.late_joins
            self.at(
                rng.randint(0, scenario.chaos_ms // 2) if late else rng.randint(0, 200),
                functools.partial(self._start, index),
            )
        self._plan_work()
        chaos = scenario.chaos_ms
        for _ in range(scenario.crashes):
            self.at(rng.randint(0, chaos), functools.partial(self._crash, rng.randrange(scenario.nodes)))
        doomed = self._doomed()
        self._dying = {self.identities[index].public_key for index in doomed}
        for _ in range(scenario.restores):
            self.at(
                rng.randint(chaos // 4, chaos),
                functools.partial(self._crash, rng.randrange(scenario.nodes), restore=True),
            )
        for index in doomed:
            self.at(rng.randint(chaos // 4, chaos), functools.partial(self._crash, index, for_ever=True))
        for _ in range(scenario.pauses):
            self.at(
                rng.randint(0, chaos),
                functools.partial(self._pause, rng.randrange(scenario.nodes), rng.randint(50, 2000)),
            )
        for _ in range(scenario.partitions):
            side = frozenset(rng.sample(range(scenario.nodes), rng.randint(1, scenario.nodes - 1)))
            if rng.random() < scenario.isolate:
                side = frozenset({rng.randrange(scenario.electors)})
            partition = Partition(side, rng.random() < scenario.one_way)
            start = rng.randint(0, chaos)
            noticed = rng.random() < scenario.noticed
            self.at(
                start,
                functools.partial(self._split, partition, start + rng.randint(100, scenario.cut_ms), noticed=noticed),
            )
        for liar in self._electors.values():
            liar.begin()
        for worker in self._workers.values():
            for _ in range(rng.randint(0, 3)):
                if "junk" in scenario.lies or "fork" in scenario.lies:
                    lie = functools.partial(worker.misbehave, fork="fork" in scenario.lies and rng.random() < 0.3)
                    self.at(rng.randint(chaos // 4, chaos), lie)
        self.politics.plan()

    def _doomed(self) -> list[int]:
        """Who dies for ever; in liveness mode not so many electors that no honest quorum is left."""
        scenario, rng = self.scenario, self.rng
        if not scenario.deaths:
            return []
        workers = list(range(scenario.electors + 1, scenario.nodes))
        doomed = rng.sample(range(scenario.electors), min(scenario.electors, scenario.deaths))
        if scenario.mode == "liveness":
            kept = [self.identities[index].public_key for index in range(scenario.electors) if index not in doomed]
            if not decides(self.spec, [key for key in kept if key not in self.liar_keys]):
                doomed = []
        return doomed + rng.sample(workers, min(len(workers), rng.randint(0, 1)))

    def _plan_work(self) -> None:
        rng, scenario = self.rng, self.scenario
        members = [machine for machine in self.machines if not machine.liar]
        for number in range(scenario.tasks):
            machine = rng.choice(members)
            spec = TaskSpec(b"task %d" % number, "simulated", b"\x80")
            task = task_id(self.pool, machine.identity.public_key, spec.key)
            when = 300 + rng.randint(0, scenario.chaos_ms // 2)
            self.at(when, functools.partial(self._submit_until_known, machine, spec, task))
            if rng.random() < scenario.cancels:
                self.at(when + rng.randint(0, 1500), functools.partial(machine.act, ev.Cancel(task, "changed my mind")))
        for machine in self.machines[scenario.electors :]:
            if not machine.steady and rng.random() < scenario.leaves:
                self.at(rng.randint(0, scenario.chaos_ms), functools.partial(machine.act, ev.Leave()))

    def _submit_until_known(self, machine: Machine, spec: TaskSpec, task: TaskId) -> None:
        """Submit, as an application does that was not told that it is done: again, with the same key."""
        if self.quiet or machine.dead:
            return
        replica = machine.replica
        if replica is not None and machine.paused_until <= self.now_ms:
            known = replica.view.registers.get(task)
            if task in replica.view.compacted or (known is not None and known.submitted is not None):
                return
            machine.command(ev.Submit(spec))
        self.at(self.now_ms + 250, functools.partial(self._submit_until_known, machine, spec, task))

    # ------------------------------------------------------------ healing and the end

    def alive(self) -> dict[int, Replica]:
        """Replicas of machines that are up and honest."""
        return {
            machine.index: machine.replica
            for machine in self.machines
            if machine.replica is not None and not machine.liar
        }

    def heal(self) -> None:
        """Make the network whole, and start whoever is down and not dead."""
        self.note(-1, "heals", b"")
        self.links.heal()
        for machine in self.machines:
            machine.paused_until = min(machine.paused_until, self.now_ms)
            if machine.replica is None:
                self._start(machine.index)
        for one, other in self._pairs():
            # whoever was not told of the cut is told nothing now either: anti-entropy has to find out
            self.at(self.now_ms + self.rng.randint(0, 300), functools.partial(self._connect, one, other))

    def unsettled(self) -> list[tuple[int, TaskId]]:
        """Tasks that a live replica knows and some live replica does not show as settled, with the latter's node."""
        replicas = self.alive()
        known = {
            task: None
            for replica in replicas.values()
            for task, register in replica.view.registers.items()
            if register.submitted is not None
        }
        return [
            (node, task)
            for node, replica in replicas.items()
            for task in known
            if task not in replica.view.compacted
            and (task not in replica.view.registers or not replica.view.registers[task].state.terminal)
        ]

    def run(self) -> None:
        """Run chaos, healing and quiet.

        Raises:
            InvariantViolated: an invariant does not hold.
        """
        self.prepare()
        self.run_until(self.scenario.chaos_ms)
        self.heal()
        healed_ms = self.now_ms
        patience_ms = LIVENESS_MS if self.scenario.mode == "liveness" else HEALING_MS
        while self.now_ms < healed_ms + patience_ms:
            self.run_until(self.now_ms + STEP_MS)
            if self.now_ms > healed_ms + 1000 and self._done():
                break
        if self.scenario.mode == "liveness":
            self._check_progress()
        self.quiet = True
        quiet_ms = self.now_ms
        while self._moving() and self.now_ms < quiet_ms + QUIET_MS:
            self.run_until(self.now_ms + STEP_MS)
        late = lagging(self.alive())
        if late:
            raise InvariantViolated(
                13, f"nodes {late} still lack operations {QUIET_MS} ms after everything calmed down"
            )

    def _done(self) -> bool:
        """Whether everything that was asked for is decided, everywhere."""
        replicas = self.alive()
        if self.unsettled() or lagging(replicas):
            return False
        return not any(replica.ready and replica.view.next_change.is_open for replica in replicas.values())

    def _moving(self) -> bool:
        """Whether anything is still being written or still unequal."""
        return any(machine.writing for machine in self.machines) or bool(lagging(self.alive()))

    def _check_progress(self) -> None:
        for node, replica in self.alive().items():
            if replica.ready and replica.view.next_change.is_open:
                raise InvariantViolated(
                    13, f"node {node}: a change was carried and is not in force after {LIVENESS_MS} ms"
                )
        open_tasks = self.unsettled()
        if open_tasks:
            node, task = open_tasks[0]
            raise InvariantViolated(
                13,
                f"{len({task for _, task in open_tasks})} tasks are not settled {LIVENESS_MS} ms after healing; "
                f"node {node}, task {task.hex()[:8]}",
            )


def _nothing() -> None:
    return


def _describe(what: object) -> str:
    if isinstance(what, str):
        return what
    text = repr(what)
    return text if len(text) <= 160 else f"{text[:157]}..."
