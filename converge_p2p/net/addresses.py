"""Multiaddrs: reading them, what to tell others, and a bounded book of where peers were or may be.

Knows: the text of addresses. Must not know: how an address is dialled.
Source: multiformats/multiaddr; the address book follows the idea of the peer table in Bitcoin's addrman, much reduced.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from multiaddr import Multiaddr

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, ConfigError
from converge_p2p.core.types import PeerId
from converge_p2p.net.names import public_key_of

CIRCUIT: Final = "/p2p-circuit"
"""Ends a transport address that leads through a relay: `/ip4/…/tcp/…/p2p/<relay>/p2p-circuit`."""

_LOCAL: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
"""RFC 1918, 6598, 3927, 4193, 4291. Python's own `is_private` counts networks for documentation, too."""

_HOST_PROTOCOLS = ("ip4", "ip6", "dns", "dns4", "dns6")


def parse_listen(text: str) -> Multiaddr:
    """Read an address to listen on: `/ip4|ip6/…/tcp/…`.

    Raises:
        ConfigError: anything else.
    """
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
    except Exception as error:
        raise ConfigError(f"{text!r} is not a multiaddr: {error}", hint="write /ip4/0.0.0.0/tcp/4001") from error
    if len(names) != 2 or names[0] not in ("ip4", "ip6") or names[1] != "tcp":
        raise ConfigError(f"cannot listen on {text!r}: only TCP is supported", hint="write /ip4/0.0.0.0/tcp/4001")
    return address


def split_peer_address(text: str) -> tuple[PeerId, str]:
    """Split `/ip4/…/tcp/…/p2p/…` into the peer id and the transport address.

    Raises:
        ConfigError: not such an address, or the peer id is not one of an Ed25519 key.
    """
    hint = "write /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…, as printed by `converge-node id`"
    if len(text) > limits.ADDRESS_BYTES_MAX:
        raise ConfigError(f"address of {len(text)} bytes; at most {limits.ADDRESS_BYTES_MAX} allowed", hint=hint)
    transport, separator, peer = text.rpartition("/p2p/")
    if not separator:
        raise ConfigError(f"{text!r} names no peer: /p2p/… is missing", hint=hint)
    try:
        names = [protocol.name for protocol in Multiaddr(transport).protocols()]
        public_key_of(PeerId(peer))
    except CodecError as error:
        raise ConfigError(f"{text!r}: {error}", hint=hint) from error
    except Exception as error:
        raise ConfigError(f"{text!r} is not a multiaddr: {error}", hint=hint) from error
    direct, circuit = ["tcp"], ["tcp", "p2p", "p2p-circuit"]
    if not names or names[0] not in _HOST_PROTOCOLS or names[1:] not in (direct, circuit):
        known = "/ip4|ip6|dns|dns4|dns6/…/tcp/…, and the same behind a relay, …/p2p/…/p2p-circuit"
        raise ConfigError(f"{text!r}: only {known} can be dialled", hint=hint)
    if names[1:] == circuit:
        relay, _ = split_peer_address(transport.removesuffix(CIRCUIT))
        if relay == peer:
            raise ConfigError(f"{text!r}: a peer cannot be reached through itself", hint=hint)
    return PeerId(peer), transport


def is_circuit(transport: str) -> bool:
    """Say whether a transport address leads through a relay."""
    return transport.endswith(CIRCUIT)


def split_circuit(transport: str) -> tuple[PeerId, str]:
    """Split the address of a circuit, which was checked before, into the relay and where that is dialled."""
    return split_peer_address(transport.removesuffix(CIRCUIT))


def tcp_port(transport: str) -> int:
    """Return the port of a transport address that was checked before; of the relay, if it leads through one."""
    return int(transport.split("/")[4])


def host_of(transport: str) -> str:
    """Return the host part of a transport address that was checked before; of the relay, if it leads through one."""
    return transport.split("/")[2]


def is_loopback(transport: str) -> bool:
    """Say whether the address only means something on one machine."""
    try:
        return ipaddress.ip_address(host_of(transport)).is_loopback
    except ValueError:
        return host_of(transport) == "localhost"


def is_unspecified(transport: str) -> bool:
    """Say whether the address is a wildcard, which cannot be dialled."""
    try:
        return ipaddress.ip_address(host_of(transport)).is_unspecified
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Say whether an IP address means something in one network only: at home, in an office, on one machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in _LOCAL if network.version == address.version)


def observed_address(host: str, port: int) -> str | None:
    """Return the transport address of a host as seen on a connection, or None if it is no IP address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return f"/ip{address.version}/{address}/tcp/{port}"


@dataclass(slots=True)
class _Entry:
    addresses: tuple[str, ...]
    reached: bool = False
    failures: int = 0
    not_before: float = 0.0


class AddressBook:
    """Where peers may be reached: `limits.KNOWN_PEERS_MAX` peers, `limits.ADDRESSES_PER_PEER_MAX` addresses each.

    Addresses are hints from anybody: the handshake proves who answers, so a wrong one costs a dial and no more. When
    the book is full, the least useful entry makes room: never reached before, most failures, oldest.
    """

    def __init__(self) -> None:
        self._entries: dict[PeerId, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> bool:
        """Add transport addresses of a peer, behind those already known.

        Returns:
            Whether anything was new.
        """
        entry = self._entries.get(peer)
        old = entry.addresses if entry else ()
        fresh = [address for address in dict.fromkeys(addresses) if address not in old and not is_unspecified(address)]
        if not fresh:
            return False
        if entry is None:
            if len(self._entries) >= limits.KNOWN_PEERS_MAX:
                self._evict()
            entry = self._entries[peer] = _Entry(())
        keep = limits.ADDRESSES_PER_PEER_MAX
        # an address that worked stays in front; of the others the newest are kept, because peers move
        head = old[:1] if entry.reached else ()
        entry.addresses = (*head, *fresh, *(address for address in old if address not in head))[:keep]
        return True

    def reached(self, peer: PeerId, address: str) -> None:
        """Note that a dial of this address worked."""
        self.learn(peer, (address,))
        entry = self._entries[peer]
        others = (known for known in entry.addresses if known != address)
        entry.addresses = (address, *others)[: limits.ADDRESSES_PER_PEER_MAX]
        entry.reached, entry.failures, entry.not_before = True, 0, 0.0

    def failed(self, peer: PeerId, not_before: float) -> None:
        """Note that no address of the peer worked; it is no candidate before the given time."""
        entry = self._entries.get(peer)
        if entry is not None:
            entry.failures += 1
            entry.not_before = not_before

    def postpone(self, peer: PeerId, not_before: float) -> None:
        """Make a peer no candidate before the given time, without blaming it."""
        entry = self._entries.get(peer)
        if entry is not None:
            entry.not_before = not_before

    def forget(self, peer: PeerId) -> bool:
        """Know no address of a peer any more; return whether one was known."""
        return self._entries.pop(peer, None) is not None

    def failures(self, peer: PeerId) -> int:
        """Failed dials since the last one that worked."""
        entry = self._entries.get(peer)
        return entry.failures if entry else 0

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Known transport addresses, best first."""
        entry = self._entries.get(peer)
        return entry.addresses if entry else ()

    def candidates(self, now: float, exclude: Collection[PeerId]) -> list[PeerId]:
        """Peers that may be dialled now: reached before first, then fewest failures."""
        due = [
            (not entry.reached, entry.failures, peer)
            for peer, entry in self._entries.items()
            if peer not in exclude and entry.not_before <= now
        ]
        return [peer for _, _, peer in sorted(due)]

    def next_due(self, exclude: Collection[PeerId]) -> float | None:
        """Return the earliest time at which a peer becomes a candidate, or None if there is none."""
        return min((entry.not_before for peer, entry in self._entries.items() if peer not in exclude), default=None)

    def good(self, connected: Collection[PeerId]) -> tuple[str, ...]:
        """Addresses with `/p2p/…` to be saved for the next start: those that worked, and those of connected peers.

        A peer that dialled us was never dialled from here, but it lives, and it told where it listens.
        """
        return tuple(
            f"{entry.addresses[0]}/p2p/{peer}"
            for peer, entry in self._entries.items()
            if entry.addresses and (entry.reached or peer in connected)
        )

    def _evict(self) -> None:
        # the dictionary keeps insertion order, and max() takes the first of equals: the oldest
        worst = max(self._entries, key=lambda peer: (not self._entries[peer].reached, self._entries[peer].failures))
        del self._entries[worst]
