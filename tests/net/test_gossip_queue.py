"""What gossip remembers and queues is bounded in number and in bytes."""

from __future__ import annotations

from libp2p.pubsub.pb import rpc_pb2

from converge_p2p.core import limits
from converge_p2p.net import gossip_queue
from converge_p2p.net.gossip_queue import BoundedRpcQueue, SeenCache, encode_rpc


def test_seen_ids_are_forgotten_oldest_first_when_there_are_too_many(monkeypatch) -> None:
    monkeypatch.setattr(limits, "GOSSIP_SEEN_MAX", 3)
    cache = SeenCache()
    assert [cache.add(key) for key in (b"a", b"b", b"a", b"c", b"d")] == [True, True, False, True, True]
    # "a" was seen again after "b", so "b" went
    assert [cache.has(key) for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_seen_ids_expire(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(gossip_queue.time, "monotonic", lambda: now[0])
    cache = SeenCache()
    cache.add(b"a")
    now[0] += 119
    assert cache.has(b"a")
    now[0] += 2
    assert not cache.has(b"a")
    assert cache.add(b"a")


async def test_queue_is_bounded_in_bytes_and_gives_back_what_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(limits, "OUTBOUND_QUEUE_BYTES_MAX", 100)
    queue = BoundedRpcQueue()
    assert [queue.push(b"x" * 40) for _ in range(3)] == [True, True, False]
    assert await queue.pop() == b"x" * 80
    assert queue.push(b"y" * 100)


async def test_queue_encodes_and_sends_control_first() -> None:
    queue = BoundedRpcQueue()
    data, control = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=b"d")]), rpc_pb2.RPC(control=rpc_pb2.ControlMessage())
    assert queue.push(data)
    assert queue.push(control, priority=True)
    assert await queue.pop() == encode_rpc(control) + encode_rpc(data)
    queue.close()
    assert await queue.pop() is None
    assert not queue.push(data)
