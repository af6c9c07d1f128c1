"""How the keys of a private pool travel: the bodies of kinds 12 and 13.

Knows: the shape of an offered content key and of a prekey. Must not know: whose offer counts (see `view.keys`), or
how a key is opened (see `model.keyring`).
Source: `docs/protocol.md`, private pools.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.secrecy import (
    COMMITMENT_BYTES,
    SEALED_KEY_BYTES,
    ContentKey,
    check_exchange_key,
    seal_key,
)
from converge_p2p.core.types import PublicKey

_MEMBER_BYTES = 32


class KeyEntry(NamedTuple):
    """A content key, sealed to one member: 80 bytes that only the member can open."""

    member: PublicKey
    sealed: bytes


@dataclass(frozen=True, slots=True)
class ContentKeyBody:
    """An elector hands the content key of a generation to members. A later operation adds further members.

    Attributes:
        epoch: the epoch whose contents the key seals; its electors may offer it.
        generation: 0 to `limits.CONTENT_GENERATION_MAX`.
        commitment: 32 bytes.
        entries: 1 to `limits.CONTENT_KEY_ENTRIES_MAX`, by member, each once.
    """

    epoch: int
    generation: int
    commitment: bytes
    entries: tuple[KeyEntry, ...]

    def entry_for(self, member: PublicKey) -> bytes | None:
        """Return what is sealed to a member, or None."""
        return next((sealed for key, sealed in self.entries if key == member), None)


@dataclass(frozen=True, slots=True)
class PrekeyBody:
    """The X25519 key to seal to for the author from now on. Replaces the one that follows from its Ed25519 key."""

    exchange_key: bytes


def encode_key_body(body: ContentKeyBody | PrekeyBody) -> list[Any]:
    """Return the array form."""
    if isinstance(body, PrekeyBody):
        return [body.exchange_key]
    return [body.epoch, body.generation, body.commitment, [list(entry) for entry in body.entries]]


def decode_content_key(body: list[Any]) -> ContentKeyBody:
    """Read the array form.

    Raises:
        CodecError: wrong shape, out of bounds, unsorted, or a member named twice.
    """
    if len(body) != 4:
        raise CodecError("a content key body is an array of four")
    epoch, generation, commitment, plain = body
    if type(epoch) is not int or not 0 <= epoch <= limits.SEQ_MAX:
        raise CodecError(f"the epoch of a content key is 0 to {limits.SEQ_MAX}")
    if type(generation) is not int or not 0 <= generation <= limits.CONTENT_GENERATION_MAX:
        raise CodecError(f"the generation of a content key is 0 to {limits.CONTENT_GENERATION_MAX}")
    if type(commitment) is not bytes or len(commitment) != COMMITMENT_BYTES:
        raise CodecError(f"the commitment to a content key has {COMMITMENT_BYTES} bytes")
    if type(plain) is not list or not 1 <= len(plain) <= limits.CONTENT_KEY_ENTRIES_MAX:
        raise CodecError(f"a content key is sealed to 1 to {limits.CONTENT_KEY_ENTRIES_MAX} members in one operation")
    entries = tuple(_entry(item) for item in plain)
    if any(one.member >= other.member for one, other in itertools.pairwise(entries)):
        raise CodecError("the members of a content key are sorted, without repeats")
    return ContentKeyBody(epoch, generation, commitment, entries)


def decode_prekey(body: list[Any]) -> PrekeyBody:
    """Read the array form.

    Raises:
        CodecError: not one usable X25519 public key.
    """
    if len(body) != 1:
        raise CodecError("a prekey body is an array of one")
    return PrekeyBody(check_exchange_key(body[0]))


def _entry(item: Any) -> KeyEntry:
    if type(item) is not list or len(item) != 2:
        raise CodecError("an entry of a content key is an array of two")
    member, sealed = item
    if type(member) is not bytes or len(member) != _MEMBER_BYTES:
        raise CodecError("the member of a content key is a public key of 32 bytes")
    if type(sealed) is not bytes or len(sealed) != SEALED_KEY_BYTES:
        raise CodecError(f"a sealed content key has {SEALED_KEY_BYTES} bytes")
    return KeyEntry(PublicKey(member), sealed)


def offer_bodies(
    key: ContentKey, author: PublicKey, recipients: dict[PublicKey, bytes], entropy: bytes
) -> tuple[ContentKeyBody, ...]:
    """Seal a content key to members, in as many operations as it takes.

    Args:
        key: what is offered.
        author: who will sign the operations.
        recipients: member → its X25519 public key (see `view.keys.recipients`).
        entropy: 32 fresh random bytes.

    Raises:
        LocalError: not 32 bytes of entropy.
        SignatureError: a key of low order; `decode_prekey` lets none in.
    """
    entries = [
        KeyEntry(member, seal_key(key, author, member, recipients[member], entropy)) for member in sorted(recipients)
    ]
    size = limits.CONTENT_KEY_ENTRIES_MAX
    return tuple(
        ContentKeyBody(key.epoch, key.generation, key.commitment, tuple(entries[start : start + size]))
        for start in range(0, len(entries), size)
    )
