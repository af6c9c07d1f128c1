"""How libp2p is made to use the fast session and multiplexer: the same handshake, the same negotiation.

Knows: where the library builds its sessions and multiplexers. Must not know: how these work.
Source: libp2p 0.8.1: the multiplexer of a connection is hard-coded in its `MuxerMultistream.new_conn`, so that the
upgrader around it is replaced, which is a setting of the network and no patch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE, Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX, Yamux
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from converge_p2p.core.types import PeerId
from converge_p2p.net.fast.records import Opener, Sealer
from converge_p2p.net.fast.session import FastSession, SocketWire, Wire
from converge_p2p.net.fast.yamux import FastYamux
from converge_p2p.net.hardening import Counters
from converge_p2p.net.private_network import GreetedConnection, ProtectedConnection
from converge_p2p.net.reach.circuit import CircuitStream

_KNOWN = (RawConnection, GreetedConnection, ProtectedConnection)


class FastNoise(NoiseTransport):  # type: ignore[misc]
    """The library's handshake; after it, the fast session takes the keys over."""

    async def secure_inbound(self, conn: Any) -> Any:
        """Answer a handshake."""
        return _taken_over(await super().secure_inbound(conn), conn)

    async def secure_outbound(self, conn: Any, peer_id: ID) -> Any:
        """Begin a handshake."""
        return _taken_over(await super().secure_outbound(conn, peer_id), conn)


def _taken_over(stock: Any, raw: Any) -> Any:
    """Return a fast session in place of the library's, or the library's if what carries the connection is not known.

    What the fast session writes goes to the socket, or to the stream to a relay, past the connection that was
    negotiated on. So it has to be one of those whose every layer is known: a private network's cipher is taken over as
    well.
    """
    wire = _wire_below(getattr(raw, "stream", None))
    if type(raw) not in _KNOWN or wire is None:
        return stock
    encrypt, decrypt = raw.ciphers() if isinstance(raw, ProtectedConnection) else (None, None)
    protocol = stock.conn.noise_state.noise_protocol
    seal, open_ = protocol.cipher_state_encrypt, protocol.cipher_state_decrypt
    sealer, opener = Sealer(bytes(seal.k), seal.n, encrypt), Opener(bytes(open_.k), open_.n, decrypt)
    return FastSession(stock, wire, sealer, opener, raw)


def _wire_below(carrier: Any) -> Wire | None:
    if isinstance(carrier, CircuitStream):
        return carrier.wire()
    socket_stream = getattr(carrier, "stream", None)
    return SocketWire(socket_stream) if type(socket_stream) is trio.SocketStream else None


class FastUpgrader(TransportUpgrader):  # type: ignore[misc]
    """Negotiates as the library does, and builds the fast multiplexer on a fast session."""

    def __init__(self, noise: FastNoise, counters: Counters, blame: Callable[[PeerId], None]) -> None:
        """Offer noise and yamux only.

        Args:
            noise: the handshake.
            counters: where connections count refusals, drops and violations.
            blame: called with a peer that broke the protocol of its connection.
        """
        super().__init__({NOISE: noise}, {TProtocol(YAMUX): Yamux})
        self._counters = counters
        self._blame = blame

    async def upgrade_connection(self, conn: Any, peer_id: ID) -> Any:
        """Negotiate a multiplexer.

        Raises:
            MuxerUpgradeFailure: the peer speaks none that this side does.
        """
        if not isinstance(conn, FastSession):
            return await super().upgrade_connection(conn, peer_id)
        muxers = self.muxer_multistream
        try:
            protocol, _ = await muxers._selector.select(conn, conn.is_initiator, muxers.negotiate_timeout)
        except (MultiselectError, MultiselectClientError) as error:
            raise MuxerUpgradeFailure("failed to negotiate the multiplexer protocol") from error
        connection = FastYamux(conn, peer_id, self._counters, self._blame)
        return muxers._annotate_connection(connection, conn, protocol)
