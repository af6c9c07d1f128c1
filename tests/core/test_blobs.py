"""Blobs, pure: manifests, chunks, sealed pieces, references, and references inside users' values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value, encode, encode_value, may_refer
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError
from converge_p2p.core.model import blob
from converge_p2p.core.model.blob import Manifest
from converge_p2p.core.model.blob_text import parse_reference, reference_text
from converge_p2p.core.types import BlobForm, BlobId, BlobRef, PublicKey

CHUNK = limits.BLOB_CHUNK_BYTES
SIZES = st.one_of(st.integers(0, 64), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7]))
BYTES_32 = st.binary(min_size=32, max_size=32)
REFERENCES = st.builds(
    BlobRef,
    BYTES_32.map(BlobId),
    st.integers(0, limits.BLOB_BYTES_MAX),
    BYTES_32.map(PublicKey),
    st.one_of(st.just(b""), BYTES_32),
    st.sampled_from(BlobForm),
)


def cut(content: bytes, size: int = CHUNK) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def content_of(size: int, salt: int = 0) -> bytes:
    return (b"%08d" % salt * (size // 8 + 1))[:size]


@settings(max_examples=30, deadline=None)
@given(size=SIZES, salt=st.integers(0, 9))
def test_a_manifest_reads_back_and_takes_its_own_chunks_only(size: int, salt: int) -> None:
    chunks = cut(content_of(size, salt))
    manifest = Manifest.of(chunks)
    assert Manifest.from_bytes(manifest.id, manifest.to_bytes()) == manifest
    assert len(chunks) == len(manifest.hashes) == blob.chunk_count(size)
    for index, chunk in enumerate(chunks):
        manifest.check_chunk(index, chunk)
        for wrong in (chunk[:-1], chunk + b"x", bytes([chunk[0] ^ 1]) + chunk[1:]):
            with pytest.raises(CodecError):
                manifest.check_chunk(index, wrong)
    with pytest.raises(CodecError):
        manifest.check_chunk(len(chunks), b"")
    with pytest.raises(CodecError):
        manifest.check_chunk(-1, chunks[-1] if chunks else b"")


@given(at=st.integers(0, 200), bit=st.integers(0, 7))
def test_no_changed_byte_of_a_manifest_is_taken_for_the_same_blob(at: int, bit: int) -> None:
    manifest = Manifest.of(cut(content_of(2 * CHUNK + 1)))
    data = bytearray(manifest.to_bytes())
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(CodecError):
        Manifest.from_bytes(manifest.id, bytes(data))


@pytest.mark.parametrize(
    "said",
    [
        [CHUNK, CHUNK, bytes(64)],
        [CHUNK + 1, CHUNK, bytes(32)],
        [0, CHUNK, bytes(32)],
        [-1, CHUNK, b""],
        [True, CHUNK, bytes(32)],
        [1, CHUNK // 2, bytes(32)],
        [1, CHUNK, bytes(31)],
        [1, CHUNK],
        [(limits.BLOB_CHUNKS_MAX + 1) * CHUNK, CHUNK, b""],
        "manifest",
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(said: Any) -> None:
    with pytest.raises(CodecError):
        Manifest.from_bytes(BlobId(bytes(32)), encode(said))


def test_a_manifest_is_bounded_before_it_is_decoded() -> None:
    with pytest.raises(CodecError, match="at most"):
        Manifest.from_bytes(BlobId(bytes(32)), bytes(blob.MANIFEST_BYTES_MAX + 1))
    with pytest.raises(LimitExceeded):
        Manifest.of(b"" for _ in range(limits.BLOB_CHUNKS_MAX + 1))
    largest = Manifest(limits.BLOB_CHUNKS_MAX * CHUNK, (bytes(32),) * limits.BLOB_CHUNKS_MAX)
    assert len(largest.to_bytes()) <= blob.MANIFEST_BYTES_MAX
    blob.check_content_size(limits.BLOB_BYTES_MAX)
    with pytest.raises(LimitExceeded):
        blob.check_content_size(limits.BLOB_BYTES_MAX + 1)


@settings(max_examples=20, deadline=None)
@given(size=SIZES, secret=BYTES_32)
def test_what_is_sealed_opens_to_the_same_and_has_the_size_that_its_reference_says(size: int, secret: bytes) -> None:
    content = content_of(size)
    key = blob.sealing_key(secret, b"digest")
    chunks = [blob.seal_piece(key, index, piece) for index, piece in enumerate(cut(content, blob.SEALED_PIECE_BYTES))]
    manifest = Manifest.of(chunks)
    assert b"".join(blob.open_chunk(key, index, chunk) for index, chunk in enumerate(chunks)) == content
    reference = BlobRef(manifest.id, size, PublicKey(bytes(32)), key)
    blob.check_reference(reference, manifest)
    with pytest.raises(CodecError):
        blob.check_reference(BlobRef(manifest.id, size + 1, PublicKey(bytes(32)), key), manifest)
    if chunks:
        with pytest.raises(CodecError):
            blob.check_reference(BlobRef(manifest.id, size, PublicKey(bytes(32))), manifest)
        with pytest.raises(CodecError, match="does not open"):
            blob.open_chunk(blob.sealing_key(secret, b"other"), 0, chunks[0])
        with pytest.raises(CodecError, match="does not open"):
            blob.open_chunk(key, 1, chunks[0])


@given(REFERENCES)
def test_a_reference_reads_back_as_text_and_inside_a_value(reference: BlobRef) -> None:
    assert parse_reference(reference_text(reference)) == reference
    value = {"deep": [reference, 1], "whole": reference}
    assert decode_value(encode_value(value)) == value
    assert may_refer(encode_value(value))
    assert not may_refer(encode_value({"text": "no reference"}))
    assert "key" not in repr(reference)


@pytest.mark.no_cover
@given(st.recursive(st.none() | st.binary(max_size=90) | st.text(max_size=90), st.lists))
def test_no_other_value_is_taken_for_a_reference(value: Any) -> None:
    assert not isinstance(decode_value(encode_value(value)), BlobRef)


@pytest.mark.parametrize("form", list(BlobForm))
def test_an_extension_that_only_looks_like_a_reference_is_refused(form: BlobForm) -> None:
    for said in ([bytes(32), 1, bytes(32)], [bytes(31), 1, bytes(32), b""], [bytes(32), -1, bytes(32), b""], "x"):
        data = encode(said)
        with pytest.raises(CodecError):
            decode_value(b"\xc7" + bytes([len(data), form]) + data)


@pytest.mark.parametrize("text", ["", "blob:", "blob:!!", "blob:AAAA", "other:AQ", "blob:" + "A" * 600])
def test_text_that_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(LocalError, match="no reference"):
        parse_reference(text)
