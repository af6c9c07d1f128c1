"""Commands about who is in a pool and under which terms: joins, admit, refuse, withdraw, expel, members, electors,
policy, disputes.

Knows: the client and the schema. Must not know: governance.
"""

from __future__ import annotations

import click

from converge_node.cli.client import connect
from converge_node.cli.motions import motion_text
from converge_node.cli.output import facts, short, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_p2p.client import member_schema, schema
from converge_p2p.client.queries import JoinQuery


@click.command
@click.argument("reference", metavar="[POOL]", required=False)
@apply_shared
@pass_invocation
def joins(invocation: Invocation, reference: str | None) -> None:
    """List who asks to be let into POOL, or into any: others, who wait for this node's word, and this node itself."""
    items = connect(invocation).joins(JoinQuery(pool=reference))
    rows = [
        (
            short(item.pool),
            short(item.agent_id) + (" (this node)" if item.own else ""),
            _state(item),
            item.asked_at,
            item.note or item.reason,
        )
        for item in items
    ]
    columns = ("POOL", "AGENT", "STATE", "ASKED", "SAYS")
    show(
        invocation,
        items,
        ids=lambda: [item.agent_id for item in items],
        text=lambda: table(columns, rows, empty="nobody asks to be let in"),
    )


@click.command
@click.argument("reference", metavar="POOL")
@click.argument("agent")
@click.option("--reason", default="", metavar="TEXT", help="For the electors, where a motion decides.")
@click.option("--vote", is_flag=True, help="Where an invitation is asked for: only once the electors carried it.")
@apply_shared
@pass_invocation
def admit(invocation: Invocation, reference: str, agent: str, *, reason: str, vote: bool) -> None:
    """Let AGENT into POOL, which asked (see `pool joins`), as far as this elector can.

    Where an invitation is asked for, it is in; with --vote this moves, or says yes to, a motion of the electors, and it
    is in once they carried that. Where electors vouch, it is in once enough of them did this. Where a whitelist
    decides, this moves, or says yes to, the motion that puts it there; others vote with `pool vote` or with this.
    """
    item = connect(invocation).admit(reference, agent, member_schema.AdmitJoin(reason=reason, vote=vote))
    show(invocation, item, ids=lambda: [item.agent_id], text=lambda: join_text(item))


@click.command
@click.argument("reference", metavar="POOL")
@click.argument("agent")
@click.option("--reason", default="", metavar="TEXT", help="For whoever asked.")
@apply_shared
@pass_invocation
def refuse(invocation: Invocation, reference: str, agent: str, reason: str) -> None:
    """Say no to AGENT, which asked to be let into POOL. Other electors may still let it in."""
    item = connect(invocation).refuse(reference, agent, member_schema.DecideJoin(reason=reason))
    show(invocation, item, ids=lambda: [item.agent_id], text=lambda: join_text(item))


@click.command
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def withdraw(invocation: Invocation, reference: str) -> None:
    """Ask to be let into POOL no more."""
    items = connect(invocation).withdraw_join(reference)
    show(invocation, items, ids=lambda: [item.pool for item in items], text=lambda: "withdrawn")


@click.command
@click.argument("reference", metavar="POOL")
@click.argument("agent")
@click.option("--reason", default="", metavar="TEXT", help="For the electors.")
@apply_shared
@pass_invocation
def expel(invocation: Invocation, reference: str, agent: str, reason: str) -> None:
    """Put it to the electors of POOL to remove AGENT, whose key cannot come back; of an elector the vote, too."""
    client = connect(invocation)
    voting = [member for member in client.pool(reference).member_list if member.elector]
    names = {name for member in voting for name in (member.agent_id, member.public_key, f"key:{member.public_key}")}
    body = schema.Move(expel=[agent], remove_electors=[agent] if agent.lower() in names else [], reason=reason)
    item = client.move(reference, body)
    show(invocation, item, ids=lambda: [item.id], text=lambda: motion_text(item))


@click.command
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def members(invocation: Invocation, reference: str) -> None:
    """List the members of POOL."""
    _show_members(invocation, connect(invocation).pool(reference).member_list)


@click.command
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def electors(invocation: Invocation, reference: str) -> None:
    """List those who vote in POOL."""
    found = connect(invocation).pool(reference).member_list
    _show_members(invocation, [member for member in found if member.elector])


def _show_members(invocation: Invocation, items: list[schema.MemberItem]) -> None:
    rows = [(item.agent_id, "elector" if item.elector else "member", item.public_key) for item in items]
    show(
        invocation,
        items,
        ids=lambda: [item.agent_id for item in items],
        text=lambda: table(("AGENT", "ROLE", "KEY"), rows, empty="none is known"),
    )


@click.command
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def policy(invocation: Invocation, reference: str) -> None:
    """Show the terms of POOL that are in force; `pool propose` puts others to its electors."""
    item = connect(invocation).terms(reference)
    admission = item.admission + (f" by {item.admission_need} electors" if item.admission_need else "")
    pairs: list[tuple[str, object]] = [
        ("pool", item.pool),
        ("name", item.name),
        ("epoch", item.epoch),
        ("governance", item.governance),
        ("quorum", item.quorum or "as few as safe"),
        ("faults", item.faults),
        ("admission", f"{admission} {item.admission_rule}".strip()),
        *(("whitelist" if not index else "", agent) for index, agent in enumerate(item.whitelist)),
        *(("electors" if not index else "", agent) for index, agent in enumerate(item.electors)),
        ("task types", ", ".join(item.task_types) or "any"),
        ("topics", ", ".join(item.topics) or "none"),
        ("private", "yes" if item.private else "no"),
        *((name.replace("_", " "), value) for name, value in item.policy.items()),
    ]
    show(invocation, item, ids=lambda: [item.pool], text=lambda: facts(pairs))


@click.command
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def disputes(invocation: Invocation, reference: str) -> None:
    """List the disputes about results of POOL, and what the electors found."""
    items = [item for item in connect(invocation).motions(reference) if item.task]
    rows = [
        (short(item.id), item.state, short(item.task), "; ".join(item.asks), item.decided or "", item.reason)
        for item in items
    ]
    columns = ("MOTION", "STATE", "TASK", "ASKS", "DECIDED", "REASON")
    show(
        invocation,
        items,
        ids=lambda: [item.id for item in items],
        text=lambda: table(columns, rows, empty="no result is disputed"),
    )


def join_text(item: member_schema.JoinItem) -> str:
    """Return a request as facts."""
    pairs: list[tuple[str, object]] = [
        ("pool", item.pool),
        ("agent", item.agent_id),
        ("state", _state(item)),
        ("asked", item.asked_at),
        ("until", item.expires_at),
    ]
    pairs += [(name, value) for name, value in (("says", item.note), ("reason", item.reason)) if value]
    if item.motion:
        pairs.append(("motion", item.motion))
    return facts(pairs)


def _state(item: member_schema.JoinItem) -> str:
    if item.state != "pending":
        return item.state
    if item.silent:
        return f"pending: {item.silent}"
    if item.motion:
        return "pending: the electors vote"
    return f"pending, {item.yes} said yes" if item.yes else "pending"
