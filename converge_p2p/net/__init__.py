"""The network room: the only importer of the transport library. Importing it takes about a second."""

from converge_p2p.net.config import (
    NetQueues,
    NetworkConfig,
    NetworkHandler,
    PeerInfo,
    RecordValidator,
    RelayBounds,
    RelayUse,
    Transport,
)
from converge_p2p.net.host_shares import THIS_MACHINE
from converge_p2p.net.names import peer_id_of, public_key_of
from converge_p2p.net.network import Network, open_network
from converge_p2p.net.reach.autonat import Reachable
from converge_p2p.net.reach.reachability import ReachStatus

__all__ = [
    "THIS_MACHINE",
    "NetQueues",
    "Network",
    "NetworkConfig",
    "NetworkHandler",
    "PeerInfo",
    "ReachStatus",
    "Reachable",
    "RecordValidator",
    "RelayBounds",
    "RelayUse",
    "Transport",
    "open_network",
    "peer_id_of",
    "public_key_of",
]
