"""Workers that lie: two reports in one round, reports without their promises, forks, what nobody may sign.

Knows: the lies of a claimant. Must not know: how a replica defends itself.
Source: `docs/protocol.md`, task register: workers are never trusted.
"""

from __future__ import annotations

from functools import partial

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
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.testing.forgery import Forger
from converge_p2p.testing.science import false_choice, false_evidence

RETRY_MS = 4
TRIES_MAX = 50
FALSE_REPORTS = ("short", "over_lock", "uncertified")


class Liar(Forger):
    """The lies of one worker."""

    def on_claim_won(self, notice: ev.ClaimWon) -> bool:
        """Maybe abuse a claim. Returns whether honest work on it is off."""
        rng, later = self.rng, self.machine.later
        lie = rng.choice(self.world.scenario.lies)
        match lie:
            case "twice" | "fork_report":
                later(rng.randint(0, 30), partial(self._two_reports, notice, TRIES_MAX, fork=lie == "fork_report"))
                return True
            case "short" | "over_lock" | "uncertified":
                later(rng.randint(0, 10), partial(self._false_report, notice.task, lie, TRIES_MAX))
                return rng.random() < 0.5
        later(rng.randint(0, 60), partial(self.misbehave, fork=lie == "fork"))
        return False

    # ------------------------------------------------------------ two values in one round

    def _two_reports(self, notice: ev.ClaimWon, tries: int, *, fork: bool) -> None:
        if not self.able:
            if tries and self.machine.replica is not None:
                self.machine.later(RETRY_MS, partial(self._two_reports, notice, tries - 1, fork=fork))
            return
        grants = self._grants(notice)
        if grants is None:
            return
        bodies = [
            ReportBody(notice.task, notice.round, self._value(side), names)
            for side, names in zip(("one", "other"), grants, strict=True)
        ]
        if fork:
            self.show_apart([self.sign(bodies[0])], [self.sign(bodies[1])])
        else:
            both = self.chain(bodies)
            self.show_apart(both, both)

    def _grants(self, notice: ev.ClaimWon) -> list[tuple[OperationId, ...]] | None:
        """Two quorums of promises for the claim, different ones where there are enough."""
        register = self.replica.view.registers[notice.task]
        token = Token(notice.epoch, notice.round)
        claim = register.certified_id(token)
        votes = register.rounds.get(token)
        if claim is None or votes is None:
            return None
        by_elector = {grant.elector: vote for vote, grant in votes.grants.items() if grant.claim == claim}
        electors, formula = sorted(by_elector), register.counting(notice.epoch).rules.grant
        if register.granter(token) in by_elector:
            return [tuple(sorted(by_elector.values()))] * 2
        first, second = formula.minimal_quorum(electors), formula.minimal_quorum(reversed(electors))
        if first is None or second is None:
            return None
        sides = [first, second]
        self.rng.shuffle(sides)
        return [tuple(sorted(by_elector[elector] for elector in side)) for side in sides]

    # ------------------------------------------------------------ reports that do not follow from their promises

    def _false_report(self, task: TaskId, lie: str, tries: int) -> None:
        """Report an own value on promises that forbid it, on too few, or without a certificate."""
        if not self.able:
            if tries and self.machine.replica is not None:
                self.machine.later(RETRY_MS, partial(self._false_report, task, lie, tries - 1))
            return
        register, rng = self.replica.view.registers[task], self.rng
        tokens = [token for token, votes in register.rounds.items() if votes.grants and token.epoch == register.now]
        if register.settled is not None or not tokens:
            return
        token = rng.choice(tokens) if lie == "uncertified" else max(tokens)
        grants = register.rounds[token].grants
        names = sorted(grants)
        if lie != "over_lock":
            # those that carry a lock are in the way
            free = [name for name in names if grants[name].lock is None]
            names = free or names[:1]
        value = self._value(lie)
        if rng.random() < 0.3 and register.values:
            value = register.values[rng.choice(sorted(register.values))]
        report = self.sign(ReportBody(task, token.round, value, tuple(names)))
        self.show_apart([report], [report])

    def _value(self, side: str) -> TaskValue:
        result = encode_value({"by": self.machine.index, "side": side, "at": self.world.now_ms})
        return TaskValue(Outcome.COMPLETED, self.machine.identity.public_key, result)

    # ------------------------------------------------------------ anything else

    def misbehave(self, *, fork: bool) -> None:
        """Sign something that no honest replica would."""
        if not self.able:
            return
        rng, bodies = self.rng, self._bad_bodies()
        epoch = rng.choice((None, None, None, 0, self.replica.epoch + 1, 10**6))
        first = self.sign(rng.choice(bodies), epoch=epoch)
        if fork:
            self.show_apart([first], [self.sign(rng.choice(bodies))])
        else:
            self.show_apart([first], [first])

    def _bad_bodies(self) -> list[Body]:
        rng, view = self.rng, self.replica.view
        tasks = list(view.registers)
        if not tasks:
            return [JoinBody(("anything",))]
        task = rng.choice(tasks)
        number = rng.randint(0, 6)
        register = view.registers[task]
        someone = rng.choice(sorted(view.electors))
        grants = sorted({vote for votes in register.rounds.values() for vote in votes.grants})
        named = tuple(sorted(rng.sample(grants, min(len(grants), rng.randint(0, 4)))))
        values = sorted(register.values)
        value = register.values[rng.choice(values)] if values and rng.random() < 0.5 else self._value("bad")
        change = view.next_change.id
        return [
            ClaimBody(task, Purpose.CANCEL, 0, "not mine to cancel"),
            ClaimBody(task, Purpose.FAIL, 0, "not failed"),
            ClaimBody(change, Purpose.WORK, 0, "an epoch is no work"),
            ClaimBody(rng.choice((task, change)), Purpose.EPOCH, 0, "not mine to found", bytes(32)),
            ReleaseBody(task, number, failed=True, reason="never held"),
            ReportBody(task, number, value, named),
            ReportBody(change, number, value, named),
            ReportBody(task, number, TaskValue(Outcome.CANCELLED, someone, b"\x80"), named),
            self._false_votes(task, number, someone),
            JoinBody(("anything",)),
            false_evidence(self, task),
            *([] if (choice := false_choice(self)) is None else [choice]),
        ]

    def _false_votes(self, task: TaskId, number: int, someone: PublicKey) -> VoteBody:
        """Votes of somebody who has none."""
        value = TaskValue(Outcome.FAILED, someone, b"\x80").hash
        return VoteBody((Ballot(Phase.ENDORSE, task, number, value), Ballot(Phase.ACCEPT, task, number, value)))
