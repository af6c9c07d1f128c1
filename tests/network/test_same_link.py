"""Two hosts at one switch that were told nothing of each other: namespaces, no bootstrap peer, multicast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from host_cluster import Cluster
from namespaces import Hosts
from processes import run_command

from converge_node.demo.mesh import wait_for
from converge_p2p.core.model.network_key import NetworkKey

pytestmark = [pytest.mark.network, pytest.mark.namespaces]

MDNS = "CONVERGE_NODE_NETWORK__MDNS"
PSK = "CONVERGE_NODE_NETWORK__PSK_FILE"


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with Hosts(request.param, 0) as hosts:
        yield hosts


def nobody(_running: object) -> str:
    """No bootstrap peer."""
    return ""


@pytest.mark.parametrize("hosts", [2], indirect=True)
def test_two_hosts_on_one_link_find_each_other_and_settle_a_task(hosts: Hosts, tmp_path: Path) -> None:
    cluster = Cluster(hosts, tmp_path, settings=lambda _host: {MDNS: "true"}, bootstrap=nobody)
    try:
        one, other = nodes = cluster.nodes
        who = ("--elector", one.id, "--elector", other.id)
        terms = ("--governance", "democratic", *who, "--task-type", "echo")
        overview = cluster.joined(run_command(one, "pool", "create", "link", *terms))
        overview.wait_settled([overview.submit(node, node.name) for node in nodes], nodes)
        # a host that starts again is found again, by who is there
        other.kill()
        cluster.restart(1)
        wait_for(lambda: all(node.peers() == 1 for node in cluster.nodes), 60, "the link to be back")
    finally:
        cluster.stop()


@pytest.mark.parametrize("hosts", [4], indirect=True)
def test_each_network_on_a_link_finds_its_own_hosts_alone(hosts: Hosts, tmp_path: Path) -> None:
    key_file = tmp_path / "swarm.key"
    key_file.write_bytes(NetworkKey(bytes(range(32))).to_file())

    def settings(host: int) -> dict[str, str]:
        return {MDNS: "true"} | ({PSK: str(key_file)} if host >= 2 else {})

    cluster = Cluster(hosts, tmp_path, settings=settings, bootstrap=nobody, peers=1)
    try:
        found = [{peer.peer_id for peer in node.peer_list()} for node in cluster.nodes]
        ids = [node.item.peer_id for node in cluster.nodes if node.item is not None]
        assert found == [{ids[1]}, {ids[0]}, {ids[3]}, {ids[2]}]
        # not one of them even tried: what the others say means nothing to it
        assert all(node.counter("strangers_refused") == 0 for node in cluster.nodes)
    finally:
        cluster.stop()
