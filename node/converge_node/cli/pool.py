"""Commands about pools: create, ls, show, join, leave, invite, vouch, audit; and motions (see there).

Knows: the client and the schema. Must not know: governance.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from converge_node.cli.client import connect
from converge_node.cli.governance import governance_options, governance_terms
from converge_node.cli.motions import motions, propose, vote
from converge_node.cli.output import facts, short, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_p2p.client import schema


@click.group
def pool() -> None:
    """Create, list, show, join and audit pools, and invite others.

    POOL is an id, its first digits (six or more), or a unique name.
    """


@pool.command
@click.argument("name")
@click.option(
    "--elector",
    "electors",
    multiple=True,
    metavar="AGENT",
    help="Who votes instead of this node alone: id or key of a known agent, or key:<public key>. Repeatable.",
)
@click.option("--task-type", "task_types", multiple=True, metavar="T", help="Objectives it is for; none is any.")
@click.option("--topic", "topics", multiple=True, metavar="T", help="Topics it is about. Repeatable.")
@click.option("--claim-ttl", type=float, metavar="S", help="Seconds a claim stands without a result.")
@click.option("--max-retries", type=int, metavar="N", help="Failures and expiries before a task fails.")
@click.option("--private", is_flag=True, help="Seal contents with a key that only members are given.")
@click.option(
    "--admission",
    type=click.Choice(["open", "whitelist", "token", "vouched", "custom"]),
    help="Who may join: anybody, those of --admit, with an invitation, with vouches, or whom a registered rule admits. "
    "Without it, as the settings say.",
)
@click.option("--admit", "whitelist", multiple=True, metavar="AGENT", help="whitelist: who may join. Repeatable.")
@click.option("--vouches", "admission_need", type=int, default=0, metavar="N", help="vouched: how many electors.")
@click.option("--admission-rule", "admission_custom", default="", metavar="NAME", help="custom: the registered rule.")
@governance_options
@apply_shared
@pass_invocation
def create(
    invocation: Invocation,
    /,
    name: str,
    *,
    governance: str | None,
    electors: tuple[str, ...],
    task_types: tuple[str, ...],
    topics: tuple[str, ...],
    claim_ttl: float | None,
    max_retries: int | None,
    private: bool,
    admission: str | None,
    whitelist: tuple[str, ...],
    admission_need: int,
    admission_custom: str,
    **who_decides: Any,
) -> None:
    """Found a pool called NAME."""
    if governance is None or admission is None:
        from converge_node.config import load_settings

        config = load_settings(invocation.paths().config_file).config
        governance = governance or config.governance.default
        admission = admission or config.admission.default
    body = schema.CreatePool(
        name=name,
        governance=governance,
        terms=governance_terms(who_decides),
        electors=list(electors),
        task_types=list(task_types),
        topics=list(topics),
        claim_ttl_s=claim_ttl,
        max_retries=max_retries,
        private=private,
        admission=admission,
        whitelist=list(whitelist),
        admission_need=admission_need,
        admission_custom=admission_custom,
    )
    item = connect(invocation).create_pool(body)
    show(invocation, item, ids=lambda: [item.id], text=lambda: _pool_text(item))


@pool.command("ls")
@apply_shared
@pass_invocation
def pool_list(invocation: Invocation) -> None:
    """List joined pools, and those that other nodes announce."""
    items = connect(invocation).pools()
    show(invocation, items, ids=lambda: [item.id for item in items], text=lambda: pool_table(items))


@pool.command("show")
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def pool_show(invocation: Invocation, reference: str) -> None:
    """Show a joined pool and its members."""
    item = connect(invocation).pool(reference)
    show(invocation, item, ids=lambda: [item.id], text=lambda: _pool_text(item))


@pool.command
@click.argument("reference", metavar="POOL")
@click.option("--capability", "capabilities", multiple=True, metavar="C", help="What this node can do. Repeatable.")
@click.option("--timeout", type=float, default=30.0, show_default=True, metavar="S", help="Seconds to find a member.")
@click.option("--invitation", default="", metavar="TEXT", help="What `pool invite` printed for this node.")
@click.option("--vouch", "vouches", multiple=True, metavar="TEXT", help="What `pool vouch` printed. Repeatable.")
@apply_shared
@pass_invocation
def join(
    invocation: Invocation,
    reference: str,
    *,
    capabilities: tuple[str, ...],
    timeout: float,
    invitation: str,
    vouches: tuple[str, ...],
) -> None:
    """Become a member of a pool. A full id need not have been announced yet."""
    body = schema.JoinPool(
        capabilities=list(capabilities), timeout_s=timeout, invitation=invitation, vouches=list(vouches)
    )
    item = connect(invocation).join_pool(reference, body)
    show(invocation, item, ids=lambda: [item.id], text=lambda: _pool_text(item))


@pool.command
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def leave(invocation: Invocation, reference: str) -> None:
    """Leave POOL: its members are told, and this node works there no more."""
    items = connect(invocation).leave_pool(reference)
    show(invocation, items, ids=lambda: [item.id for item in items], text=lambda: pool_table(items))


@pool.command
@click.argument("reference", metavar="POOL")
@click.option("--for", "agent", default="", metavar="AGENT", help="The only agent that may use it.")
@click.option("--role", default="worker", show_default=True, help="What the newcomer is meant to be; for people.")
@click.option("--epochs", type=click.IntRange(0), default=0, metavar="N", help="How many epochs longer it is good.")
@click.option("--valid", type=float, metavar="S", help="Seconds after which honest nodes do not use it any more.")
@apply_shared
@pass_invocation
def invite(invocation: Invocation, reference: str, *, agent: str, role: str, epochs: int, valid: float | None) -> None:
    """Print an invitation to POOL. Hand it over in private: without --for it lets in whoever holds it."""
    body = schema.InviteRequest(agent=agent, role=role, epochs=epochs, valid_s=valid)
    item = connect(invocation).invite(reference, body)
    show(invocation, item, ids=lambda: [item.text], text=lambda: item.text)


@pool.command
@click.argument("reference", metavar="POOL")
@click.argument("agent")
@click.option("--epochs", type=click.IntRange(0), default=0, metavar="N", help="How many epochs longer it is good.")
@apply_shared
@pass_invocation
def vouch(invocation: Invocation, reference: str, agent: str, *, epochs: int) -> None:
    """Answer for AGENT as an elector of POOL: print a vouch, which it shows when it joins."""
    body = schema.VouchRequest(agent=agent, epochs=epochs)
    item = connect(invocation).vouch(reference, body)
    show(invocation, item, ids=lambda: [item.text], text=lambda: item.text)


@pool.command
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def audit(invocation: Invocation, reference: str) -> None:
    """Name electors that broke a rule, with the operations that prove it."""
    items = connect(invocation).audit(reference)
    named = list(dict.fromkeys(item.agent_id for item in items))
    show(invocation, items, ids=lambda: named, text=lambda: _findings_text(items))


for _command in (propose, motions, vote):
    pool.add_command(_command)


def pool_table(items: Iterable[schema.PoolItem]) -> str:
    """Return pools as a table."""
    rows = [
        (short(item.id), item.name, item.governance, _standing(item), item.members or "", _counts(item))
        for item in items
    ]
    return table(("POOL", "NAME", "GOVERNANCE", "STATE", "MEMBERS", "TASKS"), rows, empty="no pool is known")


def _pool_text(item: schema.PoolDetail) -> str:
    quorum = {True: "reachable", False: "not reachable: nothing is certified", None: "unknown"}[item.has_quorum]
    pairs: list[tuple[str, object]] = [
        ("pool", item.id),
        ("name", item.name),
        ("governance", item.governance),
        ("decided by", item.decided_by or "not known yet"),
        ("state", _standing(item)),
        ("contents", "sealed to members" if item.private else "readable by everybody"),
        ("admission", item.admission or "not known yet"),
        ("epoch", item.epoch),
        ("quorum", quorum),
        ("task types", ", ".join(item.task_types) or "any"),
        ("tasks", _counts(item) or "none"),
        ("frontier", item.frontier),
        ("checkpoint", _checkpoint(item.checkpoint)),
        ("culprits", _culprits(item.culprits)),
    ]
    pairs += [("frozen", f"{one.agent_id} signed two operations with number {one.seq}") for one in item.frozen]
    if item.unsure:
        pairs.append(("silent", item.unsure))
    rows = [(member.agent_id, "elector" if member.elector else "member") for member in item.member_list]
    return facts(pairs) + "\n\n" + table(("AGENT", "ROLE"), rows, empty="its members are not known yet")


def _checkpoint(item: schema.CheckpointItem) -> str:
    if item.number == 0:
        return f"none yet, {item.tail} operations held"
    number = "not known yet" if item.number is None else f"number {item.number}"
    return f"{number}, covers {item.tasks} settled tasks; {item.tail} operations above it"


def _culprits(count: int | None) -> str:
    if count is None:
        return "not counted: see `pool audit`"
    return f"{count} electors broke a rule: see `pool audit`" if count else "none"


def _findings_text(items: list[schema.FindingItem]) -> str:
    rows = [
        (
            short(item.agent_id),
            item.text,
            "proven" if item.contradiction else "unless it shows why",
            short(item.subject),
            " ".join(short(operation) for operation in item.proof),
        )
        for item in items
    ]
    return table(("ELECTOR", "WHAT IT DID", "STANDING", "ABOUT", "OPERATIONS"), rows, empty="no elector broke a rule")


def _standing(item: schema.PoolItem) -> str:
    if not item.joined:
        return "announced"
    return "joined" if item.ready else "waiting for its founding record"


def _counts(item: schema.PoolItem) -> str:
    return " ".join(f"{state}:{count}" for state, count in sorted(item.tasks.items()))
