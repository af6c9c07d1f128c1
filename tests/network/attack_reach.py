"""Attacks on how nodes are reached: relays that are to be filled, and dials that are to hit others.

Knows: the protocols of relays, of dialling back and of going past a relay. Must not know: how the damage is measured.
Every victim serves as a relay here.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, suppress
from typing import Any

import multiaddr
import trio
from attack_ground import Ground
from attack_wire import Attacker
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from converge_p2p.core import limits
from converge_p2p.core.types import PeerId
from converge_p2p.net.framing import encode_varint
from converge_p2p.net.names import raw_peer_id
from converge_p2p.net.reach import autonat, punch, relay_wire
from converge_p2p.net.reach.messages import encode_message, read_message
from converge_p2p.net.reach.relay_wire import HOP, STOP, Status

CHUNK = os.urandom(65_536)
STALL_S = 3.0


async def reach_protocols(ground: Ground) -> int:
    """Garbage on the protocols of relays, of dialling back and of going past a relay."""
    junk = [b"\x05hello", b"\xff" * 40, encode_varint(2**40), b"\x00", encode_varint(4097) + os.urandom(4097)]
    wrong = {
        HOP: [relay_wire.hop_status(Status.OK), encode_message(HopMessage(type=HopMessage.CONNECT))],
        STOP: [relay_wire.stop_status(Status.OK), relay_wire.offer(raw_peer_id(_nobody(ground)), _NO_LIMIT)],
        autonat.PROTOCOL: [encode_message(Message(type=Message.DIAL_RESPONSE))],
        punch.PROTOCOL: [encode_message(HolePunch(type=HolePunch.SYNC))],
    }
    count = 0
    for address in ground.addresses:
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.link(address)
            for protocol, samples in wrong.items():
                for sample in (*junk, *samples) * ground.scale:
                    with trio.move_on_after(2), suppress(Exception):
                        stream = await attacker.stream(peer, protocol)
                        await stream.write(sample)
                        await stream.reset()
                    count += 1
    return count


_NO_LIMIT = relay_wire.CircuitLimit()


def _nobody(ground: Ground) -> PeerId:
    return ground.other_keys()[0]


async def relay_floods(ground: Ground) -> int:
    """Take every place of a host, open circuits to who never reads, and pour into them."""
    count = 0
    for address in ground.addresses:
        async with AsyncExitStack() as stack:
            names = [await stack.enter_async_context(Attacker.open(ground.fresh())) for _ in range(6)]
            sink, source = names[0], names[1]
            sink.network._host.set_stream_handler(STOP, _take_and_never_read)
            victims = [await attacker.link(address) for attacker in names]
            for attacker, victim in zip(names, victims, strict=True):
                for _ in range(4):
                    count += await _ask(attacker, victim, relay_wire.reserve())
            target = raw_peer_id(sink.network.peer_id)
            async with trio.open_nursery() as nursery:
                for _ in range(2 * limits.RELAY_CIRCUITS_PER_PEER_MAX):
                    nursery.start_soon(_pour, source, victims[1], relay_wire.connect(target))
                    count += 1
            await ground.newcomer_is_served("while a relay was filled")
    return count


async def _take_and_never_read(stream: Any) -> None:
    await read_message(stream, StopMessage)
    await stream.write(relay_wire.stop_status(Status.OK))
    await trio.sleep(2 * STALL_S)


async def _pour(attacker: Attacker, victim: PeerId, request: bytes) -> None:
    with trio.move_on_after(STALL_S), suppress(Exception):
        stream = await attacker.stream(victim, HOP)
        await stream.write(request)
        await read_message(stream, HopMessage)
        while True:
            await stream.write(CHUNK)


async def _ask(attacker: Attacker, victim: PeerId, request: bytes) -> int:
    with trio.move_on_after(2), suppress(Exception):
        stream = await attacker.stream(victim, HOP)
        await stream.write(request)
        await read_message(stream, HopMessage)
    return 1


async def dials_at_others(ground: Ground) -> int:
    """Ask to be dialled at the addresses of others, far too often; a bystander must see none of it."""
    seen: list[Any] = []

    async def bystand(stream: trio.SocketStream) -> None:
        seen.append(stream.socket.getpeername())
        await stream.aclose()

    count = 0
    async with trio.open_nursery() as nursery:
        # another host than the one that the attackers are seen at
        listeners = await nursery.start(_listen, "127.0.0.9", bystand)
        port = listeners[0].socket.getsockname()[1]
        for address in ground.addresses:
            async with Attacker.open(ground.fresh()) as attacker:
                peer = await attacker.link(address)
                request = Message(type=Message.DIAL)
                request.dial.peer.id = raw_peer_id(attacker.network.peer_id).to_bytes()
                request.dial.peer.addrs.append(multiaddr.Multiaddr(f"/ip4/127.0.0.9/tcp/{port}").to_bytes())
                for _ in range(20 * ground.scale):
                    with trio.move_on_after(2), suppress(Exception):
                        stream = await attacker.stream(peer, autonat.PROTOCOL)
                        await stream.write(encode_message(request))
                        await read_message(stream, Message)
                    count += 1
        nursery.cancel_scope.cancel()
    if seen:
        ground.failed(f"a bystander was dialled {len(seen)} times")
    return count


async def _listen(host: str, handler: Any, *, task_status: Any) -> None:
    listeners = await trio.open_tcp_listeners(0, host=host)
    await trio.serve_listeners(handler, listeners, task_status=task_status)
