"""Commands about the node itself: id, status, health, peers, shutdown, version.

Knows: the client and the schema. Must not know: pools and tasks beyond their counts.
"""

from __future__ import annotations

import click

from converge_node.cli.client import connect
from converge_node.cli.output import clean, facts, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import ExitCode
from converge_p2p.client import schema


@click.command("id")
@apply_shared
@pass_invocation
def id_command(invocation: Invocation) -> None:
    """Show who the node is, where it listens, and how the next node finds it."""
    node = connect(invocation).node()
    show(invocation, node, ids=lambda: [node.id], text=lambda: facts(_node_facts(node)))


@click.command
@apply_shared
@pass_invocation
def status(invocation: Invocation) -> None:
    """Show the node at a glance."""
    item = connect(invocation).status()

    def text() -> str:
        from converge_node.cli.pool import pool_table

        pairs = [
            *_node_facts(item.node),
            ("started", f"{item.started_at} ({item.uptime_s:.0f} s ago)"),
            ("peers", item.peers),
            *((f"count {name}", count) for name, count in sorted(item.counters.items()) if count),
        ]
        return facts(pairs) + "\n\n" + pool_table(item.pools)

    show(invocation, item, ids=lambda: [item.node.id], text=text)


@click.command
@click.option("--ready", is_flag=True, help="Fail unless the node takes requests: not while it starts or stops.")
@apply_shared
@pass_invocation
def health(invocation: Invocation, ready: bool) -> int:
    """Say whether the node does its work, and what is wrong.

    Exit code 0 if it does, 1 if it does not, 4 if none answers; with --ready 1 as well if it takes no requests.
    """
    client = connect(invocation)
    item = client.ready() if ready else client.health()
    good = item.ready if ready else item.healthy
    word = "ready" if item.ready else "not ready"
    reasons = [
        f"{'fails' if each.fatal else 'note':<6} {each.what}: {each.text}" + (f" -> {each.hint}" if each.hint else "")
        for each in item.reasons
    ]
    text = "\n".join([f"{word}: {item.stage}", *map(clean, reasons)])
    show(invocation, item, ids=lambda: [each.what for each in item.reasons if each.fatal], text=lambda: text)
    return ExitCode.OK if good else ExitCode.FAILURE


@click.group
def peers() -> None:
    """Show connected peers."""


@peers.command("ls")
@apply_shared
@pass_invocation
def peers_list(invocation: Invocation) -> None:
    """List connected peers."""
    items = connect(invocation).peers()
    rows = [
        (peer.peer_id, peer.agent_id[:12], peer.direction, _path(peer), " ".join(peer.addresses[:1])) for peer in items
    ]
    show(
        invocation,
        items,
        ids=lambda: [item.peer_id for item in items],
        text=lambda: table(("PEER", "AGENT", "DIRECTION", "PATH", "ADDRESS"), rows, empty="no peer is connected"),
    )


@click.command
@apply_shared
@pass_invocation
def shutdown(invocation: Invocation) -> None:
    """Stop the running node: it hands back claims, leaves its peers and flushes its stores."""
    item = connect(invocation).shutdown()
    show(invocation, item, ids=list, text=lambda: "stopping")


@click.command
@apply_shared
@pass_invocation
def version(invocation: Invocation) -> None:
    """Show the version."""
    from converge_p2p import __version__

    data = {"version": __version__, "api": schema.VERSION}
    show(invocation, data, ids=lambda: [__version__], text=lambda: f"converge-node {__version__}")


def _path(peer: schema.PeerItem) -> str:
    return "relay" if peer.relayed else "direct"


def _node_facts(node: schema.NodeItem) -> list[tuple[str, object]]:
    listening = [("listening" if not index else "", address) for index, address in enumerate(node.addresses)]
    return [
        ("agent id", node.id),
        ("public key", node.public_key),
        ("peer id", node.peer_id),
        *listening,
        ("home", node.home),
        ("version", node.version),
        ("next node", node.next_command),
    ]
