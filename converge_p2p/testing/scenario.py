"""What one seed of the simulator runs: sizes, timers, faults and behaviour, drawn from the seed.

Knows: the ranges everything is drawn from. Must not know: how a fault is carried out.
Source: swarm testing (Groce and others 2012): each seed leaves some features out, so that others can go further.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace
from typing import Any

from converge_p2p.core.governance.models import ALL_RULES, ProtocolRules, smallest_quorum
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import NONCE_BYTES, GovernanceKind, PoolPolicy, PoolSpec

ABLATIONS = ("lock_rule", "fence_accepts", "endorse_phase", "count_members")
PLANS = ("finish", "late", "retry", "fail", "give_back", "never")
LIES = ("twice", "fork_report", "fork", "junk")
PROFILES = ("mixed", "swarm", "duel", "betrayal")
MODES = ("safety", "liveness")


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller fixes; everything left at None is drawn.

    Attributes:
        mode: "safety": anything goes, the invariants hold. "liveness": after healing, everything must settle.
        profile: "swarm" draws everything; "duel" is a small pool with heavy loss and short timers; "betrayal" is one
            where most workers lie; "mixed" takes each of them in turn.
        electors, workers, tasks: sizes.
        governance: the model.
        ablate: rules of the protocol that are switched off.
        perturb: check that other clock readings leave the decided state unchanged (costs signatures).
    """

    mode: str = "safety"
    profile: str = "mixed"
    electors: int | None = None
    workers: int | None = None
    tasks: int | None = None
    governance: GovernanceKind | None = None
    ablate: tuple[str, ...] = ()
    perturb: bool | None = None

    def arguments(self) -> str:
        """The command line arguments that give these options again."""
        parts = [f"--mode {self.mode}", f"--profile {self.profile}"]
        sizes = {name: getattr(self, name) for name in ("electors", "workers", "tasks")}
        parts += [f"--{name} {size}" for name, size in sizes.items() if size is not None]
        if self.governance is not None:
            parts.append(f"--governance {self.governance.name.lower()}")
        parts += [f"--ablate {name}" for name in self.ablate]
        if self.perturb is not None:
            parts.append("--perturb" if self.perturb else "--no-perturb")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One drawn run. Times are virtual milliseconds; probabilities are for each message or occasion.

    Attributes:
        electors, workers, tasks: sizes; in a dictatorial pool only the first elector decides, the others are members.
        liars: how many of the workers lie, and `lies`, how.
        quorum: of the democratic model, 0 is the smallest safe one.
        hold_off_ms, grant_timer_ms, claim_ttl_ms, max_retries, trusted_workers: the pool's policy.
        loss, duplicate, straggle: message faults; a straggler is delayed by up to `straggle_ms` more.
        delay_ms: least and most delay of an ordinary message.
        by_stream: how often a batch comes over a replication stream (a gap is asked for at once), not by gossip.
        partitions: how many, of `cut_ms` at most each.
        isolate, one_way, noticed: how many of them cut off one elector, cut one direction only, are told to the peers.
        crashes, deaths: restarts after a crash; nodes that never come back.
        pauses, skew_ms, drift: of clocks; a paused node handles nothing, and everything later.
        disk_ms: least and most time until a batch is durable.
        plans: weight of what a worker does with a claim it won, in the order of `PLANS`.
        heed: how often a worker stops when it is told that its claim is lost.
        claims: how often a worker stands for a task it sees.
        cancels, leaves, late_joins: how often.
        chaos_ms: how long faults last; submits fall into its first part.
    """

    seed: int
    mode: str
    governance: GovernanceKind
    electors: int
    workers: int
    tasks: int
    liars: int
    lies: tuple[str, ...]
    quorum: int
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
    protocol: ProtocolRules = ALL_RULES
    perturb: bool = False

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.electors + self.workers


def draw_scenario(seed: int, options: Options, rng: random.Random) -> Scenario:
    """Draw what a seed runs, then apply what the caller fixed."""
    profile = options.profile
    if profile == "mixed":
        profile = rng.choices(("swarm", "duel", "betrayal"), (6, 2, 2))[0]
    draw = {"swarm": _swarm, "duel": _duel, "betrayal": _betrayal}[profile]
    scenario = draw(seed, options.mode, rng)
    changes: dict[str, Any] = {"perturb": seed % 8 == 0 if options.perturb is None else options.perturb}
    for name in ("electors", "workers", "tasks", "governance"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    electors = changes.get("electors", scenario.electors)
    if scenario.quorum and not electors // 2 < scenario.quorum <= electors:
        changes["quorum"] = 0
    changes["liars"] = min(scenario.liars, changes.get("workers", scenario.workers))
    changes["protocol"] = ProtocolRules(**dict.fromkeys(options.ablate, False))
    scenario = replace(scenario, **changes)
    if scenario.mode == "liveness":
        # a quorum survives, and with it one worker that does its work
        decides = 1 if scenario.governance is GovernanceKind.DICTATORIAL else scenario.electors
        need = max(scenario.quorum, decides // 2 + 1)
        scenario = replace(
            scenario, deaths=min(scenario.deaths, decides - need), liars=min(scenario.liars, scenario.workers - 1)
        )
    return scenario


def _some(rng: random.Random, chance: float, low: float, high: float) -> float:
    return rng.uniform(low, high) if rng.random() < chance else 0.0


def _count(rng: random.Random, chance: float, most: int) -> int:
    return rng.randint(1, most) if rng.random() < chance else 0


def _swarm(seed: int, mode: str, rng: random.Random) -> Scenario:
    democratic = rng.random() < 0.8
    electors = rng.randint(3, 7) if rng.random() < 0.4 else 3
    liars = _count(rng, 0.4, 2)
    fast = rng.choice((10, 30, 100))
    return Scenario(
        seed=seed,
        mode=mode,
        governance=GovernanceKind.DEMOCRATIC if democratic else GovernanceKind.DICTATORIAL,
        electors=electors,
        workers=rng.randint(1, 5),
        tasks=rng.randint(1, 6),
        liars=liars,
        lies=tuple(lie for lie in LIES if rng.random() < 0.5) or (rng.choice(LIES),),
        quorum=rng.randint(electors // 2 + 1, electors) if democratic and rng.random() < 0.15 else 0,
        hold_off_ms=rng.choice((0, 10, 50)),
        grant_timer_ms=rng.choice((30, 80, 200, 400)),
        claim_ttl_ms=rng.choice((100, 150, 300)) if mode == "liveness" else rng.choice((100, 200, 500, 1500)),
        max_retries=rng.choice((0, 1, 3, 10)),
        trusted_workers=not liars and rng.random() < 0.2,
        digest_interval_ms=rng.choice((500, 1000, 3000)),
        loss=_some(rng, 0.6, 0.02, 0.5),
        duplicate=_some(rng, 0.4, 0.02, 0.4),
        straggle=_some(rng, 0.5, 0.02, 0.3),
        straggle_ms=rng.choice((200, 1000, 3000)),
        delay_ms=(1, fast),
        by_stream=rng.choice((0.0, 0.5, 1.0)),
        partitions=_count(rng, 0.5, 3),
        cut_ms=3000,
        isolate=rng.choice((0.0, 0.5, 1.0)),
        one_way=rng.choice((0.0, 0.5, 1.0)),
        noticed=rng.choice((0.0, 0.5, 1.0)),
        crashes=_count(rng, 0.5, 5),
        deaths=_count(rng, 0.3, 2),
        pauses=_count(rng, 0.3, 3),
        skew_ms=rng.choice((0, 100, 10_000, 3_600_000)),
        drift=_some(rng, 0.4, 0.01, 0.5),
        disk_ms=(0, rng.choice((0, 5, 60))),
        plans=(rng.randint(1, 6), *(rng.choice((0, 0, 1, 3)) for _ in PLANS[1:])),
        heed=rng.choice((0.0, 0.5, 1.0)),
        claims=rng.choice((0.5, 0.9, 1.0)),
        cancels=_some(rng, 0.4, 0.1, 0.8),
        leaves=_some(rng, 0.2, 0.1, 0.5),
        late_joins=_some(rng, 0.4, 0.1, 0.8),
        chaos_ms=rng.choice((2000, 4000, 6000)),
    )


def _duel(seed: int, mode: str, rng: random.Random) -> Scenario:
    """A few electors that seldom hear each other, and workers that take each round from one another."""
    return Scenario(
        seed=seed,
        mode=mode,
        governance=GovernanceKind.DEMOCRATIC,
        electors=rng.choice((3, 3, 3, 4, 5)),
        workers=rng.randint(2, 3),
        tasks=rng.randint(1, 2),
        liars=rng.choice((0, 1, 2)),
        lies=("fork_report", "twice"),
        quorum=0,
        hold_off_ms=rng.choice((0, 5)),
        grant_timer_ms=rng.choice((20, 40, 80)),
        claim_ttl_ms=100,
        max_retries=rng.choice((10, 100)),
        trusted_workers=False,
        digest_interval_ms=rng.choice((300, 1000)),
        loss=rng.uniform(0.1, 0.6),
        duplicate=0.0,
        straggle=_some(rng, 0.7, 0.05, 0.4),
        straggle_ms=rng.choice((100, 300, 1000)),
        delay_ms=(1, rng.choice((20, 60, 120))),
        by_stream=rng.choice((0.5, 1.0)),
        partitions=_count(rng, 0.3, 2),
        cut_ms=3000,
        isolate=0.5,
        one_way=0.5,
        noticed=0.5,
        crashes=_count(rng, 0.3, 4),
        deaths=0,
        pauses=_count(rng, 0.3, 2),
        skew_ms=0,
        drift=_some(rng, 0.5, 0.1, 0.5),
        disk_ms=(0, rng.choice((0, 20, 60))),
        plans=(6, 2, 0, rng.choice((0, 2)), 0, 0),
        heed=0.0,
        claims=1.0,
        cancels=_some(rng, 0.3, 0.5, 1.0),
        leaves=0.0,
        late_joins=0.0,
        chaos_ms=rng.choice((3000, 6000)),
    )


def _betrayal(seed: int, mode: str, rng: random.Random) -> Scenario:
    """Workers that show one value to some electors and another to the rest, while votes travel slower than timers."""
    return replace(
        _duel(seed, mode, rng),
        electors=3,
        workers=5,
        tasks=rng.randint(3, 5),
        liars=4,
        lies=rng.choice((("fork_report",), ("fork_report", "twice"))),
        loss=0.0,
        straggle=_some(rng, 0.3, 0.05, 0.2),
        straggle_ms=300,
        delay_ms=(1, rng.choice((10, 20, 40))),
        by_stream=0.0,
        grant_timer_ms=rng.choice((30, 80)),
        digest_interval_ms=1000,
        partitions=rng.randint(10, 40),
        cut_ms=rng.choice((300, 600)),
        isolate=1.0,
        one_way=1.0,
        noticed=0.0,
        crashes=0,
        pauses=0,
        cancels=0.0,
        max_retries=100,
    )


@functools.cache
def simulated_identity(index: int) -> Identity:
    """The identity of a node, the same in every run."""
    return Identity.from_seed((b"simulated node %d" % index).ljust(32, b"."))


def pool_spec(scenario: Scenario, identities: list[Identity]) -> PoolSpec:
    """The founding terms of the scenario's pool."""
    dictatorial = scenario.governance is GovernanceKind.DICTATORIAL
    electors = identities[:1] if dictatorial else identities[: scenario.electors]
    quorum = 0 if dictatorial else scenario.quorum
    assert quorum == 0 or quorum >= smallest_quorum(len(electors), 0)
    return PoolSpec(
        "simulated",
        scenario.seed.to_bytes(NONCE_BYTES, "big"),
        scenario.governance,
        tuple(sorted(identity.public_key for identity in electors)),
        quorum=quorum,
        policy=PoolPolicy(
            hold_off_ms=scenario.hold_off_ms,
            grant_timer_ms=scenario.grant_timer_ms,
            claim_ttl_ms=scenario.claim_ttl_ms,
            max_retries=scenario.max_retries,
            trusted_workers=scenario.trusted_workers,
        ),
    )
