"""What the profiles of the simulator draw from: ranges of sizes, timers and faults.

Knows: the ranges. Must not know: how a fault is carried out.
Source: swarm testing (Groce and others 2012). A narrow profile reaches what needs many steps of one kind.
"""

from __future__ import annotations

import random
from dataclasses import replace

from converge_p2p.core.model.pool import GovernanceKind
from converge_p2p.testing.scenario import ELECTOR_LIES, ELECTORS_MAX, LIES, PLANS, Options, Scenario, fit


def draw_scenario(seed: int, options: Options, rng: random.Random) -> Scenario:
    """Draw what a seed runs, then apply what the caller fixed."""
    profile = options.profile
    if profile == "mixed":
        profile = rng.choices(tuple(_MIXED), tuple(_MIXED.values()))[0]
    return fit(_DRAWS[profile](seed, options.mode, rng), options, rng)


def _electors(rng: random.Random, mode: str, faults: int) -> int:
    """Mostly few; in liveness mode enough for those that lie."""
    least = 3 * faults + 1 if mode == "liveness" and faults else faults + 2
    most = rng.choice((3, 3, 4, 4, 5, 7, ELECTORS_MAX)) if rng.random() < 0.5 else 3
    return rng.randint(min(3, least), max(least, most)) if faults == 0 else rng.randint(least, max(least, most))


def _governance(rng: random.Random) -> GovernanceKind:
    return rng.choices(tuple(GovernanceKind), (2, 8, 2, 1, 2, 2))[0]


def _lies(rng: random.Random) -> tuple[str, ...]:
    return tuple(lie for lie in ELECTOR_LIES if rng.random() < 0.6) or ELECTOR_LIES


def _some(rng: random.Random, chance: float, low: float, high: float) -> float:
    return rng.uniform(low, high) if rng.random() < chance else 0.0


def _count(rng: random.Random, chance: float, most: int) -> int:
    return rng.randint(1, most) if rng.random() < chance else 0


def _swarm(seed: int, mode: str, rng: random.Random) -> Scenario:
    faults = rng.choice((0, 0, 0, 1, 1, 2))
    electors = _electors(rng, mode, faults)
    liars = _count(rng, 0.4, 2)
    fast = rng.choice((10, 30, 100))
    return Scenario(
        seed=seed,
        mode=mode,
        governance=_governance(rng),
        electors=electors,
        workers=rng.randint(1, 5),
        tasks=rng.randint(1, 6),
        liars=liars,
        lies=tuple(lie for lie in LIES if rng.random() < 0.5) or (rng.choice(LIES),),
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
        fast_path=rng.random() < 0.3,
        faults=faults,
        lying_electors=rng.randint(0, faults),
        elector_lies=_lies(rng),
        epochs=_count(rng, 0.4, 4),
        rivals=rng.choice((0.0, 0.3, 1.0)),
        agree=rng.choice((0.7, 1.0, 1.0)),
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


def _succession(seed: int, mode: str, rng: random.Random) -> Scenario:
    """Epoch after epoch, several changes at once, while tasks are being settled and messages are lost."""
    return replace(
        _duel(seed, mode, rng),
        electors=rng.choice((3, 3, 4)),
        workers=rng.randint(2, 3),
        tasks=rng.randint(1, 3),
        liars=rng.choice((0, 0, 1)),
        lies=("twice", "fork_report", "short", "over_lock"),
        grant_timer_ms=rng.choice((20, 40)),
        loss=_some(rng, 0.5, 0.05, 0.3),
        partitions=rng.randint(2, 12),
        cut_ms=rng.choice((300, 1000)),
        isolate=0.8,
        noticed=0.0,
        epochs=rng.randint(2, 6),
        rivals=rng.choice((0.0, 0.5, 1.0)),
        agree=1.0,
        kinds=rng.choice((("add", "drop", "policy"), ("policy",), ("drop", "add", "expel", "policy", "model"))),
        fast_path=rng.random() < 0.3,
        chaos_ms=3000,
    )


def _treason(seed: int, mode: str, rng: random.Random) -> Scenario:
    """As many electors lie as may, few pools larger than they must be, and now and then an epoch."""
    faults = rng.choice((1, 1, 1, 2))
    return replace(
        _duel(seed, mode, rng),
        governance=_governance(rng) if rng.random() < 0.3 else GovernanceKind.DEMOCRATIC,
        electors=3 * faults + 1 + rng.choice((0, 0, 0, 1)),
        workers=rng.randint(2, 3),
        liars=rng.choice((0, 1, 2)),
        lies=tuple(lie for lie in LIES if rng.random() < 0.5) or LIES,
        loss=_some(rng, 0.4, 0.05, 0.3),
        partitions=rng.randint(0, 8),
        cut_ms=600,
        isolate=0.8,
        noticed=0.0,
        epochs=_count(rng, 0.5, 3),
        rivals=0.5,
        fast_path=rng.random() < 0.3,
        faults=faults,
        lying_electors=faults,
        elector_lies=_lies(rng),
        chaos_ms=3000,
    )


def _schism(seed: int, mode: str, rng: random.Random) -> Scenario:
    """Epochs that change little and follow each other fast, while single electors are cut off in the midst of votes."""
    return replace(
        _betrayal(seed, mode, rng),
        workers=2,
        tasks=rng.randint(2, 4),
        liars=0,
        hold_off_ms=0,
        grant_timer_ms=rng.choice((20, 40)),
        plans=(6, 1, 0, 0, 0, 0),
        partitions=rng.randint(10, 30),
        cut_ms=rng.choice((150, 300)),
        epochs=rng.randint(4, 9),
        rivals=rng.choice((0.0, 0.5)),
        kinds=("policy",),
        fast_path=False,
        chaos_ms=2500,
    )


def _purge(seed: int, mode: str, rng: random.Random) -> Scenario:
    """Members are removed, and as many electors as may lie about what they hold of them."""
    return replace(
        _treason(seed, mode, rng),
        partitions=rng.choice((0, 1, 3)),
        epochs=rng.randint(1, 3),
        rivals=rng.choice((0.0, 0.3)),
        kinds=("expel", "expel", "expel", "policy"),
        elector_lies=("cuts", *(lie for lie in ELECTOR_LIES if lie != "cuts" and rng.random() < 0.3)),
        agree=1.0,
    )


_DRAWS = {
    "swarm": _swarm,
    "duel": _duel,
    "betrayal": _betrayal,
    "succession": _succession,
    "treason": _treason,
    "schism": _schism,
    "purge": _purge,
}
_MIXED = {"swarm": 6, "duel": 1, "betrayal": 1, "succession": 3, "treason": 3, "schism": 1, "purge": 1}
PROFILES = ("mixed", *_DRAWS)
