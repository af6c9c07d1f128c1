"""Canonical CBOR, domain-separated hashes, and the encoding of user values.

Knows: the one accepted encoding of every signed thing. Must not know: what the things mean.
Source: RFC 8949 section 4.2 (core deterministic encoding), restricted to integers, byte strings, text, arrays,
maps, true, false and null. No floats, no tags: they have more than one sensible encoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cbor2
import msgpack

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.types import BlobForm, BlobId, BlobRef, PublicKey

DOMAIN = b"converge-p2p/1/"
"""Prefix of every domain tag. A signature or hash made for one purpose is never valid for another."""


def domain_bytes(tag: str, data: bytes) -> bytes:
    """Return `data` behind its domain tag: what is hashed and what is signed.

    Args:
        tag: purpose, ASCII, without a NUL.
        data: canonical bytes.
    """
    return DOMAIN + tag.encode("ascii") + b"\0" + data


def tagged_hash(tag: str, *parts: bytes) -> bytes:
    """Return the 32-byte SHA-256 of the parts under a domain tag, each part preceded by its length."""
    digest = hashlib.sha256(domain_bytes(tag, b""))
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def encode(value: Any) -> bytes:
    """Encode a value as canonical CBOR.

    Args:
        value: nested int, bytes, str, bool, None, list or tuple, and dict.

    Raises:
        CodecError: a float or any other type is inside, or it is nested deeper than `limits.CBOR_DEPTH_MAX`.
    """
    _check_plain(value, limits.CBOR_DEPTH_MAX)
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes) -> Any:
    """Decode canonical CBOR, and refuse every other encoding of the same value.

    The value is encoded again and compared, because a decoder also accepts longer integers and repeated keys
    (after which two byte strings, with two hashes, would mean the same).

    Raises:
        CodecError: not CBOR, trailing bytes, not canonical, or a type that `encode` refuses.
    """
    try:
        value = cbor2.loads(data, semantic_decoders=_NO_TAGS, allow_indefinite=False, allow_duplicate_keys=False)
    except (cbor2.CBORError, ValueError, TypeError, RecursionError, OverflowError, MemoryError, LookupError) as error:
        raise CodecError(f"not CBOR: {error}") from error
    _check_plain(value, limits.CBOR_DEPTH_MAX)
    if cbor2.dumps(value, canonical=True) != data:
        raise CodecError("CBOR is not in canonical form (RFC 8949 section 4.2), or has trailing bytes")
    return value


class _NoTags(Mapping[int, Callable[..., Any]]):
    """The decoders of tagged values: for every tag one that refuses.

    A tag must be refused before its content is interpreted. The decoder's own interpretations reach into arithmetic on
    numbers a sender chooses: a rational of fifteen bytes, with an exponent of a thousand million, runs for ever.
    """

    def __getitem__(self, tag: int) -> Callable[..., Any]:
        return _refuse_tag

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 1


def _refuse_tag(*_: Any) -> Any:
    raise ValueError("tags are not part of the accepted encoding")


_NO_TAGS = _NoTags()


_LEAVES = frozenset((bytes, str, bool, type(None)))


def _check_plain(value: Any, depth: int) -> None:
    kind = type(value)
    if kind in _LEAVES:
        return
    if kind is int:
        if not -(2**63) <= value < 2**64:
            raise CodecError(f"integer {value} does not fit 64 bits")
        return
    if depth == 0:
        raise CodecError(f"nested deeper than {limits.CBOR_DEPTH_MAX} levels")
    if kind is list or kind is tuple:
        for item in value:
            # nearly all items are leaves that fit, and a call for each took a sixth of the time of a decode
            kind = type(item)
            if kind not in _LEAVES and not (kind is int and 0 <= item < 2**64):
                _check_plain(item, depth - 1)
        return
    if kind is dict:
        for key, item in value.items():
            if type(key) is not int and type(key) is not str and type(key) is not bytes:
                raise CodecError(f"map key of type {type(key).__name__}; expected integer, text or bytes")
            _check_plain(item, depth - 1)
        return
    raise CodecError(f"{kind.__name__} cannot be signed; use integers, bytes, text, lists and maps")


def encode_value(value: Any) -> bytes:
    """Encode a user's value (task inputs, results, message payloads) as msgpack with sorted map keys.

    User values may hold floats, so they travel as one opaque byte string inside a signed structure. A `BlobRef` becomes
    an extension, whose type is its form, so that no other value can be taken for one.

    Raises:
        CodecError: a type that msgpack does not know, a map key that is not text, or a float that is not finite.
    """
    try:
        packed: bytes = msgpack.packb(_sorted_value(value, limits.CBOR_DEPTH_MAX), use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"value cannot be encoded: {error}") from error
    return packed


def decode_value(data: bytes) -> Any:
    """Decode a user's value. Lists come back as lists, bytes as bytes.

    Raises:
        CodecError: not msgpack, nested too deeply, or a reference to a blob that is none.
    """
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, ext_hook=_extension)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(f"not a msgpack value: {error}") from error


def _sorted_value(value: Any, depth: int) -> Any:
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise CodecError("float is not finite; use a finite number, or text")
        return value
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, BlobRef):
        return msgpack.ExtType(int(value.form), encode_reference(value))
    if depth == 0:
        raise CodecError(f"nested deeper than {limits.CBOR_DEPTH_MAX} levels")
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            raise CodecError("map keys of a user value must be text")
        return {key: _sorted_value(value[key], depth - 1) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted_value(item, depth - 1) for item in value]
    raise CodecError(f"{type(value).__name__} cannot be encoded; use numbers, text, bytes, lists and maps")


# ---------------------------------------------------------------- references to blobs

_FORMS = frozenset(int(form) for form in BlobForm)
_HASH_BYTES = 32
_REFERENCE_BEGINS = bytes([0x84, 0x58, _HASH_BYTES])
"""An array of four, of which the first is a byte string of a hash's length."""


def _extension(kind: int, data: bytes) -> Any:
    return decode_reference(kind, data) if kind in _FORMS else msgpack.ExtType(kind, data)


def may_refer(encoded: bytes) -> bool:
    """Whether there may be a reference in an encoded value. Much cheaper than decoding it."""
    return _REFERENCE_BEGINS in encoded


def encode_reference(reference: BlobRef) -> bytes:
    """Return the canonical bytes of a reference, without its form."""
    return encode([reference.id, reference.size, reference.source, reference.key])


def decode_reference(form: int, data: bytes) -> BlobRef:
    """Read the bytes of a reference.

    Raises:
        CodecError: they are none, or out of bounds.
    """
    match decode(data):
        case [bytes() as blob, int() as size, bytes() as source, bytes() as key] if (
            form in _FORMS
            and len(blob) == len(source) == _HASH_BYTES
            and len(key) in (0, _HASH_BYTES)
            and not isinstance(size, bool)
            and 0 <= size <= limits.BLOB_BYTES_MAX
        ):
            return BlobRef(BlobId(blob), size, PublicKey(source), key, BlobForm(form))
    raise CodecError("not a reference to a blob")
