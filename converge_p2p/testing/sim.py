"""The simulator: run seeds, check the invariants, and say how to replay what failed.

Knows: how a run is started, judged and repeated. Must not know: what happens in it (see `world`).
Source: `docs/simulator.md`. `python -m converge_p2p.testing.sim --help` lists the options.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import multiprocessing
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from converge_p2p.core.model.pool import GovernanceKind
from converge_p2p.core.replica.crowd import decoding_once
from converge_p2p.testing.checkers import check_replicas, lagging
from converge_p2p.testing.ledger import InvariantViolated
from converge_p2p.testing.profiles import PROFILES, draw_scenario
from converge_p2p.testing.refold import check_perturbed, check_refold
from converge_p2p.testing.scenario import ABLATIONS, MODES, NUMBERS, WALK, Options, Scenario
from converge_p2p.testing.walks import Walk
from converge_p2p.testing.world import World


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one seed.

    Attributes:
        violation: what does not hold, or empty.
        invariant: its number; 0 if a replica or the simulator raised, -1 if all hold.
        settled: how many tasks were settled.
        epochs: how many changes of the pool were certified.
        elapsed_s: processor time.
        trace_hash: a hash of everything that happened; equal for equal seeds and options.
    """

    seed: int
    violation: str
    invariant: int
    events: int
    operations: int
    virtual_ms: int
    settled: int
    epochs: int
    compactions: int
    tasks: int
    trace_hash: str
    elapsed_s: float


def run_seed(seed: int, options: Options | None = None, trace: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed to its end or to the first violation.

    Args:
        seed: draws everything that the options leave open.
        options: what is fixed.
        trace: called with a line for everything that happens.
    """
    options = options or Options()
    if options.mode == WALK:
        return _run_walk(seed, options, trace)
    began = time.process_time()
    rng = random.Random(seed)
    scenario = draw_scenario(seed, options, rng)
    world = World(scenario, rng, trace)

    def run() -> None:
        world.run()
        _check_end(world, scenario)

    invariant, violation = _judged(run)
    operations = max((len(replica.log) for replica in world.alive().values()), default=0)
    return Outcome(
        seed=seed,
        violation=violation,
        invariant=invariant,
        events=world.events,
        operations=operations,
        virtual_ms=world.now_ms,
        settled=len(world.settled_at),
        epochs=len(world.ledger.epochs) - 1,
        compactions=world.compactions,
        tasks=scenario.tasks,
        trace_hash=world.trace_hash(),
        elapsed_s=time.process_time() - began,
    )


def _judged(run: Callable[[], None]) -> tuple[int, str]:
    """Run something; return the number of the invariant that it broke, -1 for none, and how."""
    with decoding_once():
        try:
            run()
        except InvariantViolated as error:
            return error.invariant, str(error)
        except Exception:  # noqa: BLE001 - a replica that raises would stop its node, whatever the reason
            return 0, traceback.format_exc()
    return -1, ""


def _run_walk(seed: int, options: Options, trace: Callable[[str], None] | None) -> Outcome:
    began = time.process_time()
    walk = Walk(seed, options.protocol, trace)
    invariant, violation = _judged(walk.run)
    ledger = walk.stage.ledger
    return Outcome(
        seed=seed,
        violation=violation,
        invariant=invariant,
        events=walk.events,
        operations=max(len(replica.log) for replica in walk.stage.replicas.values()),
        virtual_ms=walk.stage.now_ms,
        settled=len(ledger.subject(walk.task, 0).settled),
        epochs=len(ledger.epochs) - 1,
        compactions=0,
        tasks=1,
        trace_hash=walk.trace_hash,
        elapsed_s=time.process_time() - began,
    )


def _check_end(world: World, scenario: Scenario) -> None:
    replicas = world.alive()
    world.ledger.check_settlements()
    if not replicas:
        return
    assert not lagging(replicas)
    check_replicas(world.ledger, replicas)
    node, replica = next(iter(replicas.items()))
    if not replica.ready:
        return
    disk = world.machines[node].disk
    check_refold(replica, disk.operations(), disk.snapshot, scenario.protocol, world.rng)
    if scenario.perturb and disk.snapshot is None:
        honest = not scenario.lying
        check_perturbed(replica, world.identities, scenario.protocol, scenario.seed, honest=honest)


def run_seeds(seeds: Iterable[int], options: Options, *, jobs: int = 1) -> Iterator[Outcome]:
    """Run seeds, in order; with several jobs, in as many processes."""
    run = functools.partial(run_seed, options=options)
    if jobs == 1:
        for seed in seeds:
            yield run(seed)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=gc.freeze) as pool:
        yield from pool.imap(run, seeds, chunksize=8)


def first_failure(seeds: Iterable[int], options: Options, *, jobs: int = 1) -> Outcome | None:
    """Return the first seed that violates an invariant, or None."""
    return next((outcome for outcome in run_seeds(seeds, options, jobs=jobs) if outcome.violation), None)


def replay_command(seed: int, options: Options) -> str:
    """The command that runs a seed again and shows what happens."""
    return f"python -m converge_p2p.testing.sim --seeds 1 --start {seed} {options.arguments()} --jobs 1 --trace"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 if no invariant was violated."""
    parsed = _parser().parse_args(arguments)
    options = _options(parsed)
    seeds = range(parsed.start, parsed.start + parsed.seeds)
    if parsed.trace:
        outcomes: Iterable[Outcome] = (run_seed(seed, options, _say) for seed in seeds)
    else:
        outcomes = run_seeds(seeds, options, jobs=min(parsed.jobs, parsed.seeds))
    return _report(outcomes, options, as_json=parsed.json, keep_going=parsed.keep_going)


def options_of(arguments: Sequence[str]) -> Options:
    """Read what `Options.arguments` wrote."""
    return _options(_parser().parse_args(arguments))


def _options(parsed: argparse.Namespace) -> Options:
    return Options(
        mode=parsed.mode,
        profile=parsed.profile,
        governance=None if parsed.governance is None else GovernanceKind[parsed.governance.upper()],
        ablate=tuple(parsed.ablate),
        perturb=parsed.perturb,
        restore=parsed.restore,
        **{name: getattr(parsed, name) for name in NUMBERS},
    )


def _report(outcomes: Iterable[Outcome], options: Options, *, as_json: bool, keep_going: bool) -> int:
    began, done, failed = time.perf_counter(), [], []
    for outcome in outcomes:
        done.append(outcome)
        if as_json:
            _say(json.dumps(asdict(outcome)))
        if not outcome.violation:
            continue
        failed.append(outcome)
        sys.stderr.write(f"seed {outcome.seed}: {outcome.violation}\n")
        if options.mode != WALK:
            sys.stderr.write(f"  drawn: {draw_scenario(outcome.seed, options, random.Random(outcome.seed))}\n")
        sys.stderr.write(f"  again: {replay_command(outcome.seed, options)}\n")
        if not keep_going:
            break
    elapsed = time.perf_counter() - began
    summary = {
        "seeds": len(done),
        "violations": len(failed),
        "tasks": sum(outcome.tasks for outcome in done),
        "settled": sum(outcome.settled for outcome in done),
        "epochs": sum(outcome.epochs for outcome in done),
        "compactions": sum(outcome.compactions for outcome in done),
        "events": sum(outcome.events for outcome in done),
        "operations": sum(outcome.operations for outcome in done),
        "elapsed_s": round(elapsed, 1),
        "seeds_per_s": round(len(done) / max(elapsed, 1e-9), 1),
        "ms_per_seed": round(1000 * sum(outcome.elapsed_s for outcome in done) / max(1, len(done)), 1),
    }
    _say(json.dumps(summary) if as_json else "  ".join(f"{name} {number}" for name, number in summary.items()))
    return 1 if failed else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m converge_p2p.testing.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--mode", choices=(*MODES, WALK), default="safety", help="walk: electors and schedules are drawn by other rules"
    )
    parser.add_argument("--profile", choices=PROFILES, default="mixed")
    parser.add_argument("--governance", choices=[kind.name.lower() for kind in GovernanceKind])
    for name in NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, dest=name)
    parser.add_argument(
        "--restore",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="machines start again from an old copy of their disk, or never; by default in every fourth seed",
    )
    parser.add_argument("--ablate", choices=ABLATIONS, action="append", default=[], help="switch a rule off")
    parser.add_argument("--perturb", action=argparse.BooleanOptionalAction, help="check invariant 10 (default: 1 in 8)")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each seed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
