"""Commands about peers: ls, info, scores, add, connect, disconnect, block, unblock, forget; and ping.

Knows: the client and the schema. Must not know: HTTP, or libp2p.
"""

from __future__ import annotations

import click

from converge_node.cli.client import connect as client_of
from converge_node.cli.output import facts, show, table
from converge_node.cli.tree import SECONDS, Invocation, apply_shared, pass_invocation
from converge_p2p.client import peer_schema


@click.group
def peers() -> None:
    """Show, connect, disconnect, keep out and forget peers.

    PEER is a peer id (12D3Koo…), an address with /p2p/…, or six digits or more of the agent id of a peer that is
    connected or kept out.
    """


@peers.command("ls")
@apply_shared
@pass_invocation
def peers_list(invocation: Invocation) -> None:
    """List connected peers."""
    items = client_of(invocation).peers()
    rows = [
        (peer.peer_id, peer.agent_id[:12], peer.direction, _path(peer.relayed), " ".join(peer.addresses[:1]))
        for peer in items
    ]
    show(
        invocation,
        items,
        ids=lambda: [item.peer_id for item in items],
        text=lambda: table(("PEER", "AGENT", "DIRECTION", "PATH", "ADDRESS"), rows, empty="no peer is connected"),
    )


@peers.command("info")
@click.argument("peer")
@apply_shared
@pass_invocation
def info(invocation: Invocation, peer: str) -> None:
    """Show what is known of PEER, connected or not: addresses, pools, trust, conduct."""
    _show(invocation, client_of(invocation).peer(peer))


@peers.command("scores")
@apply_shared
@pass_invocation
def scores(invocation: Invocation) -> None:
    """List what the node thinks of its peers: trust, broken rules, and who is kept out for how long."""
    items = client_of(invocation).peer_reports()
    rows = [
        (item.peer_id, item.agent_id[:12], f"{item.trust:.2f}", str(item.violations), _standing(item)) for item in items
    ]
    columns = ("PEER", "AGENT", "TRUST", "VIOLATIONS", "STANDING")
    show(
        invocation,
        items,
        ids=lambda: [item.peer_id for item in items],
        text=lambda: table(columns, rows, empty="no peer is connected, and none is kept out"),
    )


@peers.command("add")
@click.argument("address")
@apply_shared
@pass_invocation
def add(invocation: Invocation, address: str) -> None:
    """Remember ADDRESS, with /p2p/…: it is dialled while the node has too few peers. See `bootstrap add`, too."""
    _show(invocation, client_of(invocation).add_peer(peer_schema.NamePeer(peer=address)))


@peers.command("connect")
@click.argument("peer")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=300),
    default=15.0,
    show_default=True,
    metavar="S",
    help="Seconds to try.",
)
@apply_shared
@pass_invocation
def connect(invocation: Invocation, peer: str, timeout: float) -> None:
    """Connect to PEER: at an address with /p2p/…, or at the addresses that are known of it."""
    body = peer_schema.ConnectPeer(peer=peer, timeout_s=timeout)
    _show(invocation, client_of(invocation).connect_peer(body))


@peers.command("disconnect")
@click.argument("peer")
@apply_shared
@pass_invocation
def disconnect(invocation: Invocation, peer: str) -> None:
    """Close the connections to PEER. It may come back; a bootstrap peer is dialled again at once."""
    _show(invocation, client_of(invocation).disconnect_peer(peer_schema.NamePeer(peer=peer)))


@peers.command("block")
@click.argument("peer")
@click.option("--for", "seconds", type=SECONDS, metavar="S", help="Seconds; else until unblock.")
@apply_shared
@pass_invocation
def block(invocation: Invocation, peer: str, seconds: float | None) -> None:
    """Disconnect PEER and keep it out, also after a restart. What its agent wrote in pools still counts there."""
    _show(invocation, client_of(invocation).block_peer(peer_schema.BlockPeer(peer=peer, seconds=seconds)))


@peers.command("unblock")
@click.argument("peer")
@apply_shared
@pass_invocation
def unblock(invocation: Invocation, peer: str) -> None:
    """Keep PEER out no more, whether people or its conduct had put it out."""
    _show(invocation, client_of(invocation).unblock_peer(peer_schema.NamePeer(peer=peer)))


@peers.command("forget")
@click.argument("peer")
@apply_shared
@pass_invocation
def forget(invocation: Invocation, peer: str) -> None:
    """Know no address of PEER any more. An open connection stays, and others may tell of it again."""
    _show(invocation, client_of(invocation).forget_peer(peer_schema.NamePeer(peer=peer)))


@click.command
@click.argument("peer")
@click.option(
    "--count",
    type=click.IntRange(1, peer_schema.PINGS_MAX),
    default=3,
    show_default=True,
    metavar="N",
    help="How often.",
)
@apply_shared
@pass_invocation
def ping(invocation: Invocation, peer: str, count: int) -> None:
    """Measure how long a few bytes take to PEER, which is connected, and back."""
    item = client_of(invocation).ping(peer_schema.PingPeer(peer=peer, count=count))
    lines = [f"{each:.2f} ms" for each in item.milliseconds]
    best = f"least {min(item.milliseconds):.2f} ms of {len(lines)}"
    show(invocation, item, ids=lambda: lines, text=lambda: "\n".join([*lines, best]))


def _show(invocation: Invocation, item: peer_schema.PeerReportItem) -> None:
    path = f"{item.direction}, {_path(item.relayed)}, since {item.since}" if item.connected else "not connected"
    pairs: list[tuple[str, object]] = [
        ("peer id", item.peer_id),
        ("agent id", item.agent_id),
        ("connection", path),
        *(("addresses" if not index else "", address) for index, address in enumerate(item.addresses)),
        ("pools", ", ".join(pool[:12] for pool in item.pools) or "none in common"),
        ("trust", f"{item.trust:.2f}"),
        ("violations", item.violations),
        ("standing", _standing(item)),
    ]
    show(invocation, item, ids=lambda: [item.peer_id], text=lambda: facts(pairs))


def _standing(item: peer_schema.PeerReportItem) -> str:
    if item.blocked:
        return "kept out" if item.blocked_s is None else f"kept out for {item.blocked_s:.0f} s"
    return "bootstrap peer" if item.bootstrap else "good"


def _path(relayed: bool) -> str:
    return "relay" if relayed else "direct"
