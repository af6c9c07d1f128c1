"""The secrets of private pools in the store: under which key they stand, and how they are sealed there.

Knows: bytes and the identity. Must not know: what a pool's secrets are for (see `core.model.keyring`).
Source: `docs/operations.md`, files. The key that seals them follows from the identity's own: a copy of the database
without the key file opens nothing.
"""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import StoreError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.keyring import Keyring
from converge_p2p.core.types import PoolId, PublicKey

KEYRING_KEY = "keyring/"
PLACE_KEY = "place/"
"""Of a pool in which this node's key takes another one's place: the word that it begins with."""


def keyring_key(pool: PoolId) -> str:
    """Return the store's key for the secrets of a pool."""
    return KEYRING_KEY + pool.hex()


def place_key(pool: PoolId) -> str:
    """Return the store's key for the word that the own chain of a pool begins with."""
    return PLACE_KEY + pool.hex()


def inherited_secrets(identity: Identity, pool: PoolId, old: PublicKey, sealed: bytes) -> bytes:
    """Return what another key left, as it is stored here.

    Raises:
        SignatureError, CodecError: it was not left to this identity, or it was changed.
    """
    ring = Keyring(identity, pool)
    ring.inherit(old, sealed)
    return seal_secrets(identity, pool, ring.export())


def seal_secrets(identity: Identity, pool: PoolId, secrets: bytes) -> bytes:
    """Return secrets as they are stored."""
    return bytes(_box(identity, pool).encrypt(secrets))


def open_secrets(identity: Identity, pool: PoolId, stored: bytes | None) -> bytes:
    """Return what was stored; empty if nothing was.

    Raises:
        StoreError: it was damaged, or another identity stored it.
    """
    if stored is None:
        return b""
    try:
        return bytes(_box(identity, pool).decrypt(stored))
    except (CryptoError, ValueError) as error:
        raise StoreError(
            f"the content keys of pool {pool.hex()[:12]} in the store cannot be opened",
            hint="use the key file that belongs to this database",
        ) from error


def _box(identity: Identity, pool: PoolId) -> SecretBox:
    return SecretBox(tagged_hash("keyring-at-rest", identity.seed, pool))
