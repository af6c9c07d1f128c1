"""The replay log of an agent: what it saw and decided in each turn, bounded and linked by hashes.

Knows: entries, their order, and where they are kept. Must not know: what a turn is about (see `recording`).
Source: `docs/concepts.md`, replay log. Each entry holds the hash of the one before it, so an export shows whether
something of it was changed, left out or put in; only its beginning may be missing, since the oldest entries go first.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value, encode_value, tagged_hash
from converge_p2p.core.errors import CodecError, LocalError, StoreError
from converge_p2p.core.model.decision import Decision
from converge_p2p.runtime.ports import ReplayStore
from converge_p2p.runtime.recording import pack, unpack

_logger = logging.getLogger(__name__)

ENTRIES_MAX = 4096
BYTES_MAX = 64 * 1024 * 1024
BEGINNING = bytes(32)
_FLUSH_S = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of `decide`, as it was recorded.

    Attributes:
        number: in the log, from 0.
        at_ms: Unix time, milliseconds.
        messages, tasks, events, tool_results: what the agent saw.
        decisions: what it decided.
        results: what became of that at once.
        omitted: why nothing else of it is here; empty otherwise.
        lost: turns before it that were not recorded, since they came faster than they could be written.
    """

    number: int
    at_ms: int
    messages: tuple[Any, ...] = ()
    tasks: tuple[Any, ...] = ()
    events: tuple[Any, ...] = ()
    tool_results: tuple[Any, ...] = ()
    decisions: tuple[Decision, ...] = ()
    results: tuple[Any, ...] = ()
    omitted: str = ""
    lost: int = 0


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry as it is kept and exported.

    Attributes:
        data: bytes; the next entry holds their hash.
    """

    number: int
    data: bytes

    @property
    def hash(self) -> bytes:
        """What the next entry names."""
        return entry_hash(self.data)


class ReplayLog:
    """Records turns of one agent."""

    def __init__(
        self,
        store: ReplayStore,
        prefix: str,
        *,
        entries_max: int = ENTRIES_MAX,
        bytes_max: int = BYTES_MAX,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a log; `run` opens it and writes.

        Args:
            store: where entries are kept.
            prefix: begins their keys.
            entries_max: how many are kept, 1 to `limits.REPLAY_LOG_ENTRIES_MAX`.
            bytes_max: how much is kept in all.
            wall_clock: Unix time in seconds.

        Raises:
            LocalError: a bound out of its range.
        """
        if not 1 <= entries_max <= limits.REPLAY_LOG_ENTRIES_MAX or bytes_max < 1:
            raise LocalError(f"entries_max is {entries_max}; expected 1 to {limits.REPLAY_LOG_ENTRIES_MAX}")
        self._store = store
        self._prefix = prefix
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._wall_clock = wall_clock
        self._kept: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._head = BEGINNING
        self._next = 0
        self._waiting: list[tuple[int, list[Any] | str]] = []
        self._lost = 0
        self._opened = False
        self._woken = trio.Event()
        self.lost_total = 0

    def record(self, seen: Sequence[Sequence[Any]], decided: Sequence[Decision], results: Sequence[Any]) -> None:
        """See `TurnRecorder`. What is recorded faster than it can be written is lost, and counted."""
        if len(self._waiting) >= limits.REPLAY_LOG_WAITING_MAX:
            self._lost += 1
            self.lost_total += 1
            return
        at_ms = round(self._wall_clock() * 1000)
        try:
            turn: list[Any] | str = [pack(tuple(part)) for part in (*seen, decided, results)]
        except CodecError as error:
            turn = f"it cannot be recorded: {error}"
        self._waiting.append((at_ms, turn))
        self._woken.set()

    async def run(self) -> None:
        """Write down what is recorded, until cancelled.

        Cancellation: what was recorded before is written first, for at most a second.
        """
        try:
            while True:
                if not self._waiting:
                    self._woken = trio.Event()
                    await self._woken.wait()
                await self._flush()
        finally:
            with trio.move_on_after(_FLUSH_S, shield=True):
                await self._flush()

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        lost, self._lost = self._lost, 0
        if not waiting:
            return
        try:
            # what was taken out of the list must be written, whatever is cancelled
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._write_now, waiting, lost)
        except StoreError:
            # the node itself ends with an error if its store cannot be written; a log must not be the first to say so
            self.lost_total += len(waiting)
            _logger.exception("%d turns were not recorded", len(waiting))

    def _open_now(self) -> None:
        self._opened = True
        for key in self._store.list(self._prefix):
            data = self._store.get(key) or b""
            number = int(key.removeprefix(self._prefix))
            self._kept.append((number, len(data)))
            self._bytes += len(data)
            self._next, self._head = number + 1, entry_hash(data)

    def _write_now(self, waiting: Sequence[tuple[int, list[Any] | str]], lost: int) -> None:
        if not self._opened:
            self._open_now()
        for at_ms, turn in waiting:
            data = self._encode(at_ms, turn, lost)
            lost = 0
            self._store.put(self._key(self._next), data)
            self._kept.append((self._next, len(data)))
            self._bytes += len(data)
            self._next, self._head = self._next + 1, entry_hash(data)
            while len(self._kept) > self._entries_max or (self._bytes > self._bytes_max and len(self._kept) > 1):
                number, size = self._kept.popleft()
                self._bytes -= size
                self._store.delete(self._key(number))

    def _encode(self, at_ms: int, turn: list[Any] | str, lost: int) -> bytes:
        head = [1, self._next, self._head, at_ms, lost]
        try:
            data = encode_value([*head, turn])
        except CodecError as error:
            return encode_value([*head, f"it cannot be recorded: {error}"])
        if len(data) <= limits.REPLAY_LOG_ENTRY_BYTES_MAX:
            return data
        return encode_value([*head, f"it had {len(data)} bytes, more than REPLAY_LOG_ENTRY_BYTES_MAX"])

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:016d}"


def entry_hash(data: bytes) -> bytes:
    """Return the hash by which the next entry names this one."""
    return tagged_hash("replay-entry", data)


def read_entries(store: ReplayStore, prefix: str, after: int, count: int) -> list[LogEntry]:
    """Read up to `count` entries that come after a number (-1: from the first one that is kept). Blocks."""
    found: list[LogEntry] = []
    for key in store.list(prefix):
        number = int(key.removeprefix(prefix))
        if number > after and len(found) < count:
            data = store.get(key)
            if data is not None:
                found.append(LogEntry(number, data))
    return found


def read_turns(entries: Iterable[LogEntry]) -> list[Turn]:
    """Check the chain of an exported log, and return its turns.

    Raises:
        CodecError: an entry was changed, left out or put in, or cannot be read.
    """
    turns: list[Turn] = []
    head: bytes | None = None
    for entry in entries:
        match decode_value(entry.data):
            case [1, int(number), bytes(before), int(at_ms), int(lost), turn] if number == entry.number:
                pass
            case _:
                raise CodecError(f"entry {entry.number} is no entry of a replay log of this version")
        if head is not None and (before != head or number != turns[-1].number + 1):
            raise CodecError(f"entry {number} does not follow the one before it: the log was changed")
        if head is None and not number and before != BEGINNING:
            raise CodecError("the first entry names one before it: the log was changed")
        head = entry.hash
        if isinstance(turn, str):
            turns.append(Turn(number, at_ms, omitted=turn, lost=lost))
            continue
        parts = [unpack(part) for part in turn]
        if len(parts) != 6:
            raise CodecError(f"entry {number} has {len(parts)} parts; expected 6")
        messages, tasks, events, tool_results, decisions, results = parts
        turns.append(Turn(number, at_ms, messages, tasks, events, tool_results, decisions, results, lost=lost))
    return turns
