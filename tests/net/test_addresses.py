"""Addresses: only those that can be used are taken, and the book of peers stays small and useful."""

from __future__ import annotations

import pytest

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, ConfigError
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import PeerId, PublicKey
from converge_p2p.net.addresses import AddressBook, observed_address, parse_listen, split_peer_address
from converge_p2p.net.names import peer_id_of, public_key_of

PEER = peer_id_of(Identity.from_seed(b"s" * 32).public_key)


def test_peer_id_and_key_are_convertible() -> None:
    key = Identity.from_seed(b"s" * 32).public_key
    assert public_key_of(peer_id_of(key)) == key
    # computed with another implementation: the peer id of the key of 32 zero bytes
    assert peer_id_of(PublicKey(bytes(32))) == "12D3KooW9pNAk8aiBuGVQtWRdbkLmo5qVL3e2h5UxbN2Nz9ttwiw"


@pytest.mark.parametrize("text", ["", "12D3KooW", "0OIl", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"])
def test_text_that_is_no_peer_id_of_an_ed25519_key(text: str) -> None:
    with pytest.raises(CodecError):
        public_key_of(PeerId(text))


def test_peer_address_is_split() -> None:
    assert split_peer_address(f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}") == (PEER, "/ip4/192.0.2.7/tcp/4001")
    assert split_peer_address(f"/dns4/node.example/tcp/1/p2p/{PEER}")[1] == "/dns4/node.example/tcp/1"


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.7/tcp/4001",
        "192.0.2.7:4001",
        f"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{PEER}",
        f"/ip4/192.0.2.777/tcp/4001/p2p/{PEER}",
        "/ip4/192.0.2.7/tcp/4001/p2p/notapeer",
        f"/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/4001/{'x' * 300}/p2p/{PEER}",
    ],
)
def test_address_that_cannot_be_dialled_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_peer_address(text)
    assert "/p2p/12D3Koo" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["/ip4/0.0.0.0/udp/4001", "/ip4/0.0.0.0", "/dns4/x/tcp/1", "4001", "/ip4/0.0.0.0/tcp/4001/ws"]
)
def test_address_that_cannot_be_listened_on_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_listen(text)


def test_observed_address_of_a_mapped_host() -> None:
    assert observed_address("::ffff:192.0.2.7", 5) == "/ip4/192.0.2.7/tcp/5"
    assert observed_address("2001:db8::1", 5) == "/ip6/2001:db8::1/tcp/5"
    assert observed_address("not an address", 5) is None


def peer(number: int) -> PeerId:
    return PeerId(f"peer{number:05}")


def test_book_prefers_what_worked_and_waits_after_failures() -> None:
    book = AddressBook()
    for number in range(3):
        book.learn(peer(number), (f"/ip4/192.0.2.{number}/tcp/1",))
    book.reached(peer(2), "/ip4/192.0.2.2/tcp/1")
    book.failed(peer(0), not_before=50.0)
    assert book.candidates(10.0, exclude=()) == [peer(2), peer(1)]
    assert book.candidates(60.0, exclude={peer(2)}) == [peer(1), peer(0)]
    assert book.next_due({peer(1), peer(2)}) == 50.0
    assert book.good(()) == (f"/ip4/192.0.2.2/tcp/1/p2p/{peer(2)}",)


def test_book_keeps_the_address_that_worked_in_front_of_any_number_of_claims() -> None:
    book = AddressBook()
    book.reached(peer(1), "/ip4/192.0.2.1/tcp/1")
    for port in range(100):
        book.learn(peer(1), (f"/ip4/192.0.2.9/tcp/{port}",))
    addresses = book.addresses(peer(1))
    assert addresses[0] == "/ip4/192.0.2.1/tcp/1"
    assert len(addresses) == limits.ADDRESSES_PER_PEER_MAX
    assert "/ip4/192.0.2.9/tcp/99" in addresses


def test_full_book_drops_the_least_useful_and_never_what_worked() -> None:
    book = AddressBook()
    book.reached(peer(0), "/ip4/192.0.2.1/tcp/1")
    for number in range(1, limits.KNOWN_PEERS_MAX):
        book.learn(peer(number), ("/ip4/192.0.2.2/tcp/1",))
    book.failed(peer(7), not_before=0.0)
    book.learn(peer(100_000), ("/ip4/192.0.2.3/tcp/1",))
    assert len(book) == limits.KNOWN_PEERS_MAX
    assert book.addresses(peer(7)) == ()
    for number in range(200_000, 203_000):
        book.learn(peer(number), ("/ip4/192.0.2.3/tcp/1",))
    assert len(book) == limits.KNOWN_PEERS_MAX
    assert book.addresses(peer(0)) == ("/ip4/192.0.2.1/tcp/1",)


def test_book_learns_nothing_from_wildcards_and_repetitions() -> None:
    book = AddressBook()
    assert not book.learn(peer(1), ("/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/1"))
    assert book.learn(peer(1), ("/ip4/192.0.2.1/tcp/1",))
    assert not book.learn(peer(1), ("/ip4/192.0.2.1/tcp/1",))
