"""The cryptography of private pools and sealed messages: content keys, and what is sealed to members and to agents.

Knows: bytes, keys, and what each ciphertext is bound to. Must not know: operations, who is a member, or which key a
pool uses (see `view.keys`). Randomness enters as arguments; the same arguments always give the same bytes.
Source: `docs/protocol.md`, private pools; `docs/decisions/0007-sealed-contents.md`. X25519 (RFC 7748), XChaCha20-
Poly1305 (draft-irtf-cfrg-xchacha) and HMAC (RFC 2104), with a synthetic nonce after SIV (RFC 5297).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any, Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
    crypto_sign_ed25519_pk_to_curve25519,
)
from nacl.exceptions import CryptoError

from converge_p2p.core import limits
from converge_p2p.core.codec import domain_bytes, encode, tagged_hash
from converge_p2p.core.errors import CodecError, LocalError, SignatureError
from converge_p2p.core.types import PoolId, PublicKey

KEY_BYTES: Final = 32
"""Of a content key, an X25519 key of either half, and fresh randomness."""

COMMITMENT_BYTES: Final = 32
SEALED_KEY_BYTES: Final = 80
"""An ephemeral public key, the encrypted content key, and its tag."""

SEAL_BYTES: Final = 48
"""How much longer bytes become that are sealed to one reader: an ephemeral public key, and a tag."""

KEY_NAME_BYTES: Final = 8
"""How much of a commitment a sealed content carries, to say which key opens it."""

SEALED_MARK: Final = b"\xc1"
"""First byte of a sealed content: no msgpack value begins with it, so clear content is never taken for sealed."""

_NONCE_BYTES: Final = 24
_TAG_BYTES: Final = 16
_KEY_NONCE: Final = bytes(_NONCE_BYTES)
_FIELD_PRIME: Final = 2**255 - 19

assert len(SEALED_MARK) + KEY_NAME_BYTES + _NONCE_BYTES + _TAG_BYTES == limits.SEALED_OVERHEAD_BYTES
assert SEALED_KEY_BYTES == 2 * KEY_BYTES + _TAG_BYTES
assert SEAL_BYTES == KEY_BYTES + _TAG_BYTES


# ---------------------------------------------------------------- content keys


@dataclass(frozen=True, slots=True)
class ContentKey:
    """The secret that the members of a private pool share in a generation of an epoch.

    Attributes:
        pool, epoch: where and when it is used.
        generation: 0 for the key that came with the epoch; above for those that replaced it within the epoch.
        secret: 32 bytes; never shown.
        commitment: 32 bytes that fix the secret and tell nothing about it.

    Raises:
        LocalError: not 32 bytes, or a generation out of range.
    """

    pool: PoolId
    epoch: int
    generation: int
    secret: bytes = field(repr=False)
    commitment: bytes = field(init=False)

    def __post_init__(self) -> None:
        _check_length("a content key", self.secret)
        if not 0 <= self.generation <= limits.CONTENT_GENERATION_MAX:
            raise LocalError(f"generation {self.generation}; expected 0 to {limits.CONTENT_GENERATION_MAX}")
        if not 0 <= self.epoch <= limits.SEQ_MAX:
            raise LocalError(f"epoch {self.epoch}; expected 0 to {limits.SEQ_MAX}")
        object.__setattr__(self, "commitment", commitment_of(self.pool, self.epoch, self.generation, self.secret))

    @property
    def name(self) -> bytes:
        """What contents sealed with it carry."""
        return self.commitment[:KEY_NAME_BYTES]


def commitment_of(pool: PoolId, epoch: int, generation: int, secret: bytes) -> bytes:
    """Return the commitment to a content key: two different secrets never have the same."""
    return tagged_hash("content-commitment", pool, _eight(epoch), _eight(generation), secret)


# ---------------------------------------------------------------- X25519


def check_exchange_key(key: Any) -> bytes:
    """Return `key` if it is an X25519 public key in its one form.

    Raises:
        CodecError: not 32 bytes, not reduced (two byte strings would be one key), or of low order (every secret
            with it is zero, so anybody could open what is sealed to it).
    """
    if type(key) is not bytes or len(key) != KEY_BYTES:
        raise CodecError(f"an X25519 public key has {KEY_BYTES} bytes")
    if int.from_bytes(key, "little") >= _FIELD_PRIME:
        raise CodecError("the X25519 public key is not reduced")
    try:
        exchange(_PROBE, key)
    except SignatureError as error:
        raise CodecError("the X25519 public key has low order") from error
    return key


def exchange_public(secret: bytes) -> bytes:
    """Return the public half of an X25519 private key.

    Raises:
        LocalError: not 32 bytes.
    """
    _check_length("an X25519 private key", secret)
    public: bytes = crypto_scalarmult_base(secret)
    return public


def exchange_key_of(key: PublicKey) -> bytes:
    """Return the X25519 public key that belongs to an Ed25519 key.

    Raises:
        SignatureError: the Ed25519 key is not a point of the main group.
    """
    try:
        converted: bytes = crypto_sign_ed25519_pk_to_curve25519(key)
    except (CryptoError, ValueError, TypeError) as error:
        raise SignatureError(f"not a usable public key: {error}") from error
    return converted


def exchange(secret: bytes, public: bytes) -> bytes:
    """Return the X25519 secret of the two. Hash it before use.

    Raises:
        SignatureError: it is all zero, because the public key has low order, or a key has a wrong length.
    """
    try:
        # libsodium refuses the all-zero result (RFC 7748 section 6.1)
        shared: bytes = crypto_scalarmult(secret, public)
    except (CryptoError, ValueError, TypeError) as error:
        raise SignatureError(f"no secret can be agreed on with this public key: {error}") from error
    return shared


# ---------------------------------------------------------------- keys, sealed to members


def seal_key(key: ContentKey, author: PublicKey, member: PublicKey, exchange_key: bytes, entropy: bytes) -> bytes:
    """Seal a content key to one member.

    Args:
        key: what is sealed.
        author: who offers it; the sealed bytes open only in an offer of this author.
        member: whom it is for.
        exchange_key: the member's X25519 public key.
        entropy: 32 fresh random bytes; may be the same for all members of one offer.

    Returns:
        80 bytes.

    Raises:
        LocalError: not 32 bytes of entropy.
        SignatureError: the member's key has low order.
    """
    _check_length("entropy", entropy)
    # a key of its own for each commitment, author and recipient, even if the shell handed the same entropy out twice
    secret = tagged_hash("content-ephemeral", entropy, key.secret, author, member, exchange_key)
    public = exchange_public(secret)
    wrap = _wrap_key(exchange(secret, exchange_key), public, exchange_key)
    bound = _key_header(key.pool, key.epoch, key.generation, key.commitment, author, member)
    sealed: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(key.secret, bound, _KEY_NONCE, wrap)
    return public + sealed


def open_key(
    sealed: bytes,
    secret: bytes,
    *,
    pool: PoolId,
    epoch: int,
    generation: int,
    commitment: bytes,
    author: PublicKey,
    member: PublicKey,
) -> bytes:
    """Open what `seal_key` made. The caller compares the result with the commitment.

    Args:
        sealed: 80 bytes.
        secret: the member's X25519 private key.
        pool, epoch, generation, commitment, author, member: as the offer says.

    Raises:
        SignatureError: sealed to another key, or for another offer, or damaged, or with an ephemeral key of low order.
    """
    if len(sealed) != SEALED_KEY_BYTES:
        raise SignatureError(f"a sealed content key has {SEALED_KEY_BYTES} bytes, not {len(sealed)}")
    public, box = sealed[:KEY_BYTES], sealed[KEY_BYTES:]
    wrap = _wrap_key(exchange(secret, public), public, exchange_public(secret))
    bound = _key_header(pool, epoch, generation, commitment, author, member)
    try:
        opened: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(box, bound, _KEY_NONCE, wrap)
    except (CryptoError, ValueError, TypeError) as error:
        raise SignatureError("the content key is not sealed to this key, or was changed") from error
    return opened


# ---------------------------------------------------------------- anything, sealed to one reader


def seal_bytes(plain: bytes, exchange_key: bytes, header: bytes, entropy: bytes) -> bytes:
    """Seal bytes to the holder of an X25519 private key.

    Args:
        plain: any bytes.
        exchange_key: the reader's X25519 public key.
        header: what the bytes are bound to, behind a domain tag.
        entropy: 32 fresh random bytes.

    Returns:
        `SEAL_BYTES` more than `plain` has: an ephemeral public key, the ciphertext and its tag.

    Raises:
        LocalError: not 32 bytes of entropy.
        SignatureError: the reader's key has low order.
    """
    _check_length("entropy", entropy)
    # the header and the text go in, so that entropy that was used twice never gives one key for two texts
    secret = tagged_hash("seal-ephemeral", entropy, exchange_key, header, plain)
    public = exchange_public(secret)
    wrap = tagged_hash("seal-wrap", exchange(secret, exchange_key), public, exchange_key)
    sealed: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(plain, header, _KEY_NONCE, wrap)
    return public + sealed


def open_bytes(sealed: bytes, secret: bytes, header: bytes) -> bytes:
    """Open what `seal_bytes` made.

    Raises:
        SignatureError: sealed to another key, or under another header, or damaged.
    """
    if len(sealed) < SEAL_BYTES:
        raise SignatureError(f"sealed bytes are at least {SEAL_BYTES}, not {len(sealed)}")
    public, box = sealed[:KEY_BYTES], sealed[KEY_BYTES:]
    wrap = tagged_hash("seal-wrap", exchange(secret, public), public, exchange_public(secret))
    try:
        opened: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(box, header, _KEY_NONCE, wrap)
    except (CryptoError, ValueError, TypeError) as error:
        raise SignatureError("not sealed to this key, or it was changed") from error
    return opened


# ---------------------------------------------------------------- contents


def seal_content(key: ContentKey, context: list[Any], plain: bytes) -> bytes:
    """Encrypt one content field.

    Args:
        key: the pool's content key.
        context: plain values that name the place of the content; it opens in no other place.
        plain: any bytes.

    Returns:
        `limits.SEALED_OVERHEAD_BYTES` more than `plain` has: mark, name of the key, nonce, ciphertext, tag.
    """
    header = _content_header(key, context)
    nonce = _nonce(key, header, plain)
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(plain, header, nonce, _subkey(key, b"encrypt"))
    return SEALED_MARK + key.name + nonce + sealed


def open_content(key: ContentKey, context: list[Any], sealed: bytes) -> bytes:
    """Decrypt what `seal_content` made.

    Raises:
        SignatureError: another key, another place, or changed bytes.
    """
    if not is_sealed(sealed) or key_name_of(sealed) != key.name:
        raise SignatureError("the content is not sealed with this key")
    start = len(SEALED_MARK) + KEY_NAME_BYTES
    nonce, box = sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES :]
    header = _content_header(key, context)
    try:
        plain: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(box, header, nonce, _subkey(key, b"encrypt"))
    except (CryptoError, ValueError, TypeError) as error:
        raise SignatureError("the content does not decrypt: another key, another place, or it was changed") from error
    # Poly1305 alone would let one ciphertext open under two keys to two texts; a nonce that is a hash does not
    if not hmac.compare_digest(nonce, _nonce(key, header, plain)):
        raise SignatureError("the nonce of the content is not the one that belongs to it")
    return plain


def is_sealed(data: bytes) -> bool:
    """Whether bytes have the form of a sealed content. Says nothing about whether they open."""
    return data[:1] == SEALED_MARK and len(data) >= limits.SEALED_OVERHEAD_BYTES


def key_name_of(sealed: bytes) -> bytes:
    """Return the name of the key that a sealed content claims to be sealed with."""
    return sealed[len(SEALED_MARK) : len(SEALED_MARK) + KEY_NAME_BYTES]


# ---------------------------------------------------------------- inside


_PROBE: Final = b"\x01" * KEY_BYTES
"""Any scalar shows a point of low order: clamped scalars are multiples of the cofactor."""


def _check_length(what: str, value: bytes) -> None:
    if len(value) != KEY_BYTES:
        raise LocalError(f"{what} has {KEY_BYTES} bytes, not {len(value)}")


def _eight(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _wrap_key(shared: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return tagged_hash("content-wrap", shared, ephemeral, recipient)


def _key_header(
    pool: PoolId, epoch: int, generation: int, commitment: bytes, author: PublicKey, member: PublicKey
) -> bytes:
    return domain_bytes("content-key", encode([pool, epoch, generation, commitment, author, member]))


def _content_header(key: ContentKey, context: list[Any]) -> bytes:
    return domain_bytes("content", encode([key.pool, key.epoch, key.generation, key.commitment, context]))


def _subkey(key: ContentKey, purpose: bytes) -> bytes:
    return tagged_hash("content-subkey", key.secret, purpose)


def _nonce(key: ContentKey, header: bytes, plain: bytes) -> bytes:
    material = len(header).to_bytes(8, "big") + header + plain
    return hmac.digest(_subkey(key, b"nonce"), material, hashlib.sha256)[:_NONCE_BYTES]
