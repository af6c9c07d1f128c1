"""The replay window of a node, kept in its store so that a restart takes nothing twice.

Knows: keys of the store, and when the whole window is written. Must not know: messages, or what the window refuses.
Source: `docs/protocol.md`, direct requests. A message is recorded here before anybody sees it. The records of many
messages share one write, and after `limits.REPLAY_JOURNAL_ROWS_MAX` writes the whole window replaces them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, StoreError
from converge_p2p.core.model.replay import ReplayWindow, Taken
from converge_p2p.core.types import AgentId
from converge_p2p.store.api import Store

WINDOW_KEY = "mail/taken/window"
ROW_KEY = "mail/taken/row/"


class ReplayJournal:
    """Writes down what was taken, and reads it again at the next start. One task at a time uses it."""

    def __init__(self, store: Store) -> None:
        """Use a store; nothing is read yet."""
        self._store = store
        self._number = 0
        self._rows: list[str] = []

    async def read(self, now_ms: int, *, trusted: bool) -> ReplayWindow:
        """Return the window of the last run. If there was none, or it is old, everything before now is refused.

        Args:
            now_ms: Unix time, milliseconds.
            trusted: whether the store is the newest there is; an old copy does not know what was taken since.

        Raises:
            StoreError: the store cannot be read, or what it holds is damaged.
        """
        return await trio.to_thread.run_sync(functools.partial(self._read_now, now_ms, trusted))

    def _read_now(self, now_ms: int, trusted: bool) -> ReplayWindow:
        state = self._store.get(WINDOW_KEY)
        self._rows = self._store.list(ROW_KEY)
        if self._rows:
            self._number = int(self._rows[-1].removeprefix(ROW_KEY), 16) + 1
        if state is None or not trusted:
            window = ReplayWindow(floor_ms=now_ms)
        else:
            try:
                window = ReplayWindow.from_bytes(state)
                for key in self._rows:
                    window.restore(_decoded(self._store.get(key) or b""), now_ms)
            except CodecError as error:
                raise StoreError(f"the record of messages that were taken is damaged: {error}") from error
        self._write_window_now(window.to_bytes(), tuple(self._rows))
        return window

    async def record(self, taken: Sequence[Taken], window: ReplayWindow) -> None:
        """Write down what was taken; it outlives a loss of power when this returns.

        Args:
            taken: what was taken since the last call.
            window: all that is remembered, which replaces the records when there are many of them.

        Raises:
            StoreError: the store cannot be written.
        """
        if len(self._rows) >= limits.REPLAY_JOURNAL_ROWS_MAX:
            rows = tuple(self._rows)
            await trio.to_thread.run_sync(self._write_window_now, window.to_bytes(), rows)
            return
        key = f"{ROW_KEY}{self._number:016x}"
        self._number += 1
        self._rows.append(key)
        await trio.to_thread.run_sync(self._store.put, key, _encoded(taken))

    def _write_window_now(self, state: bytes, rows: Sequence[str]) -> None:
        # in this order: a row that is read again after a crash changes nothing
        self._store.put(WINDOW_KEY, state)
        for key in rows:
            self._store.delete(key)
        self._rows = [key for key in self._rows if key not in rows]


def _encoded(taken: Sequence[Taken]) -> bytes:
    return encode([[bytes.fromhex(one.sender), one.id, one.timestamp_ms, one.expires_ms] for one in taken])


def _decoded(data: bytes) -> list[Taken]:
    rows = decode(data)
    if not isinstance(rows, list):
        raise CodecError("a record is an array")
    found = []
    for row in rows:
        match row:
            case [bytes(sender), bytes(message_id), int(timestamp_ms), int(expires_ms)]:
                found.append(Taken(AgentId(sender.hex()), message_id, timestamp_ms, expires_ms))
            case _:
                raise CodecError("a record is of sender, id and two times")
    return found
