"""`converge-node sim`: the simulation on a terminal.

Knows: options, progress and how results look. Must not know: how they come about (see `measure`).
Source: docs/capacity.md.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converge_node.cli.output import facts, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import ExitCode, UsageError
from converge_node.sim.plan import (
    CUTS_MAX,
    DEGREE_MAX,
    DEGREE_MIN,
    MODELS,
    NODES_MAX,
    PAYLOAD_BYTES_MAX,
    RUN_S_MAX,
    TASKS_MAX,
    Plan,
    read_cut,
    read_latency,
    read_sizes,
)
from converge_p2p.core import limits

if TYPE_CHECKING:
    from converge_node.sim.measure import Measured, Progress, Spread

LINE_EVERY_S = 2.0
_CLEAR = "\r\x1b[K"
SEED_MAX = 2**63 - 1


@click.command
@click.option("--nodes", type=click.IntRange(2, NODES_MAX), default=100, show_default=True, metavar="N")
@click.option("--sizes", metavar="N,N…", help="Instead of --nodes: one run for each size, such as 10,100,1000.")
@click.option("--tasks", type=click.IntRange(0, TASKS_MAX), default=20, show_default=True, metavar="N")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=10, show_default=True, help="Tasks a second.")
@click.option("--electors", type=click.IntRange(1, limits.ELECTORS_MAX), default=5, show_default=True, metavar="N")
@click.option("--workers", type=click.IntRange(1, NODES_MAX), metavar="N", help="Members that work. [default: 8]")
@click.option("--model", type=click.Choice(list(MODELS)), default="democratic", show_default=True)
@click.option(
    "--faults", type=click.IntRange(0), metavar="F", help="Electors that may lie. [default: 1 of four or more]"
)
@click.option("--payload", type=click.IntRange(0, PAYLOAD_BYTES_MAX), default=64, show_default=True, metavar="BYTES",
              help="In each task, and in each result.")  # fmt: skip
@click.option("--work", "work_ms", type=click.IntRange(0, 600_000), default=200, show_default=True, metavar="MS",
              help="How long a task takes.")  # fmt: skip
@click.option("--loss", type=click.FloatRange(0, 0.9), default=0.0, show_default=True, metavar="P",
              help="Share of the messages that are lost.")  # fmt: skip
@click.option("--latency", default="10-60", show_default=True, metavar="MS", help="Of a link: N, or FROM-TO.")
@click.option("--partition", "partitions", multiple=True, metavar="SPEC",
              help="START:LENGTH:PERCENT: seconds after the first task, seconds, share of nodes cut off.")  # fmt: skip
@click.option("--degree", type=click.IntRange(DEGREE_MIN, DEGREE_MAX), default=6, show_default=True, metavar="N",
              help="Neighbours in the gossip mesh.")  # fmt: skip
@click.option("--links", type=click.IntRange(DEGREE_MIN, limits.PEERS_MAX), metavar="N",
              help="Connections a node wants. [default: degree and 2]")  # fmt: skip
@click.option("--patience", type=click.FloatRange(1, RUN_S_MAX), default=300.0, show_default=True, metavar="S",
              help="Virtual seconds after the last task and partition until the run is given up.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, SEED_MAX), default=0, show_default=True, metavar="S")
@click.option("--plot", "plot_file", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE",
              help="Draw cost against size, as SVG. Needs --sizes.")  # fmt: skip
@apply_shared
@pass_invocation
def sim(
    invocation: Invocation,
    /,
    *,
    nodes: int,
    sizes: str | None,
    workers: int | None,
    latency: str,
    partitions: tuple[str, ...],
    links: int | None,
    patience: float,
    plot_file: Path | None,
    **given: Any,
) -> int:
    """Run the replica of production at many nodes on a virtual network, and say what that costs.

    The same options and seed give the same output. Exit code 1 if a run did not come to its end.

    \b
    converge-node sim --nodes 1000 --tasks 10 --loss 0.01 --partition 0:5:30 --seed 7
    converge-node sim --sizes 10,100,1000 --plot cost.svg
    """
    if plot_file is not None and sizes is None:
        raise UsageError("a plot of cost against size needs sizes", hint="--sizes 10,100,1000")
    if len(partitions) > CUTS_MAX:
        raise UsageError(f"at most {CUTS_MAX} partitions")
    counts = (nodes,) if sizes is None else read_sizes(sizes)
    if workers is None:
        workers = max(0, min(8, counts[0] - given["electors"]))
    given |= {"latency_ms": read_latency(latency), "cuts": tuple(map(read_cut, partitions)), "patience_s": patience}
    links = given["degree"] + 2 if links is None else links
    plans = [Plan(count, workers=workers, links=links, **given) for count in counts]
    results = _run(plans)
    if plot_file is not None:
        try:
            plot_file.write_text(drawing(plans[0], results), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {plot_file}: {error.strerror}") from error
    show(
        invocation,
        results,
        ids=lambda: [result.fingerprint for result in results],
        text=lambda: "\n\n".join(map(result_text, results)),
    )
    return ExitCode.OK if all(result.converged for result in results) else ExitCode.FAILURE


def _run(plans: list[Plan]) -> list[Measured]:
    from converge_node.sim.measure import measure

    results = []
    for plan in plans:
        began = time.monotonic()
        results.append(measure(plan, _teller()))
        # the most that this process ever needed: Linux counts in KiB
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        took_s = time.monotonic() - began
        line = f"{plan.nodes} nodes: {took_s:.1f} s on this machine, peak memory {peak_mb:.0f} MiB"
        click.echo(_CLEAR + line if sys.stderr.isatty() else line, err=True)
    return results


def _teller() -> Callable[[Progress], None]:
    """Progress on standard error, as standard output is for the result: one line on a terminal, lines elsewhere."""
    last = time.monotonic()
    live = sys.stderr.isatty()

    def tell(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= (LINE_EVERY_S / 10 if live else LINE_EVERY_S):
            last = now
            line = (
                f"{progress.nodes} nodes: {progress.virtual_ms / 1000:.2f} s of virtual time, "
                f"{progress.settled} of {progress.tasks} tasks settled everywhere, {progress.events:,} events"
            )
            click.echo(_CLEAR + line if live else line, err=True, nl=not live)

    return tell


def result_text(result: Measured) -> str:
    """Return a result for people."""
    if result.formed_ms < 0:
        return f"{result.nodes} nodes: the pool was not known everywhere after ten minutes; nothing was submitted"
    end = f"{result.convergence_ms / 1000:.1f} s after the last task and partition" if result.converged else "no"
    about = facts(
        [
            ("nodes", f"{result.nodes}, seed {result.seed}, {result.model}"),
            (
                "formed",
                f"{result.formed_ms / 1000:.1f} s, {_bytes(result.formation_bytes.p50)} sent by the median node",
            ),
            ("converged", end),
            ("tasks", f"{result.settled} of {result.tasks} settled"),
            ("settled after", _times(result.settled_ms)),
            ("known everywhere", _times(result.everywhere_ms)),
            ("operations held", result.operations),
            ("gossip", f"{result.gossip_copies} copies arrived, {result.gossip_duplicates} not needed"),
            ("lost", f"{result.lost} messages"),
        ]
    )
    rows = [
        ("messages sent", *_row(result.sent_messages, str)),
        ("messages received", *_row(result.received_messages, str)),
        ("bytes sent", *_row(result.sent_bytes, _bytes)),
        ("bytes received", *_row(result.received_bytes, _bytes)),
    ]
    roles = [
        (role.name, role.nodes, role.sent_messages, _bytes(role.sent_bytes), role.received_messages,
         _bytes(role.received_bytes), role.signed)
        for role in result.roles
    ]  # fmt: skip
    return "\n\n".join(
        [
            about,
            table(("A NODE", "P50", "P95", "MAX"), rows, empty=""),
            table(("MEAN OF", "NODES", "SENT", "BYTES", "RECEIVED", "BYTES", "SIGNED"), roles, empty=""),
        ]
    )


def drawing(plan: Plan, results: list[Measured]) -> str:
    """Return the plot of cost against size."""
    from converge_node.sim.plot import Line, Panel, plot

    def spread(of: Callable[[Measured], Spread], scale: float) -> tuple[Line, ...]:
        names = ("p50", "p95", "max")
        return tuple(
            Line(name, tuple(getattr(of(result), name) / scale or None for result in results)) for name in names
        )

    once = Line("all nodes equal", tuple(r.convergence_ms / 1000 if r.convergence_ms > 0 else None for r in results))
    known = tuple(r.everywhere_ms.max / 1000 or None for r in results)
    settled = tuple(r.settled_ms.p50 / 1000 or None for r in results)
    times = (once, Line("a task known at all (max)", known), Line("a task settled (p50)", settled))
    panels = (
        Panel("bytes sent by a node", "kB", spread(lambda result: result.sent_bytes, 1000)),
        Panel("messages sent by a node", "", spread(lambda result: result.sent_messages, 1)),
        Panel("virtual seconds", "s", times),
    )
    heading = f"{plan.tasks} tasks, {plan.electors} electors, {plan.workers} workers, {plan.model}, seed {plan.seed}"
    return plot(heading, "nodes", [result.nodes for result in results], panels)


def _row(spread: Spread, shown: Callable[[int], str]) -> tuple[str, str, str]:
    return shown(spread.p50), shown(spread.p95), shown(spread.max)


def _times(spread: Spread) -> str:
    if not spread.max:
        return "none"
    return f"p50 {spread.p50 / 1000:.2f} s, p95 {spread.p95 / 1000:.2f} s, max {spread.max / 1000:.2f} s"


def _bytes(count: int) -> str:
    return f"{count / 1000:,.1f} kB"
