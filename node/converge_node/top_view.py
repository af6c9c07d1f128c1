"""What `top` shows of a node: one frame that fits into the terminal.

Knows: snapshots and rich. Must not know: where a snapshot comes from, or keys.
Source: docs/web.md. Names and notes come from strangers: they are cleaned, and never read as markup.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converge_node.cli.output import clean, short
from converge_node.snapshot import OPEN_STATES, STATES, PoolLook, Snapshot, worker_of
from converge_p2p.client import schema

STATE_STYLES: Final = {
    "pending": "yellow",
    "assigned": "cyan",
    "completed": "green",
    "failed": "red",
    "cancelled": "bright_black",
    "open": "yellow",
    "carried": "green",
    "rejected": "red",
    "lapsed": "bright_black",
}
ROWS_MIN: Final = 3
REASONS_MAX: Final = 2
WIDE: Final = 110
"""Columns of a terminal below which what can be looked up elsewhere is left out."""

_ID: Final = re.compile(r"\b[0-9a-f]{64}\b")

Row = Sequence[str | Text]


@dataclass(frozen=True, slots=True)
class Section:
    """A list of the frame: its title, columns, rows, what stands there if there are none, columns that need not be,
    and how many rows there would be if all were known.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[Row]
    empty: str
    minor: frozenset[str] = frozenset()
    total: int = 0

    def render(self, rows_max: int, width: int) -> RenderableType:
        """Return the section with at most so many rows; what does not fit is counted."""
        fits = len(self.rows) <= rows_max
        shown = self.rows if fits else self.rows[: max(0, rows_max - 1)]
        kept = [index for index, name in enumerate(self.columns) if width >= WIDE or name not in self.minor]
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black", show_edge=False)
        for index in kept:
            table.add_column(self.columns[index], no_wrap=True, overflow="ellipsis")
        for row in shown:
            cells = [row[index] for index in kept]
            table.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in cells))
        count = max(self.total, len(self.rows))
        title = Text(f"{self.title} ", style="bold").append(str(count), style="bright_black")
        if not self.rows:
            return Group(title, Text(self.empty, style="bright_black"))
        if fits:
            return Group(title, table)
        return Group(title, table, Text(f"… and {count - len(shown)} more", style="bright_black"))

    def height(self, rows: int) -> int:
        """Return how many lines it takes with so many rows."""
        return 2 if not self.rows else 2 + min(rows, len(self.rows))


def frame(snapshot: Snapshot, width: int, height: int) -> RenderableType:
    """Return a frame of at most so many columns and lines, unless the terminal is too small for three rows each."""
    head = [*_head(snapshot), *_task_bar(snapshot, width)]
    sections = [make(snapshot) for make in _SECTIONS]
    # a blank line stands above each section, and the last line stays free for the cursor
    rows = _share(sections, height - 1 - len(head) - len(sections))
    parts: list[RenderableType] = [*head]
    for section, count in zip(sections, rows, strict=True):
        parts += [Text(""), section.render(count, width)]
    return Group(*parts)


def no_answer(message: str, hint: str, seconds: float) -> RenderableType:
    """Return the frame for a node that does not answer."""
    return Group(
        Text("no node answers", style="bold red"),
        Text(clean(message)),
        Text(clean(hint), style="bright_black"),
        Text(f"asking again every {seconds:g} s; q ends", style="bright_black"),
    )


def _share(sections: list[Section], lines: int) -> list[int]:
    """Give each section three rows, and the lines that are left to those with more, one after the other."""
    rows = [min(ROWS_MIN, len(section.rows)) for section in sections]
    left = lines - sum(section.height(count) for section, count in zip(sections, rows, strict=True))
    while left > 0 and any(len(section.rows) > count for section, count in zip(sections, rows, strict=True)):
        for index, section in enumerate(sections):
            if left > 0 and len(section.rows) > rows[index]:
                rows[index] += 1
                left -= 1
    return rows


def _head(snapshot: Snapshot) -> list[RenderableType]:
    status, health = snapshot.status, snapshot.health
    good = health.healthy and health.ready
    word = "ready" if good else health.stage if health.healthy else "unhealthy"
    behind = sum(look.lag.behind for look in snapshot.pools)
    line = Text.assemble(
        ("● ", "green" if good else "red"),
        (f"node {short(status.node.id)}", "bold"),
        f"  {clean(word)}  up {duration(status.uptime_s)}  {status.peers} peers  {len(status.pools)} pools  ",
        (f"{behind} operations behind" if behind else "converged", "yellow" if behind else "green"),
        f"  v{clean(status.node.version)}",
    )
    line.no_wrap = True
    wrong = [
        Text(clean(f"{each.what}: {each.text}"), style="red" if each.fatal else "yellow", no_wrap=True)
        for each in health.reasons[:REASONS_MAX]
    ]
    return [line, *wrong]


def _task_bar(snapshot: Snapshot, width: int) -> list[RenderableType]:
    counts = {state: sum(pool.tasks.get(state, 0) for pool in snapshot.status.pools) for state in STATES}
    total = sum(counts.values())
    if not total:
        return []
    bar, legend, drawn, seen = Text(), Text(), 0, 0
    for state, count in counts.items():
        seen += count
        # ends are rounded, not lengths, so that the bar is as wide as the frame
        end = round(width * seen / total)
        bar.append("█" * (end - drawn), style=STATE_STYLES[state])
        legend.append("■ ", style=STATE_STYLES[state]).append(f"{state} {count}   ")
        drawn = end
    return [bar, legend]


def _pools(snapshot: Snapshot) -> Section:
    rows: list[Row] = []
    for look in snapshot.pools:
        pool = look.detail
        quorum = {True: Text("yes", style="green"), False: Text("no", style="red"), None: Text("?")}[pool.has_quorum]
        rows.append(
            (
                pool.name,
                short(pool.id),
                pool.governance,
                str(pool.epoch) if pool.ready else "…",
                f"{pool.electors} of {pool.members}",
                quorum,
                str(sum(pool.tasks.get(state, 0) for state in OPEN_STATES)),
                str(sum(pool.tasks.values())),
                str(look.lag.behind),
                duration(look.lag.oldest_task_s) if look.lag.oldest_task_s else "-",
                Text(clean(_warning(look)), style="red"),
            )
        )
    columns = ("POOL", "ID", "GOVERNANCE", "EPOCH", "ELECTORS", "QUORUM", "OPEN", "TASKS", "BEHIND", "OLDEST", "NOTE")
    if snapshot.more_pools:
        rows.append((f"… {snapshot.more_pools} more", *[""] * (len(columns) - 1)))
    return Section("Pools", columns, rows, "this node is in no pool", frozenset({"ID", "OLDEST", "TASKS"}))


def _warning(look: PoolLook) -> str:
    pool = look.detail
    said = [f"{pool.culprits} electors broke a rule"] if pool.culprits else []
    said += [f"{len(pool.frozen)} frozen"] if pool.frozen else []
    return ", ".join([*said, *([pool.unsure] if pool.unsure else [])])


def _tasks(snapshot: Snapshot) -> Section:
    listed = [(look.detail.name, task) for look in snapshot.pools for task in look.tasks]
    # what is in work first: a list that is cut should not begin with what waits
    order = {"assigned": 0, "pending": 1}
    listed.sort(key=lambda pair: order.get(pair[1].state, 2))
    rows: list[Row] = [
        (
            task.objective,
            short(task.id),
            pool,
            _state(task),
            short(worker_of(task) or "-"),
            f"{task.epoch}/{task.round}" if task.round >= 0 else "-",
            "" if task.progress is None else f"{task.progress:.0%}",
            task.note or task.reason,
        )
        for pool, task in listed
    ]
    columns = ("TASK", "ID", "POOL", "STATE", "WORKER", "EPOCH/ROUND", "DONE", "NOTE")
    total = sum(sum(pool.tasks.values()) for pool in snapshot.status.pools)
    return Section("Tasks", columns, rows, "no task yet", frozenset({"POOL", "EPOCH/ROUND", "NOTE"}), total)


def _state(task: schema.TaskItem) -> Text:
    text = Text(clean(task.state), style=STATE_STYLES.get(task.state, ""))
    if task.awaits_veto or task.awaits_verdict:
        text.append(" awaits veto" if task.awaits_veto else " awaits verdict", style="magenta")
    return text


def _motions(snapshot: Snapshot) -> Section:
    rows: list[Row] = []
    for look in snapshot.pools:
        for motion in reversed(look.motions):
            counts = Counter(said.choice for said in motion.opinions)
            tally = ", ".join(f"{count} {_choice(option)}" for option, count in counts.items()) or "nothing yet"
            state = Text(clean(motion.state), style=STATE_STYLES.get(motion.state, ""))
            asks = _ID.sub(lambda found: short(found[0]), "; ".join(motion.asks))
            rows.append((asks, short(motion.id), look.detail.name, motion.kind, state, tally))
    rows.sort(key=lambda row: str(row[4]) != "open")
    columns = ("ASKS", "ID", "POOL", "KIND", "STATE", "SAID")
    return Section("Disputes and motions", columns, rows, "nothing is disputed", frozenset({"POOL", "KIND"}))


def _choice(option: str) -> str:
    return option if option in ("yes", "no") else short(option)


def _peers(snapshot: Snapshot) -> Section:
    rows: list[Row] = [
        (
            short(peer.agent_id),
            peer.peer_id,
            peer.direction,
            Text("relay", style="yellow") if peer.relayed else "direct",
            next(iter(peer.addresses), ""),
        )
        for peer in snapshot.peers
    ]
    columns = ("AGENT", "PEER", "DIRECTION", "PATH", "ADDRESS")
    return Section("Peers", columns, rows, "no peer is connected", frozenset({"PEER"}))


def _agents(snapshot: Snapshot) -> Section:
    rows: list[Row] = [
        (
            agent.name,
            agent.kind,
            Text(clean(agent.state), style="" if agent.ok else "red"),
            str(agent.turns),
            str(agent.failures),
            str(agent.inbox),
            str(agent.claims),
            agent.last_error,
        )
        for agent in snapshot.hosted
    ]
    columns = ("AGENT", "KIND", "STATE", "TURNS", "FAILED", "INBOX", "CLAIMS", "LAST ERROR")
    return Section("Agents", columns, rows, "no agent is hosted here", frozenset({"KIND", "INBOX", "FAILED"}))


_SECTIONS: Final[tuple[Callable[[Snapshot], Section], ...]] = (_pools, _tasks, _motions, _peers, _agents)


def duration(seconds: float) -> str:
    """Return a time as people read it, to two parts: `3 d 4 h`."""
    left = int(seconds)
    parts: list[str] = []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
