"""What a node keeps for others in the hash table: what is near stays, whoever puts how much."""

from __future__ import annotations

import hashlib
import time

import multiaddr
import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from converge_p2p.core import limits
from converge_p2p.net import dht_stores
from converge_p2p.net.dht_stores import CLAIM_TTL_S, NearProviderStore, NearValueStore, looking_up
from converge_p2p.net.names import peer_id_of, raw_peer_id

PAIR = create_new_key_pair(b"s" * 32)


class Host:
    def get_private_key(self):
        return PAIR.private_key

    def get_id(self):
        return ID.from_pubkey(PAIR.public_key)


def values():
    host = Host()
    # as records of one key are ranked by their bytes, higher or equal replaces
    return NearValueStore(host, host.get_id(), lambda _key, new, old: new >= old)


def claims():
    return NearProviderStore(Host(), None)


def distance(key):
    def place(data):
        return int.from_bytes(hashlib.sha256(data).digest(), "big")

    return place(key) ^ place(Host().get_id().to_bytes())


def key(number):
    return hashlib.sha256(b"%d" % number).digest()


def peer(number):
    return PeerInfo(raw_peer_id(peer_id_of(key(number))), [multiaddr.Multiaddr("/ip4/10.0.0.1/tcp/1")])


def test_a_flood_of_records_pushes_out_what_is_far_and_never_what_is_near_or_own(monkeypatch):
    monkeypatch.setattr(limits, "DHT_RECORDS_MAX", 16)
    store = values()
    keys = sorted((key(number) for number in range(200)), key=distance)
    near, own, flood = keys[:8], keys[-1], keys[8:-1]
    store.own.add(own)
    store.put(own, b"own")
    for each in near:
        store.put(each, b"near")
    for each in flood:
        store.put_record(each, store.store[own][0])
    assert len(store.store) == 16
    assert set(store.store) == {own, *near, *flood[:7]}
    # nearer ones still find room, and the farthest makes it
    store.remove(near[0])
    store.put(near[0], b"again")
    assert store.held(near[0]) == b"again"
    assert len(store._distances) <= 2 * limits.DHT_RECORDS_MAX + 1


def test_b7_what_a_lookup_found_replaces_nothing_newer_and_the_own_copy_answers_nobody_who_looks_it_up():
    store = values()
    store.put(b"k", b"2")
    old = values()
    old.put(b"k", b"1")
    store.put_record(b"k", old.get(b"k"))
    assert store.held(b"k") == b"2", "the library puts what it found in the place of anything"
    token = looking_up.set(b"k")
    assert store.get(b"k") is None
    assert store.held(b"k") == b"2"
    looking_up.reset(token)
    assert store.get(b"k").value == b"2"


def test_claims_are_bounded_for_each_peer_and_each_key():
    store = claims()
    for number in range(limits.DHT_CLAIMS_PER_PEER_MAX + 10):
        store.add_provider(key(number), peer(1))
    assert store.size() == limits.DHT_CLAIMS_PER_PEER_MAX
    for number in range(2, limits.DHT_CLAIMS_PER_KEY_MAX + 10):
        store.add_provider(key(0), peer(number))
    assert len(store.get_providers(key(0))) == limits.DHT_CLAIMS_PER_KEY_MAX
    # repeating one takes no further place
    store.add_provider(key(0), peer(1))
    assert store.size() == limits.DHT_CLAIMS_PER_PEER_MAX + limits.DHT_CLAIMS_PER_KEY_MAX - 1
    assert store.refused == 10 + 9
    store.add_provider(b"short", peer(1))
    assert store.refused == 20


def test_a_claim_that_is_not_repeated_makes_room_and_is_forgotten(monkeypatch):
    store = claims()
    now = [time.time()]
    monkeypatch.setattr(dht_stores.time, "time", lambda: now[0])
    for number in range(limits.DHT_CLAIMS_PER_KEY_MAX):
        store.add_provider(key(0), peer(number))
    now[0] += CLAIM_TTL_S / 2 + 1
    store.add_provider(key(0), peer(1000))
    assert len(store.get_providers(key(0))) == limits.DHT_CLAIMS_PER_KEY_MAX
    now[0] += CLAIM_TTL_S / 2
    assert [info.peer_id for info in store.get_providers(key(0))] == [peer(1000).peer_id]
    store.cleanup_expired()
    assert store.size() == 1
    assert store._by_peer.total() == 1


def test_a_flood_of_claims_by_many_names_keeps_what_is_near(monkeypatch):
    monkeypatch.setattr(limits, "DHT_CLAIM_KEYS_MAX", 16)
    store = claims()
    keys = sorted((key(number) for number in range(200)), key=distance)
    for each in keys[:8]:
        store.add_provider(each, peer(1))
    for number, each in enumerate(keys[8:]):
        store.add_provider(each, peer(number + 2))
    assert set(store.providers) == set(keys[:16])
    assert store._by_peer.total() == 16


@pytest.mark.parametrize("most", [1, 5])
def test_a_flood_of_claims_is_bounded_in_all(monkeypatch, most):
    monkeypatch.setattr(limits, "DHT_CLAIMS_MAX", most)
    store = claims()
    for number in range(20):
        store.add_provider(key(number), peer(number))
    assert store.size() == most
