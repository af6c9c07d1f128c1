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
from converge_p2p.net.private_network import GREETING, NONCE_BYTES, xsalsa20

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


BEFORE, READY, SWITCHED, AFTER = (
    {"network_key": OTHER_KEY},
    {"network_key": OTHER_KEY, "accepted_key": KEY},
    {"network_key": KEY, "accepted_key": OTHER_KEY},
    {"network_key": KEY},
)
"""What a node has at each step of a change from the other key to the key."""


@pytest.mark.parametrize(
    "step", [(BEFORE, READY), (READY, READY), (READY, SWITCHED), (SWITCHED, SWITCHED), (SWITCHED, AFTER)]
)
async def test_nodes_that_are_one_step_apart_in_a_change_of_the_key_dial_each_other(step):
    here, there = step
    for dialling, listening in ((here, there), (there, here)):
        async with start(1, **listening) as node, start(2, **dialling) as visitor:
            await visitor.connect(node.addresses[0])
            await linked(visitor, node)
            assert await visitor.request(node.peer_id, b"abc" * 50_000) == b"cba" * 50_000
            other = dialling["network_key"] != listening["network_key"]
            assert node.by_accepted_key == other
            assert visitor.by_accepted_key == 0
            await visitor.disconnect(node.peer_id)
            await until(lambda node=node: node.by_accepted_key == 0, "it is counted no more")


async def test_a_change_of_the_key_ends_for_who_did_not_take_part():
    async with start(1, **AFTER) as node, start(2, **READY) as late, start(3, **SWITCHED) as other:
        with pytest.raises(NetworkError, match="another private network"):
            await late.connect(node.addresses[0])
        # a node that is not ready for the new key is not reached with it, and a stranger has neither
        async with start(4, **BEFORE) as asleep, start(5, network_key=NetworkKey(bytes(32))) as stranger:
            for dialling, listening in ((other, asleep), (stranger, other)):
                with trio.fail_after(FAST_S), pytest.raises(NetworkError, match="another private network"):
                    await dialling.connect(listening.addresses[0])


async def test_who_waits_for_a_nonce_before_it_speaks_is_met_with_its_key():
    """js-libp2p does so: a listener that waited for the greeting in silence would wait for ever."""
    async with start(1, **SWITCHED) as node:
        port = tcp_port(split_peer_address(node.addresses[0])[1])
        for key in (KEY, OTHER_KEY):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                with trio.fail_after(FAST_S):
                    reads = xsalsa20(key.secret, await _exactly(stream, NONCE_BYTES))
                    nonce = b"\x05" * NONCE_BYTES
                    for byte in nonce + xsalsa20(key.secret, nonce).encrypt(GREETING):
                        await stream.send_all(bytes([byte]))
                    assert reads.decrypt(await _exactly(stream, len(GREETING))) == GREETING


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_second_key_needs_a_first_one_that_is_another(key):
    with pytest.raises(ConfigError, match="another network key is to be accepted"):
        async with start(1, network_key=key, accepted_key=KEY):
            raise AssertionError("not reached")


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


async def _exactly(stream, count):
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        assert more, "the other side ended the connection"
        data += more
    return data


async def _dial(host, address):
    with suppress(SwarmException):
        await host.connect(info_from_p2p_addr(Multiaddr(address)))
