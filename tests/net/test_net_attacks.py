"""Every fault of the transport library that lets a peer harm a node, shown by the attack."""

from __future__ import annotations

import multiaddr
import pytest
import trio
from libp2p import create_identity_from_seed, new_host
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from net_rig import Recorder, assert_serves, linked, pair, seed, start, until

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError
from converge_p2p.core.types import PeerId
from converge_p2p.net import Network
from converge_p2p.net.addresses import split_peer_address, tcp_port
from converge_p2p.net.framing import encode_varint
from converge_p2p.net.names import raw_peer_id

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("transport")]


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(30):
        yield


async def raw_stream(attacker: Network, victim: Network, protocol: str):
    return await attacker._host.new_stream(raw_peer_id(victim.peer_id), [protocol])


class Raising(Recorder):
    """A handler that fails at everything."""

    def peer_up(self, peer):
        raise ZeroDivisionError

    def frame(self, peer, payload):
        raise ZeroDivisionError

    async def request(self, peer, payload):
        raise ZeroDivisionError


async def test_b1_raising_handler_is_counted_and_the_network_lives():
    async with start(1, Raising()) as node, start(2) as peer:
        await peer.connect(node.addresses[0])
        await linked(node, peer)
        assert peer.send(node.peer_id, b"frame")
        with pytest.raises(NetworkError, match="could not answer"):
            await peer.request(node.peer_id, b"request")
        await until(lambda: node.counters["handler_errors"] == 3, "all three failures are counted")
        # the node still links: a peer that comes now is served as far as the handler allows
        async with start(3) as late:
            await late.connect(node.addresses[0])
            await linked(node, late)


async def test_b1_exception_in_a_stream_handler_ends_only_that_stream():
    async with pair() as (node, _, attacker, _):

        async def handler(stream):
            raise ExceptionGroup("many", [ValueError("whatever")])

        node._host.set_stream_handler("/bad/1", handler)
        # the reset may overtake the end of the negotiation, or be seen by the first read
        with pytest.raises((StreamError, StreamFailure)):
            await (await raw_stream(attacker, node, "/bad/1")).read(1)
        await until(lambda: node.counters["stream_handler_errors"] == 1, "the failure is contained")
        await assert_serves(node)


async def test_b1_protocol_name_that_is_not_utf8():
    async with pair() as (node, _, attacker, _):
        stream = await attacker._host.get_network().new_stream(raw_peer_id(node.peer_id))
        await stream.write(b"\x13/multistream/1.0.0\n" + b"\x05\xff\xfe\xfd\xfc\n")
        await until(lambda: node.counters["stream_handler_errors"] == 1, "the failure is contained")
        await assert_serves(node)


async def test_b1_garbage_protobuf_on_the_gossip_stream():
    async with pair() as (node, _, attacker, _):
        for garbage in (b"\xff" * 40, b"\x0a\x7f\x00", bytes(range(100))):
            stream = await raw_stream(attacker, node, "/meshsub/1.1.0")
            await stream.write(encode_varint(len(garbage)) + garbage)
        await until(lambda: node.counters["gossip_streams_refused"] >= 3, "the streams are refused")
        await assert_serves(node)


async def test_b1_gossip_frame_of_boundless_length():
    async with pair() as (node, _, attacker, _):
        stream = await raw_stream(attacker, node, "/meshsub/1.1.0")
        await stream.write(b"\xff" * 12)
        await until(lambda: node.counters["gossip_streams_refused"] == 1, "the stream is refused")
        await assert_serves(node)


async def test_b1_pubsub_messages_with_malformed_key_author_and_signature():
    received = []
    async with pair() as (node, _, attacker, _):
        await node.subscribe("t", lambda peer, data: received.append(data))
        me = raw_peer_id(attacker.peer_id).to_bytes()
        stream = await raw_stream(attacker, node, "/meshsub/1.1.0")
        bad = [
            # an author whose key is not in its id makes the library parse the malformed key
            rpc_pb2.Message(
                data=b"1", topicIDs=["t"], from_id=b"\x12\x20" + b"a" * 32, seqno=b"1" * 8, key=b"\xff\xff"
            ),
            rpc_pb2.Message(data=b"2", topicIDs=["t"], from_id=me, seqno=b"2" * 8, signature=b"s" * 64, key=b"\xff"),
            rpc_pb2.Message(data=b"3", topicIDs=["t"], from_id=me, seqno=b"3" * 8),
            rpc_pb2.Message(data=b"4", topicIDs=["t"], from_id=b"", seqno=b"4" * 8, signature=b"s" * 64),
        ]
        for message in bad:
            message.signature = message.signature or b"s" * 64
            data = rpc_pb2.RPC(publish=[message]).SerializeToString()
            await stream.write(encode_varint(len(data)) + data)
        await until(lambda: node.counters["gossip_bad_signature"] == 4, "all are refused")
        short = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=b"5", topicIDs=["t", "u"], from_id=me, seqno=b"5")])
        await stream.write(encode_varint(short.ByteSize()) + short.SerializeToString())
        await until(lambda: node.counters["gossip_malformed"] == 1, "the malformed one is refused")
        assert received == []
        await assert_serves(node)


async def test_b1_raising_validator_drops_the_message_only():
    received = []

    def validate(peer: PeerId, data: bytes) -> bool:
        if data == b"bad":
            raise ZeroDivisionError
        return data != b"invalid"

    async with pair() as (node, _, peer, _):
        await node.subscribe("t", lambda _, data: received.append(data), validate)
        await until(lambda: peer._gossip.pubsub.peer_topics.get("t"), "the subscription is known")
        for data in (b"bad", b"invalid", b"good"):
            await peer.publish("t", data)
        await until(lambda: received == [b"good"], "the good message comes")
        # a neighbour that is slow to say what it has offers both again, and they are judged again
        assert node.counters["gossip_invalid"] >= 2
        assert 1 <= node.counters["handler_errors"] < node.counters["gossip_invalid"]
        await assert_serves(node)


async def test_b2_plaintext_impostor_is_refused():
    async with start(1) as node, start(2) as victim_of_impersonation:
        identity = create_identity_from_seed(seed(2))
        impostor = new_host(key_pair=identity, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(identity)})
        async with impostor.run([]):
            peer, transport = split_peer_address(node.addresses[0])
            with pytest.raises(SwarmException), trio.fail_after(5):
                await impostor.connect(PeerInfo(raw_peer_id(peer), [multiaddr.Multiaddr(transport)]))
        assert node.peers() == ()
        assert victim_of_impersonation.peer_id == str(impostor.get_id())
        await assert_serves(node)


async def test_b3_inbound_slots_are_given_back():
    async with start(1, peers_max=4) as node:
        for number in range(12):
            async with start(10 + number, listen=()) as visitor:
                await visitor.connect(node.addresses[0])
                await linked(visitor, node)
        await until(lambda: node.peers() == (), "all visitors are gone")
        assert node._host.get_network()._inbound_limiter.borrowed_tokens == 0


async def test_more_connections_than_allowed_are_refused_and_cost_nothing():
    async with start(1, peers_max=2) as node, start(2, listen=()) as first, start(3, listen=()) as second:
        await first.connect(node.addresses[0])
        await second.connect(node.addresses[0])
        await linked(second, node)
        async with start(4, listen=()) as third:
            with pytest.raises(NetworkError, match="cannot reach peer"):
                await third.connect(node.addresses[0], timeout_s=3)
        assert len(node.peers()) == 2


async def test_idle_streams_of_one_peer_are_bounded():
    async with pair() as (node, _, attacker, _):
        for _ in range(limits.INBOUND_STREAMS_PER_PEER_MAX + 5):
            await attacker._host.get_network().new_stream(raw_peer_id(node.peer_id))
        await until(lambda: node.counters["inbound_stream_refused"] >= 5, "the excess is refused")
        await assert_serves(node)


async def test_bytes_that_are_no_protocol_at_all():
    async with start(1) as node:
        port = tcp_port(split_peer_address(node.addresses[0])[1])
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, b"\xff" * 1000, b"\x13/multistream/1.0.0\n\xff\xff"):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(garbage)
        await until(lambda: node.counters["inbound_connection_failed"] == 4, "all four are refused")
        await assert_serves(node)


async def test_frame_over_the_limit_disconnects_the_peer():
    async with pair(peers_wanted=0) as (node, recorder, attacker, _):
        stream = await raw_stream(attacker, node, "/converge/sync/1.0.0")
        await stream.write((limits.SYNC_FRAME_BYTES_MAX + 1).to_bytes(4, "big") + b"x")
        await until(lambda: node.counters["sync_frame_too_long"] == 1 and node.peers() == (), "it is thrown out")
        await until(lambda: recorder.links[-1] == ("down", attacker.peer_id), "the replica is told")
        await assert_serves(node)


async def test_direct_request_over_the_limit_and_cut_short():
    async with pair() as (node, _, attacker, _):
        stream = await raw_stream(attacker, node, "/converge/direct/1.0.0")
        await stream.write((limits.DIRECT_BYTES_MAX + 1).to_bytes(4, "big"))
        stream = await raw_stream(attacker, node, "/converge/direct/1.0.0")
        await stream.write(b"\0\0\0\x09short")
        await stream.close()
        await until(lambda: node.counters["direct_requests_broken"] == 2, "both are refused")
        assert await attacker.request(node.peer_id, b"ab") == b"ba"


async def test_peer_exchange_with_garbage():
    async with pair() as (node, _, attacker, _):
        for garbage in (b"\0\0\0\x01\xff", b"\0\0\0\x02\x81\x01", b"\xff\xff\xff\xff"):
            stream = await raw_stream(attacker, node, "/converge/peers/1.0.0")
            await stream.write(garbage)
        await until(lambda: node.counters["peer_exchange_refused"] == 3, "all are refused")
        await assert_serves(node)


async def test_banned_peer_stays_out_also_after_it_reconnects():
    async with pair() as (node, recorder, attacker, _):
        await node.ban(attacker.peer_id)
        await until(lambda: recorder.links[-1] == ("down", attacker.peer_id), "the ban disconnects")
        with pytest.raises(NetworkError):
            await node.connect(attacker.addresses[0])
        try:
            await attacker.connect(node.addresses[0])
        except NetworkError:
            pass
        await until(lambda: node.counters["peers_refused"] >= 1 and node.peers() == (), "it is thrown out again")
        node.unban(attacker.peer_id)
        await node.connect(attacker.addresses[0])


async def test_many_connects_and_disconnects_leave_nothing_behind():
    # nobody is dialled on anybody's behalf here, or the nodes would find each other again
    async with start(1, peers_wanted=0) as node, start(2, peers_wanted=0) as visitor:
        for _ in range(20):
            await visitor.connect(node.addresses[0])
            await visitor.disconnect(node.peer_id)
        await until(lambda: node.peers() == () and visitor.peers() == (), "all connections are gone")
        await until(lambda: not node._sync._links and not visitor._sync._links, "all links are forgotten")
        await assert_serves(node)
