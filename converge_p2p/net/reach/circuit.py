"""A circuit through a relay, as the transport library sees a connection that is not yet encrypted.

Knows: streams of the transport library. Must not know: how a circuit is asked for, or what it carries.
Source: libp2p specifications, relay/circuit-v2.md: a connection over a circuit is upgraded as any other (the network's
key, noise, yamux), so that the relay reads nothing, and cannot pass itself off as either end.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final

import trio
from libp2p.abc import ConnectionType, INetStream
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from converge_p2p.net.fast.stream import FastStream
from converge_p2p.net.fast.stream_wire import StreamWire
from converge_p2p.net.hardening import log, reset_quietly, shielded

_LINGER_S: Final = 1.0
_READ_BYTES: Final = 32_768


class CircuitStream(ReadWriteCloser):  # type: ignore[misc]
    """A stream to a relay that carries a connection."""

    def __init__(self, stream: INetStream) -> None:
        """Use a stream whose negotiation with the relay is over."""
        self._stream = stream
        self._closed = False

    def wire(self) -> StreamWire | None:
        """Return the wire for a fast session, or None if the connection to the relay has the library's multiplexer."""
        muxed = self._stream.muxed_stream
        return StreamWire(muxed) if isinstance(muxed, FastStream) else None

    async def read(self, n: int | None = None) -> bytes:
        """Read up to `n` bytes; none at the end."""
        try:
            data: bytes = await self._stream.read(n)
        except StreamEOF:
            return b""
        return data

    async def write(self, data: bytes) -> None:
        """Write all of `data`."""
        await self._stream.write(data)

    async def close(self) -> None:
        """End the circuit; what was written arrives, if the other side ends its direction soon."""
        if self._closed:
            return
        self._closed = True
        with shielded(_LINGER_S):
            try:
                await self._stream.close()
                while await self.read(_READ_BYTES):
                    # what comes now is for nobody
                    continue
            except Exception as error:  # noqa: BLE001 - closing a broken stream may fail in any way
                log.debug("ending a circuit failed: %r", error)
        with shielded(_LINGER_S):
            await reset_quietly(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return None: where the other side is only the relay sees, and the relay's address is not the peer's."""
        return None


def circuit_connection(stream: INetStream, relay: ID, initiator: bool) -> RawConnection:
    """Return a connection over a circuit, to be upgraded."""
    address = Multiaddr(f"/p2p/{relay}/p2p-circuit")
    return RawConnection(CircuitStream(stream), initiator, ConnectionType.RELAYED, [address])


def is_relayed(connection: Any) -> bool:
    """Say whether a connection runs over a circuit."""
    try:
        kind = connection.get_connection_type()
    except AttributeError:
        return False
    return bool(kind is ConnectionType.RELAYED)


def relay_of(connection: Any) -> ID:
    """Return which relay a connection over a circuit runs through; see `is_relayed`."""
    (address,) = connection.get_transport_addresses()
    return ID.from_string(address.value_for_protocol("p2p"))


def directly_connected(host: Any, peer: ID) -> bool:
    """Say whether there is a connection to a peer that runs over no circuit."""
    return any(
        not connection.is_closed and not is_relayed(connection.muxed_conn)
        for connection in host.get_network().get_connections(peer)
    )


def host_of_connection(connection: Any) -> str:
    """Return what counts as one host: an IPv4 address, or the 64-bit prefix that an IPv6 host owns; or nothing."""
    remote = connection.get_remote_address()
    try:
        address = ipaddress.ip_address(remote[0] if remote else "")
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


async def hold_until_closed(muxed: Any, raw: RawConnection) -> None:
    """Wait for the end of a connection over a circuit, and end the circuit."""
    try:
        await muxed.event_closed.wait()
    finally:
        with trio.CancelScope(shield=True):
            await raw.close()
