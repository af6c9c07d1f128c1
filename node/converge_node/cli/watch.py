"""Commands for watching a running node: metrics, events, logs.

Knows: the client and the schema. Must not know: what is measured.
Source: docs/observability.md.
"""

from __future__ import annotations

import click
import msgspec

from converge_node.cli.client import connect
from converge_node.cli.output import clean, print_json, show
from converge_node.cli.tree import SECONDS, Invocation, apply_shared, pass_invocation
from converge_node.errors import ExitCode, Refused, TimedOut
from converge_p2p.client import schema, watch_schema
from converge_p2p.client.queries import EventQuery, LogQuery

_LEVELS = ("debug", "info", "warning", "error")


@click.command
@apply_shared
@pass_invocation
def metrics(invocation: Invocation) -> None:
    """Print the node's metrics as Prometheus reads them."""
    text = connect(invocation).metrics()
    show(invocation, {"text": text}, ids=text.splitlines, text=lambda: text.rstrip("\n"))


@click.command
@click.option("--kind", metavar="KIND", default="", help="Only events of this kind, as task, claim_won or fork.")
@click.option("--timeout", "timeout_s", type=SECONDS, help="Seconds to watch for.")
@apply_shared
@pass_invocation
def events(invocation: Invocation, kind: str, timeout_s: float | None) -> int:
    """Print what happens in the node, as it happens: tasks, claims, members, motions, epochs, forks, peers.

    Ends when the node stops, or after --timeout.
    """
    try:
        for event in connect(invocation).events(EventQuery(kind=kind, timeout_s=timeout_s)):
            if invocation.json:
                print_json(schema.success(event))
            else:
                said = " ".join(f"{name}={clean(value)}" for name, value in event.about.items())
                print(f"{event.at}  {event.kind:<13} {said}".rstrip(), flush=True)
    except Refused as error:
        if timeout_s is None or error.code != TimedOut.code:
            raise
    return ExitCode.OK


@click.command
@click.option(
    "-n", "--lines", type=click.IntRange(0, 1000), default=100, show_default=True, help="How many to begin with."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines as they are written.")
@click.option(
    "--level", type=click.Choice(_LEVELS), help="Change the least severity that is written, until the node ends."
)
@apply_shared
@pass_invocation
def logs(invocation: Invocation, lines: int, follow: bool, level: str | None) -> None:
    """Show the newest lines of the running node's log, and change its level.

    With --level nothing is shown, unless --follow is given too.
    """
    client = connect(invocation)
    if level is not None:
        body = watch_schema.SetLogLevel(level=level)  # type: ignore[arg-type]
        now = client.set_log_level(body)
        if not follow:
            show(invocation, now, ids=lambda: [now.level], text=lambda: f"the log shows {now.level} and above")
            return
    if not follow:
        kept = client.logs(LogQuery(lines=lines))
        shown = [_text(item.line) for item in kept]
        show(invocation, kept, ids=lambda: shown, text=lambda: "\n".join(shown) or "nothing was logged yet")
        return
    for item in client.follow_logs(LogQuery(lines=lines)):
        if invocation.json:
            print_json(schema.success(item))
        else:
            print(_text(item.line), flush=True)


def _text(line: str) -> str:
    """Return a line as people read it: time, level, event, and the other fields."""
    try:
        fields = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return clean(line)
    if not isinstance(fields, dict):
        return clean(line)
    begin = f"{fields.pop('timestamp', '')} {fields.pop('level', ''):<8} {fields.pop('event', '')}"
    rest = " ".join(f"{name}={value}" for name, value in fields.items())
    return clean(f"{begin}  {rest}".strip())
