"""Who is linked with whom: connections, and among these the gossip mesh.

Knows: how many of each a node wants. Must not know: what is sent over them.
Source: `net.bootstrap` (a node dials until it has `peers_wanted` connections), and the degrees of `net.gossip`. Nobody
knows the whole network, so whom a node knows of is taken to be random.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from converge_node.sim.plan import DEGREE_MAX, Plan


@dataclass(frozen=True, slots=True)
class Graph:
    """Neighbours of each node, in ascending order.

    Attributes:
        links: by connection.
        mesh: those of the gossip mesh, both directions; all messages go to these at once.
        lazy: the other links; these are told later which messages there were.
        latency: of each link, milliseconds, in the order of `links`.
    """

    links: tuple[tuple[int, ...], ...]
    mesh: tuple[tuple[int, ...], ...]
    lazy: tuple[tuple[int, ...], ...]
    latency: tuple[dict[int, int], ...]


def draw_graph(plan: Plan, rng: random.Random) -> Graph:
    """Draw a connected graph."""
    links = _linked(plan.nodes, min(plan.links, plan.nodes - 1), rng)
    mesh: list[set[int]] = [set() for _ in range(plan.nodes)]
    for node in range(plan.nodes):
        for other in rng.sample(sorted(links[node]), len(links[node])):
            if len(mesh[node]) >= plan.degree:
                break
            if len(mesh[other]) < DEGREE_MAX:
                mesh[node].add(other)
                mesh[other].add(node)
    latency: list[dict[int, int]] = [{} for _ in range(plan.nodes)]
    for node in range(plan.nodes):
        for other in sorted(links[node]):
            if other > node:
                latency[node][other] = latency[other][node] = rng.randint(*plan.latency_ms)
    return Graph(
        tuple(tuple(sorted(each)) for each in links),
        tuple(tuple(sorted(each)) for each in mesh),
        tuple(tuple(sorted(links[node] - mesh[node])) for node in range(plan.nodes)),
        tuple(latency),
    )


def _linked(nodes: int, wanted: int, rng: random.Random) -> list[set[int]]:
    links: list[set[int]] = [set() for _ in range(nodes)]
    for node in range(1, nodes):
        # whoever comes is let in by somebody who is there, so that nobody is left alone
        _link(links, node, rng.randrange(node))
    for node in range(nodes):
        while len(links[node]) < wanted:
            other = rng.randrange(nodes)
            if other != node:
                _link(links, node, other)
    return links


def _link(links: list[set[int]], one: int, other: int) -> None:
    links[one].add(other)
    links[other].add(one)
