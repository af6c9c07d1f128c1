"""How an attacker speaks: a real network with its own identity, and frames that no honest node would send.

Knows: the network room's internals, libp2p, the frames of a pool. Must not know: which attacks there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
from attack_rig import identity

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.bodies import Body
from converge_p2p.core.oplog.log import Missing
from converge_p2p.core.oplog.operation import Operation, sign_operation
from converge_p2p.core.replica.wire import (
    Comparison,
    Entries,
    Operations,
    Part,
    SyncMessage,
    Want,
    batches,
    decode_message,
    encode_message,
)
from converge_p2p.core.types import OperationId, PeerId, PoolId
from converge_p2p.net import Network, NetworkConfig, RelayUse, Transport, open_network
from converge_p2p.net.addresses import split_peer_address
from converge_p2p.net.names import raw_peer_id

POOL, ANNOUNCE, NOT_HERE = 0, 1, 2
LINK_S = 20.0
FRAMES_KEPT = 10_000


class Attacker:
    """A network of its own that keeps what it is sent, and answers nothing."""

    def __init__(self, number: int) -> None:
        self.identity = identity(number)
        self.up: set[PeerId] = set()
        self.frames: list[tuple[PeerId, bytes]] = []
        self.network: Network
        self._changed = trio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, number: int, **changes: Any) -> AsyncIterator[Attacker]:
        """Run it; nobody is dialled on its behalf, and it cannot be dialled."""
        attacker = cls(number)
        # the library's own multiplexer, which sends whatever frames it is given
        settings = {
            "listen": (),
            "transport": Transport.STOCK,
            "dht": False,
            "autonat": False,
            "hole_punch": False,
            "relay_client": RelayUse.OFF,
            "peers_wanted": 0,
            "dial_timeout_s": 10.0,
            **changes,
        }
        config = NetworkConfig(**settings)
        async with open_network(config, seed=attacker.identity.seed, handler=attacker) as attacker.network:
            yield attacker

    # what the network tells

    def peer_up(self, peer: PeerId) -> None:
        self.up.add(peer)
        self._wake()

    def peer_down(self, peer: PeerId) -> None:
        self.up.discard(peer)
        self._wake()

    def frame(self, peer: PeerId, payload: bytes) -> None:
        if len(self.frames) < FRAMES_KEPT:
            self.frames.append((peer, payload))
        self._wake()

    async def request(self, peer: PeerId, payload: bytes) -> bytes:
        return payload

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], Any], timeout_s: float = LINK_S) -> bool:
        """Wait for something; False if it does not come."""
        with trio.move_on_after(timeout_s):
            while not condition():
                with trio.move_on_after(0.1):
                    await self._changed.wait()
            return True
        return False

    # what it does

    async def link(self, address: str) -> PeerId:
        """Connect to a victim and wait for the replication streams."""
        peer = await self.network.connect(address)
        if not await self.until(lambda: peer in self.up):
            raise TimeoutError("the victim does not replicate")
        return peer

    async def try_link(self, address: str) -> PeerId | None:
        """As `link`; None if the victim does not let it in."""
        try:
            return await self.link(address)
        except Exception:
            return None

    async def send(self, peer: PeerId, payload: bytes) -> bool:
        """Send a frame, waiting for room in the queue; False once the victim has thrown us out."""
        while peer in self.up:
            if self.network.send(peer, payload):
                await trio.lowlevel.checkpoint()
                return True
            await trio.sleep(0.02)
        return False

    async def flood(self, peer: PeerId, payloads: Iterable[bytes], seconds: float = 30.0) -> int:
        """Send frames until they or the time end, or the victim throws us out, and let them arrive."""
        sent = 0
        with trio.move_on_after(seconds):
            for payload in payloads:
                if not await self.send(peer, payload):
                    break
                sent += 1
            await self.delivered(peer)
        return sent

    async def delivered(self, peer: PeerId) -> None:
        """Wait until what is queued was written."""
        link = self.network._sync._links.get(raw_peer_id(peer))
        while link is not None and link.queued_bytes and peer in self.up:  # noqa: ASYNC110 - the queue has no event
            await trio.sleep(0.02)
        await trio.sleep(0.3)

    async def stream(self, peer: PeerId, protocol: str) -> Any:
        """Open a bare stream."""
        return await self.network._host.new_stream(raw_peer_id(peer), [protocol])

    def connection(self, peer: PeerId) -> Any:
        """The multiplexed connection below all streams."""
        return self.network._host.get_network().get_connections(raw_peer_id(peer))[0].muxed_conn

    async def read_log(self, peer: PeerId, pool: PoolId) -> list[bytes]:
        """Fetch every operation of a pool, which any peer may."""
        start = len(self.frames)
        await self.send(peer, pool_frame(pool, Comparison(b"", (Part(b"", ()),))))
        await self.until(lambda: any(isinstance(item, Entries) for item in self.messages(pool, start)))
        entries = [e for item in self.messages(pool, start) if isinstance(item, Entries) for e in item.entries]
        found: dict[bytes, None] = {}
        for entry in entries:
            mark = len(self.frames)
            await self.send(peer, pool_frame(pool, Want((Missing(entry.author, 0, max(1, entry.length)),))))
            await self.until(
                lambda mark=mark: any(isinstance(m, Operations) and m.last for m in self.messages(pool, mark))
            )
            for item in self.messages(pool, mark):
                if isinstance(item, Operations):
                    found.update(dict.fromkeys(item.operations))
        return list(found)

    def messages(self, pool: PoolId, start: int = 0) -> list[SyncMessage]:
        """The sync messages of a pool that came, from the frame numbered `start` on."""
        found = []
        for _, payload in self.frames[start:]:
            if payload[:33] == bytes([POOL]) + pool:
                try:
                    found.append(decode_message(payload[33:]))
                except CodecError:
                    continue
        return found


class Chain:
    """Signs operations in a pool. It keeps to the format, and to nothing else."""

    def __init__(self, who: Identity, pool: PoolId) -> None:
        self.who = who
        self.pool = pool
        self.seq = 0
        self.prev: OperationId | None = None
        self.hlc = 1

    def sign(self, body: Body, **changed: Any) -> Operation:
        """Sign the next operation; any field may be given another value."""
        self.hlc += 1
        fields = {"seq": self.seq, "prev": self.prev, "epoch": 0, "hlc": self.hlc} | changed
        operation = sign_operation(self.who, self.pool, body, **fields)
        self.seq, self.prev = operation.seq + 1, operation.id
        return operation


def pool_frame(pool: PoolId, message: SyncMessage | bytes) -> bytes:
    """A frame for a pool."""
    return bytes([POOL]) + pool + (message if isinstance(message, bytes) else encode_message(message))


def operation_frames(pool: PoolId, operations: Iterable[bytes]) -> list[bytes]:
    """Frames that carry operations."""
    return [pool_frame(pool, Operations(part)) for part in batches(operations, limits.BATCH_BYTES_MAX)]


def victim_of(address: str) -> PeerId:
    """Peer id in an address."""
    return split_peer_address(address)[0]
