"""The fold of a private pool's keys: which content keys were offered, by whom, to whom; which prekey a member uses.

Knows: whose offers count. Must not know: any secret (see `model.keyring`), or when a new key is due (see
`replica.rotation`).
Source: `docs/protocol.md`, private pools. Everything here is a set that grows (forks and cuts aside), or the first or
last operation of an author's own chain, so the order of arrival does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from converge_p2p.core.errors import NoContentKey, SignatureError
from converge_p2p.core.model.keyring import Keyring, SealedKey
from converge_p2p.core.model.secrecy import ContentKey, exchange_key_of
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, PrekeyBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.epochs import Epochs

NOTHING_CERTIFIED: Final[Mapping[int, bytes]] = MappingProxyType({})
"""Of a pool whose epochs fix no content key."""


class _Offer(NamedTuple):
    seq: int
    operation: OperationId
    commitment: bytes
    members: tuple[PublicKey, ...]


class Offered(NamedTuple):
    """A content key that counts.

    Attributes:
        epoch, generation, commitment: which.
        authors: electors that handed it out, sorted.
        members: everybody it was sealed to by them.
    """

    epoch: int
    generation: int
    commitment: bytes
    authors: tuple[PublicKey, ...]
    members: frozenset[PublicKey]


class SplitOffer(NamedTuple):
    """Evidence that everybody can check: an elector committed to two keys of one generation.

    Attributes:
        culprit: the elector.
        epoch, generation: of both.
        first, second: the operations; the first one counts.
    """

    culprit: PublicKey
    epoch: int
    generation: int
    first: OperationId
    second: OperationId


class KeyFold:
    """What the log says about content keys and prekeys. Secrets are not in it."""

    def __init__(self) -> None:
        self._offers: dict[tuple[int, int], dict[PublicKey, list[_Offer]]] = {}
        self._prekeys: dict[PublicKey, list[tuple[int, bytes]]] = {}

    # ------------------------------------------------------------ applying

    def apply(self, operation: Operation, epochs: Epochs) -> None:
        """Fold an operation of a member; called in chain order.

        Only electors of the epoch that a CONTENT_KEY body names may offer, and only for an epoch not after the one the
        operation names, so whoever can judge the operation knows that epoch.
        """
        if not epochs.private:
            return
        body, author = operation.body, operation.author
        epoch = epochs.find(body.epoch) if isinstance(body, ContentKeyBody) else None
        if isinstance(body, PrekeyBody):
            self._prekeys.setdefault(author, []).append((operation.seq, body.exchange_key))
        elif isinstance(body, ContentKeyBody) and epoch is not None:
            if author not in epoch.electors or body.epoch > operation.epoch:
                return
            offers = self._offers.setdefault((body.epoch, body.generation), {})
            members = tuple(entry.member for entry in body.entries)
            offers.setdefault(author, []).append(_Offer(operation.seq, operation.id, body.commitment, members))

    def void(self, author: PublicKey, seq: int) -> None:
        """Take back what an author that forked, or was removed with a cut, did from `seq` on."""
        for key in [key for key, offers in self._offers.items() if author in offers]:
            offers = self._offers[key]
            offers[author] = [offer for offer in offers[author] if offer.seq < seq]
            if not offers[author]:
                del offers[author]
            if not offers:
                del self._offers[key]
        if author in self._prekeys:
            self._prekeys[author] = [(at, key) for at, key in self._prekeys[author] if at < seq]
            if not self._prekeys[author]:
                del self._prekeys[author]

    # ------------------------------------------------------------ content keys

    def offered(
        self, epoch: int, generation: int, certified: Mapping[int, bytes] = NOTHING_CERTIFIED
    ) -> tuple[Offered, ...]:
        """Return the content keys of a generation that count, by commitment.

        Of an elector its first commitment counts. In generation 0 of an epoch whose certificate fixes a commitment,
        only that one does. More than one key can count when electors offer at the same time; contents name theirs.

        Args:
            epoch, generation: which.
            certified: epoch → the commitment that its certificate fixes, empty or absent if it fixes none.
        """
        fixed = certified.get(epoch, b"") if generation == 0 else b""
        authors: dict[bytes, list[PublicKey]] = {}
        members: dict[bytes, set[PublicKey]] = {}
        for author, offers in self._offers.get((epoch, generation), {}).items():
            commitment = offers[0].commitment
            if fixed and commitment != fixed:
                continue
            authors.setdefault(commitment, []).append(author)
            for offer in offers:
                if offer.commitment == commitment:
                    members.setdefault(commitment, set()).update(offer.members)
        return tuple(
            Offered(epoch, generation, key, tuple(sorted(authors[key])), frozenset(members[key]))
            for key in sorted(authors)
        )

    def first_commitment(self, epoch: int, generation: int, author: PublicKey) -> bytes | None:
        """Return what an elector committed to first in a generation, which is what counts of it, or None."""
        offers = self._offers.get((epoch, generation), {}).get(author)
        return offers[0].commitment if offers else None

    def latest(
        self, floor: int = 0, certified: Mapping[int, bytes] = NOTHING_CERTIFIED
    ) -> Iterator[tuple[Offered, ...]]:
        """Return the generations in which a key counts, the newest first, down to epoch `floor`."""
        for epoch, generation in sorted(self._offers, reverse=True):
            if epoch < floor:
                return
            found = self.offered(epoch, generation, certified)
            if found:
                yield found

    def addressed(
        self, operation: Operation, member: PublicKey, certified: Mapping[int, bytes] = NOTHING_CERTIFIED
    ) -> SealedKey | None:
        """Return what an operation that was applied hands to a member, if it counts and names the member.

        This is what goes to `Keyring.take`: an offer that does not count must not fill the ring.
        """
        body, author = operation.body, operation.author
        if not isinstance(body, ContentKeyBody):
            return None
        sealed = body.entry_for(member)
        offers = self._offers.get((body.epoch, body.generation), {}).get(author, [])
        fixed = certified.get(body.epoch, b"") if body.generation == 0 else b""
        if sealed is None or not any(offer.operation == operation.id for offer in offers):
            return None
        if body.commitment != offers[0].commitment or (fixed and body.commitment != fixed):
            return None
        return SealedKey(author, body.epoch, body.generation, body.commitment, sealed)

    def split(self) -> tuple[SplitOffer, ...]:
        """Return every elector that committed to two keys of one generation, in order."""
        found = []
        for (epoch, generation), by_author in sorted(self._offers.items()):
            for author, offers in sorted(by_author.items()):
                for offer in offers:
                    if offer.commitment != offers[0].commitment:
                        found.append(SplitOffer(author, epoch, generation, offers[0].operation, offer.operation))
                        break
        return tuple(found)

    # ------------------------------------------------------------ prekeys

    def exchange_key(self, member: PublicKey) -> bytes:
        """Return the X25519 key to seal to for a member: its last prekey, or the one of its Ed25519 key.

        Raises:
            SignatureError: no prekey, and the Ed25519 key has no X25519 form.
        """
        prekeys = self._prekeys.get(member)
        return prekeys[-1][1] if prekeys else exchange_key_of(member)

    def prekeys_at(self, member: PublicKey) -> list[int]:
        """Where in the member's chain its prekeys stand."""
        return [seq for seq, _ in self._prekeys.get(member, ())]

    def recipients(self, members: Iterable[PublicKey]) -> dict[PublicKey, bytes]:
        """Return member → X25519 key, without those nothing can be sealed to.

        Args:
            members: the active ones; a frozen author is none, so it gets no key.
        """
        found = {}
        for member in sorted(set(members)):
            try:
                found[member] = self.exchange_key(member)
            except SignatureError:
                continue
        return found

    # ------------------------------------------------------------ comparing

    def to_plain(self) -> list[Any]:
        """Return the whole state as plain values: equal on all replicas that hold the same operations."""
        offers = [
            [
                epoch,
                generation,
                author,
                [[item.seq, item.operation, item.commitment, list(item.members)] for item in own],
            ]
            for (epoch, generation), by_author in sorted(self._offers.items())
            for author, own in sorted(by_author.items())
        ]
        prekeys = [[author, [list(item) for item in own]] for author, own in sorted(self._prekeys.items())]
        return [offers, prekeys]


def writing_key(
    keys: KeyFold, keyring: Keyring, *, floor: int = 0, certified: Mapping[int, bytes] = NOTHING_CERTIFIED
) -> ContentKey:
    """Return the content key to seal with: the newest that counts and is held.

    Args:
        keys: the fold.
        keyring: the local secrets.
        floor: the last epoch that removed a member. What is written from then on must not be sealed with an older key,
            even if that means to wait.
        certified: as in `KeyFold.offered`.

    Raises:
        NoContentKey: no such key is here (yet).
    """
    for generation in keys.latest(floor, certified):
        for offered in generation:
            key = keyring.get(offered.commitment)
            if key is not None and (key.epoch, key.generation) == (offered.epoch, offered.generation):
                return key
    raise NoContentKey(
        f"no content key of epoch {floor} or later is here",
        hint="wait until an elector has handed one to this member",
    )
