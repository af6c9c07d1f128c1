"""Commands that put something to a pool's electors: pool propose, motions, vote; task dispute.

Knows: the client and the schema. Must not know: how opinions are counted.
"""

from __future__ import annotations

import click

from converge_node.cli.client import connect
from converge_node.cli.output import facts, short, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_p2p.client import schema


@click.command
@click.argument("reference", metavar="POOL")
@click.option("--expel", multiple=True, metavar="AGENT", help="A member to remove. Repeatable.")
@click.option("--add-elector", "add_electors", multiple=True, metavar="AGENT", help="A further elector. Repeatable.")
@click.option("--remove-elector", "remove_electors", multiple=True, metavar="AGENT", help="One less. Repeatable.")
@click.option("--quorum", type=int, metavar="N", help="Electors that decide from then on; 0 is as few as safe.")
@click.option("--faults", type=int, metavar="F", help="How many electors may lie.")
@click.option("--claim-ttl", type=float, metavar="S", help="Seconds a claim stands without a result.")
@click.option("--max-retries", type=int, metavar="N", help="Failures and expiries before a task fails.")
@click.option("--renew", is_flag=True, help="A new epoch with the terms as they are.")
@click.option("--reason", default="", metavar="TEXT", help="For the electors.")
@apply_shared
@pass_invocation
def propose(
    invocation: Invocation,
    /,
    reference: str,
    *,
    expel: tuple[str, ...],
    add_electors: tuple[str, ...],
    remove_electors: tuple[str, ...],
    quorum: int | None,
    faults: int | None,
    claim_ttl: float | None,
    max_retries: int | None,
    renew: bool,
    reason: str,
) -> None:
    """Put a change of the pool to its electors. It comes into force when enough of them say yes (`pool vote`).

    \b
    converge-node pool propose demo --add-elector AGENT --reason "a fourth machine"
    converge-node pool propose demo --expel AGENT --remove-elector AGENT
    """
    body = schema.Move(
        expel=list(expel),
        add_electors=list(add_electors),
        remove_electors=list(remove_electors),
        quorum=quorum,
        faults=faults,
        claim_ttl_s=claim_ttl,
        max_retries=max_retries,
        renew=renew,
        reason=reason,
    )
    item = connect(invocation).move(reference, body)
    show(invocation, item, ids=lambda: [item.id], text=lambda: _motion_text(item))


@click.command
@click.argument("reference", metavar="POOL")
@apply_shared
@pass_invocation
def motions(invocation: Invocation, reference: str) -> None:
    """List what was put to the electors, and what became of it."""
    items = connect(invocation).motions(reference)
    rows = [
        (short(item.id), item.state, str(item.epoch), "; ".join(item.asks), str(len(item.opinions))) for item in items
    ]
    columns = ("MOTION", "STATE", "EPOCH", "ASKS", "OPINIONS")
    show(
        invocation,
        items,
        ids=lambda: [item.id for item in items],
        text=lambda: table(columns, rows, empty="nothing was put to the electors"),
    )


@click.command
@click.argument("reference", metavar="POOL")
@click.argument("motion", metavar="MOTION")
@click.argument("choice", metavar="yes|no|OPTION|by-evidence")
@apply_shared
@pass_invocation
def vote(invocation: Invocation, reference: str, motion: str, choice: str) -> None:
    """Say what this elector thinks of a motion. A yes cannot be taken back.

    Among rival results `by-evidence` chooses the one for which most evidence speaks, and names that evidence.
    """
    item = connect(invocation).say(reference, motion, schema.SayItem(choice=choice))
    show(invocation, item, ids=lambda: [item.id], text=lambda: _motion_text(item))


@click.command
@click.argument("reference", metavar="POOL")
@click.argument("task", metavar="TASK")
@click.option("--rival", "rivals", multiple=True, metavar="HASH", help="One of the results to choose from. Repeatable.")
@click.option("--reason", default="", metavar="TEXT", help="For the electors.")
@apply_shared
@pass_invocation
def dispute(invocation: Invocation, reference: str, task: str, rivals: tuple[str, ...], reason: str) -> None:
    """Ask the electors to find that a settled result is wrong, or which of several rivals is right.

    The task stays as it is settled.
    """
    item = connect(invocation).dispute(reference, task, schema.Dispute(reason=reason, rivals=list(rivals)))
    show(invocation, item, ids=lambda: [item.id], text=lambda: _motion_text(item))


def _motion_text(item: schema.MotionItem) -> str:
    pairs: list[tuple[str, object]] = [
        ("motion", item.id),
        ("asks", "; ".join(item.asks)),
        ("state", item.state),
        ("moved by", item.author),
        ("epoch", item.epoch),
        ("reason", item.reason or "none given"),
    ]
    rows = [(opinion.agent_id, opinion.choice) for opinion in item.opinions]
    return facts(pairs) + "\n\n" + table(("AGENT", "SAYS"), rows, empty="no elector said anything yet")
