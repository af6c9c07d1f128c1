"""The inbox: bounded, fair to each sender, and it counts what it drops."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.model.message import Message
from converge_p2p.core.types import AgentId
from converge_p2p.runtime.inbox import Inbox, WhenFull


def letter(sender: str, number: int) -> Message:
    return Message.create(AgentId(sender * 64), number)


def taken(inbox: Inbox, batch: int = 1000) -> list[tuple[str, int]]:
    return [(message.sender[0], message.payload) for message in inbox.poll(batch)]


def test_a_batch_serves_senders_in_turn_and_keeps_the_order_of_each() -> None:
    inbox = Inbox()
    for number in range(3):
        inbox.push(letter("a", number))
    inbox.push(letter("b", 0))
    inbox.push(letter("c", 0))
    assert taken(inbox) == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("a", 2)]
    assert len(inbox) == 0


def test_a_second_batch_goes_on_where_the_first_ended() -> None:
    inbox = Inbox()
    for sender in "abc":
        for number in range(2):
            inbox.push(letter(sender, number))
    assert taken(inbox, 2) == [("a", 0), ("b", 0)]
    assert taken(inbox, 2) == [("c", 0), ("a", 1)]
    assert len(inbox) == 2


def test_a_flood_of_one_sender_drops_its_own_messages() -> None:
    inbox = Inbox(10)
    for number in range(50):
        inbox.push(letter("a", number))
    assert len(inbox) == 10
    assert inbox.dropped == 40
    assert inbox.push(letter("b", 0)), "a quiet sender gets in although the inbox is full"
    assert len(inbox) == 10
    assert inbox.dropped == 41
    assert taken(inbox)[:2] == [("a", 0), ("b", 0)]


def test_room_is_shared_by_senders_that_flood_together() -> None:
    inbox = Inbox(10)
    for number in range(50):
        inbox.push(letter("a", number))
    for number in range(50):
        inbox.push(letter("b", number))
    senders = [sender for sender, _ in taken(inbox)]
    assert (senders.count("a"), senders.count("b")) == (5, 5)


def test_many_senders_of_one_message_each_cannot_push_each_other_out() -> None:
    inbox = Inbox(3)
    for sender in "abc":
        assert inbox.push(letter(sender, 0))
    assert not inbox.push(letter("d", 0))
    assert [sender for sender, _ in taken(inbox)] == ["a", "b", "c"]
    assert inbox.accepted == 3


def test_an_inbox_without_room_is_refused() -> None:
    with pytest.raises(LocalError, match="expected 1 to"):
        Inbox(0)
    with pytest.raises(LocalError):
        Inbox(limits.INBOX_MESSAGES_MAX + 1)


def test_an_inbox_that_blocks_has_no_room_when_it_is_full_but_for_who_has_less_than_its_share() -> None:
    inbox = Inbox(4, when_full=WhenFull.BLOCK)
    for number in range(4):
        assert inbox.room(AgentId("a" * 64))
        inbox.push(letter("a", number))
    assert not inbox.room(AgentId("a" * 64)), "a flood has to wait"
    assert inbox.room(AgentId("b" * 64)), "and keeps nobody else out"
    inbox.push(letter("b", 0))
    assert (inbox.blocked, inbox.dropped, len(inbox)) == (1, 0, 5)
    for sender in "cdef":
        if inbox.room(AgentId(sender * 64)):
            inbox.push(letter(sender, 0))
    assert len(inbox) == 8, "many senders together are bounded, too"
    assert taken(inbox, 3) == [("a", 0), ("b", 0), ("c", 0)]


def test_what_was_on_its_way_to_an_inbox_that_blocks_is_never_dropped() -> None:
    inbox = Inbox(2, when_full=WhenFull.BLOCK)
    assert all(inbox.push(letter("a", number)) for number in range(limits.MAIL_WAITING_MAX + 4))
    assert inbox.dropped == 0
    assert not inbox.push(letter("a", -1)), "but there is an end to it"


async def test_who_puts_into_an_inbox_that_blocks_waits_for_its_turn(autojump_clock: MockClock) -> None:
    inbox = Inbox(1, when_full=WhenFull.BLOCK)
    inbox.push(letter("a", 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbox.put, letter("a", 1))
        await wait_all_tasks_blocked()
        assert taken(inbox) == [("a", 0)]
        await wait_all_tasks_blocked()
        assert taken(inbox) == [("a", 1)]


def test_an_inbox_that_drops_always_has_room() -> None:
    inbox = Inbox(1)
    inbox.push(letter("a", 0))
    assert inbox.room(AgentId("a" * 64))
    assert inbox.blocked == 0
