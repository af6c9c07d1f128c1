"""Soak: real nodes under load, some killed again and again; memory, sockets, files, threads and tasks stay flat.

Knows: processes, signals, /proc, the control interface. Must not know: what a node is made of.
`python tests/benchmarks/soak.py --minutes 20`; the table goes to standard output (`--out FILE`: there, too), and the
status is 1 if anything grew. docs/benchmarks.md holds the figures of one run.

All nodes are electors of one democratic pool. Tasks are submitted through all of them; what is said on a topic is
answered by letters to one agent. The last two nodes are killed in turn (SIGKILL) and started again in their homes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from soak_agents import TOPIC

from converge_node.demo.mesh import DemoNode, Mesh, wait_for
from converge_p2p.client import schema
from converge_p2p.client.mesh_schema import PublishOnTopic
from converge_p2p.client.queries import WatchQuery
from converge_p2p.core.errors import ConvergeError, NetworkError
from converge_p2p.store.keyfile import load_or_create_identity

MEASURES: Mapping[str, tuple[float, float]] = {
    "memory MiB": (1.15, 8.0),
    "open files": (1.15, 6.0),
    "sockets": (1.15, 4.0),
    "threads": (1.15, 4.0),
    "tasks": (1.15, 20.0),
}
"""What is measured of a node, and how much more the last quarter may have than the second: a factor, and a number."""
LATENCY, TAIL = (2.0, 0.5), (2.0, 1.0)
"""The same for the time of a task in seconds, its median and its 99th percentile: the machine is shared."""
SUBMITTERS = 4
FILLERS, FILL_RATE = 12, 100.0
"""Until the first checkpoint: threads that submit, and tasks a second of each."""
DOWN_S = 5.0
PROBE_S = 0.5
UP_S = 600.0
"""How long a node may take to start: no measure of speed, the machine is shared."""
FAILURES_TOLD = 8
SETTLE_S = 120.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


Readings = Sequence[tuple[float, float]]
"""Values, each with its time."""


class Stepper:
    """Waits so that steps come at even times, and leaves out those that were missed."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait for the next step."""
        now = time.monotonic()
        self._next = max(self._next + self._step_s, now)
        time.sleep(self._next - now)


@dataclass(slots=True)
class Record:
    """What was seen: by node and measure the readings in turn, each with its time, and the times of probe tasks.

    Times are seconds of a monotonic clock; what counts is what was read from `begin` on, for `length_s`.
    """

    readings: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=dict)
    submitted: int = 0
    said: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    file: TextIO | None = None
    begin: float = 0.0
    length_s: float = 0.0

    def note(self, node: str, at_s: float, values: Mapping[str, float]) -> None:
        """Add a reading, and write it down, for the case that this is ended."""
        if self.file is not None:
            self.file.write(json.dumps({"node": node, "at_s": round(at_s - self.begin, 1), **values}) + "\n")
            self.file.flush()
        for measure, value in values.items():
            self.readings.setdefault((node, measure), []).append((at_s, value))


def p99(values: Sequence[float]) -> float:
    """Return the least value that 99 of 100 are not above."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def quarters(
    readings: Readings, record: Record, of: Callable[[Sequence[float]], float] = statistics.median
) -> tuple[float, float, float, float]:
    """Return the median, or what `of` makes of the values, of each quarter of a run; NaN for one without readings."""
    parts: tuple[list[float], ...] = ([], [], [], [])
    for at_s, value in readings:
        part = math.floor(4 * (at_s - record.begin) / record.length_s)
        if 0 <= part <= 4:
            parts[min(part, 3)].append(value)
    first, second, third, last = (of(part) if part else math.nan for part in parts)
    return first, second, third, last


def grown(values: tuple[float, float, float, float], allowance: tuple[float, float]) -> bool:
    """Whether the last quarter is above the first half by more than is allowed: a factor, and a number on top.

    Of the first half the higher quarter counts: caches and tables fill in the first, and a node that was started again
    in the second has not computed a checkpoint yet. A run without readings proves nothing: it has grown.
    """
    factor, more = allowance
    # not ">": NaN compares false with everything
    return not values[3] <= max(values[1], values[0]) * factor + more


def faults(record: Record) -> list[str]:
    """Return what grew, in words."""
    found = [*record.failed[:FAILURES_TOLD]]
    for (node, measure), readings in record.readings.items():
        medians = quarters(readings, record)
        if measure in MEASURES and grown(medians, MEASURES[measure]):
            found.append(
                f"{measure} of {node} grew: {medians[1]:.1f} in the second quarter, {medians[3]:.1f} in the last"
            )
    for measure, of, allowance in (("median", statistics.median, LATENCY), ("p99", p99, TAIL)):
        values = quarters(record.latencies, record, of)
        if grown(values, allowance):
            told = f"{values[1]:.2f} s in the second quarter, {values[3]:.2f} s in the last"
            found.append(f"tasks took longer, {measure}: {told}")
    return found


def table(record: Record) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield "| Node | Kills | What | 1st quarter | 2nd | 3rd | 4th | most |"
    yield "|---|---|---|---|---|---|---|---|"
    for (node, measure), readings in record.readings.items():
        medians = " | ".join(f"{median:.0f}" for median in quarters(readings, record))
        most = max(value for _, value in readings)
        yield f"| {node} | {record.kills.get(node, 0)} | {measure} | {medians} | {most:.0f} |"
    most = max((value for _, value in record.latencies), default=math.nan)
    for measure, of in (("median", statistics.median), ("p99", p99)):
        values = " | ".join(f"{1000 * value:.0f}" for value in quarters(record.latencies, record, of))
        yield f"| first | | a task, submit to result, {measure}, ms | {values} | {1000 * most:.0f} |"


def read(node: DemoNode) -> dict[str, float]:
    """Look at a node's process, and ask it.

    Raises:
        OSError: the process is gone.
        ConvergeError: it does not answer, or has only begun to start.
    """
    process = node._process
    assert process is not None
    proc = Path(f"/proc/{process.pid}")
    memory = int((proc / "statm").read_text().split()[1]) * _PAGE_BYTES / 2**20
    threads = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("Threads:"))
    links = list(_links(proc / "fd"))
    # asked after it was looked at: the question is a socket, a file and two tasks of its own
    gauges = dict(line.rsplit(" ", 1) for line in node.client.metrics().splitlines() if line[:1] not in ("#", ""))
    if "converge_event_loop_tasks" not in gauges:
        raise NetworkError(f"{node.name} is just starting")
    pools = [float(value) for name, value in gauges.items() if name.startswith("converge_pool_operations{")]
    return {
        "memory MiB": memory,
        "open files": len(links),
        "sockets": sum(link.startswith("socket:") for link in links),
        "threads": int(threads.split()[1]),
        "tasks": float(gauges["converge_event_loop_tasks"]),
        "operations held": sum(pools),
    }


def _links(folder: Path) -> Iterator[str]:
    for name in os.listdir(folder):
        try:
            yield os.readlink(folder / name)
        except FileNotFoundError:
            continue


class Soak:
    """The nodes, their pool, and the threads that keep them busy."""

    def __init__(self, mesh: Mesh, nodes: int, seed: int) -> None:
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        os.environ["CONVERGE_NODE_LOG__LEVEL"] = "warning"
        agents = ("--agent", "talker=soak_agents:Correspondent", "--topic", TOPIC)
        work = ("--handler", "echo=soak_agents:echo@8", *agents)
        self.nodes = [mesh.add(f"node{number}", *work) for number in range(nodes)]
        self.steady, self.victims = self.nodes[:-2], self.nodes[-2:]
        self.record = Record()
        self.pool = ""
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._failed: list[BaseException] = []

    def set_up(self) -> None:
        """Start the nodes, and found the pool."""
        for node in self.nodes:
            # the agent reads it before its node makes one
            node.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            load_or_create_identity(node.home / "node.key")
        first, *others = self.nodes
        first.start()
        first.wait_up()
        for node in others:
            self._start(node)
        wait_for(lambda: all(node.peers() >= len(self.nodes) - 1 for node in self.nodes), 60, "all links")
        electors = [node.id for node in self.nodes]
        body = schema.CreatePool(name="soak", governance="democratic", electors=electors, task_types=["echo"])
        self.pool = first.client.create_pool(body).id
        for node in self.nodes:
            join = schema.JoinPool(capabilities=["echo"])
            node.client.join_pool(self.pool, join)

    def _start(self, node: DemoNode) -> None:
        known = [str(other.item.addresses[0]) for other in self.steady if other.item is not None and other is not node]
        node.start(*itertools.chain.from_iterable(("--bootstrap", address) for address in known))
        node.wait_up(UP_S)

    def run(self, asked: argparse.Namespace, say: Callable[[str], None]) -> None:
        """Keep the nodes busy: until the pool's first checkpoint is in force, and then for some minutes.

        Until then the log that each node holds grows, as it is meant to.

        Raises:
            ConvergeError: a node did not come back, or the nodes did not agree in the end.
        """
        record, steps = self.record, Stepper(asked.sample_s)
        if not asked.at_once:
            with self._busy((lambda: self._submit(FILL_RATE),) * FILLERS):
                while self._well() and self.nodes[0].pool(self.pool).checkpoint.number in (None, 0):
                    say(f"before the first checkpoint: {record.submitted} tasks")
                    steps.wait()
        part = asked.rate / SUBMITTERS
        works = [*(lambda: self._submit(part),) * SUBMITTERS, lambda: self._talk(asked.rate), self._probe]
        with self._busy((*works, lambda: self._kill(asked.kill_s))):
            record.begin = time.monotonic()
            while self._well() and time.monotonic() < record.begin + 60 * asked.minutes:
                steps.wait()
                self._sample()
                took_s, kills = time.monotonic() - record.begin, sum(record.kills.values())
                say(f"{took_s:.0f} s: {record.submitted} tasks, {record.said} messages, {kills} kills")
            record.length_s = time.monotonic() - record.begin
        self._well()
        wait_for(self._agree, SETTLE_S, "all nodes to hold the same, and all tasks to be settled")

    def _well(self) -> bool:
        """Whether no thread failed. Raises what it failed with."""
        if self._failed:
            raise self._failed[0]
        return True

    def _kill(self, pause_s: float) -> None:
        for node in itertools.cycle(self.victims):
            if self._stop.wait(pause_s):
                return
            node.kill()
            self.record.kills[node.name] = self.record.kills.get(node.name, 0) + 1
            time.sleep(DOWN_S)
            self._start(node)

    def _sample(self) -> None:
        for node in self.nodes:
            try:
                self.record.note(node.name, time.monotonic(), read(node))
            except (OSError, ConvergeError):
                # one that was just killed, or starts
                if node in self.steady:
                    raise

    def _agree(self) -> bool:
        pools = [node.pool(self.pool) for node in self.nodes]
        settled = not any(state for pool in pools for name, state in pool.tasks.items() if name not in _DONE)
        return settled and len({pool.frontier for pool in pools}) == 1

    @contextmanager
    def _busy(self, works: Sequence[Callable[[], None]]) -> Iterator[None]:
        self._stop.clear()
        threads = [threading.Thread(target=self._guard, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failed.append(error)
            raise

    def _submit(self, rate: float) -> None:
        for number in itertools.count():
            if self._stop.wait(self._random.expovariate(rate)):
                return
            body = schema.SubmitTask(objective="echo", inputs={"number": number, "text": "x" * 256})
            if self._ask(lambda node, body=body: node.client.submit(self.pool, body)):
                self.record.submitted += 1

    def _talk(self, rate: float) -> None:
        for number in itertools.count():
            if self._stop.wait(self._random.expovariate(rate)):
                return
            body = PublishOnTopic(topic=TOPIC, payload={"number": number, "text": "x" * 256})
            if self._ask(lambda node, body=body: node.client.publish(body)):
                self.record.said += 1

    def _ask(self, what: Callable[[DemoNode], object]) -> bool:
        node = self._random.choice(self.nodes)
        try:
            what(node)
        except ConvergeError as error:
            # one that was just killed, or starts
            self.record.refused += 1
            if node in self.steady:
                self.record.failed.append(f"{node.name} did not answer: {error}")
            return False
        return True

    def _probe(self) -> None:
        """Time a task now and then, through a node that nobody kills."""
        first = self.nodes[0]
        while not self._stop.wait(PROBE_S):
            asked = time.monotonic()
            body = schema.SubmitTask(objective="echo", inputs={"probe": asked})
            task = first.client.submit(self.pool, body).id
            for view in first.client.watch_task(self.pool, task, WatchQuery(timeout_s=UP_S)):
                if view.state in _DONE:
                    break
            self.record.latencies.append((asked, time.monotonic() - asked))


_DONE = ("completed", "failed", "cancelled")


def main() -> None:
    """Run it, print the table, and say what grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--nodes", type=int, default=4, help="four or more: two of them are killed, one at a time")
    parser.add_argument("--rate", type=float, default=6.0, help="tasks a second, and as many messages")
    parser.add_argument("--kill-s", type=float, default=45.0, help="seconds between two kills")
    parser.add_argument("--sample-s", type=float, default=5.0, help="seconds between two readings")
    parser.add_argument("--at-once", action="store_true", help="measure from the start, to see that this works")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--keep", type=Path, help="folder for homes, logs and readings; default: a temporary one")
    asked = parser.parse_args()
    if asked.nodes < 4:
        parser.error("--nodes: four or more, or a kill would leave no quorum")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mesh = stack.enter_context(Mesh(asked.keep or folder))
        soak = Soak(mesh, asked.nodes, asked.seed)
        if asked.keep is not None:
            soak.record.file = stack.enter_context(open(asked.keep / "readings.jsonl", "w", encoding="utf-8"))
        soak.set_up()
        load = os.getloadavg()[0]
        soak.run(asked, lambda line: print(line, file=sys.stderr, flush=True))
        counters = {node.name: node.counters() for node in soak.nodes}
    record = soak.record
    lines = list(table(record))
    kills = sum(record.kills.values())
    lines += [
        "",
        f"{record.length_s:.0f} s. In all {record.submitted} tasks, {record.said} messages, each with "
        f"{asked.nodes - 1} letters, {kills} kills; {record.refused} requests met a killed node. "
        f"Load {load:.1f} at the beginning, {os.getloadavg()[0]:.1f} in the end.",
    ]
    found = faults(record)
    conflicts = {
        name: each["conflicting_settlements"] for name, each in counters.items() if each.get("conflicting_settlements")
    }
    if conflicts:
        found.append(f"tasks settled twice: {conflicts}")
    lines += found or ["nothing grew"]
    text = "\n".join(lines) + "\n"
    print(text)
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
