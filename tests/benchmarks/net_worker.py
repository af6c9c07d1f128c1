"""A process of `bench_net.py`: a bare network that measures the connection to another process.

Usage: net_worker.py fast|stock|libp2p. `fast` and `stock` are this library's network room with either transport;
`libp2p` is the transport library alone, with the settings that its measurements recommend. Speaks JSON lines, one
answer for each order, and takes the same orders as `../network/libp2p_js/peer.mjs`.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from libp2p import create_identity_from_seed, new_host
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.network.config import ConnectionConfig
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE, Transport as NoiseTransport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from converge_p2p.net import NetworkConfig, Transport, open_network

LOCAL = "/ip4/127.0.0.1/tcp/0"
ECHO, SINK = "/bench/echo/1", "/bench/sink/1"
DATA, ACKS = "bench-data", "bench-acks"
ACK_EVERY = 16


class Quiet:
    """A handler that wants nothing."""

    def peer_up(self, peer):
        """Not of interest."""

    peer_down = peer_up

    def frame(self, peer, payload):
        """Not of interest."""

    async def request(self, peer, payload):
        """Send it back."""
        return payload


class OwnSide:
    """This library's network room."""

    def __init__(self, network: Any) -> None:
        self.host = network._host
        self.address = network.addresses[0]
        self._network = network

    async def connect(self, address: str) -> None:
        """Connect to the other process."""
        await self._network.connect(address)

    async def subscribe(self, topic: str, take: Any, _nursery: trio.Nursery) -> None:
        """Call `take` with the data of each message."""
        await self._network.subscribe(topic, lambda _peer, data: take(data))

    async def publish(self, topic: str, data: bytes) -> None:
        """Sign and send a message."""
        await self._network.publish(topic, data)

    def knows_subscriber(self, topic: str) -> bool:
        """Whether a message would reach anybody."""
        return bool(self._network._gossip.router.mesh.get(topic) or self._network._gossip.pubsub.peer_topics.get(topic))


class LibrarySide(OwnSide):
    """The transport library alone."""

    def __init__(self, host: Any, router: Any, pubsub: Any) -> None:
        self.host = host
        self.address = str(host.get_addrs()[0])
        self._router = router
        self._pubsub = pubsub

    async def connect(self, address: str) -> None:
        """Connect to the other process."""
        await self.host.connect(info_from_p2p_addr(Multiaddr(address)))

    async def subscribe(self, topic: str, take: Any, nursery: trio.Nursery) -> None:
        """Call `take` with the data of each message of others."""
        subscription = await self._pubsub.subscribe(topic)
        me = self.host.get_id().to_bytes()

        async def follow() -> None:
            async for message in subscription:
                if message.from_id != me:
                    take(message.data)

        nursery.start_soon(follow)

    async def publish(self, topic: str, data: bytes) -> None:
        """Sign and send a message."""
        await self._pubsub.publish(topic, data)

    def knows_subscriber(self, topic: str) -> bool:
        """Whether a message would reach anybody."""
        return bool(self._pubsub.peer_topics.get(topic))


@asynccontextmanager
async def open_side(kind: str) -> AsyncIterator[OwnSide]:
    """Run one side."""
    seed = os.urandom(32)
    if kind != "libp2p":
        config = NetworkConfig(listen=(LOCAL,), transport=Transport(kind), dht=False, peers_wanted=0)
        async with open_network(config, seed=seed, handler=Quiet()) as network:
            yield OwnSide(network)
        return
    identity = create_identity_from_seed(seed)
    host = new_host(
        key_pair=identity,
        sec_opt={NOISE: NoiseTransport(identity, noise_privkey=create_new_key_pair().private_key)},
        listen_addrs=[Multiaddr(LOCAL)],
        # otherwise every dial waits a quarter of a second
        connection_config=ConnectionConfig(max_connections_per_peer=1, min_connections=0, low_watermark=0),
    )
    router = GossipSub(
        ["/meshsub/1.1.0"], degree=6, degree_low=4, degree_high=12, heartbeat_interval=1,
        adaptive_gossip_enabled=False, spam_protection_enabled=False, eclipse_protection_enabled=False,
    )  # fmt: skip
    pubsub = Pubsub(host, router, strict_signing=True)
    async with host.run([Multiaddr(LOCAL)]), background_trio_service(router), background_trio_service(pubsub):
        await pubsub.wait_until_ready()
        yield LibrarySide(host, router, pubsub)


async def read_exactly(stream: Any, count: int) -> bytes:
    """Read so many bytes."""
    data = b""
    while len(data) < count:
        data += await stream.read(count - len(data))
    return data


async def echo(stream: Any) -> None:
    """Send back whatever comes."""
    # an exception would end the process of the library alone
    with suppress(Exception):
        while True:
            await stream.write(await stream.read(65_536))


async def sink(stream: Any) -> None:
    """Read so many bytes as the first eight say, then answer with one."""
    with suppress(Exception):
        left = struct.unpack("!Q", await read_exactly(stream, 8))[0]
        while left:
            left -= len(await stream.read(min(left, 262_144)))
        await stream.write(b".")


class Bench:
    """What can be ordered."""

    def __init__(self, side: OwnSide, nursery: trio.Nursery) -> None:
        self._side = side
        self._nursery = nursery
        self._peer: Any = None
        self._received = 0
        self._items = 0
        self._latencies_ms: list[float] = []
        self._batch = 1
        self._acknowledged = 0
        self._changed = trio.Event()

    async def do_connect(self, address: str) -> dict[str, Any]:
        """Connect, and say how long it took."""
        info = info_from_p2p_addr(Multiaddr(address))
        self._peer = info.peer_id
        began = time.perf_counter()
        await self._side.connect(address)
        return {"ms": (time.perf_counter() - began) * 1000}

    async def do_disconnect(self) -> dict[str, Any]:
        """Close the connection."""
        await self._side.host.disconnect(self._peer)
        while self._side.host.get_network().get_connections(self._peer):  # noqa: ASYNC110 - a script that measures
            await trio.sleep(0.01)
        return {}

    async def do_listen(self) -> dict[str, Any]:
        """Subscribe to the data; acknowledge every few messages."""
        await self._side.subscribe(DATA, self._take, self._nursery)
        await self._side.subscribe(ACKS, self._take_ack, self._nursery)
        return {}

    async def do_ready(self, topic: str) -> dict[str, Any]:
        """Wait until the other side is known to listen."""
        while not self._side.knows_subscriber(topic):  # noqa: ASYNC110 - a script that measures
            await trio.sleep(0.01)
        return {}

    def _take(self, data: bytes) -> None:
        self._received += 1
        self._latencies_ms.append((time.monotonic_ns() - struct.unpack_from("!Q", data)[0]) / 1e6)
        if self._received % ACK_EVERY == 0:
            self._nursery.start_soon(self._side.publish, ACKS, struct.pack("!Q", self._received))

    def _take_ack(self, data: bytes) -> None:
        self._acknowledged = max(self._acknowledged, struct.unpack("!Q", data)[0])
        self._changed.set()

    async def do_publish(self, count: int, size: int, window: int, pause_ms: float) -> dict[str, Any]:
        """Publish messages, at most so many ahead of the acknowledgements, until all are acknowledged."""
        filling = os.urandom(size - 8)
        first = self._acknowledged
        began, used = time.perf_counter(), time.process_time()
        for number in range(count):
            while not pause_ms and number - (self._acknowledged - first) >= window:
                self._changed = trio.Event()
                await self._changed.wait()
            await self._side.publish(DATA, struct.pack("!Q", time.monotonic_ns()) + filling)
            if pause_ms:
                await trio.sleep(pause_ms / 1000)
        with trio.move_on_after(10):
            while self._acknowledged - first < count // ACK_EVERY * ACK_EVERY:
                self._changed = trio.Event()
                await self._changed.wait()
        return {"seconds": time.perf_counter() - began, "processor_s": time.process_time() - used}

    async def do_report(self) -> dict[str, Any]:
        """Say what was received since the last report."""
        report = {
            "count": len(self._latencies_ms),
            "p50_ms": statistics.median(self._latencies_ms or [0]),
            "processor_s": time.process_time(),
        }
        self._latencies_ms = []
        return report

    async def do_requests(self, count: int, size: int) -> dict[str, Any]:
        """Requests and answers on one stream."""
        stream = await self._side.host.new_stream(self._peer, [ECHO])
        payload, times = bytes(size), []
        for _ in range(count):
            began = time.perf_counter()
            await stream.write(payload)
            await read_exactly(stream, size)
            times.append((time.perf_counter() - began) * 1000)
        await stream.reset()
        times.sort()
        return {"p50_ms": statistics.median(times), "p99_ms": times[len(times) * 99 // 100]}

    async def do_bulk(self, size: int, piece: int) -> dict[str, Any]:
        """One stream, written as fast as it is taken."""
        stream = await self._side.host.new_stream(self._peer, [SINK])
        payload, began = bytes(piece), time.perf_counter()
        await stream.write(struct.pack("!Q", size))
        for _ in range(size // piece):
            await stream.write(payload)
        await read_exactly(stream, 1)
        seconds = time.perf_counter() - began
        await stream.reset()
        return {"mb_per_s": size / seconds / 1e6}


async def main() -> None:
    """Obey until standard input ends."""
    async with open_side(sys.argv[1]) as side, trio.open_nursery() as nursery:
        side.host.set_stream_handler(ECHO, echo)
        side.host.set_stream_handler(SINK, sink)
        bench = Bench(side, nursery)
        print(json.dumps({"address": side.address}), flush=True)
        async for line in trio.wrap_file(sys.stdin):
            order = json.loads(line)
            answer = await getattr(bench, f"do_{order.pop('do')}")(**order)
            print(json.dumps(answer), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # the library reports every peer that goes away as an error
    logging.disable(logging.CRITICAL)
    trio.run(main)
