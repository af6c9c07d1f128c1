"""What the tests of the node share: identities, founding operations, and stand-ins for writer, wire and network."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set as AbstractSet
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, PoolPolicy, PoolSpec, pool_id
from converge_p2p.core.model.task import Task, TaskSpec
from converge_p2p.core.oplog.bodies import Genesis
from converge_p2p.core.oplog.operation import Operation, operation_id, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PeerId, PoolId, PublicKey
from converge_p2p.net import NetworkConfig, PeerInfo, peer_id_of, public_key_of
from converge_p2p.node import Node, NodeConfig
from converge_p2p.node.driver import PoolDriver
from converge_p2p.node.timers import Timers
from converge_p2p.node.writer import Done

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


def who(number: int) -> Identity:
    return Identity.from_seed(hashlib.sha256(b"node-library-%d" % number).digest())


def terms(creator: Identity, number: int = 0, **changes: Any) -> PoolSpec:
    """Founding terms of a pool with its creator as leader."""
    settings: dict[str, Any] = {
        "name": f"pool-{number}",
        "nonce": number.to_bytes(16, "big"),
        "governance": GovernanceKind.DICTATORIAL,
        "electors": (creator.public_key,),
        "policy": PoolPolicy(hold_off_ms=10, grant_timer_ms=50),
    }
    return PoolSpec(**{**settings, **changes})


def founding(creator: Identity, number: int = 0) -> tuple[PoolId, Operation]:
    """A pool and its founding operation."""
    spec = terms(creator, number)
    pool = pool_id(creator.public_key, spec)
    return pool, sign_operation(creator, pool, Genesis(spec), seq=0, prev=None, epoch=0, hlc=1)


def spec_of(objective: str = "count", key: bytes = b"k", **inputs: Any) -> TaskSpec:
    return Task(objective, inputs).to_spec(key=key)


class ManualWriter:
    """A writer whose disk is as fast as the test says."""

    def __init__(self) -> None:
        self.full = False
        self.rows: list[tuple[PoolId, bytes, bool]] = []
        self.snapshots: dict[PoolId, bytes] = {}
        self.entries: dict[str, bytes] = {}
        self._waiting: list[tuple[Done, int]] = []

    def put(self, pool: PoolId, operations: tuple[bytes, ...], durable: bool, done: Done, token: int = 0) -> None:
        self.rows.extend((pool, signed, durable) for signed in operations)
        self._waiting.append((done, token))

    def compact(
        self, pool: PoolId, snapshot: bytes, drop: tuple[OperationId, ...], entries: Mapping[str, bytes]
    ) -> None:
        gone = frozenset(drop)
        self.rows = [row for row in self.rows if row[0] != pool or operation_id(row[1]) not in gone]
        self.snapshots[pool] = snapshot
        self.entries |= entries

    def commit(self) -> int:
        """Write until nothing waits; say how many batches there were."""
        count = 0
        while self._waiting:
            count += 1
            done, token = self._waiting.pop(0)
            done((token,))
        return count


class RecordingWire:
    """Keeps what a driver sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[PeerId, bytes]] = []
        self.published: list[bytes] = []
        self.broadcast: list[bytes] = []
        self.blamed: list[PeerId] = []

    def send_pool(self, peer: PeerId, pool: PoolId, payload: bytes) -> None:
        self.sent.append((peer, payload))

    def publish_pool(self, pool: PoolId, operations: tuple[bytes, ...], peers: Sequence[PeerId]) -> None:
        self.published.extend(operations)

    def broadcast_pool(
        self, pool: PoolId, renewal: bytes, peers: Sequence[PeerId], electors: AbstractSet[PublicKey]
    ) -> None:
        self.broadcast.append(renewal)

    def blame(self, peer: PeerId) -> None:
        self.blamed.append(peer)


class DriverRig:
    """A driver of a real replica, with stand-ins around it."""

    def __init__(self, identity: Identity | None = None, pool: PoolId | None = None, **options: Any) -> None:
        self.identity = identity or who(1)
        self.spec = terms(self.identity)
        self.writer = ManualWriter()
        self.timers = Timers()
        self.wire = RecordingWire()
        self.notices: list[ev.Notice] = []
        self.hears: Callable[[ev.Notice], None] = self.notices.append
        self.driver = PoolDriver(
            Replica(self.identity, pool or pool_id(self.identity.public_key, self.spec), **options),
            writer=self.writer,  # type: ignore[arg-type]
            timers=self.timers,
            wire=self.wire,
            notify=self._hear,
        )

    def _hear(self, notice: ev.Notice) -> None:
        self.hears(notice)

    def found(self) -> PoolDriver:
        """Found the pool, durably."""
        self.driver.propose(ev.Found(self.spec))
        self.writer.commit()
        return self.driver

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the timers run."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.timers.run)
            yield
            nursery.cancel_scope.cancel()

    async def passes(self, seconds: float) -> None:
        """Let so much time pass, while the disk is quick."""
        for _ in range(20):
            self.writer.commit()
            await trio.sleep(seconds / 20)
        self.writer.commit()


class FakeNetwork:
    """A network whose peers and answers the test chooses."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.peer_id = peer_id_of(identity.public_key)
        self.addresses: tuple[str, ...] = (f"/ip4/127.0.0.1/tcp/4001/p2p/{self.peer_id}",)
        self.connected: list[PeerId] = []
        self.frames: list[tuple[PeerId, bytes]] = []
        self.retired: list[str] = []
        self.disconnected: list[PeerId] = []
        self.blamed: list[PeerId] = []
        self.topics: dict[str, tuple[Any, Any]] = {}
        self.published: list[tuple[str, bytes]] = []
        self.answer: Callable[[PeerId, bytes], bytes] = lambda _peer, _data: b"\x01"
        self.good: tuple[str, ...] = ()
        self.records: dict[str, bytes] = {}
        self.put_failure: Exception | None = None
        self.puts = 0

    def peers(self) -> tuple[PeerInfo, ...]:
        return tuple(
            PeerInfo(
                peer, public_key_of(peer), Identity.from_public_key(public_key_of(peer)).id, (), "inbound", 0.0, True
            )
            for peer in self.connected
        )

    def send(self, peer: PeerId, frame: bytes) -> bool:
        self.frames.append((peer, frame))
        return True

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        self.disconnected.append(peer)

    async def subscribe(
        self, topic: str, on_message: Any, validate: Any = None, *, member_key: bytes | None = None
    ) -> None:
        await trio.lowlevel.checkpoint()
        assert topic not in self.topics, "subscribed twice"
        assert (member_key is not None) == topic.startswith("converge/private/"), "private topics are guarded"
        self.topics[topic] = (on_message, validate)

    def retire(self, topic: str) -> None:
        assert topic in self.topics, "what is not heard has no members"
        self.retired.append(topic)

    async def unsubscribe(self, topic: str) -> None:
        await trio.lowlevel.checkpoint()
        self.topics.pop(topic, None)

    def blame(self, peer: PeerId) -> None:
        self.blamed.append(peer)

    async def publish(self, topic: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published.append((topic, data))

    async def reach(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()

    async def request(self, peer: PeerId, payload: bytes, timeout_s: float = 10.0) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.answer(peer, payload)

    def good_addresses(self) -> tuple[str, ...]:
        return self.good

    async def put_record(self, key: str, value: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.puts += 1
        if self.put_failure is not None:
            raise self.put_failure
        self.records[key] = value

    async def get_record(self, key: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.records.get(key)

    async def claim(self, key: bytes) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    async def claimants(self, key: bytes, limit: int) -> tuple[PeerId, ...]:
        await trio.lowlevel.checkpoint()
        return ()

    def bring(self, topic: str, data: bytes) -> bool:
        """Gossip arrives: validate, and deliver what is valid. Says whether it is passed on."""
        on_message, validate = self.topics[topic]
        neighbour = peer_id_of(who(99).public_key)
        if validate is not None and not validate(neighbour, data):
            return False
        on_message(neighbour, data)
        return True


QUICK = NodeConfig(
    network=NetworkConfig(
        listen=(),
        dht=False,
        dial_timeout_s=3.0,
        retry_first_s=0.1,
        retry_max_s=0.5,
        exchange_interval_s=0.5,
        gossip_heartbeat_s=0.5,
    ),
    digest_interval_ms=1000,
)
POLICY = PoolPolicy(hold_off_ms=20, grant_timer_ms=200)


def real_node(
    number: int, *bootstrap: Node, home: Path | None = None, config: NodeConfig = QUICK, **more: Any
) -> AbstractAsyncContextManager[Node]:
    """A real node on loopback that knows the given ones."""
    addresses = tuple(address for node in bootstrap for address in node.addresses)
    bootstrap_addresses = (*addresses, *more.pop("bootstrap", ()))
    settings: dict[str, Any] = {"listen": LOOPBACK, "identity": who(number), **more}
    return Node(home=home, bootstrap=bootstrap_addresses, config=config, **settings)


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 15.0) -> None:
    """Wait for something that happens in another node and has no event here to wait for."""
    with trio.move_on_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - see above
            await trio.sleep(0.01)
        return
    raise AssertionError(f"not within {timeout_s} s: {what}")


async def linked(one: Node, other: Node) -> None:
    """Wait until two nodes replicate with each other."""
    await until(
        lambda: other.public_key in one.connected_keys() and one.public_key in other.connected_keys(), "nodes linked"
    )
