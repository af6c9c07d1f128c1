"""Repairs of the transport library's faults, one function or class per fault, named after it.

Knows: private names of libp2p 0.8.1, which is therefore pinned. Must not know: what travels over the connections.
Source: measurements on libp2p 0.8.1 (docs/decisions, "The transport library and its faults"); each fault has a test in
`tests/net` that shows it. Faults of gossip are repaired in `gossip`, those of the hash table in `dht`, those of
listening, dialling and shutting down in `host` and `bootstrap`, that of slots for connections in `inbound`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.custom_types import TProtocol
from libp2p.network.config import RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from converge_p2p.core import limits

log = logging.getLogger("converge_p2p.net")

_FAREWELL_S = 1.0
"""Less than `disconnect_quietly` takes, which would end the closing in the middle."""

Counters = Counter[str]
"""Drops, refusals and errors by name. The names are literals of this room, so their number is bounded."""


def contain_stream_failures(host: Any, counters: Counters) -> None:
    """B1: an exception in any stream handler, or in protocol negotiation, ends the whole host.

    Stock, the handler runs in the nursery of the swarm's service, which falls with its first failing task: a peer can
    do that with a protocol name that is not UTF-8. Here a failing stream is reset and counted, and nothing else
    happens. The number of streams that one peer may have open is bounded at the same place.
    """
    negotiate_and_handle = host._swarm_stream_handler
    open_streams: Counter[ID] = Counter()

    async def handle(stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        if open_streams[peer] >= limits.INBOUND_STREAMS_PER_PEER_MAX:
            counters["inbound_stream_refused"] += 1
            await reset_quietly(stream)
            return
        open_streams[peer] += 1
        try:
            await negotiate_and_handle(stream)
        except Exception as error:  # noqa: BLE001 - the edge: whatever a peer provokes ends with its stream
            counters["stream_handler_errors"] += 1
            log.info("stream from %s failed: %r", peer, error)
            await reset_quietly(stream)
        finally:
            open_streams[peer] -= 1
            if not open_streams[peer]:
                del open_streams[peer]

    host.get_network().set_stream_handler(handle)


def own_the_dialling(host: Any, dialling: frozenset[TProtocol]) -> None:
    """B9: the library dials by its own lights: known peers up to a watermark, and four times in a row.

    Bootstrap and mesh dials are made by `bootstrap.Connector`, which has backoff and tries every address, so that the
    library's automatic connector is silenced and its retries are taken out. Stock, opening a stream dials, too: a peer
    that was just disconnected, because it is banned perhaps, is dialled again by whoever was about to speak to it.

    Args:
        host: the host.
        dialling: protocols that may be opened to peers that are not connected.
    """
    swarm = host.get_network()
    open_stream = host.new_stream

    async def new_stream(peer: ID, protocols: Sequence[TProtocol]) -> INetStream:
        connected = any(not connection.is_closed for connection in swarm.get_connections(peer))
        if not connected and dialling.isdisjoint(protocols):
            # the kind that callers know how to take: gossip tries again while the peer is connected
            raise SwarmException(f"peer {peer} is not connected")
        stream: INetStream = await open_stream(peer, protocols)
        return stream

    async def connect_nobody() -> None:
        return None

    host.new_stream = new_stream
    swarm.auto_connector.maybe_connect = connect_nobody
    swarm.retry_config = RetryConfig(max_retries=0)


def close_only_what_is_there(host: Any) -> None:
    """B16: disconnecting forgets connections that are open.

    Stock, closing takes two tenths of a second, and at its end all of the peer's connections are forgotten, also one
    that came in the meantime: it stays open, and nobody ever closes it. And a connection to a peer that does not read
    is never closed, because the farewell is written first. Here what was open at the beginning is closed, nothing
    else is forgotten, and a farewell that takes too long is cut off.
    """
    swarm = host.get_network()

    async def close_peer(peer: ID) -> None:
        async with trio.open_nursery() as nursery:
            for connection in swarm.get_connections(peer):
                nursery.start_soon(close, connection)

    async def close(connection: Any) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut_off, connection)
                await connection.close()
                nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - closing a broken connection may fail in any way
            log.debug("closing a connection to %s failed: %r", connection.muxed_conn.peer_id, error)
        finally:
            swarm.remove_conn(connection)

    async def cut_off(connection: Any) -> None:
        await trio.sleep(_FAREWELL_S)
        await connection.muxed_conn.secured_conn.close()

    swarm.close_peer = close_peer


def forget_closed_listeners(host: Any) -> None:
    """B19: while a host closes, a peer that connects in that moment ends it with an error.

    Stock, greeting a peer asks the listening sockets for their addresses, and a socket that was just closed raises
    OSError, in a task of the host's services. Here a closed one has no address.
    """
    swarm = host.get_network()

    def addresses() -> list[Multiaddr]:
        found: list[Multiaddr] = []
        for listener in list(swarm.listeners.values()):
            try:
                found.extend(listener.get_addrs())
            except OSError as error:
                log.debug("a listener was just closed: %r", error)
        return found

    host.get_transport_addrs = addresses


def shielded(seconds: float) -> trio.CancelScope:
    """Return a scope for cleaning up: cancellation from outside is held off, but for a limited time only."""
    scope = trio.move_on_after(seconds)
    scope.shield = True
    return scope


async def reset_quietly(stream: INetStream) -> None:
    """Reset a stream, whatever state it is in."""
    try:
        await stream.reset()
    except Exception as error:  # noqa: BLE001 - a stream that is already gone may fail in any way
        log.debug("resetting a stream failed: %r", error)


async def close_quietly(stream: INetStream) -> None:
    """Close the writing side of a stream, whatever state it is in."""
    try:
        await stream.close()
    except Exception as error:  # noqa: BLE001 - a stream that is already gone may fail in any way
        log.debug("closing a stream failed: %r", error)


async def disconnect_quietly(host: Any, peer: ID) -> None:
    """Close all connections to a peer, even while being cancelled; takes at most two seconds."""
    with shielded(2):
        try:
            await host.disconnect(peer)
        except Exception as error:  # noqa: BLE001 - closing a broken connection may fail in any way
            log.debug("disconnecting %s failed: %r", peer, error)


async def write_whole(host: Any, stream: INetStream, data: bytes, timeout_s: float) -> bool:
    """Write all bytes, or close the connection: never leave half a write behind.

    A cancelled write can stop in the middle of an encrypted record, after which every stream of the connection is
    garbage to the other side. So writes are shielded from cancellation, bounded in time, and when the time is over the
    connection is closed.

    Returns:
        False if the stream failed or was too slow; it must not be used any more.

    Cancellation: delayed until the write ends, by at most `timeout_s`.
    """
    with shielded(timeout_s) as scope:
        try:
            await stream.write(data)
        except Exception as error:  # noqa: BLE001 - the library raises many kinds when a stream breaks
            log.debug("writing to %s failed: %r", stream.muxed_conn.peer_id, error)
            return False
    if scope.cancelled_caught:
        await disconnect_quietly(host, stream.muxed_conn.peer_id)
        return False
    return True


class ConnectionWatcher(INotifee):  # type: ignore[misc]
    """Tells a listener when a connection to a peer opens, and whether it was the last one that closes."""

    def __init__(self, listener: Any) -> None:
        """Args:
        listener: has the synchronous methods `connection_up(ID)`, `connection_down(ID)` and `connection_fewer(ID)`.
        """
        self._listener = listener

    async def connected(self, _network: INetwork, conn: INetConn) -> None:
        """Called by the swarm after it registered a connection."""
        self._listener.connection_up(conn.muxed_conn.peer_id)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """Called by the swarm after it removed a connection."""
        peer = conn.muxed_conn.peer_id
        if not network.get_connections(peer):
            self._listener.connection_down(peer)
        else:
            self._listener.connection_fewer(peer)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Not of interest."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """Not of interest."""

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Not of interest."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Not of interest."""
