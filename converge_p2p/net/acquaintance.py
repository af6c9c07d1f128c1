"""What a node knows of other peers, for people who look after it: addresses, bans, conduct, and how far away they are.

Knows: the address book, the connector, and who is kept out. Must not know: other protocols than the ping.
Source: the ping of libp2p, /ipfs/ping/1.0.0: 32 random bytes there, the same back.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from converge_p2p.core.errors import ConfigError, NetworkError
from converge_p2p.core.types import PeerId
from converge_p2p.net.addresses import AddressBook, split_peer_address
from converge_p2p.net.bootstrap import Connector
from converge_p2p.net.conduct import Conduct
from converge_p2p.net.config import NetworkConfig
from converge_p2p.net.hardening import reset_quietly, shielded, write_whole
from converge_p2p.net.host_shares import THIS_MACHINE, is_loopback
from converge_p2p.net.names import peer_name, raw_peer_id
from converge_p2p.net.private_network import check_private_addresses
from converge_p2p.net.reach.circuit import host_of_connection, is_relayed, relay_of

PING_PROTOCOL: Final = TProtocol("/ipfs/ping/1.0.0")
_PING_BYTES: Final = 32


class Acquaintance:
    """The peers that one network knows of, connected or not."""

    def __init__(
        self, host: Any, book: AddressBook, connector: Connector, conduct: Conduct, config: NetworkConfig
    ) -> None:
        """Made by `Network`."""
        self._host = host
        self._me = peer_name(host.get_id())
        self._book = book
        self._connector = connector
        self._conduct = conduct
        self._config = config

    def bans(self) -> dict[PeerId, float]:
        """Who is kept out, and for how many seconds more; infinity is until the end of this network."""
        now = trio.current_time()
        return {peer: until - now for peer, until in self._conduct.bans(now).items()}

    def violations(self, peer: PeerId) -> int:
        """How often a peer broke the protocol lately; see `Network.blame`."""
        return self._conduct.violations(peer, trio.current_time())

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """The addresses that are dialled for ever."""
        return self._connector.bootstrap

    def set_bootstrap(self, addresses: Sequence[str]) -> None:
        """Dial these addresses for ever from now on, in place of the present ones. See `NetworkConfig.bootstrap`.

        Raises:
            ConfigError: one of them is no peer address, or cannot be used in a private network. Then nothing changed.
        """
        check_private_addresses(tuple(addresses), self._config.network_key)
        self._connector.set_bootstrap(addresses)

    def learn(self, address: str) -> PeerId:
        """Remember an address of a peer, to be dialled while there are too few connections.

        Raises:
            ConfigError: no address with `/p2p/…`, or the own one.
        """
        peer, transport = split_peer_address(address)
        if peer == self._me:
            raise ConfigError("this is the own address", hint="give the address of another node")
        self._book.learn(peer, (transport,))
        self._connector.changed()
        return peer

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """The addresses that are known of a peer, best first, without `/p2p/…`."""
        return self._book.addresses(peer)

    def forget(self, peer: PeerId) -> bool:
        """Know no address of a peer any more; return whether one was known. Others may tell of it again."""
        return self._book.forget(peer)

    def host(self, peer: PeerId) -> str:
        """Return where a connected peer is, as far as that can be counted; see `circuit.host_of_connection`.

        `THIS_MACHINE` for a process of this machine. A relay shows nobody where the others are, so who is connected
        only over one is where the relay is. Empty for who is not connected, and for who comes over a relay of this
        machine: he may be anywhere.
        """
        muxed = self._muxed(raw_peer_id(peer))
        relays = {relay_of(each) for each in muxed if is_relayed(each)}
        over = (_direct(self._muxed(relay)) for relay in sorted(relays, key=str))
        return _direct(muxed) or next((host for host in over if host and host != THIS_MACHINE), "")

    def _muxed(self, peer: ID) -> list[Any]:
        return [each.muxed_conn for each in self._host.get_network().get_connections(peer)]

    async def ping(self, peer: PeerId, timeout_s: float = 10.0) -> float:
        """Return how many seconds a few bytes take to a connected peer and back.

        Raises:
            NetworkError: not connected, no answer in time, or another answer.
        """
        stream: INetStream | None = None
        try:
            with trio.fail_after(timeout_s):
                stream = await self._host.new_stream(raw_peer_id(peer), [PING_PROTOCOL])
                return await self._round_trip(stream)
        except trio.TooSlowError:
            raise NetworkError(f"peer {peer} did not answer within {timeout_s:g} s") from None
        except NetworkError:
            raise
        except Exception as error:
            raise NetworkError(
                f"peer {peer} did not answer a ping: {type(error).__name__}", hint="`converge-node peers ls`"
            ) from error
        finally:
            if stream is not None:
                with shielded(1):
                    await reset_quietly(stream)

    async def _round_trip(self, stream: INetStream) -> float:
        sent, heard = secrets.token_bytes(_PING_BYTES), b""
        began = time.perf_counter()
        if not await write_whole(self._host, stream, sent, self._config.write_timeout_s):
            raise NetworkError("the peer did not take the ping")
        while len(heard) < _PING_BYTES:
            part = await stream.read(_PING_BYTES - len(heard))
            if not part:
                break
            heard += part
        took = time.perf_counter() - began
        if heard != sent:
            raise NetworkError("the peer answered a ping with other bytes")
        return took


def _direct(muxed: Iterable[Any]) -> str:
    """Where the first of these connections comes from that is no circuit; empty if none is."""
    for each in muxed:
        if host := host_of_connection(each):
            return THIS_MACHINE if is_loopback(each.get_remote_address()[0]) else host
    return ""
