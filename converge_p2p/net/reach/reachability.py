"""How this node is reached, in one object: its own addresses, and what follows from who can dial them.

Knows: how the parts of this room fit together. Must not know: what travels over connections.
Source: docs/operations.md, "Being reached".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.peer.id import ID

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError
from converge_p2p.core.types import PeerId
from converge_p2p.net.addresses import AddressBook, is_loopback
from converge_p2p.net.bootstrap import Connector
from converge_p2p.net.config import NetworkConfig, RelayUse
from converge_p2p.net.hardening import Counters
from converge_p2p.net.host import transport_addresses
from converge_p2p.net.names import peer_name
from converge_p2p.net.reach.autonat import Reachable, ReachProbe, ReachService
from converge_p2p.net.reach.mdns import LinkSearch
from converge_p2p.net.reach.punch import HolePuncher
from converge_p2p.net.reach.relay_client import RelayClient
from converge_p2p.net.reach.relay_service import RelayService


@dataclass(frozen=True, slots=True)
class ReachStatus:
    """How this node is reached now.

    Attributes:
        reachable: whether others can dial it directly, as they say.
        confirmed: transport addresses that peers on two hosts dialled it at.
        relays: peers that it is reached through.
        wants_relays: whether it looks for such peers.
        relay_reservations: places that it keeps for others as a relay; None if it serves as none.
        relay_circuits: connections that it passes on as a relay.
        link_peers: nodes that were found on the same link; None if it does not look there.
        link_trouble: why it cannot, in words; empty if all is well.
    """

    reachable: Reachable
    confirmed: tuple[str, ...]
    relays: tuple[PeerId, ...]
    wants_relays: bool
    relay_reservations: int | None
    relay_circuits: int
    link_peers: int | None
    link_trouble: str


class Reachability:
    """Everything about how others reach this node."""

    def __init__(
        self,
        host: Any,
        config: NetworkConfig,
        counters: Counters,
        book: AddressBook,
        connector: Connector,
        *,
        blame: Callable[[PeerId], None],
        is_banned: Callable[[PeerId], bool],
        moved: Callable[[], None],
    ) -> None:
        """Register the protocols.

        Args:
            host: the host.
            config: the settings.
            counters: where things are counted.
            book: where peers are.
            connector: dials; from now on through relays, too.
            blame: called with a peer that broke a protocol.
            is_banned: whether a peer is kept out.
            moved: is called when `addresses` are others.
        """
        self._host = host
        self._config = config
        self._book = book
        self._connector = connector
        self._is_banned = is_banned
        self._moved = moved
        self._told: tuple[str, ...] = ()
        self._probe = ReachProbe(
            host,
            counters,
            own_addresses=self._interface_addresses,
            changed=self._verdict_changed,
            write_timeout_s=config.write_timeout_s,
        )
        if config.autonat:
            ReachService(host, counters, blame)
        self.relays = RelayClient(
            host,
            counters,
            wanted=self._wants_relays,
            known_addresses=book.addresses,
            reach=self._reach_relay,
            changed=self._tell_if_moved,
            write_timeout_s=config.write_timeout_s,
        )
        connector.use_relays(self.relays.dial)
        self.relay_service = (
            RelayService(host, config.relay_service, counters, self.direct_addresses, blame)
            if config.relay_service
            else None
        )

        me = peer_name(host.get_id())
        # what this node announces may be a router's address; neighbours reach its own
        interfaces = functools.partial(transport_addresses, host, ())
        self._link = (
            LinkSearch(me, config.network_key, counters, own_addresses=interfaces, found=self._found)
            if config.mdns
            else None
        )

        self._puncher = (
            HolePuncher(
                host,
                counters,
                own_addresses=self._interface_addresses,
                known_addresses=book.addresses,
                blame=blame,
                write_timeout_s=config.write_timeout_s,
            )
            if config.hole_punch
            else None
        )

    def start(self, nursery: trio.Nursery) -> None:
        """Begin. The host listens by now."""
        self._told = self.addresses()
        if self._config.autonat:
            self._probe.start(nursery)
        self.relays.start(nursery)
        if self._link:
            self._link.start(nursery)
        if self._puncher:
            self._puncher.start(nursery)

    def connection_up(self, raw: ID) -> None:
        """A connection to a peer opened."""
        if self._config.autonat:
            self._probe.connection_up(raw)
        self.relays.look_again()
        if self._puncher:
            self._puncher.connection_up(raw)

    def connection_down(self, raw: ID) -> None:
        """The last connection to a peer closed."""
        self._probe.connection_down(raw)
        self.relays.connection_down(raw)
        if self.relay_service:
            self.relay_service.connection_down(raw)

    # ------------------------------------------------------------ where

    def addresses(self) -> tuple[str, ...]:
        """Transport addresses to tell others, those usable from elsewhere first."""
        circuits = self.relays.addresses()
        direct = self.direct_addresses()
        if not circuits:
            return direct
        # a neighbour takes so many addresses only; those through relays are the ones that work from anywhere
        direct = direct[: limits.ADDRESSES_PER_PEER_MAX - len(circuits)]
        return tuple(sorted((*direct, *circuits), key=is_loopback))

    def direct_addresses(self) -> tuple[str, ...]:
        """Those of them that lead through no relay."""
        own = self._interface_addresses()
        if self._config.announce:
            return own
        return tuple(dict.fromkeys((*self._probe.confirmed, *own)))

    def _interface_addresses(self) -> tuple[str, ...]:
        return transport_addresses(self._host, self._config.announce)

    def status(self) -> ReachStatus:
        """Return how this node is reached now."""
        service = self.relay_service
        return ReachStatus(
            self._probe.verdict,
            self._probe.confirmed,
            self.relays.relays,
            self._wants_relays(),
            None if service is None else len(service),
            0 if service is None else service.circuits,
            None if self._link is None else self._link.peers,
            "" if self._link is None else self._link.trouble,
        )

    # ------------------------------------------------------------ what follows

    def _wants_relays(self) -> bool:
        if self._config.relay_client is RelayUse.AUTO:
            return self._probe.verdict is Reachable.NO
        return self._config.relay_client is RelayUse.ON

    def _verdict_changed(self) -> None:
        self.relays.look_again()
        self._tell_if_moved()

    def _tell_if_moved(self) -> None:
        """A verdict or a relay's place is news only if addresses follow from it: each word costs a record."""
        now = self.addresses()
        if now != self._told:
            self._told = now
            self._moved()

    def _found(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        if self._book.learn(peer, addresses):
            self._connector.changed()

    async def _reach_relay(self, relay: PeerId, transport: str, timeout_s: float) -> None:
        if self._is_banned(relay):
            raise NetworkError(f"relay {relay} is banned", hint="unban it first")
        await self._connector.dial(relay, (transport,), timeout_s)
