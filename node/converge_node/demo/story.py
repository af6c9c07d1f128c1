"""What happens in the demonstration, and what has to be true at its end.

Knows: the mesh, the work, the order of events. Must not know: how it is shown (see `cli`).
Source: the guarantees in README.md; each of them that can be seen from outside is checked here.
"""

from __future__ import annotations

import functools
import json
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from converge_node.demo.mesh import DemoNode, Mesh, wait_for
from converge_node.demo.work import file_digest, index_file, library_modules, library_root, merge
from converge_p2p.client import schema
from converge_p2p.core.errors import ConvergeError, NetworkError

SETTLED: Final = ("completed", "failed", "cancelled")
MERGE_GROUP: Final = 20
CLAIM_TTL_S: Final = 12.0
CONNECT_S: Final = 60.0
CONVERGE_S: Final = 60.0
KILL_AT: Final = 0.30
RETURN_AT: Final = 0.55
WORK: Final = "converge_node.demo.work"
HANDLERS: Final = (
    "--handler", f"index-module={WORK}:index_module@4",
    "--handler", f"merge-indexes={WORK}:merge_indexes@1",
    "--pool", "open",
)  # fmt: skip


@dataclass(slots=True)
class Progress:
    """Where the demonstration is.

    Attributes:
        total, settled: tasks of both pools.
        alive: how many nodes live.
        events: what happened, newest last.
    """

    total: int = 0
    settled: int = 0
    alive: int = 0
    events: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Summary:
    """What came out.

    Attributes:
        ok: everything that has to be true is.
        checks: what was checked, and whether it held.
        tasks, settled: counts over both pools.
        settled_twice: tasks whose settled value differed between nodes or times.
        lost: tasks that were acknowledged and are not settled.
        rerun: tasks that more than one claim was certified for.
        by: completed tasks by node name.
        rivals: claims that a rival won, as the living nodes counted.
        seconds: from the first submit to the last settlement.
        report: the combined index.
    """

    ok: bool
    checks: dict[str, bool]
    tasks: int
    settled: int
    settled_twice: int
    lost: int
    rerun: int
    by: dict[str, int]
    rivals: int
    seconds: float
    report: dict[str, Any]


@dataclass(slots=True)
class _Pool:
    """A pool of the demonstration, as the office hears of it."""

    id: str
    settled: dict[str, schema.TaskItem] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    changed_after: set[str] = field(default_factory=set)


class Demonstration:
    """Runs the story in a mesh: the office submits, the others work, two are killed and one comes back."""

    def __init__(self, mesh: Mesh, *, tasks: int | None, workers: int, tell: Callable[[Progress], None]) -> None:
        """Set it up.

        Args:
            tasks: modules to index; None takes all.
            workers: worker nodes beside the anchor, at least 3.
            tell: called with the progress whenever it changed.
        """
        self._mesh = mesh
        self._tell = tell
        self._progress = Progress()
        self._modules = library_modules(library_root())[:tasks]
        self._anchor = mesh.add("anchor", *HANDLERS)
        self._office = mesh.add("office")
        self._workers = [mesh.add(f"worker{number}", *HANDLERS) for number in range(1, workers + 1)]
        self._changes: queue.Queue[tuple[_Pool, schema.TaskItem] | ConvergeError] = queue.Queue()
        self._unmerged: deque[dict[str, Any]] = deque()
        self._index: _Pool | None = None
        self._merge: _Pool | None = None
        self._killed = self._returned = False

    def run(self, timeout_s: float) -> Summary:
        """Play the story and check its end.

        Raises:
            ConvergeError: something could not even be tried (a node did not start, or the time is up).
        """
        self._start_nodes()
        self._index = self._found("stdlib-index", "democratic", "index-module")
        self._merge = self._found("stdlib-merge", "dictatorial", "merge-indexes")
        began = time.monotonic()
        self._submit_modules()
        deadline = began + timeout_s
        while not self._finished():
            self._next_change(deadline)
        seconds = time.monotonic() - began
        self._say(f"all {self._progress.total} tasks are settled; comparing the nodes")
        return self._check(seconds)

    # ------------------------------------------------------------ the mesh

    def _say(self, text: str) -> None:
        self._progress.events.append(text)
        self._show()

    def _show(self) -> None:
        self._progress.alive = len(self._mesh.alive)
        self._tell(self._progress)

    def _start_nodes(self) -> None:
        self._anchor.start()
        self._bootstrap = self._anchor.wait_up().addresses[0]
        others = [self._office, *self._workers]
        for node in others:
            node.start("--bootstrap", self._bootstrap)
        for node in others:
            node.wait_up()
        self._say(f"{len(others) + 1} processes started; all but the anchor know only the anchor's address")
        wait_for(lambda: self._office.peers() >= len(others), CONNECT_S, "the mesh to connect")
        self._say("every node is connected")

    def _found(self, name: str, governance: str, task_type: str) -> _Pool:
        electors = [self._office.id, self._anchor.id, *(worker.id for worker in self._workers[:3])]
        body = schema.CreatePool(
            name=name,
            governance=governance,
            electors=electors if governance == "democratic" else [self._office.id],
            task_types=[task_type],
            claim_ttl_s=CLAIM_TTL_S,
        )
        pool = _Pool(self._office.client.create_pool(body).id)
        workers = [self._anchor, *self._workers]
        for node in workers:
            wait_for(functools.partial(self._has_joined, node, pool.id), CONNECT_S, f"{node.name} to join pool {name}")
        self._say(f"pool {name} ({governance}): {len(workers)} workers heard of it and joined")
        threading.Thread(target=self._listen, args=(pool,), daemon=True).start()
        return pool

    def _has_joined(self, node: DemoNode, pool: str) -> bool:
        members = {member.agent_id for member in self._office.pool(pool).member_list}
        joined = {item.id for item in node.client.pools() if item.joined and item.ready}
        return node.id in members and pool in joined

    def _listen(self, pool: _Pool) -> None:
        try:
            for item in self._office.client.watch_pool(pool.id):
                self._changes.put((pool, item))
        except ConvergeError as error:
            self._changes.put(error)

    # ------------------------------------------------------------ the work

    def _submit(self, pool: _Pool, objective: str, inputs: dict[str, Any], key: str) -> None:
        body = schema.SubmitTask(objective=objective, inputs=inputs, key=key)
        pool.submitted.append(self._office.client.submit(pool.id, body).id)
        self._progress.total += 1

    def _submit_modules(self) -> None:
        assert self._index is not None
        root = library_root()
        for module in self._modules:
            self._submit(self._index, "index-module", {"module": module, "sha256": file_digest(root / module)}, module)
            self._take_changes()
        self._say(f"{len(self._modules)} modules submitted")

    def _take_changes(self) -> None:
        while not self._changes.empty():
            self._take(self._changes.get())

    def _next_change(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        try:
            self._take(self._changes.get(timeout=max(0.0, left)))
        except queue.Empty:
            raise NetworkError(
                f"only {self._progress.settled} of {self._progress.total} tasks were settled in time"
            ) from None

    def _take(self, change: tuple[_Pool, schema.TaskItem] | ConvergeError) -> None:
        if isinstance(change, ConvergeError):
            raise change
        pool, item = change
        before = pool.settled.get(item.id)
        if before is not None and (before.state, before.value) != (item.state, item.value):
            pool.changed_after.add(item.id)
        if item.state in SETTLED and before is None:
            pool.settled[item.id] = item
            self._settled(pool, item)
        self._show()

    def _settled(self, pool: _Pool, item: schema.TaskItem) -> None:
        assert self._index is not None
        self._progress.settled += 1
        done = len(self._index.settled) / len(self._modules)
        if item.state != "completed":
            self._say(f"task {item.key} of {item.objective} is settled as {item.state}: {item.reason}")
        elif pool is self._index:
            self._unmerged.append(self._office.task(pool.id, item.id).result)
        self._merge_when_due()
        if done >= KILL_AT and not self._killed:
            self._kill()
        if done >= RETURN_AT and not self._returned:
            self._bring_back()

    def _merge_when_due(self) -> None:
        assert self._index is not None
        assert self._merge is not None
        last = len(self._index.settled) == len(self._modules)
        while len(self._unmerged) >= MERGE_GROUP or (last and self._unmerged):
            group = [self._unmerged.popleft() for _ in range(min(MERGE_GROUP, len(self._unmerged)))]
            key = f"group-{len(self._merge.submitted)}"
            self._submit(self._merge, "merge-indexes", {"indexes": group}, key)

    def _kill(self) -> None:
        self._killed = True
        self._anchor.kill()
        self._workers[0].kill()
        self._say("SIGKILL: the anchor (everybody's bootstrap node) and worker1, in the middle of their work")

    def _bring_back(self) -> None:
        self._returned = True
        # the bootstrap address it is given is dead: its store remembers other peers
        self._workers[0].start("--bootstrap", self._bootstrap)
        self._say("worker1 starts again with its store; the bootstrap address it is given is dead")

    def _finished(self) -> bool:
        assert self._index is not None
        assert self._merge is not None
        return (
            self._returned
            and len(self._index.settled) == len(self._modules)
            and len(self._merge.settled) == len(self._merge.submitted) > 0
            and not self._unmerged
        )

    # ------------------------------------------------------------ the end

    def _check(self, seconds: float) -> Summary:
        assert self._index is not None
        assert self._merge is not None
        pools = (self._index, self._merge)
        returned = self._workers[0]
        returned.wait_up()
        same = all(self._converged(pool.id) for pool in pools)
        self._say("every living node holds the same operations" if same else "the nodes hold different operations")
        views = {node.name: [node.tasks(pool.id) for pool in pools] for node in self._mesh.alive}
        values: dict[str, set[tuple[str, str]]] = {}
        for lists in views.values():
            for item in (item for tasks in lists for item in tasks):
                values.setdefault(item.id, set()).add((item.state, item.value))
        twice = {task for task, seen in values.items() if len(seen) > 1}
        twice.update(*(pool.changed_after for pool in pools))
        conflicts = sum(node.counters().get("conflicting_settlements", 0) for node in self._mesh.alive)
        office = [item for tasks in views[self._office.name] for item in tasks]
        submitted = {task for pool in pools for task in pool.submitted}
        completed = {item.id for item in office if item.state == "completed"}
        parts = [self._office.task(self._merge.id, task).result for task in self._merge.submitted]
        report = merge(parts)
        self._say("computing the same index in one process, to compare")
        root = library_root()
        expected = merge(index_file(root / module) for module in self._modules)
        names = {node.item.id: node.name for node in self._mesh.nodes.values() if node.item is not None}
        checks = {
            "every task settled exactly once, the same on every node": not twice and not conflicts,
            "no acknowledged task lost": submitted == set(values) and submitted == completed,
            "every living node holds the same operations": same,
            "the node that came back caught up": len(views[returned.name][0]) == len(self._index.submitted),
            "combined result equals one process": _canonical(report) == _canonical(expected),
        }
        return Summary(
            ok=all(checks.values()),
            checks=checks,
            tasks=len(submitted),
            settled=len(completed),
            settled_twice=len(twice),
            lost=len(submitted - completed),
            rerun=sum(1 for item in office if item.attempts > 1),
            by=dict(Counter(names.get(item.settled_by or "", "?") for item in office).most_common()),
            rivals=sum(node.counters().get("work_rivals_won", 0) for node in self._mesh.alive),
            seconds=seconds,
            report=report,
        )

    def _converged(self, pool: str) -> bool:
        def equal() -> bool:
            return len({node.pool(pool).frontier for node in self._mesh.alive}) == 1

        try:
            return wait_for(equal, CONVERGE_S, "equal frontiers")
        except NetworkError:
            return False


def _canonical(index: dict[str, Any]) -> str:
    return json.dumps(index, sort_keys=True)
