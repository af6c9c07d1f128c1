"""A private pool in a test: electors that offer content keys, members that take them.

Knows: how to make offers by hand, good and bad. Must not know: a test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt
from pool_kit import Author, Pool

from converge_p2p.core.model import secrecy
from converge_p2p.core.model.keyring import Keyring, SplitKey
from converge_p2p.core.model.secrecy import ContentKey, exchange, exchange_public
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, KeyEntry, PrekeyBody, offer_bodies
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.rotation import Standing
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.keys import KeyFold


def secret(number: int) -> bytes:
    return bytes([number]) * 32


def seal_other(key: ContentKey, inside: ContentKey, author: PublicKey, member: PublicKey, exchange_key: bytes) -> bytes:
    """Seal another secret than the one of `key`, in a way that opens."""
    wrap = secrecy._wrap_key(exchange(secret(6), exchange_key), exchange_public(secret(6)), exchange_key)
    header = secrecy._key_header(key.pool, key.epoch, key.generation, key.commitment, author, member)
    box: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(inside.secret, header, bytes(24), wrap)
    return exchange_public(secret(6)) + box


class PrivatePool(Pool):
    """A pool whose people have a keyring each."""

    def __init__(self, electors: int = 2, workers: int = 2) -> None:
        super().__init__(electors=electors, workers=workers, private=True)
        self.view = View(self.id)
        self.evidence: list[SplitKey] = []
        self.rings = {person.key: Keyring(person.identity, self.id) for person in self.people}
        for operation in self.base:
            self.view.apply(operation)

    @property
    def keys(self) -> KeyFold:
        return self.view.keys

    @property
    def active(self) -> frozenset[PublicKey]:
        return frozenset(member for member in self.view.members.all() if self.view.members.active(member))

    def key(self, number: int, *, epoch: int = 0, generation: int = 0) -> ContentKey:
        return ContentKey(self.id, epoch, generation, secret(number))

    def offer(
        self, author: Author, key: ContentKey, members: Iterable[Author], *, inside: ContentKey | None = None
    ) -> Operation:
        """Sign an offer. With `inside`, a lie: it commits to `key` and seals another."""
        body = self.body(author, key, members)
        if inside is not None:
            recipients = self.keys.recipients(entry.member for entry in body.entries)
            body = replace(
                body,
                entries=tuple(
                    KeyEntry(member, seal_other(key, inside, author.key, member, exchange_key))
                    for member, exchange_key in recipients.items()
                ),
            )
        return author.sign(body, epoch=key.epoch)

    def body(self, author: Author, key: ContentKey, members: Iterable[Author]) -> ContentKeyBody:
        recipients = self.keys.recipients(member.key for member in members)
        (body,) = offer_bodies(key, author.key, recipients, secret(99))
        return body

    def prekey(self, author: Author, number: int) -> Operation:
        return author.sign(PrekeyBody(self.rings[author.key].add_prekey(secret(number))))

    def begin(self, epoch: int) -> None:
        """Let an epoch hold, with the terms and electors of the one before."""
        while self.view.epochs.number < epoch:
            self.view.epochs.add(self.spec, self.view.counting.rules)

    def standing(self, **changed: Any) -> Standing:
        gone = self.view.members.gone() | (self.active - changed.get("members", self.active))
        terms = {"epoch": 0, "electors": self.view.electors, "members": self.active, "gone": gone} | changed
        return Standing(self.id, **terms)

    def hear(self, *operations: Operation) -> None:
        """Fold operations, and let everybody take what is addressed to them."""
        for operation in operations:
            self.begin(operation.epoch)
            self.view.apply(operation)
            if isinstance(operation.body, ContentKeyBody):
                for member, ring in self.rings.items():
                    offer = self.keys.addressed(operation, member)
                    if offer is not None:
                        taken = ring.take(offer)
                        if isinstance(taken, SplitKey):
                            self.evidence.append(taken)

    def holders(self, key: ContentKey) -> set[int]:
        """Numbers of the people that hold a content key."""
        return {index for index, person in enumerate(self.people) if self.rings[person.key].get(key.commitment)}
