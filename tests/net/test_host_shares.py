"""What one address gets: connections, handshakes, and new connections in a time."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import trio
from libp2p.abc import ConnectionType
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from net_rig import assert_serves, linked, quick, start, until

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError
from converge_p2p.net import host_shares
from converge_p2p.net.hardening import Counters
from converge_p2p.net.host_shares import THIS_MACHINE, HostShares, Source, source_of
from converge_p2p.net.intake import Handshakes
from converge_p2p.net.names import raw_peer_id

OUTSIDE, OTHER = Source("192.0.2.7"), Source("192.0.2.8")
RELAY = ID.from_string("12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust")


class _From:
    """Stands for what carries a connection from an address."""

    def __init__(self, host: str) -> None:
        self._host = host

    def get_remote_address(self) -> tuple[str, int]:
        return self._host, 4001


def _shares(**changes: int) -> tuple[HostShares, Counters]:
    counters = Counters()
    return HostShares(counters, **{"per_host": 3, "on_this_machine": 5, **changes}), counters


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("127.0.0.9", THIS_MACHINE),
        ("::1", THIS_MACHINE),
        ("::ffff:127.0.0.1", THIS_MACHINE),
    ],
)
def test_a_connection_counts_for_its_address_or_network(host, source):
    assert source_of(RawConnection(_From(host), False)) == source


def test_a_circuit_counts_for_its_relay():
    address = Multiaddr(f"/p2p/{RELAY}/p2p-circuit")
    raw = RawConnection(_From("192.0.2.7"), False, ConnectionType.RELAYED, [address])
    assert source_of(raw) == f"relay {RELAY}"


async def test_a_process_of_this_machine_may_use_any_of_its_addresses(monkeypatch):
    monkeypatch.setattr(host_shares, "is_loopback", lambda _host: False)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, await trio.open_tcp_stream(*listener.socket.getsockname()), await listener.accept() as taken:
        assert source_of(RawConnection(TrioTCPStream(taken), False)) == THIS_MACHINE
        assert source_of(RawConnection(_From("127.0.0.1"), False)) == "127.0.0.1"


def test_one_address_gets_its_share_and_others_still_get_theirs():
    shares, counters = _shares()
    with ExitStack() as most:
        for _ in range(2):
            assert not shares.full(OUTSIDE)
            most.enter_context(shares.held(OUTSIDE))
        with shares.held(OUTSIDE):
            assert shares.full(OUTSIDE)
            assert not shares.full(OTHER)
            assert counters["connections_over_share"] == 1
        assert not shares.full(OUTSIDE)
        assert shares.most(relays=False) == 2
    assert shares.most(relays=False) == 0


def test_what_comes_through_one_relay_is_bounded_whatever_addresses_get():
    shares, _ = _shares(per_host=1000)
    source = Source(f"relay {RELAY}")
    with ExitStack() as circuits:
        for _ in range(limits.CIRCUITS_PER_RELAY_MAX):
            assert not shares.full(source)
            circuits.enter_context(shares.held(source))
        assert shares.full(source)
        assert (shares.most(relays=True), shares.most(relays=False)) == (limits.CIRCUITS_PER_RELAY_MAX, 0)


async def test_an_address_that_connects_again_and_again_has_to_wait(autojump_clock):
    shares, counters = _shares()
    for _ in range(limits.CONNECTS_PER_HOST_BURST_MAX):
        assert shares.admits(OUTSIDE)
    assert not shares.admits(OUTSIDE)
    assert counters["connections_too_fast"] == 1
    assert shares.admits(OTHER)
    await trio.sleep(1 / limits.CONNECTS_PER_HOST_PER_SECOND_MAX)
    assert shares.admits(OUTSIDE)
    assert not shares.admits(OUTSIDE)
    # all nodes of a test start at once
    assert all(shares.admits(THIS_MACHINE) for _ in range(2 * limits.CONNECTS_PER_HOST_BURST_MAX))


async def test_addresses_without_end_leave_no_trace():
    shares, _ = _shares()
    for number in range(2 * limits.CONNECTING_HOSTS_HELD_MAX):
        assert shares.admits(Source(f"2001:db8:{number:x}::/64"))
    assert len(shares._rates) == limits.CONNECTING_HOSTS_HELD_MAX
    assert not shares._held


async def test_handshakes_of_one_address_give_up_their_own():
    counters = Counters()
    handshakes = Handshakes(counters)
    with ExitStack() as stack:
        honest = stack.enter_context(handshakes.one(OTHER))
        flood = [stack.enter_context(handshakes.one(OUTSIDE)) for _ in range(limits.HANDSHAKES_PER_HOST_MAX + 3)]
        assert counters["handshakes_given_up"] == 3
        assert [scope.cancel_called for scope in flood[:4]] == [True, True, True, False]
        assert not honest.cancel_called
        assert len(handshakes) == limits.HANDSHAKES_PER_HOST_MAX + 1


def test_by_default_all_places_are_for_this_machine_too():
    assert quick().connections_on_this_machine == quick().peers_max


@pytest.mark.network
@pytest.mark.usefixtures("transport")
async def test_connections_over_the_share_are_refused_before_anything_is_said():
    async with start(1, connections_on_this_machine=2) as node:
        async with start(2, listen=()) as first, start(3, listen=()) as second:
            for visitor in (first, second):
                await visitor.connect(node.addresses[0])
                await linked(visitor, node)
            refused = node.counters["connections_over_share"]
            port = int(node.addresses[0].split("/")[4])
            for _ in range(20):
                async with await trio.open_tcp_stream("127.0.0.1", port) as link:
                    with trio.fail_after(5):
                        # stock, the greeting of the negotiation comes first
                        assert await link.receive_some() == b""
            # a visitor that looks for more peers may have dialled once more
            assert node.counters["connections_over_share"] >= refused + 20
            async with start(4, listen=()) as third:
                with pytest.raises(NetworkError, match="cannot reach peer"):
                    await third.connect(node.addresses[0], timeout_s=3)
            assert {peer.peer_id for peer in node.peers()} == {first.peer_id, second.peer_id}
            # what this node dials is not counted
            async with start(5) as dialled:
                await node.connect(dialled.addresses[0])
                await linked(node, dialled)
            assert raw_peer_id(first.peer_id) in node._host.get_connected_peers()
        await until(lambda: not node.peers(), "all are gone")
        await assert_serves(node)
