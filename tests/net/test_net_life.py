"""Starting and stopping: ports, failures, cancellation, and not one leaked socket."""

from __future__ import annotations

import socket

import pytest
import trio
from libp2p.abc import INotifee
from libp2p.network.exceptions import SwarmException
from net_rig import LOCAL, Proxy, Recorder, free_port, linked, open_sockets, pair, quick, seed, socket_of, start, until

from converge_p2p.core.errors import ConfigError, NetworkError
from converge_p2p.core.identity import Identity
from converge_p2p.net import dht, exchange, open_network, peer_id_of
from converge_p2p.net.addresses import split_peer_address, tcp_port
from converge_p2p.net.names import raw_peer_id

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("transport")]


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(30):
        yield


async def test_peer_id_is_that_of_the_identity():
    async with start(1) as node:
        assert node.peer_id == peer_id_of(Identity.from_seed(seed(1)).public_key)
        assert node.addresses[0].endswith(f"/p2p/{node.peer_id}")


async def test_peer_info_tells_key_agent_and_direction():
    async with pair() as (one, _, two, _):
        (info,) = two.peers()
        identity = Identity.from_seed(seed(1))
        assert (info.public_key, info.agent_id) == (identity.public_key, identity.id)
        assert (info.direction, one.peers()[0].direction) == ("outbound", "inbound")
        assert f"{info.addresses[0]}/p2p/{info.peer_id}" in one.addresses
        assert two.good_addresses() == (one.addresses[0],)


async def test_wildcard_is_told_as_addresses_that_can_be_dialled():
    async with start(1, listen=("/ip4/0.0.0.0/tcp/0",)) as node, start(2) as peer:
        assert node.addresses
        assert not any("/0.0.0.0/" in address for address in node.addresses)
        await peer.connect(next(address for address in node.addresses if "/127.0.0.1/" in address))


async def test_b4_no_socket_is_left_after_closing():
    before = open_sockets()
    async with start(1) as hub:
        async with start(2) as one, start(3) as two:
            for peer in (one, two):
                await peer.connect(hub.addresses[0])
            await until(lambda: all(len(each.peers()) == 2 for each in (hub, one, two)), "all are connected")
            assert open_sockets() > before
        await until(lambda: hub.peers() == (), "the hub notices")
    await until(lambda: open_sockets() == before, f"{before} sockets as before, not {open_sockets()}")


async def test_b4_no_socket_is_left_after_cancellation():
    before = open_sockets()
    async with start(1) as hub:
        with trio.CancelScope() as scope:
            async with start(2) as peer:
                await peer.connect(hub.addresses[0])
                await linked(hub, peer)
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        await until(lambda: hub.peers() == (), "the hub sees the connection close")
    await until(lambda: open_sockets() == before, "all sockets are closed")


async def test_no_socket_is_left_by_dials_into_a_black_hole():
    before = open_sockets()
    async with start(1) as node:
        with socket.socket() as hole:
            hole.bind(("127.0.0.1", 0))
            hole.listen()
            address = f"/ip4/127.0.0.1/tcp/{hole.getsockname()[1]}/p2p/{peer_id_of(Identity.generate().public_key)}"
            started = trio.current_time()
            with pytest.raises(NetworkError, match=r"no answer within 0.5 s"):
                await node.connect(address, timeout_s=0.5)
            assert trio.current_time() - started < 2
    await until(lambda: open_sockets() == before, "all sockets are closed")


async def test_error_in_the_block_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        async with start(1):
            raise ZeroDivisionError


async def test_b10_occupied_port_is_an_error():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        with pytest.raises(NetworkError, match="another program holds this port"):
            async with start(1, listen=(address,)):
                pytest.fail("listening on an occupied port")


async def test_b10_port_of_another_node_is_not_shared():
    address = f"/ip4/127.0.0.1/tcp/{free_port()}"
    async with start(1, listen=(address,)):
        with pytest.raises(NetworkError, match="another program holds this port"):
            async with start(2, listen=(address,)):
                pytest.fail("two nodes on one port")


async def test_port_can_be_listened_on_again_at_once_after_connections():
    address = f"/ip4/127.0.0.1/tcp/{free_port()}"
    async with start(2) as peer:
        for _ in range(2):
            async with start(1, listen=(address,)) as node:
                await peer.connect(node.addresses[0])
                await linked(node, peer)


async def test_address_of_another_machine_is_an_error():
    with pytest.raises(NetworkError, match="no such address"):
        async with start(1, listen=("/ip4/192.0.2.1/tcp/4001",)):
            pytest.fail("listening on a foreign address")


@pytest.mark.parametrize("changes", [{"listen": ("nonsense",)}, {"bootstrap": (LOCAL,)}, {"known": ("/x",)}])
async def test_malformed_address_is_a_configuration_error(changes):
    with pytest.raises(ConfigError):
        async with start(1, **changes):
            pytest.fail("a malformed address was taken")


async def test_seed_of_the_wrong_length_is_a_configuration_error():
    with pytest.raises(ConfigError):
        async with open_network(quick(), seed=b"short", handler=Recorder()):
            pytest.fail("a short seed was taken")


async def test_own_address_is_not_dialled():
    async with start(1) as node:
        with pytest.raises(ConfigError, match="own address"):
            await node.connect(node.addresses[0])


async def test_frames_queued_at_closing_are_still_sent():
    async with start(1, recorder := Recorder()) as node:
        async with start(2) as peer:
            await peer.connect(node.addresses[0])
            await linked(node, peer)
            for number in range(50):
                assert peer.send(node.peer_id, b"%d" % number)
        await until(lambda: len(recorder.frames) == 50, "the last frames come")
        assert [payload for _, payload in recorder.frames] == [b"%d" % number for number in range(50)]


class _AtTheEnd(INotifee):
    """Does something at the end of a disconnection: the connection is removed, and the library is not done."""

    def __init__(self, action):
        self._action = action

    async def disconnected(self, _network, _connection):
        await self._action()

    async def _nothing(self, *_):
        """Not of interest."""

    connected = opened_stream = closed_stream = listen = listen_close = _nothing


async def test_b16_connection_that_comes_while_another_closes_is_not_forgotten():
    async with pair(peers_wanted=0) as (one, _, two, _):
        came = []

        async def come_again():
            if not came:
                await until(lambda: two.peers() == (), "the other side has noticed")
                await two.connect(one.addresses[0])
                came.extend(two._host.get_network().get_connections(raw_peer_id(one.peer_id)))

        one._host.get_network().register_notifee(_AtTheEnd(come_again))
        await one.disconnect(two.peer_id)
        assert len(came) == 1
        assert [peer.peer_id for peer in one.peers()] == [two.peer_id]
        await linked(one, two)
        # and what is known can be closed
        await one.disconnect(two.peer_id)
        await until(lambda: came[0].is_closed, "the connection is closed")
        await until(lambda: one.peers() == () and two.peers() == (), "neither side counts it any more")


async def test_b18_gossip_goes_on_when_a_peer_returns_at_once():
    heard = []
    async with pair(peers_wanted=0) as (one, _, two, _):
        await one.subscribe("t", lambda _, data: heard.append(data))
        await two.subscribe("t", lambda _, data: heard.append(data))
        sides = [(one._gossip, raw_peer_id(two.peer_id)), (two._gossip, raw_peer_id(one.peer_id))]
        await until(lambda: all(peer in side.router.mesh["t"] for side, peer in sides), "the mesh stands")
        before = [side.pubsub.peer_queues[peer] for side, peer in sides]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.disconnect, two.peer_id)
            await until(lambda: one.peers() == () and two.peers() == (), "both sides have noticed")
            # the library tells of the end a tenth of a second after it
            await two.connect(one.addresses[0])
        await linked(one, two)
        queues = [side.pubsub.peer_queues for side, _ in sides]
        fresh = zip(queues, sides, before, strict=True)
        await until(
            lambda fresh=list(fresh): all(q.get(peer) not in (None, old) for q, (_, peer), old in fresh),
            "both sides write to the new connection",
        )
        await until(lambda: all(peer in side.router.mesh["t"] for side, peer in sides), "the mesh stands again")
        await one.publish("t", b"to two")
        await two.publish("t", b"to one")
        await until(lambda: sorted(heard) == [b"to one", b"to two"], "nothing is lost")


async def test_b16_connection_to_a_peer_that_does_not_read_is_closed():
    async with trio.open_nursery() as nursery:
        async with start(1, peers_wanted=0) as one, start(2, peers_wanted=0) as two:
            proxy = Proxy(tcp_port(split_peer_address(one.addresses[0])[1]))
            await nursery.start(proxy.run)
            await two.connect(f"/ip4/127.0.0.1/tcp/{proxy.port}/p2p/{one.peer_id}")
            await linked(one, two)
            proxy.fall_silent()
            (connection,) = two._host.get_network().get_connections(raw_peer_id(one.peer_id))
            raw = socket_of(connection.muxed_conn)
            full = 0
            while full < 3:
                try:
                    raw._sock.send(bytes(1 << 20))
                except BlockingIOError:
                    full += 1
                    await trio.lowlevel.checkpoint()
            await two.disconnect(one.peer_id)
            assert two.peers() == ()
            assert raw.fileno() == -1
        nursery.cancel_scope.cancel()


async def test_b9_opening_a_stream_dials_nobody_but_for_the_hash_table():
    async with pair(peers_wanted=0, dht=True) as (one, _, two, _):
        await two.disconnect(one.peer_id)
        await until(lambda: one.peers() == () and two.peers() == (), "both sides have noticed")
        raw = raw_peer_id(one.peer_id)
        assert two._host.get_peerstore().addrs(raw), "the library could dial"
        with pytest.raises(SwarmException, match="is not connected"):
            await two._host.new_stream(raw, [exchange.PROTOCOL])
        assert two.peers() == ()
        await (await two._host.new_stream(raw, [dht.PROTOCOL])).reset()
        assert [peer.peer_id for peer in two.peers()] == [one.peer_id]


async def test_b19_a_listener_that_was_just_closed_has_no_address_and_ends_nothing() -> None:
    async with start(1) as one, start(2) as two:

        def closed() -> None:
            raise OSError(9, "Bad file descriptor")

        for listener in one._host.get_network().listeners.values():
            listener.get_addrs = closed
        assert one._host.get_transport_addrs() == []
        # greeting a peer asks for the addresses
        await one.connect(two.addresses[0])
        await linked(one, two)
        assert one.addresses == ()
