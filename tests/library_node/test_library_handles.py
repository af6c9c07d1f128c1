"""Handles: what an application holds never hangs, never leaks, and says why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from node_library_kit import DriverRig

from converge_p2p.core import limits
from converge_p2p.core.codec import decode
from converge_p2p.core.errors import (
    CodecError,
    Conflict,
    LimitExceeded,
    LocalError,
    NotFound,
    TaskCancelled,
    TaskFailed,
)
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.task import Task, TaskState, TaskView
from converge_p2p.core.oplog.bodies import ReportBody
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.node.driver import ENDED_KEY, ENDED_ROW_KEY, ended_key
from converge_p2p.node.handles import PoolHandle
from converge_p2p.node.policy import NodePolicy
from converge_p2p.runtime.workers import WorkerPool


class FakeNode:
    """As much of a node as a pool handle needs."""

    def __init__(self, identity: Identity) -> None:
        self.id = identity.id
        self.public_key = identity.public_key
        self.changed: list[TaskView] = []
        self.decided: list[Any] = []
        self.claimed: list[TaskId] = []
        self.workers: list[WorkerPool] = []
        self.peers: frozenset[bytes] = frozenset()
        self.policy = NodePolicy()

    def connected_keys(self) -> frozenset[bytes]:
        return self.peers

    def spawn(self, run: Any, *_: object) -> None:
        self.workers.append(run.__self__)

    @property
    def hosting(self) -> FakeNode:
        return self

    def task_changed(self, pool: PoolId, task: TaskId, view: TaskView | None) -> None:
        if view is not None:
            self.changed.append(view)

    def application_claims(self, task: TaskId) -> None:
        self.claimed.append(task)

    def application_released(self, task: TaskId) -> None:
        self.claimed.remove(task)

    def claim_decided(self, pool: PoolHandle, notice: Any) -> None:
        self.decided.append(notice)


class Rig(DriverRig):
    """A handle on a pool that this node leads."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.node = FakeNode(self.identity)
        self.handle = PoolHandle(self.node, self.driver, self.recall)  # type: ignore[arg-type]
        self.hears = self.handle.on_notice

    async def recall(self, task: TaskId) -> bytes | None:
        return self.writer.entries.get(ended_key(self.driver.pool, task))

    async def run_disk(self) -> None:
        """A disk that is never slow."""
        while True:
            self.writer.commit()
            await trio.sleep(0.001)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    rig.found()
    yield rig
    # whatever the test did, nothing of a finished wait is left
    assert rig.handle._waiters == {}


@pytest.fixture
async def live(rig: Rig, nursery: trio.Nursery) -> Rig:
    nursery.start_soon(rig.run_disk)
    nursery.start_soon(rig.timers.run)
    return rig


async def test_a_task_is_submitted_claimed_reported_and_its_result_proven(live: Rig, autojump_clock: Any) -> None:
    pool = live.handle
    task = await pool.submit(Task("count", {"text": "a b"}))
    assert (task.view.state, task.view.inputs) == (TaskState.PENDING, {"text": "a b"})
    await pool.claim(task.id)
    await pool.report(task.id, {"words": 2})
    result = await task.result()
    assert (result.value, result.by) == ({"words": 2}, live.identity.id)
    assert result.receipt is not None
    assert result.receipt.verify()
    assert pool.counters["conflicting_settlements"] == 0


async def test_a_reported_failure_and_a_cancellation_raise_with_the_reason(live: Rig, autojump_clock: Any) -> None:
    pool = live.handle
    failed, cancelled = await pool.submit(Task("count")), await pool.submit(Task("count"))
    await pool.claim(failed.id)
    await pool.report(failed.id, failed="no such file")
    with pytest.raises(TaskFailed, match="no such file"):
        await failed.result()
    await cancelled.cancel("not needed")
    with pytest.raises(TaskCancelled, match="not needed"):
        await cancelled.result()
    with pytest.raises(Conflict, match="settled"):
        await cancelled.cancel()


async def test_who_gives_up_waiting_leaves_nothing_behind_and_others_still_get_the_result(
    live: Rig, autojump_clock: Any
) -> None:
    pool = live.handle
    task = await pool.submit(Task("count"))
    results: list[Any] = []

    async def wait() -> None:
        results.append((await task.result()).value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with trio.move_on_after(1):
            await task.result()
        assert len(pool._waiters) == 1, "one still waits"
        await pool.claim(task.id)
        await pool.report(task.id, 7)
    assert results == [7]
    other = await pool.submit(Task("count"))
    with trio.move_on_after(1):
        await other.result()


async def test_the_same_key_is_the_same_task_and_another_task_under_it_is_refused(
    live: Rig, autojump_clock: Any
) -> None:
    pool = live.handle
    handles: list[TaskId] = []

    async def submit() -> None:
        handles.append((await pool.submit(Task("count", {"n": 1}, key="k"))).view.id)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            # at the same time: each finds the task, though only one was written
            nursery.start_soon(submit)
    assert len(set(handles)) == 1
    assert len(list(pool.tasks())) == 1
    with pytest.raises(Conflict, match="key"):
        await pool.submit(Task("count", {"n": 2}, key="k"))


async def test_a_repeated_submit_is_taken_even_when_no_new_task_would_be(
    live: Rig, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = live.handle
    first = await pool.submit(Task("count", key="k"))
    monkeypatch.setattr(limits, "PENDING_TASKS_PER_AUTHOR_MAX", 1)
    with pytest.raises(LimitExceeded):
        await pool.submit(Task("count"))
    assert (await pool.submit(Task("count", key="k"))).id == first.id


async def test_leaving_tells_everybody_who_waits(live: Rig, autojump_clock: Any) -> None:
    pool = live.handle
    task = await pool.submit(Task("count"))
    told: list[str] = []

    async def wait_for_result() -> None:
        with pytest.raises(LocalError, match="no longer"):
            await task.result()
        told.append("result")

    async def watch() -> None:
        async with pool.watch() as changes:
            async for _ in changes:
                pass
        told.append("watch")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_result)
        nursery.start_soon(watch)
        await trio.sleep(1)
        pool.close()
    assert sorted(told) == ["result", "watch"]
    with pytest.raises(LocalError, match="no longer"):
        pool.add_handler("count", lambda task, context: None)
    assert task.view.state is TaskState.PENDING, "reading goes on"


async def test_waiting_for_an_unknown_pool_ends_when_it_is_left(autojump_clock: Any) -> None:
    rig = Rig()
    assert (rig.handle.ready, rig.handle.name, rig.handle.governance, rig.handle.has_quorum) == (False, "", "", None)
    with pytest.raises(NotFound, match="founding terms"):
        _ = rig.handle.spec
    with pytest.raises(NotFound, match="founding terms"):
        await rig.handle.submit(Task("count"))

    async def wait() -> None:
        with pytest.raises(LocalError, match="no longer"):
            await rig.handle.wait_ready()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        rig.handle.close()


async def test_watchers_see_each_change_and_one_that_ends_disturbs_nobody(live: Rig, autojump_clock: Any) -> None:
    pool = live.handle
    async with pool.watch() as gone, pool.watch() as changes:
        await gone.aclose()
        task = await pool.submit(Task("count"))
        await pool.claim(task.id)
        await pool.report(task.id, 1)
        await task.result()
        states = []
        while not states or not states[-1].terminal:
            states.append((await changes.receive()).state)
    assert states[0] is TaskState.PENDING
    assert states[-1] is TaskState.COMPLETED
    assert [view.state for view in live.node.changed] == states


async def test_an_honest_pool_is_audited_in_a_thread_and_again_only_when_something_is_new(
    live: Rig, autojump_clock: Any
) -> None:
    pool = live.handle
    task = await pool.submit(Task("count"))
    await pool.claim(task.id)
    await pool.report(task.id, 1)
    await task.result()
    assert await pool.audit() == []
    assert await pool.culprits() == 0
    made = pool._audit._made
    await pool.audit()
    assert pool._audit._made is made
    await pool.submit(Task("count"))
    await pool.audit()
    assert pool._audit._made is not made


async def test_what_does_not_exist_or_is_not_settled_is_named(rig: Rig) -> None:
    unknown = TaskId(b"x" * 32)
    for ask in (rig.handle.task, rig.handle.receipt):
        with pytest.raises((NotFound, Conflict)):
            ask(unknown)
    with pytest.raises(NotFound):
        await rig.handle.settled(unknown)
    with pytest.raises(NotFound):
        await rig.handle.claim(unknown)


async def test_a_result_that_cannot_be_encoded_is_refused_before_anything_is_signed(
    live: Rig, autojump_clock: Any
) -> None:
    pool = live.handle
    task = await pool.submit(Task("count"))
    await pool.claim(task.id)
    with pytest.raises(CodecError):
        await pool.report(task.id, object())
    with pytest.raises(LimitExceeded):
        await pool.report(task.id, b"x" * limits.BLOB_VALUE_BYTES_MAX)
    await trio.sleep(1)
    written = [decode_operation(signed, pool.id).body for _, signed, _ in live.writer.rows]
    assert not any(isinstance(body, ReportBody) for body in written)


async def test_workers_learn_what_this_node_declared(live: Rig, autojump_clock: Any) -> None:
    pool = live.handle
    pool.add_handler("count", lambda task, context: None)
    (workers,) = live.node.workers
    assert workers._book.capabilities == frozenset()
    # a founder is a member from the beginning, so its join changes no membership
    await live.driver.carry_out(ev.Join(("gpu",)))
    pool.refresh_capabilities()
    assert workers._book.capabilities == {"gpu"}
    assert pool.own_capabilities == ("gpu",)
    assert pool.is_member


async def test_the_result_of_an_own_task_outlives_the_log(nursery: trio.Nursery, autojump_clock: Any) -> None:
    rig = Rig(checkpoint_operations=12)
    rig.found()
    nursery.start_soon(rig.run_disk)
    nursery.start_soon(rig.timers.run)
    compacted = trio.Event()

    def hear(notice: ev.Notice) -> None:
        rig.handle.on_notice(notice)
        if isinstance(notice, ev.Compacted):
            compacted.set()

    rig.hears = hear
    tasks = []
    for number in range(6):
        tasks.append(await rig.handle.submit(Task("count", key=f"{number}")))
        await rig.handle.claim(tasks[-1].id)
        await rig.handle.report(tasks[-1].id, {"number": number})
        await tasks[-1].result()
    await compacted.wait()
    assert rig.handle.is_compacted(tasks[0].id)
    # since when they are kept stands in the same write
    rows = [value for key, value in rig.writer.entries.items() if key.startswith(ENDED_ROW_KEY)]
    listed = {ended_key(rig.driver.pool, TaskId(task)) for row in rows for task in decode(row)}
    assert listed == {key for key in rig.writer.entries if key.startswith(ENDED_KEY)} != set()
    result = await tasks[0].result()
    assert (result.value, result.by, result.receipt) == ({"number": 0}, rig.identity.id, None)
    assert result.view.objective == "count"
    # submitting it again is submitting it once, and whatever else is asked is told why it is gone
    again = await rig.handle.submit(Task("count", key="0"))
    assert (await again.result()).value == {"number": 0}
    for ask in (rig.handle.task, rig.handle.receipt):
        with pytest.raises(NotFound, match="checkpoint"):
            ask(tasks[0].id)
    with pytest.raises(Conflict, match="checkpoint"):
        await rig.handle.cancel(tasks[0].id)
    # the store has the snapshot, and no operation that it covers
    assert set(rig.writer.snapshots) == {rig.driver.pool}
    assert len(rig.writer.rows) < 12
