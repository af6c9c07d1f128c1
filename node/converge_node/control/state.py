"""What the requests of the control interface see of the node, and what one request asks.

Knows: the node through `control.ports`. Must not know: HTTP, or who runs the node.
Source: docs/control.md.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from converge_node.control import views
from converge_node.control.mesh import Meshes
from converge_node.control.ports import NodeLike, PoolLike
from converge_node.errors import NotReady
from converge_node.log_book import LogBook
from converge_p2p import __version__
from converge_p2p.client import schema
from converge_p2p.client.peer_schema import ReloadItem
from converge_p2p.core.types import PublicKey, TaskId


async def nothing_to_reload() -> ReloadItem:
    """A node that was started without a settings file has nothing to read again."""
    return ReloadItem(file="")


@dataclass(slots=True)
class ControlState:
    """What the requests see. The run command owns and changes it.

    Attributes:
        home, socket: shown to clients.
        stage: what the node is doing, for people.
        node: None while it starts and after it closed.
        ready: whether requests that change something are taken.
        stopping: set when the node begins to stop; ends every stream.
        request_stop: begins the shutdown.
        pool_joined: called with each pool that was created or joined through this interface.
        next_command: returns the command that starts a node which finds this one at its addresses.
        meshes: topics that were joined.
        log_book: the newest lines of the log.
        reload: reads the settings again.
        api_urls: where this interface answers over TCP.
    """

    home: str
    socket: str
    request_stop: Callable[[], None]
    stage: str = "starting"
    node: NodeLike | None = None
    ready: bool = False
    stopping: trio.Event = field(default_factory=trio.Event)
    pool_joined: Callable[[PoolLike], None] = lambda _pool: None
    next_command: Callable[[Sequence[str]], str] = lambda _addresses: ""
    meshes: Meshes = field(default_factory=Meshes)
    log_book: LogBook | None = None
    reload: Callable[[], Awaitable[ReloadItem]] = nothing_to_reload
    api_urls: Sequence[str] = ()
    started_at_s: float = field(default_factory=time.time)
    requests: int = 0
    streams: int = 0
    transfers: int = 0
    refused: int = 0
    tokens_refused: int = 0

    def running(self) -> NodeLike:
        """Return the node. Raises `NotReady` while it is starting or stopping."""
        if self.node is None or not self.ready:
            raise NotReady(f"the node is not ready: {self.stage}", hint="wait for `converge-node health --ready`")
        return self.node


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, checked against the schema.

    Attributes:
        places: the parameters of the path.
        body, query: as the route declares them; None if it takes none.
        parts: what is sent, in pieces, if the route takes a content as it is.
    """

    state: ControlState
    places: Mapping[str, str]
    body: Any
    query: Any
    parts: AsyncGenerator[bytes, None]

    @property
    def node(self) -> NodeLike:
        """The node. Raises `NotReady` while it is starting or stopping."""
        return self.state.running()

    def pool(self) -> PoolLike:
        """Return the pool that the path names. Raises as `views.find_pool`."""
        return views.find_pool(self.node, self.places["pool"])

    def pool_and_task(self) -> tuple[PoolLike, TaskId]:
        """Return the pool and the task that the path names. Raises as `views.find_task`."""
        pool = self.pool()
        return pool, views.find_task(pool, self.places["task"]).id

    def keys(self, names: Sequence[str]) -> list[PublicKey]:
        """Return the keys of agents. Raises as `views.elector_keys`."""
        marked = views.elector_keys(self.node, names)
        return [PublicKey(bytes.fromhex(key.removeprefix("key:"))) for key in marked]


Endpoint = Callable[[Asked], Awaitable[Any]]
"""Returns the data of the answer, or a source of events if the route is a stream."""


def node_item(state: ControlState) -> schema.NodeItem:
    """Return who the node is.

    Raises:
        NotReady: it is starting or stopping.
    """
    node = state.running()
    return schema.NodeItem(
        id=str(node.id),
        public_key=node.public_key.hex(),
        peer_id=str(node.peer_id),
        addresses=[str(address) for address in node.addresses],
        version=__version__,
        home=state.home,
        socket=state.socket,
        next_command=state.next_command(node.addresses),
        api_urls=list(state.api_urls),
    )
