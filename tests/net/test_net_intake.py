"""What a peer can make the library hold, shown by the attack; and what the node does with peers that go on."""

from __future__ import annotations

import os
import struct
import time
from contextlib import AsyncExitStack, suppress

import multiaddr
import pytest
import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.network.stream.exceptions import StreamError
from libp2p.pubsub.pb import rpc_pb2
from net_rig import Recorder, assert_serves, inject, linked, pair, start, until

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError
from converge_p2p.net import Network
from converge_p2p.net.addresses import split_peer_address, tcp_port
from converge_p2p.net.framing import encode_varint
from converge_p2p.net.names import raw_peer_id

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("transport")]

MULTISTREAM = b"\x13/multistream/1.0.0\n"


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(30):
        yield


def port_of(network: Network) -> int:
    return tcp_port(split_peer_address(network.addresses[0])[1])


async def raw_stream(attacker: Network, victim: Network, protocol: str):
    return await attacker._host.new_stream(raw_peer_id(victim.peer_id), [protocol])


async def test_b12_a_protocol_name_without_end_is_refused_at_its_length():
    async with pair() as (node, _, attacker, _):
        async with await trio.open_tcp_stream("127.0.0.1", port_of(node)) as stream:
            await stream.send_all(MULTISTREAM + encode_varint(2**40))
            # the victim hangs up although not a byte of the name came
            with suppress(trio.BrokenResourceError):
                while await stream.receive_some(1000):
                    pass
        await until(lambda: node.counters["inbound_connection_failed"] == 1, "the connection is refused")
        inner = await attacker._host.get_network().new_stream(raw_peer_id(node.peer_id))
        await inner.write(MULTISTREAM + encode_varint(2**40))
        assert await inner.read(len(MULTISTREAM)) == MULTISTREAM
        with pytest.raises(StreamError):
            await inner.read(1)
        await assert_serves(node)


async def test_b13_a_peer_that_ignores_the_window_is_cut_off():
    async with pair(peers_wanted=0) as (node, recorder, attacker, _):

        async def never_read(_stream):
            await trio.sleep_forever()

        node._host.set_stream_handler("/unread/1", never_read)
        stream = await raw_stream(attacker, node, "/unread/1")
        connection = attacker._host.get_network().get_connections(raw_peer_id(node.peer_id))[0].muxed_conn
        part = bytes(60_000)
        data = struct.pack(">BBHII", 0, 0, 0, stream.muxed_stream.stream_id, len(part)) + part
        with suppress(Exception):
            for _ in range(50):
                await inject(connection, data)
        await until(lambda: node.peers() == (), "the connection is closed")
        assert node.counters["stream_window_overrun"] == 1
        assert recorder.links[-1] == ("down", attacker.peer_id)
        await assert_serves(node)


async def test_b14_stalled_handshakes_keep_nobody_out():
    async with start(1, peers_max=4) as node, AsyncExitStack() as stack:
        for _ in range(limits.HANDSHAKES_MAX + 10):
            await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port_of(node)))
        visitor = await stack.enter_async_context(start(2, listen=()))
        await visitor.connect(node.addresses[0], timeout_s=5)
        await linked(visitor, node)
        assert node.counters["handshakes_given_up"] >= 10


async def test_b15_control_messages_about_unknown_topics_leave_no_trace():
    async with pair() as (node, _, attacker, _):
        await node.subscribe("known", lambda _peer, _data: None)
        stream = await raw_stream(attacker, node, "/meshsub/1.1.0")
        rpc = rpc_pb2.RPC()
        for name in ("known", "unknown"):
            prune = rpc.control.prune.add(topicID=name, backoff=2**40)
            prune.peers.add(peerID=os.urandom(34))
            rpc.control.graft.add(topicID=name)
            rpc.control.ihave.add(topicID=name, messageIDs=[b"00"])
        await stream.write(encode_varint(rpc.ByteSize()) + rpc.SerializeToString())
        router, me = node._gossip.router, raw_peer_id(attacker.peer_id)
        await until(lambda: "known" in router.back_off, "the part about the known topic is taken")
        assert set(router.back_off) == {"known"}
        assert router.back_off["known"][me] < time.time() + 1000
        assert set(router.ihave_message_limits[me]) <= {"known"}
        await attacker.disconnect(node.peer_id)
        await until(lambda: router.back_off == {}, "it is forgotten with the peer")


async def test_b15_a_topic_with_a_name_without_end_is_refused():
    async with pair() as (node, _, attacker, _):
        stream = await raw_stream(attacker, node, "/meshsub/1.1.0")
        rpc = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid="n" * 300)])
        await stream.write(encode_varint(rpc.ByteSize()) + rpc.SerializeToString())
        await until(lambda: node.counters["gossip_streams_refused"] == 1, "the stream is refused")
        assert not any(len(topic) > limits.GOSSIP_TOPIC_BYTES_MAX for topic in node._gossip.pubsub.peer_topics)


async def test_claims_of_one_peer_are_few_and_of_the_right_form_and_for_itself():
    async with pair(dht=True) as (node, _, attacker, _):
        store = node._dht._kad.provider_store

        async def claim(key, peer):
            message = KadMessage(type=KadMessage.ADD_PROVIDER, key=key)
            provider = message.providerPeers.add(id=raw_peer_id(peer).to_bytes())
            provider.addrs.extend(multiaddr.Multiaddr(f"/ip4/10.0.0.1/tcp/{n}").to_bytes() for n in range(50))
            stream = await raw_stream(attacker, node, "/converge/kad/1.0.0")
            await stream.write(encode_varint(message.ByteSize()) + message.SerializeToString())
            # answered when it was dealt with, or reset
            with suppress(StreamError):
                await stream.read(1)

        await claim(os.urandom(64), attacker.peer_id)
        await claim(os.urandom(32), node.peer_id)
        assert store.providers == {}
        for _ in range(15):
            await claim(os.urandom(32), attacker.peer_id)
        # ten in ten seconds, and two were spent above
        assert len(store.providers) == 8
        (kept,) = next(iter(store.providers.values())).values()
        assert len(kept.addresses) == limits.ADDRESSES_PER_PEER_MAX
        await assert_serves(node)


async def test_a_peer_that_goes_on_breaking_the_protocol_is_kept_out():
    async with pair(peers_wanted=0) as (node, _, attacker, _), start(3, listen=(), peers_wanted=0) as honest:
        await honest.connect(node.addresses[0])
        await linked(honest, node)
        await node.subscribe("t", lambda _peer, _data: None)
        stream = await raw_stream(attacker, node, "/meshsub/1.1.0")
        me = raw_peer_id(attacker.peer_id).to_bytes()
        for number in range(limits.VIOLATIONS_MAX):
            seqno = number.to_bytes(8, "big")
            forged = rpc_pb2.Message(data=b"1", topicIDs=["t"], from_id=me, seqno=seqno, signature=b"s" * 64)
            rpc = rpc_pb2.RPC(publish=[forged])
            await stream.write(encode_varint(rpc.ByteSize()) + rpc.SerializeToString())
        await until(lambda: [peer.peer_id for peer in node.peers()] == [honest.peer_id], "only the attacker is gone")
        assert node.counters["violations"] == limits.VIOLATIONS_MAX
        assert node.counters["peers_banned"] == 1
        with pytest.raises(NetworkError):
            await node.connect(attacker.addresses[0])


class Expensive(Recorder):
    """A handler whose work costs processor time."""

    def frame(self, peer, payload):
        super().frame(peer, payload)
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass


async def test_a_peer_whose_frames_cost_much_is_read_later(monkeypatch):
    monkeypatch.setattr(limits, "PEER_WORK_BURST_S", 0.1)
    async with start(1, Expensive()) as node, start(2, listen=()) as costly:
        await costly.connect(node.addresses[0])
        await linked(costly, node)
        began = trio.current_time()
        for _ in range(20):
            assert costly.send(node.peer_id, b"x")
        await until(lambda: node.counters["sync_frames_received"] == 20, "all frames come in the end")
        # 0.4 s of work, of which 0.1 s are free and the rest may take half of the time
        assert trio.current_time() - began >= 0.55
        assert node.counters["sync_work_throttled"] > 0
