"""What is read of a node when somebody asks for its metrics: queues, tables, pools, peers, the disk.

Knows: where each number is. Must not know: how it is shown.
Source: `docs/observability.md`; every bound is a name in `core.limits`. Reading costs microseconds, and nothing between
two readings.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from converge_p2p.core import limits
from converge_p2p.core.types import PoolId
from converge_p2p.net import Network, Reachable
from converge_p2p.runtime.metrics import OTHER
from converge_p2p.runtime.tracing import JsonLinesExporter, MemoryExporter
from converge_p2p.store.home import DATABASE_FILE

if TYPE_CHECKING:
    from converge_p2p.node.agents import Agents
    from converge_p2p.node.blobs import Blobs
    from converge_p2p.node.discovery import DiscoveryService
    from converge_p2p.node.handles import PoolHandle
    from converge_p2p.node.mail import Mail
    from converge_p2p.node.observation import Observation
    from converge_p2p.node.pools import Pools
    from converge_p2p.node.switchboard import Switchboard
    from converge_p2p.node.writer import StoreWriter
    from converge_p2p.store.api import Store

Reading = tuple[str, float, str]
"""Short name of a gauge, its value, and its label."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """The parts of a running node that are looked at.

    Attributes:
        counters: of the node itself; the other parts have their own.
        home: folder of the store, None if it is in memory.
        started_at: by the monotonic clock, seconds.
    """

    counters: Counter[str]
    hosting: Agents
    mail: Mail
    network: Network
    writer: StoreWriter
    switchboard: Switchboard
    discovery: DiscoveryService
    pools: Pools
    store: Store
    blobs: Blobs
    home: Path | None
    started_at: float

    @property
    def up_s(self) -> float:
        """How long the node has been up, seconds."""
        return time.monotonic() - self.started_at


def read_counters(parts: NodeParts, observation: Observation) -> Counter[str]:
    """Return the counters of all parts together."""
    own = (parts.counters, parts.hosting.counts(), parts.blobs.counts(), parts.network.counters, parts.mail.counters)
    counters = sum(map(Counter, own), Counter[str]())
    for pool in parts.pools.all().values():
        counters.update(pool.counters)
    counters["commits"] = parts.writer.commits
    counters["node_events_dropped"] = observation.events.dropped
    counters["spans_failed"] = observation.tracer.failures
    exporter = observation.tracer.exporter
    if isinstance(exporter, MemoryExporter | JsonLinesExporter):
        counters["spans_dropped"] = exporter.dropped
    return counters


def read_gauges(parts: NodeParts, observation: Observation) -> Iterator[Reading]:
    """Yield every gauge that is not among the counters."""
    yield "up_seconds", parts.up_s, ""
    yield "event_loop_tasks", trio.lowlevel.current_statistics().tasks_living, ""
    yield from _reach(parts)
    for queue, (used, bound) in _queues(parts).items():
        yield "queue_used", used, queue
        yield "queue_bound", bound, queue
    for limit, used in _used(parts).items():
        yield "limit_used", used, limit
        yield "limit_bound", getattr(limits, limit), limit
    yield from _store(parts)
    yield from _pools(parts.pools.all(), observation)


def _reach(parts: NodeParts) -> Iterator[Reading]:
    peers, reach = parts.network.peers(), parts.network.reachability
    relayed = sum(peer.relayed for peer in peers)
    yield "peers", len(peers) - relayed, "direct"
    yield "peers", relayed, "relayed"
    yield "relays", len(reach.relays), ""
    yield "relay_reservations", reach.relay_reservations or 0, ""
    yield "relay_circuits", reach.relay_circuits, ""
    yield "link_peers", reach.link_peers or 0, ""
    yield "accepted_key_connections", parts.network.by_accepted_key, ""
    yield "reachable", {Reachable.YES: 1, Reachable.NO: 0}.get(reach.reachable, -1), ""


def _queues(parts: NodeParts) -> Mapping[str, tuple[float, float]]:
    """By queue: how full it is, and how much it takes. Of queues that there are several of, the fullest."""
    net, (_, write_bytes) = parts.network.queues(), parts.writer.waiting
    parked = [pool.driver.replica.log.parking.bytes for pool in parts.pools.all().values()]
    return {
        "store_bytes": (write_bytes, limits.PENDING_WRITE_BYTES_MAX),
        "mail": (parts.mail.waiting, limits.MAIL_WAITING_MAX),
        "gossip_out": (parts.switchboard.gossip_waiting, limits.EVENT_QUEUE_MAX),
        "gossip_to_peer": (net.gossip_frames_most, limits.GOSSIP_QUEUE_MESSAGES_MAX),
        "sync_to_peer_bytes": (net.sync_bytes_most, limits.OUTBOUND_QUEUE_BYTES_MAX),
        "agent_inbox": (parts.hosting.inbox_most(), limits.INBOX_MESSAGES_MAX),
        "parked_bytes": (max(parked, default=0), limits.PARKED_BYTES_MAX),
    }


def _used(parts: NodeParts) -> Mapping[str, float]:
    """How much of a limit is used, by its name in `core.limits`."""
    pools, net = parts.pools.all().values(), parts.network.queues()
    return {
        "CIRCUITS_PER_RELAY_MAX": net.relay_connections_most,
        "CONNECTIONS_PER_HOST_MAX": net.host_connections_most,
        "AGENTS_PER_NODE_MAX": len(parts.hosting),
        "DESCRIPTORS_HELD_MAX": parts.discovery.size,
        "KNOWN_PEERS_MAX": net.known_peers,
        "PEERS_MAX": len(parts.network.peers()),
        "PENDING_TASKS_PER_AUTHOR_MAX": max((pool.open_count for pool in pools), default=0),
        "POOLS_PER_NODE_MAX": len(pools),
        "TOPICS_PER_NODE_MAX": len(parts.mail.topics),
    }


def _store(parts: NodeParts) -> Iterator[Reading]:
    yield "store_stalled_seconds", parts.writer.stalled_s, ""
    yield "store_held_bytes", parts.pools.room.held, ""
    yield "store_allowed_bytes", parts.pools.room.bytes_max, ""
    if parts.home is None:
        return
    sizes = 0
    for file in (DATABASE_FILE, f"{DATABASE_FILE}-wal"):
        try:
            sizes += (parts.home / file).stat().st_size
        except OSError:
            continue
    yield "store_bytes", sizes, ""
    try:
        yield "disk_free_bytes", shutil.disk_usage(parts.home).free, ""
    except OSError:
        return


def _pools(pools: Mapping[PoolId, PoolHandle], observation: Observation) -> Iterator[Reading]:
    """Each pool under the first digits of its id; of those beyond `limits.METRIC_POOLS_MAX` the sums, or the worst."""
    others: Counter[str] = Counter()
    for index, (name, pool) in enumerate(sorted(pools.items())):
        for gauge, value in _pool(pool, observation).items():
            if index < limits.METRIC_POOLS_MAX:
                yield gauge, value, name.hex()[:16]
            elif gauge in ("pool_oldest_task_seconds", "pool_oldest_claim_seconds", "pool_epoch"):
                others[gauge] = max(others[gauge], round(value))
            else:
                others[gauge] += round(value)
    for gauge, value in others.items():
        yield gauge, value, OTHER


def _pool(pool: PoolHandle, observation: Observation) -> dict[str, float]:
    replica = pool.driver.replica
    watcher = observation.watchers.get(pool.id)
    oldest_task, oldest_claim = (0.0, 0.0) if watcher is None else watcher.oldest_s()
    return {
        "pool_tasks_open": pool.open_count,
        "pool_tasks_known": len(replica.view.registers),
        "pool_operations": len(replica.log),
        "pool_parked": len(replica.log.parking),
        "pool_members": len(pool.members()) if pool.ready else 0,
        "pool_peers": len(replica.sessions.peers),
        "pool_epoch": replica.epoch,
        "pool_quorum": bool(pool.has_quorum),
        "pool_unsure": bool(replica.unsure),
        "pool_frozen": len(pool.frozen()),
        "pool_vetoes": replica.view.vetoes.denials(),
        "pool_operations_behind": replica.sessions.behind(),
        "pool_oldest_task_seconds": oldest_task,
        "pool_oldest_claim_seconds": oldest_claim,
    }
