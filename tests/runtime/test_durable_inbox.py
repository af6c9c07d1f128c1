"""The durable inbox: a message is on disk before it is acknowledged, and until the agent has seen it."""

from __future__ import annotations

import pytest

from converge_p2p.core import limits
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.runtime.durable_inbox import DurableInbox
from converge_p2p.store.memory import MemoryStore

ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)


def letter(number: int, *, sealed: bool = False) -> Message:
    message = Message.create(ALICE.id, number, recipient=BOB.id).stamp(1000 + number)
    return (message.seal(BOB.public_key) if sealed else message).sign(ALICE)


def inbox(store: MemoryStore) -> DurableInbox:
    return DurableInbox(store, "inbox/me/", BOB)


async def test_what_the_agent_has_not_seen_comes_back_in_order_and_the_rest_does_not() -> None:
    store = MemoryStore()
    before = inbox(store)
    letters = [letter(number) for number in range(4)]
    await before.keep(letters)
    await before.keep(letters[:2])
    await before.done(letters[1:2])
    after = inbox(store)
    assert [message.payload for message in await after.load()] == [0, 2, 3]
    await after.done(letters)
    assert len(after) == 0
    assert store.list() == []


async def test_a_sealed_message_is_kept_sealed_and_read_by_the_agent() -> None:
    store = MemoryStore()
    await inbox(store).keep([letter(7, sealed=True).unseal(BOB)])
    (key,) = store.list()
    assert Message.from_bytes(store.get(key) or b"").sealed
    (message,) = await inbox(store).load()
    assert message.payload == 7


async def test_a_damaged_entry_is_dropped_and_the_others_are_read() -> None:
    store = MemoryStore()
    await inbox(store).keep([letter(1), letter(2)])
    store.put(store.list()[0], b"damaged")
    assert [message.payload for message in await inbox(store).load()] == [2]
    assert len(store.list()) == 1


async def test_it_is_full_when_as_many_wait_as_an_inbox_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INBOX_MESSAGES_MAX", 1)
    monkeypatch.setattr(limits, "MAIL_WAITING_MAX", 0)
    kept = inbox(MemoryStore())
    await kept.keep([letter(1)])
    assert not kept.full
    await kept.keep([letter(2)])
    assert kept.full
