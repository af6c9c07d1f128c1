"""What the tests of the network room share: recording handlers, quick settings, and waiting for a condition."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio

from converge_p2p.core.types import PeerId
from converge_p2p.net import Network, NetworkConfig, Transport, open_network
from converge_p2p.net.fast.session import FastSession
from converge_p2p.net.fast.yamux import FastYamux

LOCAL = "/ip4/127.0.0.1/tcp/0"

default_transport = Transport.FAST
"""What `quick` chooses; the fixture `transport` changes it."""


class Recorder:
    """A handler that keeps what it is told, and answers requests with the reversed payload."""

    def __init__(self) -> None:
        self.up: set[PeerId] = set()
        self.links: list[tuple[str, PeerId]] = []
        self.frames: list[tuple[PeerId, bytes]] = []

    def peer_up(self, peer: PeerId) -> None:
        self.up.add(peer)
        self.links.append(("up", peer))

    def peer_down(self, peer: PeerId) -> None:
        self.up.discard(peer)
        self.links.append(("down", peer))

    def frame(self, peer: PeerId, payload: bytes) -> None:
        assert peer in self.up, "a frame came outside of peer_up and peer_down"
        self.frames.append((peer, payload))

    async def request(self, peer: PeerId, payload: bytes) -> bytes:
        return payload[::-1]


def quick(**changes: Any) -> NetworkConfig:
    """Settings with short times."""
    settings: dict[str, Any] = {
        "listen": (LOCAL,),
        "transport": default_transport,
        "dht": False,
        "autonat": False,
        "hole_punch": False,
        "dial_timeout_s": 3.0,
        "retry_first_s": 0.1,
        "retry_max_s": 0.5,
        "exchange_interval_s": 0.5,
        "gossip_heartbeat_s": 0.5,
    }
    return NetworkConfig(**{**settings, **changes})


async def inject(connection: Any, frames: bytes) -> None:
    """Send frames on a multiplexed connection that its multiplexer knows nothing of."""
    if isinstance(connection, FastYamux):
        await connection.secured_conn.write(frames)
    else:
        await connection._write_frame(frames)


def socket_of(connection: Any) -> Any:
    """The TCP socket below a multiplexed connection."""
    session = connection.secured_conn
    raw = session._raw if isinstance(session, FastSession) else session.conn.read_writer.read_write_closer
    return raw.stream.stream.socket


def seed(number: int) -> bytes:
    return bytes([number]) * 32


def start(number: int, handler: Any = None, **changes: Any) -> AbstractAsyncContextManager[Network]:
    """Open the network of node `number` with quick settings."""
    return open_network(quick(**changes), seed=seed(number), handler=handler or Recorder())


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> None:
    """Wait for something in real time that has no event to wait for."""
    with trio.move_on_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens inside the transport library
            await trio.sleep(0.01)
        return
    raise AssertionError(f"not within {timeout_s} s: {what}")


async def linked(one: Network, other: Network) -> None:
    """Wait until the replication streams between two nodes work."""
    for here, there in ((one, other), (other, one)):
        await until(
            lambda here=here, there=there: any(
                info.peer_id == there.peer_id and info.replicating for info in here.peers()
            ),
            f"{here.peer_id} replicates with {there.peer_id}",
        )


@asynccontextmanager
async def pair(**changes: Any) -> AsyncIterator[tuple[Network, Recorder, Network, Recorder]]:
    """Two linked nodes and their recorders."""
    first, second = Recorder(), Recorder()
    async with start(1, first, **changes) as one, start(2, second, **changes) as two:
        await two.connect(one.addresses[0])
        await linked(one, two)
        yield one, first, two, second


async def assert_serves(network: Network) -> None:
    """A new node can connect to the network, be linked and be answered: nothing that happened before broke it."""
    async with start(250, listen=()) as visitor:
        await visitor.connect(network.addresses[0])
        await linked(visitor, network)
        assert await visitor.request(network.peer_id, b"abc") == b"cba"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_sockets() -> int:
    """Number of sockets this process holds."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue
    return count


class Proxy:
    """A TCP forwarder that can fall silent without closing anything, as a broken link does."""

    def __init__(self, target_port: int, tap: bytearray | None = None) -> None:
        """Args:
        target_port: where connections are passed on to.
        tap: takes what the clients send, if given.
        """
        self._tap = tap
        self._target_port = target_port
        self._silent = trio.Event()
        self._speaking = trio.CancelScope()
        self.port = 0

    def fall_silent(self) -> None:
        self._speaking.cancel()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._forward, listeners, task_status=task_status)

    async def _forward(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_tcp_stream("127.0.0.1", self._target_port) as server:
            with self._speaking:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, client, server, True)
                    nursery.start_soon(self._pump, server, client, False)
            await trio.sleep_forever()

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, tapped: bool) -> None:
        try:
            async for data in source:
                if tapped and self._tap is not None:
                    self._tap += data
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
