"""Who is dialled, and when: bootstrap peers for ever, others while there are too few.

Knows: dialling with timeouts, backoff and jitter. Must not know: protocols above the connection.
Source: exponential backoff with jitter; the faults B9 and B11 of `hardening` are why the library does not do it.

A node never depends on one bootstrap peer: once it has heard of others, it keeps itself connected through them.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo as RawPeerInfo
from multiaddr import Multiaddr

from converge_p2p.core import limits
from converge_p2p.core.errors import NetworkError
from converge_p2p.core.types import PeerId
from converge_p2p.net.addresses import AddressBook, is_circuit, split_peer_address
from converge_p2p.net.config import NetworkConfig
from converge_p2p.net.hardening import Counters, log
from converge_p2p.net.names import peer_name, raw_peer_id
from converge_p2p.net.private_network import noted_refusals

_CONCURRENT_DIALS_MAX = 8
_HEAD_START_S = 1.0
"""How long direct addresses are tried before those through a relay are tried beside them. Behind a router that drops
what it does not know, each direct address costs a whole timeout."""

DialThrough = Callable[[PeerId, str, float], Awaitable[None]]
"""Connects to a peer through a relay: peer, address, seconds. Raises NetworkError."""


class Connector:
    """Keeps one host connected."""

    def __init__(
        self,
        host: Any,
        book: AddressBook,
        config: NetworkConfig,
        counters: Counters,
        is_banned: Callable[[PeerId], bool],
    ) -> None:
        """Read the bootstrap addresses.

        Raises:
            ConfigError: one of them is no peer address.
        """
        self._host = host
        self._book = book
        self._config = config
        self._counters = counters
        self._is_banned = is_banned
        self._me = peer_name(host.get_id())
        self._random = random.Random()
        self._changed = trio.Event()
        self._dialing: dict[PeerId, trio.Event] = {}
        self._dial_through: DialThrough | None = None
        self._nursery: trio.Nursery | None = None
        self._keeping: dict[PeerId, trio.CancelScope] = {}
        self._bootstrap = self._by_peer(config.bootstrap)
        for text in config.known:
            peer, address = split_peer_address(text)
            if peer != self._me:
                book.learn(peer, (address,))

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to dial."""
        self._nursery = nursery
        for peer, addresses in self._bootstrap.items():
            self._start_keeping(peer, addresses)
        nursery.start_soon(self._fill)

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """The addresses that are dialled for ever, with `/p2p/…`."""
        return tuple(f"{address}/p2p/{peer}" for peer, addresses in self._bootstrap.items() for address in addresses)

    def set_bootstrap(self, texts: Sequence[str]) -> None:
        """Dial these for ever, and the present ones no more; connections that are open stay.

        Raises:
            ConfigError: one of them is no peer address. Then nothing changed.
        """
        wanted = self._by_peer(texts)
        for peer in [peer for peer, addresses in self._bootstrap.items() if wanted.get(peer) != addresses]:
            scope = self._keeping.pop(peer, None)
            if scope is not None:
                scope.cancel()
        self._bootstrap = wanted
        for peer, addresses in wanted.items():
            if peer not in self._keeping:
                self._start_keeping(peer, addresses)

    def _by_peer(self, texts: Sequence[str]) -> dict[PeerId, tuple[str, ...]]:
        found: dict[PeerId, tuple[str, ...]] = {}
        for text in texts:
            peer, address = split_peer_address(text)
            if peer != self._me:
                found[peer] = (*found.get(peer, ()), address)
        return found

    def _start_keeping(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        if self._nursery is not None:
            scope = self._keeping[peer] = trio.CancelScope()
            self._nursery.start_soon(self._keep, peer, addresses, scope)

    def use_relays(self, dial_through: DialThrough) -> None:
        """From now on, dial addresses that lead through relays, too."""
        self._dial_through = dial_through

    def changed(self) -> None:
        """A connection opened or closed, or the book has new entries: look again."""
        self._changed.set()
        self._changed = trio.Event()

    def is_connected(self, peer: PeerId) -> bool:
        """Whether there is a connection to the peer."""
        return bool(self._host.get_network().get_connections(raw_peer_id(peer)))

    def connected(self) -> set[PeerId]:
        """The peers that there are connections to."""
        return {peer_name(raw) for raw in self._host.get_connected_peers()}

    async def dial(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> None:
        """Connect to a peer, trying its addresses one after the other. Does nothing if it is connected.

        Args:
            peer: whom.
            addresses: transport addresses without `/p2p/…`, at least one. Those that lead through a relay are tried
                beside the others, a moment later.
            timeout_s: for each address.

        Raises:
            NetworkError: no address worked; the message gives each one's reason.
        """
        while (other := self._dialing.get(peer)) is not None:
            await other.wait()
        if self.is_connected(peer):
            return
        finished = self._dialing[peer] = trio.Event()
        try:
            attempt = _Attempt(self, peer, addresses, timeout_s)
            reasons = await attempt.run()
            if attempt.worked is not None:
                self._book.reached(peer, attempt.worked)
                self._counters["dials_succeeded"] += 1
                return
            self._counters["dials_failed"] += 1
            hint = "check that the node runs, and that the address and port can be reached from here"
            raise NetworkError(f"cannot reach peer {peer}: {'; '.join(reasons) or 'no address is known'}", hint=hint)
        finally:
            del self._dialing[peer]
            finished.set()

    async def dial_circuit(self, peer: PeerId, address: str, timeout_s: float) -> str | None:
        """Dial one address through a relay; return None, or why it failed."""
        if self._dial_through is None:
            return "this node uses no relays"
        with noted_refusals() as reasons:
            try:
                await self._dial_through(peer, address, timeout_s)
            except NetworkError as error:
                return reasons[0] if reasons else str(error)
        return None if self.is_connected(peer) else "the peer closed the connection"

    async def dial_address(self, raw: ID, address: str, timeout_s: float) -> str | None:
        """Dial one direct address; return None, or why it failed."""
        network = self._host.get_network()
        # B9: after a failure the library refuses to dial the peer for a minute, of several addresses it dials only
        # one per transport, and a black hole blocks it for over a minute
        network.unblock_peer(raw)
        self._host.get_peerstore().clear_addrs(raw)
        with trio.move_on_after(timeout_s) as scope, noted_refusals() as reasons:
            try:
                await self._host.connect(RawPeerInfo(raw, [Multiaddr(address)]))
            except Exception as error:  # noqa: BLE001 - the library raises many kinds, and sometimes groups of them
                log.debug("dialling %s failed: %r", address, error)
                return reasons[0] if reasons else _root_cause(error)
        if scope.cancelled_caught:
            return f"no answer within {timeout_s:g} s"
        return None if network.get_connections(raw) else "the peer closed the connection"

    async def _keep(self, peer: PeerId, addresses: tuple[str, ...], scope: trio.CancelScope) -> None:
        """Dial a bootstrap peer again whenever it is not connected, until it is none any more."""
        with scope:
            await self._keep_for_ever(peer, addresses)

    async def _keep_for_ever(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        failures = 0
        while True:
            if self.is_connected(peer):
                failures = 0
                await self._changed.wait()
                continue
            if self._is_banned(peer):
                await self._pause(self._config.retry_max_s, peer)
                continue
            extra = [address for address in self._book.addresses(peer) if address not in addresses]
            try:
                await self.dial(peer, (*addresses, *extra), self._config.dial_timeout_s)
            except NetworkError as error:
                failures += 1
                level = log.warning if failures == 1 else log.debug
                level("bootstrap peer: %s (retrying)", error)
                await self._pause(self._backoff(failures), peer)

    async def _pause(self, seconds: float, peer: PeerId) -> None:
        """Sleep, unless the peer connects by itself."""
        with trio.move_on_after(seconds):
            while not self.is_connected(peer):
                await self._changed.wait()

    async def _fill(self) -> None:
        """Dial peers from the book while there are fewer connections than wanted."""
        limiter = trio.CapacityLimiter(_CONCURRENT_DIALS_MAX)
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._changed
                connected = self.connected()
                missing = self._config.peers_wanted - len(connected) - len(self._dialing)
                busy = connected | self._dialing.keys() | {self._me}
                now = trio.current_time()
                candidates = self._book.candidates(now, busy)
                started = candidates[: max(0, missing)]
                for peer in started:
                    # until the dial has ended the peer is no candidate
                    self._book.postpone(peer, now + self._config.retry_max_s)
                    nursery.start_soon(self._try, peer, limiter)
                due = self._book.next_due(busy | set(candidates)) if missing > 0 else None
                with trio.move_on_at(due if due is not None else now + self._config.retry_max_s):
                    await changed.wait()
                # several connections usually change at once: look once for all of them
                await trio.sleep(0.02)

    async def _try(self, peer: PeerId, limiter: trio.CapacityLimiter) -> None:
        if self._is_banned(peer):
            self._book.postpone(peer, trio.current_time() + limits.BAN_S)
            return
        async with limiter:
            try:
                await self.dial(peer, self._book.addresses(peer), self._config.dial_timeout_s)
            except NetworkError as error:
                log.debug("peer from the book: %s", error)
                pause = self._backoff(self._book.failures(peer) + 1)
                self._book.failed(peer, trio.current_time() + pause)
            self.changed()

    def _backoff(self, failures: int) -> float:
        longest = min(self._config.retry_max_s, self._config.retry_first_s * 2.0 ** min(failures - 1, 16))
        # between half and the whole, so that nodes which lost the same peer do not return all at once
        return longest * (0.5 + 0.5 * self._random.random())


class _Attempt:
    """One try to reach a peer, at all its addresses.

    Attributes:
        worked: the address that did, or None.
    """

    def __init__(self, connector: Connector, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> None:
        self.worked: str | None = None
        self._connector = connector
        self._peer = peer
        self._direct = [address for address in addresses if not is_circuit(address)]
        self._circuits = [address for address in addresses if is_circuit(address)]
        self._timeout_s = timeout_s
        self._reasons: list[str] = []
        self._direct_failed = trio.Event()

    async def run(self) -> list[str]:
        """Try until one works; return why the others did not."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._try_direct, nursery.cancel_scope)
            if self._circuits:
                nursery.start_soon(self._try_circuits, nursery.cancel_scope)
        return self._reasons

    async def _try_direct(self, both: trio.CancelScope) -> None:
        for address in self._direct:
            reason = await self._connector.dial_address(raw_peer_id(self._peer), address, self._timeout_s)
            if self._done(address, reason, both):
                return
        self._direct_failed.set()

    async def _try_circuits(self, both: trio.CancelScope) -> None:
        with trio.move_on_after(_HEAD_START_S):
            await self._direct_failed.wait()
        for address in self._circuits:
            reason = await self._connector.dial_circuit(self._peer, address, self._timeout_s)
            if self._done(address, reason, both):
                return

    def _done(self, address: str, reason: str | None, both: trio.CancelScope) -> bool:
        if reason is None:
            self.worked = self.worked or address
            both.cancel()
            return True
        self._reasons.append(f"{address}: {reason}")
        return False


def _root_cause(error: BaseException) -> str:
    """Return the innermost reason of a failed dial, in one line."""
    while True:
        # the library has a group type of its own, with the same attribute as the built-in one
        group = getattr(error, "exceptions", None) or ()
        inner = group[0] if group else error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
