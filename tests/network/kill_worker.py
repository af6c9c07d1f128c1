"""A node with one agent that does tasks with an effect outside, to be killed at any moment; and where its effects go.

Knows: one agent, one pool, one file of effects. Must not know: when it is killed.
`python kill_worker.py HOME BOOTSTRAP POOL EFFECTS SEED`; it says "ready" once its agent runs.

The file of effects is a store with fencing, as a bank or a printer behind a gateway would be: it takes a write with the
token (task, epoch, round) unless it has seen a later round of the task, and does the effect of a task once.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from converge_p2p import Agent, Message, Node, NodeConfig, TaskView
from converge_p2p.core.model.decision import ClaimTask, Decision, ReportTask
from converge_p2p.core.types import PoolId
from converge_p2p.net import NetworkConfig
from converge_p2p.runtime.events import OutcomeKind

AT_ONCE_MAX = 4
WORK_S_MAX = 0.06


class Effects:
    """Effects outside: what was tried, and what was done."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._database.execute("PRAGMA journal_mode=WAL")
        for table in ("tries", "fences", "done"):
            self._database.execute(f"CREATE TABLE IF NOT EXISTS {table} (task BLOB, epoch INTEGER, round INTEGER)")

    def write(self, task: bytes, token: tuple[int, int]) -> str:
        """Do the effect of a task; return done, again (it was done before) or stale (a later round was seen)."""
        run = self._database.execute
        # on its own, so that a try counts even if the process ends right after it
        run("INSERT INTO tries VALUES (?, ?, ?)", (task, *token))
        run("BEGIN IMMEDIATE")
        seen = run("SELECT epoch, round FROM fences WHERE task = ? ORDER BY epoch DESC, round DESC", (task,)).fetchone()
        done = run("SELECT 1 FROM done WHERE task = ?", (task,)).fetchone()
        if seen is not None and tuple(seen) > token:
            answer = "stale"
        else:
            run("INSERT INTO fences VALUES (?, ?, ?)", (task, *token))
            answer = "again" if done else "done"
            if not done:
                run("INSERT INTO done VALUES (?, ?, ?)", (task, *token))
        run("COMMIT")
        return answer

    def rows(self, table: str) -> list[tuple[bytes, int, int]]:
        """Everything of one table."""
        return self._database.execute(f"SELECT task, epoch, round FROM {table}").fetchall()

    def close(self) -> None:
        self._database.close()


class Printer(Agent):
    """Claims a few tasks, does the effect of each that is granted, and reports it."""

    def __init__(self, effects: Effects, seed: int) -> None:
        super().__init__(name="printer")
        self.effects = effects
        self.random = random.Random(seed)
        self.open: set[bytes] = set()

    async def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        decided: list[Decision] = []
        for outcome in self.outcomes:
            task = getattr(outcome.decision, "task_id", b"")
            if outcome.kind is OutcomeKind.GRANTED and outcome.token is not None and outcome.task is not None:
                self.open.add(task)
                await trio.sleep(self.random.uniform(0, WORK_S_MAX))
                if self.effects.write(task, outcome.token) != "stale":
                    await trio.sleep(self.random.uniform(0, WORK_S_MAX))
                    decided.append(ReportTask(outcome.task.pool_id, outcome.task.id, outcome.task.inputs["n"]))
            elif outcome.kind in (OutcomeKind.SETTLED, OutcomeKind.LOST, OutcomeKind.REFUSED):
                self.open.discard(task)
        for view in self.random.sample(list(tasks), len(tasks)):
            if view.claimable and len(self.open) < AT_ONCE_MAX:
                self.open.add(view.id)
                decided.append(ClaimTask(view.pool_id, view.id))
        return decided


async def main(home: str, bootstrap: str, pool: str, effects: str, seed: str) -> None:
    """Run until killed."""
    config = NodeConfig(network=NetworkConfig(listen=(), dht=False, retry_first_s=0.1, retry_max_s=0.5))
    async with Node(home=home, listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=[bootstrap], config=config) as node:
        pool_id = PoolId(bytes.fromhex(pool))
        known = node.pools.get(pool_id)
        if known is None or not known.ready or not known.is_member:
            await node.join_pool(pool_id)
        await node.host(Printer(Effects(Path(effects)), int(seed)))
        print("ready", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    trio.run(main, *sys.argv[1:])
