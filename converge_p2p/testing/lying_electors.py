"""Electors that lie, up to f of them: votes against their own votes, lies about locks, forged epochs, floods.

Knows: what an elector could sign, and whom to show it. Must not know: how a replica defends itself.
Source: `docs/protocol.md`, registers; `docs/simulator.md` lists the lies.

A lying elector runs an honest replica as well, which votes with the others. Now and then, when something happened, it
signs what that replica never would: on top of its chain, or on two branches that are shown to different nodes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    Lock,
    Phase,
    Purpose,
    ReportBody,
    Token,
    VoteBody,
)
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Missing
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.wire import (
    Comparison,
    Digest,
    Entries,
    Operations,
    Part,
    SyncMessage,
    Want,
    encode_message,
)
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.changes import EpochRegister
from converge_p2p.core.view.epochs import EpochValue
from converge_p2p.core.view.register import Grant, Register
from converge_p2p.testing.forgery import Forger
from converge_p2p.testing.machine import Machine

if TYPE_CHECKING:
    from converge_p2p.testing.world import World

REACTION_MS = 15
REACTS = 0.15
"""How often something that arrived makes it lie."""
LIES_MAX = 30
"""Lies of one elector in a run: more of them only take time."""
BALLOTS_MAX = 4
SPAM = 12


class LyingElector(Forger):
    """The lies of one elector."""

    def __init__(self, world: World, machine: Machine) -> None:
        super().__init__(world, machine)
        self._lies = self.world.scenario.elector_lies
        self._planned = False
        self._inflating = False
        self._told = 0

    def begin(self) -> None:
        """Choose who is shown nothing."""
        nodes = range(len(self.world.machines))
        if "withhold" in self._lies:
            self.machine.hidden = frozenset(node for node in nodes if self.rng.random() < 0.4)

    def stirred(self) -> None:
        """Something happened at the machine: maybe lie in a moment."""
        if "cuts" in self._lies and not self._inflating and self.able and self._inflatable() is not None:
            # before the own replica promises: whatever comes first in the chain is the elector's word
            self._inflating = True
            self.machine.later(self.rng.randint(0, 3), self._inflate)
        if self._planned or self._told >= LIES_MAX or self.rng.random() >= REACTS:
            return
        self._planned = True
        self.machine.later(self.rng.randint(0, REACTION_MS), self._lie)

    def _lie(self) -> None:
        self._planned = False
        if not self.able:
            return
        lie = self.rng.choice(self._lies)
        self._told += 1
        match lie:
            case "double" | "locks" | "unsealed" | "withhold":
                self._votes(lie)
            case "found":
                self._found()
            case "cuts":
                # told when the next epoch is claimed, not now and then
                pass
            case "wild":
                self._wild()
            case "sync":
                self._sync()
            case "spam":
                self._spam()

    # ------------------------------------------------------------ votes

    def _subjects(self) -> list[Register]:
        view = self.replica.view
        found: list[Register] = [
            register for name in view.open if (register := view.subject(name)) is not None and register.is_open
        ]
        if view.next_change.is_open:
            found += [view.next_change] * (1 + len(found))
        return found

    def _votes(self, lie: str) -> None:
        """Vote for whatever there is to vote for: in the epoch register as well, and after a promise there."""
        subjects = self._subjects()
        if lie == "unsealed":
            subjects = [one for one in subjects if not isinstance(one, EpochRegister)]
        if not subjects:
            return
        register = self.rng.choice(subjects)
        options = self._options(register)
        if not options:
            return
        self.rng.shuffle(options)
        sides: list[list[Ballot]] = [[], []]
        for ballot in options[: 2 * BALLOTS_MAX]:
            side = self.rng.choice(sides)
            if all((ballot.phase, ballot.round) != (other.phase, other.round) for other in side):
                side.append(ballot)
        bodies = [VoteBody(tuple(side)) for side in sides if side]
        if lie == "double" and len(bodies) == 2 and self.rng.random() < 0.4:
            self.show_apart([self.sign(bodies[0])], [self.sign(bodies[1])])
            return
        self._show(self.chain(bodies))

    def _options(self, register: Register) -> list[Ballot]:
        rng, now = self.rng, register.now
        tokens = [token for token in register.rounds if token.epoch == now]
        rounds = sorted({token.round for token in tokens} | {max((token.round for token in tokens), default=-1) + 1})
        options: list[Ballot] = []
        grants: list[Ballot] = []
        for number in rounds[-4:]:
            votes = register.rounds.get(Token(now, number))
            values = set() if votes is None else {report.value for report in votes.reports.values()}
            values |= set(register.values) if rng.random() < 0.3 else set()
            for value in sorted(values):
                options.append(Ballot(Phase.ENDORSE, register.id, number, value))
                options.append(Ballot(Phase.ACCEPT, register.id, number, value))
            for claim in sorted(register.claims):
                lock, held = self._lock(register), self._held(register, claim)
                grants.append(Ballot(Phase.GRANT, register.id, number, claim, lock, held=held))
        return options + grants

    def _lock(self, register: Register) -> Lock | None:
        """A lock: left out, invented, or of another round."""
        rng = self.rng
        if "locks" not in self._lies or rng.random() < 0.5:
            return None
        values = sorted(register.values) or [ValueHash(bytes(32))]
        value = rng.choice(values) if rng.random() < 0.8 else ValueHash(rng.randbytes(32))
        return Lock(Token(rng.randint(0, register.now + 1), rng.randint(0, 5)), value)

    def _held(self, register: Register, claim: OperationId) -> tuple[Cut, ...]:
        """What is held of those that a motion expels: the truth, nothing, or much more."""
        return self._said_held(register, claim, ("true", "true", "nothing", "more"))

    def _said_held(self, register: Register, claim: OperationId, lies: tuple[str, ...]) -> tuple[Cut, ...]:
        if not isinstance(register, EpochRegister):
            return ()
        change = register.motions.get(OperationId(register.claims[claim].ref))
        cuts = []
        for author in () if change is None else change.expelled:
            entry = self.replica.log.entry(author)
            length = 0 if entry is None else entry.length
            head = None if entry is None else entry.head
            lie = self.rng.choice(lies)
            if lie == "nothing":
                length, head = 0, None
            elif lie == "more":
                length, head = length + self.rng.randint(1, 9), OperationId(self.rng.randbytes(32))
            cuts.append(Cut(author, length, head if length else None))
        return tuple(cuts)

    def _inflatable(self) -> tuple[int, list[OperationId]] | None:
        """A round of the next epoch in which nothing was promised yet, and the claims there that remove somebody."""
        change, key = self.replica.view.next_change, self.machine.identity.public_key
        if not change.claims or key not in self.replica.view.electors or not change.is_open:
            return None
        motions = change.motions
        removing = [
            claim
            for claim in sorted(change.claims)
            if (asked := motions.get(OperationId(change.claims[claim].ref))) is not None and asked.expelled
        ]
        top, own = change.top, change.top_granted.get(key)
        number = 0 if top is None else top.round
        return None if not removing or (own is not None and own.round >= number) else (number, removing)

    def _inflate(self) -> None:
        """Promise the next epoch, and say that much more is held of whom it removes than there is."""
        self._inflating = False
        found = self._inflatable() if self.able else None
        if found is not None:
            change, (number, claims) = self.replica.view.next_change, found
            claim = self.rng.choice(claims)
            held = self._said_held(change, claim, ("more",))
            self._show([self.sign(VoteBody((Ballot(Phase.GRANT, change.id, number, claim, held=held),)))])

    def _show(self, operations: list[Operation]) -> None:
        if "withhold" in self._lies:
            self.show_apart(operations, [])
        else:
            self.show_apart(operations, operations)

    # ------------------------------------------------------------ epochs

    def _found(self) -> None:
        """Claim the next epoch, or report what does not follow from the promises, or two values at once."""
        change, rng = self.replica.view.next_change, self.rng
        if not change.is_open:
            return
        key = self.machine.identity.public_key
        mine = [claim for claim in change.claims.values() if claim.author == key]
        token = change.top
        claim = None if token is None else change.certified_claim(token)
        if not mine or rng.random() < 0.2:
            motion = rng.choice(sorted(change.motions))
            self._show([self.sign(ClaimBody(change.id, Purpose.EPOCH, 0, "", motion))])
            return
        if token is None or (rng.random() < 0.5 and (claim is None or claim.author != key)):
            return
        votes = change.rounds[token]
        grants = {
            vote: grant for vote, grant in votes.grants.items() if claim is None or grant.claim == claim.operation
        }
        bodies = [self._false_epoch(change, token, grants) for _ in range(2)]
        if rng.random() < 0.5:
            self.show_apart([self.sign(bodies[0])], [self.sign(bodies[1])])
        else:
            both = self.chain(bodies)
            self.show_apart(both, both[::-1])

    def _false_epoch(self, change: EpochRegister, token: Token, grants: dict[OperationId, Grant]) -> Body:
        rng, key = self.rng, self.machine.identity.public_key
        names = sorted(grants)
        rng.shuffle(names)
        formula = change.counting(change.now).rules.grant
        if rng.random() < 0.6:
            # just enough of them: another quorum than the honest replica would name
            order = {grants[name].elector: name for name in names}
            chosen = formula.minimal_quorum(order)
            names = names if chosen is None else [order[elector] for elector in chosen]
        else:
            names = names[: rng.randint(0, len(names))]
        motions = sorted(change.motions)
        claims = [claim for claim in change.claims.values() if claim.author == key]
        picked = rng.choice(claims) if claims else None
        value = None if picked is None else change.propose(picked, {name: grants[name] for name in names})
        if value is None or rng.random() < 0.3:
            motion = rng.choice(motions)
            spec = change.motions[motion].spec
            value = EpochValue(change.number, change.epochs[change.now].hash, motion, spec, (), tuple(sorted(names)))
        result = value.to_bytes()
        report = TaskValue(Outcome.COMPLETED, key, result)
        return ReportBody(change.id, token.round, report, tuple(sorted(names)))

    # ------------------------------------------------------------ far away

    def _wild(self) -> None:
        """Rounds of a thousand million, and epochs that are over or never were."""
        rng, subjects = self.rng, self._subjects()
        if not subjects:
            return
        register = rng.choice(subjects)
        number = rng.choice((10**9, 2**31 - 1, rng.randint(5, 50)))
        values = sorted(register.values) or [ValueHash(rng.randbytes(32))]
        ballots = [
            Ballot(Phase.GRANT, register.id, number, rng.choice(sorted(register.claims) or [OperationId(bytes(32))])),
            Ballot(Phase.ENDORSE, register.id, number, rng.choice(values)),
            Ballot(Phase.ACCEPT, register.id, number, rng.choice(values)),
        ]
        body = VoteBody(tuple(rng.sample(ballots, rng.randint(1, 3))))
        epoch = self.replica.epoch
        epochs = (epoch, epoch, max(0, epoch - 1), 0, epoch + 1) if rng.random() < 0.9 else (10**6,)
        self._show([self.sign(body, epoch=rng.choice(epochs))])

    def _sync(self) -> None:
        """Lies about the frontier: digests, entries and wants that nothing stands behind."""
        rng, log = self.rng, self.replica.log
        author = rng.choice(sorted(log.chains)) if log.chains else PublicKey(rng.randbytes(32))
        length = log.length(author) + rng.randint(1, 10**6)
        entry = FrontierEntry(author, length, OperationId(rng.randbytes(32)), rng.choice((None, rng.randbytes(32))))
        far = 2**40
        messages: list[SyncMessage] = [
            Digest(rng.randbytes(32)),
            Entries((entry,), more=True),
            Comparison(b"", (Part(b"", rng.choice(((entry,), rng.randbytes(16), None))),)),
            Want((Missing(author, 0, far), Missing(author, far, far + 5))),
            Operations((), last=True),
            Operations((rng.randbytes(200), *log.read(author, 0, 2)), last=True),
        ]
        for message in rng.sample(messages, 3):
            self._send_all(message)
        if rng.random() < 0.3:
            self._send_all(rng.randbytes(rng.randint(1, 40)))

    def _send_all(self, message: SyncMessage | bytes) -> None:
        try:
            payload = message if isinstance(message, bytes) else encode_message(message)
        except CodecError:
            return
        for node in range(len(self.world.machines)):
            if node != self.machine.index and self.rng.random() < 0.5:
                self.world.deliver(self.machine.index, node, ev.SyncReceived(self.machine.peer, payload))

    # ------------------------------------------------------------ floods

    def _spam(self) -> None:
        """Many operations that nobody needs, some of them far ahead of the chain, so that they have to wait."""
        rng = self.rng
        self._told += 5
        bodies: list[Body] = [self._noise() for _ in range(SPAM)]
        operations = self.chain(bodies)
        gone = rng.choice((0, 0, 1))
        for node in range(len(self.world.machines)):
            if node != self.machine.index:
                self.show(node, operations[gone:])
        self.machine.later(rng.randint(0, 50), partial(self.keep, operations))

    def _noise(self) -> Body:
        rng = self.rng
        task = TaskId(rng.randbytes(32))
        value = TaskValue(Outcome.COMPLETED, self.machine.identity.public_key, encode_value(rng.random() < 0.5))
        return rng.choice(
            (
                ClaimBody(task),
                ReportBody(task, rng.randint(0, 10**9), value, ()),
                VoteBody(tuple(Ballot(Phase.ACCEPT, task, number, value.hash) for number in range(3))),
            )
        )
