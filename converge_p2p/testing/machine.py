"""One simulated machine: a replica with its clocks, disk and timers, and a worker with a mind of its own.

Knows: how a shell obeys a replica's effects, and what applications do. Must not know: other machines (see `world`).
Source: `docs/protocol.md`, sans-IO boundary. This is a shell like `Node`, without trio, sockets and files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.task import Outcome
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PeerId, PublicKey, TaskId
from converge_p2p.testing.faults import Clock, Disk
from converge_p2p.testing.ledger import InvariantViolated
from converge_p2p.testing.scenario import PLANS
from converge_p2p.testing.science import Science

if TYPE_CHECKING:
    from converge_p2p.testing.world import World

CLAIM_DELAY_MS = 40
MEMBER_POLL_MS = 250

QUIET_TIMERS = (ev.TimerKind.DIGEST, ev.TimerKind.SYNC, ev.TimerKind.FORWARD, ev.TimerKind.ASK)
"""What still goes on when only anti-entropy does."""


class Machine:
    """A node of the simulation. It outlives its crashes; `replica` is None while it is down.

    Attributes:
        index: its number, and as text its peer id.
        works: whether it stands for tasks.
        steady: it always finishes what it wins, soon (the worker that liveness needs).
        liar: its operations need not be honest.
        hidden: nodes that it sends nothing; only a liar has any.
        unsure: its disk was replaced by an older copy, and it did not learn the end of its chain since.
        silent_through: what it was told last about the epochs in which it casts no votes.
        life: how many times it was started; whatever belongs to an earlier life is ignored.
    """

    def __init__(self, world: World, index: int, identity: Identity, *, works: bool, steady: bool, liar: bool) -> None:
        self.world = world
        self.index = index
        self.peer = PeerId(str(index))
        self.identity = identity
        self.works = works
        self.steady = steady
        self.liar = liar
        self.replica: Replica | None = None
        self.disk = Disk()
        self.clock = Clock(0, 0, 1.0, 0)
        self.life = 0
        self.dead = False
        self.paused_until = 0
        self.writing = 0
        self.hidden = frozenset[int]()
        self.unsure = False
        self.silent_through = -1
        self._timers: dict[ev.TimerKey, int] = {}
        self._timer_number = 0
        self._work: dict[TaskId, int] = {}
        self._attempts = 0
        self.science = Science(self)

    # ------------------------------------------------------------ life and death

    def start(self) -> bool:
        """Start with what the disk holds. Returns whether it came up."""
        world, scenario = self.world, self.world.scenario
        self.life += 1
        self.clock = Clock.draw(world.rng, world.now_ms, drift=scenario.drift, skew_ms=scenario.skew_ms)
        self.replica = Replica(
            self.identity,
            world.pool,
            protocol=scenario.protocol,
            seed=world.rng.getrandbits(32),
            digest_interval_ms=scenario.digest_interval_ms,
            checkpoint_operations=scenario.checkpoints,
        )
        stored = self.disk.operations()
        for signed in stored:
            # an own operation that was written and never confirmed counts from now on: others will see it
            operation = decode_operation(signed, world.pool, trusted=True)
            if operation.author == self.identity.public_key:
                world.ledger.signed(operation)
        self.feed(
            ev.Restored(stored, unsure=self.unsure, silent_through=self.silent_through, snapshot=self.disk.snapshot)
        )
        return not self.dead

    def crash(self, *, restore: bool = False) -> None:
        """Lose the memory, and what was not synced; with `restore`, start again from an older copy of the disk."""
        self.replica = None
        self.life += 1
        self.disk.crash(self.world.rng)
        if restore:
            self.disk.restore(self.world.rng)
            self.unsure = True
        self._timers.clear()
        self._work.clear()
        self.writing = 0

    # ------------------------------------------------------------ events and effects

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something after a delay, if this life lasts until then; not before a pause ends."""
        self.world.at(self.world.now_ms + delay_ms, partial(self._if_alive, self.life, action))

    def _if_alive(self, life: int, action: Callable[[], None]) -> None:
        if life != self.life or self.replica is None:
            return
        if self.paused_until > self.world.now_ms:
            self.world.at(self.paused_until, partial(self._if_alive, life, action))
            return
        action()

    def feed(self, event: ev.Event) -> None:
        """Give the replica an event and obey what it answers."""
        replica, world = self.replica, self.world
        if replica is None:
            return
        now = ev.Now(self.clock.mono_ms(world.now_ms), self.clock.wall_ms(world.now_ms))
        try:
            effects = replica.handle(event, now)
        except LocalError as error:
            world.note(self.index, f"{type(event).__name__} refused: {error.code}", b"")
            return
        except Exception as error:
            if self.liar:
                world.note(self.index, f"the liar's own machine broke: {error!r}", b"")
                self.dead = True
                self.crash()
                return
            raise InvariantViolated(0, f"node {self.index} broke on {type(event).__name__}: {error!r}") from error
        world.note(self.index, event, len(effects).to_bytes(4, "big"))
        for effect in effects:
            self._obey(replica, effect)
        if self.liar:
            world.stirred(self)

    def command(self, command: ev.Command) -> None:
        """Ask the replica for something; a refusal is part of life."""
        self.feed(command)

    def _obey(self, replica: Replica, effect: ev.Effect) -> None:
        world = self.world
        match effect:
            case ev.Persist(token, operations, durable):
                position = self.disk.write(operations)
                if durable:
                    self.writing += 1
                    done = self.disk.sync_at(world.now_ms, world.rng.randint(*world.scenario.disk_ms))
                    self.later(done - world.now_ms, partial(self._synced, position, token, operations))
            case ev.Compact(snapshot, drop):
                self.disk.compact(snapshot, drop)
                world.compactions += 1
            case ev.Publish(operations):
                world.publish(self, operations)
            case ev.Send(peer, payload) if int(peer) not in self.hidden:
                world.send(self, int(peer), payload)
            case ev.Send():
                pass
            case ev.SetTimer(key, at_ms):
                self._timer_number += 1
                self._timers[key] = self._timer_number
                wait = max(0, self.clock.due_ms(at_ms) - world.now_ms)
                self.later(wait, partial(self._timer_due, key, self._timer_number))
            case ev.CancelTimer(key):
                self._timers.pop(key, None)
            case ev.Emit(ev.OwnChainLearned(silent_through=silent_through)):
                self.unsure, self.silent_through = False, silent_through
            case ev.Emit(notice):
                world.ledger.told(self.index, notice, replica, honest=not self.liar)
                self._hear(notice)

    def _synced(self, position: int, token: int, operations: tuple[bytes, ...]) -> None:
        self.disk.sync(position)
        self.writing -= 1
        for signed in operations:
            operation = decode_operation(signed, self.world.pool, trusted=True)
            if not self.liar and self.world.ledger.changes(operation):
                self.world.ledger.held_at(operation, self._durable(position))
            self.world.ledger.signed(operation)
        self.feed(ev.Persisted((token,)))

    def _durable(self, position: int) -> dict[PublicKey, int]:
        """How many operations of each author the disk holds for certain, without a gap."""
        held: dict[PublicKey, set[int]] = {}
        for batch in self.disk.batches[:position]:
            for signed in batch:
                operation = decode_operation(signed, self.world.pool, trusted=True)
                held.setdefault(operation.author, set()).add(operation.seq)
        assert self.replica is not None
        held |= {author: held.get(author, set()) for author in self.replica.log.chains}
        bases = {author: self.replica.log.base(author) for author in held}
        return {
            author: next(count for count in range(bases[author], bases[author] + len(seqs) + 1) if count not in seqs)
            for author, seqs in held.items()
        }

    def _timer_due(self, key: ev.TimerKey, number: int) -> None:
        if self._timers.get(key) != number:
            return
        if self.world.quiet and key.kind not in QUIET_TIMERS:
            return
        self.feed(ev.TimerFired(key))
        if self.world.rng.random() < 0.02:
            self.feed(ev.TimerFired(key))

    # ------------------------------------------------------------ the application

    def _hear(self, notice: ev.Notice) -> None:
        world = self.world
        if world.quiet:
            return
        if isinstance(notice, ev.TaskChanged | ev.EpochInstalled):
            self.science.stirred()
        match notice:
            case ev.TaskChanged(task, state):
                if state.terminal:
                    world.settled_at.setdefault(task, world.now_ms)
                elif self.works and (self.steady or world.rng.random() < world.scenario.claims):
                    self.later(world.rng.randint(0, CLAIM_DELAY_MS), partial(self._stand, task))
            case ev.ClaimWon(task):
                self._attempts += 1
                self._work[task] = self._attempts
                if self.liar and world.lie(self, notice):
                    return
                self._start_work(task, self._attempts)
            case ev.MotionMoved(motion):
                world.politics.heard(self, motion)
            case ev.ClaimLost(task):
                if world.rng.random() < world.scenario.heed:
                    self._work.pop(task, None)

    def act(self, command: ev.Command) -> None:
        """Give a command, unless the run is coming to its end."""
        if not self.world.quiet:
            self.command(command)

    def _stand(self, task: TaskId) -> None:
        """Claim a task, as soon as this node is a member."""
        assert self.replica is not None
        members, key = self.replica.view.members, self.identity.public_key
        if key in members.expelled():
            return
        if not members.active(key) and not self.world.quiet:
            self.later(MEMBER_POLL_MS, partial(self._stand, task))
            return
        self.act(ev.Claim(task))

    def _start_work(self, task: TaskId, attempt: int) -> None:
        rng, scenario = self.world.rng, self.world.scenario
        plan = "finish" if self.steady else rng.choices(PLANS, scenario.plans)[0]
        ttl = scenario.claim_ttl_ms
        wait = rng.randint(0, 20) if self.steady else rng.randint(1, ttl)
        if plan == "late":
            wait = rng.randint(ttl // 2, 6 * ttl)
        if plan != "never":
            self.later(wait, partial(self._end_work, task, attempt, plan))

    def _end_work(self, task: TaskId, attempt: int, plan: str) -> None:
        if self._work.get(task) != attempt:
            return
        # every attempt has a result of its own, so that no two could be mistaken for one
        result = encode_value({"by": self.index, "life": self.life, "attempt": attempt})
        match plan:
            case "retry":
                self.act(ev.Release(task, failed=True, reason="try again"))
            case "give_back":
                self.act(ev.Release(task))
            case "fail":
                self.act(ev.Report(task, Outcome.FAILED, result))
            case _:
                self.act(ev.Report(task, Outcome.COMPLETED, result))
        if plan in ("retry", "give_back"):
            self.later(self.world.rng.randint(0, 300), partial(self._stand, task))
