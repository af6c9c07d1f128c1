"""Commands for whoever works by hand: task claim, release, report.

Knows: the client and the schema. Must not know: how claims are decided.
"""

from __future__ import annotations

import json
from typing import Any

import click

from converge_node.cli.client import connect
from converge_node.cli.output import facts, show
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import UsageError
from converge_p2p.client import schema, work_schema


@click.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.option("--bid", type=click.IntRange(0), default=0, metavar="N", help="Less is better, where bids decide.")
@apply_shared
@pass_invocation
def claim(invocation: Invocation, pool: str, reference: str, *, bid: int) -> None:
    """Stand for a task as this node's agent, to work on it by hand. `task watch` shows whether the claim was won.

    A claim stands as long as the pool's claim time; report before that, or give it back with `task release`.
    """
    _show(invocation, connect(invocation).claim(pool, reference, work_schema.ClaimTask(bid=bid)))


@click.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.option("--failed", is_flag=True, help="The attempt failed; otherwise it does not count as one.")
@click.option("--reason", default="", metavar="TEXT", help="For people.")
@apply_shared
@pass_invocation
def release(invocation: Invocation, pool: str, reference: str, *, failed: bool, reason: str) -> None:
    """Give back a claim of this node's agent."""
    body = work_schema.ReleaseTask(failed=failed, reason=reason)
    _show(invocation, connect(invocation).release(pool, reference, body))


@click.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.option("--result", metavar="JSON", help="The result, a JSON value.")
@click.option("--failed", default="", metavar="REASON", help="It cannot be done, and why.")
@apply_shared
@pass_invocation
def report(invocation: Invocation, pool: str, reference: str, *, result: str | None, failed: str) -> None:
    """Report the result of a task that this node's agent claimed, or that it cannot be done.

    It is settled when the pool's electors confirm it.
    """
    if (result is None) == (not failed):
        raise UsageError("a report is either a result or a failure", hint="give --result JSON or --failed REASON")
    value: Any = None
    try:
        value = None if result is None else json.loads(result)
    except ValueError as error:
        raise UsageError(f"the result is not JSON: {error}", hint="write text as '\"text\"'") from error
    body = work_schema.ReportTask(result=value, failed=failed)
    _show(invocation, connect(invocation).report(pool, reference, body))


def _show(invocation: Invocation, item: schema.TaskDetail) -> None:
    pairs = [("task", item.id), ("state", item.state), ("assigned to", item.assigned_to or "nobody yet")]
    show(invocation, item, ids=lambda: [item.id], text=lambda: facts(pairs))
