"""The processes of the demonstration: real nodes, started, killed and started again.

Knows: command lines, control sockets, signals. Must not know: what the tasks are about.
Source: docs/operations.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from converge_node.paths import resolve_paths
from converge_p2p.client import Client, schema
from converge_p2p.client.queries import TaskQuery
from converge_p2p.core.errors import NetworkError

_T = TypeVar("_T")

START_S = 60.0
LOOK_S = 0.1


class DemoNode:
    """One node in a process of its own."""

    def __init__(self, name: str, home: Path, arguments: Sequence[str]) -> None:
        self.name = name
        self.home = home
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = home.parent / f"{name}.log"
        self._out = home.parent / f"{name}.out"
        self.client = Client(resolve_paths(home).socket)
        self.item: schema.NodeItem | None = None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def id(self) -> str:
        """Agent id, known once the node was up."""
        assert self.item is not None
        return self.item.id

    def start(self, *arguments: str) -> None:
        """Start the process. `wait_up` says when it is ready."""
        command = [sys.executable, "-m", "converge_node", "run", "--home", str(self.home), "--json"]
        command += ["--listen", "/ip4/127.0.0.1/tcp/0", *self._arguments, *arguments]
        with open(self._log, "ab") as log, open(self._out, "wb") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log)

    def wait_up(self, timeout_s: float = START_S) -> schema.NodeItem:
        """Wait for the node's first line, and return what it says.

        Raises:
            NetworkError: the process ended, or did not come up in time.
        """
        line = wait_for(self._first_line, timeout_s, f"node {self.name} to start (see {self._log})")
        self.item = msgspec.convert(msgspec.json.decode(line)["data"], schema.NodeItem)
        return self.item

    def _first_line(self) -> str:
        if not self.running:
            raise NetworkError(f"node {self.name} ended while it started", hint=f"see {self._log}")
        text = self._out.read_text()
        return text if text.endswith("\n") else ""

    def kill(self) -> None:
        """SIGKILL: no good-bye, nothing is flushed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Ask the process to end, and see to it that it does."""
        if self._process is None or not self.running:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def peers(self) -> int:
        """How many peers are connected."""
        return len(self.client.peers())

    def pools(self) -> list[schema.PoolItem]:
        """The pools this node is in or has heard of."""
        return self.client.pools()

    def pool(self, pool: str) -> schema.PoolDetail:
        """A pool as this node sees it."""
        return self.client.pool(pool)

    def tasks(self, pool: str) -> list[schema.TaskItem]:
        """Every task of a pool as this node sees it."""
        found: list[schema.TaskItem] = []
        while True:
            query = TaskQuery(limit=schema.TASK_LIST_MAX, offset=len(found))
            part = self.client.tasks(pool, query)
            found.extend(part.tasks)
            if not part.tasks or len(found) >= part.total:
                return found

    def task(self, pool: str, task: str) -> schema.TaskDetail:
        """One task with its result."""
        return self.client.task(pool, task)

    def counters(self) -> dict[str, int]:
        """The node's counters."""
        return self.client.status().counters


class Mesh:
    """All nodes of the demonstration; they end with the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, DemoNode] = {}

    def add(self, name: str, *arguments: str) -> DemoNode:
        """Make a node. It still has to be started."""
        node = self.nodes[name] = DemoNode(name, self.folder / name, arguments)
        return node

    @property
    def alive(self) -> list[DemoNode]:
        """The nodes whose process lives."""
        return [node for node in self.nodes.values() if node.running]

    def __enter__(self) -> Self:
        os.makedirs(self.folder, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.alive:
            node.stop()


def wait_for(look: Callable[[], _T], timeout_s: float, what: str) -> _T:
    """Look again and again until something true comes back, and return it.

    Raises:
        NetworkError: it did not within the time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise NetworkError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(LOOK_S)
