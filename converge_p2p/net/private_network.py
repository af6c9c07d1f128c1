"""Private networks: every byte of a connection is encrypted with a key that all hosts share.

Knows: the stream cipher, and how a stranger's first bytes look. Must not know: files, or what the connections carry.
Source: libp2p specifications, pnet/Private-Networks-PSK-V1-Spec.md (XSalsa20 with a random 24-byte nonce in front of
each direction); HSalsa20 after Bernstein, "Extending the Salsa20 nonce" (2011).

B17: the library's own private networks use another cipher (Salsa20, 8-byte nonce), so that they speak to nobody else.
And a stranger is noticed late: decrypted with a wrong key, the first length of the negotiation is random, the reader
waits for bytes that never come, and half a minute passes until the negotiation gives up. But what comes first on every
connection is known: the greeting of multistream. So it is compared here, as soon as it is there, and whoever greets
differently is refused at once, with the reason. The same goes for a host without a key that meets a private network.

The same known beginning lets one listener take two keys while a network changes its key (docs/decisions, "Changing the
key of a private network"): whoever dials speaks first, and only its key decrypts to the greeting.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NoReturn

import libp2p.network.swarm as swarm_module
from Crypto.Cipher import Salsa20
from libp2p.abc import ConnectionType, IMuxedConn
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.pnet.protector import new_protected_conn as _stock_protection
from multiaddr import Multiaddr

from converge_p2p.core.errors import ConfigError
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.net.hardening import Counters

NONCE_BYTES: Final = 24
GREETING: Final = b"\x13/multistream/1.0.0\n"
"""What both sides of every libp2p connection send first, behind its length."""

_CLOAKED: Final = ("quic", "quic-v1", "udp", "webtransport", "webrtc-direct")
"""Transports that bring an encryption of their own, which the key of a network does not go into."""


class StrangerRefused(RawConnError):  # type: ignore[misc]
    """The other side of a connection belongs to another network."""


_noting: ContextVar[list[str] | None] = ContextVar("noting", default=None)


@contextmanager
def noted_refusals() -> Iterator[list[str]]:
    """Give a list of why strangers were refused in the block, and in tasks that it started.

    The library tells whoever dials that a negotiation failed, and keeps the reason to itself.
    """
    reasons: list[str] = []
    token = _noting.set(reasons)
    try:
        yield reasons
    finally:
        _noting.reset(token)


def guard_network(
    host: Any, key: NetworkKey | None, counters: Counters, *, accepted: NetworkKey | None = None
) -> NetworkGuard:
    """Let a host speak to its own network alone.

    Args:
        host: the host; the swarm wraps each of its raw connections, in both directions, before anything is sent.
        key: the network's key, or None for a public network.
        counters: where strangers are counted, as `strangers_refused`.
        accepted: another key, of whoever dials this host.

    Raises:
        ConfigError: another key, and none of the own network, or the same.
    """
    guard = NetworkGuard(key, accepted, counters)
    swarm_module.new_protected_conn = _wrap
    # the swarm hands this back with each raw connection, and asks only whether it is there
    host.get_network().psk = guard
    return guard


class NetworkGuard:
    """Wraps connections of one host, and knows how many live that came with the other key."""

    def __init__(self, key: NetworkKey | None, accepted: NetworkKey | None, counters: Counters) -> None:
        """Take the keys. Raises as `guard_network`."""
        if accepted is not None and (key is None or key == accepted):
            wrong = "no key of the network is set" if key is None else "it is the key of the network itself"
            raise ConfigError(
                f"another network key is to be accepted, and {wrong}",
                hint="network_key is the key that the node dials with, accepted_key the other one during a change",
            )
        self._key = key
        self._accepted = accepted
        self._counters = counters
        self._by_accepted: weakref.WeakSet[Any] = weakref.WeakSet()
        self.by_accepted_key = 0
        """Connections of others that live and came with the accepted key."""

    def __call__(self, connection: Any) -> Any:
        """Wrap a raw connection; called by the swarm before anything is sent.

        Raises:
            StrangerRefused: the connection cannot be wrapped, as it is encrypted already.
        """
        if isinstance(connection, IMuxedConn):
            # it comes encrypted and multiplexed already, so that the key cannot be applied to it
            if self._key is not None:
                _refuse(self._counters, "this transport cannot be used in a private network")
            return connection
        if self._key is None:
            return GreetedConnection(connection, self._counters)
        # whoever dials speaks first, with the key that the network is going to have or has
        both = self._accepted is not None and not getattr(connection, "is_initiator", False)
        keys = (self._key, self._accepted) if both and self._accepted is not None else (self._key,)
        return ProtectedConnection(connection, keys, self._counters, self._met_with)

    def _met_with(self, connection: Any, key: NetworkKey) -> None:
        if key == self._accepted:
            self._by_accepted.add(connection)

    @contextmanager
    def counted(self, connection: Any) -> Iterator[None]:
        """Count a raw connection inside the block, if it came with the accepted key."""
        one = connection in self._by_accepted
        self.by_accepted_key += one
        try:
            yield
        finally:
            self.by_accepted_key -= one


def check_private_addresses(addresses: tuple[str, ...], key: NetworkKey | None) -> None:
    """Refuse transports that a private network cannot be used over.

    Raises:
        ConfigError: a key is set, and an address is of such a transport.
    """
    for text in addresses if key is not None else ():
        used = [name for name in text.split("/") if name in _CLOAKED]
        if used:
            raise ConfigError(
                f"{text!r} cannot be used in a private network: {used[0]} goes around the network's key",
                hint="use a TCP address, or take the network key away",
            )


def _wrap(connection: Any, psk: str | Callable[[Any], Any]) -> Any:
    # a host that was not built by this room may be in the same process, and has a key as the library wants it
    return _stock_protection(connection, psk) if isinstance(psk, str) else psk(connection)


class GreetedConnection(RawConnection):  # type: ignore[misc]
    """A connection whose first bytes must be the greeting of multistream."""

    def __init__(self, inner: Any, counters: Counters) -> None:
        super().__init__(getattr(inner, "stream", inner), getattr(inner, "is_initiator", False))
        self.inner = inner
        self.counters = counters
        self._ahead = b""
        self._greeted = False

    async def read(self, n: int | None = None) -> bytes:
        """Read up to `n` bytes.

        Raises:
            StrangerRefused: the other side belongs to a private network, or speaks something else altogether.
        """
        while not self._greeted:
            more = await self.read_more(len(GREETING) - len(self._ahead))
            if not more:
                return b""
            self._ahead += more
            if not GREETING.startswith(self._ahead):
                self.refuse()
            self._greeted = len(self._ahead) == len(GREETING)
        size = len(self._ahead) if n is None else n
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if not self._ahead:
            # from now on there is nothing to look at; a connection is read tens of times for each message
            self.read = self.after_greeting()  # type: ignore[assignment,method-assign]
        return data

    def after_greeting(self) -> Callable[[int | None], Awaitable[bytes]]:
        """Return what reads once the greeting was read."""
        read: Callable[[int | None], Awaitable[bytes]] = self.inner.read
        return read

    async def read_more(self, n: int | None) -> bytes:
        """Read what the other side meant to say."""
        data: bytes = await self.inner.read(n)
        return data

    def refuse(self) -> NoReturn:
        """Raises `StrangerRefused`, always."""
        _refuse(self.counters, "the peer does not greet as a libp2p host: it may belong to a private network")

    async def write(self, data: bytes) -> None:
        """Write all of `data`."""
        await self.inner.write(data)

    async def close(self) -> None:
        """Close the connection."""
        await self.inner.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return host and port of the other side."""
        address: tuple[str, int] | None = self.inner.get_remote_address()
        return address

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the addresses of the other side."""
        addresses: list[Multiaddr] = self.inner.get_transport_addresses()
        return addresses

    def get_connection_type(self) -> ConnectionType:
        """Return whether the connection is relayed."""
        return self.inner.get_connection_type()


class ProtectedConnection(GreetedConnection):
    """A connection of a private network."""

    def __init__(
        self,
        inner: Any,
        keys: Sequence[NetworkKey],
        counters: Counters,
        met: Callable[[Any, NetworkKey], None] = lambda _inner, _key: None,
    ) -> None:
        """Args:
        inner: the raw connection.
        keys: those that it may have; the first is the network's own. Several only where the other side speaks first.
        counters: where strangers are counted.
        met: told the raw connection and its key, once that is known.
        """
        super().__init__(inner, counters)
        self._keys = tuple(keys)
        self._met = met
        self._key: NetworkKey | None = self._keys[0] if len(self._keys) == 1 else None
        self._nonce = b""
        self._own_nonce = b""
        # of the greeting, decrypted while the key was looked for
        self._found = b""
        self._reads: Any = None
        self._writes: Any = None

    async def read_more(self, n: int | None) -> bytes:
        """Read and decrypt up to `n` bytes, of which the first call wants as many as the greeting has."""
        if self._reads is None and not await self._meet():
            return b""
        if self._found:
            found, self._found = self._found, b""
            return found
        data = await self.inner.read(n)
        if not data and not self._greeted:
            # a node that takes two keys knows none to greet a stranger with
            _note("the peer ended the connection before it greeted: it may belong to another private network")
        plain: bytes = self._reads.decrypt(data) if data else b""
        return plain

    def after_greeting(self) -> Callable[[int | None], Awaitable[bytes]]:
        """Return what reads once the greeting was read: it goes on decrypting."""
        return self.read_more

    def ciphers(self) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
        """Return what encrypts and what decrypts the rest of the connection, for who takes over its socket."""
        assert self._writes is not None, "nothing was sent yet"
        assert self._reads is not None, "nothing came yet"
        return self._writes.encrypt, self._reads.decrypt

    def refuse(self) -> NoReturn:
        """Raises `StrangerRefused`, always."""
        _refuse(self.counters, "the peer belongs to another private network: its network key is another one")

    async def _meet(self) -> bool:
        """Read the other side's nonce, and as much of its greeting as tells its key. False: it ended the connection."""
        if self._key is None and not self._own_nonce:
            # tells nothing of a key, and there are implementations that say nothing before they have it
            self._own_nonce = os.urandom(NONCE_BYTES)
            await self.inner.write(self._own_nonce)
        while len(self._nonce) < NONCE_BYTES:
            more = await self.inner.read(NONCE_BYTES - len(self._nonce))
            if not more:
                return False
            self._nonce += more
            # a nonce is random; this one is the greeting of a host without a key, which waits for an answer now
            if self._nonce[: len(GREETING)] == GREETING:
                _refuse(self.counters, "the peer is not in a private network, and this node is")
        tries = [(key, xsalsa20(key.secret, self._nonce), b"") for key in self._keys]
        while len(tries) > 1:
            more = await self.inner.read(len(GREETING) - len(tries[0][2]))
            if not more:
                return False
            read = [(key, cipher, plain + cipher.decrypt(more)) for key, cipher, plain in tries]
            tries = [each for each in read if GREETING.startswith(each[2])]
            if not tries:
                self.refuse()
        ((self._key, self._reads, self._found),) = tries
        self._met(self.inner, self._key)
        return True

    async def write(self, data: bytes) -> None:
        """Encrypt and write all of `data`.

        Raises:
            RawConnError: the other side ended the connection before it told its key.
            StrangerRefused: it belongs to another network.
        """
        if self._writes is not None:
            await self.inner.write(self._writes.encrypt(data))
            return
        if self._key is None and not await self._meet():
            raise RawConnError("the peer ended the connection before it greeted")
        assert self._key is not None, "meeting finds a key, or raises"
        nonce = self._own_nonce or os.urandom(NONCE_BYTES)
        self._writes = xsalsa20(self._key.secret, nonce)
        sealed = self._writes.encrypt(data)
        await self.inner.write(sealed if self._own_nonce else nonce + sealed)


def _note(reason: str) -> None:
    reasons = _noting.get()
    if reasons is not None:
        reasons.append(reason)


def _refuse(counters: Counters, reason: str) -> NoReturn:
    counters["strangers_refused"] += 1
    _note(reason)
    raise StrangerRefused(reason)


def xsalsa20(key: bytes, nonce: bytes) -> Any:
    """Return a cipher object of XSalsa20 that goes on where it stopped.

    Args:
        key: 32 bytes.
        nonce: 24 bytes, never used twice with the key.
    """
    return Salsa20.new(key=hsalsa20(key, nonce[:16]), nonce=nonce[16:])


def hsalsa20(key: bytes, nonce: bytes) -> bytes:
    """Return the 32-byte key that XSalsa20 derives from a key of 32 bytes and the first 16 of its nonce.

    No library of this project exposes it; it runs twice for a connection.
    """
    c, k, n = (struct.unpack(f"<{len(part) // 4}I", part) for part in (b"expand 32-byte k", key, nonce))
    state = [c[0], *k[:4], c[1], *n, c[2], *k[4:], c[3]]
    for _ in range(10):
        for quarter in _COLUMNS + _ROWS:
            _quarter_round(state, *quarter)
    return struct.pack("<8I", *(state[index] for index in (0, 5, 10, 15, 6, 7, 8, 9)))


_COLUMNS: Final = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS: Final = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))


def _quarter_round(state: list[int], a: int, b: int, c: int, d: int) -> None:
    for target, one, other, bits in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
        total = (state[one] + state[other]) & 0xFFFFFFFF
        state[target] ^= ((total << bits) | (total >> (32 - bits))) & 0xFFFFFFFF
