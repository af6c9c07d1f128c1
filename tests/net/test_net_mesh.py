"""Staying connected: bootstrap peers that come and go, peers learned from peers, links that die silently."""

from __future__ import annotations

import pytest
import trio
from net_rig import Proxy, Recorder, free_port, linked, start, until

from converge_p2p.core.errors import NetworkError
from converge_p2p.net.addresses import split_peer_address, tcp_port
from converge_p2p.net.names import raw_peer_id

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("transport")]


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(30):
        yield


async def test_b9_bootstrap_peer_that_is_down_is_dialled_until_it_comes_and_again_when_it_returns():
    listen = (f"/ip4/127.0.0.1/tcp/{free_port()}",)
    async with start(1, listen=listen) as bootstrap:
        address = bootstrap.addresses[0]
    async with start(2, bootstrap=(address,)) as node:
        await until(lambda: node.counters["dials_failed"] >= 3, "several dials failed")
        for _ in range(2):
            async with start(1, listen=listen) as bootstrap:
                await linked(node, bootstrap)
            await until(lambda: node.peers() == (), "the loss is noticed")


async def test_b9_all_addresses_of_a_bootstrap_peer_are_tried():
    async with start(1) as bootstrap:
        alive = bootstrap.addresses[0]
        dead = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{bootstrap.peer_id}"
        async with start(2, bootstrap=(dead, alive)) as node:
            await linked(node, bootstrap)


async def test_b9_failed_dial_does_not_forbid_the_next_one():
    async with start(1) as node, start(2) as peer:
        dead = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{peer.peer_id}"
        with pytest.raises(NetworkError, match="cannot reach peer") as caught:
            await node.connect(dead)
        assert "check that the node runs" in caught.value.hint
        assert await node.connect(peer.addresses[0]) == peer.peer_id


async def test_wrong_peer_at_an_address_is_an_error_and_not_a_connection():
    async with start(1) as node, start(2) as peer, start(3) as other:
        wrong = f"{split_peer_address(peer.addresses[0])[1]}/p2p/{other.peer_id}"
        with pytest.raises(NetworkError, match="cannot reach peer"):
            await node.connect(wrong)


async def test_mesh_learns_itself_from_one_bootstrap_peer_and_outlives_it():
    async with start(2) as one, trio.open_nursery() as nursery:
        stop = trio.Event()

        async def run_bootstrap(task_status):
            async with start(1) as bootstrap:
                task_status.started(bootstrap.addresses[0])
                await stop.wait()

        address = await nursery.start(run_bootstrap)
        await one.connect(address)
        async with start(3, bootstrap=(address,)) as two, start(4, bootstrap=(address,)) as three:
            nodes = (one, two, three)
            await until(lambda: all(len(node.peers()) == 3 for node in nodes), "everybody knows everybody")
            stop.set()
            await until(lambda: all(len(node.peers()) == 2 for node in nodes), "the bootstrap peer is gone")
            # a broken connection between the rest is restored from what they learned
            await one.disconnect(two.peer_id)
            await linked(one, two)
            # and a newcomer finds them all through any one of them
            async with start(5, bootstrap=(three.addresses[0],)) as newcomer:
                await until(lambda: len(newcomer.peers()) == 3, "the newcomer knows everybody")


async def test_known_addresses_of_an_earlier_run_replace_the_bootstrap_peer():
    async with start(1) as one:
        async with start(2) as two:
            await two.connect(one.addresses[0])
            known = two.good_addresses()
        async with start(2, known=known) as two:
            await linked(one, two)


async def test_b11_link_that_falls_silent_is_closed():
    quick_pings = {"health_delay_s": 0.1, "health_interval_s": 0.3, "health_timeout_s": 0.5, "peers_wanted": 0}
    recorder = Recorder()
    async with trio.open_nursery() as nursery:
        async with start(1, recorder, **quick_pings) as node, start(2, **quick_pings) as peer:
            proxy = Proxy(tcp_port(split_peer_address(node.addresses[0])[1]))
            await nursery.start(proxy.run)
            await peer.connect(f"/ip4/127.0.0.1/tcp/{proxy.port}/p2p/{node.peer_id}")
            await linked(node, peer)
            await trio.sleep(1)
            assert recorder.links == [("up", peer.peer_id)], "pings close no healthy link"
            proxy.fall_silent()
            await until(lambda: node.peers() == () and peer.peers() == (), "both sides notice")
            assert recorder.links[-1] == ("down", peer.peer_id)
        nursery.cancel_scope.cancel()


async def test_simultaneous_dials_of_two_nodes_end_linked():
    async with start(1) as one, start(2) as two, trio.open_nursery() as nursery:
        nursery.start_soon(one.connect, two.addresses[0])
        nursery.start_soon(two.connect, one.addresses[0])
        await linked(one, two)
        assert one.send(two.peer_id, b"x")
        assert two.send(one.peer_id, b"y")


async def test_replication_stream_is_opened_again_when_it_breaks():
    first = Recorder()
    async with start(1, first) as one, start(2, second := Recorder()) as two:
        await two.connect(one.addresses[0])
        await linked(one, two)
        # the receiving side resets it, as it does when its reader fails
        await two._sync._links[raw_peer_id(one.peer_id)].inbound.reset()
        await until(lambda: [kind for kind, _ in second.links] == ["up", "down", "up"], "down and up again")
        await linked(one, two)
        assert one.send(two.peer_id, b"after")
        await until(lambda: second.frames == [(one.peer_id, b"after")], "frames come again")
