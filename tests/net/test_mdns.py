"""Nodes on the same link: what is said there, who is believed, and how much is held of strangers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import dns.message
import pytest
import trio
import trio.testing
from hypothesis import given, strategies as st
from net_rig import seed

from converge_p2p.core import limits
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.types import PeerId
from converge_p2p.net import peer_id_of
from converge_p2p.net.reach.mdns import LinkSearch
from converge_p2p.net.reach.mdns_packets import Here, Question, Service

KEY = NetworkKey(bytes(range(32)))


def peer(number: int) -> PeerId:
    return peer_id_of(Identity.from_seed(seed(number)).public_key)


def address(host: str, number: int = 1, port: int = 4001) -> str:
    return f"/ip4/{host}/tcp/{port}/p2p/{peer(number)}"


@pytest.mark.parametrize("key", [None, KEY])
def test_one_says_where_it_is_and_another_hears_it(key: NetworkKey | None) -> None:
    one, other = Service(key), Service(key)
    said = [address(f"192.168.1.{number}") for number in range(limits.ADDRESSES_PER_PEER_MAX)]
    assert other.read(one.here(said)) == Here(tuple(said))
    assert other.read(one.question()) == Question()
    # its own word comes back from the link, and is nobody's
    assert one.read(one.here(said)) is None


def test_a_private_network_tells_others_nothing_but_that_it_is_there() -> None:
    member, outsider, neighbour = Service(KEY), Service(None), Service(NetworkKey(bytes(32)))
    packet = member.here([address("192.168.1.7")])
    for secret in (b"192.168.1.7", peer(1).encode(), KEY.secret, KEY.network.hex().encode(), b"4001"):
        assert secret not in packet
    assert outsider.read(packet) is None
    assert neighbour.read(packet) is None
    assert outsider.read(member.question()) is None
    assert member.read(outsider.here([address("192.168.1.7")])) is None


def test_two_starts_of_a_node_cannot_be_told_to_be_one_in_a_private_network() -> None:
    assert Service(KEY).here([address("192.168.1.7")]) != Service(KEY).here([address("192.168.1.7")])
    message = dns.message.from_wire(Service(KEY).here([address("192.168.1.7")]))
    again = dns.message.from_wire(Service(KEY).here([address("192.168.1.7")]))
    assert message.answer[1].name != again.answer[1].name


def test_what_was_sealed_with_another_key_or_changed_is_not_heard() -> None:
    packet = bytearray(Service(KEY).here([address("192.168.1.7")]))
    packet[-1] ^= 1
    assert Service(KEY).read(bytes(packet)) is None


def test_an_address_that_fits_into_no_record_is_left_out() -> None:
    long = f"/dns4/{'x' * 250}/tcp/1/p2p/{peer(1)}"
    assert Service(None).read(Service(None).here([long, address("192.168.1.7")])) == Here((address("192.168.1.7"),))
    assert Service(None).read(Service(None).here([])) is None


@given(st.binary(max_size=600))
def test_garbage_is_nobodys_word(garbage: bytes) -> None:
    assert Service(None).read(garbage) in (None, Question())


@given(st.data())
def test_a_damaged_packet_raises_nothing(data: st.DataObject) -> None:
    packet = bytearray(Service(None).here([address("192.168.1.7")]))
    for position in data.draw(st.lists(st.integers(0, len(packet) - 1), max_size=8)):
        packet[position] = data.draw(st.integers(0, 255))
    Service(None).read(bytes(packet))


def test_a_packet_that_is_too_long_is_not_read() -> None:
    assert Service(None).read(Service(None).question() + bytes(limits.MDNS_PACKET_BYTES_MAX)) is None


class Link:
    """A search that is told by hand what came from which host."""

    def __init__(self) -> None:
        self.found: list[tuple[PeerId, tuple[str, ...]]] = []
        self.counters: Counter[str] = Counter()
        self.search = LinkSearch(
            peer(99), None, self.counters, own_addresses=lambda: (), found=lambda *pair: self.found.append(pair)
        )

    def hear(self, host: str, *texts: str) -> None:
        self.search._hear(host, texts)


async def test_an_answer_speaks_only_for_the_host_that_it_comes_from(autojump_clock: Any) -> None:
    link = Link()
    link.hear("192.168.1.7", address("192.168.1.7"), address("10.0.0.1"), address("203.0.113.5", 2))
    assert link.found == [(peer(1), ("/ip4/192.168.1.7/tcp/4001",))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "/ip4/192.168.1.7/tcp/4001",
        "/ip4/192.168.1.7/udp/4001/quic-v1/p2p/" + peer(1),
        f"/ip4/192.168.1.7/tcp/4001/p2p/{peer(2)}/p2p-circuit/p2p/{peer(1)}",
        "/ip4/192.168.1.7/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        address("192.168.1.7", 99),
    ],
)
async def test_what_is_no_direct_address_of_another_node_is_not_taken(autojump_clock: Any, text: str) -> None:
    link = Link()
    link.hear("192.168.1.7", text)
    assert link.found == []


async def test_a_host_may_name_so_many_nodes_and_then_a_new_one_now_and_then(autojump_clock: Any) -> None:
    link = Link()
    burst = limits.MDNS_PEERS_PER_HOST_MAX
    for number in range(1, 60):
        link.hear("192.168.1.7", address("192.168.1.7", number))
    assert len(link.found) == burst
    assert link.counters["mdns_refused"] == 59 - burst
    # those it named are still heard, and another host is not kept out
    link.hear("192.168.1.7", address("192.168.1.7", 1))
    link.hear("192.168.1.8", address("192.168.1.8", 61))
    assert len(link.found) == burst + 2
    await trio.sleep(1 / limits.MDNS_NEW_PER_HOST_PER_SECOND_MAX)
    link.hear("192.168.1.7", address("192.168.1.7", 59))
    assert len(link.found) == burst + 3
    assert link.search.peers == burst + 1


async def test_of_many_hosts_the_last_are_held(autojump_clock: Any) -> None:
    link = Link()
    for number in range(2 * limits.MDNS_HOSTS_HELD_MAX):
        host = f"10.0.{number // 200}.{number % 200}"
        link.hear(host, address(host))
    assert len(link.search._by_host) == limits.MDNS_HOSTS_HELD_MAX
