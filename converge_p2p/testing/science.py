"""Evidence in a run: who looks at the results that were reported, what they cite, and what electors make of it.

Knows: what was reported at a machine. Must not know: how evidence counts.
Source: `docs/protocol.md`, evidence. Liars cite what does not exist, and choose on it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.motions import MotionKind, OpinionBody, dispute_rivals
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId, TaskId, ValueHash
from converge_p2p.core.view.motions import Motion

if TYPE_CHECKING:
    from converge_p2p.testing.byzantine import Liar
    from converge_p2p.testing.machine import Machine

LOOK_MS = 250
"""How long it takes to look at results, at most."""
DISPUTES = 0.2
"""How often somebody who sees two results asks which is right."""


class Science:
    """What one machine does about evidence."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._life = -1
        self._disputed: set[TaskId] = set()

    def stirred(self) -> None:
        """Something happened to a task or to the pool: look at results from now on, where evidence matters."""
        machine = self._machine
        if self._life == machine.life or not self._matters():
            return
        self._life = machine.life
        machine.later(machine.world.rng.randint(1, LOOK_MS), self._look)

    def _matters(self) -> bool:
        replica = self._machine.replica
        return replica is not None and replica.ready and replica.view.counting.rules.cites

    def _look(self) -> None:
        machine, world = self._machine, self._machine.world
        replica = machine.replica
        assert replica is not None
        if world.quiet or not self._matters() or not replica.view.open:
            self._life = -1
            return
        key = machine.identity.public_key
        if replica.view.members.active(key):
            for task in list(replica.view.open):
                self._look_at(task)
        machine.later(world.rng.randint(1, LOOK_MS), self._look)

    def _look_at(self, task: TaskId) -> None:
        machine, rng = self._machine, self._machine.world.rng
        assert machine.replica is not None
        register = machine.replica.view.registers.get(task)
        if register is None or register.submitted is None:
            return
        key, view = machine.identity.public_key, machine.replica.view
        reported = register.reported()
        if len(reported) > 1 and task not in self._disputed and rng.random() < DISPUTES:
            self._disputed.add(task)
            hashes = [value.hash for value in reported]
            machine.command(ev.Move(dispute_rivals(task, tuple(hashes[:4]), "which?")))
        for value in reported:
            mine = {cited.value for cited in view.evidence.about(task) if cited.author == key}
            # in liveness mode whoever is honest looks at everything: else nothing would have to be settled
            if value.hash in mine or (machine.world.scenario.mode == "safety" and rng.random() < 0.5):
                continue
            supports = machine.world.scenario.mode == "liveness" or rng.random() < 0.8
            machine.command(ev.Cite(task, rng.randbytes(32), 1, "simulated", "", value.hash, supports))

    def asked(self, motion: Motion) -> None:
        """Rival results were put to the electors: choose by evidence, as soon as there is some."""
        machine = self._machine
        replica, rng = machine.replica, machine.world.rng
        if motion.kind is not MotionKind.RIVAL_REPORTS or replica is None or not replica.is_elector:
            return
        if not machine.world.quiet:
            choice = None if rng.random() < 0.7 else rng.randrange(len(motion.options))
            machine.command(ev.Say(motion.id, choice))
            if rng.random() < 0.5:
                machine.later(rng.randint(20, 400), partial(self.asked, motion))


def false_evidence(liar: Liar, task: TaskId) -> EvidenceBody:
    """Evidence that a liar makes up, for a result that was reported or was not."""
    rng, view = liar.rng, liar.replica.view
    register = view.registers.get(task)
    values = sorted(register.values) if register is not None else []
    value = rng.choice(values) if values and rng.random() < 0.7 else ValueHash(rng.randbytes(32))
    return EvidenceBody(task, value, rng.random() < 0.7, rng.randbytes(32), rng.randrange(99), "made up")


def false_choice(liar: Liar) -> OpinionBody | None:
    """A choice among rival results on evidence that speaks for something else, or is nowhere."""
    rng, view = liar.rng, liar.replica.view
    rivals = [motion.motion for motion in view.motions.views(0) if motion.motion.kind is MotionKind.RIVAL_REPORTS]
    if not rivals:
        return None
    motion = rng.choice(rivals)
    assert motion.task is not None
    known = [cited.id for cited in view.evidence.about(motion.task)]
    names = {OperationId(rng.randbytes(32)), *rng.sample(known, min(len(known), 3))}
    return OpinionBody(motion.id, rng.randrange(len(motion.options) + 1), tuple(sorted(names)))
