"""The fast transport and the library's own speak with each other, whoever dials."""

from __future__ import annotations

import multiaddr
import pytest
import trio
from libp2p import create_identity_from_seed, new_host
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.host.ping import PingService
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE, Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import Yamux
from net_rig import Recorder, linked, seed, start, until

from converge_p2p.core import limits
from converge_p2p.net import Network, Transport
from converge_p2p.net.addresses import split_peer_address
from converge_p2p.net.fast.yamux import FastYamux
from converge_p2p.net.host import close_host
from converge_p2p.net.names import raw_peer_id

pytestmark = pytest.mark.network

DIALS = [(Transport.FAST, Transport.STOCK), (Transport.STOCK, Transport.FAST), (Transport.FAST, Transport.FAST)]


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(60):
        yield


class Ranked:
    """Records are numbers; the higher replaces the lower."""

    def rank(self, key: str, value: bytes) -> int | None:
        return int(value) if value.isdigit() else None


def muxer_of(network: Network, peer: Network) -> type:
    (connection,) = network._host.get_network().get_connections(raw_peer_id(peer.peer_id))
    return type(connection.muxed_conn)


@pytest.mark.parametrize(("dialler", "listener"), DIALS)
async def test_everything_works_between_the_two(dialler: Transport, listener: Transport):
    first, second = Recorder(), Recorder()
    settings = {"dht": True, "validators": {"number": Ranked()}}
    async with (
        start(1, first, transport=listener, **settings) as one,
        start(2, second, transport=dialler, **settings) as two,
    ):
        await two.connect(one.addresses[0])
        await linked(one, two)
        assert muxer_of(one, two) is (FastYamux if listener is Transport.FAST else Yamux)
        assert muxer_of(two, one) is (FastYamux if dialler is Transport.FAST else Yamux)

        # replication frames both ways, of every size up to the largest
        sizes = [0, 1, 1000, 65_519, 65_520, 262_144, limits.SYNC_FRAME_BYTES_MAX]
        for size in sizes:
            payload = bytes(number % 251 for number in range(size))
            assert one.send(two.peer_id, payload)
            assert two.send(one.peer_id, payload)
        await until(lambda: len(first.frames) == len(second.frames) == len(sizes), "all frames come")
        for recorder in (first, second):
            assert [len(payload) for _, payload in recorder.frames] == sizes
            assert all(
                payload == bytes(number % 251 for number in range(len(payload))) for _, payload in recorder.frames
            )

        # requests both ways
        question = b"q" * (limits.DIRECT_BYTES_MAX - 1) + b"!"
        assert await one.request(two.peer_id, question) == question[::-1]
        assert await two.request(one.peer_id, question) == question[::-1]

        # identify has told each side what the other speaks
        for here, there in ((one, two), (two, one)):
            spoken = here._host.get_peerstore().get_protocols(raw_peer_id(there.peer_id))
            assert "/converge/sync/1.0.0" in spoken

        # topics both ways
        heard: list[tuple[str, bytes]] = []
        await one.subscribe("t", lambda _, data: heard.append(("one", data)))
        await two.subscribe("t", lambda _, data: heard.append(("two", data)))
        await until(lambda: one._gossip.router.mesh.get("t") and two._gossip.router.mesh.get("t"), "the mesh stands")
        expected = set()
        for number in range(50):
            data = b"%d" % number * (number * 50)
            await one.publish("t", b"from one " + data)
            await two.publish("t", b"from two " + data)
            expected |= {("two", b"from one " + data), ("one", b"from two " + data)}
        await until(lambda: len(heard) == 100, "all messages come")
        assert set(heard) == expected

        # records both ways
        await until(lambda: one._dht.peers and two._dht.peers, "the tables are filled")
        await one.put_record("/number/a", b"1")
        assert await two.get_record("/number/a") == b"1"
        await two.put_record("/number/a", b"2")
        assert await one.get_record("/number/a") == b"2"

        for network in (one, two):
            assert network.counters["violations"] == 0
            assert network.counters["gossip_send_dropped"] == 0


@pytest.mark.parametrize("library_dials", [True, False])
async def test_plain_host_of_the_library_pings_and_is_pinged(library_dials: bool):
    identity = create_identity_from_seed(seed(9))
    noise = NoiseTransport(identity, noise_privkey=create_new_key_pair().private_key)
    local = multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")
    host = new_host(key_pair=identity, sec_opt={NOISE: noise}, listen_addrs=[local])
    async with start(1, peers_wanted=0) as node, host.run([local]):
        if library_dials:
            peer, address = split_peer_address(node.addresses[0])
            await host.connect(PeerInfo(raw_peer_id(peer), [multiaddr.Multiaddr(address)]))
        else:
            await node.connect(str(host.get_addrs()[0]))
        assert len(await PingService(host).ping(raw_peer_id(node.peer_id), ping_amt=3)) == 3
        assert len(await PingService(node._host).ping(host.get_id(), ping_amt=3)) == 3
        # or the library leaks the socket
        await close_host(host)


async def test_stock_and_fast_measure_the_round_trip_with_each_other():
    async with start(1, transport=Transport.FAST) as one, start(2, transport=Transport.STOCK) as two:
        await two.connect(one.addresses[0])
        await linked(one, two)
        connection = one._host.get_network().get_connections(raw_peer_id(two.peer_id))[0].muxed_conn
        connection.machine.ping(trio.current_time())
        connection.after_change()
        await until(lambda: connection.rtt() > 0, "the library answers the ping")
        theirs = two._host.get_network().get_connections(raw_peer_id(one.peer_id))[0].muxed_conn
        await until(lambda: theirs.rtt() > 0, "the library's ping is answered")
