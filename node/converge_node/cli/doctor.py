"""The command that looks at everything a node needs.

Knows: how findings are shown. Must not know: what is looked at (see `converge_node.doctor`).
"""

from __future__ import annotations

from pathlib import Path

import click

from converge_node.cli.output import clean, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import ExitCode
from converge_p2p.client.reach_schema import CheckItem


@click.command
@click.option(
    "--bundle", type=click.Path(path_type=Path), metavar="FILE", help="Write what a helper has to see, without secrets."
)
@apply_shared
@pass_invocation
def doctor(invocation: Invocation, bundle: Path | None) -> int:
    """Look at files, clock, ports, peers and every way to reach this node; say what works, and what to do.

    With a running node it is asked, too. Exit code 1 if something failed.
    """
    from converge_node.doctor import examine

    found = examine(invocation.paths())
    if bundle is not None:
        from converge_node.bundle import write_bundle

        write_bundle(invocation.paths(), found, bundle)

    def text() -> str:
        rows = [
            (check.verdict, check.name, line) if number == 0 else ("", "", line)
            for check in found.checks
            for number, line in enumerate(check.text.splitlines() or [""])
        ]
        todo = [clean(f"{check.name}: {check.hint}") for check in found.checks if _needs_word(check)]
        listed = table(("", "WHAT", "FOUND"), rows, empty="")
        written = "" if bundle is None else f"\n\nwritten to {bundle}: look through it before you hand it on"
        return listed + "".join(f"\n-> {line}" for line in todo) + written

    def ids() -> list[str]:
        return [check.name for check in found.checks if check.verdict == "fail"]

    show(invocation, found, ids=ids, text=text)
    return ExitCode.OK if found.healthy else ExitCode.FAILURE


def _needs_word(check: CheckItem) -> bool:
    return bool(check.hint) and check.verdict in ("warn", "fail")
