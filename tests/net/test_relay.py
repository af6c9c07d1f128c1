"""Reaching a node through another one: places at relays, circuits, what a relay gives away, and what it cannot do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from net_rig import Recorder, linked, seed, start, until

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.net import THIS_MACHINE, Network, RelayBounds, RelayUse, acquaintance, peer_id_of
from converge_p2p.net.addresses import is_circuit
from converge_p2p.net.fast.stream_wire import StreamWire
from converge_p2p.net.fast.yamux import FastYamux
from converge_p2p.net.names import raw_peer_id
from converge_p2p.net.reach import relay_wire
from converge_p2p.net.reach.circuit import circuit_connection
from converge_p2p.net.reach.messages import encode_message, read_message
from converge_p2p.net.reach.relay_wire import HOP, Status

pytestmark = pytest.mark.network

GENEROUS = RelayBounds()


def circuit_of(network: Network) -> str:
    """The address of a node through its relay, with the peer id."""
    return next(address for address in network.addresses if "/p2p-circuit/" in address)


@asynccontextmanager
async def hidden_behind(bounds: RelayBounds = GENEROUS, **changes: Any) -> AsyncIterator[tuple[Network, Network]]:
    """A relay, and a node that listens on nothing and has a place at it."""
    changes = {"peers_wanted": 0, **changes}
    async with (
        start(1, relay_service=bounds, **changes) as relay,
        start(
            2,
            listen=(),
            relay_client=RelayUse.ON,
            relay_service=GENEROUS,
            bootstrap=(relay.addresses[0],),
            **changes,
        ) as hidden,
    ):
        await until(lambda: hidden.reachability.relays == (relay.peer_id,), "a place at the relay")
        yield relay, hidden


def connection(one: Network, other: Network) -> Any:
    """The multiplexed connection from one node to another."""
    return one._host.get_network().get_connections(raw_peer_id(other.peer_id))[0].muxed_conn


async def test_a_node_that_listens_on_nothing_is_reached_through_a_relay(transport: Any) -> None:
    seen = Recorder()
    async with hidden_behind() as (relay, hidden), start(3, seen, peers_wanted=0) as visitor:
        assert all(is_circuit(address.rpartition("/p2p/")[0]) for address in hidden.addresses)
        assert await visitor.connect(circuit_of(hidden)) == hidden.peer_id
        await linked(visitor, hidden)
        assert await visitor.request(hidden.peer_id, b"abc") == b"cba"
        assert await hidden.request(visitor.peer_id, bytes(range(256)) * 1000) == (bytes(range(256)) * 1000)[::-1]
        info = next(peer for peer in visitor.peers() if peer.peer_id == hidden.peer_id)
        assert info.relayed
        assert not next(peer for peer in visitor.peers() if peer.peer_id == relay.peer_id).relayed
        assert relay.counters["relay_circuits_opened"] == 1
        hidden.send(visitor.peer_id, b"frame")
        await until(lambda: (hidden.peer_id, b"frame") in seen.frames, "a frame of the replication stream")


async def test_who_comes_over_a_relay_is_counted_where_the_relay_is(
    transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hidden_behind() as (relay, hidden), start(3, peers_wanted=0) as visitor:
        await visitor.connect(circuit_of(hidden))
        assert hidden.acquaintance.host(relay.peer_id) == THIS_MACHINE
        # over a relay of this machine he may come from anywhere: he is no process of its owner
        assert hidden.acquaintance.host(visitor.peer_id) == ""
        monkeypatch.setattr(acquaintance, "is_loopback", lambda _address: False)
        assert hidden.acquaintance.host(relay.peer_id) == "127.0.0.1"
        assert hidden.acquaintance.host(visitor.peer_id) == "127.0.0.1"


async def test_a_relayed_connection_has_the_fast_session_when_the_transport_is_fast() -> None:
    async with hidden_behind() as (_, hidden), start(3, peers_wanted=0) as visitor:
        await visitor.connect(circuit_of(hidden))
        for one, other in ((visitor, hidden), (hidden, visitor)):
            muxed = connection(one, other)
            assert isinstance(muxed, FastYamux)
            assert isinstance(muxed.secured_conn._wire, StreamWire)


async def test_more_than_a_window_goes_through_a_circuit_both_ways_at_once(transport: Any) -> None:
    async with hidden_behind() as (_, hidden), start(3, peers_wanted=0) as visitor:
        await visitor.connect(circuit_of(hidden))
        payload = bytes(limits.DIRECT_BYTES_MAX)
        answers = []

        async def ask(one: Network, other: Network) -> None:
            answers.extend([await one.request(other.peer_id, payload, 60.0) for _ in range(4)])

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, visitor, hidden)
                nursery.start_soon(ask, hidden, visitor)
        assert answers == [payload] * 8


async def test_closing_a_relayed_connection_frees_its_place_at_the_relay_and_both_ends(transport: Any) -> None:
    async with hidden_behind() as (relay, hidden), start(3, peers_wanted=0) as visitor:
        for _ in range(3):
            await visitor.connect(circuit_of(hidden))
            assert relay._reach.relay_service.circuits == 1
            await visitor.disconnect(hidden.peer_id)
            await until(lambda: relay._reach.relay_service.circuits == 0, "the circuit to end at the relay")
            await until(
                lambda: hidden._reach.relays._circuits == visitor._reach.relays._circuits == 0, "both ends to be free"
            )
            await until(lambda: all(p.peer_id != visitor.peer_id for p in hidden.peers()), "the other end to notice")


async def test_the_circuit_ends_when_the_relay_does_and_the_addresses_with_it(transport: Any) -> None:
    async with start(3, peers_wanted=0) as visitor, hidden_behind() as (relay, hidden):
        await visitor.connect(circuit_of(hidden))
        await relay.disconnect(hidden.peer_id)
        await until(lambda: all(p.peer_id != hidden.peer_id for p in visitor.peers()), "the circuit to break")
        # the hidden node comes back to its bootstrap peer, and has a place again
        await until(
            lambda: hidden.counters["relay_places_lost"] + hidden.counters["relay_places_renewed"] >= 1,
            "the place to be asked for again",
        )
        await until(lambda: hidden.reachability.relays == (relay.peer_id,), "a new place")
        await visitor.connect(circuit_of(hidden))
        assert await visitor.request(hidden.peer_id, b"abc") == b"cba"


async def test_a_relay_that_saw_no_connection_for_a_moment_is_asked_again() -> None:
    """The new connection came up at this end before the old one was found closed, and after that at the relay."""
    async with hidden_behind() as (relay, hidden), start(3, peers_wanted=0) as visitor:
        relay._reach.connection_down(raw_peer_id(hidden.peer_id))
        hidden.connection_fewer(raw_peer_id(relay.peer_id))
        await until(lambda: hidden.counters["relay_places_renewed"] == 1, "the place to be asked for again")
        await visitor.connect(circuit_of(hidden))


async def test_dead_direct_addresses_do_not_keep_the_relay_from_being_used() -> None:
    async with hidden_behind() as (_, hidden), start(3, peers_wanted=0) as visitor:
        circuit = circuit_of(hidden).rpartition("/p2p/")[0]
        # TEST-NET-1 swallows everything, as a router does with what it does not know
        dead = tuple(f"/ip4/192.0.2.{number}/tcp/4001" for number in range(1, 6))
        visitor._book.learn(hidden.peer_id, (*dead, circuit))
        with trio.fail_after(2.9):
            # less than one timeout
            await visitor.reach(hidden.peer_id)


async def test_neighbours_learn_the_relayed_address_and_connect_by_themselves() -> None:
    async with hidden_behind(peers_wanted=8) as (relay, hidden), start(3, bootstrap=(relay.addresses[0],)) as visitor:
        await linked(visitor, hidden)
        assert next(peer for peer in visitor.peers() if peer.peer_id == hidden.peer_id).relayed


async def ask_relay(network: Network, relay: Network, message: bytes) -> HopMessage:
    """Send bytes to the relay protocol and return the answer."""
    stream = await network._host.new_stream(raw_peer_id(relay.peer_id), [HOP])
    try:
        await stream.write(message)
        with trio.fail_after(10):
            return await read_message(stream, HopMessage)
    finally:
        await stream.reset()


async def test_a_relay_grants_so_many_places_and_no_more(transport: Any) -> None:
    async with hidden_behind(RelayBounds(reservations=1)) as (relay, hidden), start(3, peers_wanted=0) as other:
        await other.connect(relay.addresses[0])
        answer = await ask_relay(other, relay, relay_wire.reserve())
        assert answer.status == Status.RESERVATION_REFUSED
        # who has one renews it
        assert (await ask_relay(hidden, relay, relay_wire.reserve())).status == Status.OK
        assert len(relay._reach.relay_service) == 1


async def test_a_relay_grants_so_many_places_to_one_host_and_no_more() -> None:
    async with hidden_behind(RelayBounds(reservations_per_host=1)) as (relay, _), start(3, peers_wanted=0) as other:
        await other.connect(relay.addresses[0])
        answer = await ask_relay(other, relay, relay_wire.reserve())
        assert answer.status == Status.RESERVATION_REFUSED


async def test_a_place_ends_with_its_time_and_is_renewed_before() -> None:
    async with hidden_behind(RelayBounds(reservation_s=3600)) as (relay, hidden):
        relay._reach.relay_service._bounds = RelayBounds(reservation_s=0.01)
        assert (await ask_relay(hidden, relay, relay_wire.reserve())).status == Status.OK
        await until(lambda: not len(relay._reach.relay_service), "the place to end")
        async with start(3, peers_wanted=0) as visitor:
            with pytest.raises(NetworkError, match="no place at it"):
                await visitor.connect(circuit_of(hidden))
        relay._reach.relay_service._bounds = GENEROUS
        place = hidden._reach.relays._places[raw_peer_id(relay.peer_id)]
        hidden._reach.relays._places[raw_peer_id(relay.peer_id)] = type(place)(place.addresses, 0.0, place.ends_at)
        hidden._reach.relays.look_again()
        await until(lambda: hidden.counters["relay_places_renewed"] == 1, "the place to be renewed")
        assert len(relay._reach.relay_service) == 1


async def test_a_relay_carries_so_many_circuits_of_a_peer_and_no_more(transport: Any) -> None:
    async with (
        hidden_behind(RelayBounds(circuits_per_peer=1)) as (relay, hidden),
        start(3, peers_wanted=0) as visitor,
        start(4, peers_wanted=0) as late,
    ):
        await visitor.connect(circuit_of(hidden))
        with pytest.raises(NetworkError, match="as many connections as it may"):
            await late.connect(circuit_of(hidden))
        assert relay.counters["relay_requests_refused"] == 1
        await visitor.disconnect(hidden.peer_id)
        await until(lambda: relay._reach.relay_service.circuits == 0, "the circuit to end")
        await late.connect(circuit_of(hidden))


async def test_a_circuit_that_has_carried_what_it_may_is_cut(transport: Any) -> None:
    bounds = RelayBounds(circuit_bytes=100_000)
    async with hidden_behind(bounds) as (relay, hidden), start(3, peers_wanted=0) as visitor:
        await visitor.connect(circuit_of(hidden))
        with pytest.raises(NetworkError):
            await visitor.request(hidden.peer_id, bytes(200_000))
        assert relay.counters["relay_circuits_spent"] >= 1
        await until(lambda: all(peer.peer_id != hidden.peer_id for peer in visitor.peers()), "the end of the circuit")


async def test_a_circuit_that_lasted_as_long_as_it_may_is_cut() -> None:
    async with hidden_behind(RelayBounds(circuit_s=0.5)) as (relay, hidden), start(3, peers_wanted=0) as visitor:
        await visitor.connect(circuit_of(hidden))
        await until(lambda: relay.counters["relay_circuits_expired"] == 1, "the relay to cut the circuit")
        await until(lambda: all(peer.peer_id != hidden.peer_id for peer in visitor.peers()), "the end of the circuit")


async def test_a_circuit_goes_no_faster_than_it_may() -> None:
    bounds = RelayBounds(circuit_bytes_per_second=100_000)
    async with hidden_behind(bounds) as (_, hidden), start(3, peers_wanted=0) as visitor:
        await visitor.connect(circuit_of(hidden))
        with pytest.raises(NetworkError, match="did not answer"):
            # would take four seconds
            await visitor.request(hidden.peer_id, bytes(400_000), 1.5)


async def test_no_circuit_without_a_place_and_none_to_who_is_not_there(transport: Any) -> None:
    async with hidden_behind() as (relay, _), start(3, peers_wanted=0) as visitor, start(4, peers_wanted=0) as plain:
        await plain.connect(relay.addresses[0])
        with pytest.raises(NetworkError, match="no place at it"):
            await visitor.connect(f"{relay.addresses[0]}/p2p-circuit/p2p/{plain.peer_id}")
        stranger = peer_id_of(Identity.from_seed(seed(9)).public_key)
        with pytest.raises(NetworkError, match="no place at it"):
            await visitor.connect(f"{relay.addresses[0]}/p2p-circuit/p2p/{stranger}")


async def test_a_node_that_is_no_relay_says_so() -> None:
    async with start(1, peers_wanted=0) as plain, start(3, peers_wanted=0) as visitor:
        stranger = peer_id_of(Identity.from_seed(seed(9)).public_key)
        with pytest.raises(NetworkError, match="is no relay"):
            await visitor.connect(f"{plain.addresses[0]}/p2p-circuit/p2p/{stranger}")


async def test_no_relay_request_is_taken_over_a_circuit() -> None:
    async with (
        hidden_behind() as (_, hidden),
        start(3, peers_wanted=0) as visitor,
    ):
        await visitor.connect(circuit_of(hidden))
        answer = await ask_relay(visitor, hidden, relay_wire.reserve())
        assert answer.status == Status.PERMISSION_DENIED


async def test_an_offer_from_who_is_not_ones_relay_is_refused() -> None:
    async with start(1, peers_wanted=0) as one, start(2, peers_wanted=0) as other:
        await one.connect(other.addresses[0])
        stream = await one._host.new_stream(raw_peer_id(other.peer_id), [relay_wire.STOP])
        await stream.write(relay_wire.offer(raw_peer_id(one.peer_id), relay_wire.CircuitLimit()))
        with trio.fail_after(10):
            answer = await read_message(stream, StopMessage)
        assert relay_wire.status_of(answer) is Status.PERMISSION_DENIED
        assert other.counters["circuits_refused"] == 1


async def test_a_relay_cannot_pass_itself_off_as_the_peer() -> None:
    """The relay answers the circuit itself, with its own key."""
    async with start(1, peers_wanted=0) as liar, start(3, peers_wanted=0) as visitor:
        victim = peer_id_of(Identity.from_seed(seed(9)).public_key)

        async def answer_myself(stream: Any) -> None:
            await read_message(stream, HopMessage)
            await stream.write(relay_wire.hop_status(Status.OK))
            raw = circuit_connection(stream, raw_peer_id(liar.peer_id), initiator=False)
            await liar._host.get_network()._do_handle_inbound_connection(raw, raw.get_transport_addresses()[0], None)

        liar._host.set_stream_handler(HOP, answer_myself)
        with pytest.raises(NetworkError, match="did not prove itself"):
            await visitor.connect(f"{liar.addresses[0]}/p2p-circuit/p2p/{victim}")
        assert all(peer.peer_id != victim for peer in visitor.peers())
        assert visitor._reach.relays._circuits == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff\x7f",
        b"\x05hello",
        b"\x00",
        encode_message(HopMessage(type=HopMessage.CONNECT)),
        relay_wire.hop_status(Status.OK),
        b"\xff" * 20_000,
    ],
)
async def test_garbage_to_a_relay_ends_its_stream_and_is_counted(garbage: bytes) -> None:
    async with hidden_behind() as (relay, hidden), start(3, peers_wanted=0) as visitor:
        await visitor.connect(relay.addresses[0])
        stream = await visitor._host.new_stream(raw_peer_id(relay.peer_id), [HOP])
        await stream.write(garbage)
        await until(lambda: relay.counters["relay_requests_broken"] == 1, "the garbage to be counted")
        assert relay.counters["violations"] == 1
        await visitor.connect(circuit_of(hidden))
        assert await visitor.request(hidden.peer_id, b"abc") == b"cba"


async def test_a_flood_of_requests_is_refused_after_its_burst() -> None:
    async with hidden_behind() as (relay, _), start(3, peers_wanted=0) as visitor:
        await visitor.connect(relay.addresses[0])
        statuses = [
            (await ask_relay(visitor, relay, relay_wire.reserve())).status
            for _ in range(limits.RELAY_REQUESTS_BURST_MAX + 8)
        ]
        assert statuses.count(Status.OK) <= limits.RELAY_REQUESTS_BURST_MAX + 4
        assert statuses[-1] == Status.RESOURCE_LIMIT_EXCEEDED


async def test_a_relay_that_never_answers_costs_a_timeout_and_no_more() -> None:
    async with start(1, peers_wanted=0) as mute, start(3, peers_wanted=0) as visitor:

        async def say_nothing(_stream: Any) -> None:
            await trio.sleep_forever()

        mute._host.set_stream_handler(HOP, say_nothing)
        stranger = peer_id_of(Identity.from_seed(seed(9)).public_key)
        with trio.fail_after(15), pytest.raises(NetworkError, match="no answer through relay"):
            await visitor.connect(f"{mute.addresses[0]}/p2p-circuit/p2p/{stranger}", 2.0)


async def test_two_peers_that_are_each_said_to_be_behind_the_other_do_not_wait_for_ever() -> None:
    async with start(3, peers_wanted=0) as visitor:
        one, other = (peer_id_of(Identity.from_seed(seed(number)).public_key) for number in (8, 9))
        visitor._book.learn(one, (f"/ip4/127.0.0.1/tcp/1/p2p/{other}/p2p-circuit",))
        visitor._book.learn(other, (f"/ip4/127.0.0.1/tcp/1/p2p/{one}/p2p-circuit",))
        failures = []

        async def reach(peer: Any) -> None:
            try:
                await visitor.reach(peer)
            except NetworkError as error:
                failures.append(error)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reach, one)
                nursery.start_soon(reach, other)
        assert len(failures) == 2


async def test_a_private_network_holds_through_relays(transport: Any) -> None:
    key, other_key = NetworkKey(bytes(32)), NetworkKey(bytes([1]) * 32)
    async with hidden_behind(network_key=key) as (relay, hidden):
        async with start(3, peers_wanted=0, network_key=key) as member:
            await member.connect(circuit_of(hidden))
            assert await member.request(hidden.peer_id, b"abc") == b"cba"
        for stranger_key in (None, other_key):
            async with start(4, peers_wanted=0, network_key=stranger_key) as stranger:
                with pytest.raises(NetworkError):
                    await stranger.connect(circuit_of(hidden))
                assert relay.counters["strangers_refused"] >= 1


async def test_a_relay_that_lets_a_stranger_in_does_not_let_him_into_the_private_network() -> None:
    """The relay is a member gone bad: it carries a circuit of somebody who has no key."""
    async with hidden_behind(network_key=NetworkKey(bytes(32))) as (relay, hidden):
        raw = raw_peer_id(hidden.peer_id)
        stream = await relay._host.new_stream(raw, [relay_wire.STOP])
        await stream.write(relay_wire.offer(ID(b"\x00\x24\x08\x01\x12\x20" + bytes(32)), relay_wire.CircuitLimit()))
        answer = await read_message(stream, StopMessage)
        assert relay_wire.status_of(answer) is Status.OK
        # what a host without the network's key says first
        await stream.write(b"\x13/multistream/1.0.0\n" + bytes(100))
        await until(lambda: hidden.counters["strangers_refused"] == 1, "the stranger to be refused")


def test_the_protocol_names_are_those_of_the_specification() -> None:
    assert (
        TProtocol("/libp2p/circuit/relay/0.2.0/hop"),
        TProtocol("/libp2p/circuit/relay/0.2.0/stop"),
    ) == (relay_wire.HOP, relay_wire.STOP)


async def test_who_tells_others_of_the_addresses_hears_that_they_changed() -> None:
    calls = []
    async with (
        start(1, relay_service=GENEROUS) as relay,
        # nobody dials again: the address would be back before the change is seen
        start(2, listen=(), peers_wanted=0, relay_client=RelayUse.ON) as hidden,
    ):
        hidden.when_moved = lambda: calls.append(hidden.addresses)
        await hidden.connect(relay.addresses[0])
        await until(lambda: calls, "the new address")
        assert calls[-1] == hidden.addresses != ()
        await hidden.disconnect(relay.peer_id)
        await until(lambda: calls[-1] == (), "the address to go")
