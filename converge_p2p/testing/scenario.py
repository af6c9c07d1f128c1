"""What one seed of the simulator runs: sizes, terms, timers, faults and behaviour, drawn from the seed.

Knows: what a caller may fix, and how that is fitted to what was drawn. Must not know: the ranges (see `profiles`), or
how a fault is carried out. Source: swarm testing (Groce and others 2012): each seed leaves some features out, so that
others can go further.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field, fields, replace
from typing import Any

from converge_p2p.core.governance.models import ALL_RULES, ProtocolRules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import NONCE_BYTES, GovernanceKind, PoolPolicy, PoolSpec
from converge_p2p.testing.counting import decides
from converge_p2p.testing.terms import draw_terms

ABLATIONS = tuple(item.name for item in fields(ProtocolRules))
PLANS = ("finish", "late", "retry", "fail", "give_back", "never")
LIES = ("twice", "fork_report", "fork", "junk", "short", "over_lock", "uncertified")
"""Of workers: two values in one round, in one chain or on two; forks; what is not theirs to sign; a report that names
too few promises; one against the lock it names; one without a claim certificate."""
ELECTOR_LIES = ("double", "locks", "withhold", "unsealed", "found", "wild", "sync", "spam", "cuts")
"""Of electors: votes for whatever there is, in any round, in one chain or on two; locks left out, invented or stale;
votes that only some are shown; votes after the promise of the next epoch; epoch values that do not follow from their
promises, and two of them; rounds and epochs far away; lies about the frontier; floods; promises that say much more is
held of a removed author than there is."""
MODES = ("safety", "liveness")
WALK = "walk"
"""A mode of its own, see `walks`: of what a caller may fix, only the rules that are switched off count there."""
ELECTORS_MAX = 15
FAULTS_MAX = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller fixes; everything left at None is drawn.

    Attributes:
        mode: "safety": anything goes, the invariants hold. "liveness": after healing, everything must settle. "walk":
            no clock and no network, see `walks`; of the rest only `ablate` counts.
        profile: see `profiles.PROFILES`; "mixed" takes each of them in turn.
        nodes: electors and workers together; `electors` then are as many as drawn, and at least one worker is left.
        electors, workers, tasks: sizes.
        f: how many electors may lie, where the terms can bear it.
        lying_electors: how many do, at most as many as may.
        governance: the model.
        epochs: how many changes of the pool are moved.
        ablate: rules of the protocol that are switched off.
        perturb: check that other clock readings leave the decided state unchanged (costs signatures).
        restore: machines may start again from an old copy of their disk. None: in every fourth seed, in safety mode.
        checkpoints: after how many operations electors propose a checkpoint; 0: never.
    """

    mode: str = "safety"
    profile: str = "mixed"
    nodes: int | None = None
    electors: int | None = None
    workers: int | None = None
    tasks: int | None = None
    f: int | None = None
    lying_electors: int | None = None
    governance: GovernanceKind | None = None
    epochs: int | None = None
    ablate: tuple[str, ...] = ()
    perturb: bool | None = None
    restore: bool | None = None
    checkpoints: int | None = None

    @property
    def protocol(self) -> ProtocolRules:
        """The rules, without those that are switched off."""
        return ProtocolRules(**dict.fromkeys(self.ablate, False))

    def arguments(self) -> str:
        """The command line arguments that give these options again."""
        parts = [f"--mode {self.mode}", f"--profile {self.profile}"]
        for name in NUMBERS:
            number = getattr(self, name)
            if number is not None:
                parts.append(f"--{name.replace('_', '-')} {number}")
        if self.governance is not None:
            parts.append(f"--governance {self.governance.name.lower()}")
        parts += [f"--ablate {name}" for name in self.ablate]
        if self.perturb is not None:
            parts.append("--perturb" if self.perturb else "--no-perturb")
        if self.restore is not None:
            parts.append("--restore" if self.restore else "--no-restore")
        return " ".join(parts)


NUMBERS = ("nodes", "electors", "workers", "tasks", "f", "lying_electors", "epochs", "checkpoints")
"""Options that are numbers."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One drawn run. Times are virtual milliseconds; probabilities are for each message or occasion.

    Attributes:
        electors, workers, tasks: sizes. Who of the electors is not named by the founding terms is a member.
        faults, lying: how many electors may lie, and which do, how: `elector_lies`.
        liars: how many of the workers lie, and `lies`, how.
        larger_quorum: the democratic model takes more electors than it must.
        hold_off_ms, grant_timer_ms, claim_ttl_ms, max_retries, trusted_workers, fast_path: the pool's policy.
        epochs: how many changes of the pool are moved, `rivals`: how often two at once, `agree`: how often an elector
            says yes, `kinds`: what they change.
        loss, duplicate, straggle: message faults; a straggler is delayed by up to `straggle_ms` more.
        delay_ms: least and most delay of an ordinary message.
        by_stream: how often a batch comes over a replication stream (a gap is asked for at once), not by gossip.
        partitions: how many, of `cut_ms` at most each.
        isolate, one_way, noticed: how many of them cut off one elector, cut one direction only, are told to the peers.
        crashes, deaths: restarts after a crash; nodes that never come back.
        restores: restarts from an old copy of the disk.
        pauses, skew_ms, drift: of clocks; a paused node handles nothing, and everything later.
        disk_ms: least and most time until a batch is durable.
        plans: weight of what a worker does with a claim it won, in the order of `PLANS`.
        heed: how often a worker stops when it is told that its claim is lost.
        claims: how often a worker stands for a task it sees.
        cancels, leaves, late_joins: how often.
        chaos_ms: how long faults last; submits fall into its first part.
        checkpoints: after how many operations electors propose a checkpoint; 0: never.
        spec: the founding terms.
    """

    seed: int
    mode: str
    governance: GovernanceKind
    electors: int
    workers: int
    tasks: int
    liars: int
    lies: tuple[str, ...]
    hold_off_ms: int
    grant_timer_ms: int
    claim_ttl_ms: int
    max_retries: int
    trusted_workers: bool
    digest_interval_ms: int
    loss: float
    duplicate: float
    straggle: float
    straggle_ms: int
    delay_ms: tuple[int, int]
    by_stream: float
    partitions: int
    cut_ms: int
    isolate: float
    one_way: float
    noticed: float
    crashes: int
    deaths: int
    pauses: int
    skew_ms: int
    drift: float
    disk_ms: tuple[int, int]
    plans: tuple[int, ...]
    heed: float
    claims: float
    cancels: float
    leaves: float
    late_joins: float
    chaos_ms: int
    fast_path: bool = False
    faults: int = 0
    lying_electors: int = 0
    elector_lies: tuple[str, ...] = ()
    epochs: int = 0
    rivals: float = 0.0
    agree: float = 1.0
    kinds: tuple[str, ...] = ("add", "drop", "expel", "policy", "model")
    restores: int = 0
    lying: tuple[int, ...] = ()
    protocol: ProtocolRules = ALL_RULES
    perturb: bool = False
    checkpoints: int = 0
    spec: PoolSpec = field(default=PoolSpec("undrawn", b"", GovernanceKind.DEMOCRATIC, ()), repr=False)

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.electors + self.workers


def fit(scenario: Scenario, options: Options, rng: random.Random) -> Scenario:
    """Apply what the caller fixed to what was drawn, and draw the founding terms.

    Args:
        scenario: what a profile drew.
        options: what is fixed.
        rng: draws the terms, and who of the electors lies.
    """
    restore = scenario.seed % 4 == 2 and scenario.mode == "safety" if options.restore is None else options.restore
    changes: dict[str, Any] = {
        "perturb": scenario.seed % 8 == 0 if options.perturb is None else options.perturb,
        "protocol": options.protocol,
        "restores": rng.randint(0, 2) if restore else 0,
        # drawn apart, so that everything else about a seed is the same with and without
        "checkpoints": 0 if options.ablate else random.Random(f"checkpoints {scenario.seed}").choice((0, 0, 20, 60)),
    }
    given = {"faults": options.f, **{name: getattr(options, name) for name in (*NUMBERS[1:4], *NUMBERS[5:])}}
    given["governance"] = options.governance
    changes |= {name: value for name, value in given.items() if value is not None}
    if options.lying_electors:
        changes["faults"] = max(options.lying_electors, options.f or scenario.faults)
    if options.nodes is not None:
        electors = min(changes.get("electors", scenario.electors), max(1, options.nodes - 1))
        changes |= {"electors": electors, "workers": options.nodes - electors}
    scenario = replace(scenario, **changes)
    live = scenario.mode == "liveness"
    scenario = replace(
        scenario,
        # in liveness mode one worker does its work
        liars=max(0, min(scenario.liars, scenario.workers - live)),
        lying_electors=min(scenario.lying_electors, scenario.faults),
        elector_lies=scenario.elector_lies or ELECTOR_LIES,
    )
    return _found(scenario, rng)


def _found(scenario: Scenario, rng: random.Random) -> Scenario:
    """Draw the founding terms and who lies, within what the terms bear."""
    live = scenario.mode == "liveness"
    keys = [simulated_identity(index).public_key for index in range(scenario.electors)]
    lying = sorted(rng.sample(range(scenario.electors), min(scenario.lying_electors, scenario.electors)))
    honest = [key for index, key in enumerate(keys) if index not in lying]
    base = PoolSpec(
        "simulated",
        scenario.seed.to_bytes(NONCE_BYTES, "big"),
        GovernanceKind.DEMOCRATIC,
        tuple(sorted(keys)),
        policy=PoolPolicy(
            hold_off_ms=scenario.hold_off_ms,
            grant_timer_ms=scenario.grant_timer_ms,
            claim_ttl_ms=scenario.claim_ttl_ms,
            max_retries=scenario.max_retries,
            trusted_workers=scenario.trusted_workers,
            fast_path=scenario.fast_path,
        ),
    )
    spec = draw_terms(rng, base, scenario.governance, keys, scenario.faults, honest if live else None)
    voting = [index for index in lying if keys[index] in spec.electors]
    if len(voting) > spec.faults or (live and not decides(spec, honest)):
        lying = []
    # whoever lies and does not vote is a lying worker; here it is simply honest
    lying = [index for index in lying if keys[index] in spec.electors]
    return replace(
        scenario,
        spec=spec,
        governance=spec.governance,
        faults=spec.faults,
        lying=tuple(lying),
        lying_electors=len(lying),
    )


@functools.cache
def simulated_identity(index: int) -> Identity:
    """The identity of a node, the same in every run."""
    return Identity.from_seed((b"simulated node %d" % index).ljust(32, b"."))
