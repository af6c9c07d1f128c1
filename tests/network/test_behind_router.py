"""Hosts that cannot be dialled, and hosts that move: namespaces, some of them behind a router that translates.

What is shown is the whole way: a node behind a router reserves a place at a relay and tells others, they connect
through it, and tasks settle between electors that have no other path to each other.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from host_cluster import Cluster, HostNode
from processes import Overview, run_command
from routed_hosts import RoutedHosts

from converge_node.demo.mesh import wait_for

pytestmark = [pytest.mark.network, pytest.mark.namespaces]

RELAY = 0
PREFIX = "CONVERGE_NODE_NETWORK__"


def circuits_of(node: HostNode) -> list[str]:
    """The addresses of a node through relays."""
    return [address for address in node.found_at() if "/p2p-circuit/" in address]


def a_circuit_of(node: HostNode) -> str:
    """Such an address, once there is one."""
    return wait_for(lambda: circuits_of(node), 60, f"{node.name} to have a place at a relay")[0]


def pool_across(cluster: Cluster, *electors: HostNode) -> Overview:
    """A pool in which these nodes have to agree."""
    who = [part for node in electors for part in ("--elector", node.id)]
    return cluster.joined(
        run_command(electors[0], "pool", "create", "across", "--governance", "democratic", *who, "--task-type", "echo")
    )


def settle_some(overview: Overview, nodes: list[HostNode], key: str) -> None:
    """Submit a task at every node, and wait until all have settled at all of them, once."""
    overview.wait_settled([overview.submit(node, f"{key}, from {node.name}") for node in nodes], nodes)
    overview.wait_equal(nodes)
    overview.check_settled_once(nodes)


def test_a_host_behind_a_router_is_dialled_through_a_relay_and_tasks_settle(tmp_path: Path) -> None:
    hidden_host, visitor_host = 1, 2

    def settings(host: int) -> dict[str, str]:
        # the others find out by themselves that nobody can dial them; here they stay at the relay
        return {f"{PREFIX}RELAY_SERVICE": "true"} if host == RELAY else {f"{PREFIX}HOLE_PUNCH": "false"}

    def bootstrap(running: list[HostNode]) -> str:
        # the visitor knows nothing but the hidden node's address through the relay
        return running[RELAY].found_at()[0] if len(running) == hidden_host else a_circuit_of(running[hidden_host])

    with RoutedHosts("public", "hidden", "public") as hosts:
        cluster = Cluster(hosts, tmp_path, settings=settings, bootstrap=bootstrap)
        try:
            relay, hidden, visitor = nodes = cluster.nodes
            # the ground is what it is said to be: nobody can dial the host, neither where it is nor where it is seen
            assert not hosts.can_connect(visitor_host, hosts.address(hidden_host), 4001)
            assert not hosts.can_connect(visitor_host, hosts.seen_address(hidden_host), 4001)
            assert hosts.can_connect(hidden_host, hosts.address(visitor_host), 4001)
            assert visitor.counter("circuits_dialled") == hidden.counter("circuits_accepted") == 1
            assert relay.counter("relay_circuits_opened") == 1
            settle_some(pool_across(cluster, visitor, hidden), nodes, "hello")
            # and everybody knows how things stand
            reach = [node.client.reach() for node in nodes]
            assert [item.reachable for item in reach] == ["yes", "no", "yes"]
            assert relay.item is not None
            assert [item.relays for item in reach] == [[], [relay.item.peer_id], []]
            assert reach[RELAY].relay_reservations == 1
            # nothing failed, so that nothing is named
            assert [run_command(node, "doctor") for node in nodes] == ["", "", ""]
        finally:
            cluster.stop()


def test_two_hosts_behind_routers_of_their_own_work_together_through_a_relay(tmp_path: Path) -> None:
    def settings(host: int) -> dict[str, str]:
        # the others find out by themselves that nobody can dial them; here they stay at the relay
        return {f"{PREFIX}RELAY_SERVICE": "true"} if host == RELAY else {f"{PREFIX}HOLE_PUNCH": "false"}

    with RoutedHosts("public", "hidden", "hidden") as hosts:
        cluster = Cluster(hosts, tmp_path, settings=settings)
        try:
            relay, one, other = nodes = cluster.nodes
            assert other.item is not None
            # both have the same private address in a network of their own, so that there is no other path
            assert {peer.peer_id: peer.relayed for peer in one.peer_list()}[other.item.peer_id]
            settle_some(pool_across(cluster, one, other), nodes, "hello")
            before = relay.counter("relay_circuits_opened")
            # the relay dies and comes back: both return to it, and to each other
            relay.kill()
            cluster.restart(RELAY)
            nodes = cluster.nodes
            wait_for(lambda: all(node.peers() == 2 for node in nodes), 120, "the mesh to come back")
            assert cluster.nodes[RELAY].counter("relay_circuits_opened") >= 1 <= before
        finally:
            cluster.stop()


def test_a_host_that_starts_again_under_another_address_is_found_again(tmp_path: Path) -> None:
    mover = 1
    with RoutedHosts("public", "public", "public") as hosts:
        cluster = Cluster(hosts, tmp_path)
        try:
            overview = pool_across(cluster, *cluster.nodes)
            settle_some(overview, cluster.nodes, "before")
            old = hosts.address(mover)
            cluster.nodes[mover].kill()
            hosts.move(mover, 77)
            cluster.restart(mover)
            nodes = cluster.nodes
            moved = nodes[mover].item
            assert moved is not None
            settle_some(overview, nodes, "after")
            for other in (nodes[0], nodes[2]):
                at = {peer.peer_id: peer.addresses for peer in other.peer_list()}[moved.peer_id]
                assert any(hosts.address(mover) in text for text in at)
            # its own neighbours are told where it is now, and nobody is told where it was
            assert not any(f"/{old}/" in text for text in nodes[mover].found_at())
        finally:
            cluster.stop()


def test_two_hosts_behind_routers_connect_directly_and_go_on_without_the_relay(tmp_path: Path) -> None:
    def settings(host: int) -> dict[str, str]:
        return {f"{PREFIX}RELAY_SERVICE": "true"} if host == RELAY else {}

    with RoutedHosts("public", "hidden", "hidden") as hosts:
        cluster = Cluster(hosts, tmp_path, settings=settings)
        try:
            relay, one, other = cluster.nodes
            pair = [one, other]

            def direct() -> bool:
                ids = [node.item.peer_id for node in pair if node.item is not None]
                return all(
                    not peer.relayed for node in pair for peer in node.peer_list() if peer.peer_id in ids
                ) and all(node.peers() == 2 for node in pair)

            wait_for(direct, 60, "a direct connection")
            assert one.counter("punches_succeeded") + other.counter("punches_succeeded") >= 1
            overview = pool_across(cluster, one, other)
            settle_some(overview, cluster.nodes, "with the relay")
            relay.kill()
            tasks = [overview.submit(node, f"without the relay, from {node.name}") for node in pair]
            overview.wait_settled(tasks, pair)
            overview.check_settled_once(pair)
        finally:
            cluster.stop()
