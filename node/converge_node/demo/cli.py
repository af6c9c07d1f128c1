"""`converge-node demo`: the demonstration on a terminal.

Knows: how progress and summary look. Must not know: what happens (see `story`).
Source: README.md, the two commands.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converge_node.errors import ExitCode

if TYPE_CHECKING:
    from converge_node.demo.story import Progress, Summary

TIMEOUT_S = 300.0
LINE_EVERY_S = 2.0


@click.command()
@click.option("--tasks", type=click.IntRange(40), metavar="N", help="Index only the first N modules.")
@click.option("--workers", type=click.IntRange(3, 16), default=4, show_default=True, help="Workers beside the anchor.")
@click.option("--keep", metavar="DIR", help="Keep homes and logs of all nodes in this folder.")
@click.option("--timeout", type=click.FloatRange(10), default=TIMEOUT_S, show_default=True, metavar="S")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def demo(tasks: int | None, workers: int, keep: str | None, timeout: float, as_json: bool) -> int:
    """Run a mesh of processes on this machine that indexes Python's standard library, and loses two nodes.

    Exit code 0 only if every task was settled exactly once, none was lost, and the combined result equals that of a
    single process.
    """
    from converge_node.demo.mesh import Mesh
    from converge_node.demo.story import Demonstration

    with ExitStack() as stack:
        folder = Path(keep) if keep else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="converge-demo-")))
        tell, finish = _teller(stack)
        mesh = stack.enter_context(Mesh(folder))
        summary = Demonstration(mesh, tasks=tasks, workers=workers, tell=tell).run(timeout)
        finish()
        click.echo(json.dumps(asdict(summary), sort_keys=True) if as_json else summary_text(summary))
    return ExitCode.OK if summary.ok else ExitCode.FAILURE


def _teller(stack: ExitStack) -> tuple[Callable[[Progress], None], Callable[[], None]]:
    """A moving bar on a terminal, lines elsewhere; on standard error, because standard output is for the result."""
    if not sys.stderr.isatty():
        return _line_teller(), lambda: None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = stack.enter_context(Bar(*columns, console=Console(stderr=True)))
    line = bar.add_task("tasks settled", total=None)
    told = 0

    def tell(progress: Progress) -> None:
        nonlocal told
        for event in progress.events[told:]:
            bar.console.print(f"• {event}", highlight=False)
        told = len(progress.events)
        description = f"tasks settled, {progress.alive} nodes alive"
        bar.update(line, total=progress.total or None, completed=progress.settled, description=description)

    return tell, bar.stop


def _line_teller() -> Callable[[Progress], None]:
    began, last, told = time.monotonic(), 0.0, 0

    def tell(progress: Progress) -> None:
        nonlocal last, told
        now = time.monotonic()
        for event in progress.events[told:]:
            click.echo(f"[{now - began:6.1f} s] {event}", err=True)
        told = len(progress.events)
        if progress.total and now - last >= LINE_EVERY_S:
            last = now
            counts = f"{progress.settled} of {progress.total} tasks settled, {progress.alive} nodes alive"
            click.echo(f"[{now - began:6.1f} s] {counts}", err=True)

    return tell


def summary_text(summary: Summary) -> str:
    """Return the summary for people."""
    report = summary.report
    imports = ", ".join(f"{name} {count}" for name, count in Counter(report["imports"]).most_common(8))
    lines = [
        f"{summary.settled} of {summary.tasks} tasks completed in {summary.seconds:.1f} s "
        f"({summary.tasks / summary.seconds:.1f} tasks/s, two nodes killed on the way)",
        f"settled twice {summary.settled_twice} · lost {summary.lost} · run again after a lost claim {summary.rerun} · "
        f"rival claims that lost {summary.rivals}",
        "done by " + ", ".join(f"{name} {count}" for name, count in summary.by.items()),
        f"index: {report['files']} modules, {report['lines']} lines, {sum(report['tokens'].values())} tokens; "
        f"most imported: {imports}",
        "",
        *(f"{'ok  ' if held else 'FAIL'}  {what}" for what, held in summary.checks.items()),
    ]
    return "\n".join(lines)
