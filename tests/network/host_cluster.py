"""A node on each of several hosts that are network namespaces, the first of them everybody's bootstrap peer.

Knows: the hosts, command lines, control sockets. Must not know: a test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from processes import Overview

from converge_node.demo.mesh import wait_for
from converge_node.paths import resolve_paths
from converge_p2p.client import Client, schema

START_S = 120.0
HANDLER = "async def echo(task, context):\n    return task.inputs\n"


@dataclass(slots=True)
class HostNode:
    """A node on a host of its own."""

    name: str
    home: Path
    client: Client
    process: subprocess.Popen[bytes]
    item: schema.NodeItem | None = None

    @property
    def id(self) -> str:
        """Agent id, known once the node was up."""
        assert self.item is not None
        return self.item.id

    def found_at(self) -> list[str]:
        """Its addresses, as it tells them now."""
        return self.client.node().addresses

    def counter(self, name: str) -> int:
        """One of its counters."""
        return self.client.status().counters.get(name, 0)

    def peers(self) -> int:
        """How many peers are connected."""
        return len(self.peer_list())

    def peer_list(self) -> list[schema.PeerItem]:
        """The connected peers."""
        return self.client.peers()

    def kill(self) -> None:
        """SIGKILL: no good-bye, nothing is flushed."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class SomeHosts(Protocol):
    """What is needed of a kit of hosts."""

    @property
    def count(self) -> int: ...
    def command(self, host: int) -> list[str]: ...
    def address(self, host: int) -> str: ...


class Cluster:
    """A node on each host, all connected."""

    def __init__(
        self,
        hosts: SomeHosts,
        folder: Path,
        *,
        settings: Callable[[int], dict[str, str]] = lambda _host: {},
        bootstrap: Callable[[list[HostNode]], str] | None = None,
        peers: int | None = None,
    ) -> None:
        """Start the nodes.

        Args:
            hosts: where.
            folder: for homes and logs.
            settings: environment variables of a host's node.
            bootstrap: chooses the address that the next node begins with, of those that run; by default the first;
                nothing is no bootstrap peer.
            peers: how many peers each node is to have in the end; by default all others.
        """
        self._hosts, self._folder, self._settings = hosts, folder, settings
        self._bootstrap = bootstrap or (lambda nodes: nodes[0].found_at()[0])
        (folder / "partition_work.py").write_text(HANDLER)
        self.nodes: list[HostNode] = []
        try:
            for host in range(hosts.count):
                self.nodes.append(self._start(host))
            wanted = hosts.count - 1 if peers is None else peers
            wait_for(lambda: all(node.peers() == wanted for node in self.nodes), START_S, "the mesh")
        except BaseException:
            self.stop()
            raise

    def restart(self, host: int) -> None:
        """Start a node again that was killed, with what it stored."""
        self.nodes[host] = self._start(host)

    def _start(self, host: int) -> HostNode:
        home, out, log = (self._folder / f"n{host}{end}" for end in ("", ".out", ".log"))
        command = [*self._hosts.command(host), sys.executable, "-m", "converge_node", "run", "--home", str(home)]
        command += ["--json", "--listen", f"/ip4/{self._hosts.address(host)}/tcp/4001"]
        command += ["--handler", "echo=partition_work:echo@4", "--pool", "open"]
        others = [node for node in self.nodes if node.process.poll() is None]
        if others and (address := self._bootstrap(others)):
            command += ["--bootstrap", address]
        path = os.pathsep.join([str(self._folder), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, **self._settings(host)}
        with open(out, "wb") as stdout, open(log, "ab") as errors:
            process = subprocess.Popen(command, stdout=stdout, stderr=errors, env=environment)
        node = HostNode(f"n{host}", home, Client(resolve_paths(home).socket), process)

        def first_line() -> str:
            assert process.poll() is None, log.read_text()
            text = out.read_text()
            return text if text.endswith("\n") else ""

        line = wait_for(first_line, START_S, f"node {host} to start")
        node.item = msgspec.convert(json.loads(line)["data"], schema.NodeItem)
        return node

    def joined(self, pool: str) -> Overview:
        """A pool, once everybody is a member."""
        overview = Overview(pool)
        everybody = {node.id for node in self.nodes}

        def all_in() -> bool:
            lists = [overview.detail(node).member_list for node in self.nodes]
            return all({member.agent_id for member in members} == everybody for members in lists)

        overview.wait(all_in, "everybody to join", self.nodes)
        return overview

    def stop(self) -> None:
        """End every process."""
        for node in self.nodes:
            node.process.terminate()
        for node in self.nodes:
            try:
                node.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
