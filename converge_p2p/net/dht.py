"""The distributed hash table, with the library's faults repaired (B7 of `hardening`).

Knows: Kademlia as the library has it. Must not know: what records mean (see `config.RecordValidator`).
Source: libp2p kad-dht specification. Records are hints: they are validated when stored, when chosen and when read.
Claims to provide something under a key are less: anybody may make one, for itself alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import libp2p.kad_dht.common
import libp2p.kad_dht.kad_dht
import libp2p.kad_dht.peer_routing
import libp2p.kad_dht.provider_store
import libp2p.kad_dht.value_store
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.records.utils import InvalidRecordType
from libp2p.records.validator import NamespacedValidator, Validator

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, Conflict, LimitExceeded, LocalError, NetworkError
from converge_p2p.core.types import PeerId
from converge_p2p.net.config import RecordValidator
from converge_p2p.net.dht_stores import CLAIM_KEY_BYTES, NearProviderStore, NearValueStore, looking_up
from converge_p2p.net.hardening import Counters, log, reset_quietly
from converge_p2p.net.names import peer_name, public_key_of

PROTOCOL = TProtocol("/converge/kad/1.0.0")

_STREAM_TIMEOUT_S = 30.0
_FEED_ATTEMPTS = 20
_FEED_PAUSE_S = 0.5
_ASKED_AT_ONCE = 8
_ASK_TIMEOUT_S = 5.0


class _ValidatorAdapter(Validator):  # type: ignore[misc]
    """Gives a `RecordValidator` the shape that the library expects, and never raises where it must not."""

    def __init__(self, validator: RecordValidator, counters: Counters) -> None:
        self._validator = validator
        self._counters = counters

    def rank(self, key: str, value: bytes) -> int | None:
        """Return the rank, or None also for records that are too long or upset the validator."""
        if len(key.encode()) > limits.DHT_KEY_BYTES_MAX or len(value) > limits.DHT_RECORD_BYTES_MAX:
            return None
        try:
            return self._validator.rank(key, value)
        except Exception:  # noqa: BLE001 - the edge: counted and logged below
            self._counters["handler_errors"] += 1
            log.exception("the validator failed on record %s", key)
            return None

    def validate(self, key: str, value: bytes) -> None:
        """Raise to refuse a record; the library resets the stream that brought it."""
        if self.rank(key, value) is None:
            self._counters["dht_records_refused"] += 1
            raise InvalidRecordType(f"record {key!r} is not valid")

    def select(self, key: str, values: list[bytes]) -> int:
        """Return the index of the best record: of equals the last, because only that refreshes the expiry."""
        best, best_rank = 0, -1
        for index, value in enumerate(values):
            rank = self.rank(key, value)
            if rank is not None and rank >= best_rank:
                best, best_rank = index, rank
        return best


class HardenedKadDht(KadDHT):  # type: ignore[misc]
    """The library's node of the table, with more and shorter inbound streams."""

    def __init__(self, host: Any, validators: NamespacedValidator) -> None:
        super().__init__(
            host,
            DHTMode.SERVER,
            validator=validators,
            validator_changed=True,
            # by default records without a registered namespace are accepted unseen
            strict_validation=True,
            # by default more than two nodes of one data centre do not fit one bucket
            max_peers_per_subnet=0,
        )
        # by default as many records as a day brings, up to 50,000 of any size, and claims without any bound
        self.value_store = NearValueStore(host, host.get_id(), self._better)
        self.provider_store = NearProviderStore(host, self.peer_routing)
        # by default one peer with twelve idle streams stops the server
        self._inbound_limiter = trio.CapacityLimiter(limits.DHT_STREAMS_MAX)

    def _better(self, key: bytes, new: bytes, old: bytes) -> bool:
        return int(self.validator.select(key.decode(), [old, new])) == 1

    async def handle_stream(self, stream: INetStream) -> None:
        """Serve a stream for a limited time."""
        # a connection that a lookup opened inherits what the lookup does not want to see; who asks here does
        looking_up.set(None)
        with trio.move_on_after(_STREAM_TIMEOUT_S) as scope:
            await super().handle_stream(stream)
        if scope.cancelled_caught:
            await reset_quietly(stream)


class Dht:
    """The hash table as the rest of the network room uses it."""

    def __init__(self, host: Any, validators: Mapping[str, RecordValidator], counters: Counters) -> None:
        _use_own_protocol()
        self._host = host
        self._adapters = {namespace: _ValidatorAdapter(each, counters) for namespace, each in validators.items()}
        self._kad = HardenedKadDht(host, NamespacedValidator(dict(self._adapters), strict_validation=True))
        self._counters = counters
        self._nursery: trio.Nursery | None = None
        self._feeding: set[ID] = set()

    @property
    def services(self) -> Sequence[Any]:
        """The services to run."""
        return (self._kad,)

    @property
    def peers(self) -> int:
        """Number of peers in the routing table."""
        return int(self._kad.get_routing_table_size())

    def start(self, nursery: trio.Nursery) -> None:
        """Give the table a nursery for its tasks."""
        self._nursery = nursery

    def connection_up(self, raw: ID) -> None:
        """Nothing in the library puts a connected peer into the routing table, so this does."""
        if self._nursery is not None and raw not in self._feeding:
            self._feeding.add(raw)
            self._nursery.start_soon(self._feed, raw)

    async def _feed(self, raw: ID) -> None:
        try:
            for _ in range(_FEED_ATTEMPTS):
                # the library only takes peers whose protocols it knows, and they arrive some time after the connection
                await trio.sleep(_FEED_PAUSE_S)
                if not self._host.get_network().get_connections(raw) or self._kad.routing_table.peer_in_table(raw):
                    return
                await self._kad.add_peer(raw)
        except Exception as error:  # noqa: BLE001 - the edge: the table is optional, and the next connection may do better
            log.debug("no place in the routing table for %s: %r", raw, error)
        finally:
            self._feeding.discard(raw)

    async def put(self, key: str, value: bytes) -> None:
        """See `Network.put_record`."""
        adapter = self._adapter(key)
        if len(value) > limits.DHT_RECORD_BYTES_MAX:
            raise LimitExceeded("DHT_RECORD_BYTES_MAX", f"record of {len(value)} bytes is too long")
        if adapter.rank(key, value) is None:
            raise LocalError(f"the record for {key!r} is not valid", hint="its validator refused it")
        store, raw_key = self._kad.value_store, key.encode()
        store.own.add(raw_key)
        held = store.held(raw_key)
        if held is not None and adapter.select(key, [held, value]) == 0:
            raise Conflict(f"a newer record for {key!r} is known")
        store.put(raw_key, value)
        await self._tell_nearest(raw_key, lambda peer: store._store_at_peer(peer, raw_key, value))

    async def get(self, key: str) -> bytes | None:
        """See `Network.get_record`."""
        adapter = self._adapter(key)
        token = looking_up.set(key.encode())
        try:
            found: bytes | None = await self._kad.get_value(key)
        except Exception as error:
            raise NetworkError(f"cannot look up record {key!r}: {error}") from error
        finally:
            looking_up.reset(token)
        # the own copy last: something newer may have been put here while others were asked
        values = [value for value in (found, self._kad.value_store.held(key.encode())) if value is not None]
        values = [value for value in values if adapter.rank(key, value) is not None]
        return values[adapter.select(key, values)] if values else None

    async def claim(self, key: bytes) -> int:
        """See `Network.claim`."""
        _check_claim_key(key)
        store = self._kad.provider_store
        return await self._tell_nearest(key, lambda peer: store._send_add_provider(peer, key))

    async def claimants(self, key: bytes, limit: int) -> tuple[PeerId, ...]:
        """See `Network.claimants`."""
        _check_claim_key(key)
        store = self._kad.provider_store
        named: Counter[PeerId] = Counter()

        def learn(claims: Sequence[Any]) -> None:
            # no one answer may fill the list, which may be made up: those that several nodes name come first
            for raw in {claim.peer_id for claim in claims[: limits.DHT_CLAIMS_PER_KEY_MAX]}:
                try:
                    peer = peer_name(raw)
                    public_key_of(peer)
                except CodecError:
                    self._counters["dht_claims_refused"] += 1
                else:
                    named[peer] += 1

        async def ask(peer: ID) -> None:
            claims, _ = await store._get_providers_from_peer_with_closers(peer, key)
            learn(claims)

        learn(store.get_providers(key))
        await self._each_nearest(key, BUCKET_SIZE, ask)
        return tuple(peer for peer, _ in named.most_common(limit))

    async def _tell_nearest(self, key: bytes, tell: Callable[[ID], Awaitable[bool]]) -> int:
        """Tell the nodes nearest to a key something; return how many took it.

        The library tells twenty, most of which have to be dialled for it. As what is told is told again every hour,
        fewer will do, at a third of the cost; whoever looks it up asks twenty.
        """
        told = 0

        async def tell_one(peer: ID) -> None:
            nonlocal told
            told += bool(await tell(peer))

        await self._each_nearest(key, limits.DHT_REPLICAS, tell_one)
        return told

    async def _each_nearest(self, key: bytes, count: int, speak: Callable[[ID], Awaitable[None]]) -> None:
        """Speak with each of the nodes nearest to a key, some at a time, and with none for long.

        Raises:
            NetworkError: the nearest nodes could not be looked up. That one of them fails is no error.
        """
        limiter = trio.CapacityLimiter(_ASKED_AT_ONCE)

        async def speak_to(peer: ID) -> None:
            async with limiter:
                with trio.move_on_after(_ASK_TIMEOUT_S):
                    try:
                        await speak(peer)
                    except Exception as error:  # noqa: BLE001 - the edge: any peer, any failure
                        log.debug("%s failed at a key: %r", peer, error)

        try:
            nearest = await self._kad.peer_routing.find_closest_peers_network(key, count)
        except Exception as error:
            raise NetworkError(f"the hash table failed at key {key.hex()[:12]}: {error}") from error
        async with trio.open_nursery() as nursery:
            for peer in nearest:
                if peer != self._host.get_id():
                    nursery.start_soon(speak_to, peer)

    def _adapter(self, key: str) -> _ValidatorAdapter:
        parts = key.split("/")
        adapter = self._adapters.get(parts[1]) if len(parts) >= 3 and not parts[0] else None
        if adapter is None:
            raise LocalError(f"record key {key!r} is in no known namespace", hint="write /namespace/name")
        if len(key.encode()) > limits.DHT_KEY_BYTES_MAX:
            # the library would store it and never find it again
            raise LimitExceeded("DHT_KEY_BYTES_MAX", f"record key of {len(key.encode())} bytes is too long")
        return adapter


def _check_claim_key(key: bytes) -> None:
    if len(key) != CLAIM_KEY_BYTES:
        raise LocalError(f"a key to claim has {len(key)} bytes; expected {CLAIM_KEY_BYTES}")


def _use_own_protocol() -> None:
    """The library ignores its own setting for the protocol id, so the constant is replaced wherever it was imported.

    Without it the node would join the public IPFS table.
    """
    for module in (
        libp2p.kad_dht.common,
        libp2p.kad_dht.kad_dht,
        libp2p.kad_dht.peer_routing,
        libp2p.kad_dht.provider_store,
        libp2p.kad_dht.value_store,
    ):
        module.PROTOCOL_ID = PROTOCOL
