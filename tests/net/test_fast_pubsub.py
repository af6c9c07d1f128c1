"""Gossip 1.2: neighbours are spared copies of large messages only, and what they ask for is bounded."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2
from net_rig import linked, pair, start, until

from converge_p2p.core import limits
from converge_p2p.net import Transport
from converge_p2p.net.fast.pubsub import FastGossipSub
from converge_p2p.net.framing import encode_varint
from converge_p2p.net.gossip_limits import reduced_control
from converge_p2p.net.names import raw_peer_id

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(30):
        yield


@pytest.fixture
def remembering(monkeypatch):
    """The heartbeat, which comes at any moment, forgets nothing of what neighbours do not want."""
    monkeypatch.setattr(FastGossipSub, "_prune_idontwant_entries", lambda _router: None)


async def test_neighbours_are_told_of_large_messages_only_and_send_them_no_more(remembering):
    """Three nodes, everybody linked with everybody."""
    got: list[tuple[int, bytes]] = []
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(start(number)) for number in (1, 2, 3)]
        for index, node in enumerate(nodes):
            for other in nodes[:index]:
                await node.connect(other.addresses[0])
                await linked(node, other)
            await node.subscribe("t", lambda _, data, index=index: got.append((index, data)))
        routers = [node._gossip.router for node in nodes]
        await until(lambda: all(len(router.mesh.get("t", ())) == 2 for router in routers), "the mesh stands")
        first, *others = nodes
        small, large = bytes(limits.GOSSIP_IDONTWANT_BYTES_MIN - 1), bytes(limits.GOSSIP_IDONTWANT_BYTES_MIN)
        await first.publish("t", small)
        await until(lambda: len(got) == 2, "both neighbours hear it")
        assert not any(node.counters["gossip_idontwant_sent"] for node in nodes)

        await first.publish("t", large)
        await until(lambda: len(got) == 4, "both neighbours hear it")
        # whichever of the two hears it from the first before the other hands it on
        names = [raw_peer_id(node.peer_id) for node in others]
        sides = [(routers[1], names[1]), (routers[2], names[0])]
        await until(lambda: any(router.dont_send_message_ids[peer] for router, peer in sides), "one of them is told")
        router, them = next((router, peer) for router, peer in sides if router.dont_send_message_ids[peer])
        (message_id,) = router.dont_send_message_ids[them]
        author = raw_peer_id(first.peer_id)
        assert message_id.startswith(author.to_bytes())
        assert them not in set(router._get_peers_to_send(["t"], author, author, message_id))
        assert them in set(router._get_peers_to_send(["t"], author, author, b"another"))
        assert first.counters["gossip_idontwant_sent"] == 0


async def test_what_a_neighbour_does_not_want_is_bounded_in_number_and_length(remembering):
    async with pair(peers_wanted=0) as (node, _, attacker, _):
        await node.subscribe("t", lambda *_: None)
        stream = await attacker._host.new_stream(raw_peer_id(node.peer_id), ["/meshsub/1.2.0"])
        router, them = node._gossip.router, raw_peer_id(attacker.peer_id)
        rpc = rpc_pb2.RPC()
        rpc.control.idontwant.add(messageIDs=[os.urandom(limits.GOSSIP_ID_BYTES_MAX + 1)] * 10)
        rpc.control.idontwant.add(messageIDs=[os.urandom(44) for _ in range(2 * limits.GOSSIP_UNWANTED_IDS_MAX)])
        await stream.write(encode_varint(rpc.ByteSize()) + rpc.SerializeToString())
        await until(lambda: node.counters["gossip_idontwant_dropped"], "the excess is dropped")
        unwanted = router.dont_send_message_ids[them]
        assert len(unwanted) == limits.GOSSIP_UNWANTED_IDS_MAX
        assert {len(message_id) for message_id in unwanted} == {44}
        await attacker.disconnect(node.peer_id)
        await until(lambda: them not in router.dont_send_message_ids, "it is forgotten with the peer")


async def test_control_messages_share_one_bound():
    control = rpc_pb2.ControlMessage()
    control.iwant.add(messageIDs=[b"w"] * (limits.GOSSIP_CONTROL_IDS_MAX - 1))
    control.idontwant.add(messageIDs=[b"a", b"b"])
    assert [list(part.messageIDs) for part in reduced_control(control, ()).idontwant] == [[b"a"]]


async def test_with_the_stock_transport_1_1_is_spoken():
    async with pair(transport=Transport.STOCK) as (one, _, two, _):
        await until(lambda: raw_peer_id(two.peer_id) in one._gossip.router.peer_protocol, "gossip is negotiated")
        assert one._gossip.router.peer_protocol[raw_peer_id(two.peer_id)] == "/meshsub/1.1.0"
        assert type(one._gossip.router).__name__ == "HardenedGossipSub"


async def test_a_full_queue_is_counted(monkeypatch):
    async with pair() as (one, _, two, _):
        for node in (one, two):
            await node.subscribe("t", lambda *_: None)
        router = one._gossip.router
        await until(lambda: router.mesh.get("t"), "the mesh stands")
        them = raw_peer_id(two.peer_id)
        full = SimpleNamespace(push=lambda _frame, priority=False: False)
        monkeypatch.setitem(one._gossip.pubsub.peer_queues, them, full)
        message = rpc_pb2.Message(data=bytes(2000), topicIDs=["t"], from_id=b"\x00\x01a", seqno=bytes(8))
        await router.publish(raw_peer_id("12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust"), message)
        assert one.counters["gossip_send_dropped"] == 2
        monkeypatch.undo()


async def test_what_neighbours_do_not_want_is_forgotten_with_the_heartbeat():
    async with pair() as (node, _, attacker, _):
        unwanted = node._gossip.router.dont_send_message_ids
        await until(lambda: raw_peer_id(attacker.peer_id) in unwanted, "the neighbour is known")
        unwanted[raw_peer_id(attacker.peer_id)].add(b"id")
        await until(lambda: unwanted[raw_peer_id(attacker.peer_id)] == set(), "it is forgotten")
