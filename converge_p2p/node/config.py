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
class NodeConfig:
    """Settings that few applications need.

    Attributes:
        network: settings of the network; `listen`, `announce` and `bootstrap` of the constructor go before its own.
        network_key: of a private network; only hosts with the same key are spoken to.
        digest_interval_ms: how often frontiers are compared when nothing happens.
        policy: what this node lets happen.
        blob_bytes_max: bytes of all blobs that are kept.
        metrics: where things are counted and measured; None keeps them for `Node.observation.metrics_text`.
        tracer: records traces; None records none.
    """

    network: NetworkConfig | None = None
    network_key: NetworkKey | None = None
    digest_interval_ms: int = limits.DIGEST_INTERVAL_MS
    policy: NodePolicy = field(default_factory=NodePolicy)
    blob_bytes_max: int = limits.BLOB_STORE_BYTES_MAX
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
