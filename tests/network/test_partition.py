"""Real hosts that lose each other: five namespaces, and the cable between some and the others is pulled and plugged in.

The side that has a quorum settles, the other keeps taking submissions and says that it cannot decide. Afterwards
everybody holds the same, and no task was settled twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_cluster import Cluster
from namespaces import Hosts
from processes import run_command

pytestmark = [pytest.mark.network, pytest.mark.namespaces]


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    left, right = request.param
    with Hosts(left, right) as hosts:
        yield hosts


@pytest.fixture
def cluster(hosts: Hosts, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(hosts, tmp_path)
    try:
        yield cluster
    finally:
        cluster.stop()


def electors_of(cluster: Cluster) -> list[str]:
    """Everybody is an elector."""
    return [part for node in cluster.nodes for part in ("--elector", node.id)]


@pytest.mark.parametrize("hosts", [(3, 2)], indirect=True)
def test_a_partition_three_to_two_settles_on_one_side_and_heals(hosts: Hosts, cluster: Cluster) -> None:
    nodes = cluster.nodes
    terms = ("--governance", "democratic", *electors_of(cluster), "--task-type", "echo")
    overview = cluster.joined(run_command(nodes[0], "pool", "create", "split", *terms))
    before = overview.submit(nodes[0], "before")
    overview.wait_settled([before], nodes)
    hosts.cut()
    majority = [overview.submit(nodes[0], f"left{number}") for number in range(10)]
    minority = [overview.submit(nodes[4], f"right{number}") for number in range(10)]
    overview.wait_settled(majority, nodes[:3])
    # nobody tells either side that the cable was pulled; the minority finds out by the silence
    overview.wait(lambda: all(overview.detail(node).has_quorum is False for node in nodes[3:]), "no quorum", nodes)
    assert overview.detail(nodes[0]).has_quorum
    assert not overview.settled(nodes[4]).keys() & set(minority)
    minority.append(overview.submit(nodes[3], "taken without a quorum"))
    hosts.heal()
    healed = time.monotonic()
    overview.wait_settled([before, *majority, *minority], nodes)
    overview.wait_equal(nodes)
    # shown by -rP; no condition, for the machine is shared
    print(f"from the cable to equal frontiers and all tasks settled: {time.monotonic() - healed:.1f} s")
    overview.check_settled_once(nodes)
    overview.wait(lambda: all(overview.detail(node).has_quorum for node in nodes), "a quorum everywhere", nodes)


@pytest.mark.parametrize("hosts", [(1, 4)], indirect=True)
def test_the_successor_and_the_witnesses_go_on_without_the_leader(hosts: Hosts, cluster: Cluster) -> None:
    nodes = cluster.nodes
    leader, successor, *_ = nodes
    others = nodes[1:]
    who = ("--leader", leader.id, "--successor", successor.id, *electors_of(cluster))
    terms = ("--governance", "dictatorial", *who, "--task-type", "echo", "--claim-ttl", "20")
    overview = cluster.joined(run_command(leader, "pool", "create", "led", *terms))
    before = [overview.submit(nodes[number], f"before{number}") for number in (0, 2)]
    overview.wait_settled(before, nodes)
    hosts.cut()
    # the leader alone decides nothing: it says so once it finds out, and takes what is submitted
    lonely = [overview.submit(leader, f"at the leader{number}") for number in range(5)]
    led = [overview.submit(nodes[3], f"at a witness{number}") for number in range(10)]
    overview.wait_settled(led, others)
    overview.wait(lambda: overview.detail(leader).has_quorum is False, "the leader to know that it is alone", nodes)
    assert overview.detail(successor).has_quorum
    lonely.append(overview.submit(leader, "taken without a quorum"))
    assert not overview.settled(leader).keys() & set(lonely)
    leader.kill()
    while_dead = [overview.submit(nodes[4], f"while the leader is dead{number}") for number in range(5)]
    overview.wait_settled(while_dead, others)
    assert not any(task in overview.tasks(successor) for task in lonely)
    # the cable is back before the leader is: what it acknowledged alone is in its store only
    hosts.heal()
    cluster.restart(0)
    nodes, healed = cluster.nodes, time.monotonic()
    overview.wait_settled([*before, *lonely, *led, *while_dead], nodes)
    overview.wait_equal(nodes)
    print(f"from the leader's return to equal frontiers and all tasks settled: {time.monotonic() - healed:.1f} s")
    overview.check_settled_once(nodes)
    assert overview.settled(leader).keys() == {*before, *lonely, *led, *while_dead}
    overview.wait(lambda: all(overview.detail(node).has_quorum for node in nodes), "a quorum everywhere", nodes)
