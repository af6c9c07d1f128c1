"""The hash table: only valid records, the newest of them, and never a stale copy."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from net_rig import start, until

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError
from converge_p2p.net.names import raw_peer_id

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("transport")]


class Numbered:
    """Records are `number:anything`; the number is the rank."""

    def rank(self, key, value):
        if value == b"explode":
            raise ZeroDivisionError
        number, separator, _ = value.partition(b":")
        return int(number) if separator and number.isdigit() else None


@asynccontextmanager
async def table():
    with trio.fail_after(30):
        settings = {"dht": True, "validators": {"converge": Numbered()}}
        async with start(1, **settings) as one, start(2, **settings) as two:
            await two.connect(one.addresses[0])
            await until(lambda: one._dht.peers == 1 and two._dht.peers == 1, "the routing tables are fed")
            yield one, two


async def test_b7_newer_record_replaces_the_copy_that_was_read_before():
    async with table() as (one, two):
        await one.put_record("/converge/x", b"1:old")
        assert await two.get_record("/converge/x") == b"1:old"
        await one.put_record("/converge/x", b"2:new")
        # stock answers from the copy that the first get or put left here
        two._dht._kad.value_store.put(b"/converge/x", b"1:old")
        assert await two.get_record("/converge/x") == b"2:new"
        assert await two.get_record("/converge/missing") is None


async def test_own_record_is_found_without_peers_and_not_lost_by_reading():
    with trio.fail_after(20):
        async with start(1, dht=True, validators={"converge": Numbered()}) as node:
            await node.put_record("/converge/x", b"1:own")
            for _ in range(2):
                assert await node.get_record("/converge/x") == b"1:own"


async def test_record_that_is_not_valid_is_neither_stored_nor_returned():
    async with table() as (one, two):
        for bad in (b"no number", b"explode"):
            with pytest.raises(LocalError):
                await one.put_record("/converge/x", bad)
            # past the own check, as an attacker would
            await one._dht._kad.value_store._store_at_peer(raw_peer_id(two.peer_id), b"/converge/x", bad)
            assert two._dht._kad.value_store.get(b"/converge/x") is None
        one._dht._kad.value_store.put(b"/converge/x", b"garbage")
        assert await two.get_record("/converge/x") is None
        assert await one.get_record("/converge/x") is None


async def test_older_record_does_not_replace_a_newer_one():
    async with table() as (one, two):
        await one.put_record("/converge/x", b"5:new")
        with pytest.raises(Conflict):
            await one.put_record("/converge/x", b"4:old")
        await two._dht._kad.value_store._store_at_peer(raw_peer_id(one.peer_id), b"/converge/x", b"4:old")
        assert await one.get_record("/converge/x") == b"5:new"


@pytest.mark.parametrize("key", ["x", "/other/x", "/converge", "converge/x"])
async def test_key_outside_of_the_namespaces_is_refused(key):
    async with start(1, dht=True, validators={"converge": Numbered()}) as node:
        with pytest.raises(LocalError):
            await node.put_record(key, b"1:x")


async def test_too_long_keys_and_records_are_refused():
    async with start(1, dht=True, validators={"converge": Numbered()}) as node:
        with pytest.raises(LimitExceeded):
            await node.put_record("/converge/" + "x" * limits.DHT_KEY_BYTES_MAX, b"1:x")
        with pytest.raises(LimitExceeded):
            await node.put_record("/converge/x", b"1:" + bytes(limits.DHT_RECORD_BYTES_MAX))


async def test_table_can_be_left_out():
    async with start(1, dht=False) as node:
        with pytest.raises(LocalError, match="no part in the hash table"):
            await node.get_record("/converge/x")


async def test_own_protocol_is_spoken_and_not_that_of_the_public_table():
    async with start(1, dht=True) as node:
        protocols = node._host.multiselect.get_protocols()
        assert "/converge/kad/1.0.0" in protocols
        assert not any(str(protocol).startswith("/ipfs/kad") for protocol in protocols)


async def test_b7_a_lookup_that_finds_only_what_is_older_keeps_the_own_newest():
    async with table() as (one, two):
        await one.put_record("/converge/x", b"1:old")
        one._dht._kad.value_store.put(b"/converge/x", b"2:new")
        # stock puts what it found in the place of what it has
        assert await one.get_record("/converge/x") == b"2:new"
        assert one._dht._kad.value_store.held(b"/converge/x") == b"2:new"
        # and whoever asks meanwhile is answered
        assert await two.get_record("/converge/x") == b"2:new"


async def test_a_claim_is_found_by_others_and_names_only_whoever_made_it():
    async with table() as (one, two):
        key = bytes(range(32))
        assert await two.claimants(key, 10) == ()
        assert await one.claim(key) == 1
        await until(lambda: two._dht._kad.provider_store.get_providers(key), "the claim is kept")
        assert await two.claimants(key, 10) == (one.peer_id,)
        with pytest.raises(LocalError):
            await one.claim(b"short")
        with pytest.raises(LocalError):
            await one.claimants(b"short", 1)
