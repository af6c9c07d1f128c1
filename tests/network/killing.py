"""Kill -9 at random points of many task executions: each settles once, and its effect outside happens once.

Knows: worker processes, signals, and the file of effects. Must not know: how a claim is resumed.
`python tests/network/killing.py --tasks 500`; a test runs it with few.
"""

from __future__ import annotations

import argparse
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio
from kill_worker import Effects

from converge_p2p import Agent, Message, Node, NodeConfig, PoolHandle, PoolPolicy, Task, TaskView
from converge_p2p.core.model.decision import Decision, SubmitTask
from converge_p2p.net import NetworkConfig
from converge_p2p.runtime.events import OutcomeKind

WORKERS = 2
LIFE_S_MAX = 2.0
CLAIM_TTL_S = 4.0
SUBMITTED_AHEAD = 40


@dataclass(frozen=True, slots=True)
class Toll:
    """What happened.

    Attributes:
        settled: tasks; `twice` of them more than once, or on another value than the effect of their own task.
        kills: of processes; `resumed`: rounds in which an effect was tried more than once, so they went on after one.
        tries: of effects; `effects`: those that were done; `effects_twice`: beyond one of a task.
        later_rounds: tasks whose effect was tried in more than one round.
    """

    settled: int
    twice: int
    kills: int
    resumed: int
    tries: int
    effects: int
    effects_twice: int
    later_rounds: int


class Asker(Agent):
    """Submits tasks and keeps a few open at a time; counts how often each is told as settled."""

    def __init__(self, pool: PoolHandle, tasks: int) -> None:
        super().__init__()
        self.pool, self.wanted = pool, tasks
        self.submitted = 0
        self.settled: Counter[bytes] = Counter()
        self.wrong = 0
        self.done = trio.Event()

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        for outcome in self.outcomes:
            if isinstance(outcome.decision, SubmitTask) and outcome.kind is OutcomeKind.SETTLED:
                assert outcome.task is not None
                self.settled[outcome.task.id] += 1
                self.wrong += outcome.value != "completed" or outcome.task.result != outcome.task.inputs["n"]
        if len(self.settled) >= self.wanted:
            self.done.set()
        decided: list[Decision] = []
        while self.submitted < min(self.wanted, len(self.settled) + SUBMITTED_AHEAD):
            constraints = {"claim_ttl_sec": CLAIM_TTL_S}
            decided.append(SubmitTask(self.pool.id, Task("print", {"n": self.submitted}, constraints=constraints)))
            self.submitted += 1
        return decided


class Victim:
    """A worker process that is started, killed at a random moment, and started again, in one home."""

    def __init__(self, folder: Path, number: int, arguments: Sequence[str], seed: int) -> None:
        self._home = folder / f"worker{number}"
        self._home.mkdir()
        self._arguments = arguments
        self._random = random.Random(seed)
        self.kills = 0

    async def run(self) -> None:
        """Live and die until cancelled."""
        while True:
            script = Path(__file__).with_name("kill_worker.py")
            command = [
                sys.executable,
                str(script),
                str(self._home),
                *self._arguments,
                str(self._random.randrange(2**32)),
            ]
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            try:
                assert process.stdout is not None
                # at any moment of its life, of its start as well now and then
                if self._random.random() < 0.9:
                    await process.stdout.receive_some(16)
                await trio.sleep(self._random.uniform(0.02, LIFE_S_MAX))
                self.kills += 1
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()


async def kill_many(tasks: int, folder: Path, *, seed: int, timeout_s: float) -> Toll:
    """Run tasks with workers that are killed all the time, and return what happened.

    Raises:
        TooSlowError: not all were settled in time.
    """
    config = NodeConfig(network=NetworkConfig(listen=(), dht=False))
    async with Node(listen=["/ip4/127.0.0.1/tcp/0"], config=config) as node:
        pool = await node.create_pool("print", policy=PoolPolicy(hold_off_ms=20, grant_timer_ms=200))
        effects = folder / "effects.sqlite"
        arguments = (node.addresses[0], pool.id.hex(), str(effects))
        victims = [Victim(folder, number, arguments, seed + number) for number in range(WORKERS)]
        asker = Asker(pool, tasks)
        async with trio.open_nursery() as nursery:
            await node.host(asker)
            for victim in victims:
                nursery.start_soon(victim.run)
            with trio.fail_after(timeout_s):
                await asker.done.wait()
            nursery.cancel_scope.cancel()
        store = Effects(effects)
        tries, done = store.rows("tries"), store.rows("done")
        store.close()
        conflicts = pool.counters["conflicting_settlements"]
    per_task: dict[bytes, set[tuple[int, int]]] = {}
    for task, epoch, number in tries:
        per_task.setdefault(task, set()).add((epoch, number))
    return Toll(
        settled=len(asker.settled),
        twice=sum(count > 1 for count in asker.settled.values()) + asker.wrong + conflicts,
        kills=sum(victim.kills for victim in victims),
        resumed=sum(count > 1 for count in Counter(tries).values()),
        tries=len(tries),
        effects=len(done),
        effects_twice=len(done) - len({task for task, _, _ in done}),
        later_rounds=sum(len(rounds) > 1 for rounds in per_task.values()),
    )


def main() -> None:
    """Run it and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        toll = trio.run(lambda: kill_many(arguments.tasks, Path(folder), seed=arguments.seed, timeout_s=3600))
    print(toll)
    print(f"{time.perf_counter() - began:.0f} s")
    good = toll.settled == toll.effects == arguments.tasks and not toll.twice and not toll.effects_twice
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
