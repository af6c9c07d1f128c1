"""Checkpoints: a small note of an agent's progress now and then, for people who watch, and for the agent itself.

Knows: what is in a note, and where it is kept. Must not know: the loop. Messages and tasks are not in a note: nothing
is handed over twice, or not at all, because of one.
Source: the concepts page (recovery): "for observability; they do not change processing or replay semantics". An agent
may put a value of its own into the note (`Agent.checkpoint`), and finds it at its next start (`last_checkpoint`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value, encode_value
from converge_p2p.core.errors import CodecError
from converge_p2p.runtime.ports import CheckpointStore

_logger = logging.getLogger(__name__)

KEY: Final = "checkpoint/"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A note.

    Attributes:
        agent: its name.
        turns, failures: since it was started in that process.
        at_ms: Unix time, milliseconds.
        state: what the agent itself wanted to have noted, or None.
    """

    agent: str
    turns: int
    failures: int
    at_ms: int
    state: Any = None

    def to_bytes(self) -> bytes:
        """Return the note as it is kept.

        Raises:
            CodecError: the state is no value of numbers, text, bytes, lists and maps.
        """
        note: dict[str, Any] = {
            "v": _VERSION, "agent": self.agent, "turns": self.turns, "failures": self.failures, "at_ms": self.at_ms,
        }  # fmt: skip
        return encode_value(note if self.state is None else {**note, "state": self.state})

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read a note.

        Raises:
            CodecError: it is damaged, or of another version.
        """
        match note := decode_value(data):
            case {"v": 1, "agent": str(agent), "turns": int(turns), "failures": int(failures), "at_ms": int(at_ms)}:
                return cls(agent, turns, failures, at_ms, note.get("state"))
        raise CodecError("this is no checkpoint of an agent, or one of another version")


class Watched(Protocol):
    """What a note is about."""

    def progress(self) -> tuple[int, int]:
        """Return turns and failures so far."""

    def checkpoint(self) -> Any:
        """Return what the agent wants to have noted; foreign code, which may raise."""


class Checkpoints:
    """The notes of one agent: the newest replaces the one before it, in one write."""

    def __init__(self, store: CheckpointStore, name: str, watched: Watched, wall_clock: Callable[[], float]) -> None:
        """Nothing is read or written yet.

        Args:
            store: where.
            name: of the agent.
            watched: the agent and its progress.
            wall_clock: Unix time in seconds.
        """
        self._store = store
        self._name = name
        self._watched = watched
        self._wall_clock = wall_clock
        # before the first turn the agent may not have taken up what it noted last
        self._written = 0

    async def load(self) -> Checkpoint | None:
        """Return the newest note, or None if there is none that can be read."""
        try:
            kept = await trio.to_thread.run_sync(self._store.get, KEY + self._name)
            return None if kept is None else Checkpoint.from_bytes(kept)
        except Exception as error:  # noqa: BLE001 - the agent starts without its note
            _logger.warning("the checkpoint of agent %s cannot be read: %s", self._name, error)
            return None

    async def run(self, interval_s: float) -> None:
        """Write a note each time some turns were taken since the last one, until cancelled."""
        while True:
            await trio.sleep(interval_s)
            await self.write()

    async def write(self) -> None:
        """Write a note if a turn was taken since the last one. A failure is logged: it must not stop the agent."""
        turns, failures = self._watched.progress()
        if turns == self._written:
            return
        at_ms = round(self._wall_clock() * 1000)
        try:
            data = self._encoded(Checkpoint(self._name, turns, failures, at_ms, self._state()))
            await trio.to_thread.run_sync(self._store.put, KEY + self._name, data)
            self._written = turns
        except Exception:
            _logger.exception("checkpoint of agent %s was not written", self._name)

    def _state(self) -> Any:
        try:
            return self._watched.checkpoint()
        except Exception:
            _logger.exception("agent %s failed in checkpoint", self._name)
            return None

    def _encoded(self, note: Checkpoint) -> bytes:
        try:
            data = note.to_bytes()
            if len(data) <= limits.AGENT_CHECKPOINT_BYTES_MAX:
                return data
            why = f"it has {len(data)} bytes; at most {limits.AGENT_CHECKPOINT_BYTES_MAX} are kept"
        except CodecError as error:
            why = str(error)
        _logger.warning("what agent %s wants to have noted is left out: %s", self._name, why)
        return Checkpoint(note.agent, note.turns, note.failures, note.at_ms).to_bytes()


class ListableStore(CheckpointStore, Protocol):
    """A store that says what is in it."""

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted."""


def read_checkpoints(store: ListableStore, count_max: int = limits.AGENTS_PER_NODE_MAX) -> list[Checkpoint]:
    """Return the newest note of each agent, by name; those that cannot be read are left out. Blocks.

    Raises:
        StoreError: the store cannot be read.
    """
    return list(_readable(store, store.list(KEY)[:count_max]))


class PrunableStore(ListableStore, Protocol):
    """A store that forgets."""

    def delete(self, key: str) -> bool:
        """Remove a value; say whether there was one."""


def _readable(store: CheckpointStore, keys: Iterable[str]) -> Iterable[Checkpoint]:
    for key in keys:
        kept = store.get(key)
        try:
            if kept is not None:
                yield Checkpoint.from_bytes(kept)
        except CodecError as error:
            _logger.warning("the checkpoint %s cannot be read: %s", key, error)


def prune_checkpoints(store: PrunableStore, keep: int = limits.AGENTS_PER_NODE_MAX) -> int:
    """Remove the oldest notes beyond `keep`, of agents that are long gone; return how many. Blocks.

    Raises:
        StoreError: the store cannot be read or written.
    """
    found = store.list(KEY)
    if len(found) <= keep:
        return 0
    ages = {KEY + note.agent: note.at_ms for note in _readable(store, found)}
    oldest = sorted(found, key=lambda key: ages.get(key, 0))[: len(found) - keep]
    for key in oldest:
        store.delete(key)
    return len(oldest)
