"""A pool in a test: its people, operations signed by hand, and a small network of replicas.

Knows: how to make valid and invalid operations, and how to drive replicas without a clock. Must not know: a test.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

from converge_p2p.core.codec import decode, encode_value
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import SIGNATURE_BYTES, Identity
from converge_p2p.core.model.pool import GovernanceKind, PoolPolicy, PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue, task_id
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    Genesis,
    JoinBody,
    Lock,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    Token,
    VoteBody,
    decode_body,
)
from converge_p2p.core.oplog.operation import Operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PeerId, PoolId, TaskId

WALL_MS = 1_700_000_000_000


class Author:
    """Somebody who signs operations, one chain; `branch` makes a liar with two."""

    def __init__(self, number: int, pool: PoolId) -> None:
        self.identity = Identity.from_seed(bytes([number]) * 32)
        self.key = self.identity.public_key
        self.pool = pool
        self.seq = 0
        self.prev: OperationId | None = None
        self.hlc = 0

    def sign(self, body: Body, **changed: Any) -> Operation:
        self.hlc += 1
        fields = {"seq": self.seq, "prev": self.prev, "epoch": 0, "hlc": self.hlc} | changed
        operation = sign_operation(self.identity, self.pool, body, **fields)
        self.seq, self.prev = operation.seq + 1, operation.id
        return operation

    def branch(self) -> Author:
        other = Author.__new__(Author)
        other.__dict__.update(self.__dict__)
        return other


class Pool:
    """A pool with `electors` electors (the first of them is the creator) and `workers` further people."""

    def __init__(self, electors: int = 3, workers: int = 2, **terms: Any) -> None:
        people = [Identity.from_seed(bytes([number + 1]) * 32) for number in range(electors + workers)]
        terms.setdefault("governance", GovernanceKind.DEMOCRATIC)
        terms.setdefault("policy", PoolPolicy())
        if "whitelist" in terms:
            terms["whitelist"] = tuple(sorted(people[number].public_key for number in terms["whitelist"]))
        voters = tuple(sorted(person.public_key for person in people[:electors]))
        self.spec = PoolSpec("pool", terms.pop("nonce", b"n" * 16), electors=voters, **terms)
        self.id = pool_id(people[0].public_key, self.spec)
        self.people = [Author(number + 1, self.id) for number in range(electors + workers)]
        self.electors, self.workers = self.people[:electors], self.people[electors:]
        self.genesis = self.people[0].sign(Genesis(self.spec))
        self.joins = [
            worker.sign(JoinBody(("gpu",) if index == 0 else ())) for index, worker in enumerate(self.workers)
        ]

    @property
    def base(self) -> list[Operation]:
        return [self.genesis, *self.joins]

    def replica(self, number: int = 200, **options: Any) -> Replica:
        """A replica of somebody: by default of an observer who is not a member."""
        return Replica(Identity.from_seed(bytes([number]) * 32), self.id, **options)

    def submit(self, key: bytes = b"k", **terms: Any) -> tuple[TaskId, Operation]:
        author = self.electors[0]
        operation = author.sign(SubmitBody(TaskSpec(key, "work", encode_value({}), **terms)))
        return task_id(self.id, author.key, key), operation

    def votes(
        self, phase: Phase, task: TaskId, number: int, ref: bytes, who: Iterable[int] = (0, 1)
    ) -> list[Operation]:
        return [self.electors[index].sign(VoteBody((Ballot(phase, task, number, ref),))) for index in who]

    def grant(self, who: int, task: TaskId, number: int, claim: Operation, lock: Lock | None = None) -> Operation:
        return self.electors[who].sign(VoteBody((Ballot(Phase.GRANT, task, number, claim.id, lock),)))


def value_of(author: Author, content: Any = 1, outcome: Outcome = Outcome.COMPLETED) -> TaskValue:
    return TaskValue(outcome, author.key, encode_value(content))


def claim(author: Author, task: TaskId, purpose: Purpose = Purpose.WORK) -> Operation:
    return author.sign(ClaimBody(task, purpose))


def release(author: Author, task: TaskId, number: int, *, failed: bool = False) -> Operation:
    return author.sign(ReleaseBody(task, number, failed))


def report(author: Author, task: TaskId, number: int, value: TaskValue, grants: Iterable[Operation]) -> Operation:
    return author.sign(ReportBody(task, number, value, tuple(sorted({grant.id for grant in grants}))))


def lock(number: int, value: TaskValue) -> Lock:
    return Lock(Token(0, number), value.hash)


def signed(operations: Iterable[Operation]) -> tuple[bytes, ...]:
    return tuple(operation.signed for operation in operations)


def feed(replica: Replica, operations: Iterable[Operation], now_ms: int = 0) -> list[ev.Effect]:
    """Give operations to a replica and let its own writes be done at once."""
    return settle_writes(replica, replica.handle(ev.Received(signed(operations)), now(now_ms)), now_ms)


def stored_by(replica: Replica) -> list[bytes]:
    """Return a list that will hold every signed operation that the replica has its store keep from now on."""
    stored: list[bytes] = []
    handle = replica.handle

    def keep(event: ev.Event, at: ev.Now) -> list[ev.Effect]:
        effects = handle(event, at)
        stored.extend(signed for effect in effects if isinstance(effect, ev.Persist) for signed in effect.operations)
        return effects

    replica.handle = keep  # type: ignore[method-assign]
    return stored


def settle_writes(replica: Replica, effects: list[ev.Effect], now_ms: int = 0) -> list[ev.Effect]:
    """Answer every durable write; return all effects, those of the answers included."""
    out, waiting = [], list(effects)
    while waiting:
        effect = waiting.pop(0)
        out.append(effect)
        if isinstance(effect, ev.Persist) and effect.durable:
            waiting.extend(replica.handle(ev.Persisted((effect.token,)), now(now_ms)))
    return out


def ballots_in(effects: Iterable[ev.Effect]) -> list[Ballot]:
    """Ballots that were published, in order."""
    return [ballot for body in published(effects) if isinstance(body, VoteBody) for ballot in body.ballots]


def published(effects: Iterable[ev.Effect]) -> list[Body]:
    """Bodies of the operations that were published, in order."""
    data = [item for effect in effects if isinstance(effect, ev.Publish) for item in effect.operations]
    return [decode_body(*_kind_and_body(item)) for item in data]


def _kind_and_body(data: bytes) -> tuple[int, Any]:
    fields = decode(data[SIGNATURE_BYTES:])
    return fields[8], fields[9]


def timers(effects: Iterable[ev.Effect]) -> dict[ev.TimerKind, int]:
    return {effect.key.kind: effect.at_ms for effect in effects if isinstance(effect, ev.SetTimer)}


def now(mono_ms: int = 0) -> ev.Now:
    return ev.Now(mono_ms, WALL_MS + mono_ms)


def rejected(effects: Iterable[ev.Effect]) -> list[str]:
    return [notice.reason for notice in notices(effects, ev.Rejected)]


def notices(effects: Iterable[ev.Effect], kind: type) -> list[Any]:
    return [effect.notice for effect in effects if isinstance(effect, ev.Emit) and isinstance(effect.notice, kind)]


class Mesh:
    """Replicas, a heap of events, links that lose. Deterministic; virtual time."""

    def __init__(self, replicas: list[Replica], *, seed: int = 0, loss: float = 0.0, gossip: bool = True) -> None:
        self.replicas = replicas
        self.now_ms = 0
        self.loss, self.gossip = loss, gossip
        self.sent_bytes = [0] * len(replicas)
        self.messages = 0
        self.told: list[tuple[int, Any]] = []
        self.deaf: set[int] = set()
        """Replicas to which nothing gets through."""
        self.on_notice: Callable[[int, Any], ev.Command | None] = lambda node, notice: None
        self._random = random.Random(seed)
        self._heap: list[tuple[int, int, int, ev.Event]] = []
        self._order = itertools.count()
        self._last: dict[tuple[int, int], int] = {}
        self._due: dict[tuple[int, ev.TimerKey], int] = {}
        self._apart: set[int] = set()

    def at(self, delay_ms: int, node: int, event: ev.Event) -> None:
        heapq.heappush(self._heap, (self.now_ms + delay_ms, next(self._order), node, event))

    def connect(self, pairs: Iterable[tuple[int, int]] | None = None) -> None:
        names = range(len(self.replicas))
        for one, other in pairs if pairs is not None else itertools.combinations(names, 2):
            self.at(0, one, ev.PeerUp(PeerId(str(other)), self.replicas[other].identity.public_key))
            self.at(0, other, ev.PeerUp(PeerId(str(one)), self.replicas[one].identity.public_key))

    def cut(self, nodes: Iterable[int]) -> None:
        """Let these nodes reach only each other from now on; nobody, and everybody is reached again."""
        self._apart = set(nodes)

    def _arrives(self, sender: int, node: int) -> bool:
        apart = node in self.deaf or (sender in self._apart) != (node in self._apart)
        return self._random.random() >= self.loss and not apart

    def do(self, node: int, event: ev.Event) -> None:
        if isinstance(event, ev.TimerFired) and self._due.get((node, event.key), 0) > self.now_ms:
            # it was set anew
            return
        for effect in self.replicas[node].handle(event, now(self.now_ms)):
            self.take(node, effect)

    def take(self, node: int, effect: ev.Effect) -> None:
        """Obey one effect of a node's replica."""
        match effect:
            case ev.Persist(token, _, True):
                self.at(1, node, ev.Persisted((token,)))
            case ev.Publish(operations) if self.gossip:
                for other in range(len(self.replicas)):
                    if other != node and self._arrives(node, other):
                        event = ev.Received(operations, PeerId(str(node)))
                        self.at(1 + self._random.randrange(20), other, event)
            case ev.Broadcast(payload):
                for other in range(len(self.replicas)):
                    if other != node and self._arrives(node, other):
                        self.at(1 + self._random.randrange(20), other, ev.RenewalReceived(payload))
            case ev.Send(peer, payload):
                self.messages += 1
                self.sent_bytes[node] += len(payload)
                if self._arrives(node, int(peer)):
                    # a stream keeps the order: nothing overtakes what was sent before it
                    link = (node, int(peer))
                    arrival = max(self._last.get(link, 0), self.now_ms + 1 + self._random.randrange(5))
                    self._last[link] = arrival
                    self.at(arrival - self.now_ms, link[1], ev.SyncReceived(PeerId(str(node)), payload))
            case ev.SetTimer(key, at_ms):
                self._due[node, key] = at_ms
                self.at(max(0, at_ms - self.now_ms), node, ev.TimerFired(key))
            case ev.Emit(notice):
                self.told.append((node, notice))
                command = self.on_notice(node, notice)
                if command is not None:
                    self.at(1, node, command)

    def run(self, until: Callable[[], bool], *, at_most_ms: int = 120_000) -> None:
        """Run until the condition holds; fail if it does not in the time given."""
        end = self.now_ms + at_most_ms
        while not until():
            assert self._heap, "nothing happens any more"
            self.now_ms, _, node, event = heapq.heappop(self._heap)
            assert self.now_ms <= end, f"not reached in {at_most_ms} ms"
            try:
                self.do(node, event)
            except LocalError:
                pass

    def run_for(self, span_ms: int) -> None:
        end = self.now_ms + span_ms
        while self._heap and self._heap[0][0] <= end:
            self.now_ms, _, node, event = heapq.heappop(self._heap)
            try:
                self.do(node, event)
            except LocalError:
                pass
        self.now_ms = end

    @property
    def equal(self) -> bool:
        """Whether all frontiers are equal."""
        return len({replica.log.digest() for replica in self.replicas}) == 1
