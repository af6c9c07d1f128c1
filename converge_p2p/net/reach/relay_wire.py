"""Messages of the relay protocols: a reservation is asked for, a circuit is opened, and what is answered.

Knows: their encoding. Must not know: who may do what.
Source: libp2p specifications, relay/circuit-v2.md. How a message stands on a stream: `messages`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from multiaddr import Multiaddr

from converge_p2p.core.errors import RemoteViolation
from converge_p2p.net.reach.messages import BAD_MESSAGE, encode_message

HOP: Final = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP: Final = TProtocol("/libp2p/circuit/relay/0.2.0/stop")


class Status(IntEnum):
    """How a request ended."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True, slots=True)
class CircuitLimit:
    """What a relay lets one circuit have. 0 is no limit.

    Attributes:
        duration_s: how long it may last.
        data_bytes: how much it may carry in each direction.
    """

    duration_s: int = 0
    data_bytes: int = 0


def peer_of(message: Any) -> ID:
    """Return the peer that a request names.

    Raises:
        RemoteViolation: none, or not a peer id.
    """
    raw = message.peer.id if message.HasField("peer") else b""
    # an identity multihash of an Ed25519 key has 38 bytes, the hash of any other key has 34
    if not 2 < len(raw) <= 64:
        raise RemoteViolation(BAD_MESSAGE, "the request names no peer")
    return ID(raw)


def limit_of(message: Any) -> CircuitLimit:
    """Return the limit that an answer or a request states."""
    if not message.HasField("limit"):
        return CircuitLimit()
    return CircuitLimit(message.limit.duration, message.limit.data)


def reserve() -> bytes:
    """Ask for a reservation."""
    return encode_message(HopMessage(type=HopMessage.RESERVE))


def reserved(expires_at: int, addresses: Iterable[Multiaddr], limit: CircuitLimit) -> bytes:
    """Grant a reservation.

    Args:
        expires_at: Unix time, seconds.
        addresses: of the relay, with its peer id.
        limit: for each circuit.
    """
    message = HopMessage(type=HopMessage.STATUS, status=Status.OK.value)  # type: ignore[arg-type]
    message.reservation.expire = expires_at
    message.reservation.addrs.extend(address.to_bytes() for address in addresses)
    message.limit.duration, message.limit.data = limit.duration_s, limit.data_bytes
    return encode_message(message)


def connect(target: ID) -> bytes:
    """Ask a relay for a circuit to a peer."""
    message = HopMessage(type=HopMessage.CONNECT)
    message.peer.id = target.to_bytes()
    return encode_message(message)


def offer(source: ID, limit: CircuitLimit) -> bytes:
    """Offer a circuit from a peer to the one that made a reservation."""
    message = StopMessage(type=StopMessage.CONNECT)
    message.peer.id = source.to_bytes()
    message.limit.duration, message.limit.data = limit.duration_s, limit.data_bytes
    return encode_message(message)


def hop_status(status: Status, limit: CircuitLimit | None = None) -> bytes:
    """Answer a request to a relay."""
    message = HopMessage(type=HopMessage.STATUS, status=status.value)  # type: ignore[arg-type]
    if limit is not None:
        message.limit.duration, message.limit.data = limit.duration_s, limit.data_bytes
    return encode_message(message)


def stop_status(status: Status) -> bytes:
    """Answer the offer of a circuit."""
    return encode_message(StopMessage(type=StopMessage.STATUS, status=status.value))  # type: ignore[arg-type]


def status_of(message: Any) -> Status | None:
    """Return how the other side answered, or None if that is no answer this version knows."""
    if message.type != type(message).STATUS or not message.HasField("status"):
        return None
    try:
        return Status(message.status)
    except ValueError:
        return None
