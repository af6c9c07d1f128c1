"""Private networks: the cipher of the specification, and strangers who are refused at once and told why (B17)."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from libp2p import create_identity_from_seed, new_host
from libp2p.network.exceptions import SwarmException
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr
from net_rig import Recorder, linked, start, until

from converge_p2p.core.errors import ConfigError, NetworkError
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.net.addresses import split_peer_address, tcp_port
from converge_p2p.net.private_network import GREETING

pytestmark = pytest.mark.network

KEY = NetworkKey(bytes(range(32)))
OTHER_KEY = NetworkKey(b"\x07" * 32)

FAST_S = 5.0
"""Far below the half minute of a negotiation that is left waiting, and far above what a refusal takes."""


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(60):
        yield


async def test_hosts_with_one_key_speak_to_each_other():
    received = []
    async with start(1, network_key=KEY) as one, start(2, network_key=KEY) as two:
        await two.connect(one.addresses[0])
        await linked(one, two)
        assert await two.request(one.peer_id, b"abc" * 50_000) == b"cba" * 50_000
        await one.subscribe("t", lambda _peer, data: received.append(data))
        await two.subscribe("t", lambda _peer, _data: None)
        await until(lambda: two._gossip.router.mesh.get("t"), "the mesh forms")
        await two.publish("t", b"hello")
        await until(lambda: received == [b"hello"], "gossip comes over")


@pytest.mark.parametrize(
    ("inside", "outside", "told"),
    [
        (KEY, OTHER_KEY, "another private network"),
        (KEY, None, "may belong to a private network"),
        (None, KEY, "not in a private network"),
    ],
    ids=["wrong key", "no key", "key where none is used"],
)
async def test_b17_a_stranger_is_refused_at_once_and_told_why(inside, outside, told):
    async with start(1, network_key=inside) as node, start(2, network_key=outside) as stranger:
        with trio.fail_after(FAST_S), pytest.raises(NetworkError, match=told):
            await stranger.connect(node.addresses[0])
        await until(lambda: node.counters["strangers_refused"] == 1, "the refusal is counted", FAST_S)
        assert node.peers() == ()
        assert len(node._host.get_network().connections) == 0
        async with start(3, network_key=inside, listen=()) as member:
            await member.connect(node.addresses[0])
            await linked(member, node)


async def test_b17_the_first_bytes_of_a_stranger_are_enough_however_they_come():
    """The fault: a reader that waits for the end of a random length, until the negotiation gives up."""
    async with start(1, network_key=KEY) as node:
        port = tcp_port(split_peer_address(node.addresses[0])[1])
        for parts in ([GREETING], [GREETING[:5], GREETING[5:]], [bytes(24) + b"\x7f" * 2]):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                for part in parts:
                    await stream.send_all(part)
                with trio.fail_after(FAST_S):
                    while await stream.receive_some(1000):
                        pass
        await until(lambda: node.counters["strangers_refused"] == 3, "all are refused")
        assert not node._host.get_network().connections


async def test_b17_a_stock_host_of_the_library_speaks_another_cipher():
    async with start(1, network_key=KEY) as node:
        host = new_host(key_pair=create_identity_from_seed(b"\x09" * 32), psk=KEY.secret.hex())
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_dial, host, node.addresses[0])
                # what the stock host takes for the beginning of the text is the end of our nonce
                await until(lambda: node.counters["strangers_refused"] == 1, "it is refused", FAST_S)
                nursery.cancel_scope.cancel()
            assert node.peers() == ()
            await host.close()


async def test_what_goes_around_the_key_is_refused_before_anything_is_opened():
    quic = "/ip4/127.0.0.1/udp/0/quic-v1"
    for setting in ("listen", "bootstrap", "announce"):
        with pytest.raises(ConfigError, match="private network: udp goes around"):
            async with start(1, network_key=KEY, **{setting: (quic,)}):
                raise AssertionError("not reached")


async def test_a_node_behind_a_stranger_goes_on_with_its_own_network():
    """A bootstrap address of another network must not keep a node from its own."""
    async with start(1, network_key=OTHER_KEY) as foreign, start(2, network_key=KEY) as own:
        both = (foreign.addresses[0], own.addresses[0])
        async with start(3, Recorder(), network_key=KEY, bootstrap=both) as node:
            await linked(node, own)
            assert [peer.peer_id for peer in node.peers()] == [own.peer_id]


async def _dial(host, address):
    with suppress(SwarmException):
        await host.connect(info_from_p2p_addr(Multiaddr(address)))
