"""The shell around one replica: it obeys effects, in order, and feeds events.

Knows: the replica, the writer, the timers, the network. Must not know: what operations mean.
Source: `docs/architecture.md`, the way of a task: commit, then send, then notify.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

import trio

from converge_p2p.core.errors import CodecError
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.wire import Operations, decode_message
from converge_p2p.core.types import PeerId, PoolId
from converge_p2p.node.timers import Timers
from converge_p2p.node.writer import StoreWriter


class Wire(Protocol):
    """How a pool's frames leave the node."""

    def send_pool(self, peer: PeerId, pool: PoolId, payload: bytes) -> None:
        """Send a sync message to one peer. It may be lost."""

    def publish_pool(self, pool: PoolId, operations: tuple[bytes, ...], peers: Sequence[PeerId]) -> None:
        """Send operations to everybody in the pool; `peers` are those with a replication stream."""


class PoolDriver:
    """Drives one replica. Everything happens in the trio thread, and nothing here waits."""

    def __init__(
        self, replica: Replica, *, writer: StoreWriter, timers: Timers, wire: Wire, notify: Callable[[ev.Notice], None]
    ) -> None:
        self.replica = replica
        self.counters: Counter[str] = Counter()
        self._writer = writer
        self._timers = timers
        self._wire = wire
        self._notify = notify
        self._events: deque[ev.Event] = deque()
        self._draining = False
        self._written: dict[int, trio.Event] = {}
        self._fresh: list[bytes] = []
        self._caught_up = trio.Event()
        self._closed = False

    @property
    def pool(self) -> PoolId:
        """Id of the pool."""
        return self.replica.pool

    def feed(self, event: ev.Event) -> None:
        """Hand an event to the replica. What it causes happens before this returns, or after the present event."""
        self._events.append(event)
        if self._draining or self._closed:
            return
        self._draining = True
        try:
            while self._events:
                self._obey(self.replica.handle(self._events.popleft(), _now()))
            if self.replica.caught_up:
                self._caught_up.set()
        finally:
            self._draining = False

    def propose(self, command: ev.Command) -> tuple[trio.Event, ...]:
        """Hand over a command and return events that are set when its operations are durable.

        Raises:
            LocalError, LimitExceeded: it cannot be done; nothing was changed.
        """
        effects = self.replica.handle(command, _now())
        tokens = [effect.token for effect in effects if isinstance(effect, ev.Persist) and effect.durable]
        waits = tuple(self._written.setdefault(token, trio.Event()) for token in tokens)
        self._obey(effects)
        return waits

    async def carry_out(self, command: ev.Command) -> None:
        """Hand over a command and wait until its operations are durable.

        Raises:
            LocalError, LimitExceeded: it cannot be done; nothing was changed.

        Cancellation: the command stands.
        """
        for written in self.propose(command):
            await written.wait()

    def take_fresh(self) -> list[bytes]:
        """Return the operations of others that came since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    async def wait_caught_up(self) -> None:
        """Wait until a peer was found to have nothing that is missing here."""
        if not self.replica.caught_up:
            await self._caught_up.wait()

    def close(self) -> None:
        """Take no more events, and forget the timers."""
        self._closed = True
        self._events.clear()
        self._timers.cancel_all(self.pool)

    def take_gossip(self, payload: bytes) -> bool:
        """Take operations that came by gossip. Says whether they may be passed on."""
        try:
            message = decode_message(payload)
        except CodecError:
            self.counters["gossip_bad_encoding"] += 1
            return False
        if not isinstance(message, Operations) or self._writer.full or self._closed:
            return False
        before = self.counters["rejected"]
        self.feed(ev.Received(message.operations))
        return self.counters["rejected"] == before

    # ------------------------------------------------------------ effects

    def _obey(self, effects: list[ev.Effect]) -> None:
        notices: list[ev.Notice] = []
        for effect in effects:
            match effect:
                case ev.Persist(token, operations, durable):
                    if not durable:
                        self._fresh.extend(operations)
                    self._writer.put(self.pool, operations, durable, functools.partial(self._persisted, token))
                case ev.Publish(operations):
                    self._wire.publish_pool(self.pool, operations, self.replica.peers)
                case ev.Send(peer, payload):
                    self._wire.send_pool(peer, self.pool, payload)
                case ev.SetTimer(key, at_ms):
                    self._timers.set((self.pool, key), at_ms / 1000, functools.partial(self.feed, ev.TimerFired(key)))
                case ev.CancelTimer(key):
                    self._timers.cancel((self.pool, key))
                case ev.Emit(notice):
                    notices.append(notice)
                case _:
                    assert_never(effect)
        # last, because who is told may propose something, whose effects come after all of these
        for notice in notices:
            if isinstance(notice, ev.Rejected):
                self.counters["rejected"] += 1
                self.counters[f"rejected_{notice.reason}"] += 1
            self._notify(notice)

    def _persisted(self, token: int) -> None:
        self.feed(ev.Persisted(token))
        written = self._written.pop(token, None)
        if written is not None:
            written.set()


def _now() -> ev.Now:
    return ev.Now(int(trio.current_time() * 1000), int(time.time() * 1000))
