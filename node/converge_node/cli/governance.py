"""The options of `pool create` that say who decides.

Knows: the options and the schema. Must not know: what a model does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from converge_p2p.client import schema

MODELS: Final = ("democratic", "dictatorial", "bicameral", "veto", "empirical", "custom")

_OPTIONS: Final = (
    click.option(
        "--governance",
        type=click.Choice(MODELS),
        help="Who decides: a majority, one leader, two chambers, a majority that some may deny, electors of different "
        "weight, or an own model. Default: the setting governance.default.",
    ),
    click.option("--quorum", type=int, default=0, metavar="N", help="Electors that decide. Default: as few as safe."),
    click.option("--faults", type=int, default=0, metavar="F", help="How many electors may lie. Default: none."),
    click.option("--trusted", multiple=True, metavar="AGENT", help="An elector that never lies. Repeatable."),
    click.option("--provisional", is_flag=True, help="Take rules under which two sides could decide differently."),
    click.option("--leader", default="", metavar="AGENT", help="dictatorial: who decides. Default: this node."),
    click.option("--successor", default="", metavar="AGENT", help="dictatorial: who decides as well; electors record."),
    click.option("--chamber", "chambers", multiple=True, metavar="A,B,…", help="bicameral: a chamber. Twice."),
    click.option("--chamber-quorum", "chamber_quorums", type=int, multiple=True, metavar="N", help="Of each. Twice."),
    click.option("--tie-breaker", default="", metavar="AGENT", help="bicameral: decides with one chamber."),
    click.option("--vetoer", "vetoers", multiple=True, metavar="AGENT", help="veto: who may deny. Repeatable."),
    click.option("--veto-window", type=float, metavar="S", help="veto: seconds to wait for them."),
    click.option("--silence-denies", is_flag=True, help="veto: wait for every vetoer, without end."),
    click.option("--weight", "weights", multiple=True, metavar="AGENT=N", help="empirical: an elector's weight."),
    click.option("--speculative", type=int, metavar="K", help="empirical: workers on one task at a time."),
    click.option(
        "--evidence", type=int, default=0, metavar="N", help="empirical: others that cite for a result first."
    ),
    click.option("--model", default="", metavar="NAME", help="custom: a registered model."),
)


def governance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def governance_terms(options: dict[str, Any]) -> schema.GovernanceTerms:
    """Return what the options of a command say, without the name of the model.

    Raises:
        click.UsageError: a weight that is none.
    """
    weights: dict[str, int] = {}
    for text in options["weights"]:
        agent, _, number = text.rpartition("=")
        if not agent or not number.isdecimal():
            raise click.UsageError(f"--weight {text!r}: expected AGENT=N, with a whole number N of 1 or more")
        weights[agent] = int(number)
    return schema.GovernanceTerms(
        quorum=options["quorum"],
        faults=options["faults"],
        trusted=list(options["trusted"]),
        provisional=options["provisional"],
        leader=options["leader"],
        successor=options["successor"],
        chambers=[[name.strip() for name in text.split(",") if name.strip()] for text in options["chambers"]],
        chamber_quorums=list(options["chamber_quorums"]),
        tie_breaker=options["tie_breaker"],
        vetoers=list(options["vetoers"]),
        veto_window_s=options["veto_window"],
        silence_denies=options["silence_denies"],
        weights=weights,
        speculative=options["speculative"],
        evidence=options["evidence"],
        model=options["model"],
    )
