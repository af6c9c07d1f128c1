"""Who somebody is: an Ed25519 key pair, and the fingerprint that names it.

Knows: keys, fingerprints, signatures, and the encrypted form of a seed. Must not know: files (see `store.keyfile`).
Source: RFC 8032 through libsodium. One library decides the edge cases of verification, so that every node agrees.
"""

from __future__ import annotations

import functools
import hashlib

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_sign,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.utils import random as random_bytes

from converge_p2p.core.codec import domain_bytes
from converge_p2p.core.errors import CodecError, LocalError, SignatureError
from converge_p2p.core.types import AgentId, PublicKey

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64

_KEY_HEADER_PLAIN = b"converge-key-1 plain\n"
_KEY_HEADER_SEALED = b"converge-key-1 argon2id\n"
_NONCE_BYTES = 24


@functools.lru_cache(maxsize=4096)
def fingerprint(public_key: PublicKey) -> AgentId:
    """Return the agent id of a key: lowercase hexadecimal SHA-256 of the raw 32 bytes.

    Raises:
        CodecError: not 32 bytes.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise CodecError(f"public key has {len(public_key)} bytes; expected {PUBLIC_KEY_BYTES}")
    return AgentId(hashlib.sha256(public_key).hexdigest())


def verify(public_key: PublicKey, tag: str, data: bytes, signature: bytes) -> bool:
    """Say whether `signature` is the key's over `data` under the domain tag.

    False for every malformed key or signature: on remote data this is an answer, not an error.
    """
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        # libsodium refuses small-order keys and non-canonical S, which makes signatures strongly unforgeable
        crypto_sign_open(signature + domain_bytes(tag, data), public_key)
    except (CryptoError, ValueError, TypeError):
        return False
    return True


class Identity:
    """An Ed25519 identity: a full key pair, or a public key that can only verify.

    Immutable. The string forms never show the seed.
    """

    __slots__ = ("_secret", "_seed", "id", "public_key")

    def __init__(self, public_key: PublicKey, seed: bytes | None = None) -> None:
        """Use `generate`, `from_seed` or `from_public_key` instead.

        Raises:
            CodecError: a key of the wrong length.
        """
        self.id: AgentId = fingerprint(public_key)
        self.public_key: PublicKey = public_key
        self._seed = seed
        self._secret = None if seed is None else seed + public_key

    def __setattr__(self, name: str, value: object) -> None:
        # the last one that is set by the constructor
        if hasattr(self, "_secret"):
            raise AttributeError(f"an identity cannot be changed, and so not its {name}")
        super().__setattr__(name, value)

    @classmethod
    def generate(cls) -> Identity:
        """Make a new key pair from the operating system's randomness."""
        return cls.from_seed(random_bytes(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """Make the key pair that a 32-byte seed determines (RFC 8032).

        Raises:
            CodecError: not 32 bytes.
        """
        if len(seed) != SEED_BYTES:
            raise CodecError(f"seed has {len(seed)} bytes; expected {SEED_BYTES}")
        public_key, _ = crypto_sign_seed_keypair(seed)
        return cls(PublicKey(public_key), seed)

    @classmethod
    def from_public_key(cls, public_key: bytes) -> Identity:
        """Make an identity that can verify and cannot sign.

        Raises:
            CodecError: not 32 bytes.
        """
        return cls(PublicKey(bytes(public_key)))

    @property
    def fingerprint(self) -> AgentId:
        """The agent id: lowercase hexadecimal SHA-256 of the public key."""
        return self.id

    @property
    def can_sign(self) -> bool:
        """Whether the private key is here."""
        return self._secret is not None

    @property
    def seed(self) -> bytes:
        """The 32-byte seed.

        Raises:
            LocalError: this identity is verify-only.
        """
        if self._seed is None:
            raise LocalError("this identity is verify-only: it has no private key")
        return self._seed

    def sign(self, tag: str, data: bytes) -> bytes:
        """Return the 64-byte signature over `data` under a domain tag.

        Raises:
            LocalError: this identity is verify-only.
        """
        if self._secret is None:
            raise LocalError(
                "this identity is verify-only and cannot sign", hint="load the key file, or use Identity.generate()"
            )
        return crypto_sign(domain_bytes(tag, data), self._secret)[:SIGNATURE_BYTES]

    def verify(self, tag: str, data: bytes, signature: bytes) -> bool:
        """Say whether the signature is this identity's over `data` under the domain tag."""
        return verify(self.public_key, tag, data, signature)

    @property
    def exchange_secret(self) -> bytes:
        """The X25519 private key (32 bytes) that belongs to this Ed25519 key: `model.secrecy` opens with it.

        Raises:
            LocalError: this identity is verify-only.
        """
        if self._secret is None:
            raise LocalError("this identity is verify-only: it has no private key")
        secret: bytes = crypto_sign_ed25519_sk_to_curve25519(self._secret)
        return secret

    def to_key_file(self, passphrase: str | None = None) -> bytes:
        """Return the bytes of a key file: the seed in clear, or sealed with argon2id and XChaCha20-Poly1305.

        Args:
            passphrase: not empty, or None for a file in clear.

        Raises:
            LocalError: verify-only, or an empty passphrase.
        """
        if passphrase is None:
            return _KEY_HEADER_PLAIN + self.seed.hex().encode() + b"\n"
        if not passphrase:
            raise LocalError("the passphrase is empty", hint="give a passphrase, or none for a key file in clear")
        salt, nonce = random_bytes(argon2id.SALTBYTES), random_bytes(_NONCE_BYTES)
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(
            self.seed, _KEY_HEADER_SEALED, nonce, _passphrase_key(passphrase, salt)
        )
        return _KEY_HEADER_SEALED + (salt + nonce + sealed).hex().encode() + b"\n"

    @classmethod
    def from_key_file(cls, data: bytes, passphrase: str | None = None) -> Identity:
        """Read the bytes that `to_key_file` made.

        Raises:
            CodecError: not a key file.
            LocalError: the file is sealed and no passphrase was given.
            SignatureError: the passphrase is wrong, or the file was changed.
        """
        try:
            if data.startswith(_KEY_HEADER_PLAIN):
                return cls.from_seed(bytes.fromhex(data[len(_KEY_HEADER_PLAIN) :].decode("ascii").strip()))
            if not data.startswith(_KEY_HEADER_SEALED):
                raise CodecError("not a converge key file (its first line names no known format)")
            raw = bytes.fromhex(data[len(_KEY_HEADER_SEALED) :].decode("ascii").strip())
        except ValueError as error:
            raise CodecError(f"damaged key file: {error}") from error
        if passphrase is None:
            raise LocalError("the key file is sealed with a passphrase", hint="give the passphrase")
        salt, rest = raw[: argon2id.SALTBYTES], raw[argon2id.SALTBYTES :]
        nonce, sealed = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        if len(sealed) != SEED_BYTES + 16:
            raise CodecError("damaged key file: wrong length")
        try:
            key = _passphrase_key(passphrase, salt)
            return cls.from_seed(crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, _KEY_HEADER_SEALED, nonce, key))
        except CryptoError as error:
            raise SignatureError("wrong passphrase, or the key file was changed") from error

    def __repr__(self) -> str:
        return f"Identity({self.id[:12]}…{'' if self.can_sign else ', verify-only'})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.public_key == self.public_key

    def __hash__(self) -> int:
        return hash(self.public_key)


def _passphrase_key(passphrase: str, salt: bytes) -> bytes:
    return argon2id.kdf(
        32, passphrase.encode(), salt, opslimit=argon2id.OPSLIMIT_MODERATE, memlimit=argon2id.MEMLIMIT_INTERACTIVE
    )
