"""Mail: a message is taken once, by whom it is for, and only if it is genuine and timely."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio
from node_library_kit import FakeNetwork, who

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError, NetworkError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.topic import Topic
from converge_p2p.net import peer_id_of
from converge_p2p.node.mail import ACK, BROADCAST, REFUSED, Mail

ME, OTHER, THIRD = who(1), who(2), who(3)
TOPIC = Topic("acme/translate")


class Rig:
    def __init__(self) -> None:
        self.network: Any = FakeNetwork(ME)
        self.delivered: list[Message] = []
        self.mail = Mail(ME, self.delivered.append)


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    await rig.mail.open(rig.network)
    return rig


def now_ms() -> int:
    return int(time.time() * 1000)


def message(sender: Identity = OTHER, *, ahead_ms: int = 50, **changes: Any) -> Message:
    return Message.create(sender.id, {"n": 1}, **changes).stamp(now_ms() + ahead_ms).sign(sender)


def topic_name(topic: Topic = TOPIC) -> str:
    return f"converge/topic/1/{topic.name}"


async def test_a_broadcast_reaches_every_agent_once(rig: Rig) -> None:
    data = message().to_bytes()
    assert rig.network.bring(BROADCAST, data)
    rig.network.bring(BROADCAST, data)
    assert [item.payload for item in rig.delivered] == [{"n": 1}]
    assert rig.mail.counters["refused_message_replayed"] == 1


async def test_a_forged_message_is_neither_taken_nor_passed_on(rig: Rig) -> None:
    good = message()
    for bad in (_altered(good), b"junk"):
        assert not rig.network.bring(BROADCAST, bad)
    assert rig.delivered == []


def _altered(good: Message) -> bytes:
    data = good.to_bytes()
    return data[:-1] + bytes([data[-1] ^ 1])


async def test_a_message_for_one_agent_is_not_taken_from_gossip(rig: Rig) -> None:
    assert not rig.network.bring(BROADCAST, message(recipient=ME.id).to_bytes())
    assert rig.delivered == []


async def test_a_direct_message_is_acknowledged_once_and_a_repeat_is_refused(rig: Rig) -> None:
    data = message(recipient=ME.id).to_bytes()
    assert await rig.mail.on_request(data) == ACK
    assert await rig.mail.on_request(data) == REFUSED + b"message_replayed"
    assert len(rig.delivered) == 1


async def test_refusals_are_answers_that_name_the_reason_and_no_exceptions(rig: Rig) -> None:
    assert await rig.mail.on_request(message(recipient=THIRD.id).to_bytes()) == REFUSED + b"message_misaddressed"
    assert await rig.mail.on_request(message().to_bytes()) == REFUSED + b"message_misaddressed"
    assert (await rig.mail.on_request(b"junk")).startswith(REFUSED)
    late = message(recipient=ME.id, ahead_ms=-limits.MESSAGE_TTL_MS - 1000)
    assert await rig.mail.on_request(late.to_bytes()) == REFUSED + b"message_expired"
    early = message(recipient=ME.id, ahead_ms=limits.MESSAGE_CLOCK_SKEW_MS + 60_000)
    assert await rig.mail.on_request(early.to_bytes()) == REFUSED + b"message_from_future"
    assert rig.delivered == []


async def test_what_was_sent_before_the_start_is_refused_so_that_a_restart_takes_nothing_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = message(recipient=ME.id)
    assert await rig.mail.on_request(taken.to_bytes()) == ACK
    monkeypatch.setattr("converge_p2p.node.mail._now_ms", lambda: taken.timestamp_ms)
    again = Mail(ME, rig.delivered.append)
    assert await again.on_request(taken.to_bytes()) == REFUSED + b"message_stale"
    assert await again.on_request(message(recipient=ME.id, ahead_ms=5000).to_bytes()) == ACK
    assert len(rig.delivered) == 2


async def test_a_direct_message_goes_to_its_recipient_and_to_nobody_else(rig: Rig) -> None:
    asked: list[Any] = []

    def answer(peer: Any, data: bytes) -> bytes:
        asked.append((peer, Message.from_bytes(data).recipient))
        return ACK

    rig.network.answer = answer
    rig.mail.registry.register(OTHER.id, OTHER.public_key)
    await rig.mail.send(Message.create(ME.id, "hi", recipient=OTHER.id))
    assert asked == [(peer_id_of(OTHER.public_key), OTHER.id)]
    with pytest.raises(NetworkError, match="not known"):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=THIRD.id))
    with pytest.raises(LocalError, match="itself"):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=ME.id))
    rig.network.answer = lambda _peer, _data: REFUSED + b"message_stale"
    with pytest.raises(NetworkError, match="refused the message: message_stale"):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=OTHER.id))
    rig.network.answer = lambda _peer, _data: b"\x07what"
    with pytest.raises(NetworkError, match="no reason given"):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=OTHER.id))
    assert len(asked) == 1
    assert rig.network.published == []


async def test_a_message_of_another_sender_is_not_signed_here(rig: Rig) -> None:
    with pytest.raises(LocalError, match="cannot sign"):
        await rig.mail.send(Message.create(OTHER.id, "hi"))
    assert rig.network.published == []


async def test_topic_messages_reach_the_listeners_of_their_topic_alone(rig: Rig) -> None:
    handle = await rig.mail.join(TOPIC)
    other = await rig.mail.join(Topic("acme/other"))
    async with handle.messages() as mine, other.messages() as others:
        assert rig.network.bring(topic_name(), message(topics=[TOPIC]).to_bytes())
        assert mine.receive_nowait().payload == {"n": 1}
        with pytest.raises(trio.WouldBlock):
            others.receive_nowait()
    await handle.publish({"x": 1})
    assert [topic for topic, _ in rig.network.published] == [topic_name()]


async def test_a_slow_listener_misses_messages_that_are_counted(rig: Rig) -> None:
    handle = await rig.mail.join(TOPIC)
    async with handle.messages():
        for _ in range(limits.INBOX_MESSAGES_MAX + 3):
            rig.network.bring(topic_name(), message(topics=[TOPIC]).to_bytes())
    assert rig.mail.counters["dropped_slow_reader"] == 3
    assert rig.mail._listeners == {}, "who no longer listens takes no room"


async def test_a_topic_joined_twice_is_left_with_the_second_leave_and_a_handle_leaves_once(rig: Rig) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            # at the same time, which must not subscribe twice
            nursery.start_soon(rig.mail.join, TOPIC)
    first = await rig.mail.join(TOPIC)
    await first.leave()
    await first.leave()
    await rig.mail.leave(TOPIC)
    assert topic_name() in rig.network.topics
    await rig.mail.leave(TOPIC)
    assert topic_name() not in rig.network.topics
    await rig.mail.join(TOPIC)
    assert topic_name() in rig.network.topics


async def test_topics_are_bounded_and_a_refused_one_takes_no_place(rig: Rig) -> None:
    handles = [await rig.mail.join(Topic(f"t/{number}")) for number in range(limits.TOPICS_PER_NODE_MAX)]
    for _ in range(2):
        with pytest.raises(LimitExceeded):
            await rig.mail.join(TOPIC)
    await rig.mail.join(Topic("t/0"))
    await handles[1].leave()
    await rig.mail.join(TOPIC)


async def test_without_a_network_it_says_what_to_do() -> None:
    with pytest.raises(NetworkError, match="not running"):
        await Mail(ME, lambda _message: None).send(Message.create(ME.id, "hi"))
