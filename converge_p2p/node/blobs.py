"""Blobs of a node: putting contents, getting them from wherever they are, and giving them to others.

Knows: the store, the network, and how a content is cut, sealed and put together. Must not know: tasks and pools (see
`pool_blobs`).
Source: `docs/blobs.md`; `docs/decisions/0022-blobs.md`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import IO

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import CodecError, LocalError, NotFound, StoreError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.blob import (
    SEALED_PIECE_BYTES,
    Manifest,
    check_content_size,
    open_chunk,
    seal_piece,
    sealing_key,
)
from converge_p2p.core.model.blob_text import parse_reference
from converge_p2p.core.types import BlobForm, BlobId, BlobRef, PublicKey
from converge_p2p.net import Network
from converge_p2p.node.blob_fetch import BlobFetcher
from converge_p2p.store.blob_files import DiskFiles, MemoryFiles
from converge_p2p.store.blobs import BlobInfo, BlobStore, Hold
from converge_p2p.store.private_files import make_private_folder

Pieces = Callable[[int], Iterator[bytes]]
"""Reads a content from its beginning, in pieces of so many bytes, the last one shorter."""

_GET_TRIES = 3


class Blobs:
    """The blobs of one node."""

    def __init__(self, identity: Identity, folder: Path | None, bytes_max: int, counters: Counter[str]) -> None:
        """Look at nothing yet.

        Args:
            identity: named as the source of what is put.
            folder: where they are kept; None keeps them in memory, at most `limits.BLOB_MEMORY_BYTES_MAX`.
            bytes_max: of all together.
            counters: of the node.
        """
        self._identity = identity
        self._secret = tagged_hash("blob-secret", identity.seed)
        self._folder = folder
        self._store = (
            BlobStore(MemoryFiles(), bytes_max=min(bytes_max, limits.BLOB_MEMORY_BYTES_MAX))
            if folder is None
            else BlobStore(DiskFiles(folder), bytes_max=bytes_max)
        )
        self._counters = counters
        self._fetcher: BlobFetcher | None = None

    async def open(self, network: Network) -> None:
        """Read what an earlier run left, and give it to others from now on.

        Raises:
            StoreError: the disk fails.
        """
        await trio.to_thread.run_sync(self._store.open_now)
        self._fetcher = BlobFetcher(self._store, network, self._counters)
        network.serve_blobs(self)

    async def close(self) -> None:
        """Let the next run know when blobs were used last, if the disk can take it."""
        with suppress(StoreError):
            await trio.to_thread.run_sync(self._store.note_uses)

    def counts(self) -> Counter[str]:
        """What is kept, and what went wrong with it."""
        kept, size = self._store.totals()
        return Counter(
            blobs=kept,
            blob_bytes=size,
            blobs_evicted=self._store.evicted,
            blob_chunks_corrupt=self._store.corrupt_chunks,
        )

    # ------------------------------------------------------------ putting

    async def put(
        self,
        content: bytes | str | Path,
        *,
        sealed: bool = False,
        form: BlobForm = BlobForm.HANDLE,
        hold: Hold = Hold.PINNED,
    ) -> BlobRef:
        """Keep a content, and return a reference to it, which others can fetch it with. The same again is the same.

        Args:
            content: the bytes, or the path of a file.
            sealed: others are given ciphertext, and the key stands in the reference. Otherwise everybody who learns the
                blob's id can read it.
            form: what the reference stands for in the inputs or the result of a task.
            hold: how firmly it is kept here.

        Raises:
            LimitExceeded: too large, or no room.
            LocalError: the file cannot be read, or changed meanwhile.
            StoreError: the disk fails.
        """
        if isinstance(content, bytes):
            return await trio.to_thread.run_sync(self._put_now, _pieces_of_bytes(content), sealed, form, hold)
        path = Path(content)
        try:
            with await trio.to_thread.run_sync(_open_now, path) as file:
                return await trio.to_thread.run_sync(self._put_now, _pieces_of_file(file), sealed, form, hold)
        except OSError as error:
            raise LocalError(f"cannot read {path}: {error.strerror}") from error

    async def put_stream(self, parts: AsyncIterator[bytes], *, sealed: bool, form: BlobForm, hold: Hold) -> BlobRef:
        """Keep a content that comes in parts. Raises as `put`, and what the parts raise."""
        if self._folder is not None:
            await trio.to_thread.run_sync(make_private_folder, self._folder)
        try:
            # a file without a name: nothing of it is left, however this ends
            with tempfile.TemporaryFile(dir=self._folder) as spool:
                size = 0
                async for part in parts:
                    size += len(part)
                    check_content_size(size)
                    await trio.to_thread.run_sync(spool.write, part)
                return await trio.to_thread.run_sync(self._put_now, _pieces_of_file(spool), sealed, form, hold)
        except OSError as error:
            where = "" if self._folder is None else f" in {self._folder}"
            raise StoreError(
                f"cannot keep the content{where}: {error.strerror}", hint="check the folder's owner and space"
            ) from error

    def _put_now(self, pieces: Pieces, sealed: bool, form: BlobForm, hold: Hold) -> BlobRef:
        """Read a content to learn its key, again to learn its manifest, and again to keep it."""
        key, size = b"", 0
        piece_bytes = SEALED_PIECE_BYTES if sealed else limits.BLOB_CHUNK_BYTES
        if sealed:
            digest = hashlib.sha256()
            for piece in pieces(piece_bytes):
                digest.update(piece)
            key = sealing_key(self._secret, digest.digest())

        def chunks() -> Iterator[bytes]:
            nonlocal size
            size = 0
            for index, piece in enumerate(pieces(piece_bytes)):
                size += len(piece)
                check_content_size(size)
                yield seal_piece(key, index, piece) if sealed else piece

        manifest = Manifest.of(chunks())
        known = self._store.manifest(manifest.id) is not None
        self._store.begin(manifest)
        try:
            missing = set(self._store.missing(manifest.id))
            for index, chunk in enumerate(chunks()):
                if index in missing:
                    self._store.add(manifest.id, index, chunk)
            self._store.finish(manifest.id, hold)
        except BaseException as error:
            # of the same content somebody else may have been told meanwhile that it is kept
            (self._store.release if known else self._store.abandon)(manifest.id)
            if isinstance(error, CodecError):
                raise LocalError("the file changed while it was read", hint="try again when it is finished") from error
            raise
        self._store.release(manifest.id)
        return BlobRef(manifest.id, size, self._identity.public_key, key, form)

    # ------------------------------------------------------------ getting

    async def get(self, reference: BlobRef | str, *, providers: Iterable[PublicKey] = ()) -> bytes:
        """Return a content, fetched if it is not here.

        Args:
            reference: as `put` returned it, or its text.
            providers: public keys of nodes that may have it, beside its maker.

        Raises:
            NetworkError: it is not here, and nobody who was asked has all of it. See `BlobFetcher.fetch`.
            CodecError: the reference is wrong about the blob.
            LimitExceeded, StoreError: it cannot be kept here.
            LocalError: the text is no reference.
        """
        found = bytearray()
        async with aclosing(self.stream(reference, providers=providers)) as pieces:
            async for piece in pieces:
                found += piece
        return bytes(found)

    async def fetch(self, reference: BlobRef | str, to: str | Path, *, providers: Iterable[PublicKey] = ()) -> None:
        """Write a content to a file, fetched if it is not here. A file of that name is replaced, once all is there.

        Raises:
            LocalError: the file cannot be written. Beside that, as `get`.
        """
        path = Path(to)
        try:
            handle, name = await trio.to_thread.run_sync(_beside_now, path)
            try:
                with os.fdopen(handle, "wb") as file:
                    async with aclosing(self.stream(reference, providers=providers)) as pieces:
                        async for piece in pieces:
                            await trio.to_thread.run_sync(file.write, piece)
                    await trio.to_thread.run_sync(_sync_now, file)
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise LocalError(f"cannot write {path}: {error.strerror}", hint="choose another file") from error

    async def stream(
        self, reference: BlobRef | str, *, providers: Iterable[PublicKey] = ()
    ) -> AsyncGenerator[bytes, None]:
        """Yield a content in pieces. All of it is here before the first one comes. Raises as `get`."""
        reference = parse_reference(reference) if isinstance(reference, str) else reference
        named = tuple(providers)
        manifest = await self._whole(reference, named)
        self._store.use(manifest.id)
        try:
            for index in range(len(manifest.hashes)):
                for _ in range(_GET_TRIES):
                    chunk = await trio.to_thread.run_sync(self._store.chunk, manifest.id, index)
                    if chunk is not None:
                        break
                    # damaged on the disk, or removed meanwhile
                    await self._whole(reference, named)
                else:
                    raise StoreError(f"chunk {index} of blob {manifest.id.hex()[:12]} cannot be kept")
                yield open_chunk(reference.key, index, chunk)
        finally:
            self._store.release(manifest.id)

    async def _whole(self, reference: BlobRef, providers: tuple[PublicKey, ...]) -> Manifest:
        if self._fetcher is None:
            raise LocalError("the node is not running", hint="use it inside `async with Node(...)`")
        return await self._fetcher.fetch(reference, providers)

    # ------------------------------------------------------------ what is kept

    def list(self) -> list[BlobInfo]:
        """Return the blobs that are kept here, the one used last first."""
        return self._store.list()

    async def remove(self, blob: BlobId) -> None:
        """Keep a blob no longer.

        Raises:
            NotFound: it is not here.
            StoreError: the disk fails.
        """
        if not await trio.to_thread.run_sync(self._store.remove, blob):
            raise NotFound(f"no blob {blob.hex()[:12]} is kept here")

    async def expire(self, before_s: float, needed: frozenset[BlobId]) -> int:
        """Keep no longer what was used last before a Unix time; return how many. See `BlobStore.expire`.

        Raises:
            StoreError: the disk fails.
        """
        return await trio.to_thread.run_sync(self._store.expire, before_s, needed)

    # ------------------------------------------------------------ giving (`net.blobs.BlobSource`)

    async def manifest(self, blob: BlobId) -> bytes | None:
        """See `BlobSource`."""
        manifest = self._store.manifest(blob)
        return None if manifest is None else manifest.to_bytes()

    async def chunk(self, blob: BlobId, index: int) -> bytes | None:
        """See `BlobSource`."""
        return await trio.to_thread.run_sync(self._store.chunk, blob, index)


def _pieces_of_bytes(content: bytes) -> Pieces:
    return lambda size: (content[at : at + size] for at in range(0, len(content), size))


def _pieces_of_file(file: IO[bytes]) -> Pieces:
    def pieces(size: int) -> Iterator[bytes]:
        file.seek(0)
        while piece := file.read(size):
            yield piece

    return pieces


def _open_now(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise LocalError(f"{path} is not a file", hint="a blob is made of a file or of bytes")
    return open(path, "rb")


def _beside_now(path: Path) -> tuple[int, str]:
    """Make a file with a name of its own in the folder of another, since a rename across file systems is a copy."""
    return tempfile.mkstemp(dir=path.absolute().parent, prefix=".blob-")


def _sync_now(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
