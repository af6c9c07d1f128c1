"""Sealed bids of this node: kept until the bidding is closed, and opened then.

Knows: amounts and nonces of own bids, and where they are kept. Must not know: who decides to bid.
Source: `docs/protocol.md`, auctions. Without its amount and nonce a sealed bid can never be opened, and the bidder is
on record for it: so both are in the store before the bid is signed, and a bid that is open to be revealed is revealed
after a restart, too.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox
from nacl.utils import random as random_bytes

from converge_p2p.core.codec import decode, encode, tagged_hash
from converge_p2p.core.errors import CodecError, ConvergeError
from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.coordination import NONCE_BYTES
from converge_p2p.core.replica.auction_commands import CommitBid, RevealBid
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.core.view.auctions import AuctionPhase, AuctionView
from converge_p2p.store.api import Store

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle

_logger = logging.getLogger(__name__)

BID_KEY = "bid/"


class Bids:
    """The bids of one node."""

    def __init__(self, identity: Identity, store: Store) -> None:
        """Know of none yet; `restore` reads those of the last run."""
        self._identity = identity
        self._store = store
        self._box = SecretBox(tagged_hash("bids-at-rest", identity.seed))
        self._kept: dict[tuple[PoolId, TaskId], tuple[int, bytes]] = {}
        self._revealing: set[tuple[PoolId, TaskId]] = set()

    async def restore(self) -> None:
        """Read the bids that were not opened yet.

        Raises:
            StoreError: the store cannot be read.
        """
        for key in await trio.to_thread.run_sync(self._store.list, self._prefix()):
            stored = await trio.to_thread.run_sync(self._store.get, key)
            try:
                match decode(self._box.decrypt(stored or b"")):
                    case [bytes(pool), bytes(task), int(amount), bytes(nonce)]:
                        self._kept[PoolId(pool), TaskId(task)] = (amount, nonce)
                    case _:
                        raise CodecError("a bid is a pool, a task, an amount and a nonce")
            except (CryptoError, ValueError, CodecError) as error:
                _logger.warning("a sealed bid in the store cannot be opened: %s", error)

    async def submit(self, pool: PoolHandle, task: TaskId, amount: int) -> None:
        """Make a sealed bid for a task. The same bid again is the same bid.

        Raises:
            LocalError: see `CommitBid`; nothing was changed.
        """
        name = (pool.id, task)
        kept = self._kept.get(name)
        if kept is not None and kept[0] == amount:
            nonce = kept[1]
        else:
            nonce = random_bytes(NONCE_BYTES)
        if kept is None:
            self._kept[name] = (amount, nonce)
            sealed = bytes(self._box.encrypt(encode([pool.id, task, amount, nonce])))
            await trio.to_thread.run_sync(self._store.put, self._key(*name), sealed)
        try:
            await pool.council.coordinate(CommitBid(task, amount, nonce))
        except ConvergeError:
            if kept is None:
                await self._forget(name)
            raise

    async def look(self, pool: PoolHandle, auction: AuctionView) -> None:
        """An auction looks different: open the own bid if it is time, forget it if it is over."""
        name = (pool.id, auction.task)
        if name not in self._kept or name in self._revealing:
            return
        if auction.phase is AuctionPhase.SETTLED:
            await self._forget(name)
        elif auction.phase is AuctionPhase.REVEALING:
            self._revealing.add(name)
            try:
                await pool.council.coordinate(RevealBid(auction.task, *self._kept[name]))
            except ConvergeError as error:
                _logger.warning(
                    "the bid for task %s cannot be opened: %s",
                    auction.task.hex()[:12],
                    error,
                    extra={"task": auction.task.hex()},
                )
            finally:
                self._revealing.discard(name)

    def concerns(self, pool: PoolId, task: TaskId) -> bool:
        """Whether there is a bid for a task that was not opened or settled yet."""
        return (pool, task) in self._kept

    async def _forget(self, name: tuple[PoolId, TaskId]) -> None:
        self._kept.pop(name, None)
        await trio.to_thread.run_sync(self._store.delete, self._key(*name))

    def _prefix(self) -> str:
        # one store may serve several keys, one after the other
        return f"{BID_KEY}{self._identity.id}/"

    def _key(self, pool: PoolId, task: TaskId) -> str:
        return f"{self._prefix()}{pool.hex()}/{task.hex()}"
