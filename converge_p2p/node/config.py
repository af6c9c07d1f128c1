"""Settings of a node, and its state at a glance: values only.

Knows: fields and defaults. Must not know: what a node does with them.
Source: `docs/embedding.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.types import AgentId, PeerId
from converge_p2p.net import NetworkConfig, ReachStatus
from converge_p2p.node.policy import NodePolicy
from converge_p2p.runtime.metrics import Metrics
from converge_p2p.runtime.tracing import Tracer


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days a node keeps what no protocol asks for; 0 is for ever. See `docs/operations.md`.

    Attributes:
        results_days: inputs and results of own tasks, once a checkpoint took them from the log.
        left_pools_days: operations of pools that were left, other than as one of their electors.
        blobs_days: blobs that nobody pinned, since they were used last; 0 is until their room is needed.
        records_days: turns of agents that were recorded.
    """

    results_days: int = 0
    left_pools_days: int = 0
    blobs_days: int = 0
    records_days: int = 0


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Settings that few applications need.

    Attributes:
        network: settings of the network; `listen`, `announce` and `bootstrap` of the constructor go before its own.
        network_key: of a private network; only hosts with the same key are spoken to.
        digest_interval_ms: how often frontiers are compared when nothing happens.
        policy: what this node lets happen.
        blob_bytes_max: bytes of all blobs that are kept.
        store_bytes_max: bytes that the store may hold before the node begins nothing more of its own (`StoreFull`); 0
            is no bound, otherwise at least `limits.STORE_HELD_BYTES_MIN`.
        retention: for how long is kept what no protocol asks for.
        metrics: where things are counted and measured; None keeps them for `Node.observation.metrics_text`.
        tracer: records traces; None records none.
    """

    network: NetworkConfig | None = None
    network_key: NetworkKey | None = None
    digest_interval_ms: int = limits.DIGEST_INTERVAL_MS
    policy: NodePolicy = field(default_factory=NodePolicy)
    blob_bytes_max: int = limits.BLOB_STORE_BYTES_MAX
    store_bytes_max: int = 0
    retention: Retention = field(default_factory=Retention)
    metrics: Metrics | None = None
    tracer: Tracer | None = None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node at a glance.

    Attributes:
        id: agent id.
        peer_id: name on the network.
        addresses: where it listens.
        uptime_s: seconds since the start.
        peers: how many are connected.
        pools: how many it takes part in.
        counters: drops, refusals and errors, by name.
        reach: how others reach it.
    """

    id: AgentId
    peer_id: PeerId
    addresses: tuple[str, ...]
    uptime_s: float
    peers: int
    pools: int
    counters: dict[str, int]
    reach: ReachStatus
