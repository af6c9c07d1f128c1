"""Blobs: contents too large for an operation, as chunks that a manifest names by their hashes.

Knows: what a manifest says, how chunks are verified and sealed, and the text of a reference. Must not know: files,
streams, or who keeps what. Randomness is not needed: the key of a sealed blob is a hash.
Source: `docs/protocol.md`, blobs; `docs/decisions/0022-blobs.md`. XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, domain_bytes, encode, tagged_hash
from converge_p2p.core.errors import CodecError, LimitExceeded
from converge_p2p.core.types import BlobId, BlobRef

HASH_BYTES: Final = 32
SEAL_BYTES: Final = 16
"""How much longer a chunk becomes that is sealed."""

SEALED_PIECE_BYTES: Final = limits.BLOB_CHUNK_BYTES - SEAL_BYTES
"""Content in one chunk of a sealed blob; the last may have less."""

MANIFEST_BYTES_MAX: Final = limits.BLOB_CHUNKS_MAX * HASH_BYTES + 64
_NONCE_BYTES: Final = 24
_CHUNK_TAG: Final = "blob-chunk"


def chunk_hash(chunk: bytes) -> bytes:
    """Return the name of a chunk."""
    return tagged_hash(_CHUNK_TAG, chunk)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a blob consists of.

    Attributes:
        size: bytes of all chunks together; more than the content if it is sealed.
        hashes: of the chunks, in order. Each has `limits.BLOB_CHUNK_BYTES` bytes, the last what remains.
        id: of the blob, which commits to all of this.

    Raises:
        CodecError: the number of chunks is not that of the size, or too large.
    """

    size: int
    hashes: tuple[bytes, ...]
    id: BlobId = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.size <= limits.BLOB_CHUNKS_MAX * limits.BLOB_CHUNK_BYTES:
            raise CodecError(f"a blob of {self.size} bytes; at most {limits.BLOB_CHUNKS_MAX} chunks are allowed")
        if len(self.hashes) != chunk_count(self.size) or any(len(each) != HASH_BYTES for each in self.hashes):
            raise CodecError(f"a blob of {self.size} bytes has {chunk_count(self.size)} chunks")
        object.__setattr__(self, "id", BlobId(tagged_hash("blob", self.to_bytes())))

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, at most `MANIFEST_BYTES_MAX`."""
        return encode([self.size, limits.BLOB_CHUNK_BYTES, b"".join(self.hashes)])

    @classmethod
    def from_bytes(cls, blob: BlobId, data: bytes) -> Manifest:
        """Read the manifest of a blob.

        Raises:
            CodecError: it is none, or another blob's.
        """
        if len(data) > MANIFEST_BYTES_MAX:
            raise CodecError(f"a manifest of {len(data)} bytes; at most {MANIFEST_BYTES_MAX} are allowed")
        match decode(data):
            case [int() as size, limits.BLOB_CHUNK_BYTES, bytes() as joined] if not isinstance(size, bool):
                hashes = tuple(joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES))
                manifest = cls(size, hashes)
            case _:
                raise CodecError("not the manifest of a blob")
        if manifest.id != blob:
            raise CodecError("the manifest is another blob's")
        return manifest

    @classmethod
    def of(cls, chunks: Iterable[bytes]) -> Manifest:
        """Return the manifest of chunks, all but the last of which have `limits.BLOB_CHUNK_BYTES` bytes.

        Raises:
            LimitExceeded: more than `limits.BLOB_CHUNKS_MAX`.
        """
        size, hashes = 0, list[bytes]()
        for chunk in chunks:
            if len(hashes) == limits.BLOB_CHUNKS_MAX:
                raise _too_large()
            size += len(chunk)
            hashes.append(chunk_hash(chunk))
        return cls(size, tuple(hashes))

    def chunk_bytes(self, index: int) -> int:
        """Return how many bytes a chunk has."""
        return min(limits.BLOB_CHUNK_BYTES, self.size - index * limits.BLOB_CHUNK_BYTES)

    def check_chunk(self, index: int, chunk: bytes) -> None:
        """Check that bytes are a chunk of this blob.

        Raises:
            CodecError: they are not.
        """
        if not 0 <= index < len(self.hashes):
            raise CodecError(f"the blob has no chunk {index}")
        if len(chunk) != self.chunk_bytes(index) or chunk_hash(chunk) != self.hashes[index]:
            raise CodecError(f"chunk {index} is not what the manifest names")


def chunk_count(size: int) -> int:
    """Return how many chunks so many bytes make."""
    return -(-size // limits.BLOB_CHUNK_BYTES)


def stored_size(content_bytes: int, *, sealed: bool) -> int:
    """Return how many bytes the chunks of a content have together."""
    return content_bytes + (-(-content_bytes // SEALED_PIECE_BYTES) * SEAL_BYTES if sealed else 0)


def check_reference(reference: BlobRef, manifest: Manifest) -> None:
    """Check that a reference says the truth about the blob it names.

    Raises:
        CodecError: the content has another size.
    """
    if manifest.size != stored_size(reference.size, sealed=bool(reference.key)):
        raise CodecError(f"the reference says {reference.size} bytes, and the blob has {manifest.size} in its chunks")


def check_content_size(size: int) -> None:
    """Check that a content can be a blob.

    Raises:
        LimitExceeded: it is too large.
    """
    if size > limits.BLOB_BYTES_MAX:
        raise _too_large()


def _too_large() -> LimitExceeded:
    return LimitExceeded(
        "BLOB_BYTES_MAX",
        f"the content is larger than a blob may be: at most {limits.BLOB_BYTES_MAX} bytes are allowed",
        hint="split it, and refer to the parts",
    )


# ---------------------------------------------------------------- sealed blobs


def sealing_key(secret: bytes, digest: bytes) -> bytes:
    """Return the key that seals a content.

    It is a hash of the content, so that one key seals one content, and sealing twice gives the same blob; and of a
    secret of its maker, so that nobody else can tell a content by its blob.

    Args:
        secret: of the maker.
        digest: a hash of the content.
    """
    return tagged_hash("blob-key", secret, digest)


def seal_piece(key: bytes, index: int, piece: bytes) -> bytes:
    """Return the chunk of a sealed blob that holds a piece of its content, of at most `SEALED_PIECE_BYTES` bytes."""
    sealed: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(piece, _header(index), _nonce(index), key)
    return sealed


def open_chunk(key: bytes, index: int, chunk: bytes) -> bytes:
    """Return the piece of content that a chunk holds.

    Args:
        key: of the reference; empty if the blob is not sealed.
        index: of the chunk.
        chunk: was verified.

    Raises:
        CodecError: the key is not that of the blob: the reference is wrong.
    """
    if not key:
        return chunk
    try:
        piece: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(chunk, _header(index), _nonce(index), key)
    except (CryptoError, ValueError) as error:
        raise CodecError("the blob does not open with the key of its reference") from error
    return piece


def _header(index: int) -> bytes:
    return domain_bytes(_CHUNK_TAG, index.to_bytes(8, "big"))


def _nonce(index: int) -> bytes:
    # a key is used for one content, so that the place of a piece is enough
    return index.to_bytes(_NONCE_BYTES, "big")
