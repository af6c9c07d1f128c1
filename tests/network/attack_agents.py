"""Attacks by strangers on discovery: descriptors of made-up agents, forged ones, and messages about agents without end.

Knows: descriptors and the messages about them. Must not know: how links are made.
"""

from __future__ import annotations

import os
import time

import trio
from attack_frames import FLOOD_S
from attack_ground import Ground
from attack_wire import Attacker

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.identity import Identity
from converge_p2p.core.model import agent_exchange as exchange
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.node.agent_news import TOPIC

AGENTS = bytes([5])
MADE_UP = 1500


def _descriptors(count: int) -> list[AgentDescriptor]:
    now_ms = int(time.time() * 1000)
    skills = [Capability("everything"), *(Capability(f"skill-{n}-{'x' * 50}") for n in range(20))]
    return [
        AgentDescriptor.create(Identity.from_seed(os.urandom(32)), sequence=1, now_ms=now_ms, capabilities=skills)
        for _ in range(count)
    ]


def _message(message: exchange.AgentMessage) -> bytes:
    return AGENTS + exchange.encode_agent_message(message)


async def _against_all(ground: Ground, payloads: list[bytes], gossip: list[bytes]) -> int:
    """Send frames and gossip to every victim, each from an identity of its own, at the same time."""
    sent: list[int] = []

    async def one(address: str) -> None:
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.try_link(address)
            if peer is None:
                ground.failed("an attacker without a history could not connect")
                return
            for data in gossip:
                await attacker.network.publish(TOPIC, data)
            sent.append(len(gossip) + await attacker.flood(peer, payloads, FLOOD_S))

    async with trio.open_nursery() as nursery:
        for address in ground.addresses:
            nursery.start_soon(one, address)
    return sum(sent)


async def made_up_agents(ground: Ground) -> int:
    """Genuine descriptors of agents that nobody needs, one that speaks all the time, and comparisons that never end."""
    made_up = _descriptors(MADE_UP)
    busy, now_ms = Identity.from_seed(os.urandom(32)), int(time.time() * 1000)
    updates = [AgentDescriptor.create(busy, sequence=n, now_ms=now_ms) for n in range(200)]
    payloads = [_message(frame) for frame in exchange.in_frames([*made_up, *updates])]
    payloads += [_message(exchange.Digests(os.urandom(2048))) for _ in range(200)]
    payloads += [_message(exchange.Wants(tuple(each.agent_id for each in made_up))) for _ in range(50)]
    gossip = [each.to_bytes() for each in (*made_up[:500], *updates)]
    return await _against_all(ground, payloads * ground.scale, gossip)


async def forged_agents(ground: Ground) -> int:
    """Descriptors with wrong signatures, of another size, malformed messages, and what nobody asked for."""
    forged = []
    for descriptor in _descriptors(300):
        data = bytearray(descriptor.to_bytes())
        data[-1] ^= 1
        forged.append(bytes(data))
    payloads = [
        _message(exchange.Descriptors(tuple(forged[at : at + limits.DESCRIPTORS_PER_FRAME_MAX])))
        for at in range(0, len(forged), limits.DESCRIPTORS_PER_FRAME_MAX)
    ]
    payloads += [AGENTS, AGENTS + os.urandom(100), AGENTS + encode([2, [b"x" * limits.DESCRIPTOR_BYTES_MAX * 2]])]
    payloads += [AGENTS + encode([1, [[n, [[os.urandom(32), 1, bytes(8)]] * 100] for n in range(32)]])]
    return await _against_all(ground, payloads * (20 * ground.scale), forged)
