"""Kill -9 before every call that changes a file: nothing that was promised is lost, and no number is signed twice.

Knows: calls, processes and pipes. Must not know: what a node writes (see `crash_stories`).
`python tests/node/crash_points.py` enumerates every point; `--each 2` only the first and the last time of each kind.

A process imports everything once. For each point it forks a child that tells a story and kills itself before that call,
then another that tells the story again over what is left. The calls are those of Python: `execute` and its like of
SQLite, and what writes, syncs, makes, links, renames and removes files. Inside of one call of SQLite nothing is killed.
The kind of a call is the chain of places in this project that led to it, and the family of the key that is set.
"""

from __future__ import annotations

import argparse
import json
import linecache
import logging
import os
import shutil
import signal
import sqlite3
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from crash_stories import Said, Say, files_story, make_old_database, node_story, work_in_moved_home

_PLACES = 4
_LIBRARY = sysconfig.get_paths()["stdlib"]
_ROOT = Path(__file__).parents[2]
_OURS = (str(_ROOT / "converge_p2p"), str(_ROOT / "node" / "converge_node"))
_SQL = frozenset({"execute", "executemany", "backup", "close"})
_FILE = frozenset({"write", "flush", "close", "truncate"})
_OS = frozenset(
    {
        "open", "write", "fsync", "replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir", "chmod", "fchmod",
        "utime", "truncate", "ftruncate",
    }
)  # fmt: skip
_READERS = frozenset(
    {
        "get", "list", "load", "snapshot", "pools", "count", "check_ours", "check", "value", "keys", "counts",
        "operations", "snapshots", "_number", "_open_to_read", "_findings", "read", "sync_folder", "load_identity",
        "held_if_free", "check_integrity",
    }
)  # fmt: skip
"""Functions that change nothing."""

Point = tuple[str, int]
Story = Callable[[Path, Said, Say], None]


class Points:
    """Counts calls by kind, and kills the process before one of them."""

    def __init__(self, fatal: Point | None = None) -> None:
        self.fatal = fatal
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Begin, in this thread and those that are started from now on."""
        threading.setprofile(self._on_call)
        sys.setprofile(self._on_call)

    def _on_call(self, frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call" or not _changes(function):
            return
        kind = _kind(frame, function.__name__)
        if kind is None:
            return
        with self._lock:
            self.counts[kind] += 1
            if self.fatal == (kind, self.counts[kind]):
                os.kill(os.getpid(), signal.SIGKILL)


def _changes(function: Any) -> bool:
    name, of = function.__name__, getattr(function, "__self__", None)
    if name in _SQL and isinstance(of, sqlite3.Connection):
        return True
    if name in _OS and of is not None and getattr(of, "__name__", "") == "posix":
        return True
    return name in _FILE and type(of).__module__ == "_io"


def _kind(frame: FrameType, name: str) -> str | None:
    places: list[str] = []
    key = ""
    at: FrameType | None = frame
    while at is not None and len(places) < _PLACES:
        path, function = at.f_code.co_filename, at.f_code.co_name
        if path.startswith(_OURS):
            if not places and (function in _READERS or "SELECT" in linecache.getline(path, at.f_lineno)):
                return None
            places.append(f"{path.removeprefix(str(_ROOT) + '/')}:{at.f_lineno}")
            if function in {"put", "put_if_absent", "delete"} and isinstance(at.f_locals.get("key"), str):
                # names of agents, pools and tasks differ from one telling to the next
                key = "/".join(part for part in at.f_locals["key"].split("/")[:2] if part.isalpha())
        elif not path.startswith((_LIBRARY, "<")) and not places:
            return None
        at = at.f_back
    return f"{name} {' < '.join(places)} {key}".strip() if places else None


# ------------------------------------------------------------------ telling


@dataclass(slots=True)
class Telling:
    """What came of one child: what it said, the calls it made if it came to its end, and what went wrong."""

    said: Said = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] | None = None
    error: str = ""
    killed: bool = False


def tell(story: Story, folder: Path, said: Said, points: Points | None = None) -> Telling:
    """Tell a story in a child of its own, whose calls are counted if there is something to count them with."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_told(story, folder, said, points, writing)
    os.close(writing)
    telling = Telling()
    with os.fdopen(reading) as lines:
        for line in lines:
            name, *values = json.loads(line)
            if name == "error":
                telling.error = values[0]
            elif name == "counts":
                telling.counts = values[0]
            else:
                telling.said[name].append(values)
    _, status = os.waitpid(child, 0)
    telling.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not telling.killed and telling.counts is None and not telling.error:
        telling.error = f"the child ended with status {status}"
    return telling


def _be_told(story: Story, folder: Path, said: Said, points: Points | None, writing: int) -> None:
    lock = threading.Lock()

    def say(name: str, *values: Any) -> None:
        # the pipe outlives the process, so what was said counts
        with lock:
            os.write(writing, json.dumps([name, *values]).encode() + b"\n")

    try:
        # a story that hangs is one that went wrong
        signal.alarm(120)
        if points is not None:
            points.watch()
        story(folder, said, say)
        sys.setprofile(None)
        say("counts", {} if points is None else dict(points.counts))
    except BaseException:  # the parent is told
        sys.setprofile(None)
        say("error", traceback.format_exc()[-3000:])
    finally:
        os._exit(0)


# ------------------------------------------------------------------ the report


@dataclass(slots=True)
class Report:
    """What came of all points.

    Attributes:
        kinds: of calls that were found; `calls`: how many there are in one telling.
        points: that were chosen; `killed`: in which the process died there. The rest came to its end before.
        acknowledged: promises that were asked for again.
        failures: by point.
    """

    kinds: int = 0
    calls: int = 0
    points: int = 0
    killed: int = 0
    acknowledged: int = 0
    failures: list[str] = field(default_factory=list)


def signed_twice(*tellings: Telling) -> list[str]:
    """Say of which numbers two different operations, or descriptors, were sent."""
    found: dict[tuple[str, ...], str] = {}
    twice = []
    for telling in tellings:
        for *name, identity in (*telling.said["sent"], *telling.said["descriptor"]):
            if found.setdefault(tuple(name), identity) != identity:
                twice.append(" ".join(name))
    return twice


def left_overs(folder: Path) -> list[str]:
    """Return the temporary files that are still there."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if ".new" in path.name]


class Crasher:
    """Tells a story with a kill at each of its points."""

    def __init__(self, story: Story, after: Story | None, template: Path | None, work: Path) -> None:
        self._story, self._after, self._template, self._work = story, after, template, work
        self._number = 0

    def _folder(self) -> Path:
        self._number += 1
        folder = self._work / f"{self._story.__name__}-{self._number}"
        if self._template is None:
            folder.mkdir(mode=0o700)
        else:
            shutil.copytree(self._template, folder)
            folder.chmod(0o700)
        return folder

    def run(self, each: int | None, report: Report, share: tuple[int, int]) -> None:
        """Find the points, and kill at them: at `each` occurrences of a kind, or at all."""
        whole = tell(self._story, folder := self._folder(), defaultdict(list), Points())
        shutil.rmtree(folder)
        assert whole.counts is not None, whole.error
        report.kinds += len(whole.counts)
        report.calls += sum(whole.counts.values())
        chosen = [point for kind, count in sorted(whole.counts.items()) for point in _of(kind, count, each)]
        for point in chosen[share[0] :: share[1]]:
            report.points += 1
            wrong = self._kill_at(point, report)
            print(f"{self._story.__name__} {report.points}: {wrong or 'all held'}", file=sys.stderr)
            if wrong:
                report.failures.append(f"{self._story.__name__} {point[1]}. {point[0]}: {wrong}")

    def _kill_at(self, point: Point, report: Report) -> str:
        folder = self._folder()
        first = tell(self._story, folder, defaultdict(list), Points(point))
        report.killed += first.killed
        report.acknowledged += sum(map(len, first.said.values()))
        if first.error:
            return f"before the kill: {first.error}"
        second = tell(self._story, folder, first.said)
        tellings = [first, second]
        if self._after is not None and not second.error:
            tellings.append(tell(self._after, folder, first.said))
        for each in tellings[1:]:
            if each.error:
                return each.error
        if twice := signed_twice(*tellings):
            return f"signed twice: {twice}"
        if left := left_overs(folder):
            return f"left over: {left}"
        shutil.rmtree(folder)
        return ""


def _of(kind: str, count: int, each: int | None) -> list[Point]:
    numbers = range(1, count + 1)
    if each == 1:
        # the last one has most before it that can be lost
        return [(kind, count)]
    if each is not None and count > each:
        return [(kind, number) for number in sorted({1, count})]
    return [(kind, number) for number in numbers]


def crash(each: int | None, work: Path, share: tuple[int, int] = (0, 1), stories: str = "both") -> Report:
    """Run the stories with all chosen points."""
    report = Report()
    if stories != "files":
        Crasher(node_story, None, None, work).run(each, report, share)
    if stories != "node":
        template = work / "template"
        template.mkdir(mode=0o700)
        made = tell(node_story, template, defaultdict(list))
        assert made.counts is not None, made.error
        make_old_database(template / "old" / "node.sqlite")
        (template / "old" / "node.sqlite").chmod(0o600)
        Crasher(files_story, work_in_moved_home, template, work).run(each, report, share)
    return report


def main() -> None:
    """Run from the command line; the report is JSON, and what failed is shown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--each", type=int, help="points of each kind: 1 the last, 2 first and last; default all")
    parser.add_argument("--share", default="0/1", help="I/N: only every N-th point, beginning with number I")
    parser.add_argument("--stories", choices=("both", "node", "files"), default="both")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    first, step = map(int, arguments.share.split("/"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-") as work:
        report = crash(arguments.each, Path(work), (first, step), arguments.stories)
    print(json.dumps({**asdict(report), "seconds": round(time.monotonic() - began)}, indent=1))
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
