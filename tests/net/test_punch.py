"""From a relay to a direct connection, as far as one machine shows it; whole routers are in tests/network."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr
from net_rig import Recorder, linked, start, until

from converge_p2p.core import limits
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.types import PeerId
from converge_p2p.net import Network, RelayBounds, RelayUse
from converge_p2p.net.names import raw_peer_id
from converge_p2p.net.reach.messages import encode_message
from converge_p2p.net.reach.punch import PROTOCOL, _addresses_of

pytestmark = pytest.mark.network

PEER = PeerId("12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq")


def is_direct(one: Network, other: Network) -> bool:
    """Whether all connections from one node to another are direct, and there are some."""
    return any(peer.peer_id == other.peer_id and not peer.relayed for peer in one.peers())


def connections(one: Network, other: Network) -> int:
    return len(one._host.get_network().get_connections(raw_peer_id(other.peer_id)))


@pytest.mark.parametrize("key", [None, NetworkKey(bytes(range(32)))])
async def test_a_hidden_node_dials_back_who_reached_it_through_a_relay(transport: Any, key: NetworkKey | None) -> None:
    settings: dict[str, Any] = {"peers_wanted": 0, "hole_punch": True, "network_key": key}
    seen = Recorder()
    async with (
        start(1, relay_service=RelayBounds(), **settings) as relay,
        start(2, seen, listen=(), relay_client=RelayUse.ON, bootstrap=(relay.addresses[0],), **settings) as hidden,
        start(3, **settings) as visitor,
    ):
        await until(lambda: hidden.reachability.relays, "a place at the relay")
        circuit = next(address for address in hidden.addresses if "p2p-circuit" in address)
        await visitor.connect(circuit)
        await until(lambda: is_direct(hidden, visitor) and is_direct(visitor, hidden), "a direct connection")
        await until(lambda: connections(visitor, hidden) == connections(hidden, visitor) == 1, "the relay to be left")
        await until(lambda: relay._reach.relay_service.circuits == 0, "the circuit to end")
        # what ran through the relay goes on without it
        await relay.disconnect(hidden.peer_id)
        await linked(visitor, hidden)
        assert await visitor.request(hidden.peer_id, b"abc") == b"cba"
        visitor.send(hidden.peer_id, b"frame")
        await until(lambda: (visitor.peer_id, b"frame") in seen.frames, "a frame of the replication stream")


async def test_where_nobody_can_dial_the_relay_stays_in_use() -> None:
    settings: dict[str, Any] = {"peers_wanted": 0, "hole_punch": True, "listen": (), "relay_client": RelayUse.ON}
    async with (
        start(1, relay_service=RelayBounds(), peers_wanted=0) as relay,
        start(2, bootstrap=(relay.addresses[0],), **settings) as one,
        start(3, bootstrap=(relay.addresses[0],), **settings) as other,
    ):
        await until(lambda: one.reachability.relays, "a place at the relay")
        await other.connect(one.addresses[0])
        await until(lambda: one.counters["punches_tried"] == 3, "three tries", 30)
        assert one.counters["punches_succeeded"] == other.counters["punches_succeeded"] == 0
        assert await other.request(one.peer_id, b"abc") == b"cba"
        assert not is_direct(one, other)


async def test_nobody_who_is_connected_directly_has_others_dialled() -> None:
    async with start(1, hole_punch=True) as one, start(2) as other:
        await other.connect(one.addresses[0])
        # refused before it is heard, so that even the negotiation may not end
        with contextlib.suppress(StreamFailure):
            stream = await other._host.new_stream(raw_peer_id(one.peer_id), [PROTOCOL])
            message = HolePunch(type=HolePunch.CONNECT)
            message.ObsAddrs.append(Multiaddr("/ip4/192.0.2.1/tcp/1").to_bytes())
            await stream.write(encode_message(message))
        await until(lambda: one.counters["punches_refused"] == 1, "the refusal")
        assert one.counters["punches_tried"] == 0


@pytest.mark.parametrize("garbage", [b"\x05hello", encode_message(HolePunch(type=HolePunch.SYNC))])
async def test_garbage_through_a_relay_ends_its_stream_and_is_counted(garbage: bytes) -> None:
    async with (
        start(1, relay_service=RelayBounds(), peers_wanted=0) as relay,
        start(2, listen=(), relay_client=RelayUse.ON, bootstrap=(relay.addresses[0],), peers_wanted=0) as hidden,
        start(3, peers_wanted=0, hole_punch=True) as visitor,
    ):
        await until(lambda: hidden.reachability.relays, "a place at the relay")
        await visitor.connect(next(address for address in hidden.addresses if "p2p-circuit" in address))
        stream = await hidden._host.new_stream(raw_peer_id(visitor.peer_id), [PROTOCOL])
        await stream.write(garbage)
        await until(lambda: visitor.counters["punches_broken"] == 1, "the garbage to be counted")
        assert await visitor.request(hidden.peer_id, b"abc") == b"cba"
        # and the next try is heard
        assert visitor._reach._puncher._busy == set()


def test_of_the_addresses_in_a_message_only_so_many_direct_ones_of_ip_hosts_are_dialled() -> None:
    message = HolePunch(type=HolePunch.CONNECT)
    texts = ["/dns4/example.org/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip4/192.0.2.1/udp/1/quic-v1", "/ip4/192.0.2.1/tcp/7"]
    message.ObsAddrs.extend(Multiaddr(text).to_bytes() for text in texts)
    assert _addresses_of(message, PEER) == ["/ip4/192.0.2.1/tcp/7"]
    many = HolePunch(type=HolePunch.CONNECT)
    many.ObsAddrs.extend(Multiaddr(f"/ip4/192.0.2.1/tcp/{port}").to_bytes() for port in range(1, 50))
    many.ObsAddrs.append(b"junk")
    assert len(_addresses_of(many, PEER)) == limits.PUNCH_ADDRESSES_MAX


async def test_so_many_are_tried_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PUNCHES_AT_ONCE_MAX", 0)
    async with (
        start(1, relay_service=RelayBounds(), peers_wanted=0) as relay,
        start(
            2, listen=(), relay_client=RelayUse.ON, bootstrap=(relay.addresses[0],), peers_wanted=0, hole_punch=True
        ) as hidden,
        start(3, peers_wanted=0) as visitor,
    ):
        await until(lambda: hidden.reachability.relays, "a place at the relay")
        await visitor.connect(next(address for address in hidden.addresses if "p2p-circuit" in address))
        await until(lambda: hidden.counters["punches_refused"] >= 1, "the refusal")
        with trio.fail_after(5):
            assert await visitor.request(hidden.peer_id, b"abc") == b"cba"
