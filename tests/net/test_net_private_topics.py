"""Private topics among real hosts: members hear each other; an outsider reads, writes and learns nothing."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2
from net_rig import linked, pair, start, until

from converge_p2p.net import Network
from converge_p2p.net.framing import encode_varint
from converge_p2p.net.names import raw_peer_id
from converge_p2p.net.topic_access import PRIVATE_PREFIX
from converge_p2p.net.topic_members import PROTOCOL

pytestmark = pytest.mark.network

SECRET = PRIVATE_PREFIX + "1/ab"
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
MESH = "/meshsub/1.1.0"


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(60):
        yield


async def take_part(network: Network, key: bytes = KEY, topic: str = SECRET) -> list[bytes]:
    heard: list[bytes] = []
    await network.subscribe(topic, lambda _peer, data: heard.append(data), member_key=key)
    return heard


async def meshed(one: Network, other: Network, topic: str = SECRET, timeout_s: float = 10.0) -> None:
    for here, there in ((one, other), (other, one)):
        await until(
            lambda here=here, there=there: raw_peer_id(there.peer_id) in here._gossip.router.mesh.get(topic, ()),
            f"{here.peer_id} has {there.peer_id} in its mesh",
            timeout_s,
        )


class Eavesdropper:
    """An outsider that keeps every gossip RPC it is sent."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.seen: list[Any] = []
        pubsub = network._gossip.pubsub
        handle = pubsub._handle_rpc

        async def note(peer: Any, rpc: Any) -> None:
            copy = rpc_pb2.RPC()
            copy.CopyFrom(rpc)
            self.seen.append(copy)
            with suppress(Exception):
                await handle(peer, rpc)

        pubsub._handle_rpc = note

    def heard_of(self, topic: str) -> bool:
        return any(topic.encode() in rpc.SerializeToString() for rpc in self.seen)


def count_heartbeats(network: Network) -> list[float]:
    beats: list[float] = []
    router = network._gossip.router
    beat = router.gossip_heartbeat

    def counted() -> Any:
        beats.append(trio.current_time())
        return beat()

    router.gossip_heartbeat = counted
    return beats


@pytest.mark.parametrize("first", ["topic first", "link first", "one of them later"])
async def test_members_find_and_hear_each_other(first):
    async with start(1) as one, start(2) as two:
        if first == "topic first":
            heard = await take_part(one)
            await take_part(two)
            await two.connect(one.addresses[0])
        elif first == "link first":
            await two.connect(one.addresses[0])
            await linked(one, two)
            heard = await take_part(one)
            await take_part(two)
        else:
            heard = await take_part(one)
            await two.connect(one.addresses[0])
            await linked(one, two)
            await take_part(two)
        await meshed(one, two)
        await two.publish(SECRET, b"hello")
        await until(lambda: heard == [b"hello"], "a member hears a member")


async def test_a_message_reaches_members_through_a_member_and_those_who_join_again():
    async with start(1) as one, start(2, peers_wanted=0) as two, start(3, peers_wanted=0) as three:
        heard = await take_part(two)
        await take_part(one)
        await take_part(three)
        for leaf in (two, three):
            await leaf.connect(one.addresses[0])
            await meshed(one, leaf)
        await three.publish(SECRET, b"through one")
        await until(lambda: heard == [b"through one"], "it is passed on")
        await two.unsubscribe(SECRET)
        await until(
            lambda: raw_peer_id(two.peer_id) not in one._gossip.pubsub.peer_topics.get(SECRET, ()), "it has left"
        )
        again = await take_part(two)
        await until(lambda: raw_peer_id(two.peer_id) in one._gossip.pubsub.peer_topics[SECRET], "it is back")
        # whoever left a mesh is taken back after a pause, as on public topics
        await meshed(one, two, timeout_s=30.0)
        await three.publish(SECRET, b"again")
        await until(lambda: b"again" in again, "it is heard again")


async def test_after_a_lost_connection_members_prove_themselves_anew():
    async with start(1, peers_wanted=0) as one, start(2, peers_wanted=0) as two:
        heard = await take_part(one)
        await take_part(two)
        await two.connect(one.addresses[0])
        await meshed(one, two)
        await two.disconnect(one.peer_id)
        await until(lambda: not one._access.topics_of(raw_peer_id(two.peer_id)), "what was proven is forgotten")
        await two.connect(one.addresses[0])
        await meshed(one, two)
        await two.publish(SECRET, b"back")
        await until(lambda: heard == [b"back"], "gossip goes on")


async def test_an_outsider_that_knows_the_name_learns_nothing_and_gets_nothing():
    """It asks for the topic in every way there is: subscription, graft, offers, and messages by their id."""
    async with pair() as (one, _, two, _), start(9) as outsider:
        ear = Eavesdropper(outsider)
        for member in (one, two):
            await outsider.connect(member.addresses[0])
            await linked(outsider, member)
        await take_part(one)
        await take_part(two)
        await meshed(one, two)
        # it takes part in a topic of the same name, with another key, and in a public one with both
        await take_part(outsider, OTHER_KEY)
        open_heard: list[bytes] = []
        await outsider.subscribe("open", lambda _peer, data: open_heard.append(data))
        for member in (one, two):
            await member.subscribe("open", lambda _peer, _data: None)
        await meshed(one, outsider, "open")
        stream = await outsider._host.new_stream(raw_peer_id(one.peer_id), [MESH])
        wanted = rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=SECRET)])
        wanted.control.graft.add(topicID=SECRET)
        wanted.control.ihave.add(topicID=SECRET, messageIDs=[b"x"])
        wanted.control.prune.add(topicID=SECRET, backoff=1)
        await two.publish(SECRET, b"the secret")
        await until(lambda: one.counters["gossip_delivered"] >= 1, "the members hear it")
        ids = list(one._gossip.router.mcache.msgs)
        wanted.control.iwant.add(messageIDs=[identifier.hex().encode() for identifier in ids])
        await _send(stream, wanted)
        for number in range(5):
            await two.publish(SECRET, b"the secret %d" % number)
        # what is sent over one link comes in order: when this has come, the rest would have come too
        await one.publish("open", b"done")
        await two.publish("open", b"done")
        await until(lambda: open_heard.count(b"done") == 2, "public gossip goes on", 20)
        beats = count_heartbeats(one)
        await until(lambda: len(beats) >= 3, "meshes are maintained, and offers made")
        async with start(10) as late:
            # it comes when the topic is in use, and is greeted
            greeted = Eavesdropper(late)
            await late.connect(one.addresses[0])
            await until(lambda: greeted.heard_of("open"), "the greeting has come")
            assert not greeted.heard_of(SECRET)
        assert not ear.heard_of(SECRET), "no subscription, graft, prune or offer names the topic"
        assert not any(b"the secret" in message.data for rpc in ear.seen for message in rpc.publish)
        for member in (one, two):
            assert raw_peer_id(outsider.peer_id) not in member._gossip.pubsub.peer_topics.get(SECRET, ())
            assert raw_peer_id(outsider.peer_id) not in member._gossip.router.mesh[SECRET]


async def test_what_an_outsider_publishes_is_not_taken():
    async with pair() as (one, _, outsider, _):
        heard = await take_part(one)
        await take_part(outsider, OTHER_KEY)
        stream = await outsider._host.new_stream(raw_peer_id(one.peer_id), [MESH])
        pubsub = outsider._gossip.pubsub
        sent = []
        pubsub.router.publish = _recording(sent)
        await pubsub.publish(SECRET, b"forged")
        await _send(stream, rpc_pb2.RPC(publish=sent))
        await until(lambda: one.counters["gossip_outsider"] == 1, "it is refused")
        assert heard == []


async def test_a_peer_that_subscribed_before_the_topic_was_joined_is_no_member_either():
    async with pair() as (one, _, outsider, _):
        stream = await outsider._host.new_stream(raw_peer_id(one.peer_id), [MESH])
        await _send(stream, rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=SECRET)]))
        await _send(stream, rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid="open")]))
        await until(lambda: "open" in one._gossip.pubsub.peer_topics, "the subscriptions have come")
        await take_part(one)
        assert not one._gossip.pubsub.peer_topics.get(SECRET)
        assert not one._gossip.router.mesh[SECRET]


async def test_floods_and_junk_on_the_proof_are_refused_and_members_get_through():
    async with start(1) as one, start(2) as two, start(9) as attacker:
        await take_part(one)
        await attacker.connect(one.addresses[0])
        await linked(attacker, one)
        for junk in (b"", b"\x00", b"\x00\x00\x00\x20" + bytes(32) + b"extra", b"\xff" * 8, b"\x00\x00\x00\x02ab"):
            for _ in range(12):
                with suppress(Exception):
                    stream = await attacker._host.new_stream(raw_peer_id(one.peer_id), [PROTOCOL])
                    await stream.write(junk)
                    await stream.close()
        await until(lambda: one.counters["topic_proofs_refused"] > 0, "a peer's proofs are bounded", 20)
        await take_part(two)
        await two.connect(one.addresses[0])
        await meshed(one, two)


async def _send(stream: Any, rpc: Any) -> None:
    data = rpc.SerializeToString()
    await stream.write(encode_varint(len(data)) + data)


def _recording(sent: list[Any]) -> Any:
    async def publish(_forwarder: Any, message: Any) -> None:
        sent.append(message)

    return publish
