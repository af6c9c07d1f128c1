"""Changes of the pool in a run: who moves which, and what honest electors say to them.

Knows: who lies and who dies, so that no change leaves more than f liars among the electors, or in liveness mode too few
that work. Must not know: how a change is carried or put in force.
Source: `docs/protocol.md`, motions and epochs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec
from converge_p2p.core.oplog.motions import NO, YES, Change, move_change
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.testing.counting import decides
from converge_p2p.testing.scenario import ELECTORS_MAX
from converge_p2p.testing.terms import draw_terms, is_sound

if TYPE_CHECKING:
    from converge_p2p.testing.machine import Machine
    from converge_p2p.testing.world import World

THOUGHT_MS = 60
"""How long an elector thinks about a motion, at most."""
TRIES = 4


class Politics:
    """The changes of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._expelled: set[PublicKey] = set()
        """Whoever somebody once moved to expel: never proposed as an elector again."""

    def plan(self) -> None:
        """Spread the motions over the time of chaos."""
        world, scenario, rng = self._world, self._world.scenario, self._world.rng
        for _ in range(scenario.epochs):
            when = rng.randint(250, max(251, scenario.chaos_ms))
            world.at(when, self._move)
            if rng.random() < scenario.rivals:
                world.at(when + rng.randint(0, 100), self._move)

    def heard(self, machine: Machine, motion: OperationId) -> None:
        """A motion is known at a machine: if it votes, it answers after some thought."""
        machine.later(self._world.rng.randint(0, THOUGHT_MS), partial(self._answer, machine, motion))

    # ------------------------------------------------------------ moving

    def _move(self) -> None:
        world, rng = self._world, self._world.rng
        movers = [
            machine
            for machine in world.machines
            if machine.replica is not None
            and machine.replica.view.spec is not None
            and machine.paused_until <= world.now_ms
            and machine.replica.view.members.active(machine.identity.public_key)
        ]
        if not movers or world.quiet:
            return
        machine = rng.choice(movers)
        assert machine.replica is not None
        spec = machine.replica.view.spec
        assert spec is not None
        for _ in range(TRIES):
            change = self._draw(spec, rng.choice(world.scenario.kinds))
            if change is not None and self.acceptable(change, spec):
                self._expelled.update(change.expelled)
                machine.command(ev.Move(move_change(change.expelled, change.terms, "because")))
                return

    def _draw(self, spec: PoolSpec, kind: str) -> Change | None:
        """Draw a change of one kind; None if there is nothing to change."""
        world, rng = self._world, self._world.rng
        electors = list(spec.electors)
        others = [
            machine.identity.public_key
            for machine in world.machines
            if machine.identity.public_key not in electors and machine.identity.public_key not in self._expelled
        ]
        match kind:
            case "add" if others and len(electors) < ELECTORS_MAX:
                return self._terms(spec, [*electors, rng.choice(others)], spec.governance)
            case "drop" if len(electors) > 1:
                electors.remove(rng.choice(electors))
                return self._terms(spec, electors, spec.governance)
            case "expel" if rng.random() < 0.3 and len(electors) > 2:
                gone = rng.choice(electors)
                electors.remove(gone)
                change = self._terms(spec, electors, spec.governance)
                return None if change is None else replace(change, expelled=(gone,))
            case "expel" if others:
                return Change(expelled=(rng.choice(others),))
            case "policy":
                policy = replace(
                    spec.policy,
                    fast_path=not spec.policy.fast_path,
                    max_retries=rng.choice((1, 3, 10)),
                    hold_off_ms=rng.choice((0, 5, 20)),
                )
                return Change(terms=replace(spec, policy=policy))
            case "model":
                everybody = electors + rng.sample(others, rng.randint(0, min(2, len(others))))
                return self._terms(spec, everybody, rng.choice(tuple(GovernanceKind)))
        return None

    def _terms(self, spec: PoolSpec, electors: list[PublicKey], kind: GovernanceKind) -> Change | None:
        world, rng = self._world, self._world.rng
        scenario = world.scenario
        liars = sum(key in world.liar_keys for key in electors)
        faults = max(liars, rng.choice((0, scenario.faults)))
        needed = [key for key in electors if world.reliable(key)] if scenario.mode == "liveness" else None
        try:
            terms = draw_terms(rng, spec, kind, electors, faults, needed)
        except CodecError:
            return None
        return Change(terms=terms)

    # ------------------------------------------------------------ judging

    def acceptable(self, change: Change, spec: PoolSpec) -> bool:
        """Whether the run stays within what the invariants promise if this comes into force."""
        world = self._world
        terms = change.terms or spec
        if not is_sound(terms) or sum(key in world.liar_keys for key in terms.electors) > terms.faults:
            return False
        newcomers = set(terms.electors) - set(spec.electors)
        if self._expelled & newcomers or set(change.expelled) & set(terms.electors):
            return False
        if any(key in world.liar_keys for key in terms.model.trusted):
            return False
        if world.scenario.mode != "liveness":
            return True
        if world.steady_key in change.expelled:
            return False
        return decides(terms, [key for key in terms.electors if world.reliable(key)])

    def _answer(self, machine: Machine, name: OperationId) -> None:
        replica, world = machine.replica, self._world
        if replica is None or world.quiet or not replica.is_elector:
            return
        motion = replica.view.motions.get(name)
        if motion is not None and motion.task is not None:
            machine.science.asked(motion)
        if motion is None or motion.task is not None or motion.epoch != replica.epoch:
            return
        spec = replica.view.spec
        assert spec is not None
        fine = self.acceptable(Change(motion.expelled, motion.terms), spec)
        agrees = fine and (world.rng.random() < world.scenario.agree)
        machine.command(ev.Say(name, YES if agrees or machine.liar else NO))
