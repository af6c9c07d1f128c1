"""The newest lines of the log, for whoever asks a running node, and the level that can be changed while it runs.

Knows: lines and their numbers. Must not know: how a line is made, or who reads it.
Source: docs/observability.md, logs. Records come from any thread; readers live in the event loop.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator

import trio

from converge_p2p.core import limits


class LogBook(logging.Handler):
    """Keeps the last `limits.LOG_LINES_KEPT_MAX` lines, as JSON."""

    def __init__(self) -> None:
        """Begin without a line."""
        super().__init__()
        self._lines: deque[str] = deque(maxlen=limits.LOG_LINES_KEPT_MAX)
        self._count = 0
        self._guard = threading.Lock()
        self._news = trio.Event()
        self._loop: trio.lowlevel.TrioToken | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record. Never raises."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - the edge: a record that cannot be written must not end what wrote it
            self.handleError(record)
            return
        if len(line) > limits.LOG_LINE_BYTES_MAX:
            line = line[: limits.LOG_LINE_BYTES_MAX] + "…"
        with self._guard:
            self._lines.append(line)
            self._count += 1
            loop = self._loop
        if loop is not None:
            try:
                loop.run_sync_soon(self._tell, idempotent=True)
            except trio.RunFinishedError:
                self._loop = None

    def newest(self, count: int) -> list[str]:
        """Return at most so many lines, oldest first."""
        with self._guard:
            return list(self._lines)[-count:] if count > 0 else []

    async def follow(self, count: int) -> AsyncGenerator[str, None]:
        """Yield the newest lines and every later one. Who reads too slowly misses some, and is told how many."""
        self._loop = trio.lowlevel.current_trio_token()
        with self._guard:
            read = self._count - min(count, len(self._lines))
        while True:
            news = self._news
            with self._guard:
                missed = max(0, self._count - len(self._lines) - read)
                lines = list(self._lines)[len(self._lines) - (self._count - read - missed) :]
                read = self._count
            if missed:
                yield f'{{"event":"{missed} lines were missed"}}'
            for line in lines:
                yield line
            await news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()
