"""Checkpoints of agents: the newest note, found again at the next start, bounded, and never in the agent's way."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.checkpoints import KEY, Checkpoint, prune_checkpoints, read_checkpoints
from converge_p2p.runtime.executor import StandardExecutor
from converge_p2p.runtime.loop import AgentRuntime
from converge_p2p.store.memory import MemoryStore

ALICE = Identity.from_seed(bytes(32)).id


class Counting(Agent):
    """Counts messages, and goes on counting after a restart."""

    def __init__(self, enough: int, state: Any = None) -> None:
        super().__init__(name="counter")
        self.enough, self.state_to_note = enough, state
        self.count = 0
        self.done = trio.Event()

    def on_start(self) -> None:
        if self.last_checkpoint is not None:
            self.count = self.last_checkpoint.state["count"]

    def decide(self, messages: Any, tasks: Any) -> list[Any]:
        self.count += len(messages)
        if self.count >= self.enough:
            self.done.set()
        return []

    def checkpoint(self) -> Any:
        return {"count": self.count} if self.state_to_note is None else self.state_to_note


async def run_until_done(agent: Counting, store: MemoryStore, messages: int) -> None:
    runtime = AgentRuntime(agent, StandardExecutor(), checkpoint_store=store, wall_clock=lambda: 2.5)
    async with trio.open_nursery() as nursery:
        await nursery.start(runtime.run)
        for number in range(messages):
            runtime.deliver(Message.create(ALICE, number))
        with trio.fail_after(10):
            await agent.done.wait()
        nursery.cancel_scope.cancel()


async def test_an_agent_finds_what_it_noted_before_it_was_stopped() -> None:
    store = MemoryStore()
    await run_until_done(Counting(3), store, 3)
    await run_until_done(again := Counting(5), store, 2)
    assert again.count == 5
    (note,) = read_checkpoints(store)
    assert (note.agent, note.state, note.at_ms) == ("counter", {"count": 5}, 2500)
    assert note.turns >= 1


@pytest.mark.parametrize("state", [b"x" * limits.AGENT_CHECKPOINT_BYTES_MAX, object()])
async def test_what_cannot_be_noted_is_left_out_and_the_progress_is_noted_all_the_same(state: Any) -> None:
    store = MemoryStore()
    await run_until_done(Counting(1, state), store, 1)
    (note,) = read_checkpoints(store)
    assert note.state is None
    assert note.turns >= 1


async def test_a_damaged_note_is_no_note_and_the_agent_starts() -> None:
    store = MemoryStore()
    store.put(KEY + "counter", b"\xff")
    await run_until_done(Counting(1), store, 1)
    assert [note.state for note in read_checkpoints(store)] == [{"count": 1}]


async def test_an_agent_that_took_no_turn_does_not_overwrite_what_it_noted() -> None:
    store = MemoryStore()
    kept = Checkpoint("counter", 9, 0, 1, {"count": 9}).to_bytes()
    store.put(KEY + "counter", kept)

    class Broken(Counting):
        def on_start(self) -> None:
            self.done.set()
            raise ValueError("not today")

    await run_until_done(Broken(1), store, 0)
    assert store.get(KEY + "counter") == kept


def test_the_oldest_notes_go_first() -> None:
    store = MemoryStore()
    for age in range(5):
        store.put(f"{KEY}a{age}", Checkpoint(f"a{age}", 1, 0, 5 - age).to_bytes())
    store.put(f"{KEY}damaged", b"\xff")
    assert prune_checkpoints(store, keep=3) == 3
    assert [note.agent for note in read_checkpoints(store)] == ["a0", "a1", "a2"]


@pytest.mark.parametrize("data", [b"", b"\x80", Checkpoint("a", 1, 0, 1).to_bytes()[:-1]])
def test_bytes_of_another_form_are_no_note(data: bytes) -> None:
    with pytest.raises(CodecError):
        Checkpoint.from_bytes(data)
