"""What one node measures and traces, and what it says of itself to whoever watches it.

Knows: the ports for metrics and traces, and which parts of a node feed them. Must not know: how numbers are shown (see
`exposition`).
Source: `docs/observability.md`. Each node has its own; several may live in one process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import trio

from converge_p2p.core.errors import LocalError
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import AgentId, PoolId
from converge_p2p.node.fanout import Fanout
from converge_p2p.node.gauges import NodeParts, read_counters, read_gauges
from converge_p2p.node.health import Health, Trouble
from converge_p2p.node.task_spans import TaskSpans
from converge_p2p.node.task_watcher import TaskWatcher
from converge_p2p.runtime.metrics import MemoryMetrics, Metrics
from converge_p2p.runtime.tracing import NO_TRACER, JsonLinesExporter, Tracer


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """Something that happened in a node, for people who watch.

    Attributes:
        at: Unix time, seconds.
        kind: what, as `task`, `claim_won`, `fork`, `epoch`, `peer_up`.
        about: names and values of text: ids in hexadecimal, states, reasons.
    """

    at: float
    kind: str
    about: dict[str, str] = field(default_factory=dict)


class Observation:
    """The measuring side of one node.

    Attributes:
        metrics: where things are counted; None of an application's own can be read back here.
        tracer: makes spans.
        events: hands out `NodeEvent`s.
        watchers: by pool.
    """

    def __init__(self, metrics: Metrics | None = None, tracer: Tracer | None = None) -> None:
        """Begin at nothing."""
        self.metrics: Metrics = MemoryMetrics() if metrics is None else metrics
        self.tracer = NO_TRACER if tracer is None else tracer
        self.events: Fanout[NodeEvent] = Fanout()
        self.watchers: dict[PoolId, TaskWatcher] = {}
        self._parts: NodeParts | None = None
        self._health = Health()

    def started(self, node: AgentId, parts: NodeParts, spawn: Callable[..., None]) -> None:
        """The node runs: spans carry its name, and are written if somebody has to write them."""
        self._parts = parts
        self._health.started(parts, spawn)
        if self.tracer.enabled and not self.tracer.node:
            self.tracer.node = str(node)
        if isinstance(self.tracer.exporter, JsonLinesExporter):
            spawn(self.tracer.exporter.run)

    # ------------------------------------------------------------ reading

    @property
    def parts(self) -> NodeParts:
        """The parts of the node.

        Raises:
            LocalError: it does not run.
        """
        if self._parts is None:
            raise LocalError("the node is not running", hint="use it inside `async with Node(...)`")
        return self._parts

    def counters(self) -> Counter[str]:
        """Return the counters of all parts of the node together, by their short names."""
        return read_counters(self.parts, self)

    def metrics_text(self, more: Mapping[str, float] | None = None, /) -> str:
        """Return all metrics in Prometheus' text format; `more` are counters that the node itself does not keep.

        Raises:
            LocalError: the node does not run.
        """
        from converge_p2p.node.exposition import metrics_text

        return metrics_text({**self.counters(), **(more or {})}, read_gauges(self.parts, self), self.metrics)

    def clock_jumped(self) -> bool:
        """Whether the wall clock was found to have been set, a short while ago."""
        return self._health.clock_jumped()

    async def troubles(self) -> list[Trouble]:
        """Look at what keeps the node from working. See `Health.look`."""
        return await self._health.look(self.parts)

    # ------------------------------------------------------------ pools

    def read_operation(self, signed: bytes, pool: PoolId) -> Operation:
        """Verify and decode an operation, and count what that costs. Raises as `decode_operation`."""
        began = time.perf_counter()
        try:
            return decode_operation(signed, pool)
        finally:
            self.metrics.add("operations_checked")
            self.metrics.add("operation_check_seconds", time.perf_counter() - began)

    def watch(self, replica: Replica) -> TaskWatcher:
        """Return what the driver of a pool tells about it, from now on."""
        spans = TaskSpans(self.tracer, replica) if self.tracer.enabled else None
        watcher = self.watchers[replica.pool] = TaskWatcher(replica, self.metrics, spans, trio.current_time)
        return watcher

    def forget(self, pool: PoolId) -> None:
        """This node is not in a pool any more."""
        self.watchers.pop(pool, None)

    # ------------------------------------------------------------ events

    def watch_events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[NodeEvent]]:
        """Give a channel of what happens from now on. Who reads too slowly misses some (`events.dropped`)."""
        return self.events.open()

    def tell(self, kind: str, **about: str) -> None:
        """Tell whoever watches."""
        if len(self.events):
            self.events.send(NodeEvent(time.time(), kind, about))

    def tell_notice(self, pool: PoolId, notice: ev.Notice) -> None:
        """Tell whoever watches of what is worth telling in a pool."""
        if not len(self.events):
            return
        name = pool.hex()
        match notice:
            case ev.TaskChanged(task, state, epoch, number):
                self.tell("task", pool=name, task=task.hex(), state=state.value, epoch=str(epoch), round=str(number))
            case ev.ClaimWon(task, epoch, number):
                self.tell("claim_won", pool=name, task=task.hex(), epoch=str(epoch), round=str(number))
            case ev.ClaimLost(task, _, _, reason):
                self.tell("claim_lost", pool=name, task=task.hex(), reason=reason)
            case ev.MembersChanged(agent, joined):
                self.tell("member_joined" if joined else "member_left", pool=name, agent=agent)
            case ev.MotionMoved(motion):
                self.tell("motion", pool=name, motion=motion.hex())
            case ev.EpochInstalled(number):
                self.tell("epoch", pool=name, epoch=str(number))
            case ev.Compacted(number, tasks):
                self.tell("checkpoint", pool=name, number=str(number), tasks=str(tasks))
            case ev.ForkDetected(author, seq):
                self.tell("fork", pool=name, author=author.hex(), seq=str(seq))
            case ev.PoolReady():
                self.tell("pool_ready", pool=name)
            case ev.Rejected(peer, reason):
                self.tell("rejected", pool=name, peer=str(peer or ""), reason=reason)
