"""Finding nodes on the same link: a question to everybody there now and then, and answers.

Knows: multicast on IPv4, when to speak, and whom to believe. Must not know: how what is said is encoded.
Source: RFC 6762. The library's own search was tried and is not used (decision 0015).

A link is full of strangers. So an answer speaks only for the host that it comes from; a host may name so many nodes and
no more; and what is found is a hint like any other address: the handshake of a dial proves who is there.
"""

from __future__ import annotations

import random
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.types import PeerId
from converge_p2p.net.addresses import host_of, is_circuit, is_loopback, split_peer_address
from converge_p2p.net.framing import TokenBucket
from converge_p2p.net.hardening import Counters, log
from converge_p2p.net.reach.mdns_packets import Question, Service

GROUP: Final = "224.0.0.251"
PORT: Final = 5353

_FIRST_S: Final = 1.0
_JITTER_S: Final = (0.02, 0.12)


class LinkSearch:
    """Looks for nodes on the links of this host, and is found there."""

    def __init__(
        self,
        me: PeerId,
        key: NetworkKey | None,
        counters: Counters,
        *,
        own_addresses: Callable[[], tuple[str, ...]],
        found: Callable[[PeerId, tuple[str, ...]], None],
    ) -> None:
        """Begin without a socket.

        Args:
            me: this node.
            key: of the private network, or None.
            counters: where packets are counted.
            own_addresses: returns the transport addresses of the own interfaces.
            found: is called with a node and its transport addresses, again and again.
        """
        self._me = me
        self._service = Service(key)
        self._counters = counters
        self._own_addresses = own_addresses
        self._found = found
        self._asked = trio.Event()
        self._packets = TokenBucket(limits.MDNS_PACKETS_PER_SECOND_MAX, burst=2 * limits.MDNS_PACKETS_PER_SECOND_MAX)
        self._answers = TokenBucket(limits.MDNS_ANSWERS_PER_SECOND_MAX, burst=4 * limits.MDNS_ANSWERS_PER_SECOND_MAX)
        self._by_host: OrderedDict[str, _NamesOfHost] = OrderedDict()
        self._joined: set[int] = set()
        self.trouble = "not started yet"
        """Why nothing can be found, in words; empty if all is well."""

    @property
    def peers(self) -> int:
        """How many nodes were found, as far as they are held."""
        return sum(len(names.peers) for names in self._by_host.values())

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to look and to answer."""
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with await _open_socket() as link:
                self._join(link)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, link)
                    nursery.start_soon(self._answer, link)
                    await self._ask(link)
        except OSError as error:
            self.trouble = f"UDP port {PORT} cannot be used: {error.strerror or error}"
            self._counters["mdns_failed"] += 1
            log.warning("nodes on the same link are not looked for: %s", self.trouble)

    def _join(self, link: trio.socket.SocketType) -> None:
        """Take part on every interface that there is by now; they come and go."""
        present = {index: name for index, name in socket.if_nameindex() if not name.startswith("lo")}
        self._joined &= present.keys()
        for index in present.keys() - self._joined:
            try:
                link.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(index))
                self._joined.add(index)
            except OSError as error:
                log.debug("no multicast on interface %s: %r", present[index], error)
        self.trouble = "" if self._joined else "no interface has multicast"

    async def _say(self, link: trio.socket.SocketType, packet: bytes) -> None:
        for index in tuple(self._joined):
            try:
                link.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _membership(index))
                await link.sendto(packet, (GROUP, PORT))
            except OSError as error:
                # an interface that just went away, or has no address yet
                log.debug("nothing sent on interface %d: %r", index, error)

    async def _ask(self, link: trio.socket.SocketType) -> None:
        """Ask often at first, then rarely; who comes later asks itself, and is heard."""
        pause_s = _FIRST_S
        self._asked.set()
        while True:
            self._join(link)
            await self._say(link, self._service.question())
            self._counters["mdns_questions"] += 1
            await trio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, limits.MDNS_QUESTION_S_MAX)

    async def _answer(self, link: trio.socket.SocketType) -> None:
        """Say where this node is whenever somebody asked; all who asked meanwhile hear it at once."""
        while True:
            await self._asked.wait()
            # spread, as all nodes of a link hear the same question
            await trio.sleep(random.uniform(*_JITTER_S) + self._answers.take(1, trio.current_time()))
            self._asked = trio.Event()
            own = [address for address in self._own_addresses() if not is_loopback(address)]
            if own:
                await self._say(link, self._service.here([f"{address}/p2p/{self._me}" for address in own]))
                self._counters["mdns_answers"] += 1

    async def _listen(self, link: trio.socket.SocketType) -> None:
        while True:
            packet, sender = await link.recvfrom(limits.MDNS_PACKET_BYTES_MAX + 1)
            if not self._packets.try_take(1, trio.current_time()):
                self._counters["mdns_dropped"] += 1
                continue
            said = self._service.read(packet)
            if isinstance(said, Question):
                self._asked.set()
            elif said is not None and sender[1] == PORT:
                self._hear(sender[0], said.addresses)

    def _hear(self, host: str, texts: tuple[str, ...]) -> None:
        """Somebody on a host says which node is there, and at which ports."""
        named: dict[PeerId, list[str]] = {}
        for text in texts:
            try:
                peer, address = split_peer_address(text)
            except ConfigError:
                self._counters["mdns_refused"] += 1
                continue
            if peer == self._me:
                continue
            if is_circuit(address) or host_of(address) != host:
                # of another interface, or of another host: nobody speaks for that one
                continue
            named.setdefault(peer, []).append(address)
        for peer, addresses in named.items():
            if self._room(host, peer):
                self._found(peer, tuple(addresses))
            else:
                self._counters["mdns_refused"] += 1

    def _room(self, host: str, peer: PeerId) -> bool:
        """Note who was found where; False if the host names too many."""
        names = self._by_host.get(host)
        if names is None:
            names = self._by_host[host] = _NamesOfHost()
            if len(self._by_host) > limits.MDNS_HOSTS_HELD_MAX:
                self._by_host.popitem(last=False)
        self._by_host.move_to_end(host)
        if peer not in names.peers:
            if not names.new.try_take(1, trio.current_time()):
                return False
            log.info("found %s on this link, at %s", peer, host)
            self._counters["mdns_found"] += 1
        names.peers[peer] = None
        names.peers.move_to_end(peer)
        if len(names.peers) > limits.MDNS_PEERS_PER_HOST_MAX:
            names.peers.popitem(last=False)
        return True


class _NamesOfHost:
    """The nodes that a host named last, and how many new ones it may name."""

    __slots__ = ("new", "peers")

    def __init__(self) -> None:
        self.peers: OrderedDict[PeerId, None] = OrderedDict()
        self.new = TokenBucket(limits.MDNS_NEW_PER_HOST_PER_SECOND_MAX, burst=limits.MDNS_PEERS_PER_HOST_MAX)


def _membership(interface: int) -> bytes:
    """Return `struct ip_mreqn`: the group, no address, and the interface."""
    return struct.pack("4s4si", socket.inet_aton(GROUP), bytes(4), interface)


async def _open_socket() -> trio.socket.SocketType:
    """Return a socket on the port of multicast DNS.

    Raises:
        OSError: it cannot be had.
    """
    link = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        # other programs of this machine answer on this port, too
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        link.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        link.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        await link.bind(("0.0.0.0", PORT))
    except BaseException:
        link.close()
        raise
    return link
