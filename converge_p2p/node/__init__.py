"""The node: composition of core, store, network and runtime. Importing it loads libp2p, which takes a second or two."""

from converge_p2p.node.config import NodeConfig, NodeStatus, Retention
from converge_p2p.node.directory import PoolAnnouncement
from converge_p2p.node.discovery import DiscoveryService
from converge_p2p.node.handles import PoolHandle
from converge_p2p.node.main import Node
from converge_p2p.node.roster import FrozenView, MemberView
from converge_p2p.node.task_handles import TaskHandle, TaskResult
from converge_p2p.node.topics import TopicHandle

__all__ = [
    "DiscoveryService",
    "FrozenView",
    "MemberView",
    "Node",
    "NodeConfig",
    "NodeStatus",
    "PoolAnnouncement",
    "PoolHandle",
    "Retention",
    "TaskHandle",
    "TaskResult",
    "TopicHandle",
]
