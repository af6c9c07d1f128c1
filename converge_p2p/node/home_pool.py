"""The home pool of a node: where a task goes for which no pool is named.

Knows: what makes a pool the home of a node, and how a topic hears of it. Must not know: how pools are founded.
Source: the concepts page (dictatorial, led by the submitter); `docs/protocol.md`, messages and descriptors.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.governance import Dictatorial
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, PoolPolicy
from converge_p2p.core.model.task import Task
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import PoolId, PublicKey
from converge_p2p.node.handles import PoolHandle
from converge_p2p.node.task_handles import TaskHandle

if TYPE_CHECKING:
    from converge_p2p.node.main import Node

_logger = logging.getLogger(__name__)

HOME = "home"
ANNOUNCEMENT = "pool_announcement"


class HomePool:
    """Finds or founds the home pool of a node."""

    def __init__(self, node: Node) -> None:
        """Begin without it."""
        self._node = node
        self._founding = trio.Lock()

    def find(self) -> PoolHandle | None:
        """Return the home pool, if this node has one: a pool of that name that it leads alone and created."""
        for pool in self._node.pools.values():
            if pool.ready and is_home(pool, self._node.public_key):
                return pool
        return None

    async def get(
        self,
        *,
        admission: AdmissionKind = AdmissionKind.OPEN,
        whitelist: Sequence[str] = (),
        policy: PoolPolicy | None = None,
    ) -> PoolHandle:
        """Return the home pool, which is founded by the first call. Terms matter only to that one."""
        async with self._founding:
            return self.find() or await self._node.create_pool(
                HOME, governance=Dictatorial(), admission=admission, whitelist=whitelist, policy=policy
            )

    async def submit(self, task: Task) -> TaskHandle:
        """Submit a task to the home pool, and tell its topic of the pool. See `Node.submit`."""
        topic = Topic.from_bytes(task.topic) if task.topic else None
        pool = await self.get()
        handle = await pool.submit(task)
        if topic is not None:
            await self._announce(pool, topic, handle)
        return handle

    async def _announce(self, pool: PoolHandle, topic: Topic, handle: TaskHandle) -> None:
        payload = {ANNOUNCEMENT: {"pool": pool.id, "genesis": pool.genesis}}
        message = Message.create(self._node.id, payload, topics=(topic,), task_id=handle.id)
        try:
            await self._node.send(message)
        except ConvergeError as error:
            # the task is submitted all the same, and connected peers hear of the pool without the topic
            _logger.warning("the home pool was not announced on topic %s: %s", topic.namespace, error)


def is_home(pool: PoolHandle, own: PublicKey) -> bool:
    """Whether a pool is the home of whoever has this key."""
    spec = pool.spec
    led = spec.governance is GovernanceKind.DICTATORIAL and spec.electors == (own,)
    return led and spec.name == HOME and pool.creator == own


def announced_in(message: Message) -> tuple[PoolId, bytes] | None:
    """Return the pool that a message on a topic announces, and its founding operation; not verified."""
    if message.sealed or message.recipient is not None or not message.topics:
        return None
    try:
        payload = message.payload
    except ConvergeError:
        # whoever wrote this is told nothing, and the application may look at it
        return None
    said = payload.get(ANNOUNCEMENT) if isinstance(payload, dict) else None
    match said:
        case {"pool": bytes() as pool, "genesis": bytes() as genesis}:
            return PoolId(pool), genesis
    return None
