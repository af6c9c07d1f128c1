"""The replay log: what an agent saw and decided can be read again, checked, and shown to an agent once more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, LocalError, NotFound
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.decision import ClaimTask, CreatePool, Decision, InvokeTool, Propose, SendMessage
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Progress, Task, TaskState, TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.oplog.coordination import PollRule
from converge_p2p.core.types import AgentId, OperationId, PoolId, PublicKey, TaskId
from converge_p2p.core.view.polls import Choice, PollPhase, PollView
from converge_p2p.runtime.agent import Agent, ToolResult
from converge_p2p.runtime.events import CoordinationEvent, DecisionOutcome, Matter, OutcomeKind
from converge_p2p.runtime.executor import Executed, Refused, StandardExecutor
from converge_p2p.runtime.loop import AgentRuntime
from converge_p2p.runtime.recording import RecordedError, Unreadable, pack, unpack
from converge_p2p.runtime.replay import replay
from converge_p2p.runtime.replay_log import BEGINNING, LogEntry, ReplayLog, read_entries, read_turns
from converge_p2p.store.memory import MemoryStore

POOL, TASK, KEY = PoolId(b"p" * 32), TaskId(b"t" * 32), PublicKey(b"k" * 32)
ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
VIEW = TaskView(
    TASK, POOL, KEY, Task("x", {"n": 1.5}).to_spec(key=b"k"), TaskState.ASSIGNED, progress=Progress(500, "half")
)
POLL = PollView(
    OperationId(b"o" * 32), KEY, "?", ("a", "b"), PollRule.MAJORITY, 0, (KEY,), 0,
    {KEY: Choice(OperationId(b"v" * 32), 0, False)}, (1, 0), PollPhase.DECIDED, 0, True, 0,
)  # fmt: skip
PREFIX = "replay/me/"


@dataclass(frozen=True, slots=True)
class Own(Decision):
    """A kind of decision of an application."""

    what: str


VALUES: list[Any] = [
    None, 1, 1.5, "a", b"b", (1, [2, (3,)]), {"a": {KEY: 1}}, VIEW, POLL, TaskState.FAILED,
    ClaimTask(POOL, TASK, 3), CreatePool("a", topics=(Topic("x"),)), Propose(POOL, b"", {"price": 1.5}),
    DecisionOutcome(ClaimTask(POOL, TASK), OutcomeKind.GRANTED, token=(0, 1), task=VIEW),
    CoordinationEvent(POOL, Matter.POLL, POLL.id, POLL, {"question": "?"}), ToolResult(InvokeTool("t", {"a": 1}), 7),
    Executed(InvokeTool("t"), [1]), Message.create(ALICE.id, {"n": 1}),
    Message.create(ALICE.id, 1).stamp(1000).sign(ALICE),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_an_agent_sees_and_decides_is_read_as_it_was(value: Any) -> None:
    assert unpack(pack(value)) == value


def test_a_sealed_message_stays_sealed_and_can_still_be_read() -> None:
    sealed = Message.create(ALICE.id, "hi", recipient=BOB.id).stamp(1000).seal(BOB.public_key).sign(ALICE)
    read = unpack(pack(sealed.unseal(BOB)))
    assert (read.payload, read.to_bytes()) == ("hi", sealed.to_bytes())


def test_errors_and_unknown_kinds_are_kept_as_text_and_make_nothing() -> None:
    refused = unpack(pack(Refused(ClaimTask(POOL, TASK), NotFound("no such task"))))
    assert refused.error == RecordedError("NotFound", "no such task")
    assert unpack(pack(Own("x"))) == Unreadable("Own", repr(Own("x")))
    with pytest.raises(CodecError, match="not registered"):
        unpack(["made", "Popen", b"\x90"])
    with pytest.raises(CodecError):
        unpack(["enum", "TaskState", "GONE"])
    with pytest.raises(CodecError):
        unpack(["made", "ClaimTask", b"\x90"])


class Echo(Agent):
    """Answers each message."""

    def __init__(self, word: str = "echo") -> None:
        super().__init__()
        self.word = word

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
        return [SendMessage(Message.create(ALICE.id, f"{self.word} {message.payload}")) for message in messages]


async def recorded(store: MemoryStore, texts: Sequence[str], **bounds: Any) -> ReplayLog:
    """Let an agent hear texts, one in each turn."""
    log = ReplayLog(store, PREFIX, wall_clock=lambda: 1.0, **bounds)
    runtime = AgentRuntime(Echo(), StandardExecutor(), recorder=log)
    async with trio.open_nursery() as nursery:
        await nursery.start(runtime.run)
        await wait_all_tasks_blocked()
        for text in texts:
            runtime.deliver(Message.create(BOB.id, text))
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return log


def entries_of(store: MemoryStore) -> list[LogEntry]:
    return read_entries(store, PREFIX, -1, 1000)


async def test_turns_are_linked_across_restarts_and_replayed_into_the_same_agent(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    await recorded(store, ["one", "two"])
    await recorded(store, ["three"])
    turns = read_turns(entries_of(store))
    assert [turn.number for turn in turns] == list(range(5)), "two of them are the first turns of a start"
    assert [message.payload for turn in turns for message in turn.messages] == ["one", "two", "three"]
    assert turns[0].at_ms == 1000
    assert isinstance(turns[1].results[0], Refused), "there was no port to send with"
    assert all(each.same for each in await replay(turns, Echo()))
    other = await replay(turns, Echo("no"))
    assert [each.same for each in other] == [True, False, False, True, False]
    assert other[1].decisions[0].message.payload == "no one"  # type: ignore[attr-defined]


async def test_an_agent_that_raises_offline_is_a_difference_and_no_end(autojump_clock: MockClock) -> None:
    class Broken(Echo):
        def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
            raise ValueError("broken")

    store = MemoryStore()
    await recorded(store, ["one"])
    again = await replay(read_turns(entries_of(store)), Broken())
    assert [each.error for each in again] == ["ValueError: broken"] * 2
    assert not any(each.same for each in again)


async def test_an_export_that_was_changed_cut_or_mended_is_refused(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    await recorded(store, ["one", "two", "three"])
    good = entries_of(store)
    changed = replace(good[1], data=good[1].data.replace(b"one", b"eno"))
    for bad in (
        [good[0], changed, *good[2:]],
        [good[0], *good[2:]],
        [good[0], good[2], good[1], good[3]],
        [replace(good[0], number=7)],
        [LogEntry(0, b"nonsense")],
    ):
        with pytest.raises(CodecError):
            read_turns(bad)
    assert len(read_turns(good[1:])) == 3, "the oldest may be gone"
    assert bytes(32) == BEGINNING


async def test_the_log_is_bounded_and_what_is_left_of_it_is_linked(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    await recorded(store, [str(number) for number in range(9)], entries_max=4)
    assert [turn.number for turn in read_turns(entries_of(store))] == [6, 7, 8, 9]
    small = MemoryStore()
    await recorded(small, ["x" * 1000] * 9, bytes_max=10_000)
    assert 1 < len(read_turns(entries_of(small))) < 10
    assert sum(len(entry.data) for entry in entries_of(small)) <= 10_000
    with pytest.raises(LocalError):
        ReplayLog(store, PREFIX, entries_max=0)


async def test_what_is_too_large_or_too_much_is_said_and_breaks_no_chain(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REPLAY_LOG_ENTRY_BYTES_MAX", 500)
    monkeypatch.setattr(limits, "REPLAY_LOG_WAITING_MAX", 2)
    store = MemoryStore()
    log = ReplayLog(store, PREFIX)
    for text in ("a", "b", "lost", "lost too"):
        log.record(((Message.create(BOB.id, text),), (), (), ()), (), ())
    assert log.lost_total == 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await wait_all_tasks_blocked()
        log.record(((Message.create(BOB.id, "x" * 600),), (), (), ()), (), ())
        nursery.cancel_scope.cancel()
    turns = read_turns(entries_of(store))
    assert [(turn.lost, bool(turn.omitted)) for turn in turns] == [(2, False), (0, False), (0, True)]
    assert await replay([turns[2]], Echo()) == []
    assert AgentId(BOB.id) == turns[0].messages[0].sender
