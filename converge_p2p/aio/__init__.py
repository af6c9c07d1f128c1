"""Nodes in asyncio applications: the names of `converge_p2p` that await something, for asyncio.

Everything else (`Task`, `governance`, `decisions`, errors, …) is imported from `converge_p2p` itself.
"""

from converge_p2p.aio.agent import Agent, AgentRuntime, Ticket, WorkContext
from converge_p2p.aio.blobs import Blobs, PoolBlobs
from converge_p2p.aio.crossing import in_asyncio
from converge_p2p.aio.facade import Stream
from converge_p2p.aio.handles import (
    Accepted,
    Council,
    DiscoveryService,
    HandlerFunction,
    Invitations,
    PoolEvidence,
    PoolHandle,
    PoolKeys,
    TaskHandle,
    TopicHandle,
)
from converge_p2p.aio.node import Node
from converge_p2p.aio.parts import Bids, Hosting, JoinAsking, JoinRequests, Joins, Links, Observation

__all__ = [
    "Accepted",
    "Agent",
    "AgentRuntime",
    "Bids",
    "Blobs",
    "Council",
    "DiscoveryService",
    "HandlerFunction",
    "Hosting",
    "Invitations",
    "JoinAsking",
    "JoinRequests",
    "Joins",
    "Links",
    "Node",
    "Observation",
    "PoolBlobs",
    "PoolEvidence",
    "PoolHandle",
    "PoolKeys",
    "Stream",
    "TaskHandle",
    "Ticket",
    "TopicHandle",
    "WorkContext",
    "in_asyncio",
]
