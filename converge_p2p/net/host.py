"""The hardened libp2p host: how it is built, how it listens, and how it is taken down without a leaked socket.

Knows: libp2p's host and its settings. Must not know: which protocols run on it.
Source: libp2p specifications (noise, yamux, identify); the faults are those of `hardening`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p import create_identity_from_seed, new_host
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.network.config import ConnectionConfig
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE, Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX, Yamux
from multiaddr import Multiaddr
from multiaddr.utils import get_thin_waist_addresses

from converge_p2p.core.errors import NetworkError
from converge_p2p.core.types import PeerId
from converge_p2p.net.addresses import host_of, is_loopback, is_unspecified, tcp_port
from converge_p2p.net.config import NetworkConfig, Transport
from converge_p2p.net.dht import PROTOCOL as DHT_PROTOCOL
from converge_p2p.net.fast.upgrade import FastNoise, FastUpgrader
from converge_p2p.net.hardening import (
    Counters,
    close_only_what_is_there,
    contain_stream_failures,
    forget_closed_listeners,
    log,
    own_the_dialling,
)
from converge_p2p.net.host_shares import HostShares
from converge_p2p.net.inbound import free_inbound_slots
from converge_p2p.net.intake import Handshakes, bound_negotiation, enforce_windows
from converge_p2p.net.private_network import guard_network

_CLOSE_TIMEOUT_S = 3.0


def build_host(
    config: NetworkConfig,
    seed: bytes,
    listen: Sequence[Multiaddr],
    counters: Counters,
    blame: Callable[[PeerId], None] = lambda _peer: None,
    *,
    shares: HostShares | None = None,
) -> Any:
    """Build a host with every repair applied. Opens nothing yet.

    With the fast transport, B13 does not arise: its own multiplexer enforces windows. What is offered on the wire is
    the same with both.

    B2: the library also offers an unencrypted transport by default, over which anybody is let in as anybody whose
    public key he knows; here noise is the only one.
    B11: a link that goes silent is never noticed by default; here the library's pings close it.
    """
    key_pair = create_identity_from_seed(seed)
    fast = config.transport is Transport.FAST
    noise = (FastNoise if fast else NoiseTransport)(key_pair, noise_privkey=create_x25519_key_pair().private_key)
    connections = ConnectionConfig(
        max_connections=config.peers_max,
        # no floor: inbound slots are (maximum - minimum), and the floor only drives the automatic dialling
        min_connections=0,
        low_watermark=0,
        # as high as the maximum, so that the library never closes connections of its own accord
        high_watermark=config.peers_max,
        # with more than one, every dial waits a quarter of a second for a second connection
        max_connections_per_peer=1,
        dial_timeout=config.dial_timeout_s,
        enable_health_monitoring=True,
        health_initial_delay=config.health_delay_s,
        health_warmup_window=min(5.0, config.health_delay_s),
        health_check_interval=config.health_interval_s,
        ping_timeout=config.health_timeout_s,
        abort_connection_on_ping_failure=True,
    )
    announce = [Multiaddr(address) for address in config.announce] or None
    host = new_host(
        key_pair=key_pair,
        sec_opt={NOISE: noise},
        # the library would also offer mplex, which has no flow control at all
        muxer_opt={YAMUX: Yamux},
        listen_addrs=list(listen),
        connection_config=connections,
        announce_addrs=announce,
    )
    guard_network(host, config.network_key, counters, accepted=config.accepted_key)
    contain_stream_failures(host, counters)
    bound_negotiation()
    if fast:
        host.get_network().upgrader = FastUpgrader(noise, counters, blame)
    else:
        enforce_windows(host, counters)
    free_inbound_slots(host, counters, config.peers_max, Handshakes(counters), shares or host_shares(config, counters))
    own_the_dialling(host, frozenset({DHT_PROTOCOL}))
    close_only_what_is_there(host)
    forget_closed_listeners(host)
    return host


def host_shares(config: NetworkConfig, counters: Counters) -> HostShares:
    """Return the counts of what each address has, for `build_host`, to look at them later."""
    return HostShares(
        counters, per_host=config.connections_per_host, on_this_machine=config.connections_on_this_machine
    )


def check_ports_free(listen: Sequence[Multiaddr]) -> None:
    """B10: listening on an occupied port succeeds without a listener, or shares the port with another node.

    The library binds with SO_REUSEPORT, so the kernel would deal out connections between two nodes. A plain socket
    cannot be bound then, which this uses as the test.

    Raises:
        NetworkError: an address cannot be listened on.
    """
    for address in listen:
        text = str(address)
        port = tcp_port(text)
        if port == 0:
            continue
        family = socket.AF_INET6 if text.startswith("/ip6/") else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # without it, connections of a node that just ended would keep the port busy for a minute
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host_of(text), port))
            except OSError as error:
                raise _listen_error(text, error) from error


def _listen_error(address: str, error: OSError) -> NetworkError:
    if error.errno == errno.EADDRINUSE:
        hint = "stop the other program, or choose another port (0 lets the system choose)"
        return NetworkError(f"cannot listen on {address}: another program holds this port", hint=hint)
    if error.errno == errno.EADDRNOTAVAIL:
        hint = "listen on an address of this machine, or on /ip4/0.0.0.0/tcp/…"
        return NetworkError(f"cannot listen on {address}: this machine has no such address", hint=hint)
    return NetworkError(f"cannot listen on {address}: {error.strerror or error}")


def missing_listeners(host: Any, listen: Sequence[Multiaddr]) -> list[str]:
    """Return the addresses that were asked for and are not listened on (the other half of B10)."""
    listeners = host.get_network().listeners
    return [
        str(address) for address in listen if str(address) not in listeners or not listeners[str(address)].get_addrs()
    ]


def transport_addresses(host: Any, announce: Sequence[str]) -> tuple[str, ...]:
    """Return where the host can be dialled, without `/p2p/…`: wildcards are replaced by the interfaces' addresses."""
    if announce:
        return tuple(announce)
    found: dict[str, None] = {}
    for bound in map(str, host.get_transport_addrs()):
        if is_unspecified(bound):
            found.update(dict.fromkeys(map(str, get_thin_waist_addresses(Multiaddr(bound)))))
            # for the other nodes of this machine, which may have no other interface
            loopback = "/ip6/::1" if bound.startswith("/ip6/") else "/ip4/127.0.0.1"
            found[f"{loopback}/tcp/{tcp_port(bound)}"] = None
        else:
            found[bound] = None
    # an address that works from elsewhere comes first: readers copy the first one
    return tuple(sorted(found, key=is_loopback))


async def close_host(host: Any) -> None:
    """B4: the end of the library's own `run` leaks the socket of every connection until the process ends.

    So the connections are closed first, all at once, because the library takes a tenth of a second for each; and this
    runs in a task that is shielded from cancellation.
    """
    swarm = host.get_network()
    with trio.move_on_after(_CLOSE_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for connections in list(swarm.connections.values()):
                for connection in list(connections):
                    nursery.start_soon(_close_connection, connection)
    with trio.move_on_after(_CLOSE_TIMEOUT_S):
        try:
            await host.close()
        except Exception as error:  # noqa: BLE001 - the end of a host must not hide why it ended
            log.warning("closing the host failed: %r", error)


async def _close_connection(connection: Any) -> None:
    try:
        await connection.close()
    except Exception as error:  # noqa: BLE001 - closing a broken connection may fail in any way
        log.debug("closing a connection failed: %r", error)
