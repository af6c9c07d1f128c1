"""The secrets of one identity in one private pool: private prekeys, and the content keys it was given.

Knows: how a sealed key is opened and checked, and what may be kept. Must not know: operations, or who may offer a key
(see `view.keys`: only an offer that counts is handed to `take`).
Source: `docs/protocol.md`, private pools; `docs/decisions/0007-sealed-contents.md`.

Pure, but not a value: one replica owns it. The shell stores `export()` durably before the prekey's operation leaves.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, domain_bytes, encode, tagged_hash
from converge_p2p.core.errors import CodecError, LocalError, NotFound, SignatureError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.secrecy import (
    KEY_BYTES,
    ContentKey,
    commitment_of,
    exchange_key_of,
    exchange_public,
    is_sealed,
    key_name_of,
    open_bytes,
    open_key,
    seal_bytes,
)
from converge_p2p.core.types import PoolId, PublicKey

_VERSION = 1


@dataclass(frozen=True, slots=True)
class SealedKey:
    """What an offer says to one member.

    Attributes:
        author: who offers.
        epoch, generation, commitment: which key it says it is.
        sealed: 80 bytes for the member.
    """

    author: PublicKey
    epoch: int
    generation: int
    commitment: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class SplitKey:
    """Evidence: an elector sealed to this identity another key than the one it committed to.

    Members who were sealed different keys would read different contents, or none.

    Attributes:
        culprit: who sealed it.
        epoch, generation, commitment: what it was said to be.
        opened: the commitment to what was really inside.
    """

    culprit: PublicKey
    epoch: int
    generation: int
    commitment: bytes
    opened: bytes


class Keyring:
    """Private prekeys and content keys. The string form shows none of them."""

    def __init__(self, identity: Identity, pool: PoolId) -> None:
        """Make an empty ring.

        Raises:
            LocalError: the identity has no private key.
        """
        self.pool = pool
        self.owner: PublicKey = identity.public_key
        self._identity = identity
        self._exchange_secret = identity.exchange_secret
        self._prekeys: list[bytes] = []
        self._keys: dict[bytes, ContentKey] = {}
        self._by_name: dict[bytes, list[ContentKey]] = {}

    # ------------------------------------------------------------ prekeys

    def add_prekey(self, entropy: bytes) -> bytes:
        """Keep a new private prekey, erase all but the newest `limits.PREKEYS_HELD_MAX`, and return its public half.

        Entries that were sealed to an erased prekey and not opened can no longer be opened by anybody: that is the
        point of it. The one before the newest stays, because others may not have seen the newest yet.

        Args:
            entropy: 32 fresh random bytes.

        Raises:
            LocalError: not 32 bytes.
        """
        public = exchange_public(entropy)
        if entropy not in self._prekeys:
            self._prekeys.append(entropy)
        self.erase_prekeys(limits.PREKEYS_HELD_MAX)
        return public

    def erase_prekeys(self, keep: int) -> None:
        """Forget all private prekeys but the newest `keep`."""
        del self._prekeys[: max(0, len(self._prekeys) - keep)]

    def prekeys(self) -> tuple[bytes, ...]:
        """The public halves of the prekeys that are held, oldest first."""
        return tuple(exchange_public(secret) for secret in self._prekeys)

    # ------------------------------------------------------------ content keys

    def __len__(self) -> int:
        """How many content keys are held."""
        return len(self._keys)

    def add(self, key: ContentKey) -> None:
        """Keep a content key. When the ring is full, the oldest epoch and generation goes.

        Raises:
            LocalError: the key of another pool.
        """
        if key.pool != self.pool:
            raise LocalError("the content key belongs to another pool")
        if key.commitment in self._keys:
            return
        self._keys[key.commitment] = key
        self._by_name.setdefault(key.name, []).append(key)
        self._by_name[key.name].sort(key=_order)
        if len(self._keys) > limits.CONTENT_KEYS_HELD_MAX:
            self._drop(min(self._keys.values(), key=_order))

    def _drop(self, key: ContentKey) -> None:
        del self._keys[key.commitment]
        named = self._by_name[key.name]
        named.remove(key)
        if not named:
            del self._by_name[key.name]

    def take(self, offer: SealedKey) -> ContentKey | SplitKey:
        """Open what an elector sealed to this identity, and keep it if it is what the offer commits to.

        Raises:
            SignatureError: it opens with no private key that is held. Sealed to an erased prekey, or worthless; who
                sealed it cannot be blamed for the former.
        """
        try:
            secret = self._open(offer)
        except SignatureError:
            # sealed to a prekey that was erased after it was opened: so it is after every restart
            held = self._keys.get(offer.commitment)
            if held is None:
                raise
            return held
        opened = commitment_of(self.pool, offer.epoch, offer.generation, secret)
        if opened != offer.commitment:
            return SplitKey(offer.author, offer.epoch, offer.generation, offer.commitment, opened)
        key = ContentKey(self.pool, offer.epoch, offer.generation, secret)
        self.add(key)
        return key

    def _open(self, offer: SealedKey) -> bytes:
        for secret in (*reversed(self._prekeys), self._exchange_secret):
            try:
                return open_key(
                    offer.sealed,
                    secret,
                    pool=self.pool,
                    epoch=offer.epoch,
                    generation=offer.generation,
                    commitment=offer.commitment,
                    author=offer.author,
                    member=self.owner,
                )
            except SignatureError:
                continue
        raise SignatureError("the offered content key opens with no private key that is held")

    def get(self, commitment: bytes) -> ContentKey | None:
        """Return the content key of a commitment, if it is held."""
        return self._keys.get(commitment)

    def of(self, epoch: int, generation: int) -> tuple[ContentKey, ...]:
        """Return the content keys of a generation that are held, by commitment."""
        keys = (key for key in self._keys.values() if (key.epoch, key.generation) == (epoch, generation))
        return tuple(sorted(keys, key=_order))

    def named_in(self, sealed: bytes) -> tuple[ContentKey, ...]:
        """Return the content keys whose name a sealed content carries.

        There is one, unless somebody searched for two keys of one name; the caller tries them in this order.

        Raises:
            LocalError: the content is not sealed.
            NotFound: no key of that name is held (yet).
        """
        if not is_sealed(sealed):
            raise LocalError("the content is not sealed")
        keys = self._by_name.get(key_name_of(sealed))
        if keys is None:
            raise NotFound("no content key for this is held", hint="an elector has to offer it to this member")
        return tuple(keys)

    # ------------------------------------------------------------ names that tell nothing

    def blind(self, key: bytes) -> bytes:
        """Return the idempotency key to submit under instead of `key`: 32 bytes that only this identity can compute.

        A task's key stands in clear, and people write names into it. The blinded one is the same each time, in every
        epoch, so that a submit can still be retried.
        """
        secret = tagged_hash("idempotency-secret", self._identity.seed)
        return hmac.digest(secret, domain_bytes("idempotency-key", self.pool + key), hashlib.sha256)

    # ------------------------------------------------------------ for the store

    def export(self) -> bytes:
        """Return everything but the identity's own key, for the store. Secret: it is as good as the contents."""
        return encode([_VERSION, self.pool, self.owner, list(self._prekeys), self._content_keys()])

    @classmethod
    def restore(cls, identity: Identity, pool: PoolId, data: bytes) -> Keyring:
        """Read what `export` wrote.

        Raises:
            CodecError: damaged, or of another pool, identity or version.
            LocalError: the identity has no private key.
        """
        ring = cls(identity, pool)
        match decode(data):
            case [version, its_pool, owner, list() as prekeys, list() as keys] if (
                version == _VERSION and type(version) is int and its_pool == pool and owner == identity.public_key
            ):
                pass
            case _:
                raise CodecError("not the keyring of this pool and identity")
        if len(prekeys) > limits.PREKEYS_HELD_MAX or len(keys) > limits.CONTENT_KEYS_HELD_MAX:
            raise CodecError("the keyring holds too many keys")
        if any(type(secret) is not bytes or len(secret) != KEY_BYTES for secret in prekeys):
            raise CodecError(f"a private prekey has {KEY_BYTES} bytes")
        ring._prekeys = list(prekeys)
        for item in keys:
            ring.add(_stored_key(pool, item))
        return ring

    # ------------------------------------------------------------ for the key that takes the owner's place

    def leave_to(self, heir: PublicKey, entropy: bytes) -> bytes:
        """Return the content keys sealed to the key that takes the owner's place; prekeys stay with the owner.

        Args:
            heir: the other key.
            entropy: 32 fresh random bytes.

        Raises:
            LocalError: not 32 bytes.
            SignatureError: nothing can be sealed to the key.
        """
        plain = encode([_VERSION, self._content_keys()])
        return seal_bytes(plain, exchange_key_of(heir), _left_header(self.pool, self.owner, heir), entropy)

    def inherit(self, old: PublicKey, sealed: bytes) -> None:
        """Keep what the owner of another ring left to this one.

        Raises:
            SignatureError: it was sealed to another key, by another key's owner, in another pool, or it was changed.
            CodecError: what was sealed are no content keys.
        """
        plain = open_bytes(sealed, self._exchange_secret, _left_header(self.pool, old, self.owner))
        match decode(plain):
            case [version, list() as keys] if type(version) is int and version == _VERSION:
                pass
            case _:
                raise CodecError("not the content keys that another key left")
        if len(keys) > limits.CONTENT_KEYS_HELD_MAX:
            raise CodecError("another key left too many content keys")
        for item in keys:
            self.add(_stored_key(self.pool, item))

    def _content_keys(self) -> list[Any]:
        return [[key.epoch, key.generation, key.secret] for key in sorted(self._keys.values(), key=_order)]

    def __repr__(self) -> str:
        return f"Keyring({self.pool.hex()[:12]}…, {len(self._keys)} content keys, {len(self._prekeys)} prekeys)"


def _left_header(pool: PoolId, old: PublicKey, heir: PublicKey) -> bytes:
    return domain_bytes("content-keys-left", encode([pool, old, heir]))


def _order(key: ContentKey) -> tuple[int, int, bytes]:
    return key.epoch, key.generation, key.commitment


def _stored_key(pool: PoolId, item: Any) -> ContentKey:
    match item:
        case [int() as epoch, int() as generation, bytes() as secret] if type(epoch) is type(generation) is int:
            try:
                return ContentKey(pool, epoch, generation, secret)
            except LocalError as error:
                raise CodecError(f"a content key of the keyring is damaged: {error}") from error
    raise CodecError("a content key of the keyring is an array of epoch, generation and secret")
