"""The command that explains error codes. It needs no running node.

Knows: the catalogue. Must not know: who raises an error.
"""

from __future__ import annotations

import difflib

import click

from converge_node.cli.output import facts, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.error_catalogue import CATALOGUE
from converge_p2p.core.errors import NotFound


@click.command("errors")
@click.argument("code", required=False)
@apply_shared
@pass_invocation
def errors(invocation: Invocation, code: str | None) -> None:
    """Explain an error CODE: what it means, what to do, and how commands and requests end with it. Without one, list
    all. Commands print the code with --json.

    \b
    converge-node errors own_chain_unsure
    """
    if code is None:
        rows = [(name, int(each.exit_code), each.status, each.meaning) for name, each in sorted(CATALOGUE.items())]
        data = [_fields(name) for name in sorted(CATALOGUE)]
        columns = ("CODE", "EXIT", "HTTP", "MEANING")
        show(invocation, data, ids=lambda: sorted(CATALOGUE), text=lambda: table(columns, rows, empty=""))
        return
    if code not in CATALOGUE:
        close = difflib.get_close_matches(code, CATALOGUE, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise NotFound(f"there is no error code {code}{meant}", hint="`converge-node errors` lists all")
    found = _fields(code)
    show(invocation, found, ids=lambda: [code], text=lambda: facts(found.items()))


def _fields(code: str) -> dict[str, object]:
    entry = CATALOGUE[code]
    return {
        "code": code,
        "meaning": entry.meaning,
        "remedy": entry.remedy,
        "exit_code": int(entry.exit_code),
        "http_status": entry.status,
    }
