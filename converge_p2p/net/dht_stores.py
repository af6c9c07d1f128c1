"""What a node of the hash table keeps for others, within bounds that keep what is near to it.

Knows: the library's two stores and their hooks. Must not know: what records and claims mean.
Source: libp2p kad-dht specification; fault B7 of `hardening` (a stale local copy hides what is newer), and stores that
forget the oldest, so that whoever puts enough pushes out everything.

A node is asked for keys that are near to its id. So when there is no room, what is farthest makes it: to push a record
out, somebody has to try keys until enough of them are nearer.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from libp2p.kad_dht.provider_store import ProviderRecord, ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from converge_p2p.core import limits

CLAIM_KEY_BYTES = 32
CLAIM_TTL_S = 3 * 3600.0
"""How long a claim counts; whoever still stands for it repeats it every hour."""

Better = Callable[[bytes, bytes, bytes], bool]
"""(Key, new value, old value) → whether the new one replaces the old one."""

looking_up: ContextVar[bytes | None] = ContextVar("looking_up", default=None)
"""The key that this task looks up elsewhere, for which the own copy is no answer."""


def _place(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest(), "big")


class NearValueStore(ValueStore):  # type: ignore[misc]
    """Keeps at most `limits.DHT_RECORDS_MAX` records, the nearest to the node; its own always."""

    def __init__(self, host: Any, local_peer_id: ID, better: Better) -> None:
        super().__init__(host=host, local_peer_id=local_peer_id)
        self.own: set[bytes] = set()
        self._better = better
        self._here = _place(local_peer_id.to_bytes())
        self._distances: dict[bytes, int] = {}

    def get(self, key: bytes) -> Any:
        """B7: the library answers from its own store for a day, without asking whether there is something newer."""
        return None if looking_up.get() == key else super().get(key)

    def held(self, key: bytes) -> bytes | None:
        """Return the own copy, also for whoever looks the key up."""
        record = super().get(key)
        return None if record is None else bytes(record.value)

    def put(self, key: bytes, value: bytes, validity: float = 0.0) -> None:
        """Keep a record that was put here, if there is room for it."""
        if self._has_room(key):
            super().put(key, value, validity)

    def put_record(self, key: bytes, record: Any) -> None:
        """Keep what a lookup found, unless it is older than what is here: the library replaces it all the same."""
        held = self.held(key)
        if (held is None or self._better(key, bytes(record.value), held)) and self._has_room(key):
            super().put_record(key, record)

    def _has_room(self, key: bytes) -> bool:
        if key in self.store:
            return True
        if len(self._distances) > 2 * limits.DHT_RECORDS_MAX:
            self._distances = {each: self._distances[each] for each in self.store if each in self._distances}
        self._distances[key] = self._here ^ _place(key)
        if len(self.store) < limits.DHT_RECORDS_MAX:
            return True
        farthest = max((each for each in self.store if each not in self.own), key=self._distance, default=None)
        if farthest is None or (self._distance(farthest) < self._distance(key) and key not in self.own):
            return False
        self.remove(farthest)
        self.local_keys.discard(farthest)
        return True

    def _distance(self, key: bytes) -> int:
        distance = self._distances.get(key)
        if distance is None:
            distance = self._distances[key] = self._here ^ _place(key)
        return distance

    def _evict_if_full(self) -> None:
        """See `_has_room`: the library would forget the oldest."""


class NearProviderStore(ProviderStore):  # type: ignore[misc]
    """Keeps claims to provide something under a key: a few for each key and of each peer, for three hours."""

    def __init__(self, host: Any, peer_routing: Any) -> None:
        super().__init__(host=host, peer_routing=peer_routing)
        self._here = _place(host.get_id().to_bytes())
        self._by_peer: Counter[str] = Counter()
        self.refused = 0

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Keep a claim, or count it as refused."""
        name = str(provider.peer_id)
        claims = self.providers.get(key, {})
        if len(key) != CLAIM_KEY_BYTES or (name not in claims and not self._make_room(key, name)):
            self.refused += 1
            return
        if name not in claims:
            self._by_peer[name] += 1
        addresses = [address for address in provider.addrs if len(address.to_bytes()) <= limits.ADDRESS_BYTES_MAX]
        self.providers.setdefault(key, {})[name] = ProviderRecord(
            PeerInfo(provider.peer_id, addresses[: limits.ADDRESSES_PER_PEER_MAX])
        )

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        """Return the claims for a key that still count."""
        since = time.time() - CLAIM_TTL_S
        return [
            PeerInfo(record.peer_id, record.addresses)
            for record in self.providers.get(key, {}).values()
            if record.timestamp > since
        ]

    def cleanup_expired(self) -> None:
        """Forget claims that were not repeated."""
        since = time.time() - CLAIM_TTL_S
        for key, claims in list(self.providers.items()):
            for name in [name for name, record in claims.items() if record.timestamp <= since]:
                self._drop(key, name)

    def _make_room(self, key: bytes, name: str) -> bool:
        if self._by_peer[name] >= limits.DHT_CLAIMS_PER_PEER_MAX:
            return False
        claims = self.providers.get(key, {})
        if len(claims) >= limits.DHT_CLAIMS_PER_KEY_MAX:
            stalest = min(claims, key=lambda each: claims[each].timestamp)
            # one that is repeated every hour stays: who comes late must not push out who is there
            if claims[stalest].timestamp > time.time() - CLAIM_TTL_S / 2:
                return False
            self._drop(key, stalest)
        while len(self.providers) >= limits.DHT_CLAIM_KEYS_MAX or self._by_peer.total() >= limits.DHT_CLAIMS_MAX:
            if key in self.providers and self._by_peer.total() < limits.DHT_CLAIMS_MAX:
                return True
            farthest = max(self.providers, key=self._distance)
            if self._distance(farthest) <= self._distance(key):
                return False
            for each in list(self.providers[farthest]):
                self._drop(farthest, each)
        return True

    def _distance(self, key: bytes) -> int:
        return self._here ^ _place(key)

    def _drop(self, key: bytes, name: str) -> None:
        claims = self.providers[key]
        del claims[name]
        if not claims:
            del self.providers[key]
        self._by_peer[name] -= 1
        if not self._by_peer[name]:
            del self._by_peer[name]
