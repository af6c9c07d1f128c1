"""Attacks by strangers with the project's own frames: sync, announcements, operations, gossip, direct requests.

Knows: the frames and operations of a pool. Must not know: how links are made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import cbor2
import trio
from attack_ground import Ground
from attack_wire import ANNOUNCE, NOT_HERE, POOL, Attacker, Chain, operation_frames, pool_frame, victim_of

from converge_p2p.core import limits
from converge_p2p.core.codec import domain_bytes, encode, encode_value
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.identity import Identity, fingerprint
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    Genesis,
    JoinBody,
    Phase,
    Purpose,
    ReportBody,
    SubmitBody,
    VoteBody,
)
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Missing
from converge_p2p.core.oplog.operation import OPERATION_TAG
from converge_p2p.core.replica.wire import (
    Comparison,
    Digest,
    Entries,
    GenesisWanted,
    Operations,
    Part,
    Want,
    encode_message,
)
from converge_p2p.core.types import OperationId, PoolId, PublicKey
from converge_p2p.net.names import public_key_of
from converge_p2p.node.mail import TAKEN

FLOOD_S = 8.0


async def _against_all(ground: Ground, payloads: list[bytes], seconds: float = FLOOD_S) -> int:
    """Send the same frames to every victim, each from an identity of its own, at the same time."""
    sent: list[int] = []

    async def one(address: str) -> None:
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.try_link(address)
            if peer is None:
                ground.failed("an attacker without a history could not connect")
                return
            sent.append(await attacker.flood(peer, payloads, seconds))

    async with trio.open_nursery() as nursery:
        for address in ground.addresses:
            nursery.start_soon(one, address)
    return sum(sent)


# ---------------------------------------------------------------- sync


async def broken_framing(ground: Ground) -> int:
    """Frame lengths over the bound, and frames that end early."""
    count = 0
    for address in ground.addresses:
        for sample in (b"\xff" * 8, (limits.SYNC_FRAME_BYTES_MAX + 1).to_bytes(4, "big") + b"x", b"\0\0\1\0half"):
            async with Attacker.open(ground.fresh()) as attacker:
                peer = await attacker.link(address)
                with trio.move_on_after(2):
                    try:
                        stream = await attacker.stream(peer, "/converge/sync/1.0.0")
                        await stream.write(sample)
                        await stream.close()
                    except Exception:
                        pass
                count += 1
    return count


async def hostile_cbor(ground: Ground) -> int:
    """Sync messages that are no CBOR, or CBOR that is meant to hurt whoever decodes it."""
    deep = b"\x81" * 200_000 + b"\x00"
    rational = b"\xd8\x1e\x82\x01\x1b\xff\xff\xff\xff\xff\xff\xff\xff"
    decimal = b"\xc4\x82\x1a\x3b\x9a\xca\x00\x01"
    samples = [
        b"", b"\xff", os.urandom(200), deep, b"\xa1" * 1000, rational, decimal, b"\xc2\x58\xff" + b"\xff" * 255,
        b"\x9b" + b"\xff" * 8, b"\x5b" + b"\xff" * 8, b"\x9f" + b"\x00" * 1000, b"\xd9\xd9\xf7\x80", b"\xf9\x7e\x00",
        b"\x82\x18\x00\x58\x20" + bytes(32), encode([9]), encode([0, b"short"]), encode([1, [], b"", b"", 1]),
        encode([2, [[b"x" * 32, 5, 5]], []]), encode([2, [[b"x" * 32, 0, 2**64 - 1]], []]), encode([3, [1], True]),
        encode([1, [[bytes(32), 2**63, bytes(32), None]], b"", b"", True]), cbor2.dumps([0, 1.5]),
        encode([3, [b"x" * 64] * 6000, True]), bytes(limits.SYNC_FRAME_BYTES_MAX - 40),
    ]  # fmt: skip
    frames = [pool_frame(ground.pool, sample) for sample in samples]
    frames += [b"", b"\xff", bytes([POOL]) + b"short", bytes([77]) + ground.pool]
    return await _against_all(ground, frames * (20 * ground.scale))


async def unknown_pools(ground: Ground) -> int:
    """Frames for pools that nobody is in: every one asks for an answer."""
    payloads = [pool_frame(PoolId(os.urandom(32)), GenesisWanted()) for _ in range(2000 * ground.scale)]
    return await _against_all(ground, payloads)


async def flapping(ground: Ground) -> int:
    """Leave and come back with every frame, so that each digest is the first of a new session."""
    leave, digest = bytes([NOT_HERE]) + ground.pool, Digest(os.urandom(32))
    return await _against_all(ground, [leave, pool_frame(ground.pool, digest)] * (1000 * ground.scale))


async def lying_frontiers(ground: Ground) -> int:
    """Frontiers of authors who do not exist, of endless length, and of victims' chains longer than they are."""

    def pages() -> Iterator[bytes]:
        for _ in range(300 * ground.scale):
            keys = sorted(os.urandom(32) for _ in range(limits.FRONTIER_WHOLE_AUTHORS_MAX))
            yield encode_page([FrontierEntry(PublicKey(key), 2**50, OperationId(os.urandom(32)), None) for key in keys])
            mine = sorted(ground.field.keys)
            yield encode_page([FrontierEntry(key, 2**40, OperationId(os.urandom(32)), os.urandom(32)) for key in mine])
            many = sorted(os.urandom(32) for _ in range(limits.FRONTIER_ENTRIES_PER_MESSAGE_MAX))
            heads = [FrontierEntry(PublicKey(key), 2**50, OperationId(os.urandom(32)), None) for key in many]
            yield pool_frame(ground.pool, Entries(tuple(heads), True))
            parts = [Part(number.to_bytes(2, "big"), os.urandom(16)) for number in range(64, 1024)]
            yield pool_frame(ground.pool, Comparison(b"", tuple(parts)))

    def encode_page(entries: list[FrontierEntry]) -> bytes:
        return pool_frame(ground.pool, Comparison(b"", (Part(b"", tuple(entries)),)))

    return await _against_all(ground, list(pages()))


async def request_floods(ground: Ground) -> int:
    """Digests, requests for everything, and for the founding terms, as fast as they go."""
    ranges = tuple(Missing(key, 0, 2**40) for key in ground.field.keys) * 20
    payloads = [
        pool_frame(ground.pool, Want(ranges)),
        pool_frame(ground.pool, GenesisWanted()),
        pool_frame(ground.pool, Digest(os.urandom(32))),
        pool_frame(ground.pool, Comparison(b"", (Part(b"", ()),))),
    ]
    return await _against_all(ground, payloads * (1000 * ground.scale))


# ---------------------------------------------------------------- announcements


def _announcement(founder: Identity, name: str = "come and work here") -> list[bytes]:
    spec = PoolSpec(name, os.urandom(16), GovernanceKind.DICTATORIAL, (founder.public_key,), task_types=("echo",))
    pool = pool_id(founder.public_key, spec)
    return [pool, Chain(founder, pool).sign(Genesis(spec)).signed]


async def junk_pools(ground: Ground) -> int:
    """Announcements: genuine ones of worthless pools, and forged ones under the id of the victims' pool."""
    sent = 0
    for _ in range(3):
        genuine = [_announcement(ground.fresh_identity()) for _ in range(100 * ground.scale)]
        forged = [[ground.pool, item[1]] for item in genuine[:20]]
        junk = [[os.urandom(32), os.urandom(300)] for _ in range(20)]
        payloads = [bytes([ANNOUNCE]) + encode([item]) for item in (*genuine, *forged, *junk)]
        payloads += [bytes([ANNOUNCE]) + bad for bad in (b"", b"\xff", encode([[1]] * 500), encode({}))]
        sent += await _against_all(ground, payloads)
    return sent


# ---------------------------------------------------------------- operations


def _flip(signed: bytes, at: int) -> bytes:
    return signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]


def _resigned(who: Identity, payload: bytes) -> bytes:
    """Sign bytes that `sign_operation` would not make."""
    return who.sign(OPERATION_TAG, payload) + payload


async def forged_operations(ground: Ground) -> int:
    """Unsigned, wrongly signed, spoofed, altered, oversized and non-canonical operations."""
    stranger, real = ground.fresh_identity(), ground.log[0]
    chain = Chain(stranger, ground.pool)
    fields = cbor2.loads(real[64:])
    spoofed = list(fields)
    spoofed[3], spoofed[4] = 4000, os.urandom(32)
    wrong_key = encode(spoofed)
    join = chain.sign(JoinBody()).signed
    long_form = join[64:].replace(b"\x8a\x01\x58\x20", b"\x8a\x18\x01\x58\x20", 1)
    other = Chain(stranger, PoolId(os.urandom(32))).sign(JoinBody()).signed
    hostile = [
        bytes(64) + real[64:], _flip(real, 3), _flip(real, 100), _flip(real, len(real) - 1), real[:80], b"", b"x" * 70,
        stranger.sign(OPERATION_TAG, wrong_key) + wrong_key, bytes(limits.OPERATION_BYTES_MAX + 1), other,
        _resigned(stranger, long_form), _resigned(stranger, join[64:] + b"\x00"), join[:64] + domain_bytes("x", join),
        _resigned(stranger, encode([2, *cbor2.loads(join[64:])[1:]])),
    ]  # fmt: skip
    frames = [pool_frame(ground.pool, Operations((item,))) for item in hostile]
    return await _against_all(ground, frames * (100 * ground.scale))


async def invalid_signatures_in_bulk(ground: Ground) -> int:
    """Frames as large as they may be, full of operations whose signatures do not hold: each costs a verification."""
    who = ground.fresh_identity()
    body = encode([1, ground.pool, who.public_key, 0, None, [], 0, 1, 1, [[], b""]])
    frames = []
    for _ in range(12 * ground.scale):
        parts = tuple(os.urandom(64) + body for _ in range((limits.BATCH_BYTES_MAX - 1000) // (len(body) + 66)))
        frames.append(pool_frame(ground.pool, Operations(parts)))
    return await _against_all(ground, frames * 4, 20.0)


async def replays(ground: Ground) -> int:
    """Every operation of the pool, again and again, in any order, from a stranger."""
    frames = operation_frames(ground.pool, [*reversed(ground.log), *ground.log])
    return await _against_all(ground, frames * (100 * ground.scale))


async def operations_of_strangers(ground: Ground) -> int:
    """Well signed operations of somebody who never joined: submits, claims, votes, reports."""
    operations = []
    for _ in range(20 * ground.scale):
        who = ground.fresh_identity()
        value = TaskValue(Outcome.COMPLETED, who.public_key, encode_value("mine"))
        for task in (*ground.tasks, *ground.settled[:2]):
            bodies: list[Body] = [
                SubmitBody(TaskSpec(b"k", "echo", encode_value({}))), ClaimBody(task), ReportBody(task, 0, value, ()),
                ClaimBody(task, Purpose.CANCEL), VoteBody((Ballot(Phase.ACCEPT, task, 0, value.hash),)),
            ]  # fmt: skip
            operations += [Chain(who, ground.pool).sign(body).signed for body in bodies]
    return await _against_all(ground, operation_frames(ground.pool, operations) * 2)


async def parked_floods(ground: Ground) -> int:
    """Operations whose predecessors nobody has: many small ones of many authors, and more large ones than fit."""
    operations = []
    big = TaskSpec(b"k", "echo", encode_value("x" * 40_000))
    for _ in range(200 * ground.scale):
        chain = Chain(ground.fresh_identity(), ground.pool)
        parked: list[tuple[int, Body]] = [(seq, JoinBody()) for seq in range(3, 8)]
        parked += [(99, SubmitBody(big)), (98, SubmitBody(big))]
        operations += [chain.sign(body, seq=seq, prev=OperationId(os.urandom(32))).signed for seq, body in parked]
    return await _against_all(ground, operation_frames(ground.pool, operations), 20.0)


# ---------------------------------------------------------------- gossip and messages


async def gossiped_operations(ground: Ground) -> int:
    """Genuine gossip messages with forged, replayed and worthless contents."""
    topic, count = f"converge/pool/1/{ground.pool.hex()}", 0
    payloads = [os.urandom(100), encode([9]), encode_message(Digest(bytes(32)))]
    payloads += [encode_message(Operations((_flip(ground.log[0], 3),))), encode_message(Operations(tuple(ground.log)))]
    payloads += [encode_message(Operations((ground.log[0],) * 100)), bytes(limits.GOSSIP_DATA_BYTES_MAX)]
    for address in ground.addresses:
        async with Attacker.open(ground.fresh(), gossip_heartbeat_s=0.5) as attacker:
            await attacker.link(address)
            await attacker.network.subscribe(topic, lambda _peer, _data: None)
            await attacker.until(lambda: attacker.network._gossip.pubsub.peer_topics.get(topic), 5)
            for _ in range(40 * ground.scale):
                for payload in payloads:
                    await attacker.network.publish(topic, payload)
                    count += 1
            await trio.sleep(1.5)
    return count


async def forged_messages(ground: Ground) -> int:
    """Direct requests: garbage, and messages that are forged, misaddressed, expired or repeated."""
    count, now = 0, int(time.time() * 1000)
    for address in ground.addresses:
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.link(address)
            me, victim = attacker.identity, fingerprint(public_key_of(victim_of(address)))
            good = Message.create(me.id, "hello", recipient=victim).stamp(now).sign(me).to_bytes()
            astray = Message.create(me.id, "hello", recipient=me.id).stamp(now).sign(me).to_bytes()
            old = Message.create(me.id, "hello", recipient=victim).stamp(now - 10**9, ttl_ms=1000).sign(me).to_bytes()
            accepted: set[bytes] = set()
            for _ in range(20 * ground.scale):
                for data in (os.urandom(300), b"", _flip(good, len(good) - 5), astray, old, good, b"\xc1" * 1000):
                    try:
                        if (await attacker.network.request(peer, data, timeout_s=5)).startswith(TAKEN):
                            accepted.add(data)
                    except ConvergeError:
                        pass
                    count += 1
            # the genuine one is acknowledged again and again, and taken once
            if accepted - {good}:
                ground.failed(f"a victim took {len(accepted - {good})} messages that it should have refused")
    return count
