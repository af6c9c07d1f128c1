"""Random walks: a scheduler out for trouble leads three or four electors through one task and one epoch.

Knows: who may take which step. Must not know: how a replica decides.
Source: `docs/simulator.md`, walks. Reordering a few messages of a small system finds what long runs of a large one miss
(Burckhardt and others 2010, a randomized scheduler with probabilistic guarantees of finding bugs).

The simulator draws delays and faults, and what it finds takes many messages. Here nothing travels by itself: each step
of a walk is drawn, and some electors hear nothing of the others for a while. So schedules of a dozen steps come about
that no clock would bring, in a few hundredths of a second each.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import sha256

from converge_p2p.core.governance.models import ProtocolRules
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Phase, Purpose, ReleaseBody, ReportBody, VoteBody
from converge_p2p.core.oplog.motions import YES, MotionBody, move_change
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.events import TimerKind
from converge_p2p.core.types import OperationId, TaskId
from converge_p2p.core.view.epochs import EpochValue
from converge_p2p.testing.checkers import check_replicas
from converge_p2p.testing.stage import W1, W2, A, B, C, L, Stage

ELECTORS = (A, B, C)
WORKERS = (W1, W2)
TURNS = 12
"""How often others come to hear each other."""
CLAIMS_MAX, REPORTS_PER_ROUND_MAX, MOTIONS_MAX, PROPOSALS_MAX, LIES_MAX = 3, 2, 2, 6, 24
"""Of each worker; of each round of the task; of the pool; of the elector that lies, and its votes."""
TIMERS = frozenset({TimerKind.HOLD_OFF, TimerKind.GRANT, TimerKind.CLAIM, TimerKind.CLOSE, TimerKind.VOTE})

_THEMES = ("task", "epoch", "epoch", "epoch", "register")
_LYING_THEMES = ("task", "epoch", "register", "register")
"""What a walk is about: a task, a task while the epoch changes, or the change alone."""

Place = tuple[int, int, OperationId]
"""Epoch, round and claim that promises were made for."""


class Walk:
    """One walk.

    Attributes:
        stage: the electors.
        task: the task.
        events: how many steps were taken.
    """

    def __init__(self, seed: int, protocol: ProtocolRules, trace: Callable[[str], None] | None = None) -> None:
        """Draw what the walk is about.

        Args:
            seed: draws everything.
            protocol: the rules of the electors.
            trace: called with a line for each step.
        """
        self._rng = rng = random.Random(seed)
        self._trace = trace
        self._steps_hash = sha256()
        self.events = 0
        self._lying = rng.random() < 0.4
        self._quorum = 3 if self._lying else 2
        self.stage = Stage(protocol, faults=int(self._lying), nonce=seed)
        self._people = tuple(self.stage.people)
        self.task = self.stage.submit()
        self._shown = {
            # of the electors only the founding is known, and of the workers everything
            (who, to): 1 if who == A else len(self.stage.said[who]) if who in WORKERS else 0
            for who in self._people
            for to in ELECTORS
            if who != to
        }
        self._links: list[tuple[int, int]] = []
        self._awake: list[int] = []
        self._values: list[TaskValue] = []
        self._proposed: list[TaskValue] = []
        self._terms: dict[OperationId, PoolSpec] = {}
        self._reports: Counter[Place] = Counter()
        self._released: set[Place] = set()
        self._agreed: set[tuple[int, OperationId]] = set()
        self._lies: set[tuple[int, Ballot]] = set()
        self._rooms = rng.choice((0.5, 0.9, 1.0))
        self._restless = rng.choice((0.03, 0.07, 0.15))
        self._patient = rng.choice((0.7, 0.85, 0.95))
        self._orderly = rng.choice((0.0, 0.4, 0.8) if self._lying else (0.3, 0.6, 0.9))
        self._weights = self._draw_weights(rng.choice(_LYING_THEMES if self._lying else _THEMES))

    def _draw_weights(self, theme: str) -> dict[Callable[[], bool], float]:
        rng = self._rng
        weights: dict[Callable[[], bool], float] = {self._fire: rng.choice((0.5, 1.0, 2.0))}
        if theme != "register":
            weights[self._report] = rng.choice((1.0, 3.0))
            weights[self._claim] = rng.choice((0.1, 0.4))
            weights[self._release] = rng.choice((0.0, 0.0, 0.1))
        if theme != "task":
            weights |= {self._move: 0.5, self._agree: 2.0}
        if self._lying:
            weights[self._lie] = rng.choice((1.0, 3.0))
            if theme != "task":
                weights[self._propose] = rng.choice((1.0, 3.0))
        return {step: weight for step, weight in weights.items() if weight}

    @property
    def trace_hash(self) -> str:
        """A hash of every step."""
        return self._steps_hash.hexdigest()

    def run(self) -> None:
        """Take the steps, then let every elector hear everything, and check what they hold.

        Raises:
            InvariantViolated: one of those that the ledger and the checkers know.
        """
        rng = self._rng
        if self._move in self._weights and rng.random() < 0.7:
            self._ask_early()
        for _ in range(TURNS):
            if rng.random() < self._orderly:
                self._orderly_turn()
                continue
            self._turn()
            while rng.random() > self._restless and self._step():
                continue
        while waiting := self._waiting(self._shown):
            for link in waiting:
                self._show(link, self._missing(link))
        self.stage.ledger.check_settlements()
        check_replicas(self.stage.ledger, self.stage.replicas)

    def _turn(self) -> None:
        """Now others hear each other, and the time of others goes on."""
        rng = self._rng
        if rng.random() < self._rooms:
            self._enter(rng.choice((1, 1, 0)), 0.85)
        else:
            chance = rng.choice((0.15, 0.3, 0.5, 0.9))
            self._links = [link for link in self._shown if rng.random() < chance]
            self._awake = [who for who in ELECTORS if rng.random() < 0.6]
        self._say(f"now {self._links} are linked, and {self._awake} awake")

    def _enter(self, absent: int, chance: float) -> None:
        """Who is in the room hears who else is there, with some chance of each; so many electors are out of it."""
        voters = (*ELECTORS, L) if self._lying else ELECTORS
        room = {*self._rng.sample(voters, len(voters) - absent), *WORKERS}
        self._links = [link for link in self._shown if room.issuperset(link) and self._rng.random() < chance]
        self._awake = [who for who in ELECTORS if who in room]

    def _orderly_turn(self) -> None:
        """A quorum tells each other everything, a few things happen, and it is parted before all in it know of them."""
        rng = self._rng
        self._enter(1, 1.0)
        self._say(f"{self._awake} meet")
        while self._deliver():
            continue
        for _ in range(rng.choice((1, 2, 3, 4))):
            self._act()
        for _ in range(rng.randint(2, 12)):
            self._deliver()

    def _step(self) -> bool:
        """Take one step that changes something. Returns False if there is none."""
        if self._rng.random() < self._patient and self._deliver():
            return True
        return self._act() or self._deliver()

    def _act(self) -> bool:
        """Let something happen. Returns False if nothing can."""
        steps = dict(self._weights)
        while steps:
            (step,) = self._rng.choices(list(steps), list(steps.values()))
            if step():
                return True
            del steps[step]
        return False

    # ------------------------------------------------------------ what travels, and time

    def _deliver(self) -> bool:
        waiting = self._waiting(self._links)
        if not waiting:
            return False
        link = self._rng.choice(waiting)
        missing = self._missing(link)
        self._show(link, missing if self._rng.random() < 0.6 else self._rng.randint(1, missing))
        return True

    def _waiting(self, links: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        return [link for link in links if self._missing(link)]

    def _missing(self, link: tuple[int, int]) -> int:
        return len(self.stage.said[link[0]]) - self._shown[link]

    def _show(self, link: tuple[int, int], count: int) -> None:
        (who, to), first = link, self._shown[link]
        self._shown[link] = first + count
        operations = self.stage.said[who][first : first + count]
        self._say(f"{who} shows {to} its operations {first} to {first + count - 1}")
        self.stage.event(to, ev.Received(tuple(operation.signed for operation in operations)))

    def _fire(self) -> bool:
        due = [
            (who, key.kind, key.task)
            for who in self._awake
            for key in self.stage.timers[who]
            if key.task is not None and key.kind in TIMERS
        ]
        if not due:
            return False
        who, kind, subject = self._rng.choices(due, [4 if kind is TimerKind.CLOSE else 1 for _, kind, _ in due])[0]
        self._say(f"{who} has waited for {kind.value} of {subject.hex()[:6]}")
        self.stage.fire(who, kind, subject)
        return True

    # ------------------------------------------------------------ workers, who may lie

    def _claim(self) -> bool:
        who = self._rng.choice((W1, W2, W2))
        if sum(isinstance(operation.body, ClaimBody) for operation in self.stage.said[who]) >= CLAIMS_MAX:
            return False
        epoch = self.stage.replicas[self._rng.choice(ELECTORS)].epoch
        self.stage.sign(who, ClaimBody(self.task), epoch=epoch)
        self._say(f"{who} stands for the task in epoch {epoch}")
        return True

    def _release(self) -> bool:
        places = [place for place in self._promises(self.task) if self._claimant(place) in WORKERS]
        place = self._rng.choice(places) if places else None
        if place is None or place in self._released:
            return False
        self._released.add(place)
        who = self._claimant(place)
        self.stage.sign(who, ReleaseBody(self.task, place[1]), epoch=place[0])
        self._say(f"{who} gives round {place[:2]} back")
        return True

    def _report(self) -> bool:
        """A worker reports on some of the promises of one of its rounds: which value, and on how many, as it likes."""
        rng, promises = self._rng, self._promises(self.task)
        places = [
            place
            for place in promises
            if self._claimant(place) in WORKERS and self._reports[place] < REPORTS_PER_ROUND_MAX
        ]
        if rng.random() < 0.8:
            places = [place for place in places if len(promises[place]) >= self._quorum]
        if not places:
            return False
        place = max(places) if rng.random() < 0.7 else rng.choice(sorted(places))
        who = self._claimant(place)
        for _ in range(rng.choice((1, 1, 2))):
            value = self.stage.value(who, rng.randint(1, 2))
            if self._values and rng.random() < 0.4:
                value = rng.choice(self._values)
            self._values.append(value)
            self._reports[place] += 1
            named = self._some(promises[place])
            self.stage.sign(who, ReportBody(self.task, place[1], value, named), epoch=place[0])
            self._say(f"{who} reports {value.hash.hex()[:6]} in round {place[:2]} on {len(named)} promises")
        return True

    def _some(self, promises: dict[int, OperationId]) -> tuple[OperationId, ...]:
        """Mostly a quorum of promises, if there are as many."""
        count = self._quorum if self._rng.random() < 0.8 else self._rng.randint(1, len(promises))
        return tuple(sorted(self._rng.sample(sorted(promises.values()), min(count, len(promises)))))

    def _promises(self, subject: TaskId) -> dict[Place, dict[int, OperationId]]:
        """Who promised each round of a subject so far, and the vote it did it with."""
        found: dict[Place, dict[int, OperationId]] = defaultdict(dict)
        for who, operation in self._said():
            for ballot in operation.body.ballots if isinstance(operation.body, VoteBody) else ():
                if ballot.phase is Phase.GRANT and ballot.task == subject:
                    found[operation.epoch, ballot.round, OperationId(ballot.ref)][who] = operation.id
        return found

    def _claimant(self, place: Place) -> int:
        return next((who for who, operation in self._said() if operation.id == place[2]), -1)

    def _said(self) -> Iterator[tuple[int, Operation]]:
        return ((who, operation) for who in self._people for operation in self.stage.said[who])

    # ------------------------------------------------------------ changes of the pool

    def _ask_early(self) -> None:
        """A change is asked for before anything else, and most agree, though they may not know it of each other."""
        self._move()
        for link in self._waiting(self._shown):
            if link[0] in ELECTORS:
                self._show(link, self._missing(link))
        for _ in range(self._rng.randint(2, 6)):
            self._agree()

    def _move(self) -> bool:
        rng, known = self._rng, self._motions()
        who, spec = rng.choice(ELECTORS), self.stage.spec
        if len(known) >= MOTIONS_MAX or self.stage.replicas[who].epoch:
            return False
        terms = replace(spec, policy=replace(spec.policy, max_retries=rng.choice((98, 99))))
        self.stage.event(who, ev.Move(move_change((), terms, "because")))
        self._terms |= {name: terms for name in self._motions() if name not in known}
        self._say(f"{who} asks for a change")
        return True

    def _agree(self) -> bool:
        who = self._rng.choice(ELECTORS)
        replica = self.stage.replicas[who]
        open_here = [
            name
            for name in self._motions()
            if (who, name) not in self._agreed and replica.view.motions.view(name, replica.epoch) is not None
        ]
        if not open_here or replica.epoch:
            return False
        motion = self._rng.choice(open_here)
        self._agreed.add((who, motion))
        self.stage.event(who, ev.Say(motion, YES))
        self._say(f"{who} says yes to {motion.hex()[:6]}")
        return True

    def _motions(self) -> list[OperationId]:
        return [operation.id for _, operation in self._said() if isinstance(operation.body, MotionBody)]

    # ------------------------------------------------------------ the elector that lies

    def _lie(self) -> bool:
        """Votes for whatever there is in one round: a claim, and all that was reported, of which one may be decided."""
        rng = self._rng
        subject = rng.choice((self.task, self.stage.change()) if self._motions() else (self.task,))
        promises = self._promises(subject)
        if not promises or len(self._lies) >= LIES_MAX:
            return False
        epoch, number, claim = max(promises) if rng.random() < 0.7 else rng.choice(sorted(promises))
        ballots = [Ballot(Phase.GRANT, subject, number, claim)]
        for value in self._reported(subject, epoch, number):
            ballots += [Ballot(phase, subject, number, value) for phase in (Phase.ENDORSE, Phase.ACCEPT)]
        fresh = [ballot for ballot in ballots if (epoch, ballot) not in self._lies and rng.random() < 0.7]
        for ballot in fresh:
            self._lies.add((epoch, ballot))
            self.stage.sign(L, VoteBody((ballot,)), epoch=epoch)
            self._say(f"the liar votes {ballot.phase.name} for {ballot.ref.hex()[:6]} in round {(epoch, number)}")
        return bool(fresh)

    def _reported(self, subject: TaskId, epoch: int, number: int) -> list[bytes]:
        reports = ((operation.epoch, operation.body) for _, operation in self._said())
        return sorted(
            {
                body.value.hash
                for at, body in reports
                if isinstance(body, ReportBody) and (body.task, at, body.round) == (subject, epoch, number)
            }
        )

    def _propose(self) -> bool:
        """Stands for the next epoch, and then proposes it, now and then two of it in one round."""
        rng, change, motions = self._rng, self.stage.change(), self._motions()
        if not motions or len(self._proposed) >= PROPOSALS_MAX:
            return False
        own = [operation.body for operation in self.stage.said[L] if isinstance(operation.body, ClaimBody)]
        if not own:
            self.stage.sign(L, ClaimBody(change, Purpose.EPOCH, 0, "", rng.choice(motions)))
            self._say("the liar stands for the next epoch")
            return True
        promises = self._promises(change)
        places = [place for place in promises if self._claimant(place) == L and len(promises[place]) >= self._quorum]
        if not places:
            return False
        place, motion = max(places), OperationId(own[0].ref)
        for _ in range(rng.choice((1, 2, 2))):
            named = self._some(promises[place])
            epoch = EpochValue(1, self.stage.pool, motion, self._terms[motion], (), named)
            value = TaskValue(Outcome.COMPLETED, self.stage.people[L].public_key, epoch.to_bytes())
            if self._proposed and rng.random() < 0.3:
                value = rng.choice(self._proposed)
            self._proposed.append(value)
            self.stage.sign(L, ReportBody(change, place[1], value, named))
            self._say(f"the liar proposes {value.hash.hex()[:6]} in round {place[1]}")
        return True

    def _say(self, line: str) -> None:
        self.events += 1
        self._steps_hash.update(line.encode() + b"\n")
        if self._trace is not None:
            self._trace(line)
