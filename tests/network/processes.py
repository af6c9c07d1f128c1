"""A pool of real processes, as its operators see it: commands in, and what every node says of the pool out.

Knows: the command line, the control sockets, signals. Must not know: a test.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from converge_node.demo.mesh import wait_for
from converge_p2p.client import Client, schema
from converge_p2p.client.queries import TaskQuery
from converge_p2p.core.errors import ConvergeError, NetworkError

WAIT_S = 150.0
"""How long anything may take before a test gives up: no measure of speed, the machine is shared."""
COMMAND_S = 90.0


class Node(Protocol):
    """What is needed of a node."""

    name: str
    home: Path
    client: Client

    @property
    def id(self) -> str:
        """Agent id."""


def run_command(node: Node, *arguments: str) -> str:
    """Run a command of `converge-node` against a node, and return the ids it prints.

    Raises:
        AssertionError: it failed; the message is what it said.
    """
    command = [sys.executable, "-m", "converge_node", *arguments, "--home", str(node.home), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    said = f"on {node.name}, `{' '.join(arguments)}` ended with {done.returncode}:\n{done.stderr}"
    assert done.returncode == 0, said
    return done.stdout.strip()


class Overview:
    """One pool, looked at through several nodes."""

    def __init__(self, pool: str) -> None:
        self.pool = pool

    def detail(self, node: Node) -> schema.PoolDetail:
        """The pool as a node sees it."""
        return node.client.pool(self.pool)

    def submit(self, node: Node, key: str) -> str:
        """Submit a task, and return its id."""
        body = schema.SubmitTask(objective="echo", inputs={"key": key}, key=key)
        return node.client.submit(self.pool, body).id

    def tasks(self, node: Node) -> dict[str, schema.TaskItem]:
        """Every task as a node sees it."""
        found: dict[str, schema.TaskItem] = {}
        while True:
            query = TaskQuery(limit=schema.TASK_LIST_MAX, offset=len(found))
            part = node.client.tasks(self.pool, query)
            found.update({item.id: item for item in part.tasks})
            if not part.tasks or len(found) >= part.total:
                return found

    def settled(self, node: Node) -> dict[str, str]:
        """The hash of its value for each completed task."""
        return {item.id: item.value for item in self.tasks(node).values() if item.state == "completed"}

    def wait(self, condition: Callable[[], object], what: str, nodes: Sequence[Node]) -> None:
        """Wait until something is true.

        Raises:
            AssertionError: it is not in time; the message says how every node sees the pool.
        """
        try:
            wait_for(lambda: bool(_tried(condition)), WAIT_S, what)
        except NetworkError as error:
            seen = "\n".join(self.describe(node) for node in nodes)
            raise AssertionError(f"{error}\n{seen}") from None

    def wait_epoch(self, number: int, nodes: Sequence[Node]) -> None:
        """Wait until an epoch is in force at every node."""
        self.wait(lambda: all(self.detail(node).epoch == number for node in nodes), f"epoch {number} everywhere", nodes)

    def wait_settled(self, tasks: Iterable[str], nodes: Sequence[Node]) -> None:
        """Wait until every node knows the results of these tasks."""
        wanted = set(tasks)
        what = f"{len(wanted)} tasks to be settled everywhere"
        self.wait(lambda: all(self.settled(node).keys() >= wanted for node in nodes), what, nodes)

    def wait_equal(self, nodes: Sequence[Node]) -> None:
        """Wait until all nodes hold the same operations."""
        self.wait(lambda: len({self.detail(node).frontier for node in nodes}) == 1, "equal frontiers", nodes)

    def check_settled_once(self, nodes: Sequence[Node]) -> None:
        """Check that all nodes name the same value for each task, and that none saw two."""
        values = {node.name: self.settled(node) for node in nodes}
        first, *others = values.values()
        assert all(other == first for other in others), f"nodes know different results: {values}"
        for node in nodes:
            counters = node.client.status().counters
            assert not counters.get("conflicting_settlements"), f"{node.name} saw a task settled twice"

    def describe(self, node: Node) -> str:
        """How a node sees the pool, in one line."""
        try:
            pool = self.detail(node)
        except ConvergeError as error:
            return f"{node.name}: {error}"
        electors = sorted(member.agent_id for member in pool.member_list if member.elector)
        return (
            f"{node.name} ({node.id}): epoch {pool.epoch}, quorum {pool.has_quorum}, frontier {pool.frontier[:12]}, "
            f"tasks {pool.tasks}, electors {electors}"
        )


def _tried(condition: Callable[[], object]) -> object:
    # a node that is just starting, or busy, answers later
    try:
        return condition()
    except ConvergeError:
        return False


class Submitter:
    """Submits tasks to a pool through some nodes, in turn, until the block ends."""

    def __init__(self, overview: Overview, nodes: Sequence[Node], *, pause_s: float, prefix: str) -> None:
        self.tasks: list[str] = []
        """The tasks that a node acknowledged."""
        self._overview, self._nodes, self._pause_s, self._prefix = overview, nodes, pause_s, prefix
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Submitter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self._pause_s):
            node = self._nodes[number % len(self._nodes)]
            number += 1
            try:
                self.tasks.append(self._overview.submit(node, f"{self._prefix}{number}"))
            except ConvergeError:
                # what was not acknowledged nobody is owed
                continue
