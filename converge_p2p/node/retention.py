"""What a node removes because its operator wants it kept no longer.

Knows: which of what it keeps no protocol asks for, and since when it is there. Must not know: how it came there.
Source: `docs/operations.md`, room on the disk. Never removed: operations and checkpoints of pools the node is in, keys,
messages that wait for an agent, what was taken from the network (a message must not be taken twice), pinned blobs.

Ages are told by the wall clock. So nothing is removed in the first minutes of a run, when a machine may not know the
time yet, nor for an hour after the clock was found to have been set.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, decode_value, encode, may_refer
from converge_p2p.core.errors import CodecError, LocalError, StoreError
from converge_p2p.core.types import BlobId, BlobRef, PoolId, TaskId
from converge_p2p.node.agents import REPLAY_KEY
from converge_p2p.node.blobs import Blobs
from converge_p2p.node.config import Retention
from converge_p2p.node.driver import ENDED_KEY, ENDED_ROW_KEY, ended_key, ended_rows
from converge_p2p.node.pools import Pools
from converge_p2p.store.api import KeptStore, NodeStore

_logger = logging.getLogger(__name__)

FIRST_S: Final = 600.0
PAUSE_S: Final = 3600.0
_DAY_S: Final = 24 * 3600
_VIEWS_PER_TURN: Final = 256
LISTED_KEY: Final = "retention/listed"
"""There once the results that an earlier version kept, without saying since when, were listed as of then."""


class Keeper:
    """Removes what was kept long enough. The methods that end in `_now` block."""

    def __init__(
        self,
        store: NodeStore,
        pools: Pools,
        blobs: Blobs,
        retention: Retention,
        *,
        counters: Counter[str],
        clock_jumped: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Remove nothing yet.

        Args:
            store, pools, blobs: of the node.
            retention: how long what is kept.
            counters: of the node; `kept_too_long` is counted there.
            clock_jumped: whether the wall clock was set lately.
            clock: Unix time, seconds.

        Raises:
            LocalError: an age out of bounds, or the store cannot remove many values at once.
        """
        ages = (retention.results_days, retention.left_pools_days, retention.blobs_days, retention.records_days)
        for days in ages:
            if not 0 <= days <= limits.RETENTION_DAYS_MAX:
                raise LocalError(f"something is to be kept for {days} days; expected 0 to {limits.RETENTION_DAYS_MAX}")
        if any(ages) and not isinstance(store, KeptStore):
            raise LocalError(
                "this store cannot remove many values at once, so nothing can be kept for a time only",
                hint="let it have held_bytes and delete_many (store.api.KeptStore)",
            )
        self._asked_for = any(ages)
        self._store = store
        self._pools = pools
        self._blobs = blobs
        self._retention = retention
        self._counters = counters
        self._clock_jumped = clock_jumped
        self._clock = clock

    async def run(self) -> None:
        """Look every hour, until cancelled. A store that fails is only logged: whatever has to be written says so."""
        if not self._asked_for:
            return
        await trio.sleep(FIRST_S)
        while True:
            if self._clock_jumped():
                _logger.warning("the clock was set: nothing is removed for its age now")
            else:
                try:
                    await self.prune()
                except StoreError as error:
                    _logger.warning("what was kept long enough was not removed: %s", error)
            await trio.sleep(PAUSE_S)

    async def prune(self) -> None:
        """Remove what was kept long enough.

        Raises:
            StoreError: store or disk fail. What was removed before stays removed.

        Cancellation: what was begun is ended first.
        """
        kept, now_s = self._retention, self._clock()
        removed: Counter[str] = Counter()
        if kept.results_days:
            before_ms = round((now_s - kept.results_days * _DAY_S) * 1000)
            removed["results"] = await trio.to_thread.run_sync(self._results_now, before_ms, round(now_s * 1000))
        if kept.left_pools_days:
            removed["left_pools"] = await self._pools.drop_left(round(now_s - kept.left_pools_days * _DAY_S))
        if kept.records_days:
            before_ms = round((now_s - kept.records_days * _DAY_S) * 1000)
            removed["records"] = await trio.to_thread.run_sync(self._records_now, before_ms)
        if kept.blobs_days:
            needed = await self._needed_blobs()
            removed["blobs"] = await self._blobs.expire(now_s - kept.blobs_days * _DAY_S, needed)
        self._counters["kept_too_long"] += removed.total()
        if removed.total():
            _logger.info("removed what was kept long enough", extra=dict(removed))

    # ------------------------------------------------------------ results of own tasks

    def _results_now(self, before_ms: int, now_ms: int) -> int:
        if self._store.get(LISTED_KEY) is None:
            self._list_older_now(now_ms)
        removed = 0
        for row in self._store.list(ENDED_ROW_KEY):
            at_ms, _, rest = row.removeprefix(ENDED_ROW_KEY).partition("/")
            if int(at_ms, 16) >= before_ms:
                break
            pool = PoolId(bytes.fromhex(rest.partition("/")[0]))
            # the row goes in the last step: until then a crash leaves a row whose tasks are removed again
            keys = [ended_key(pool, task) for task in _tasks(row, self._store.get(row) or b"")]
            removed += self._delete_now([*keys, row]) - 1
        return removed

    def _list_older_now(self, now_ms: int) -> None:
        """Say of results that an earlier version kept that they are there since now."""
        listed = {key for row in self._store.list(ENDED_ROW_KEY) for key in self._keys_of_row(row)}
        unlisted: dict[PoolId, list[TaskId]] = {}
        for key in self._store.list(ENDED_KEY):
            if key not in listed:
                pool, _, task = key.removeprefix(ENDED_KEY).partition("/")
                unlisted.setdefault(PoolId(bytes.fromhex(pool)), []).append(TaskId(bytes.fromhex(task)))
        for name, tasks in unlisted.items():
            for row, value in ended_rows(name, tasks, now_ms).items():
                self._store.put(row, value)
        self._store.put(LISTED_KEY, encode(1))

    def _keys_of_row(self, row: str) -> Iterator[str]:
        pool = PoolId(bytes.fromhex(row.removeprefix(ENDED_ROW_KEY).split("/")[1]))
        return (ended_key(pool, task) for task in _tasks(row, self._store.get(row) or b""))

    # ------------------------------------------------------------ recorded turns

    def _records_now(self, before_ms: int) -> int:
        """Remove the beginnings of replay logs; what is left of one still shows whether it was changed."""
        old: list[str] = []
        unread: list[str] = []
        ended = last = ""
        for key in self._store.list(REPLAY_KEY):
            log = key.rpartition("/")[0]
            if log == ended:
                continue
            if log != last:
                unread, last = [], log
            at_ms = _recorded_ms(self._store.get(key) or b"")
            if at_ms is None:
                # damaged, or of a later version: how old it is only the next turn shows
                unread.append(key)
            elif at_ms >= before_ms:
                # turns are in order: the rest of this log is younger
                ended = log
            else:
                old += [*unread, key]
                unread = []
        return self._delete_now(old)

    def _delete_now(self, keys: list[str]) -> int:
        assert isinstance(self._store, KeptStore)
        removed = 0
        for at in range(0, len(keys), limits.KEYS_PER_DELETION_MAX):
            removed += self._store.delete_many(keys[at : at + limits.KEYS_PER_DELETION_MAX])
        return removed

    # ------------------------------------------------------------ blobs

    async def _needed_blobs(self) -> frozenset[BlobId]:
        """Blobs that tasks which are not settled name: somebody will ask for them."""
        found: set[BlobId] = set()
        for pool in self._pools.all().values():
            if not pool.ready:
                continue
            for number, view in enumerate(pool.open_tasks(), 1):
                # of a task that is not settled, results wait for electors, a verdict, or the time of its vetoers
                waiting = (*view.reported, *view.unjudged, view.awaiting)
                results = [value.result for value in waiting if value is not None]
                for encoded in (view.spec.inputs, *results):
                    if may_refer(encoded):
                        found.update(_references(encoded))
                if number % _VIEWS_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
        return frozenset(found)


def _tasks(row: str, data: bytes) -> list[TaskId]:
    try:
        tasks = decode(data)
    except CodecError as error:
        raise StoreError(f"the list {row} of tasks that ended is damaged: {error}") from error
    if not isinstance(tasks, list) or not all(isinstance(task, bytes) for task in tasks):
        raise StoreError(f"the list {row} of tasks that ended is damaged")
    return [TaskId(task) for task in tasks]


def _recorded_ms(entry: bytes) -> int | None:
    """When a turn was recorded; None if that cannot be read."""
    try:
        match decode_value(entry):
            case [1, int(), bytes(), int(at_ms), *_]:
                return at_ms
    except CodecError:
        pass
    return None


def _references(encoded: bytes) -> Iterator[BlobId]:
    try:
        waiting: list[Any] = [decode_value(encoded)]
    except CodecError:
        return
    while waiting:
        match waiting.pop():
            case BlobRef() as reference:
                yield reference.id
            case Mapping() as found:
                waiting += found.values()
            case list() | tuple() as found:
                waiting += found
