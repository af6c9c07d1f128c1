"""`top`: frames that fit, from a node that may come and go, over either socket."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from control_kit import Ground, ground, served
from node_fakes import FakePeer
from rich.console import Console

from converge_node.control.app import ControlApi
from converge_node.control.server import open_control_server
from converge_node.errors import ExitCode
from converge_node.snapshot import TASKS_OF_STATE_MAX, Lag, Snapshot, lags_of, take_snapshot
from converge_node.top_view import duration, frame
from converge_p2p.client import Client
from converge_p2p.client.routes import Scope
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.task import Outcome, Task

ROOT = Path(__file__).parents[2]
HOSTILE = "evil [red]\x1b[31m\u202e"


def lines_of(snapshot: Snapshot, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(frame(snapshot, width, height))
    return captured.get().splitlines()


async def snapshot_of(known: Ground, path: Path) -> Snapshot:
    return await trio.to_thread.run_sync(take_snapshot, Client(path))


async def busy(known: Ground) -> None:
    """Many of everything, and a name that would like to be obeyed."""
    for number in range(40):
        task = (await known.pool.submit(Task(HOSTILE if not number else f"index-{number}", {}, key=str(number)))).id
        if number % 2:
            known.pool.settle(task, Outcome.COMPLETED, {})
    for number in range(1, 31):
        identity = Identity.from_seed(bytes([number]) * 32)
        known.node.fake_peers.append(FakePeer(identity, f"12D3KooWFake{number}", relayed=number % 2 == 0))
        await known.pool.council.move(expel=[identity.public_key])


async def test_a_snapshot_is_bounded_and_begins_with_the_newest_of_what_is_settled(tmp_path: Path) -> None:
    async with served(tmp_path) as (known, path, _, _):
        await busy(known)
        (look,) = (await snapshot_of(known, path)).pools
        states = [task.state for task in look.tasks]
        assert (states.count("pending"), states.count("completed")) == (TASKS_OF_STATE_MAX, TASKS_OF_STATE_MAX)
        settled = [task.objective for task in look.tasks if task.state == "completed"]
        assert settled == [f"index-{number}" for number in range(39, 0, -2)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 40), (200, 70)])
async def test_a_frame_fits_and_says_how_much_more_there_is(tmp_path: Path, width: int, height: int) -> None:
    async with served(tmp_path) as (known, path, _, _):
        await busy(known)
        snapshot = await snapshot_of(known, path)
        lines = lines_of(snapshot, width, height)
        # three rows of each of five lists have to stand somewhere
        assert len(lines) <= max(height, 32)
        assert max(map(len, lines)) <= width
        text = "\n".join(lines)
        assert "Tasks 41" in text
        assert "Peers 30" in text
        assert re.search(r"… and \d+ more", text)
        assert "\x1b" not in text
        assert "\u202e" not in text


async def test_what_a_stranger_calls_itself_is_neither_markup_nor_an_order_to_the_terminal(tmp_path: Path) -> None:
    async with served(tmp_path) as (known, path, _, _):
        await known.pool.submit(Task(HOSTILE, {}, key="h"))
        text = "\n".join(lines_of(await snapshot_of(known, path), 200, 50))
        assert "evil [red]\\x1b[31m\\x202e" in text


async def test_what_is_wrong_stands_in_the_frame(tmp_path: Path) -> None:
    async with served(tmp_path) as (known, path, _, _):
        known.pool.has_quorum = False
        known.pool.change(replace(known.pool.task(known.task), unjudged=()))
        snapshot = await snapshot_of(known, path)
        (look,) = snapshot.pools
        detail = msgspec.structs.replace(look.detail, culprits=2, unsure="its store is an old copy")
        look = msgspec.structs.replace(look, detail=detail, lag=Lag(behind=7, oldest_task_s=3700))
        text = "\n".join(lines_of(msgspec.structs.replace(snapshot, pools=[look]), 200, 50))
        for words in ("7 operations behind", "2 electors broke a rule", "its store is an old copy", "1 h 1 min"):
            assert words in text


def test_lags_are_read_from_the_metrics() -> None:
    text = (
        "# TYPE converge_pool_operations_behind gauge\n"
        'converge_pool_operations_behind{pool="00112233"} 12\n'
        'converge_pool_oldest_task_seconds{pool="00112233"} 4.5\n'
        'converge_pool_operations_behind{pool="other"} 3\n'
    )
    assert lags_of(text) == {"00112233": Lag(behind=12, oldest_task_s=4.5)}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (61, "1 min 1 s"), (90_000, "1 d 1 h"), (3600, "1 h")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ------------------------------------------------------------ the command


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "node"), *words], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


async def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return await trio.to_thread.run_sync(partial(command, *words, **environment))


async def test_a_pipe_gets_one_frame_over_either_socket(tmp_path: Path) -> None:
    async with served(tmp_path) as (known, _, url, tokens):
        for done in (
            await run("--home", str(tmp_path), "top"),
            await run("--url", url, "top", "--once", CONVERGE_NODE_TOKEN=tokens[Scope.READ]),
        ):
            assert done.returncode == 0, done.stderr
            assert "demo" in done.stdout
            assert "\x1b" not in done.stdout
        done = await run("--home", str(tmp_path), "top", "--once", "--json")
        assert json.loads(done.stdout)["data"]["pools"][0]["tasks"][0]["id"] == known.task.hex()
        done = await run("--url", url, "top", "--once", CONVERGE_NODE_TOKEN="wrong")
        assert done.returncode == ExitCode.NOT_AUTHORISED


def test_without_a_node_one_frame_is_an_error(tmp_path: Path) -> None:
    done = command("--home", str(tmp_path), "top", "--once")
    assert (done.returncode, done.stdout) == (ExitCode.UNREACHABLE, "")
    assert "no node answers" in done.stderr


OWN_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Makes the terminal one whose keys signal this process."""


class Terminal:
    """A program in a terminal."""

    def __init__(self, *words: str) -> None:
        self._file, inner = pty.openpty()
        termios.tcsetwinsize(inner, (50, 160))
        self.before = termios.tcgetattr(inner)
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, str(ROOT / "node"), *words], stdin=inner, stdout=inner, stderr=inner,
            env={**os.environ, "TERM": "xterm-256color"}, start_new_session=True,
        )  # fmt: skip
        self.inner = inner
        self._seen = ""

    def until(self, text: str) -> None:
        """Read what is shown until a text stands there, and forget it."""
        end = time.monotonic() + 30
        while text not in self._seen:
            assert time.monotonic() < end, f"{text!r} was not shown: {self._seen[-2000:]!r}"
            if select.select([self._file], [], [], 0.2)[0]:
                self._seen += os.read(self._file, 65536).decode(errors="replace")
        self._seen = self._seen[self._seen.index(text) + len(text) :]

    def press(self, key: bytes) -> None:
        os.write(self._file, key)

    def ended(self) -> int:
        """Return the exit code; what is still shown is read, so that the program can end."""
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self._file], [], [], 0.1)[0]:
                os.read(self._file, 65536)
        return self.process.wait(1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.inner)
        os.close(self._file)


async def test_a_terminal_shows_it_live_waits_for_a_node_that_restarts_and_ends_with_a_key(tmp_path: Path) -> None:
    known = await ground()
    app, path = ControlApi(known.state).app(), tmp_path / "control.sock"

    async def shown(terminal: Terminal, text: str) -> None:
        await trio.to_thread.run_sync(terminal.until, text)

    with trio.fail_after(120):
        async with AsyncExitStack() as stack:
            terminal = Terminal("--home", str(tmp_path), "top", "--interval", "0.2")
            stack.callback(terminal.close)
            await shown(terminal, "no node answers")
            async with open_control_server(app, path):
                await shown(terminal, "pending 1 ")
                known.pool.settle(known.task, Outcome.COMPLETED, {})
                await shown(terminal, "completed 1 ")
            await shown(terminal, "no node answers")
            async with open_control_server(app, path):
                await shown(terminal, "completed 1 ")
                terminal.press(b"q")
                assert await trio.to_thread.run_sync(terminal.ended) == 0
            assert termios.tcgetattr(terminal.inner) == terminal.before


@pytest.mark.parametrize("key", [b"Q", b"\x03"])
def test_ctrl_c_ends_it_as_cleanly(tmp_path: Path, key: bytes) -> None:
    terminal = Terminal("--home", str(tmp_path), "top")
    try:
        terminal.until("no node answers")
        terminal.press(key)
        assert terminal.ended() == 0
    finally:
        terminal.close()
