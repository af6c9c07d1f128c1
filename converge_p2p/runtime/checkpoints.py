"""Checkpoints: a small note of an agent's progress now and then, for people who watch.

Knows: what is in a note. Must not know: the loop. Nothing is resumed from a note.
Source: the concepts page (recovery).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from converge_p2p.core.codec import encode_value
from converge_p2p.runtime.ports import CheckpointStore

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """Whose progress, and how far it is.

    Attributes:
        name: of the agent.
        count: returns turns and failures so far.
        wall_clock: Unix time in seconds.
    """

    name: str
    count: Callable[[], tuple[int, int]]
    wall_clock: Callable[[], float]


async def run_checkpoints(store: CheckpointStore, progress: Progress, interval_s: float) -> None:
    """Write a note each time some turns were taken since the last one, until cancelled."""
    written = -1
    while True:
        await trio.sleep(interval_s)
        turns, failures = progress.count()
        if turns == written:
            continue
        at_ms = round(progress.wall_clock() * 1000)
        note = {"v": 1, "agent": progress.name, "turns": turns, "failures": failures, "at_ms": at_ms}
        try:
            await trio.to_thread.run_sync(store.put, f"checkpoint/{progress.name}", encode_value(note))
            written = turns
        except Exception:
            # a checkpoint is for people who watch: losing one must not stop the agent
            _logger.exception("checkpoint of agent %s was not written", progress.name)
