"""Whether a node can do its work, and if not, why.

Knows: what a node cannot do without. Must not know: who asks.
Source: `docs/observability.md`, health. What is wrong with one agent or pool is a warning: the node itself works.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from converge_p2p.core.errors import StoreError
from converge_p2p.node.clock_watch import ClockWatch

if TYPE_CHECKING:
    from converge_p2p.node.gauges import NodeParts

PROBE_KEY: Final = "health/probe"
PROBE_PAUSE_S: Final = 5.0
PROBE_S: Final = 10.0
STALLED_S: Final = 10.0
DISK_BYTES_MIN: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong.

    Attributes:
        what: a short stable name.
        text: one sentence for people; hint: what to do.
        fatal: the node cannot do its work; otherwise it is a warning.
    """

    what: str
    text: str
    hint: str = ""
    fatal: bool = True


class Health:
    """Looks at a node. The store is written to for that, but not more often than every `PROBE_PAUSE_S`."""

    def __init__(self) -> None:
        """Begin without an answer."""
        self._probed_at = -PROBE_PAUSE_S
        self._store: Trouble | None = None
        self._probing = trio.Lock()
        self._clock: ClockWatch | None = None

    def started(self, parts: NodeParts, spawn: Callable[..., None]) -> None:
        """The node runs: its clock is watched from now on."""
        self._clock = ClockWatch(parts.store, parts.counters)
        spawn(self._clock.run)

    def clock_jumped(self) -> bool:
        """Whether the wall clock was found to have been set within `clock_watch.SHOWN_S`."""
        return self._clock is not None and self._clock.look() is not None

    async def look(self, parts: NodeParts) -> list[Trouble]:
        """Return what is wrong, the worst first. Never raises for what is wrong."""
        found = [trouble for trouble in (await self._probe(parts), _stalled(parts), _disk(parts)) if trouble]
        if not parts.network.listens:
            hint = "see network.listen, and what else uses the port"
            found.append(Trouble("listen", "the node listens on no address", hint))
        failing = sum(not agent.health.ok for agent in parts.hosting.hosted())
        if failing:
            text = f"{failing} of the agents of this node fail or hang"
            found.append(Trouble("agents", text, "see `converge-node agent hosted`", fatal=False))
        jump = None if self._clock is None else self._clock.look()
        if jump is not None:
            hint = "set the clock, and keep it right with NTP; no task and no vote is lost by it"
            found.append(Trouble("clock", jump.text, hint, fatal=False))
        if (tight := _room(parts)) is not None:
            found.append(tight)
        unsure = [pool for pool in parts.pools.all().values() if pool.ready and pool.unsure]
        return found + [Trouble("pool", f"pool {pool.name}: {pool.unsure}", fatal=False) for pool in unsure]

    async def _probe(self, parts: NodeParts) -> Trouble | None:
        async with self._probing:
            if trio.current_time() < self._probed_at + PROBE_PAUSE_S:
                return self._store
            self._store = await _write(parts)
            self._probed_at = trio.current_time()
            return self._store


async def _write(parts: NodeParts) -> Trouble | None:
    hint = "see `converge-node doctor`: room on the disk, who owns the folder, the state of the database"
    with trio.move_on_after(PROBE_S):
        try:
            await trio.to_thread.run_sync(parts.store.put, PROBE_KEY, b"", abandon_on_cancel=True)
        except StoreError as error:
            return Trouble("store", f"the store cannot be written: {error}", error.hint or hint)
        return None
    return Trouble("store", f"the store did not write a few bytes within {PROBE_S:g} s", hint)


def _room(parts: NodeParts) -> Trouble | None:
    room = parts.pools.room
    if not room.nearly_full:
        return None
    hint = "allow more (store.max_bytes), leave pools that are not needed, or keep results for less time"
    text = f"the store holds {room.held // 1024} of {room.bytes_max // 1024} KiB"
    if room.full:
        text += ": nothing more is submitted, founded or joined from here"
    return Trouble("store_room", text, hint, fatal=False)


def _stalled(parts: NodeParts) -> Trouble | None:
    stalled_s = parts.writer.stalled_s
    if stalled_s < STALLED_S:
        return None
    return Trouble("store_stalled", f"a commit has taken {stalled_s:.0f} s so far", "is the disk failing, or busy?")


def _disk(parts: NodeParts) -> Trouble | None:
    if parts.home is None:
        return None
    try:
        free = shutil.disk_usage(parts.home).free
    except OSError as error:
        return Trouble("disk", f"the folder {parts.home} is not there any more: {error.strerror}")
    if free >= DISK_BYTES_MIN:
        return None
    return Trouble("disk", f"only {free // 1024} KiB are free in {parts.home}", "make room before the store is full")
