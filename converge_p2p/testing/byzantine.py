"""Workers that lie: two reports in one round, forks, and operations that nobody may sign.

Knows: how to sign by hand on top of an own chain. Must not know: how a replica defends itself.
Source: `docs/protocol.md`, task register: workers are never trusted. Electors are honest here (f = 0).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from converge_p2p.core.codec import encode_value
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    JoinBody,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    Token,
    VoteBody,
)
from converge_p2p.core.oplog.operation import Operation, decode_operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.testing.machine import Machine

if TYPE_CHECKING:
    from converge_p2p.testing.world import World

RETRY_MS = 4
TRIES_MAX = 50


class Liar:
    """The lies of one machine."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world = world
        self._machine = machine

    def on_claim_won(self, notice: ev.ClaimWon) -> bool:
        """Maybe abuse a claim. Returns whether honest work on it is off."""
        rng = self._world.rng
        lie = rng.choice(self._world.scenario.lies)
        if lie == "twice":
            self._machine.later(rng.randint(0, 30), partial(self._two_reports, notice, TRIES_MAX, fork=False))
            return True
        if lie == "fork_report":
            self._machine.later(rng.randint(0, 30), partial(self._two_reports, notice, TRIES_MAX, fork=True))
            return True
        self._machine.later(rng.randint(0, 60), partial(self.misbehave, fork=lie == "fork"))
        return False

    # ------------------------------------------------------------ two values in one round

    def _two_reports(self, notice: ev.ClaimWon, tries: int, *, fork: bool) -> None:
        machine = self._machine
        if machine.writing:
            # the next own operation would take the same number; a liar may fork, but here it means not to
            if tries:
                machine.later(RETRY_MS, partial(self._two_reports, notice, tries - 1, fork=fork))
            return
        grants = self._grants(notice)
        if grants is None:
            return
        bodies = [
            ReportBody(notice.task, notice.round, self._value(side), names)
            for side, names in zip(("one", "other"), grants, strict=True)
        ]
        first = self._sign(bodies[0])
        second = self._sign(bodies[1]) if fork else self._sign(bodies[1], after=first)
        if fork:
            self._show_apart([first], [second])
        else:
            self._show_apart([first, second], [first, second])

    def _grants(self, notice: ev.ClaimWon) -> list[tuple[OperationId, ...]] | None:
        """Two quorums of promises for the claim, different ones where there are enough."""
        replica, rng = self._machine.replica, self._world.rng
        assert replica is not None
        register = replica.view.registers[notice.task]
        token = Token(notice.epoch, notice.round)
        claim = register.certified_id(token)
        votes = register.rounds.get(token)
        if claim is None or votes is None:
            return None
        by_elector = {grant.elector: vote for vote, grant in votes.grants.items() if grant.claim == claim}
        electors, formula = sorted(by_elector), register.counting(notice.epoch).rules.grant
        first, second = formula.minimal_quorum(electors), formula.minimal_quorum(reversed(electors))
        if first is None or second is None:
            return None
        sides = [first, second]
        rng.shuffle(sides)
        return [tuple(sorted(by_elector[elector] for elector in side)) for side in sides]

    def _value(self, side: str) -> TaskValue:
        result = encode_value({"by": self._machine.index, "side": side, "at": self._world.now_ms})
        return TaskValue(Outcome.COMPLETED, self._machine.identity.public_key, result)

    # ------------------------------------------------------------ anything else

    def misbehave(self, *, fork: bool) -> None:
        """Sign something that no honest replica would."""
        machine = self._machine
        if machine.writing or machine.replica is None or self._world.quiet:
            return
        bodies = self._bad_bodies()
        if not bodies:
            return
        rng = self._world.rng
        first = self._sign(rng.choice(bodies))
        if fork:
            self._show_apart([first], [self._sign(rng.choice(bodies))])
        else:
            self._show_apart([first], [first])

    def _bad_bodies(self) -> list[Body]:
        machine, rng = self._machine, self._world.rng
        assert machine.replica is not None
        tasks = list(machine.replica.view.registers)
        if not tasks:
            return [JoinBody(("anything",))]
        task = rng.choice(tasks)
        number = rng.randint(0, 6)
        register = machine.replica.view.registers[task]
        someone = rng.choice(sorted(machine.replica.view.electors))
        grants = sorted({vote for votes in register.rounds.values() for vote in votes.grants})
        named = tuple(sorted(rng.sample(grants, min(len(grants), rng.randint(0, 4)))))
        values = sorted(register.values)
        value = register.values[rng.choice(values)] if values and rng.random() < 0.5 else self._value("bad")
        return [
            ClaimBody(task, Purpose.CANCEL, 0, "not mine to cancel"),
            ClaimBody(task, Purpose.FAIL, 0, "not failed"),
            ReleaseBody(task, number, failed=True, reason="never held"),
            ReportBody(task, number, value, named),
            ReportBody(task, number, TaskValue(Outcome.CANCELLED, someone, b"\x80"), named),
            self._false_votes(task, number, someone),
            JoinBody(("anything",)),
        ]

    def _false_votes(self, task: TaskId, number: int, someone: PublicKey) -> VoteBody:
        """Votes of somebody who has none."""
        value = TaskValue(Outcome.FAILED, someone, b"\x80").hash
        return VoteBody((Ballot(Phase.ENDORSE, task, number, value), Ballot(Phase.ACCEPT, task, number, value)))

    # ------------------------------------------------------------ signing and sending

    def _sign(self, body: Body, after: Operation | None = None) -> Operation:
        """Sign on top of the own chain, or of an operation that was signed by hand just now."""
        machine = self._machine
        assert machine.replica is not None
        key, log = machine.identity.public_key, machine.replica.log
        length = log.length(key)
        if after is None and length:
            after = decode_operation(log.read(key, length - 1, length)[0], log.pool, trusted=True)
        seq, prev, hlc = (0, None, 0) if after is None else (after.seq + 1, after.id, after.hlc)
        back = self._world.rng.choice((1, 1, 1, 10**9))
        operation = sign_operation(
            machine.identity, log.pool, body, seq=seq, prev=prev, epoch=machine.replica.epoch, hlc=hlc + back
        )
        self._world.ledger.signed(operation)
        return operation

    def _show_apart(self, one: list[Operation], other: list[Operation]) -> None:
        """Show one list to some and the other to the rest; own replica believes the first."""
        machine, world = self._machine, self._world
        split = world.rng.randint(1, len(world.machines) - 1)
        order = [node for node in range(len(world.machines)) if node != machine.index]
        world.rng.shuffle(order)
        for place, node in enumerate(order):
            side = one if place < split else other
            world.deliver(machine.index, node, ev.Received(tuple(operation.signed for operation in side), machine.peer))
        machine.feed(ev.Received(tuple(operation.signed for operation in one)))
