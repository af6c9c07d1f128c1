"""Fetching a blob from those who may have it: one after the other, verified, and going on where the last one ended.

Knows: whom to ask, for how long, and what a peer is blamed for. Must not know: why a blob is wanted.
Source: `docs/protocol.md`, blobs; `docs/decisions/0022-blobs.md`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, NetworkError, RemoteViolation
from converge_p2p.core.model.blob import Manifest, check_reference
from converge_p2p.core.types import BlobId, BlobRef, PeerId, PublicKey
from converge_p2p.net import Network, peer_id_of
from converge_p2p.net.blobs import BlobStream
from converge_p2p.store.blobs import BlobStore, Hold

_logger = logging.getLogger(__name__)

ROUNDS: Final = 3
"""So often everybody is asked in vain before a blob is given up."""

PAUSE_S: Final = 0.5
ANSWER_S: Final = 30.0
"""How long one chunk may take."""

HURRY_S: Final = 8.0
"""The same, while there are others who may be quicker."""


class BlobFetcher:
    """Fetches blobs into a store, each once at a time."""

    def __init__(self, store: BlobStore, network: Network, counters: Counter[str]) -> None:
        self._store = store
        self._network = network
        self._counters = counters
        self._places = trio.CapacityLimiter(limits.BLOB_FETCHES_MAX)
        self._makers: dict[PublicKey, trio.CapacityLimiter] = {}
        """So that a maker who sends just enough to be waited for takes some of the places, and not all."""
        self._locks: dict[BlobId, trio.Lock] = {}

    async def fetch(self, reference: BlobRef, providers: Iterable[PublicKey]) -> Manifest:
        """Return the manifest of a blob once all of it is here.

        Args:
            reference: names it, and its maker, who is asked first.
            providers: who else may have it, dialled if need be. Other connected peers are asked only for a sealed blob:
                who is asked for one learns its id, and may then fetch it too.

        Raises:
            NetworkError: nobody who was asked has it, or could send all of it. What came is kept for the next time.
            CodecError: the reference is wrong about the blob.
            LimitExceeded: there is no room for it here.
            StoreError: the disk fails.
        """
        lock = self._locks.setdefault(reference.id, trio.Lock())
        try:
            async with lock:
                fetch = _Fetch(self._store, self._network, self._counters, reference, providers)
                return await fetch.run(self._place(reference.source))
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(reference.id, None)

    @asynccontextmanager
    async def _place(self, maker: PublicKey) -> AsyncIterator[None]:
        own = self._makers.setdefault(maker, trio.CapacityLimiter(limits.BLOB_FETCHES_PER_MAKER_MAX))
        try:
            async with own, self._places:
                yield
        finally:
            if not own.borrowed_tokens and not own.statistics().tasks_waiting:
                self._makers.pop(maker, None)


class _Fetch:
    """One blob on its way."""

    def __init__(
        self,
        store: BlobStore,
        network: Network,
        counters: Counter[str],
        reference: BlobRef,
        providers: Iterable[PublicKey],
    ) -> None:
        self._store = store
        self._network = network
        self._counters = counters
        self._reference = reference
        self._named = tuple(dict.fromkeys((reference.source, *providers)))[: limits.BLOB_PROVIDERS_MAX]
        self._manifest: Manifest | None = None
        self._given_up: set[PeerId] = set()
        self._trouble = "nobody is connected who may have it"

    async def run(self, place: AbstractAsyncContextManager[None]) -> Manifest:
        known = self._store.manifest(self._reference.id)
        try:
            if known is not None and self._store.use(known.id):
                self._take(known)
            if self._lacking is None or self._lacking:
                async with place:
                    await self._ask_everybody()
                await trio.to_thread.run_sync(self._store.finish, self._reference.id, Hold.CACHED)
            assert self._manifest is not None, "it was taken, here or from somebody"
            return self._manifest
        finally:
            if self._manifest is not None:
                self._store.release(self._reference.id)

    def _take(self, manifest: Manifest) -> None:
        self._manifest = manifest
        check_reference(self._reference, manifest)

    @property
    def _lacking(self) -> int | None:
        """How many chunks are not here; None as long as nobody told how many there are."""
        return None if self._manifest is None else len(self._store.missing(self._reference.id))

    async def _ask_everybody(self) -> None:
        vain = 0
        while vain < ROUNDS:
            before = self._lacking
            peers = self._peers()
            for place, peer in enumerate(peers, 1):
                if peer in self._given_up:
                    continue
                patience_s, begun, had = HURRY_S if place < len(peers) else ANSWER_S, trio.current_time(), self._lacking
                try:
                    await self._ask(peer, patience_s)
                except NetworkError as error:
                    self._trouble = str(error)
                    if self._lacking == had and trio.current_time() - begun >= patience_s:
                        self._given_up.add(peer)
                    _logger.debug("blob %s: %s", self._reference.id.hex()[:12], error)
                except RemoteViolation as violation:
                    # a manifest or chunk is verified before it is given away, so no honest peer sends a wrong one
                    self._trouble = f"peer {peer} sent what it is not: {violation}"
                    self._counters["blob_lies"] += 1
                    self._given_up.add(peer)
                    self._network.blame(peer)
                if self._lacking == 0:
                    return
            vain = vain + 1 if self._lacking == before else 0
            await trio.sleep(PAUSE_S)
        blob = self._reference.id.hex()[:12]
        raise NetworkError(
            f"blob {blob} of {self._reference.size} bytes cannot be had: {self._trouble}",
            hint="connect to a node that has it, and try again; what came is kept",
        )

    def _peers(self) -> list[PeerId]:
        """Whom to ask, the most likely ones first."""
        own = self._network.peer_id
        named = [peer_id_of(key) for key in self._named]
        # ciphertext may be asked for anywhere, and a clear content only where it is known to belong
        others = [peer.peer_id for peer in self._network.peers()] if self._reference.key else []
        return [peer for peer in dict.fromkeys((*named, *others)) if peer != own][: limits.BLOB_PROVIDERS_MAX]

    async def _ask(self, peer: PeerId, patience_s: float) -> None:
        """Fetch from one peer what it has.

        Raises:
            NetworkError: it has nothing more, or does not answer in time.
            RemoteViolation: it lies.
        """
        await self._network.reach(peer)
        async with self._network.open_blobs(peer) as stream:
            if self._manifest is None:
                await self._ask_manifest(peer, stream, patience_s)
            while missing := self._store.missing(self._reference.id):
                wanted = missing[: limits.BLOB_CHUNKS_PER_REQUEST_MAX]
                await stream.ask_chunks(self._reference.id, wanted)
                for index in wanted:
                    chunk = await stream.answer(patience_s)
                    if chunk is not None:
                        await self._keep(index, chunk)
                if len(self._store.missing(self._reference.id)) == len(missing):
                    raise NetworkError(f"peer {peer} does not have the rest of it")

    async def _ask_manifest(self, peer: PeerId, stream: BlobStream, patience_s: float) -> None:
        data = await stream.manifest(self._reference.id, patience_s)
        if data is None:
            raise NetworkError(f"peer {peer} does not have it")
        try:
            manifest = Manifest.from_bytes(self._reference.id, data)
        except CodecError as error:
            raise RemoteViolation("blob_manifest", str(error)) from error
        check_reference(self._reference, manifest)
        await trio.to_thread.run_sync(self._store.begin, manifest)
        self._take(manifest)

    async def _keep(self, index: int, chunk: bytes) -> None:
        try:
            await trio.to_thread.run_sync(self._store.add, self._reference.id, index, chunk)
        except CodecError as error:
            raise RemoteViolation("blob_chunk", str(error)) from error
        self._counters["blob_bytes_fetched"] += len(chunk)
