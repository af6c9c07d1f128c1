"""Commands about networks and topics: mesh new, ls, invite, rotate; topic new-key, ls, join, leave, peers, pub; join.

Knows: the client, the schema, and key files. Must not know: HTTP, or libp2p.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from converge_node.cli.client import connect, url_of
from converge_node.cli.output import clean, facts, short, show, table
from converge_node.cli.tree import SECONDS, Invocation, apply_shared, pass_invocation
from converge_node.errors import NodeUnreachable, Refused, UsageError
from converge_p2p.client import mesh_schema as schema
from converge_p2p.client.queries import TopicQuery

VALID_S = 7 * 24 * 3600.0
"""How long an invitation is good if nothing is said."""


@click.group
def mesh() -> None:
    """Make private networks, and invite others to a network."""


@mesh.command("new")
@click.argument("file", type=click.Path(path_type=Path))
@apply_shared
@pass_invocation
def mesh_new(invocation: Invocation, file: Path) -> None:
    """Write the key of a new private network to FILE, as go-libp2p and js-libp2p read it (swarm.key)."""
    from converge_node.key_files import new_network_key, write_key_file

    invocation.about_to(f"write the key of a new private network to {file}")
    key = new_network_key()
    write_key_file(file, key.to_file())
    data = {"file": str(file), "network": key.network.hex()}
    start = f"converge-node run --mesh {file}"
    show(invocation, data, ids=lambda: [data["network"]], text=lambda: facts([*data.items(), ("start", start)]))


@mesh.command("ls")
@apply_shared
@pass_invocation
def mesh_ls(invocation: Invocation) -> None:
    """Show the network the node is in, and its topics."""
    item = connect(invocation).mesh()
    pairs = [("network", item.network or "public")]
    if item.accepts:
        pairs.append(("accepts", f"{item.accepts}, {item.accepted_connections} connections came with that key"))
    show(
        invocation,
        item,
        ids=lambda: [item.network] if item.network else [],
        text=lambda: facts(pairs) + "\n\n" + _topics_text(item.topics),
    )


@mesh.command("invite")
@click.option("--pool", default="", metavar="POOL", help="A pool to become a member of.")
@click.option(
    "--topic", "topics", multiple=True, metavar="T", help="A topic to take part in, with its key. Repeatable."
)
@click.option("--for", "agent", default="", metavar="AGENT", help="The only agent that may use it for the pool.")
@click.option(
    "--uses", type=click.IntRange(1), default=1, show_default=True, help="How many agents it lets into the pool."
)
@click.option("--any-number", is_flag=True, help="Let whoever holds it into the pool, also while this node is down.")
@click.option("--approval", is_flag=True, help="Let nobody into the pool by itself: its electors are asked.")
@click.option("--role", default="worker", show_default=True, help="What the newcomer is meant to be; for people.")
@click.option("--epochs", type=click.IntRange(0), default=0, metavar="N", help="How many epochs longer it is good.")
@click.option("--valid", type=float, default=VALID_S, show_default=True, metavar="S", help="Seconds until it expires.")
@apply_shared
@pass_invocation
def mesh_invite(invocation: Invocation, /, *, uses: int, any_number: bool, valid: float, **what: Any) -> None:
    """Print an invitation: one line for `converge-node join`. It holds secrets: hand it over in private."""
    what["topics"] = list(what["topics"])
    body = schema.WriteInvitation(uses=None if any_number else uses, valid_s=valid, **what)
    item = connect(invocation).write_invitation(body)
    show(invocation, item, ids=lambda: [item.text], text=lambda: item.text)


@click.command("join")
@click.argument("line")
@click.option("--capability", "capabilities", multiple=True, metavar="C", help="What this node can do. Repeatable.")
@click.option("--timeout", type=float, default=30.0, show_default=True, metavar="S", help="Seconds to find a member.")
@apply_shared
@pass_invocation
def join(invocation: Invocation, line: str, *, capabilities: tuple[str, ...], timeout: float) -> None:
    """Follow an invitation: LINE as `mesh invite` printed it, or - to read it from standard input.

    If no node runs in this home, the next one that starts there follows it, in the network that it leads to.
    """
    from converge_node.config import load_settings
    from converge_node.control.mesh import followed_item
    from converge_node.followed import enter_network, keep
    from converge_p2p.core.governance.invitation_line import InvitationLine

    text = sys.stdin.read() if line == "-" else line
    read = InvitationLine.from_text(text)
    body = schema.FollowInvitation(text=read.to_text(), capabilities=list(capabilities), timeout_s=timeout)
    paths, far = invocation.paths(), url_of(invocation) is not None
    try:
        item = connect(invocation).follow(body)
    except NodeUnreachable:
        if far:
            raise
        import time

        read.check_for(read.network_key, int(time.time() * 1000))
        invocation.about_to(f"keep the invitation for the next start of the node in {paths.state_dir}")
        paths.create()
        enter_network(paths, read, load_settings(paths.config_file).config.network.psk_file)
        item = followed_item(read, running=False)
    if not far:
        keep(paths, read)
    home = f" --home {invocation.home}" if invocation.home else ""
    pairs: list[tuple[str, object]] = [
        ("invited by", item.issuer),
        ("role", item.role),
        ("topics", ", ".join(topic.topic for topic in item.topics) or "none"),
        ("pool", item.pool or "none"),
        ("state", _joined(item) if item.running else f"kept for the next start: converge-node{home}"),
    ]
    show(invocation, item, ids=lambda: [item.pool] if item.pool else [], text=lambda: facts(pairs))


def _joined(item: schema.FollowedItem) -> str:
    return "waits for the pool's electors: `converge-node pool joins`" if item.pending else "joined"


mesh.add_command(join)


@mesh.command("rotate")
@click.argument("file", type=click.Path(path_type=Path))
@apply_shared
@pass_invocation
def mesh_rotate(invocation: Invocation, file: Path) -> None:
    """Write the key of a new private network to FILE, and name it in the settings, for the node's next start.

    A node speaks only to those with the same key: copy FILE to every node of the network that shall stay in it, set
    `network.psk_file` there too (`config set`), and start all again. Whoever has the old key only stays outside.
    """
    from converge_node.config_change import changed_file, write_settings
    from converge_node.key_files import new_network_key, write_key_file

    if url_of(invocation) is not None:
        raise UsageError("the settings of a node elsewhere cannot be changed from here", hint="run it on its machine")
    paths = invocation.paths()
    place = str(file.absolute())
    new = changed_file(paths.config_file, "network.psk_file", place)
    invocation.about_to(f"write the key of a new private network to {file}, and name it in {paths.config_file}")
    key = new_network_key()
    write_key_file(file, key.to_file())
    paths.create()
    write_settings(paths.config_file, new)
    data = {"file": place, "network": key.network.hex(), "settings": str(paths.config_file)}
    next_step = "copy the file to the other nodes, set network.psk_file there, and start all of them again"
    show(invocation, data, ids=lambda: [data["network"]], text=lambda: facts([*data.items(), ("next", next_step)]))


@click.group
def topic() -> None:
    """Take part in topics, public or private."""


@topic.command("new-key")
@click.argument("file", type=click.Path(path_type=Path))
@apply_shared
@pass_invocation
def topic_new_key(invocation: Invocation, file: Path) -> None:
    """Write the key of a new private topic to FILE, for its members."""
    from converge_node.key_files import new_topic_key, write_key_file

    invocation.about_to(f"write the key of a new topic to {file}")
    write_key_file(file, new_topic_key().to_file())
    show(invocation, {"file": str(file)}, ids=lambda: [str(file)], text=lambda: facts([("file", file)]))


@topic.command("ls")
@apply_shared
@pass_invocation
def topic_ls(invocation: Invocation) -> None:
    """List the topics that the node takes part in."""
    items = connect(invocation).mesh().topics
    show(invocation, items, ids=lambda: [item.topic for item in items], text=lambda: _topics_text(items))


@topic.command("join")
@click.argument("name", metavar="TOPIC")
@click.option("--key-file", type=click.Path(path_type=Path), metavar="FILE", help="The key of a private topic.")
@apply_shared
@pass_invocation
def topic_join(invocation: Invocation, name: str, key_file: Path | None) -> None:
    """Take part in TOPIC until the node ends; `node.topics` and `node.private_topics` of the settings are for ever."""
    from converge_node.key_files import read_topic_key

    key = "" if key_file is None else read_topic_key(key_file).secret.hex()
    body = schema.JoinTopic(topic=name, key=key)
    item = connect(invocation).join_topic(body)
    show(invocation, item, ids=lambda: [item.topic], text=lambda: _topics_text([item]))


@topic.command("leave")
@click.argument("name", metavar="TOPIC")
@apply_shared
@pass_invocation
def topic_leave(invocation: Invocation, name: str) -> None:
    """Take part in TOPIC no more."""
    body = schema.LeaveTopic(topic=name)
    items = connect(invocation).leave_topic(body)
    show(invocation, items, ids=lambda: [item.topic for item in items], text=lambda: _topics_text(items))


@topic.command("peers")
@click.argument("name", metavar="TOPIC")
@apply_shared
@pass_invocation
def topic_peers(invocation: Invocation, name: str) -> None:
    """List the connected peers that take part in TOPIC, as far as the node may know."""
    items = connect(invocation).topic_peers(TopicQuery(topic=name))
    rows = [(item.peer_id, item.agent_id) for item in items]
    show(
        invocation,
        items,
        ids=lambda: [item.peer_id for item in items],
        text=lambda: table(("PEER", "AGENT"), rows, empty="no connected peer takes part"),
    )


@topic.command("pub")
@click.argument("name", metavar="TOPIC")
@click.argument("payload")
@apply_shared
@pass_invocation
def topic_pub(invocation: Invocation, name: str, payload: str) -> None:
    """Say PAYLOAD, a JSON value, to everybody who takes part in TOPIC. Whether anybody hears it is not known."""
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise UsageError(f"the payload is not JSON: {error}", hint="write text as '\"text\"'") from error
    body = schema.PublishOnTopic(topic=name, payload=value)
    said = connect(invocation).publish(body)
    show(invocation, said, ids=list, text=lambda: facts([("published on", said.topic)]))


@topic.command("sub")
@click.argument("name", metavar="TOPIC")
@click.option("--timeout", type=SECONDS, metavar="S", help="Seconds to listen.")
@apply_shared
@pass_invocation
def topic_sub(invocation: Invocation, name: str, timeout: float | None) -> None:
    """Show what is said on TOPIC from now on, one JSON value a line. The node must take part in it."""
    query = TopicQuery(topic=name, timeout_s=timeout)
    try:
        for item in connect(invocation).watch_topic(query):
            _print_heard(invocation, item)
    except Refused as ended:
        if ended.code != "timeout":
            raise


def _print_heard(invocation: Invocation, item: schema.HeardItem) -> None:
    said = f"{short(item.sender)} {json.dumps(item.payload)}"
    show(invocation, item, ids=lambda: [item.id], text=lambda: clean(said))
    sys.stdout.flush()


def _topics_text(items: list[schema.TopicItem]) -> str:
    rows = [(item.topic, "private" if item.private else "public") for item in items]
    return table(("TOPIC", "KIND"), rows, empty="the node takes part in no topic")
