"""A partition between real hosts: five namespaces, the cable between three and two of them pulled and plugged in again.

The majority settles, the minority keeps taking submissions and says that it cannot decide. Afterwards everybody holds
the same, and no task was settled twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from namespaces import Hosts

from converge_node import schema
from converge_node.cli.client import ControlClient
from converge_node.demo.mesh import wait_for
from converge_node.paths import resolve_paths

pytestmark = [pytest.mark.network, pytest.mark.namespaces]

WAIT_S = 90.0
HANDLER = "async def echo(task, context):\n    return task.inputs\n"


class Cluster:
    """A node on each host, the first of them everybody's bootstrap."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self._folder = folder
        (folder / "partition_work.py").write_text(HANDLER)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.clients: list[ControlClient] = []
        self.items: list[schema.NodeItem] = []
        for host in range(hosts.count):
            self._start(hosts, host)

    def _start(self, hosts: Hosts, host: int) -> None:
        home, out = self._folder / f"n{host}", self._folder / f"{host}.out"
        command = [*hosts.command(host), sys.executable, "-m", "converge_node", "run", "--home", str(home), "--json"]
        command += ["--listen", f"/ip4/{hosts.address(host)}/tcp/4001"]
        command += ["--handler", "echo=partition_work:echo@4", "--pool", "open"]
        if self.items:
            command += ["--bootstrap", self.items[0].addresses[0]]
        environment = {**os.environ, "PYTHONPATH": str(self._folder)}
        with open(out, "wb") as stdout, open(self._folder / f"{host}.log", "wb") as log:
            self.processes.append(subprocess.Popen(command, stdout=stdout, stderr=log, env=environment))

        def first_line() -> str:
            assert self.processes[-1].poll() is None, (self._folder / f"{host}.log").read_text()
            text = out.read_text()
            return text if text.endswith("\n") else ""

        line = wait_for(first_line, WAIT_S, f"node {host} to start")
        self.items.append(msgspec.convert(json.loads(line)["data"], schema.NodeItem))
        self.clients.append(ControlClient(resolve_paths(home).socket))

    def pool(self, host: int, pool: str) -> schema.PoolDetail:
        return self.clients[host].get(schema.PoolDetail, "v1", "pools", pool)

    def peers(self, host: int) -> int:
        return len(self.clients[host].get(list[schema.PeerItem], "v1", "peers"))

    def submit(self, host: int, pool: str, key: str) -> str:
        body = schema.SubmitTask(objective="echo", inputs={"key": key}, key=key)
        return self.clients[host].post(schema.TaskDetail, "v1", "pools", pool, "tasks", body=body).id

    def settled(self, host: int, pool: str) -> dict[str, str]:
        """Hashes of the settled values of the tasks that are completed as this host sees it."""
        query = {"state": "completed"}
        found = self.clients[host].get(schema.TaskList, "v1", "pools", pool, "tasks", query=query)
        return {item.id: item.value for item in found.tasks}

    def found(self) -> str:
        """A democratic pool of all five, which everybody has joined."""
        wait_for(lambda: all(self.peers(host) == 4 for host in range(5)), WAIT_S, "the mesh")
        body = schema.CreatePool(
            name="split", governance="democratic", electors=[item.id for item in self.items], task_types=["echo"]
        )
        pool = self.clients[0].post(schema.PoolDetail, "v1", "pools", body=body).id

        def joined() -> bool:
            lists = [client.get(list[schema.PoolItem], "v1", "pools") for client in self.clients]
            return all(any(item.id == pool and item.ready for item in items) for items in lists)

        wait_for(joined, WAIT_S, "everybody to join")
        return pool

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(timeout=40)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts(3, 2) as hosts:
        yield hosts


@pytest.fixture
def cluster(hosts: Hosts, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(hosts, tmp_path)
    try:
        yield cluster
    finally:
        cluster.stop()


def test_a_partition_three_to_two_settles_on_one_side_and_heals(hosts: Hosts, cluster: Cluster) -> None:
    pool = cluster.found()
    before = cluster.submit(0, pool, "before")
    wait_for(lambda: before in cluster.settled(4, pool), WAIT_S, "the first task")
    hosts.cut()
    majority = [cluster.submit(0, pool, f"left{number}") for number in range(10)]
    minority = [cluster.submit(4, pool, f"right{number}") for number in range(10)]
    wait_for(lambda: cluster.settled(0, pool).keys() >= set(majority), WAIT_S, "the majority to settle its tasks")
    # nobody tells either side that the cable was pulled; the minority finds out by the silence
    wait_for(lambda: not cluster.pool(3, pool).has_quorum and not cluster.pool(4, pool).has_quorum, WAIT_S, "no quorum")
    assert cluster.pool(0, pool).has_quorum
    assert not cluster.settled(4, pool).keys() & set(minority)
    minority.append(cluster.submit(3, pool, "taken without a quorum"))
    hosts.heal()
    tasks = {before, *majority, *minority}

    def whole() -> bool:
        same = len({cluster.pool(host, pool).frontier for host in range(5)}) == 1
        return same and cluster.settled(4, pool).keys() == tasks

    wait_for(whole, WAIT_S, "equal frontiers and the minority's tasks")
    values = [cluster.settled(host, pool) for host in range(5)]
    assert values == [values[0]] * 5
    assert all(cluster.pool(host, pool).has_quorum for host in range(5))
