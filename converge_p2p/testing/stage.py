"""A stage for schedules: honest electors as replicas, everybody else signs by hand, and nothing travels by itself.

Knows: how to let exactly these operations reach exactly this elector, and to fire exactly this timer. Must not know: a
schedule: the tests have scripted ones, and `walks` draws them. The ledger of the simulator counts what was signed.
"""

from __future__ import annotations

from collections.abc import Iterable

from converge_p2p.core.governance.models import ProtocolRules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, PoolPolicy, PoolSpec, pool_id
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue, task_id
from converge_p2p.core.oplog.bodies import Ballot, Body, ClaimBody, JoinBody, Phase, ReportBody, SubmitBody, VoteBody
from converge_p2p.core.oplog.operation import Operation, decode_operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, TaskId
from converge_p2p.core.view.epochs import epoch_subject
from converge_p2p.testing.ledger import Ledger

A, B, C, L = 0, 1, 2, 3
"""Electors; L is there only where one may lie."""
W1, W2 = 10, 11
"""Workers."""


class Stage:
    """A pool of three honest electors, and with `faults` a fourth that lies. All have the founding and the workers."""

    def __init__(self, protocol: ProtocolRules, *, faults: int = 0, nonce: int = 0) -> None:
        everybody = (A, B, C, L)[: 3 + faults]
        self.people = {index: Identity.from_seed(bytes([index + 1]) * 32) for index in (*everybody, W1, W2)}
        self.spec = PoolSpec(
            "staged",
            nonce.to_bytes(16, "big"),
            GovernanceKind.DEMOCRATIC,
            tuple(sorted(self.people[index].public_key for index in everybody)),
            faults=faults,
            policy=PoolPolicy(hold_off_ms=0, max_retries=100),
        )
        self.pool = pool_id(self.people[A].public_key, self.spec)
        liars = [self.people[index].public_key for index in self.people if index not in (A, B, C)]
        self.ledger = Ledger(self.spec, self.pool, liars)
        self.said: dict[int, list[Operation]] = {index: [] for index in self.people}
        self.now_ms = 0
        self.timers: dict[int, dict[ev.TimerKey, int]] = {A: {}, B: {}, C: {}}
        self.replicas = {index: Replica(self.people[index], self.pool, protocol=protocol) for index in (A, B, C)}
        self.event(A, ev.Found(self.spec))
        self.tell(A, B, C)
        for worker in (W1, W2):
            self.sign(worker, JoinBody())
            self.tell(worker, A, B, C)

    # ------------------------------------------------------------ what happens

    def event(self, who: int, event: ev.Event) -> None:
        """Give an elector an event; its writes are durable at once, its operations wait to be told."""
        effects = list(self.replicas[who].handle(event, ev.Now(self.now_ms, self.now_ms)))
        while effects:
            match effects.pop(0):
                case ev.Persist(token, operations, True):
                    for signed in operations:
                        operation = decode_operation(signed, self.pool)
                        self.said[who].append(operation)
                        if self.ledger.changes(operation):
                            log = self.replicas[who].log
                            self.ledger.held_at(operation, {author: log.length(author) for author in log.chains})
                        self.ledger.signed(operation)
                    effects += self.replicas[who].handle(ev.Persisted((token,)), ev.Now(self.now_ms, self.now_ms))
                case ev.SetTimer(key, at_ms):
                    self.timers[who][key] = at_ms
                case _:
                    pass

    def fire(self, who: int, kind: ev.TimerKind, subject: TaskId) -> None:
        """Let a timer of an elector be due that it has set."""
        key = ev.TimerKey(kind, subject)
        self.now_ms = max(self.now_ms, self.timers[who].pop(key))
        self.event(who, ev.TimerFired(key))

    def tell(self, who: int, *others: int, but: int = 0) -> None:
        """Let all that somebody signed reach some electors, except for the last `but` operations."""
        shown = self.said[who][: len(self.said[who]) - but]
        for other in others:
            self.event(other, ev.Received(tuple(operation.signed for operation in shown)))

    def meet(self, *electors: int) -> None:
        """Let these tell each other everything, until nothing is new."""
        before = -1
        while before != sum(map(len, self.said.values())):
            before = sum(map(len, self.said.values()))
            for who in electors:
                self.tell(who, *(other for other in electors if other != who))

    def sign(self, who: int, body: Body, *, epoch: int = 0) -> Operation:
        """Sign by hand: of a worker, or of the elector that lies."""
        chain = self.said[who]
        prev = chain[-1].id if chain else None
        operation = sign_operation(
            self.people[who], self.pool, body, seq=len(chain), prev=prev, epoch=epoch, hlc=len(chain) + 1
        )
        chain.append(operation)
        self.ledger.signed(operation)
        return operation

    # ------------------------------------------------------------ names

    def change(self, number: int = 1) -> TaskId:
        """The subject of an epoch."""
        return epoch_subject(self.pool, number)

    def grants(self, subject: TaskId, number: int, *electors: int, epoch: int = 0) -> tuple[OperationId, ...]:
        """The promises of electors for a round: the votes they stand in."""
        return tuple(
            sorted(
                operation.id
                for who in electors
                for operation in self.said[who]
                if isinstance(operation.body, VoteBody)
                and operation.epoch == epoch
                and any(
                    (ballot.phase, ballot.task, ballot.round) == (Phase.GRANT, subject, number)
                    for ballot in operation.body.ballots
                )
            )
        )

    # ------------------------------------------------------------ what workers do

    def submit(self) -> TaskId:
        """A task that W1 asks for and stands for; every elector hears of it, and of the promises of all."""
        task = task_id(self.pool, self.people[W1].public_key, b"k")
        self.sign(W1, SubmitBody(TaskSpec(b"k", "work", b"\x80")))
        self.sign(W1, ClaimBody(task))
        self.tell(W1, A, B, C)
        return task

    def value(self, worker: int, content: int) -> TaskValue:
        """A result."""
        return TaskValue(Outcome.COMPLETED, self.people[worker].public_key, bytes([content]))

    def report(
        self,
        worker: int,
        task: TaskId,
        number: int,
        value: TaskValue,
        grants: Iterable[OperationId],
        *to: int,
        epoch: int = 0,
    ) -> None:
        """A worker reports, and some electors hear of it."""
        self.sign(worker, ReportBody(task, number, value, tuple(sorted(grants))), epoch=epoch)
        self.tell(worker, *to)

    def vote(self, phase: Phase, subject: TaskId, number: int, ref: bytes) -> Operation:
        """The liar votes."""
        return self.sign(L, VoteBody((Ballot(phase, subject, number, ref),)))
