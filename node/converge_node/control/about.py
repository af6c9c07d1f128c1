"""The node itself at the control interface: who it is, whom it knows, and its end.

Knows: requests and answers. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Final

from converge_node.control import views
from converge_node.control.reach import reach_item
from converge_node.control.state import Asked, Endpoint, node_item
from converge_p2p.client import schema
from converge_p2p.client.reach_schema import ReachItem


async def node(asked: Asked) -> schema.NodeItem:
    """Say who the node is."""
    return node_item(asked.state)


async def status(asked: Asked) -> schema.StatusItem:
    """Return the node at a glance."""
    state, running = asked.state, asked.node
    known = running.status()
    return schema.StatusItem(
        node=node_item(state),
        ready=state.ready,
        started_at=schema.utc_time(state.started_at_s),
        uptime_s=round(known.uptime_s, 3),
        peers=len(running.peers()),
        pools=[views.pool_item(pool) for pool in running.pools.values()],
        counters={
            **known.counters,
            "control_requests_refused": state.refused,
            "control_tokens_refused": state.tokens_refused,
        },
    )


async def peers(asked: Asked) -> list[schema.PeerItem]:
    """Return connected peers."""
    return [views.peer_item(peer) for peer in asked.node.peers()]


async def reach(asked: Asked) -> ReachItem:
    """Return how others reach the node."""
    return reach_item(asked.node)


async def shutdown(asked: Asked) -> schema.ShutdownItem:
    """Begin the shutdown."""
    asked.state.request_stop()
    return schema.ShutdownItem(stopping=True)


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "node": node,
    "status": status,
    "peers": peers,
    "reach": reach,
    "shutdown": shutdown,
}
