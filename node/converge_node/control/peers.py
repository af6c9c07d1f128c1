"""Peers at the control interface: what is known of them, and what people do with them.

Knows: requests and answers, and peers through `control.peer_ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

from converge_node.control import views
from converge_node.control.peer_ports import LinksLike, ReportLike
from converge_node.control.ports import NodeLike
from converge_node.control.state import Asked, Endpoint
from converge_p2p.client import peer_schema as schema
from converge_p2p.client.schema import utc_time
from converge_p2p.core.types import PeerId


def report_item(node: NodeLike, report: ReportLike) -> schema.PeerReportItem:
    """Return what is known of a peer, as the schema shows it."""
    link, out = report.connected, report.blocked_s
    common = [
        pool.id.hex()
        for pool in node.pools.values()
        if pool.ready and any(member.agent_id == report.agent_id for member in pool.members())
    ]
    return schema.PeerReportItem(
        peer_id=str(report.peer_id),
        agent_id=str(report.agent_id),
        public_key=report.public_key.hex(),
        connected=link is not None,
        addresses=[str(address) for address in report.addresses],
        trust=round(report.trust, 4),
        violations=report.violations,
        blocked=out is not None,
        blocked_s=None if out is None or math.isinf(out) else round(out, 1),
        bootstrap=report.bootstrap,
        direction="" if link is None else str(link.direction),
        relayed=link is not None and link.relayed,
        replicating=link is not None and link.replicating,
        since="" if link is None else utc_time(link.since),
        pools=common,
    )


def _report(node: NodeLike, peer: PeerId) -> schema.PeerReportItem:
    return report_item(node, node.links.report(peer))


async def reports(asked: Asked) -> list[schema.PeerReportItem]:
    """Return what is known of connected peers and of those that are kept out."""
    return [report_item(asked.node, each) for each in asked.node.links.reports()]


async def peer(asked: Asked) -> schema.PeerReportItem:
    """Return what is known of a peer. Raises as `Links.find`."""
    return _report(asked.node, asked.node.links.find(asked.places["peer"]))


async def ping(asked: Asked) -> schema.PingItem:
    """Measure the way to a peer. Raises as `Links.ping`."""
    links, body = asked.node.links, asked.body
    found = links.find(body.peer)
    report = links.report(found)
    took = await links.ping(found, body.count)
    return schema.PingItem(
        peer_id=str(found), agent_id=str(report.agent_id), milliseconds=[round(each * 1000, 3) for each in took]
    )


async def add(asked: Asked) -> schema.PeerReportItem:
    """Remember an address. Raises as `Links.learn`."""
    return _report(asked.node, asked.node.links.learn(asked.body.peer))


async def connect(asked: Asked) -> schema.PeerReportItem:
    """Connect to a peer. Raises as `Links.connect`."""
    return _report(asked.node, await asked.node.links.connect(asked.body.peer, asked.body.timeout_s))


def _to_named(act: Callable[[LinksLike, PeerId, Any], Awaitable[None]]) -> Endpoint:
    """Return an endpoint that does something to the peer of the body, and says what is known of it then.

    It raises as the method of `Links` that it calls.
    """

    async def endpoint(asked: Asked) -> schema.PeerReportItem:
        links, body = asked.node.links, asked.body
        found = links.find(body.peer)
        await act(links, found, body)
        return _report(asked.node, found)

    return endpoint


async def forget(asked: Asked) -> schema.PeerReportItem:
    """Know no address of a peer any more. Raises as `Links.forget`."""
    found = asked.node.links.find(asked.body.peer)
    asked.node.links.forget(found)
    return _report(asked.node, found)


async def bootstrap(asked: Asked) -> list[schema.BootstrapItem]:
    """Return the addresses that are dialled for ever."""
    connected = {str(each.peer_id) for each in asked.node.peers()}
    found = [(address, address.rpartition("/p2p/")[2]) for address in asked.node.links.bootstrap]
    return [schema.BootstrapItem(address=address, peer_id=name, connected=name in connected) for address, name in found]


async def topic_peers(asked: Asked) -> list[schema.TopicPeerItem]:
    """Return the connected peers that take part in a topic. Raises as `Links.topic_peers`."""
    links = asked.node.links
    found = links.topic_peers(views.topic_of(asked.query.topic))
    return [schema.TopicPeerItem(peer_id=str(each), agent_id=str(links.report(each).agent_id)) for each in found]


async def reload(asked: Asked) -> schema.ReloadItem:
    """Read the settings again. Raises `ConfigError` if anything in them is wrong; then nothing changed."""
    asked.state.running()
    return await asked.state.reload()


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "peer_reports": reports,
    "peer": peer,
    "ping": ping,
    "add_peer": add,
    "connect_peer": connect,
    "disconnect_peer": _to_named(lambda links, peer, _body: links.disconnect(peer)),
    "block_peer": _to_named(lambda links, peer, body: links.block(peer, body.seconds)),
    "unblock_peer": _to_named(lambda links, peer, _body: links.unblock(peer)),
    "forget_peer": forget,
    "bootstrap": bootstrap,
    "topic_peers": topic_peers,
    "reload": reload,
}
