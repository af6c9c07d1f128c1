"""Let processes race for the keys of one SQLite store, and count the wins.

Run as `python tests/store/hammer_put_if_absent.py [--keys 10000] [--processes 2]`; exit status 0 if each key was won
exactly once. The test suite runs the same with fewer keys.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError

from converge_p2p.core.errors import ConvergeError
from converge_p2p.store.sqlite import SqliteStore

KEYS_PER_START = 5
START_S_MAX = 60


@dataclass(frozen=True)
class Tally:
    """How the race went."""

    keys: int
    won: int
    double_wins: int
    wrong_value: int
    wins_by_process: tuple[int, ...]
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether each key was won exactly once, and holds what its winner wrote."""
        return self.won == self.keys and not self.double_wins and not self.wrong_value


def race(path: Path, number: int, keys: int, start: Barrier, results: Queue[tuple[int, list[int] | str]]) -> None:
    """Try every key in the same order as the others; send the keys won here, or what went wrong."""
    won: list[int] = []
    try:
        start.wait(START_S_MAX)
        store = SqliteStore(path)
        for first in range(0, keys, KEYS_PER_START):
            # without a new start now and then, whoever is ahead stays ahead, and nobody races for anything
            start.wait(START_S_MAX)
            some = range(first, min(keys, first + KEYS_PER_START))
            won += [key for key in some if store.put_if_absent(f"key/{key}", str(number).encode())]
        store.close()
    except (ConvergeError, BrokenBarrierError) as error:
        start.abort()
        results.put((number, f"{type(error).__name__}: {error}"))
    else:
        results.put((number, won))


def hammer(path: Path, *, keys: int, processes: int) -> Tally:
    """Race, and count. The store is made by whoever opens it first, which is part of the race.

    Raises:
        RuntimeError: a process failed.
    """
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    racers = [context.Process(target=race, args=(path, number, keys, start, results)) for number in range(processes)]
    began = time.perf_counter()
    for racer in racers:
        racer.start()
    answers = dict(results.get(timeout=10 * START_S_MAX) for _ in racers)
    seconds = time.perf_counter() - began
    for racer in racers:
        racer.join()
        racer.close()
    results.close()
    results.join_thread()
    wins: dict[int, list[int]] = {}
    for number, answer in sorted(answers.items()):
        if isinstance(answer, str):
            raise RuntimeError(f"process {number} failed: {answers}")
        wins[number] = answer
    winner = {key: number for number, won in wins.items() for key in won}
    store = SqliteStore(path)
    wrong = sum(store.get(f"key/{key}") != str(number).encode() for key, number in winner.items())
    store.check_integrity()
    store.close()
    total = sum(len(won) for won in wins.values())
    return Tally(keys, len(winner), total - len(winner), wrong, tuple(len(won) for won in wins.values()), seconds)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = hammer(Path(folder) / "store.db", keys=options.keys, processes=options.processes)
    print(
        f"{tally.keys} keys, {options.processes} processes: {tally.double_wins} double wins, "
        f"{tally.keys - tally.won} lost, {tally.wrong_value} wrong values; "
        f"wins {tally.wins_by_process}; {tally.seconds:.1f} s"
    )
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
