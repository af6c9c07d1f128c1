"""What comes in: who is let in as far as the handshake, who stays, and when its place is given back.

Knows: private names of libp2p 0.8.1, which is therefore pinned. Must not know: what travels over the connections.
Source: measurements on libp2p 0.8.1 (docs/decisions, "The transport library and its faults"); docs/threat-model.md.
"""

from __future__ import annotations

from typing import Any

import trio
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from converge_p2p.core import limits
from converge_p2p.net.hardening import Counters, log, shielded
from converge_p2p.net.host_shares import HostShares, source_of
from converge_p2p.net.intake import Handshakes


def free_inbound_slots(
    host: Any, counters: Counters, inbound_max: int, handshakes: Handshakes, shares: HostShares
) -> None:
    """B3: an inbound slot is given back only when the swarm stops.

    Stock, the handler of an inbound connection waits for the end of the swarm in place of the end of the connection,
    so that after as many inbound connections *ever* as there are slots, all further ones are refused. This handler
    waits for the end of its connection. And stock, one address may take all the slots; here it gets a share.

    Args:
        host: the host.
        counters: where refusals are counted.
        inbound_max: how many connections may be held.
        handshakes: those under way; they take no slots.
        shares: what one address gets.
    """
    swarm = host.get_network()
    swarm._inbound_limiter = trio.CapacityLimiter(inbound_max + limits.HANDSHAKES_MAX + 1)
    held: set[RawConnection] = set()

    async def handle(channel: Any, listener: Multiaddr, _failure: Any) -> None:
        remote = swarm._build_remote_multiaddr(channel)
        # one that comes through a relay is a connection already, and takes a slot as any other
        raw = channel if isinstance(channel, RawConnection) else RawConnection(channel, False)
        try:
            source = source_of(raw)
            denied = remote is not None and not await swarm.connection_gate.is_allowed(remote)
            # before a byte is read: a handshake is what costs
            if denied or len(held) >= inbound_max or not shares.admits(source):
                counters["inbound_connection_denied"] += 1
                return
            muxed = None
            with handshakes.one(source):
                muxed = await swarm.upgrade_inbound_raw_conn(raw, listener)
            if muxed is None:
                return
            if len(held) >= inbound_max or shares.full(source):
                # several handshakes ended at once, for the last free place
                counters["inbound_connection_denied"] += 1
                await muxed.close()
                return
            held.add(raw)
            with shares.held(source), swarm.psk.counted(raw):
                for connection in swarm.get_connections(muxed.peer_id):
                    if connection.muxed_conn is muxed:
                        await connection.event_closed.wait()
        except Exception as error:  # noqa: BLE001 - the edge: a failed handshake concerns nobody else
            counters["inbound_connection_failed"] += 1
            log.debug("inbound connection failed: %r", error)
        finally:
            held.discard(raw)
            # also on cancellation, or the socket stays open until the process ends
            with shielded(1):
                try:
                    await raw.close()
                except Exception as error:  # noqa: BLE001 - closing a broken connection may fail in any way
                    log.debug("closing an inbound connection failed: %r", error)

    swarm._do_handle_inbound_connection = handle
