"""How much of a node one address gets: its connections, its handshakes under way, and how fast it makes new ones.

Knows: where a connection comes from. Must not know: who is at its other end, which nothing has proven yet.
Source: docs/threat-model.md. New names cost nothing and new addresses do, so what is given before a name is proven is
given by address. All is decided before the first byte is read.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NewType

import trio
from libp2p.network.connection.raw_connection import RawConnection

from converge_p2p.core import limits
from converge_p2p.net.framing import TokenBucket
from converge_p2p.net.hardening import Counters
from converge_p2p.net.reach.circuit import host_of_connection, is_relayed, relay_of

Source = NewType("Source", str)
"""An IPv4 address, the 64-bit prefix that an IPv6 host owns, this machine, or `relay <peer id>`."""

THIS_MACHINE: Final = Source("this machine")
_RELAY: Final = "relay "


def source_of(raw: RawConnection) -> Source:
    """Return where a connection that comes in is counted.

    A circuit does not show the address of its other end, so it counts for its relay. A process of this machine may use
    any of the machine's addresses: then both ends have the same one, which the kernel takes from nobody else.
    """
    if is_relayed(raw):
        return Source(f"{_RELAY}{relay_of(raw)}")
    host = host_of_connection(raw)
    if not host:
        # no TCP connection; all of its kind share one place
        return Source("")
    remote = raw.get_remote_address()
    if remote is not None and (remote[0] == _own_end(raw) or is_loopback(remote[0])):
        return THIS_MACHINE
    return Source(host)


def is_loopback(text: str) -> bool:
    """Say whether an IP address is one that a machine has for itself."""
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _own_end(raw: Any) -> str | None:
    carrier = getattr(getattr(raw, "stream", None), "stream", None)
    if not isinstance(carrier, trio.SocketStream):
        return None
    try:
        return str(carrier.socket.getsockname()[0])
    except OSError:
        return None


class HostShares:
    """Counts what comes in by where it comes from. What this node dialled is its own choice, and not counted."""

    def __init__(self, counters: Counters, *, per_host: int, on_this_machine: int) -> None:
        """Begin with nobody.

        Args:
            counters: where refusals are counted.
            per_host: connections of one address.
            on_this_machine: connections of all processes of this machine together.
        """
        self._counters = counters
        self._per_host = per_host
        self._on_this_machine = on_this_machine
        self._held: Counter[Source] = Counter()
        self._rates: OrderedDict[Source, TokenBucket] = OrderedDict()

    def admits(self, source: Source) -> bool:
        """Say whether a new connection may begin its handshake; counts it, and counts why not."""
        if self.full(source):
            return False
        # this machine's own processes start and end as their owner likes, fifty at a time in a test
        if source == THIS_MACHINE or self._rate(source).try_take(1, trio.current_time()):
            return True
        self._counters["connections_too_fast"] += 1
        return False

    def full(self, source: Source) -> bool:
        """Say whether a source has all the connections it gets; counts a refusal if so."""
        if self._held[source] < self.bound(source):
            return False
        self._counters["connections_over_share"] += 1
        return True

    def bound(self, source: Source) -> int:
        """How many connections a source gets."""
        if source == THIS_MACHINE:
            return self._on_this_machine
        return limits.CIRCUITS_PER_RELAY_MAX if source.startswith(_RELAY) else self._per_host

    @contextmanager
    def held(self, source: Source) -> Iterator[None]:
        """Count a connection whose handshake is done inside the block."""
        self._held[source] += 1
        try:
            yield
        finally:
            self._held[source] -= 1
            if not self._held[source]:
                del self._held[source]

    def most(self, *, relays: bool) -> int:
        """How many connections the relay, or the address outside of this machine, that has most of them has."""
        counted = (
            count
            for source, count in self._held.items()
            if source != THIS_MACHINE and source.startswith(_RELAY) == relays
        )
        return max(counted, default=0)

    def _rate(self, source: Source) -> TokenBucket:
        bucket = self._rates.get(source)
        if bucket is None:
            bucket = TokenBucket(limits.CONNECTS_PER_HOST_PER_SECOND_MAX, burst=limits.CONNECTS_PER_HOST_BURST_MAX)
            self._rates[source] = bucket
            if len(self._rates) > limits.CONNECTING_HOSTS_HELD_MAX:
                self._rates.popitem(last=False)
        self._rates.move_to_end(source)
        return bucket
