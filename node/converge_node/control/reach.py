"""How the node is reached, at the control interface.

Knows: the answer, and the node through `control.ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

from converge_node.control.ports import NodeLike
from converge_p2p.client.reach_schema import ReachItem


def reach_item(node: NodeLike) -> ReachItem:
    """Return how others reach the node now."""
    reach = node.status().reach
    return ReachItem(
        reachable=str(reach.reachable),
        confirmed=list(reach.confirmed),
        relays=[str(relay) for relay in reach.relays],
        wants_relays=reach.wants_relays,
        relay_reservations=reach.relay_reservations,
        relay_circuits=reach.relay_circuits,
        link_peers=reach.link_peers,
        link_trouble=reach.link_trouble,
    )
