"""Commands about agents: publish, revoke, ls, find, show.

Knows: the client and the schema. Must not know: how agents are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from converge_node.cli.client import connect
from converge_node.cli.output import facts, short, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_p2p.client import agent_schema as schema
from converge_p2p.client.queries import AgentQuery, RecordQuery
from converge_p2p.core.errors import NotFound


@click.group
def agent() -> None:
    """Publish this agent, and find others by what they can do."""


@agent.command("publish")
@click.option("--capability", "capabilities", multiple=True, metavar="NAME[@M.N][:COST]", help="Repeatable.")
@click.option("--topic", "topics", multiple=True, metavar="T", help="A topic it is about. Repeatable.")
@click.option("--name", default="", metavar="TEXT", help="For people; anybody can take any name.")
@apply_shared
@pass_invocation
def publish(invocation: Invocation, capabilities: tuple[str, ...], topics: tuple[str, ...], name: str) -> None:
    """Let this node's agent be found, also after a restart, in place of what was published before.

    \b
    converge-node agent publish --capability translate@1.2:5 --topic acme/text
    """
    body = schema.PublishAgent(name=name, topics=list(topics), capabilities=list(capabilities))
    item = connect(invocation).publish_agent(body)
    show(invocation, item, ids=lambda: [item.id], text=lambda: _agent_text(item))


@agent.command("revoke")
@apply_shared
@pass_invocation
def revoke(invocation: Invocation) -> None:
    """Take back what was published. Everybody is told."""
    item = connect(invocation).revoke_agent()
    show(invocation, item, ids=list, text=lambda: "revoked" if item.revoked else "nothing was published")


@agent.command("ls")
@click.option("--limit", type=int, default=100, show_default=True, metavar="N", help="How many at most.")
@apply_shared
@pass_invocation
def list_agents(invocation: Invocation, limit: int) -> None:
    """List agents that are known here."""
    items = connect(invocation).agents(AgentQuery(limit=limit))
    _show_all(invocation, items, empty="no agent is known here")


@agent.command("find")
@click.option("--capability", "capabilities", multiple=True, metavar="NAME[@M.N[-M.N]][:COST]", help="Repeatable.")
@click.option("--topic", "topics", multiple=True, metavar="T", help="A topic they are about. Repeatable.")
@click.option("--trust", "trust_threshold", type=float, default=0.0, metavar="0..1", help="The least trust in them.")
@click.option("--trust-context", default="", metavar="TEXT", help="What the trust is for.")
@click.option("--limit", type=int, default=100, show_default=True, metavar="N", help="How many at most.")
@click.option("--refresh", is_flag=True, help="Ask the hash table, even if somebody is known here.")
@apply_shared
@pass_invocation
def find(
    invocation: Invocation,
    /,
    capabilities: tuple[str, ...],
    topics: tuple[str, ...],
    *,
    trust_threshold: float,
    trust_context: str,
    limit: int,
    refresh: bool,
) -> None:
    """Find agents that can do all this, the cheapest first.

    A version is the least one of its major version; with a second one, everything from the first to below the second.

    \b
    converge-node agent find --capability translate@1.2:10
    converge-node agent find --capability translate@1.2-3.0 --topic acme/text --trust 0.6
    """
    body = schema.FindAgents(
        topics=list(topics),
        capabilities=list(capabilities),
        trust_threshold=trust_threshold,
        trust_context=trust_context,
        limit=limit,
        refresh=refresh,
    )
    _show_all(invocation, connect(invocation).find_agents(body))


@agent.command("show")
@click.argument("reference", metavar="AGENT")
@apply_shared
@pass_invocation
def show_agent(invocation: Invocation, reference: str) -> None:
    """Show what an agent says of itself, the newest that can be found."""
    item = connect(invocation).agent(reference)
    show(invocation, item, ids=lambda: [item.id], text=lambda: _agent_text(item))


@agent.command("hosted")
@apply_shared
@pass_invocation
def hosted(invocation: Invocation) -> None:
    """List the agents that this node hosts, with what they are doing."""
    items = connect(invocation).hosted()
    rows = [
        (item.name, item.kind, item.state, "yes" if item.ok else "no", item.turns, item.claims, item.inbox,
         item.last_error)
        for item in items
    ]  # fmt: skip
    columns = ("NAME", "CLASS", "STATE", "OK", "TURNS", "CLAIMS", "INBOX", "LAST ERROR")
    show(
        invocation,
        items,
        ids=lambda: [item.name for item in items],
        text=lambda: table(columns, rows, empty="no agent is hosted here"),
    )


@agent.command("checkpoints")
@apply_shared
@pass_invocation
def checkpoints(invocation: Invocation) -> None:
    """List the newest checkpoint of each agent that ran here: how far it was, and what it wanted to have noted."""
    items = connect(invocation).checkpoints()
    rows = [
        (item.agent, item.at, item.turns, item.failures, "yes" if item.running else "no",
         "" if item.state is None else msgspec.json.encode(item.state).decode()[:80])
        for item in items
    ]  # fmt: skip
    show(
        invocation,
        items,
        ids=lambda: [item.agent for item in items],
        text=lambda: table(("AGENT", "AT", "TURNS", "FAILURES", "RUNNING", "STATE"), rows, empty="no checkpoint yet"),
    )


@agent.command("record")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where it is written to.")
@apply_shared
@pass_invocation
def record(invocation: Invocation, name: str, out: Path) -> None:
    """Write what a hosted agent saw and decided to a file, one line for each turn.

    The node must have been started with --record.
    """
    client, count, first = connect(invocation), 0, 0
    with open(out, "wb") as file:
        while True:
            part = client.record(name, RecordQuery(first=first))
            for item in part:
                file.write(msgspec.json.encode(item) + b"\n")
                count, first = count + 1, item.number + 1
            if not part:
                break
    if not count:
        raise NotFound(f"no turn of an agent named {name!r} is recorded", hint="start the node with --record")
    made = {"file": str(out), "turns": count}
    show(invocation, made, ids=lambda: [str(out)], text=lambda: f"{count} turns written to {out}")


@agent.command("replay")
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--agent", "place", metavar="MODULE:CLASS", help="The agent that takes the turns again, offline.")
@apply_shared
@pass_invocation
def replay(invocation: Invocation, file: Path, place: str | None) -> int:
    """Check a written record, and let an agent take its turns once more. Needs no node.

    Nothing is carried out: what the agent decides is compared with what it decided then. Exit code 1 if it differs.
    """
    from converge_node.record_file import ReplayReport, read_record_file, take_again

    turns = read_record_file(file)
    report = ReplayReport(len(turns), [], []) if place is None else take_again(turns, place)
    show(invocation, report, ids=lambda: [str(number) for number in report.different], text=report.text)
    return 1 if report.different else 0


def _show_all(
    invocation: Invocation, items: Sequence[schema.AgentItem], *, empty: str = "no such agent is known"
) -> None:
    rows = [
        (short(item.id), item.name, " ".join(map(_skill_text, item.capabilities)), f"{item.trust:.2f}", item.expires_at)
        for item in items
    ]
    columns = ("AGENT", "NAME", "CAPABILITIES", "TRUST", "EXPIRES")
    show(
        invocation,
        items,
        ids=lambda: [item.id for item in items],
        text=lambda: table(columns, rows, empty=empty),
    )


def _skill_text(skill: schema.CapabilityItem) -> str:
    return f"{skill.name}@{skill.version}:{skill.cost}"


def _agent_text(item: schema.AgentItem) -> str:
    addresses = [("address" if not index else "", address) for index, address in enumerate(item.addresses)]
    topics = [
        f"{each['namespace']}@{each['version']}" if each["version"] else each["namespace"] for each in item.topics
    ]
    pairs: list[tuple[str, object]] = [
        ("agent", item.id + (" (this node)" if item.own else "")),
        ("public key", item.public_key),
        ("name", item.name or "none given"),
        ("number", item.sequence),
        ("said", item.issued_at),
        ("expires", item.expires_at),
        ("topics", " ".join(topics) or "none"),
        ("trust", f"{item.trust:.2f}"),
        *addresses,
    ]
    rows = [(skill.name, skill.version, skill.cost) for skill in item.capabilities]
    return (
        facts(pairs)
        + "\n\n"
        + table(("CAPABILITY", "VERSION", "COST"), rows, empty="it says of nothing that it can do it")
    )
