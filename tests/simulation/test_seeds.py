"""A fixed set of simulator seeds: the invariants hold, whatever goes wrong.

`make sim SEEDS=2000` runs many more; a seed that ever failed is kept in `regressions.json`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.pool import GovernanceKind
from converge_p2p.core.oplog.bodies import Token
from converge_p2p.core.view.register import Register
from converge_p2p.testing.profiles import PROFILES, draw_scenario
from converge_p2p.testing.scenario import WALK, Options
from converge_p2p.testing.sim import first_failure, main, options_of, replay_command, run_seed, run_seeds
from converge_p2p.testing.world import World

pytestmark = pytest.mark.simulation

JOBS = 1 if "PYTEST_XDIST_WORKER" in os.environ else multiprocessing.cpu_count()
"""Where the tests are shared out already, more processes only wait for each other."""
REGRESSIONS = json.loads((Path(__file__).parent / "regressions.json").read_text())


FIXED, LIVE, WALKS, FRESH = 120, 60, 160, 40
"""How many seeds are run. A fixed set finds what breaks again, a fresh one what nobody has seen yet."""
PARTS = 4
"""The fixed seeds are run in so many tests, which several processors share."""

START_VARIABLE = "CONVERGE_SIM_START"
"""Environment variable that names the first of the fresh seeds, to run again what failed elsewhere."""


@pytest.mark.parametrize("part", range(PARTS))
def test_safety_holds_on_the_fixed_seeds(part: int) -> None:
    seeds = range(FIXED)[part::PARTS]
    outcomes = list(run_seeds(seeds, Options(), jobs=JOBS))
    assert [outcome.violation for outcome in outcomes if outcome.violation] == []
    # a simulator in which nothing happens finds nothing
    assert sum(outcome.settled for outcome in outcomes) > len(seeds)
    assert sum(outcome.epochs for outcome in outcomes) > len(seeds) // 4
    assert len({outcome.trace_hash for outcome in outcomes}) == len(seeds)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_task_settles_after_healing_on_the_fixed_seeds(part: int) -> None:
    outcomes = list(run_seeds(range(LIVE)[part::PARTS], Options(mode="liveness"), jobs=JOBS))
    assert [outcome.violation for outcome in outcomes if outcome.violation] == []


@pytest.mark.parametrize("part", range(PARTS))
def test_no_walk_decides_twice(part: int) -> None:
    seeds = range(WALKS)[part::PARTS]
    outcomes = list(run_seeds(seeds, Options(mode=WALK), jobs=JOBS))
    assert [outcome.violation for outcome in outcomes if outcome.violation] == []
    # walks that decide nothing could not decide twice
    assert sum(outcome.settled for outcome in outcomes) > len(seeds) // 4
    assert sum(outcome.epochs for outcome in outcomes) > len(seeds) // 4
    assert len({outcome.trace_hash for outcome in outcomes}) == len(seeds)


@pytest.mark.parametrize("mode", ["safety", "liveness", WALK])
def test_the_invariants_hold_on_fresh_seeds(mode: str) -> None:
    start = int(os.environ.get(START_VARIABLE) or int.from_bytes(os.urandom(6), "big"))
    sys.stderr.write(f"fresh seeds from {start}; {START_VARIABLE}={start} runs them again\n")
    failure = first_failure(range(start, start + FRESH // 2), Options(mode=mode), jobs=JOBS)
    assert failure is None, f"{START_VARIABLE}={start}: {failure}"


@pytest.mark.parametrize("kind", list(GovernanceKind), ids=lambda kind: kind.name.lower())
def test_every_model_holds(kind: GovernanceKind) -> None:
    assert first_failure(range(1000, 1008), Options(governance=kind), jobs=JOBS) is None


@pytest.mark.parametrize("case", REGRESSIONS, ids=lambda case: f"{case['mode']}-{case['profile']}-{case['seed']}")
def test_a_seed_that_once_failed_holds(case: dict[str, object]) -> None:
    checkpoints = int(str(case.get("checkpoints", 0)))
    governance = GovernanceKind[str(case["governance"]).upper()] if "governance" in case else None
    options = Options(
        mode=str(case["mode"]), profile=str(case["profile"]), governance=governance, checkpoints=checkpoints
    )
    outcome = run_seed(int(str(case["seed"])), options)
    assert outcome.violation == "", case["reason"]


def test_the_top_round_that_a_register_remembers_is_always_the_one_found_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered, asked = Register.top.fget, 0
    assert remembered is not None

    def checked(register: Register) -> Token | None:
        nonlocal asked
        asked += 1
        found = register._find_top(register.now)
        assert remembered(register) == found
        return found

    monkeypatch.setattr(Register, "top", property(checked))
    outcomes = [run_seed(seed, Options(profile=profile)) for profile in PROFILES[1:] for seed in range(300, 306)]
    assert [outcome.violation for outcome in outcomes if outcome.violation] == []
    assert asked
    assert sum(outcome.epochs for outcome in outcomes) > len(outcomes) // 4


def test_the_same_seed_is_the_same_run() -> None:
    for options in (Options(mode=WALK), *(Options(profile=profile) for profile in PROFILES[1:])):
        first, second = run_seed(7, options), run_seed(7, options)
        assert first.events > 100
        assert (first.trace_hash, first.events, first.operations) == (
            second.trace_hash,
            second.events,
            second.operations,
        )


def test_several_processes_run_the_same() -> None:
    apart, here = (list(run_seeds(range(3), Options(), jobs=jobs)) for jobs in (2, 1))
    assert [outcome.trace_hash for outcome in apart] == [outcome.trace_hash for outcome in here]


def test_a_run_does_not_depend_on_the_order_of_sets_in_memory() -> None:
    hashes = set()
    for hash_seed in ("0", "1", "12345"):
        command = [sys.executable, "-m", "converge_p2p.testing.sim", "--seeds", "3", "--jobs", "1", "--json"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        hashes.add(tuple(line["trace_hash"] for line in lines if "trace_hash" in line))
    assert len(hashes) == 1


def test_no_invariant_breaks_where_logs_are_compacted_all_the_time() -> None:
    options = Options(checkpoints=12)
    outcomes = list(run_seeds(range(3000, 3040), options, jobs=JOBS))
    assert [outcome.violation for outcome in outcomes if outcome.violation] == []
    assert sum(outcome.compactions for outcome in outcomes) > 40
    assert first_failure(range(3100, 3110), replace(options, mode="liveness"), jobs=JOBS) is None


def test_the_draw_covers_every_kind_of_fault() -> None:
    drawn = [draw_scenario(seed, Options(), random.Random(seed)) for seed in range(200)]
    for name in (
        "loss",
        "duplicate",
        "straggle",
        "partitions",
        "crashes",
        "deaths",
        "pauses",
        "liars",
        "drift",
        "lying",
        "epochs",
        "fast_path",
        "checkpoints",
    ):
        some = [scenario for scenario in drawn if getattr(scenario, name)]
        assert 10 < len(some) < 190, f"{name} is drawn in {len(some)} of 200 seeds"


def test_a_failure_prints_the_seed_the_options_and_how_to_replay(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seeds", "40", "--jobs", "1", "--ablate", "count_members", "--tasks", "2"]
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    options = Options(ablate=("count_members",), tasks=2)
    seed = int(printed.split("seed ")[1].split(":")[0])
    assert replay_command(seed, options) in printed
    assert "--ablate count_members" in printed
    assert f"Scenario(seed={seed}" in printed
    replayed = replay_command(seed, options).split()[3:]
    assert main([argument for argument in replayed if argument != "--trace"]) == 1


def test_the_arguments_of_options_give_the_same_run_again() -> None:
    options = Options(nodes=7, f=1, lying_electors=1, governance=GovernanceKind.CUSTOM, epochs=2, perturb=False)
    again = options_of(options.arguments().split())
    assert again == options
    assert draw_scenario(3, again, random.Random(3)) == draw_scenario(3, options, random.Random(3))


def test_a_replica_that_raises_is_a_violation_and_not_the_end_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(world: World) -> None:
        raise CodecError("a round is 0 to 1")

    monkeypatch.setattr(World, "run", raises)
    outcome = run_seed(0, Options())
    assert (outcome.invariant, "a round is 0 to 1" in outcome.violation) == (0, True)
