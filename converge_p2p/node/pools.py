"""The pools of a node: how they are founded, joined, restored at the start, and left.

Knows: which pools there are, and the order in which store, replica and switchboard learn of a change. Must not know:
what happens inside a pool.
Source: `docs/architecture.md`; `docs/protocol.md`, membership and storage.

A replica must begin with everything this identity ever wrote in the pool: one that began empty would sign numbers a
second time, which the others would take for a fork. So a pool is never attached without reading the store first, and
never twice.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from nacl.utils import random as random_bytes

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, Conflict, LimitExceeded, LocalError, NetworkError, NotFound, StoreError
from converge_p2p.core.model.pool import PoolSpec, pool_id
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.oplog.succession import (
    RecoverBody,
    SucceedBody,
    decode_rotate,
    encode_succession,
    is_signed,
)
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.node.driver import PoolDriver, ended_key
from converge_p2p.node.handles import PoolHandle
from converge_p2p.node.restored import StoreAge
from converge_p2p.node.room import StoreRoom
from converge_p2p.node.switchboard import Switchboard
from converge_p2p.node.timers import Timers
from converge_p2p.node.vault import inherited_secrets, keyring_key, open_secrets, place_key
from converge_p2p.node.writer import StoreWriter
from converge_p2p.store.api import NodeStore
from converge_p2p.store.home import POOL_KEY

if TYPE_CHECKING:
    from converge_p2p.node.main import Node

_logger = logging.getLogger(__name__)

CATCH_UP_S = 3.0

LEFT_KEY: Final = "left/"
"""Of each pool that was left, other than as an elector: when."""


class Pools:
    """The pools one node takes part in.

    Attributes:
        room: whether there is room for more of them, and for tasks of this node.
        held_back: pools that this node takes part in with another key's word or not at all: its first operation there
            has to be that word.
    """

    def __init__(
        self,
        node: Node,
        *,
        store: NodeStore,
        writer: StoreWriter,
        timers: Timers,
        switchboard: Switchboard,
        age: StoreAge,
        digest_interval_ms: int,
        room: StoreRoom,
    ) -> None:
        """Begin without pools; `restore` reads those of the last run."""
        self.room = room
        self.held_back: frozenset[PoolId] = frozenset()
        self._node = node
        self._identity = node.identity
        self._store = store
        self._writer = writer
        self._timers = timers
        self._switchboard = switchboard
        self._age = age
        self._digest_interval_ms = digest_interval_ms
        self._handles: dict[PoolId, PoolHandle] = {}
        self._changing = trio.Lock()
        self._declared: frozenset[str] = frozenset()

    def all(self) -> dict[PoolId, PoolHandle]:
        """Return the pools, by id; a copy, so that it can be walked while pools come and go."""
        return dict(self._handles)

    def keys(self) -> set[PublicKey]:
        """Return the keys of all members of all pools."""
        return {member.public_key for pool in self._handles.values() if pool.ready for member in pool.members()}

    # ------------------------------------------------------------ coming and going

    async def restore(self) -> None:
        """Take part in the pools of the last run.

        Raises:
            StoreError: the store cannot be read.
        """
        for key in await trio.to_thread.run_sync(self._store.list, POOL_KEY):
            try:
                pool = PoolId(bytes.fromhex(key.removeprefix(POOL_KEY)))
            except ValueError:
                raise StoreError(f"the store names a pool {key!r}, which is no pool id") from None
            await self._attach(pool)

    async def create(self, spec: PoolSpec) -> PoolHandle:
        """Found a pool, and wait until its founding is durable.

        Raises:
            LimitExceeded: too many pools.
            StoreFull: the store holds as much as it may.
            LocalError: terms that contradict each other.

        Cancellation: the pool is forgotten here.
        """
        await self.room.check("the pool was not founded")
        pool = pool_id(self._identity.public_key, spec)
        # the pool's id commits to fresh random bytes: nothing can have been signed in it before
        await self._age.learned(pool)
        async with self._changing:
            handle = await self._enter(pool)
        try:
            await handle.driver.carry_out(ev.Found(spec))
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._forget(pool)
            raise
        if self._declared:
            await self._become_member(handle, self._declared, b"")
        return handle

    async def join(
        self, pool: PoolId, capabilities: Sequence[str], proof: bytes, *, timeout_s: float | None
    ) -> PoolHandle:
        """See `Node.join_pool`."""
        handle = await self.follow(pool, timeout_s)
        await self._become_member(handle, {*capabilities, *self._declared}, proof)
        return handle

    async def take_place(
        self, pool: PoolId, word: SucceedBody | RecoverBody, content_keys: bytes, *, timeout_s: float | None
    ) -> PoolHandle:
        """Take part in a pool in the place of another key. See `Node.take_place`."""
        if not is_signed(pool, self._identity.public_key, word):
            raise LocalError("the other key did not sign that this one takes its place, or signed something else")
        if pool not in self._handles:
            await self.room.check(f"the place in pool {pool.hex()[:12]} was not taken")
        async with self._changing:
            if pool not in self._handles:
                # before the pool is known here: an elector would vote as soon as it is, and a vote begins the chain
                await trio.to_thread.run_sync(self._keep_place, pool, word, content_keys)
                await self._enter(pool)
        handle = await self.follow(pool, timeout_s)
        await self._writer.barrier()
        if not self._has_begun_with(handle, word):
            await handle.keys.take_place(word)
        return handle

    def _keep_place(self, pool: PoolId, word: SucceedBody | RecoverBody, content_keys: bytes) -> None:
        if content_keys and self._store.get(keyring_key(pool)) is None:
            left = inherited_secrets(self._identity, pool, word.predecessor, content_keys)
            self._store.put(keyring_key(pool), left)
        self._store.put(place_key(pool), encode(encode_succession(word)))

    def _has_begun_with(self, handle: PoolHandle, word: SucceedBody | RecoverBody) -> bool:
        replica, own = handle.driver.replica, self._identity.public_key
        first = replica.log.read(own, 0, 1)
        if first:
            return decode_operation(first[0], handle.id, trusted=True).body == word
        # what a checkpoint covers was signed long ago, and is not read again
        return replica.view.successions.may_inherit(own)

    async def follow(self, pool: PoolId, timeout_s: float | None) -> PoolHandle:
        """Take part in a pool, without being a member, and wait until its founding terms are known.

        Raises:
            NetworkError: no connected peer knows it; the node goes on asking.
            Conflict: it is held back.
            LimitExceeded: too many pools.
            StoreFull: the store holds as much as it may.
        """
        if pool not in self._handles:
            if pool in self.held_back:
                raise Conflict(
                    f"the key that this node's replaces has not handed over its place in pool {pool.hex()[:12]}",
                    hint="have it handed over first; a join here would waste the place",
                )
            await self.room.check(f"pool {pool.hex()[:12]} was not joined")
        async with self._changing:
            handle = self._handles.get(pool) or await self._enter(pool)
        known = self._switchboard.directory.get(pool)
        if known is not None and not handle.ready:
            handle.driver.feed(ev.Received((known.genesis,)))
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
            await handle.wait_ready()
            await handle.driver.wait_sure()
        if not handle.ready:
            raise NetworkError(
                f"no connected peer knows pool {pool.hex()[:12]}",
                hint="check the id and the bootstrap address; this node goes on asking",
            )
        return handle

    async def leave(self, pool: PoolId) -> None:
        """See `Node.leave_pool`."""
        handle = self._handles.get(pool)
        if handle is None:
            raise NotFound(f"this node is not in pool {pool.hex()[:12]}")
        if handle.workers is not None:
            await handle.workers.stop()
        if handle.is_member:
            await handle.driver.carry_out(ev.Leave())
        if handle.driver.replica.is_elector:
            # one that a crash left when this node was none would have the votes removed
            await trio.to_thread.run_sync(self._store.delete, LEFT_KEY + pool.hex())
        else:
            # before the pool is forgotten: after a crash in between it is there still, and the mark means nothing
            await trio.to_thread.run_sync(self._store.put, LEFT_KEY + pool.hex(), encode(int(time.time())))
        await self._forget(pool)

    async def drop_left(self, before_s: int) -> int:
        """Remove what is kept of pools that were left, other than as an elector, before a Unix time; return how many.

        Whoever comes back to one asks its electors how far the own operations go before anything is signed there.

        Raises:
            StoreError: the store fails. What was removed before stays removed.
        """
        dropped = 0
        for key in await trio.to_thread.run_sync(self._store.list, LEFT_KEY):
            pool = PoolId(bytes.fromhex(key.removeprefix(LEFT_KEY)))
            async with self._changing:
                if pool in self._handles:
                    # it came back, or never quite left
                    await trio.to_thread.run_sync(self._store.delete, key)
                    continue
                if _time_in(key, await trio.to_thread.run_sync(self._store.get, key)) >= before_s:
                    continue
                with trio.CancelScope(shield=True):
                    # what was handed over before this node left must not come after
                    await self._writer.barrier()
                    # in this order: operations that are gone without a mark would be signed again from number 0
                    await self._age.forget(pool)
                    await trio.to_thread.run_sync(self._store.delete_pool, pool)
                    await trio.to_thread.run_sync(self._store.delete, key)
                dropped += 1
        return dropped

    async def declare(self, names: Sequence[str]) -> None:
        """Declare capabilities in every pool this node is a member of, now and from now on."""
        self._declared |= frozenset(names)
        for handle in list(self._handles.values()):
            if handle.is_member and not handle.unsure:
                await self._become_member(handle, self._declared, b"")

    async def _own_chain_learned(self, pool: PoolId, silent_through: int) -> None:
        """The own chain of a pool is known again: remember that, and declare what could not be declared before."""
        await self._age.learned(pool, silent_through)
        handle = self._handles.get(pool)
        if handle is not None and handle.driver.replica.is_elector and silent_through >= 0:
            _logger.warning(
                "this elector of pool %s may have forgotten votes: it casts none through epoch %d, unless nothing "
                "can be decided without it",
                pool.hex(),
                silent_through,
            )
        try:
            if handle is not None and handle.is_member:
                await self._become_member(handle, self._declared, b"")
        except LocalError as error:
            # left, or removed, in the meantime
            _logger.warning(
                "pool %s was not told what this node can do: %s", pool.hex()[:12], error, extra={"pool": pool.hex()}
            )

    async def _become_member(self, handle: PoolHandle, names: set[str] | frozenset[str], proof: bytes) -> None:
        if not handle.own_operations:
            # whoever used this key before, on another disk, is heard of before the first signature if that can be
            with trio.move_on_after(CATCH_UP_S):
                await handle.driver.wait_caught_up()
        # a join replaces what was declared before, so it repeats it
        every = tuple(sorted({*names, *handle.own_capabilities}))
        await handle.driver.carry_out(ev.Join(every, proof))
        # whoever was a member before is not announced anew, though it declared more
        handle.refresh_capabilities()

    # ------------------------------------------------------------ the end

    async def stop_working(self) -> None:
        """Stop claiming, cancel what runs, and hand every claim back."""
        async with trio.open_nursery() as nursery:
            for handle in self._handles.values():
                if handle.workers is not None:
                    nursery.start_soon(handle.workers.stop)

    def close(self) -> None:
        """Take part in nothing more: the peers are told, and whoever waits for a task is told too."""
        self._switchboard.close()
        for handle in self._handles.values():
            handle.close()

    # ------------------------------------------------------------ inside

    async def _enter(self, pool: PoolId) -> PoolHandle:
        """Attach a pool and remember it for the next start. To be called with the lock held."""
        if len(self._handles) >= limits.POOLS_PER_NODE_MAX:
            raise LimitExceeded("POOLS_PER_NODE_MAX", "this node takes part in too many pools")
        await trio.to_thread.run_sync(self._store.delete, LEFT_KEY + pool.hex())
        # remembered first: a crash after it leaves a pool that is asked for again, never one that was forgotten
        await trio.to_thread.run_sync(self._store.put, POOL_KEY + pool.hex(), encode([1]))
        return await self._attach(pool)

    async def _attach(self, pool: PoolId) -> PoolHandle:
        # what was handed over before this node left the pool must be in the store before it is read
        await self._writer.barrier()
        operations, snapshot = await trio.to_thread.run_sync(self._load, pool)
        stored = await trio.to_thread.run_sync(self._store.get, keyring_key(pool))
        place = await trio.to_thread.run_sync(self._store.get, place_key(pool))
        secrets = open_secrets(self._identity, pool, stored)
        assert pool not in self._handles, "one replica for each pool"
        replica = Replica(
            self._identity,
            pool,
            seed=int.from_bytes(random_bytes(8), "big"),
            digest_interval_ms=self._digest_interval_ms,
            entropy=random_bytes(32),
            first=None if place is None else decode_rotate(decode(place)),
            read=self._node.observation.read_operation,
        )
        driver = PoolDriver(
            replica, writer=self._writer, timers=self._timers, wire=self._switchboard, notify=self._on_notice(pool)
        )
        handle = self._handles[pool] = PoolHandle(self._node, driver, functools.partial(self._recall, pool))
        doubted = self._age.doubts(pool)
        if operations or secrets or doubted or snapshot is not None:
            silent = self._age.silent_through(pool)
            driver.feed(
                ev.Restored(operations, unsure=doubted, secrets=secrets, silent_through=silent, snapshot=snapshot)
            )
        driver.watcher = self._node.observation.watch(replica)
        driver.room = self.room
        self._switchboard.attach(driver)
        if self._node.policy.opinion is not None:
            handle.add_opinions(self._node.policy.opinion)
        return handle

    async def _recall(self, pool: PoolId, task: TaskId) -> bytes | None:
        # what a compaction keeps may still be on its way to the disk
        await self._writer.barrier()
        return await trio.to_thread.run_sync(self._store.get, ended_key(pool, task))

    def _load(self, pool: PoolId) -> tuple[tuple[bytes, ...], bytes | None]:
        return tuple(self._store.load(pool)), self._store.snapshot(pool)

    async def _forget(self, pool: PoolId) -> None:
        async with self._changing:
            handle = self._handles.pop(pool, None)
            self._switchboard.detach(pool)
            if handle is not None:
                handle.close()
                self._node.hosting.pool_left(pool)
                self._node.observation.forget(pool)
            await trio.to_thread.run_sync(self._store.delete, POOL_KEY + pool.hex())
            await trio.to_thread.run_sync(self._store.delete, place_key(pool))

    def _on_notice(self, pool: PoolId) -> Callable[[ev.Notice], None]:
        def notify(notice: ev.Notice) -> None:
            handle = self._handles.get(pool)
            if handle is not None:
                handle.on_notice(notice)
            self._node.observation.tell_notice(pool, notice)
            if isinstance(notice, ev.PoolReady):
                self._switchboard.announce(pool)
            elif isinstance(notice, ev.OwnChainLearned):
                self._node.spawn(self._own_chain_learned, pool, notice.silent_through)
            elif isinstance(notice, ev.EvaluatorUnknown):
                _logger.warning("rule %r is not registered here: this elector accepts no result it judges", notice.rule)
            elif isinstance(notice, ev.ForkDetected):
                _logger.warning("author %s signed two operations with number %d", notice.author.hex(), notice.seq)
            elif isinstance(notice, ev.SplitKeyFound):
                _logger.warning("elector %s handed out two different content keys as one", notice.culprit.hex())
            elif isinstance(notice, ev.KeyUnopenable):
                _logger.warning("a content key from elector %s does not open here", notice.author.hex())
            elif isinstance(notice, ev.KeyOverdue):
                _logger.warning(
                    "pool %s cannot change its content key in epoch %d any more",
                    pool.hex(),
                    notice.epoch,
                    extra={"pool": pool.hex()},
                )

        return notify


def _time_in(key: str, value: bytes | None) -> int:
    try:
        found = None if value is None else decode(value)
    except CodecError as error:
        raise StoreError(f"the store's value {key} is damaged: {error}") from error
    if not isinstance(found, int):
        raise StoreError(f"the store's value {key} is damaged: it is no time")
    return found
