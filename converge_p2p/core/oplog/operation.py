"""A signed operation: its bytes, its id, and the checks that need no state.

Knows: the envelope. Must not know: the author's chain (see `log`) or any effect (see `view`).
Source: `docs/protocol.md`, operation. Verify the received bytes, then decode, re-encode and compare.

On the wire an operation is its 64-byte signature followed by canonical CBOR:
`[version, pool, author, seq, prev, deps, epoch, hlc, kind, body]`.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode, tagged_hash
from converge_p2p.core.errors import CodecError, LimitExceeded, RemoteViolation
from converge_p2p.core.identity import SIGNATURE_BYTES, Identity, verify
from converge_p2p.core.oplog.bodies import Body, Kind, decode_body, encode_body, kind_of
from converge_p2p.core.types import OperationId, PoolId, PublicKey

VERSION = 1
OPERATION_TAG = "operation"
_HASH = 32


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation whose signature was verified (or which came from the own store).

    Attributes:
        id: SHA-256 over the domain-tagged payload, without the signature.
        seq: position in the author's chain of this pool, from 0.
        prev: id of the author's operation before, None at 0.
        deps: up to 8 other operations that must be known first.
        epoch: the epoch whose rules the author acted under.
        hlc: hybrid logical clock, 48 bits of milliseconds and 16 of counter. Shown, never decides.
        signed: signature and payload as received: what is stored and passed on.
    """

    id: OperationId
    pool: PoolId
    author: PublicKey
    seq: int
    prev: OperationId | None
    deps: tuple[OperationId, ...]
    epoch: int
    hlc: int
    body: Body
    signed: bytes

    @property
    def kind(self) -> Kind:
        """The kind of the body."""
        return kind_of(self.body)


def operation_id(signed: bytes) -> OperationId:
    """Return the id of a signed operation without decoding it, to drop what is known before verifying it."""
    return OperationId(tagged_hash(OPERATION_TAG, signed[SIGNATURE_BYTES:]))


_AUTHOR_AT = SIGNATURE_BYTES + 1 + 1 + 2 + _HASH + 2
"""Where the author stands: after the array head, the version, the pool and the head of a byte string of 32."""


def author_of(signed: bytes) -> PublicKey:
    """Return the author of an operation that was checked before, without decoding it."""
    return PublicKey(signed[_AUTHOR_AT : _AUTHOR_AT + _HASH])


def sign_operation(
    identity: Identity,
    pool: PoolId,
    body: Body,
    *,
    seq: int,
    prev: OperationId | None,
    epoch: int,
    hlc: int,
    deps: tuple[OperationId, ...] = (),
) -> Operation:
    """Make and sign an operation.

    Raises:
        LimitExceeded: it would be larger than `limits.OPERATION_BYTES_MAX`.
    """
    payload = encode(
        [VERSION, pool, identity.public_key, seq, prev, list(deps), epoch, hlc, int(kind_of(body)), encode_body(body)]
    )
    if len(payload) + SIGNATURE_BYTES > limits.OPERATION_BYTES_MAX:
        raise LimitExceeded(
            "OPERATION_BYTES_MAX",
            f"the operation has {len(payload) + SIGNATURE_BYTES} bytes, at most {limits.OPERATION_BYTES_MAX} allowed",
        )
    signed = identity.sign(OPERATION_TAG, payload) + payload
    return Operation(operation_id(signed), pool, identity.public_key, seq, prev, deps, epoch, hlc, body, signed)


def decode_operation(signed: bytes, pool: PoolId, *, trusted: bool = False) -> Operation:
    """Verify and decode an operation.

    Args:
        signed: signature and payload.
        pool: the pool it must belong to.
        trusted: the bytes come from the own store, where they were verified before they were written.

    Raises:
        RemoteViolation: refused; `reason` is one of too_large, bad_encoding, bad_signature, wrong_pool, bad_version.
    """
    if not SIGNATURE_BYTES < len(signed) <= limits.OPERATION_BYTES_MAX:
        raise RemoteViolation("too_large", f"an operation of {len(signed)} bytes; at most {limits.OPERATION_BYTES_MAX}")
    payload = signed[SIGNATURE_BYTES:]
    try:
        fields = decode(payload)
        author, seq, prev, deps, epoch, hlc, kind, body = _check_fields(fields, pool)
        # the signature comes before the body: what a stranger made up is not looked at any further
        if not trusted and not verify(author, OPERATION_TAG, payload, signed[:SIGNATURE_BYTES]):
            raise RemoteViolation("bad_signature", f"the signature is not {author.hex()[:12]}'s")
        content = decode_body(kind, body)
    except CodecError as error:
        raise RemoteViolation("bad_encoding", str(error)) from error
    return Operation(operation_id(signed), pool, author, seq, prev, deps, epoch, hlc, content, signed)


def _check_fields(
    fields: object, pool: PoolId
) -> tuple[PublicKey, int, OperationId | None, tuple[OperationId, ...], int, int, int, object]:
    if type(fields) is not list or len(fields) != 10:
        raise CodecError("an operation is an array of ten")
    version, its_pool, author, seq, prev, deps, epoch, hlc, kind, body = fields
    if version != VERSION or type(version) is not int:
        raise RemoteViolation("bad_version", f"operation version {version!r}; this node speaks {VERSION}")
    if its_pool != pool:
        raise RemoteViolation("wrong_pool", "the operation belongs to another pool")
    if type(author) is not bytes or len(author) != _HASH:
        raise CodecError("the author is a public key of 32 bytes")
    if type(seq) is not int or not 0 <= seq <= limits.SEQ_MAX:
        raise CodecError(f"seq is 0 to {limits.SEQ_MAX}")
    if (prev is None) != (seq == 0) or (prev is not None and (type(prev) is not bytes or len(prev) != _HASH)):
        raise CodecError("prev is the 32-byte id of the operation before, and null exactly at seq 0")
    if type(deps) is not list or len(deps) > limits.OPERATION_DEPS_MAX:
        raise CodecError(f"deps is an array of at most {limits.OPERATION_DEPS_MAX}")
    if any(type(dep) is not bytes or len(dep) != _HASH for dep in deps) or deps != sorted(set(deps)):
        raise CodecError("deps are sorted 32-byte ids, without repeats")
    if type(epoch) is not int or not 0 <= epoch <= limits.EPOCH_MAX:
        raise CodecError(f"epoch is 0 to {limits.EPOCH_MAX}")
    if type(hlc) is not int or not 0 <= hlc < 2**63:
        raise CodecError("hlc is a 63-bit integer")
    if type(kind) is not int:
        raise CodecError("kind is an integer")
    before = None if prev is None else OperationId(prev)
    return PublicKey(author), seq, before, tuple(OperationId(dep) for dep in deps), epoch, hlc, kind, body


HLC_DRIFT_MS_MAX = 5 * 60 * 1000
HLC_COUNTER_BITS = 16


def next_hlc(wall_ms: int, last: int) -> int:
    """Return a hybrid logical clock later than `last` and, where the wall clock allows, close to it."""
    return max(wall_ms << HLC_COUNTER_BITS, last + 1)


def merge_hlc(wall_ms: int, own: int, seen: int) -> int:
    """Return the own clock after seeing another's; a clock more than five minutes ahead is ignored."""
    return max(own, seen) if seen >> HLC_COUNTER_BITS <= wall_ms + HLC_DRIFT_MS_MAX else own
