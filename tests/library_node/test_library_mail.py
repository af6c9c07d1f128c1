"""Mail: a message is taken once, by whom it is for, and only if it is genuine and timely."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from node_library_kit import FakeNetwork, who

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, NetworkError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.delivery import DeliveryReceipt, sign_delivery
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import PrivateTopic, SealedTopicMessage, TopicKey
from converge_p2p.net import peer_id_of
from converge_p2p.node.mail import BROADCAST, BUSY, REFUSED, TAKEN, Mail
from converge_p2p.node.replay_journal import ROW_KEY, ReplayJournal
from converge_p2p.node.topics import private_name, topic_name
from converge_p2p.store.memory import MemoryStore

ME, OTHER, THIRD = who(1), who(2), who(3)
TOPIC = Topic("acme/translate")
KEY, NEXT_KEY = TopicKey(b"k" * 32), TopicKey(b"n" * 32)


class Rig:
    def __init__(self, store: Any = None) -> None:
        self.network: Any = FakeNetwork(ME)
        self.delivered: list[Message] = []
        self.private: list[bool] = []
        self.store = store or MemoryStore()
        self.mail = Mail(ME, self._deliver, ReplayJournal(self.store))

    def _deliver(self, message: Message, /, *, private: bool) -> None:
        self.delivered.append(message)
        self.private.append(private)

    async def open(self, nursery: trio.Nursery, *, trusted: bool = True) -> Rig:
        await self.mail.start(nursery, trusted=trusted)
        await self.mail.open(self.network)
        return self

    async def bring(self, topic: str, message: Message | bytes) -> bool:
        """Gossip arrives, and what is taken is handed on. Says whether it is passed on."""
        passed: bool = self.network.bring(topic, message if isinstance(message, bytes) else message.to_bytes())
        await self.mail.settled()
        return passed


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with trio.open_nursery() as nursery:
        yield await Rig().open(nursery)
        nursery.cancel_scope.cancel()


def now_ms() -> int:
    return int(time.time() * 1000)


def message(sender: Identity = OTHER, *, ahead_ms: int = 50, payload: Any = None, **changes: Any) -> Message:
    return Message.create(sender.id, payload or {"n": 1}, **changes).stamp(now_ms() + ahead_ms).sign(sender)


# ---------------------------------------------------------------- what is taken


async def test_a_broadcast_reaches_every_agent_once(rig: Rig) -> None:
    one = message()
    assert await rig.bring(BROADCAST, one)
    await rig.bring(BROADCAST, one)
    assert [item.payload for item in rig.delivered] == [{"n": 1}]
    assert rig.mail.counters["refused_message_replayed"] == 1


async def test_a_forged_message_is_neither_taken_nor_passed_on(rig: Rig) -> None:
    data = message().to_bytes()
    for bad in (data[:-1] + bytes([data[-1] ^ 1]), b"junk"):
        assert not await rig.bring(BROADCAST, bad)
    assert rig.delivered == []


async def test_a_message_for_one_agent_is_not_taken_from_gossip(rig: Rig) -> None:
    assert not await rig.bring(BROADCAST, message(recipient=ME.id))
    assert rig.delivered == []


async def test_a_direct_message_is_taken_once_and_every_repeat_gets_a_receipt(rig: Rig) -> None:
    sent = message(recipient=ME.id)
    for _ in range(3):
        answer = await rig.mail.on_request(sent.to_bytes())
        assert answer[:1] == TAKEN
        receipt = DeliveryReceipt.from_bytes(answer[1:])
        assert receipt.proves(sent)
        assert not receipt.proves(message(recipient=ME.id))
    assert len(rig.delivered) == 1
    assert rig.mail.counters["repeats_acknowledged"] == 2


async def test_repeats_that_come_at_once_are_one_message(rig: Rig) -> None:
    data, answers = message(recipient=ME.id).to_bytes(), []

    async def bring() -> None:
        answers.append(await rig.mail.on_request(data))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(bring)
    assert [answer[:1] for answer in answers] == [TAKEN] * 5
    assert len(rig.delivered) == 1


async def test_what_is_sealed_to_this_node_is_handed_on_open_and_what_is_not_as_it_is(rig: Rig) -> None:
    plain = Message.create(OTHER.id, "secret", recipient=ME.id).stamp(now_ms() + 50)
    sealed = plain.seal(ME.public_key).sign(OTHER)
    shared = Message.create(OTHER.id, "shared", recipient=ME.id).stamp(now_ms() + 50).encrypt_payload(b"k" * 32)
    shared = shared.sign(OTHER)
    assert b"secret" not in sealed.to_bytes()
    for one in (sealed, shared):
        assert (await rig.mail.on_request(one.to_bytes()))[:1] == TAKEN
    assert rig.delivered[0].payload == "secret"
    assert rig.delivered[0].to_bytes() == sealed.to_bytes()
    with pytest.raises(LocalError, match="encrypted"):
        _ = rig.delivered[1].payload
    assert rig.delivered[1].decrypt_payload(b"k" * 32) == "shared"


async def test_refusals_are_answers_that_name_the_reason_and_no_exceptions(rig: Rig) -> None:
    async def answer(one: Message) -> bytes:
        return await rig.mail.on_request(one.to_bytes())

    assert await answer(message(recipient=THIRD.id)) == REFUSED + b"message_misaddressed"
    assert await answer(message()) == REFUSED + b"message_misaddressed"
    assert (await rig.mail.on_request(b"junk")).startswith(REFUSED)
    late = message(recipient=ME.id, ahead_ms=-limits.MESSAGE_TTL_MS - 1000)
    assert await answer(late) == REFUSED + b"message_expired"
    early = message(recipient=ME.id, ahead_ms=limits.MESSAGE_CLOCK_SKEW_MS + 60_000)
    assert await answer(early) == REFUSED + b"message_from_future"
    assert rig.delivered == []


# ---------------------------------------------------------------- restarts


async def test_what_was_taken_is_not_taken_again_after_a_restart(rig: Rig) -> None:
    """Direct, from gossip, and stamped ahead of the clock; and what came in between is still taken."""
    direct, heard = message(recipient=ME.id), message()
    ahead = message(ahead_ms=limits.MESSAGE_CLOCK_SKEW_MS - 10_000)
    assert (await rig.mail.on_request(direct.to_bytes()))[:1] == TAKEN
    for one in (heard, ahead):
        await rig.bring(BROADCAST, one)
    missed = message(recipient=ME.id)
    async with trio.open_nursery() as nursery:
        # nothing was closed: the process was killed
        again = await Rig(rig.store).open(nursery)
        for one in (heard, ahead):
            await again.bring(BROADCAST, one)
        assert (await again.mail.on_request(direct.to_bytes()))[:1] == TAKEN
        assert again.delivered == []
        assert again.mail.counters["refused_message_replayed"] == 2
        # sent while the node was down, and sent again now that it is up
        assert (await again.mail.on_request(missed.to_bytes()))[:1] == TAKEN
        assert [item.id for item in again.delivered] == [missed.id]
        nursery.cancel_scope.cancel()


async def test_a_store_that_was_put_back_does_not_know_what_was_taken_so_that_all_of_the_past_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = message(recipient=ME.id)
    monkeypatch.setattr("converge_p2p.node.mail._now_ms", lambda: taken.timestamp_ms)
    async with trio.open_nursery() as nursery:
        old = await Rig(rig.store).open(nursery, trusted=False)
        assert await old.mail.on_request(taken.to_bytes()) == REFUSED + b"message_stale"
        assert (await old.mail.on_request(message(recipient=ME.id, ahead_ms=5000).to_bytes()))[:1] == TAKEN
        nursery.cancel_scope.cancel()


async def test_nobody_sees_a_message_before_it_is_written_down_as_taken(rig: Rig) -> None:
    seen: list[int] = []
    put = rig.store.put

    def slow_put(key: str, value: bytes) -> None:
        if key.startswith(ROW_KEY):
            seen.append(len(rig.delivered))
        put(key, value)

    rig.store.put = slow_put
    await rig.bring(BROADCAST, message())
    assert seen == [0]
    assert len(rig.delivered) == 1


async def test_the_journal_is_bounded_by_writing_the_whole_window(rig: Rig) -> None:
    for _ in range(limits.REPLAY_JOURNAL_ROWS_MAX + 2):
        await rig.bring(BROADCAST, message())
    assert len(rig.store.list(ROW_KEY)) <= limits.REPLAY_JOURNAL_ROWS_MAX
    last = rig.delivered[-1]
    async with trio.open_nursery() as nursery:
        again = await Rig(rig.store).open(nursery)
        for one in (rig.delivered[0], last):
            await again.bring(BROADCAST, one)
        assert again.delivered == []
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- floods


async def test_a_flood_by_one_sender_does_not_starve_another(rig: Rig) -> None:
    stopped = trio.Event()
    going = trio.Event()
    record = rig.mail._journal.record

    async def slow_record(*args: Any) -> None:
        going.set()
        await stopped.wait()
        await record(*args)

    rig.mail._journal.record = slow_record  # type: ignore[method-assign]
    rig.network.bring(BROADCAST, message(OTHER).to_bytes())
    await going.wait()
    flood = [message(OTHER) for _ in range(limits.MAIL_WAITING_MAX + 100)]
    for one in flood:
        rig.network.bring(BROADCAST, one.to_bytes())
    answers: list[bytes] = []

    async def direct(sender: Identity) -> None:
        answers.append(await rig.mail.on_request(message(sender, recipient=ME.id).to_bytes()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(direct, THIRD)
        await trio.testing.wait_all_tasks_blocked()
        await direct(OTHER)
        assert answers == [REFUSED + BUSY.encode()], "the flooder's own next message has no room"
        stopped.set()
    await rig.mail.settled()
    assert answers[1][:1] == TAKEN
    # the flood lost its own newest, one of them for the other's message; and was served in turn with it
    assert rig.mail.counters["dropped_flood"] == 100 + 1 + 1
    assert [item.sender for item in rig.delivered].index(THIRD.id) <= 2
    # what was thrown away was seen by nobody, so that it may be sent again
    before = len(rig.delivered)
    await rig.bring(BROADCAST, flood[-1])
    assert len(rig.delivered) == before + 1


async def test_a_reader_that_is_slow_loses_the_messages_of_who_floods_it(rig: Rig) -> None:
    handle = await rig.mail.join(TOPIC)
    async with handle.messages() as feed:
        for _ in range(limits.INBOX_MESSAGES_MAX + 3):
            rig.network.bring(topic_name(TOPIC), message(topics=[TOPIC]).to_bytes())
        await rig.bring(topic_name(TOPIC), message(THIRD, topics=[TOPIC]))
        assert rig.mail.counters["dropped_slow_reader"] == 4
        assert [(await feed.receive()).sender for _ in range(2)] == [OTHER.id, THIRD.id]
    assert rig.mail._listeners == {}, "who no longer listens takes no room"


# ---------------------------------------------------------------- sending to one agent


def takes(receipt_of: Identity = OTHER) -> Any:
    return lambda _peer, data: TAKEN + sign_delivery(receipt_of, Message.from_bytes(data), now_ms()).to_bytes()


async def test_a_direct_message_goes_sealed_to_its_recipient_and_to_nobody_else(rig: Rig) -> None:
    asked: list[Any] = []

    def answer(peer: Any, data: bytes) -> Any:
        asked.append((peer, Message.from_bytes(data)))
        return takes()(peer, data)

    rig.network.answer = answer
    rig.mail.registry.register(OTHER.id, OTHER.public_key)
    sent, receipt = await rig.mail.deliver(Message.create(ME.id, "hi", recipient=OTHER.id))
    assert receipt.proves(sent)
    ((peer, came),) = asked
    assert peer == peer_id_of(OTHER.public_key)
    assert came.sealed
    assert came.unseal(OTHER).payload == "hi"
    with pytest.raises(NetworkError, match="not known"):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=THIRD.id))
    with pytest.raises(LocalError, match="itself"):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=ME.id))
    with pytest.raises(LocalError, match="no recipient"):
        await rig.mail.deliver(Message.create(ME.id, "hi"))
    assert len(asked) == 1
    assert rig.network.published == []


async def test_it_is_sent_again_with_the_same_bytes_until_it_is_taken(rig: Rig, autojump_clock: Any) -> None:
    tries: list[bytes] = []

    def answer(peer: Any, data: bytes) -> Any:
        tries.append(data)
        if len(tries) == 1:
            raise NetworkError("the stream broke")
        return REFUSED + BUSY.encode() if len(tries) == 2 else takes()(peer, data)

    rig.network.answer = answer
    rig.mail.registry.register(OTHER.id, OTHER.public_key)
    await rig.mail.send(Message.create(ME.id, "hi", recipient=OTHER.id))
    assert len(tries) == 3
    assert len(set(tries)) == 1
    assert rig.mail.counters["sent_again"] == 2


async def test_it_is_given_up_at_its_deadline_or_when_it_expires(rig: Rig, autojump_clock: Any) -> None:
    def answer(_peer: Any, _data: bytes) -> bytes:
        raise NetworkError("the peer is gone")

    rig.network.answer = answer
    rig.mail.registry.register(OTHER.id, OTHER.public_key)
    begin = trio.current_time()
    with pytest.raises(NetworkError, match="did not take the message: the peer is gone"):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=OTHER.id), deadline_s=30.0)
    assert 29 < trio.current_time() - begin < 31
    begin = trio.current_time()
    short = Message.create(ME.id, "hi", recipient=OTHER.id).stamp(now_ms(), ttl_ms=5000)
    with pytest.raises(NetworkError):
        await rig.mail.send(short, deadline_s=30.0)
    assert trio.current_time() - begin < 6
    assert rig.network.published == [], "it falls back to nobody else"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _peer, _data: REFUSED + b"message_stale", "refused the message: message_stale"),
        (lambda _peer, _data: b"\x07what", "no reason given"),
        (lambda _peer, _data: TAKEN, "something else than a receipt"),
        (lambda _peer, _data: TAKEN + b"junk", "something else than a receipt"),
    ],
)
async def test_a_refusal_for_good_is_not_tried_again(rig: Rig, answer: Any, reason: str) -> None:
    rig.network.answer = answer
    rig.mail.registry.register(OTHER.id, OTHER.public_key)
    with pytest.raises(NetworkError, match=reason):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=OTHER.id))
    assert rig.mail.counters["sent_again"] == 0


async def test_a_receipt_for_another_message_is_none(rig: Rig) -> None:
    other = message(ME, recipient=OTHER.id)
    rig.network.answer = lambda _peer, _data: TAKEN + sign_delivery(OTHER, other, now_ms()).to_bytes()
    rig.mail.registry.register(OTHER.id, OTHER.public_key)
    with pytest.raises(NetworkError, match="not for this message"):
        await rig.mail.send(Message.create(ME.id, "hi", recipient=OTHER.id))


async def test_a_message_of_another_sender_is_not_signed_here(rig: Rig) -> None:
    with pytest.raises(LocalError, match="cannot sign"):
        await rig.mail.send(Message.create(OTHER.id, "hi"))
    assert rig.network.published == []


# ---------------------------------------------------------------- topics


async def test_topic_messages_reach_the_listeners_of_their_topic_alone(rig: Rig) -> None:
    handle = await rig.mail.join(TOPIC)
    other = await rig.mail.join(Topic("acme/other"))
    async with handle.messages() as mine, other.messages() as others:
        assert await rig.bring(topic_name(TOPIC), message(topics=[TOPIC]))
        assert mine.receive_nowait().payload == {"n": 1}
        with pytest.raises(trio.WouldBlock):
            others.receive_nowait()
    await handle.publish({"x": 1})
    assert [topic for topic, _ in rig.network.published] == [topic_name(TOPIC)]


async def test_a_topic_joined_twice_is_left_with_the_second_leave_and_a_handle_leaves_once(rig: Rig) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            # at the same time, which must not subscribe twice
            nursery.start_soon(rig.mail.join, TOPIC)
    first = await rig.mail.join(TOPIC)
    await first.leave()
    await first.leave()
    await rig.mail.leave(TOPIC)
    assert topic_name(TOPIC) in rig.network.topics
    await rig.mail.leave(TOPIC)
    assert topic_name(TOPIC) not in rig.network.topics
    await rig.mail.join(TOPIC)
    assert topic_name(TOPIC) in rig.network.topics


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
        await Rig().mail.send(Message.create(ME.id, "hi"))


# ---------------------------------------------------------------- private topics


def sealed(key: TopicKey = KEY, sender: Identity = OTHER, by: Identity | None = None, **changes: Any) -> bytes:
    inner = message(sender, **{"topics": [TOPIC], **changes})
    return PrivateTopic(TOPIC, key).seal((by or sender).public_key, 7, inner.to_bytes()).to_bytes()


PRIVATE = private_name(PrivateTopic(TOPIC, KEY))


async def test_a_private_topic_goes_by_another_name_and_is_sealed(rig: Rig) -> None:
    handle = await rig.mail.join(TOPIC, KEY)
    assert handle.private
    assert TOPIC.name not in PRIVATE
    await handle.publish("secret plan")
    ((name, data),) = rig.network.published
    assert name == PRIVATE
    assert b"secret plan" not in data
    assert TOPIC.to_bytes() not in data
    inner = Message.from_bytes(PrivateTopic(TOPIC, KEY).open(SealedTopicMessage.from_bytes(data)))
    assert inner.payload == "secret plan"
    async with handle.messages() as feed:
        assert await rig.bring(PRIVATE, sealed())
        assert feed.receive_nowait().payload == {"n": 1}
    assert rig.private == [True]


async def test_what_is_not_sealed_by_its_sender_with_the_key_of_its_topic_is_not_taken(rig: Rig) -> None:
    await rig.mail.join(TOPIC, KEY)
    good = sealed()
    bad = [
        message(topics=[TOPIC]).to_bytes(),
        sealed(NEXT_KEY),
        sealed(by=THIRD),
        sealed(topics=[Topic("acme/other")]),
        sealed(topics=[TOPIC, Topic("acme/other")]),
        sealed(topics=[]),
        good[:-1] + bytes([good[-1] ^ 1]),
        good.replace(OTHER.public_key, THIRD.public_key),
    ]
    for data in bad:
        assert not await rig.bring(PRIVATE, data)
    assert await rig.bring(PRIVATE, good)
    await rig.bring(PRIVATE, good)
    assert len(rig.delivered) == 1


async def test_nothing_of_a_private_topic_goes_out_in_clear(rig: Rig) -> None:
    handle = await rig.mail.join(TOPIC, KEY)
    both = Message.create(ME.id, "secret", topics=(TOPIC, Topic("acme/public")))
    with pytest.raises(LocalError, match="names that topic alone"):
        await rig.mail.send(both)
    await handle.leave()
    assert PRIVATE not in rig.network.topics
    with pytest.raises(LocalError, match="was left"):
        await handle.publish("secret")
    assert rig.network.published == []


async def test_a_topic_is_either_private_or_public_here(rig: Rig) -> None:
    await rig.mail.join(TOPIC, KEY)
    await rig.mail.join(TOPIC, KEY)
    for key in (None, NEXT_KEY):
        with pytest.raises(Conflict, match="with a key"):
            await rig.mail.join(TOPIC, key)
    await rig.mail.join(Topic("acme/public"))
    with pytest.raises(Conflict, match="in public"):
        await rig.mail.join(Topic("acme/public"), KEY)
    # a public message that names it is somebody's mistake, or a trick
    assert not await rig.bring(topic_name(Topic("acme/public")), message(topics=[TOPIC, Topic("acme/public")]))


async def test_a_new_key_seals_at_once_and_the_old_one_opens_for_a_while(rig: Rig, autojump_clock: Any) -> None:
    handle = await rig.mail.join(TOPIC, KEY)
    await handle.rotate(NEXT_KEY, overlap_s=60.0)
    assert rig.network.retired == [PRIVATE]
    await handle.publish("new")
    ((name, _),) = rig.network.published
    fresh = private_name(PrivateTopic(TOPIC, NEXT_KEY))
    assert name == fresh
    assert await rig.bring(PRIVATE, sealed())
    assert await rig.bring(fresh, sealed(NEXT_KEY))
    await trio.sleep(61)
    assert PRIVATE not in rig.network.topics
    assert fresh in rig.network.topics
    with pytest.raises(LocalError, match="not a private topic"):
        await (await rig.mail.join(Topic("acme/public"))).rotate(KEY)


async def test_keys_in_use_at_once_are_bounded(rig: Rig) -> None:
    handle = await rig.mail.join(TOPIC, KEY)
    for number in range(1, limits.TOPIC_KEYS_MAX):
        await handle.rotate(TopicKey(bytes([number]) * 32))
    with pytest.raises(LimitExceeded):
        await handle.rotate(NEXT_KEY)
    await handle.leave()
    assert rig.network.topics.keys() == {BROADCAST}
