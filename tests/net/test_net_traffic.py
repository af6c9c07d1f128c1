"""Traffic: bursts arrive, slow peers cost the others nothing, queues stay bounded."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from net_rig import Recorder, linked, pair, start, until

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, NetworkError
from converge_p2p.net.names import raw_peer_id

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("transport")]


@pytest.fixture(autouse=True)
async def _in_time():
    with trio.fail_after(30):
        yield


async def subscribed(publisher, topic, count):
    await until(lambda: len(publisher._gossip.pubsub.peer_topics.get(topic, ())) == count, "subscriptions are known")


async def test_b5_burst_of_gossip_arrives_whole_and_in_order():
    received = []
    async with pair() as (one, _, two, _):
        await two.subscribe("t", lambda peer, data: received.append((peer, data)))
        await subscribed(one, "t", 1)
        for number in range(500):
            await one.publish("t", b"%d" % number)
        await until(lambda: len(received) == 500, "all messages come")
        assert received == [(one.peer_id, b"%d" % number) for number in range(500)]


async def test_gossip_is_forwarded_once_and_own_messages_do_not_come_back():
    received: dict[str, list[bytes]] = {"a": [], "b": [], "c": []}
    # a chain: the ends know each other only through the middle
    async with start(1, peers_wanted=0) as a, start(2, peers_wanted=0) as b, start(3, peers_wanted=0) as c:
        await a.connect(b.addresses[0])
        await c.connect(b.addresses[0])
        for name, node in (("a", a), ("b", b), ("c", c)):
            await node.subscribe("t", lambda _, data, name=name: received[name].append(data))
        await subscribed(b, "t", 2)
        await until(lambda: len(b._gossip.router.mesh["t"]) == 2, "the mesh is formed")
        await a.publish("t", b"news")
        await until(lambda: received["c"], "the far end hears it")
        assert received == {"a": [], "b": [b"news"], "c": [b"news"]}


async def test_invalid_gossip_is_not_forwarded():
    received = []
    async with start(1, peers_wanted=0) as a, start(2, peers_wanted=0) as b, start(3, peers_wanted=0) as c:
        await a.connect(b.addresses[0])
        await c.connect(b.addresses[0])
        await a.subscribe("t", lambda *_: None)
        await b.subscribe("t", lambda *_: None, lambda _, data: data != b"bad")
        await c.subscribe("t", lambda _, data: received.append(data))
        await until(lambda: len(b._gossip.router.mesh["t"]) == 2, "the mesh is formed")
        for data in (b"bad", b"good"):
            await a.publish("t", data)
        await until(lambda: received == [b"good"], "only the valid message passes")


async def test_gossip_subscriber_that_never_reads_costs_the_others_nothing():
    received = []
    async with start(1) as publisher, start(2) as good, start(3) as stalled:
        for node in (good, stalled):
            await node.connect(publisher.addresses[0])

        async def handler(stream):
            hello = await stream.read(65_536)
            assert hello
            await trio.sleep_forever()

        for protocol in ("/meshsub/1.2.0", "/meshsub/1.1.0", "/meshsub/1.0.0"):
            stalled._host.set_stream_handler(protocol, handler)
        before = publisher._host.get_network().get_connections(raw_peer_id(stalled.peer_id))
        await stalled._host.get_network().close_peer(raw_peer_id(publisher.peer_id))
        await until(lambda: all(each.is_closed for each in before), "reconnecting with the stalled handler")
        await stalled.connect(publisher.addresses[0])
        await good.subscribe("t", lambda _, data: received.append(data))
        await stalled.subscribe("t", lambda *_: None)
        await subscribed(publisher, "t", 2)
        payload = b"x" * 16_000
        for number in range(1, 901):
            await publisher.publish("t", payload)
            if number % 100 == 0:
                # at the pace of the good one: together it is nearly twice of what the queue of the stalled one holds
                await until(lambda number=number: len(received) == number, "the good subscriber gets everything")
        assert publisher.counters["gossip_send_dropped"] > 0
        queue = publisher._gossip.pubsub.peer_queues.get(raw_peer_id(stalled.peer_id))
        assert queue is None or queue._bytes <= limits.OUTBOUND_QUEUE_BYTES_MAX


async def test_topic_is_subscribed_once_and_can_be_left():
    received = []
    async with pair() as (one, _, two, _):
        await two.subscribe("t", lambda _, data: received.append(data))
        with pytest.raises(LocalError, match="subscribed already"):
            await two.subscribe("t", lambda *_: None)
        await subscribed(one, "t", 1)
        await two.unsubscribe("t")
        await until(lambda: "t" not in one._gossip.pubsub.peer_topics, "the departure is known")
        await two.subscribe("t", lambda _, data: received.append(b"again " + data))
        await subscribed(one, "t", 1)
        await one.publish("t", b"x")
        await until(lambda: received == [b"again x"], "the new listener hears it")


async def test_too_long_messages_are_refused_where_they_are_made():
    async with pair() as (one, _, two, _):
        with pytest.raises(LimitExceeded):
            await one.publish("t", bytes(limits.GOSSIP_DATA_BYTES_MAX + 1))
        with pytest.raises(LimitExceeded):
            one.send(two.peer_id, bytes(limits.SYNC_FRAME_BYTES_MAX + 1))
        with pytest.raises(LimitExceeded):
            await one.request(two.peer_id, bytes(limits.DIRECT_BYTES_MAX + 1))


async def test_largest_allowed_messages_arrive():
    received = []
    async with pair() as (one, _, two, recorder):
        await two.subscribe("t", lambda _, data: received.append(data))
        await subscribed(one, "t", 1)
        await one.publish("t", b"g" * limits.GOSSIP_DATA_BYTES_MAX)
        assert one.send(two.peer_id, b"s" * limits.SYNC_FRAME_BYTES_MAX)
        assert await one.request(two.peer_id, b"d" * limits.DIRECT_BYTES_MAX) == b"d" * limits.DIRECT_BYTES_MAX
        await until(lambda: received and recorder.frames, "both arrive")
        assert received == [b"g" * limits.GOSSIP_DATA_BYTES_MAX]
        assert recorder.frames == [(one.peer_id, b"s" * limits.SYNC_FRAME_BYTES_MAX)]


async def test_frames_keep_their_order_and_bounds():
    async with pair() as (one, _, two, recorder):
        payloads = [b"%d" % number * (number % 700) for number in range(3000)]
        for payload in payloads:
            assert one.send(two.peer_id, payload)
        await until(lambda: len(recorder.frames) == 3000, "all frames come")
        assert [payload for _, payload in recorder.frames] == payloads


async def test_frames_to_a_peer_that_does_not_read_are_dropped_and_counted():
    async with pair(peers_wanted=0) as (one, _, two, _):
        link = two._sync._links[raw_peer_id(one.peer_id)]
        # the reader waits for a link that never comes up, as if its handler were stuck
        link.is_up, link.up = False, trio.Event()
        sent = 0
        while one.send(two.peer_id, bytes(limits.SYNC_FRAME_BYTES_MAX)):
            sent += 1
            assert sent < 1000
        assert one.counters["sync_frames_dropped"] == 1
        queued = one._sync._links[raw_peer_id(two.peer_id)].queued_bytes
        assert queued <= limits.OUTBOUND_QUEUE_BYTES_MAX
        link.is_up = True
        link.up.set()


async def test_send_to_somebody_unknown_says_so():
    async with start(1) as node, start(2) as stranger:
        assert not node.send(stranger.peer_id, b"x")
        with pytest.raises(NetworkError, match="not connected"):
            await node.request(stranger.peer_id, b"x")


async def test_request_ends_after_its_timeout():
    class Slow(Recorder):
        async def request(self, peer, payload):
            await trio.sleep_forever()

    async with start(1, Slow()) as node, start(2) as peer:
        await peer.connect(node.addresses[0])
        await linked(node, peer)
        with pytest.raises(NetworkError, match=r"within 0.3 s"):
            await peer.request(node.peer_id, b"x", timeout_s=0.3)


async def test_requests_beyond_the_limit_of_one_peer_are_refused_as_busy():
    class Slow(Recorder):
        def __init__(self):
            super().__init__()
            self.release = trio.Event()

        async def request(self, peer, payload):
            await self.release.wait()
            return payload

    async with start(1, slow := Slow()) as node, start(2) as peer:
        await peer.connect(node.addresses[0])
        await linked(node, peer)
        outcomes = []

        async def ask():
            try:
                outcomes.append(await peer.request(node.peer_id, b"x"))
            except NetworkError as error:
                outcomes.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(limits.STREAMS_PER_PEER_MAX + 3):
                nursery.start_soon(ask)
            await until(lambda: len(outcomes) == 3, "the excess is refused at once")
            assert all("busy" in outcome for outcome in outcomes)
            slow.release.set()
        assert outcomes.count(b"x") == limits.STREAMS_PER_PEER_MAX
