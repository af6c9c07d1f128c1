"""The shell around one replica: it obeys effects, in order, and feeds events.

Knows: the replica, the writer, the timers, the network. Must not know: what operations mean.
Source: `docs/protocol.md`, storage: commit, then send, then notify.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence, Set as AbstractSet
from typing import Final, Protocol, assert_never

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError, LocalError, NoContentKey, NotFound
from converge_p2p.core.oplog.operation import operation_id
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.coordination import CoordinationCommand
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.wire import Operations, decode_message
from converge_p2p.core.types import OperationId, PeerId, PoolId, PublicKey, TaskId
from converge_p2p.node.room import StoreRoom
from converge_p2p.node.timers import Timers
from converge_p2p.node.vault import keyring_key, seal_secrets
from converge_p2p.node.writer import StoreWriter

TASK_TIMERS = tuple(kind for kind in ev.TimerKind if kind is not ev.TimerKind.DIGEST)

KEY_WAIT_S = 10.0
"""So long a command waits for the content key of a private pool, which an elector may be about to hand out."""


ENDED_KEY: Final = "ended/"
ENDED_ROW_KEY: Final = "ended-at/"


def ended_key(pool: PoolId, task: TaskId) -> str:
    """Return the key under which a node keeps an own task that ended before the last checkpoint."""
    return f"{ENDED_KEY}{pool.hex()}/{task.hex()}"


def ended_rows(pool: PoolId, tasks: Sequence[TaskId], at_ms: int) -> dict[str, bytes]:
    """Return what says since when such tasks are kept: keys that sort by that time, and lists of the tasks."""
    step = limits.ENDED_TASKS_PER_ROW_MAX
    return {
        f"{ENDED_ROW_KEY}{at_ms:016x}/{pool.hex()}/{at // step}": encode([*tasks[at : at + step]])
        for at in range(0, len(tasks), step)
    }


class Wire(Protocol):
    """How a pool's frames leave the node."""

    def send_pool(self, peer: PeerId, pool: PoolId, payload: bytes) -> None:
        """Send a sync message to one peer. It may be lost."""

    def publish_pool(self, pool: PoolId, operations: tuple[bytes, ...], peers: Sequence[PeerId]) -> None:
        """Send operations to everybody in the pool; `peers` are those with a replication stream."""

    def broadcast_pool(
        self, pool: PoolId, renewal: bytes, peers: Sequence[PeerId], electors: AbstractSet[PublicKey]
    ) -> None:
        """Send a renewal to everybody in the pool, the electors above all. It may be lost."""

    def blame(self, peer: PeerId) -> None:
        """Note that a peer sent what no honest peer sends."""


class Watcher(Protocol):
    """Measures what happens in a pool. It is told after the fact, and never raises."""

    def command(self, command: object) -> None:
        """A command was taken."""

    def notice(self, notice: ev.Notice) -> None:
        """The replica says something."""


class Written:
    """Whether a batch of own operations is on disk yet."""

    def __init__(self) -> None:
        """Make one that is not."""
        self._event = trio.Event()
        self._done = False

    def end(self, *, done: bool) -> None:
        """It is written, or nobody will know any more whether it is."""
        self._done = self._done or done
        self._event.set()

    async def wait(self) -> None:
        """Wait until it is on disk.

        Raises:
            LocalError: the pool was closed before that was known.
        """
        await self._event.wait()
        if not self._done:
            raise LocalError(
                "the node stopped before this was known to be on disk",
                hint="ask again after the start; a submit with a key of its own is safe to repeat",
            )


class PoolDriver:
    """Drives one replica. Everything happens in the trio thread, and nothing here waits.

    Attributes:
        replica: the replica.
        counters: refusals, by name.
        watcher: is told what happens, if there is one.
        room: says whether this node may begin more of its own; None: always.
    """

    def __init__(
        self, replica: Replica, *, writer: StoreWriter, timers: Timers, wire: Wire, notify: Callable[[ev.Notice], None]
    ) -> None:
        """Put the parts together.

        Args:
            replica: the replica; nobody else may hand it events.
            writer: where operations are written.
            timers: shared by all pools of the node.
            wire: the way out.
            notify: called with each notice, in order, after everything else an event caused was done.
        """
        self.replica = replica
        self.counters: Counter[str] = Counter()
        self.watcher: Watcher | None = None
        self.room: StoreRoom | None = None
        self._writer = writer
        self._timers = timers
        self._wire = wire
        self._notify = notify
        self._events: deque[ev.Event] = deque()
        self._notices: deque[ev.Notice] = deque()
        self._draining = False
        self._notifying = False
        self._written: dict[int, Written] = {}
        self._fresh: list[bytes] = []
        self._caught_up = trio.Event()
        self._key_came = trio.Event()
        self._sure = trio.Event()
        self._closed = False
        self._pass_on = False

    @property
    def pool(self) -> PoolId:
        """Id of the pool."""
        return self.replica.pool

    def feed(self, event: ev.Event) -> None:
        """Hand an event to the replica. What it causes happens before this returns, or after the present event."""
        if self._closed:
            return
        self._events.append(event)
        if self._draining:
            return
        self._draining = True
        try:
            while self._events:
                self._obey(self.replica.handle(self._events.popleft(), _now()))
            if self.replica.caught_up:
                self._caught_up.set()
            if not self.replica.unsure:
                self._sure.set()
        finally:
            self._draining = False

    def propose(self, command: ev.Command | ev.Renew) -> tuple[Written, ...]:
        """Hand over a command and return what tells when its operations are durable.

        Raises:
            NotFound: this node has left the pool, or is stopping.
            LocalError, LimitExceeded: it cannot be done; nothing was changed.
        """
        return self._hand_over(command)[0]

    def _hand_over(
        self, command: ev.Command | ev.Renew | CoordinationCommand
    ) -> tuple[tuple[Written, ...], list[bytes]]:
        if self._closed:
            raise NotFound(f"this node no longer takes part in pool {self.pool.hex()[:12]}", hint="join it again")
        effects = self.replica.handle(command, _now())
        own = [effect for effect in effects if isinstance(effect, ev.Persist) and effect.durable]
        waits = tuple(self._written.setdefault(effect.token, Written()) for effect in own)
        if own and self.watcher is not None:
            self.watcher.command(command)
        self._obey(effects)
        return waits, [signed for effect in own for signed in effect.operations]

    async def _with_key(self, command: ev.Command | CoordinationCommand) -> tuple[tuple[Written, ...], list[bytes]]:
        """Hand over a command; in a private pool wait a while for the content key that it needs."""
        with trio.move_on_after(KEY_WAIT_S):
            while True:
                try:
                    return self._hand_over(command)
                except NoContentKey:
                    await self._key_came.wait()
        return self._hand_over(command)

    async def carry_out(self, command: ev.Command) -> None:
        """Hand over a command and wait until what it asks for is durable.

        Raises:
            LocalError, LimitExceeded: it cannot be done; nothing was changed.

        Cancellation: the command stands.
        """
        waits, _ = await self._with_key(command)
        # nothing to sign means that it was asked for before, and that may still be on its way to the disk
        for written in waits or tuple(self._written.values()):
            await written.wait()

    async def record(self, command: ev.Command | CoordinationCommand) -> tuple[OperationId, ...]:
        """Hand over a command, wait until what it asks for is durable, and return the ids of its operations.

        Raises:
            LocalError, LimitExceeded: it cannot be done; nothing was changed.

        Cancellation: the command stands.
        """
        waits, operations = await self._with_key(command)
        for written in waits or tuple(self._written.values()):
            await written.wait()
        return tuple(operation_id(signed) for signed in operations)

    def take_fresh(self) -> list[bytes]:
        """Return the operations of others that came since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    async def wait_caught_up(self) -> None:
        """Wait until a peer was found to have nothing that is missing here."""
        if not self.replica.caught_up:
            await self._caught_up.wait()

    async def wait_sure(self) -> None:
        """Wait until the own chain is known, if the store was in doubt."""
        if self.replica.unsure:
            await self._sure.wait()

    def close(self) -> None:
        """Take no more events and commands, forget the timers, and let nobody wait."""
        self._closed = True
        self._key_came.set()
        self._sure.set()
        self._events.clear()
        self._timers.cancel_all(self.pool)
        for written in self._written.values():
            written.end(done=False)

    def take_gossip(self, payload: bytes, peer: PeerId | None = None) -> bool:
        """Take operations that came by gossip from a neighbour. Says whether they may be passed on."""
        try:
            message = decode_message(payload)
        except CodecError:
            self.counters["gossip_bad_encoding"] += 1
            if peer is not None:
                self._wire.blame(peer)
            return False
        if not isinstance(message, Operations) or self._writer.full or self._closed:
            return False
        before = self.counters["rejected"]
        self.feed(ev.Received(message.operations, peer))
        return self.counters["rejected"] == before

    def take_renewal(self, payload: bytes, peer: PeerId, *, gossiped: bool = False) -> bool:
        """Take a renewal. Says whether it may be passed on, if it came by gossip."""
        self._pass_on = False
        self.feed(ev.RenewalReceived(payload, peer, gossiped))
        return self._pass_on

    # ------------------------------------------------------------ effects

    def _obey(self, effects: list[ev.Effect]) -> None:
        for effect in effects:
            match effect:
                case ev.Persist(token, operations, durable):
                    if not durable:
                        self._fresh.extend(operations)
                    self._writer.put(self.pool, operations, durable, self._persisted, token)
                case ev.Keep(secrets):
                    sealed = seal_secrets(self.replica.identity, self.pool, secrets)
                    self._writer.keep(keyring_key(self.pool), sealed)
                case ev.Compact(snapshot, drop, kept):
                    entries = {ended_key(self.pool, task): data for task, data in kept}
                    entries |= ended_rows(self.pool, [task for task, _ in kept], _now().wall_ms)
                    self._writer.compact(self.pool, snapshot, drop, entries)
                case ev.Publish(operations):
                    self._wire.publish_pool(self.pool, operations, self.replica.peers)
                case ev.Broadcast(payload):
                    self._wire.broadcast_pool(self.pool, payload, self.replica.peers, self.replica.view.electors)
                case ev.PassOn():
                    self._pass_on = True
                case ev.Send(peer, payload):
                    self._wire.send_pool(peer, self.pool, payload)
                case ev.SetTimer(key, at_ms):
                    self._timers.set((self.pool, key), at_ms / 1000, functools.partial(self.feed, ev.TimerFired(key)))
                case ev.CancelTimer(key):
                    self._timers.cancel((self.pool, key))
                case ev.Emit(notice):
                    self._notices.append(notice)
                case _:
                    assert_never(effect)
        self._tell()

    def _tell(self) -> None:
        """Pass notices on, in the order they came.

        Who is told may propose something: its effects happen at once, and its notices come after all earlier ones.
        """
        if self._notifying:
            return
        self._notifying = True
        try:
            while self._notices:
                notice = self._notices.popleft()
                if self.watcher is not None:
                    self.watcher.notice(notice)
                if isinstance(notice, ev.Rejected):
                    self.counters["rejected"] += 1
                    self.counters[f"rejected_{notice.reason}"] += 1
                    if notice.guilty and notice.peer is not None:
                        self._wire.blame(notice.peer)
                elif isinstance(notice, ev.ContentKeyTaken):
                    self._key_came.set()
                    self._key_came = trio.Event()
                elif isinstance(notice, ev.TaskChanged) and notice.state.terminal:
                    self._forget_timers(notice.task)
                self._notify(notice)
        finally:
            self._notifying = False

    def _forget_timers(self, task: TaskId) -> None:
        """A settled task needs none; its claim timer alone could otherwise stay for a day."""
        for kind in TASK_TIMERS:
            self._timers.cancel((self.pool, ev.TimerKey(kind, task)))

    def _persisted(self, tokens: tuple[int, ...]) -> None:
        self.feed(ev.Persisted(tokens))
        for token in tokens:
            if (written := self._written.pop(token, None)) is not None:
                written.end(done=True)


def _now() -> ev.Now:
    return ev.Now(int(trio.current_time() * 1000), int(time.time() * 1000))
