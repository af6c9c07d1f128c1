"""The battlefield of the attack script: victims in processes of their own, and what is measured of them.

Knows: nodes, their control sockets, /proc. Must not know: how an attack is made.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from converge_node.demo.mesh import DemoNode, Mesh, wait_for
from converge_node.demo.story import SETTLED
from converge_p2p.client import schema
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import PoolId, PublicKey

HERE = Path(__file__).parent
VICTIMS = 3
SETTLED_TASKS = 12
OPEN_TASKS = 4
PROBE_PAUSE_S = 0.5
CALM_S = 60.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def echo(task: Any, _context: Any) -> Any:
    """Handler of the honest work."""
    return task.inputs


@dataclass(frozen=True, slots=True)
class Sample:
    """What one victim's process uses.

    Attributes:
        rss_mb: resident memory.
        fds: open file descriptors.
        cpu_s: processor time since its start.
        log_kb: what it logged.
    """

    rss_mb: float
    fds: int
    cpu_s: float
    log_kb: float


@dataclass(slots=True)
class Outcome:
    """What one attack did to the victims, the worst of them in each column.

    Attributes:
        sent: how many hostile things were sent.
        alive: every process lives and answers.
        unchanged: nothing that was decided changed; for outsiders: no byte of the pool's frontier.
        slowest_s: longest time a `status` request took while the attack ran.
        peak_mb: highest memory seen while the attack ran, over the baseline.
        rss_mb: memory afterwards, over the baseline.
        fds: descriptors afterwards, over the baseline.
    """

    name: str
    sent: int
    alive: bool
    unchanged: bool
    slowest_s: float
    peak_mb: float
    rss_mb: float
    fds: int
    cpu_s: float
    log_kb: float
    seconds: float
    remarks: list[str] = field(default_factory=list)


class Battlefield:
    """Three nodes, a democratic pool of which they are the electors, settled tasks, and tasks that stay open."""

    def __init__(self, folder: Path) -> None:
        self._mesh = Mesh(folder)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        # so that there is more to attack
        os.environ["CONVERGE_NODE_NETWORK__RELAY_SERVICE"] = "true"
        handler = ("--handler", "echo=attack_rig:echo@4")
        self.nodes = [self._mesh.add(f"victim{number}", *handler) for number in range(VICTIMS)]
        self.pool = PoolId(b"")
        self.keys: list[PublicKey] = []
        self.open_tasks: list[bytes] = []
        self.settled_tasks: list[bytes] = []
        self._decided: dict[str, tuple[str, str]] = {}
        self._frontier = ""
        self._baseline: list[Sample] = []
        self._work = 0

    # ------------------------------------------------------------ life

    def __enter__(self) -> Self:
        self._mesh.__enter__()
        try:
            self._set_up()
        except BaseException:
            self._mesh.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mesh.__exit__(kind, error, trace)

    def _set_up(self) -> None:
        first, *others = self.nodes
        first.start()
        address = first.wait_up().addresses[0]
        for node in others:
            node.start("--bootstrap", address)
        for node in others:
            node.wait_up()
        self.keys = [PublicKey(bytes.fromhex(node.item.public_key)) for node in self.nodes if node.item]
        wait_for(lambda: all(node.peers() >= VICTIMS - 1 for node in self.nodes), 30, "the victims to find each other")
        body = schema.CreatePool(
            name="honest work", governance="democratic", electors=[node.id for node in self.nodes], task_types=["echo"]
        )
        found = first.client.create_pool(body)
        self.pool = PoolId(bytes.fromhex(found.id))
        for node in self.nodes:
            join = schema.JoinPool(capabilities=["echo"])
            node.client.join_pool(found.id, join)
        for number in range(SETTLED_TASKS):
            self.settled_tasks.append(self._submit("echo", {"number": number}))
        for number in range(OPEN_TASKS):
            self.open_tasks.append(self._submit("nobody can do this", {"number": number}))
        self.wait_settled(self.settled_tasks)
        self.wait_calm()
        self.set_baseline()

    def set_baseline(self) -> None:
        """Take the present state as what has to be kept."""
        self._decided = self._read_decided(self.nodes[0])
        self._frontier = self.frontiers()[0]
        if not self._baseline:
            self._baseline = [self.sample(node) for node in self.nodes]

    # ------------------------------------------------------------ honest use

    def address(self, number: int = 0) -> str:
        """Address of a victim."""
        item = self.nodes[number].item
        assert item is not None
        return item.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """Addresses of all victims."""
        return [self.address(number) for number in range(VICTIMS)]

    def _submit(self, objective: str, inputs: dict[str, Any]) -> bytes:
        body = schema.SubmitTask(objective=objective, inputs=inputs)
        return bytes.fromhex(self.nodes[0].client.submit(self.pool.hex(), body).id)

    def honest_work(self, timeout_s: float = 30.0) -> float:
        """Submit one fresh task and wait until all victims know its result. Return how long that took."""
        self._work += 1
        start = time.monotonic()
        self.wait_settled([self._submit("echo", {"fresh": self._work})], timeout_s)
        return time.monotonic() - start

    def wait_settled(self, tasks: list[bytes], timeout_s: float = 60.0) -> None:
        """Wait until every victim says that the tasks are completed."""

        def all_settled() -> bool:
            return all(
                node.task(self.pool.hex(), task.hex()).state == "completed" for node in self.nodes for task in tasks
            )

        wait_for(all_settled, timeout_s, f"{len(tasks)} tasks to settle at every node")

    def frontiers(self) -> list[str]:
        """The digest of the pool's frontier at every victim."""
        return [node.pool(self.pool.hex()).frontier for node in self.nodes]

    def wait_calm(self) -> None:
        """Wait until all frontiers are equal and stay so."""
        deadline, last, equal = time.monotonic() + CALM_S, [""], 0
        while time.monotonic() < deadline and equal < 3:
            found = self.frontiers()
            equal = equal + 1 if len(set(found)) == 1 and found == last else 0
            last = found
            time.sleep(0.1)

    def counters(self) -> Counter[str]:
        """Counters of all victims, added up."""
        total: Counter[str] = Counter()
        for node in self.nodes:
            total.update(node.counters())
        return total

    # ------------------------------------------------------------ measuring

    def _read_decided(self, node: DemoNode) -> dict[str, tuple[str, str]]:
        tasks = node.tasks(self.pool.hex())
        return {task.id: (task.state, task.value) for task in tasks if task.state in SETTLED}

    def decided_unchanged(self) -> bool:
        """Whether every task that was settled is at every victim as it was.

        An open task may be claimed by any member, an attacker too: that costs time, and is no decision.
        """
        if any(node.pool(self.pool.hex()).epoch for node in self.nodes):
            # nobody put a change to these electors that they agreed to
            return False
        for node in self.nodes:
            now = self._read_decided(node)
            if any(now.get(task) != before for task, before in self._decided.items()):
                return False
        return True

    def frontier_unchanged(self) -> bool:
        """Whether no operation came in since the baseline."""
        return set(self.frontiers()) == {self._frontier}

    def healthy(self) -> bool:
        """Whether every process lives and answers."""
        try:
            return all(node.running and node.client.health().ready for node in self.nodes)
        except ConvergeError:
            return False

    @staticmethod
    def sample(node: DemoNode) -> Sample:
        """Look at a victim's process."""
        process = node._process
        assert process is not None
        proc = Path(f"/proc/{process.pid}")
        fields = (proc / "stat").read_text().rsplit(") ", 1)[1].split()
        rss = int((proc / "statm").read_text().split()[1]) * _PAGE_BYTES
        log = node.home.parent / f"{node.name}.log"
        return Sample(
            rss / 2**20,
            len(os.listdir(proc / "fd")),
            (int(fields[11]) + int(fields[12])) / _TICKS,
            log.stat().st_size / 1024,
        )

    def over_baseline(self) -> tuple[float, int]:
        """Memory and descriptors over the baseline, of the worst victim."""
        now = [self.sample(node) for node in self.nodes]
        pairs = list(zip(now, self._baseline, strict=True))
        return max(one.rss_mb - base.rss_mb for one, base in pairs), max(one.fds - base.fds for one, base in pairs)

    def baseline_mb(self) -> float:
        """Memory of the largest victim before the attacks."""
        return max(sample.rss_mb for sample in self._baseline)

    def totals(self) -> tuple[float, float]:
        """Processor seconds and log kilobytes of all victims."""
        now = [self.sample(node) for node in self.nodes]
        return sum(sample.cpu_s for sample in now), sum(sample.log_kb for sample in now)


class Probe:
    """Asks every victim for its status again and again while an attack runs."""

    def __init__(self, field: Battlefield) -> None:
        self._field = field
        self.slowest_s = 0.0
        self.peak_mb = 0.0
        self.failed: list[str] = []

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as nursery:
            for node in self._field.nodes:
                nursery.start_soon(self._ask, node)
            while True:
                self.peak_mb = max(self.peak_mb, self._field.over_baseline()[0])
                await trio.sleep(0.1)

    async def _ask(self, node: DemoNode) -> None:
        while True:
            start = time.monotonic()
            try:
                await trio.to_thread.run_sync(node.counters)
            except ConvergeError as error:
                self.failed.append(f"{node.name}: {error}")
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)
            await trio.sleep(PROBE_PAUSE_S)


class Frozen:
    """Links of a process that is stopped in the middle: nothing is closed, nothing answers."""

    def __init__(self, addresses: list[str], connections: int) -> None:
        self._arguments = [sys.executable, str(HERE / "attack_silent.py"), str(connections), *addresses]
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Open the links, then stop the process."""
        self._process = await trio.lowlevel.open_process(self._arguments, stdout=-1)
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            more = await self._process.stdout.receive_some()
            if not more:
                raise RuntimeError("the process that holds silent links ended early")
            line += more
        self._process.send_signal(signal.SIGSTOP)

    async def end(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


def identity(number: int) -> Identity:
    """Hostile identities, the same in every run."""
    return Identity.from_seed(b"attacker" + number.to_bytes(24, "big"))


in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
