"""Operations by which one key takes the place of another, and the signatures they carry.

Knows: their shape, and who has to sign what. Must not know: who is a member (see `view.succession`).
Source: `docs/protocol.md`, succession.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converge_p2p.core.codec import encode, tagged_hash
from converge_p2p.core.errors import CodecError
from converge_p2p.core.identity import SIGNATURE_BYTES, Identity, verify
from converge_p2p.core.oplog.fields import check_shape, count_field, hash_field
from converge_p2p.core.types import PoolId, PublicKey

_ROTATE, _SUCCEED, _RECOVER = 0, 1, 2


@dataclass(frozen=True, slots=True)
class RotateBody:
    """The author hands over to a new key. Its later operations other than votes have no effect.

    Attributes:
        successor: the new key.
        signature: of the new key, that it agrees.
    """

    successor: PublicKey
    signature: bytes


@dataclass(frozen=True, slots=True)
class SucceedBody:
    """First operation of a new key: it lets the chain into the pool. What counts is the old key's `RotateBody`.

    Attributes:
        predecessor: the old key.
        signature: of the old key, that it agrees.
    """

    predecessor: PublicKey
    signature: bytes


@dataclass(frozen=True, slots=True)
class RecoverBody:
    """First operation of a new key: it takes the place of a key that was lost or stolen.

    Attributes:
        predecessor: the old key.
        length: its operations from this number on that are not votes have no effect.
        recovery: the recovery key that the old one committed to.
        signature: of the recovery key.
    """

    predecessor: PublicKey
    length: int
    recovery: PublicKey
    signature: bytes


@dataclass(frozen=True, slots=True)
class RecoveryBody:
    """The author commits to a recovery key. Only the first one of a chain counts: a thief cannot replace it.

    Attributes:
        commitment: hash of the recovery key, which nobody has to see before it is used.
    """

    commitment: bytes


SuccessionBody = RotateBody | SucceedBody | RecoverBody | RecoveryBody


def commitment_of(recovery: PublicKey) -> bytes:
    """What a recovery key is committed to by."""
    return tagged_hash("recovery-key", recovery)


def rotation(pool: PoolId, old: Identity, new: Identity) -> tuple[RotateBody, SucceedBody]:
    """Make both halves of a rotation: the last data operation of the old key, and the first of the new one.

    Raises:
        LocalError: one of them cannot sign.
    """
    words = encode([pool, old.public_key, new.public_key])
    return (
        RotateBody(new.public_key, new.sign("rotation", words)),
        SucceedBody(old.public_key, old.sign("succession", words)),
    )


def recovery(pool: PoolId, old: PublicKey, length: int, *, key: Identity, new: PublicKey) -> RecoverBody:
    """Make the first operation of a key that takes the place of a lost or stolen one.

    Args:
        pool: the pool.
        old: the key that was lost.
        length: how many of its operations its owner stands for.
        key: the recovery key.
        new: the new key.

    Raises:
        LocalError: the recovery key cannot sign.
    """
    return RecoverBody(old, length, key.public_key, key.sign("recovery", encode([pool, old, new, length])))


def is_signed(pool: PoolId, author: PublicKey, body: SuccessionBody) -> bool:
    """Whether whoever has to agree to what an author says signed it."""
    match body:
        case RotateBody(successor, signature):
            return successor != author and verify(successor, "rotation", encode([pool, author, successor]), signature)
        case SucceedBody(old, signature):
            return old != author and verify(old, "succession", encode([pool, old, author]), signature)
        case RecoverBody(old, length, key, signature):
            return old != author and verify(key, "recovery", encode([pool, old, author, length]), signature)
        case RecoveryBody():
            return True


KIND_NUMBERS: dict[type, int] = {RotateBody: 17, SucceedBody: 17, RecoverBody: 17, RecoveryBody: 18}


def encode_succession(body: SuccessionBody) -> list[Any]:
    """Return the array form."""
    match body:
        case RotateBody(successor, signature):
            return [_ROTATE, successor, signature]
        case SucceedBody(predecessor, signature):
            return [_SUCCEED, predecessor, signature]
        case RecoverBody(predecessor, length, key, signature):
            return [_RECOVER, predecessor, length, key, signature]
        case RecoveryBody(commitment):
            return [commitment]


def decode_rotate(body: list[Any]) -> RotateBody | SucceedBody | RecoverBody:
    """Read the array form of kind 17."""
    step = body[0] if body and type(body[0]) is int else -1
    if step in (_ROTATE, _SUCCEED):
        check_shape("rotate", body, int, bytes, bytes)
        key, signature = PublicKey(hash_field("a key", body[1])), _signature(body[2])
        return RotateBody(key, signature) if step == _ROTATE else SucceedBody(key, signature)
    check_shape("rotate", body, int, bytes, int, bytes, bytes)
    if step != _RECOVER:
        raise CodecError("a rotate is a step 0, 1 or 2")
    old, length = PublicKey(hash_field("a key", body[1])), count_field("a length", body[2])
    return RecoverBody(old, length, PublicKey(hash_field("a recovery key", body[3])), _signature(body[4]))


def decode_recovery(body: list[Any]) -> RecoveryBody:
    """Read the array form of kind 18."""
    check_shape("recovery", body, bytes)
    return RecoveryBody(hash_field("a commitment", body[0]))


def _signature(value: bytes) -> bytes:
    if len(value) != SIGNATURE_BYTES:
        raise CodecError(f"a signature has {SIGNATURE_BYTES} bytes")
    return value
