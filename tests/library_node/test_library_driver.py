"""The driver: commit, then send, then notify; nothing after the end; nobody left waiting."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from node_library_kit import DriverRig, spec_of, who

from converge_p2p.core.errors import LocalError, NotFound
from converge_p2p.core.model.task import Outcome, TaskState, task_id
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.wire import Operations, encode_message
from converge_p2p.net import peer_id_of

PEER = peer_id_of(who(2).public_key)


async def test_an_own_operation_is_sent_and_told_of_only_after_it_is_on_disk() -> None:
    rig = DriverRig()
    rig.found()
    sent = list(rig.wire.published)
    rig.notices.clear()
    rig.driver.propose(ev.Submit(spec_of()))
    assert rig.wire.published == sent
    assert rig.notices == []
    rig.writer.commit()
    assert rig.wire.published[len(sent) :] == [rig.writer.rows[-1][1]]
    assert any(isinstance(notice, ev.TaskChanged) for notice in rig.notices)


async def test_carrying_out_waits_for_the_disk() -> None:
    rig = DriverRig()
    rig.found()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.driver.carry_out, ev.Submit(spec_of()))
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        rig.writer.commit()


async def test_the_same_command_again_waits_for_the_first_one_to_be_on_disk() -> None:
    rig = DriverRig()
    driver = rig.found()
    task = task_id(driver.pool, rig.identity.public_key, b"k")
    seen: list[bool] = []

    async def submit() -> None:
        await driver.carry_out(ev.Submit(spec_of()))
        seen.append(driver.replica.view.task(task) is not None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(submit)
        nursery.start_soon(submit)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == []
        rig.writer.commit()
    assert seen == [True, True]
    assert len(rig.writer.rows) == 2, "the genesis and one submit"


async def test_a_command_that_cannot_be_done_changes_nothing() -> None:
    rig = DriverRig()
    rig.found()
    rows = len(rig.writer.rows)
    with pytest.raises(NotFound):
        rig.driver.propose(ev.Claim(task_id(rig.driver.pool, rig.identity.public_key, b"none")))
    assert len(rig.writer.rows) == rows


async def test_who_is_told_may_propose_and_everybody_hears_everything_in_order() -> None:
    rig = DriverRig()
    driver = rig.found()
    heard: list[str] = []

    def hear(notice: ev.Notice) -> None:
        heard.append(type(notice).__name__)
        if len(heard) == 1:
            # its own notices must not overtake those that wait
            driver.propose(ev.Submit(spec_of(key=b"second")))
            rig.writer.commit()

    driver.propose(ev.Submit(spec_of()))
    rig.hears = hear
    rig.writer.commit()
    assert heard == ["Acknowledged", "TaskChanged"] * 2


async def test_events_that_come_while_one_is_handled_wait_for_their_turn() -> None:
    rig = DriverRig()
    driver = rig.found()
    order: list[str] = []

    def hear(notice: ev.Notice) -> None:
        order.append(f"begin {type(notice).__name__}")
        if isinstance(notice, ev.TaskChanged):
            driver.feed(ev.PeerUp(PEER))
            order.append(f"sent {len(rig.wire.sent)}")

    driver.propose(ev.Submit(spec_of()))
    rig.hears = hear
    rig.writer.commit()
    # the peer's digest went out only after the event that was being handled
    assert "sent 0" in order
    assert [peer for peer, _ in rig.wire.sent] == [PEER]


async def test_a_settled_task_leaves_no_timer_behind(autojump_clock: Any) -> None:
    rig = DriverRig()
    driver = rig.found()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.timers.run)
        resting = len(rig.timers)
        for number in range(20):
            task = task_id(driver.pool, rig.identity.public_key, b"%d" % number)
            for command in (
                ev.Submit(spec_of(key=b"%d" % number)),
                ev.Claim(task),
                ev.Report(task, Outcome.COMPLETED, b"\xf6"),
            ):
                driver.propose(command)
                rig.writer.commit()
            for _ in range(20):
                await trio.sleep(0.05)
                rig.writer.commit()
            view = driver.replica.view.task(task)
            assert view is not None
            assert view.state is TaskState.COMPLETED
        assert len(rig.timers) <= resting + 1
        nursery.cancel_scope.cancel()


async def test_after_the_end_nothing_is_taken_kept_or_set_and_nobody_waits() -> None:
    rig = DriverRig()
    driver = rig.found()
    outcome: list[str] = []

    async def submit() -> None:
        try:
            await driver.carry_out(ev.Submit(spec_of()))
        except LocalError as error:
            outcome.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(submit)
        await trio.testing.wait_all_tasks_blocked()
        driver.close()
    assert len(outcome) == 1
    assert "stopped" in outcome[0]
    assert len(rig.timers) == 0
    sent = len(rig.wire.published)
    rig.writer.commit()
    for _ in range(1000):
        driver.feed(ev.PeerUp(PEER))
    assert not driver._events
    assert (len(rig.wire.published), rig.wire.sent) == (sent, [])
    with pytest.raises(NotFound, match="no longer"):
        driver.propose(ev.Submit(spec_of(key=b"other")))
    assert len(rig.timers) == 0


async def test_whoever_sends_what_no_honest_peer_sends_is_blamed_and_whoever_is_early_is_not() -> None:
    founder = DriverRig()
    founder.found()
    submitted = founder.wire.published[0]
    reader = DriverRig(who(2), founder.driver.pool)
    join = DriverRig(who(3), founder.driver.pool)
    join.driver.feed(ev.Received((submitted,)))
    join.driver.propose(ev.Join())
    join.writer.commit()
    early = join.wire.published[-1]
    reader.driver.feed(ev.Received((early,), PEER))
    assert (reader.driver.counters["rejected_no_genesis"], reader.wire.blamed) == (1, [])
    forged = submitted[:-1] + bytes([submitted[-1] ^ 1])
    # what stands behind a forgery is not looked at: it costs a verification, and honest peers have it too
    reader.driver.feed(ev.Received((forged, submitted), PEER))
    assert reader.wire.blamed == [PEER]
    assert not reader.driver.replica.ready
    reader.driver.feed(ev.SyncReceived(PEER, b"\xff"))
    assert not reader.driver.take_gossip(b"junk", PEER)
    assert reader.wire.blamed == [PEER] * 3


async def test_gossip_that_is_refused_is_not_passed_on_and_what_is_good_is() -> None:
    founder = DriverRig()
    founder.found()
    reader = DriverRig(who(2), founder.driver.pool)
    genesis = founder.wire.published[0]
    forged = genesis[:-1] + bytes([genesis[-1] ^ 1])
    assert not reader.driver.take_gossip(b"junk")
    assert not reader.driver.take_gossip(encode_message(Operations((forged,))))
    assert reader.driver.take_gossip(encode_message(Operations((genesis,))))
    assert reader.driver.replica.ready
    reader.writer.full = True
    assert not reader.driver.take_gossip(encode_message(Operations((genesis,))))
    assert reader.driver.counters["gossip_bad_encoding"] == 1
    assert reader.driver.counters["rejected"] == 1
