"""Being let into pools by those who are in: both sides of it, of one node.

Knows: that there are two sides. Must not know: the insides of either.
Source: `docs/protocol.md`, join requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from converge_p2p.core.types import PeerId
from converge_p2p.net import Network
from converge_p2p.node.join_asking import JoinAsking
from converge_p2p.node.join_requests import JoinRequests
from converge_p2p.node.switchboard import ASK, DECIDED
from converge_p2p.store.api import Store

if TYPE_CHECKING:
    from converge_p2p.node.main import Node
    from converge_p2p.node.pools import Pools


class Joins:
    """Join requests.

    Attributes:
        requests: those of others, which wait here.
        asking: the own ones.
    """

    def __init__(self, node: Node, store: Store, pools: Pools, network: Callable[[], Network]) -> None:
        """Begin with none; `read` and `restore` go on with those of the last run."""
        self.requests = JoinRequests(node, store, network)
        self.asking = JoinAsking(node, store, pools, network)

    @property
    def visitors(self) -> dict[bytes, Callable[[PeerId, bytes], Awaitable[bytes]]]:
        """What answers direct requests, by their first byte."""
        return {ASK: self.requests.on_ask, DECIDED: self.asking.on_decided}

    async def read(self) -> None:
        """Read who waits here, before anybody can ask: what was decided would be written over.

        Raises:
            StoreError: the store cannot be read.
        """
        await self.requests.restore()

    async def restore(self) -> None:
        """Go on asking where the last run ended. The network has to be open.

        Raises:
            StoreError: the store cannot be read.
        """
        await self.asking.restore()
