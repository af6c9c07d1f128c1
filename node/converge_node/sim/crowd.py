"""The crowd: one production replica for each node, a shell around each, and what their applications do.

Knows: how a shell obeys a replica's effects. Must not know: how messages travel (see `network`), or what is measured.
Source: `node.driver` and `node.switchboard`, of which this is a model in virtual time; docs/capacity.md
says what is left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from converge_node.sim.gossip import Gossip
from converge_node.sim.graph import draw_graph
from converge_node.sim.network import VirtualNetwork
from converge_node.sim.plan import Plan
from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import pool_id
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, task_id
from converge_p2p.core.oplog.operation import author_of
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.ranking import claim_rank
from converge_p2p.core.replica.wire import Operations, batches, encode_message
from converge_p2p.core.types import PeerId, PublicKey, TaskId

WALL_MS = 1_700_000_000_000
FAR_MS = 60_000
"""So long after hearing of an author that is not linked own operations are gossiped (`node.switchboard`: `FAR_S`)."""
FRAME_BYTES = 37
"""Around a sync message: kind, pool, and the length on the stream."""
LINKED_WITHIN_MS = 1000
CHECK_MS = 100
FORMATION_S_MAX = 600


class Job:
    """A task of the run.

    Attributes:
        submitted_ms: when it was asked for.
        known_ms: when its submitter knew how it ended; -1 before that.
        everywhere_ms: when the last node knew; -1 before that.
        missing: how many nodes do not know yet.
    """

    __slots__ = ("_told", "everywhere_ms", "known_ms", "missing", "submitted_ms", "submitter")

    def __init__(self, submitter: int, submitted_ms: int, nodes: int) -> None:
        self.submitter = submitter
        self.submitted_ms = submitted_ms
        self.known_ms = -1
        self.everywhere_ms = -1
        self.missing = nodes
        self._told = bytearray(nodes)

    def ended(self, node: int, now_ms: int) -> None:
        """A node knows how it ended."""
        if self._told[node]:
            return
        self._told[node] = 1
        self.missing -= 1
        if node == self.submitter:
            self.known_ms = now_ms
        if not self.missing:
            self.everywhere_ms = now_ms


class Node:
    """One node."""

    __slots__ = (
        "claimed",
        "far_until",
        "holds",
        "index",
        "key",
        "open",
        "peer",
        "rejected",
        "replica",
        "signed",
        "timers",
    )

    def __init__(self, index: int, identity: Identity, replica: Replica) -> None:
        self.index = index
        self.key: PublicKey = identity.public_key
        self.replica = replica
        self.peer = PeerId(str(index))
        self.far_until = -1
        self.rejected = 0
        self.signed = 0
        self.timers: dict[ev.TimerKey, int] = {}
        self.open: dict[TaskId, bytes] = {}
        self.claimed: TaskId | None = None
        self.holds = False


class Crowd:
    """All nodes of one run."""

    def __init__(self, plan: Plan, tell: Callable[[], None]) -> None:
        """Make the nodes; nothing happens yet.

        Args:
            plan: what is run.
            tell: called every few thousand events.
        """
        self.plan = plan
        self.jobs: dict[TaskId, Job] = {}
        self.rng = random.Random(plan.seed)
        self.network = VirtualNetwork(plan, draw_graph(plan, self.rng), self.rng)
        self.gossip = Gossip(self.network, plan.nodes, self._take_gossip)
        self.pool = pool_id(plan.identity(0).public_key, plan.spec)
        self._tell = tell
        self._timer = 0
        self.nodes = [self._node(index) for index in range(plan.nodes)]
        self._key_of: dict[PublicKey, int] = {node.key: node.index for node in self.nodes}

    def _node(self, index: int) -> Node:
        identity = self.plan.identity(index)
        return Node(index, identity, Replica(identity, self.pool, seed=self.rng.getrandbits(32)))

    # ------------------------------------------------------------ the run

    def form(self) -> bool:
        """Link the nodes, found the pool, let the workers join. Says whether all nodes came to know it in time."""
        calendar = self.network.calendar
        for node in self.nodes:
            self._feed(node, ev.Restored(()))
        self._feed(self.nodes[0], ev.Found(self.plan.spec))
        for one, other in self.network.links():
            calendar.at(self.rng.randint(0, LINKED_WITHIN_MS), self._connect, one, other)
        return self._run(FORMATION_S_MAX * 1000, self._formed)

    def work(self) -> int:
        """Submit the tasks and go through the partitions, until all nodes hold the same or patience ends.

        Returns:
            When the last of these was: from then on convergence is counted.
        """
        plan, calendar = self.plan, self.network.calendar
        began_ms = calendar.now_ms
        for number in range(plan.tasks):
            at_ms = began_ms + int(1000 * number / plan.rate)
            submitter = self.nodes[self.rng.randrange(plan.electors + plan.workers)]
            inputs = encode_value({"number": number, "data": self.rng.randbytes(plan.payload)})
            spec = TaskSpec(b"task %d" % number, "simulated", inputs)
            self.jobs[task_id(self.pool, submitter.key, spec.key)] = Job(submitter.index, at_ms, plan.nodes)
            calendar.at(at_ms, self._feed, submitter, ev.Submit(spec))
        last_ms = max((job.submitted_ms for job in self.jobs.values()), default=began_ms)
        for cut in plan.cuts:
            self.network.plan_cut(cut, began_ms + cut.start_ms, self._connect, self._disconnect)
            last_ms = max(last_ms, began_ms + cut.start_ms + cut.length_ms)
        calendar.run_until(last_ms, self._tell)
        self._run(last_ms + int(1000 * plan.patience_s), self.converged)
        return last_ms

    def _run(self, until_ms: int, done: Callable[[], bool]) -> bool:
        calendar = self.network.calendar
        while calendar.now_ms < until_ms:
            if done():
                return True
            calendar.run_until(min(until_ms, calendar.now_ms + CHECK_MS), self._tell)
        return done()

    def _formed(self) -> bool:
        if not all(node.replica.ready for node in self.nodes):
            return False
        workers = self.nodes[self.plan.electors : self.plan.electors + self.plan.workers]
        return all(self.nodes[0].replica.view.members.has(worker.key) for worker in workers) and self.equal()

    def converged(self) -> bool:
        """Whether every node knows how every task ended, and holds the same operations."""
        return not any(job.missing for job in self.jobs.values()) and self.equal()

    def equal(self) -> bool:
        """Whether all nodes hold the same operations."""
        digest = self.nodes[0].replica.log.digest()
        return all(node.replica.log.digest() == digest for node in self.nodes)

    # ------------------------------------------------------------ the shell

    def _connect(self, one: int, other: int) -> None:
        for here, there in ((one, other), (other, one)):
            if there not in self.network.up[here]:
                self.network.up[here].add(there)
                far = self.nodes[there]
                self._feed(self.nodes[here], ev.PeerUp(far.peer, far.key))

    def _disconnect(self, one: int, other: int) -> None:
        for here, there in ((one, other), (other, one)):
            if there in self.network.up[here]:
                self.network.up[here].discard(there)
                self._feed(self.nodes[here], ev.PeerDown(self.nodes[there].peer))

    def _take_gossip(self, receiver: int, sender: int, operations: tuple[bytes, ...]) -> bool:
        node = self.nodes[receiver]
        before = node.rejected
        self._feed(node, ev.Received(operations, self.nodes[sender].peer))
        return node.rejected == before

    def _take_frame(self, node: Node, sender: Node, payload: bytes) -> None:
        # a link that is down at this end is not read
        if sender.index in self.network.up[node.index]:
            self._feed(node, ev.SyncReceived(sender.peer, payload))

    def _feed(self, node: Node, event: ev.Event) -> None:
        now_ms = self.network.calendar.now_ms
        try:
            effects = node.replica.handle(event, ev.Now(now_ms, WALL_MS + now_ms))
        except LocalError:
            # an application is told no; here it is asked for again with the next change
            return
        for effect in effects:
            self._obey(node, effect)

    def _obey(self, node: Node, effect: ev.Effect) -> None:
        calendar = self.network.calendar
        match effect:
            case ev.Persist(token, operations, durable):
                if durable:
                    node.signed += len(operations)
                    calendar.at(calendar.now_ms + self.plan.disk_ms, self._feed, node, ev.Persisted((token,)))
                else:
                    self._note_far(node, operations)
            case ev.Publish(operations):
                self._publish(node, operations)
            case ev.Send(peer, payload):
                self._send(node, int(peer), payload)
            case ev.SetTimer(key, at_ms):
                self._timer += 1
                node.timers[key] = self._timer
                calendar.at(at_ms, self._timer_due, node, key, self._timer)
            case ev.CancelTimer(key):
                node.timers.pop(key, None)
            case ev.Emit(notice):
                self._hear(node, notice)

    def _timer_due(self, node: Node, key: ev.TimerKey, number: int) -> None:
        if node.timers.get(key) == number:
            del node.timers[key]
            self._feed(node, ev.TimerFired(key))

    def _send(self, node: Node, receiver: int, payload: bytes) -> None:
        if receiver in self.network.up[node.index]:
            size = len(payload) + FRAME_BYTES
            self.network.send(node.index, receiver, size, self._take_frame, self.nodes[receiver], node, payload)

    def _publish(self, node: Node, operations: tuple[bytes, ...]) -> None:
        for part in batches(operations, limits.BATCH_BYTES_MAX):
            payload = encode_message(Operations(part))
            for peer in node.replica.peers:
                self._send(node, int(peer), payload)
        if node.far_until >= self.network.calendar.now_ms:
            for part in batches(operations, limits.GOSSIP_BATCH_BYTES_MAX):
                self.gossip.publish(node.index, part, len(encode_message(Operations(part))))

    def _note_far(self, node: Node, operations: tuple[bytes, ...]) -> None:
        up = self.network.up[node.index]
        if any(self._key_of[author_of(signed)] not in up for signed in operations):
            node.far_until = self.network.calendar.now_ms + FAR_MS

    # ------------------------------------------------------------ the application

    def _hear(self, node: Node, notice: ev.Notice) -> None:
        match notice:
            case ev.Rejected():
                node.rejected += 1
            case ev.PoolReady() if self.plan.electors <= node.index < self.plan.electors + self.plan.workers:
                self._feed_later(0, node, ev.Join())
            case ev.TaskChanged(task, state):
                self._task_changed(node, task, state)
            case ev.ClaimWon(task):
                node.holds = True
                work_ms = self.rng.randint(self.plan.work_ms // 2, self.plan.work_ms * 3 // 2)
                result = encode_value({"by": node.index, "data": self.rng.randbytes(self.plan.payload)})
                self._feed_later(work_ms, node, ev.Report(task, Outcome.COMPLETED, result))
            case ev.ClaimLost(task):
                node.open[task] = claim_rank(task, 0, node.key)
                self._free(node, task)

    def _feed_later(self, wait_ms: int, node: Node, event: ev.Event) -> None:
        calendar = self.network.calendar
        calendar.at(calendar.now_ms + wait_ms, self._feed, node, event)

    def _task_changed(self, node: Node, task: TaskId, state: TaskState) -> None:
        if state.terminal and task in self.jobs:
            self.jobs[task].ended(node.index, self.network.calendar.now_ms)
        if not self.plan.electors <= node.index < self.plan.electors + self.plan.workers:
            return
        if state is TaskState.PENDING:
            node.open[task] = claim_rank(task, 0, node.key)
            self._claim_next(node)
        else:
            node.open.pop(task, None)
            if state.terminal or not node.holds:
                self._free(node, task)

    def _free(self, node: Node, task: TaskId) -> None:
        """A worker does not work on a task any more: it looks for another one."""
        if node.claimed == task:
            node.claimed, node.holds = None, False
            self._claim_next(node)

    def _claim_next(self, node: Node) -> None:
        if node.claimed is None and node.open:
            task = node.claimed = min(node.open, key=node.open.__getitem__)
            del node.open[task]
            self._feed_later(0, node, ev.Claim(task))
