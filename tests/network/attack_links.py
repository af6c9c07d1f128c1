"""Attacks below the project's own frames: sockets, handshakes, streams, and the library's protocols.

Knows: TCP, noise, yamux, multistream, gossipsub's and Kademlia's messages. Must not know: operations.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import multiaddr
import trio
from attack_ground import Ground
from attack_wire import Attacker, victim_of
from libp2p import create_identity_from_seed, new_host
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage, Record as KadRecord
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE, Transport as NoiseTransport

from converge_p2p.core import limits
from converge_p2p.net.addresses import split_peer_address, tcp_port
from converge_p2p.net.framing import encode_varint
from converge_p2p.net.names import raw_peer_id

MULTISTREAM = b"\x13/multistream/1.0.0\n"
SYNC = "/converge/sync/1.0.0"
GOSSIP = "/meshsub/1.1.0"
MEGABYTE = b"\xa5" * 2**20
_HEADER = ">BBHII"


@asynccontextmanager
async def _sockets(ground: Ground, count: int) -> AsyncIterator[list[trio.SocketStream]]:
    """Plain TCP connections, dealt out over the victims."""
    ports = [tcp_port(split_peer_address(address)[1]) for address in ground.addresses]
    opened: list[trio.SocketStream] = []
    try:
        for number in range(count):
            with suppress(OSError):
                opened.append(await trio.open_tcp_stream("127.0.0.1", ports[number % len(ports)]))
        yield opened
    finally:
        for stream in opened:
            await trio.aclose_forcefully(stream)


async def _push(stream: trio.SocketStream, data: bytes, seconds: float = 5.0) -> None:
    with trio.move_on_after(seconds), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(data)


async def garbage_bytes(ground: Ground) -> int:
    """Bytes that are no protocol at all."""
    samples = [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", bytes(4096), b"\xff" * 4096]
    samples += [MULTISTREAM + b"\xff\xff\xff", MULTISTREAM + b"\x03na\n", os.urandom(65_536), b"\n" * 100_000]
    count = 20 * ground.scale
    for _ in range(count):
        async with _sockets(ground, len(samples)) as opened:
            for stream, sample in zip(opened, samples, strict=False):
                await _push(stream, sample, 0.2)
    return count * len(samples)


async def silent_handshakes(ground: Ground) -> int:
    """Connections that never say a word, and ones that stop in the middle of the noise handshake."""
    count = 150 * ground.scale
    async with _sockets(ground, 3 * count) as opened:
        for number, stream in enumerate(opened):
            if number % 2:
                await _push(stream, MULTISTREAM + b"\x07/noise\n" + b"\x00\x20" + os.urandom(11), 0.2)
        await ground.newcomer_is_served("while all handshakes stall")
    return 3 * count


async def boundless_lengths(ground: Ground) -> int:
    """A length of 2**40 before the handshake, and as many bytes of it as the victim takes."""
    megabytes = 24 * ground.scale
    async with _sockets(ground, 3) as opened, trio.open_nursery() as nursery:

        async def fill(stream: trio.SocketStream) -> None:
            await _push(stream, MULTISTREAM + encode_varint(2**26))
            for _ in range(megabytes):
                await _push(stream, MEGABYTE, 1.0)

        for stream in opened:
            nursery.start_soon(fill, stream)
    for number in range(3):
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.link(ground.addresses[number])
            raw = await attacker.network._host.get_network().new_stream(raw_peer_id(peer))
            with trio.move_on_after(10), suppress(Exception):
                await raw.write(MULTISTREAM + encode_varint(2**26))
                for _ in range(megabytes):
                    await raw.write(MEGABYTE)
    return 6


async def plaintext_impostor(ground: Ground) -> int:
    """A victim's peer id over an unencrypted connection, where nothing would have to be proven."""
    for address, key in zip(ground.addresses, ground.other_keys(), strict=True):
        identity = create_identity_from_seed(os.urandom(32))
        insecure = InsecureTransport(identity)
        host = new_host(key_pair=identity, sec_opt={PLAINTEXT_PROTOCOL_ID: insecure})
        vars(insecure)["local_peer"] = raw_peer_id(key)
        async with host.run([]):
            peer, transport = split_peer_address(address)
            with trio.move_on_after(5), suppress(Exception):
                await host.connect(PeerInfo(raw_peer_id(peer), [multiaddr.Multiaddr(transport)]))
            if host.get_network().get_connections(raw_peer_id(peer)):
                ground.failed("a victim let a plaintext impostor in")
    return len(ground.addresses)


async def connects_and_disconnects(ground: Ground) -> int:
    """300 connections that come and go, half of them torn off without a word."""
    done = 0

    async def come_and_go(address: str) -> None:
        nonlocal done
        # a new name now and then: state that is kept for each name must go, too
        async with Attacker.open(ground.fresh()) as attacker:
            for number in range(25):
                with suppress(Exception):
                    peer = await attacker.network.connect(address)
                    if number % 2:
                        await attacker.connection(peer).secured_conn.close()
                    await attacker.network.disconnect(peer)
                    done += 1

    async with trio.open_nursery() as nursery:
        for address in ground.addresses * 4:
            nursery.start_soon(come_and_go, address)
    if done < 250:
        ground.failed(f"only {done} of 300 connections came about")
    return done


async def stream_floods(ground: Ground) -> int:
    """Streams that are opened and left, thousands that are opened and reset, and protocols nobody speaks."""
    count = 0
    for address in ground.addresses:
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.link(address)
            network = attacker.network._host.get_network()
            with trio.move_on_after(10), suppress(Exception):
                for _ in range(200):
                    await network.new_stream(raw_peer_id(peer))
                    count += 1
            connection = attacker.connection(peer)
            with trio.move_on_after(10), suppress(Exception):
                for number in range(2000 * ground.scale):
                    for flags in (1, 8):
                        await connection._write_frame(struct.pack(_HEADER, 0, 1, flags, 200_001 + 2 * number, 0))
                    count += 1
    return count


async def window_overrun(ground: Ground) -> int:
    """A stream that nobody reads, and a sender that does not care for the flow-control window."""
    count = 0
    for address in ground.addresses:
        for _ in range(3):
            async with _mute_host(ground) as host:
                peer, transport = split_peer_address(address)
                raw = raw_peer_id(peer)
                await host.connect(PeerInfo(raw, [multiaddr.Multiaddr(transport)]))
                before = count
                # this host takes no replication stream, so the victim does not read on after the first frame. What
                # follows is a frame that may be as long, so that a read that got some of it has nothing to blame
                with trio.move_on_after(20), suppress(Exception):
                    stream = await host.new_stream(raw, [SYNC])
                    connection = host.get_network().get_connections(raw)[0].muxed_conn
                    number = stream.muxed_stream.stream_id
                    await stream.write(struct.pack(">I4sI", 4, b"wait", limits.SYNC_FRAME_BYTES_MAX))
                    part = MEGABYTE[:65_000]
                    for _ in range(1000 * ground.scale):
                        await connection._write_frame(struct.pack(_HEADER, 0, 0, 0, number, len(part)) + part)
                        count += 1
            if count > before:
                # on a busy machine a host may not get so far
                break
    return count


async def multiplexer_floods(ground: Ground) -> int:
    """Frames that no multiplexer sends, and floods of those that one does."""
    pings, strays = struct.pack(_HEADER, 0, 2, 1, 0, 1), struct.pack(_HEADER, 0, 0, 0, 999_999, 0)
    opening = b"".join(struct.pack(_HEADER, 0, 1, 1, 100_001 + 2 * number, 0) for number in range(20_000))
    samples = [b"\xff" * 12, struct.pack(_HEADER, 0, 0, 1, 100_001, 2**32 - 1), struct.pack(_HEADER, 0, 1, 1, 0, 0)]
    samples += [pings * 20_000, strays * 100_000, opening, b"\0\0\0\0half"]
    count = 0
    for address in ground.addresses:
        for sample in samples * ground.scale:
            async with Attacker.open(ground.fresh()) as attacker:
                peer = await attacker.link(address)
                connection = attacker.connection(peer)
                with trio.move_on_after(5), suppress(Exception):
                    await connection._write_frame(sample)
                    await attacker.until(lambda peer=peer: peer not in attacker.up)
                count += len(sample) // 12
    return count


@asynccontextmanager
async def _mute_host(ground: Ground) -> AsyncIterator[Any]:
    """A host that speaks none of the project's protocols."""
    key_pair = create_identity_from_seed(ground.fresh_seed())
    noise = NoiseTransport(key_pair, noise_privkey=create_x25519_key_pair().private_key)
    host = new_host(key_pair=key_pair, sec_opt={NOISE: noise})
    async with host.run([]):
        yield host


async def library_protocols(ground: Ground) -> int:
    """Garbage and floods on identify, ping, the hash table, peer exchange and direct requests."""
    identify = Identify(protocols=[f"/{number}" for number in range(20_000)])
    identify.listen_addrs.extend(multiaddr.Multiaddr(f"/ip4/10.0.0.1/tcp/{port}").to_bytes() for port in range(20_000))
    pushed = identify.SerializeToString()
    junk = KadRecord(key=b"/converge/x", value=os.urandom(1000))
    kad = [KadMessage(type=KadMessage.PUT_VALUE, key=junk.key, record=junk).SerializeToString()]
    kad += [KadMessage(type=KadMessage.FIND_NODE, key=os.urandom(30_000)).SerializeToString(), os.urandom(500), b""]
    samples = {
        "/ipfs/id/push/1.0.0": [encode_varint(len(pushed)) + pushed, encode_varint(2**40)],
        "/ipfs/id/1.0.0": [b"\xff" * 1000],
        "/ipfs/ping/1.0.0": [os.urandom(31), os.urandom(64)],
        "/converge/kad/1.0.0": [encode_varint(len(item)) + item for item in kad] + [encode_varint(2**40) + MEGABYTE],
        "/converge/peers/1.0.0": [b"\0\0\0\x01\xff", b"\xff\xff\xff\xff", b"\0\0\0\x02\x81\x01"],
        "/converge/direct/1.0.0": [b"\xff\xff\xff\xff", b"\0\0\0\x09short", b"\0\0\0\x05garba"],
    }
    count = 0
    for address in ground.addresses:
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.link(address)
            for protocol, hostile in samples.items():
                for sample in hostile * (3 * ground.scale):
                    with trio.move_on_after(5), suppress(Exception):
                        stream = await attacker.stream(peer, protocol)
                        await stream.write(sample)
                        await stream.reset()
                    count += 1
    return count


async def provider_records(ground: Ground) -> int:
    """Claims to provide content under made-up keys, which the library keeps without a bound."""
    count = 0
    for address in ground.addresses:
        for _ in range(5 * ground.scale):
            async with Attacker.open(ground.fresh()) as attacker:
                peer = await attacker.link(address)
                me = raw_peer_id(attacker.network.peer_id).to_bytes()
                for _ in range(10):
                    message = KadMessage(type=KadMessage.ADD_PROVIDER, key=os.urandom(64))
                    provider = message.providerPeers.add(id=me)
                    provider.addrs.extend(multiaddr.Multiaddr(f"/ip4/10.0.0.1/tcp/{n}").to_bytes() for n in range(500))
                    data = message.SerializeToString()
                    with trio.move_on_after(2), suppress(Exception):
                        stream = await attacker.stream(peer, "/converge/kad/1.0.0")
                        await stream.write(encode_varint(len(data)) + data)
                    count += 1
    return count


async def gossip_garbage(ground: Ground) -> int:
    """Bytes that are no protobuf, boundless lengths, and messages no node would sign."""
    count = 0
    topic = f"converge/pool/1/{ground.pool.hex()}"
    for address in ground.addresses:
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.link(address)
            me, victim = raw_peer_id(attacker.network.peer_id).to_bytes(), raw_peer_id(victim_of(address)).to_bytes()
            bad = [
                rpc_pb2.Message(data=b"1", topicIDs=[topic], from_id=me, seqno=b"1" * 8),
                rpc_pb2.Message(data=b"2", topicIDs=[topic], from_id=me, seqno=b"2" * 8, signature=b"s" * 64),
                rpc_pb2.Message(data=b"3", topicIDs=[topic], from_id=victim, seqno=b"3" * 8, signature=b"s" * 64),
                rpc_pb2.Message(data=b"4", topicIDs=[topic], from_id=b"", seqno=b"4" * 8, signature=b"s" * 64),
                rpc_pb2.Message(data=b"5", topicIDs=[topic, "u"], from_id=me, seqno=b"5"),
                rpc_pb2.Message(data=b"6", topicIDs=[topic], from_id=b"\x12\x20" + b"a" * 32, seqno=b"6" * 8, key=b"!"),
                rpc_pb2.Message(
                    data=bytes(limits.GOSSIP_DATA_BYTES_MAX + 1), topicIDs=[topic], from_id=me, seqno=b"7" * 8
                ),
            ]
            frames = [rpc_pb2.RPC(publish=[message]).SerializeToString() for message in bad]
            hostile = [encode_varint(len(frame)) + frame for frame in frames]
            hostile += [b"\xff" * 12, encode_varint(40) + b"\xff" * 40, encode_varint(3) + b"\x0a\x7f\x00"]
            for sample in hostile * (5 * ground.scale):
                with trio.move_on_after(2), suppress(Exception):
                    stream = await attacker.stream(peer, GOSSIP)
                    await stream.write(sample)
                    await stream.close()
                count += 1
    return count


async def gossip_control_floods(ground: Ground) -> int:
    """Subscriptions and control messages for topics without end, with names without end."""
    count = 0
    for address in ground.addresses:
        async with Attacker.open(ground.fresh()) as attacker:
            peer = await attacker.link(address)
            for rpc in _control_messages(200 * ground.scale):
                data = rpc.SerializeToString()
                with trio.move_on_after(2), suppress(Exception):
                    if not count % 50:
                        stream = await attacker.stream(peer, GOSSIP)
                    await stream.write(encode_varint(len(data)) + data)
                count += 1
    return count


def _control_messages(rounds: int) -> list[rpc_pb2.RPC]:
    found = []
    for number in range(rounds):
        # 20 names of 20 kB each, all different
        names = [f"{number}/{index}/" + "n" * 20_000 for index in range(20)]
        rpc = rpc_pb2.RPC()
        match number % 4:
            case 0:
                rpc.subscriptions.extend(rpc_pb2.RPC.SubOpts(subscribe=True, topicid=name) for name in names)
            case 1:
                for name in names:
                    prune = rpc.control.prune.add(topicID=name, backoff=2**40)
                    prune.peers.add(peerID=os.urandom(34), signedPeerRecord=os.urandom(200))
            case 2:
                for name in names:
                    rpc.control.ihave.add(topicID=name, messageIDs=[os.urandom(20).hex().encode() for _ in range(50)])
            case _:
                for name in names:
                    rpc.control.graft.add(topicID=name)
        found.append(rpc)
    return found
