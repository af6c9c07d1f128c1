"""The command `top`: a node live in the terminal.

Knows: the client, keys, and how often to look. Must not know: what a frame shows (see `converge_node.top_view`).
Source: docs/web.md. A node that restarts is waited for: an operator leaves it running.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from converge_node.cli.client import connect
from converge_node.cli.output import print_json
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import ExitCode
from converge_p2p.client import schema
from converge_p2p.core.errors import ConvergeError

if TYPE_CHECKING:
    from converge_p2p.client import Client

INTERVAL_S_MIN: Final = 0.2
PIPE_SIZE: Final = (160, 60)
"""Columns and lines of a frame that goes nowhere they could be asked for."""
_PASSING: Final = frozenset({"node_unreachable", "not_ready", "timeout", "busy"})
"""What a node that restarts answers, or nobody does."""


@click.command
@click.option(
    "--interval", type=click.FloatRange(min=INTERVAL_S_MIN), default=2.0, show_default=True, help="Seconds between."
)
@click.option("--once", is_flag=True, help="Print one frame and end, which is also what happens in a pipe.")
@apply_shared
@pass_invocation
def top(invocation: Invocation, interval: float, once: bool) -> int:
    """Show the node live: pools with epochs and electors, tasks by state, disputes, peers, agents, and what is behind.

    q or Ctrl-C ends it. It waits for a node that does not answer, unless --once is given. With --json every look is
    one document on a line.

    \b
    converge-node top --interval 1
    """
    from converge_node.snapshot import take_snapshot

    client = connect(invocation)
    if invocation.json or invocation.quiet:
        return _print_looks(invocation, client, interval, once)
    if once or not sys.stdout.isatty():
        from rich.console import Console

        from converge_node.top_view import frame

        console = Console(highlight=False)
        width, height = (console.width, console.height) if console.is_terminal else PIPE_SIZE
        console = Console(highlight=False, width=width)
        console.print(frame(take_snapshot(client), width, height))
        return ExitCode.OK
    try:
        with _keys() as keys:
            _live(client, interval, keys)
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def _print_looks(invocation: Invocation, client: Client, interval: float, once: bool) -> int:
    import time

    from converge_node.snapshot import take_snapshot

    while True:
        look = take_snapshot(client)
        if invocation.json:
            print_json(schema.success(look))
        else:
            print(look.status.node.id, flush=True)
        if once or invocation.quiet:
            return ExitCode.OK
        time.sleep(interval)


def _live(client: Client, interval: float, keys: _Keys) -> None:
    from rich.console import Console
    from rich.live import Live

    from converge_node.snapshot import take_snapshot
    from converge_node.top_view import frame, no_answer

    console = Console(highlight=False)
    # the frame is made for the present size, so nothing has to be drawn between two looks
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            try:
                shown = frame(take_snapshot(client), console.width, console.height)
            except ConvergeError as error:
                if error.code not in _PASSING:
                    raise
                shown = no_answer(str(error), error.hint, interval)
            live.update(shown, refresh=True)
            if keys.quit_within(interval):
                return


class _Keys:
    """Reads single keys where there is a keyboard."""

    def __init__(self, file: int | None) -> None:
        self._file = file

    def quit_within(self, seconds: float) -> bool:
        """Wait, and return early with True if q was pressed."""
        if self._file is None:
            select.select([], [], [], seconds)
            return False
        import time

        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            readable, _, _ = select.select([self._file], [], [], left)
            if not readable:
                return False
            pressed = os.read(self._file, 64)
            if b"q" in pressed.lower():
                return True
            if not pressed:
                # the keyboard is gone; the screen may still be looked at
                self._file = None
                return self.quit_within(max(0.0, end - time.monotonic()))
        return False


@contextmanager
def _keys() -> Iterator[_Keys]:
    """Let keys be read one at a time while the block runs, without showing them."""
    if not sys.stdin.isatty():
        yield _Keys(None)
        return
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file)
        yield _Keys(file)
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
