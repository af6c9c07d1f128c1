"""Peer exchange: what is told is read back, and anything else is refused."""

from __future__ import annotations

import pytest

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.types import PeerId, PublicKey
from converge_p2p.net.exchange import decode_peers, encode_peers
from converge_p2p.net.names import peer_id_of


def peer(number: int) -> PeerId:
    return peer_id_of(PublicKey(bytes([number]) * 32))


def test_peers_are_read_back() -> None:
    peers = [(peer(1), ("/ip4/192.0.2.1/tcp/1", "/dns4/node.example/tcp/2")), (peer(2), ())]
    assert decode_peers(encode_peers(peers)) == peers


def test_largest_answer_fits_its_limit() -> None:
    name = "/dns4/" + ".".join(["x" * 60] * 3)[: limits.ADDRESS_BYTES_MAX - 75] + "/tcp/1"
    peers = [(peer(number), (name,) * limits.ADDRESSES_PER_PEER_MAX) for number in range(limits.EXCHANGED_PEERS_MAX)]
    data = encode_peers(peers)
    assert len(data) <= limits.EXCHANGE_BYTES_MAX
    assert decode_peers(data) == peers


def test_address_of_a_later_transport_is_left_out() -> None:
    data = encode([[bytes(32), ["/ip4/192.0.2.1/udp/1/quic-v1", "/ip4/192.0.2.1/tcp/1"]]])
    assert decode_peers(data)[0][1] == ("/ip4/192.0.2.1/tcp/1",)


@pytest.mark.parametrize(
    "value",
    [
        1,
        {},
        [1],
        [[bytes(32)]],
        [[bytes(31), []]],
        [["key", []]],
        [[bytes(32), 1]],
        [[bytes(32), [1]]],
        [[bytes(32), ["x" * (limits.ADDRESS_BYTES_MAX + 1)]]],
        [[bytes(32), ["/ip4/192.0.2.1/tcp/1"] * (limits.ADDRESSES_PER_PEER_MAX + 1)]],
        [[bytes(32), []]] * (limits.EXCHANGED_PEERS_MAX + 1),
    ],
)
def test_anything_else_is_a_violation(value: object) -> None:
    with pytest.raises(RemoteViolation):
        decode_peers(encode(value))


def test_bytes_that_are_not_canonical_are_a_violation() -> None:
    with pytest.raises(RemoteViolation):
        decode_peers(b"\x98\x00")
