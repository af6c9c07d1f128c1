"""Agents that the program hosts: started by a flag, listed with their states, recorded, and gone after SIGTERM."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from converge_node.cli.main import invoke
from converge_node.demo.mesh import wait_for
from converge_node.hosted import load_agents
from converge_p2p.core.errors import ConfigError

MODULE = """
from converge_p2p import Agent, Capability
from converge_p2p.core.model.decision import ClaimTask, ReportTask
from converge_p2p.runtime.events import OutcomeKind

class Worker(Agent):
    def __init__(self):
        super().__init__(capabilities=[Capability("add")])

    def decide(self, messages, tasks):
        done = [o.task for o in self.outcomes if o.kind is OutcomeKind.GRANTED]
        claims = [ClaimTask(task.pool_id, task.id) for task in tasks if task.claimable]
        return claims + [ReportTask(task.pool_id, task.id, self.answer(task)) for task in done]

    def answer(self, task):
        return task.inputs["n"] + 1

class Other(Worker):
    def answer(self, task):
        return 0

class NeedsMore(Agent):
    def __init__(self, what):
        super().__init__()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of agents."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "my_agents.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("my_agents", None)


def test_agents_are_made_by_name_and_what_cannot_be_made_is_said(module: Path) -> None:
    first, second = load_agents(["one=my_agents:Worker", "two=my_agents:Worker"])
    assert (first.name, second.name) == ("one", "two")
    for text, said in (
        ("one=missing:Worker", "ModuleNotFoundError"),
        ("one=my_agents:Missing", "AttributeError"),
        ("one=my_agents:NeedsMore", "TypeError"),
        ("one=my_agents:MODULE", "AttributeError"),
        ("one=json:dumps", "TypeError"),
        ("one=collections:Counter", "no agent"),
        ("my_agents:Worker", "expected NAME=module:Class"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_agents([text])
    with pytest.raises(ConfigError, match="two agents are named"):
        load_agents(["one=my_agents:Worker", "one=my_agents:Other"])


@contextmanager
def node(home: Path, *flags: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """A node as a process, and what it said at the start."""
    listen = ["--listen", "/ip4/127.0.0.1/tcp/0"]
    command = [sys.executable, "-m", "converge_node", "run", "--home", str(home), *listen, *flags, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=cwd) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())["data"]
            yield process, said
        finally:
            process.kill()


def run(home: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = invoke(["--home", str(home), *words])
    return code, capsys.readouterr().out


@pytest.mark.network
def test_an_agent_on_the_command_line_works_is_listed_recorded_replayed_and_withdrawn_on_sigterm(
    tmp_path: Path, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_home, two_home, file = tmp_path / "n1", tmp_path / "n2", tmp_path / "record.ndjson"

    def ask(home: Path, *words: str) -> Any:
        code, out = run(home, *words, "--json", capsys=capsys)
        assert code == 0, out
        return json.loads(out)["data"]

    with node(one_home, cwd=module) as (_, said):
        peer = said["addresses"][0]
        flags = ("--bootstrap", peer, "--agent", "adder=my_agents:Worker", "--record")
        with node(two_home, *flags, cwd=module) as (process, two):
            pool = ask(one_home, "pool", "create", "sums", "--governance", "democratic")["id"]
            ask(two_home, "pool", "join", pool)
            done = ask(one_home, "task", "submit", pool, "add", "--input", "n:=1", "--wait")
            assert done["result"] == 2
            (item,) = ask(two_home, "agent", "hosted")
            assert (item["name"], item["kind"], item["state"], item["ok"]) == ("adder", "Worker", "idle", True)
            wait_for(
                lambda: two["id"] in _found(ask(one_home, "agent", "find", "--capability", "add")),
                60,
                "the agent to be found",
            )
            wait_for(lambda: ask(two_home, "agent", "record", "adder", "--out", str(file))["turns"] >= 2, 60, "turns")
            assert run(two_home, "agent", "record", "nobody", "--out", str(tmp_path / "x"), capsys=capsys)[0] == 6
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        wait_for(
            lambda: two["id"] not in _found(ask(one_home, "agent", "find", "--capability", "add")), 60, "the farewell"
        )
    # offline: there is no node any more
    assert run(two_home, "agent", "replay", str(file), "--agent", "my_agents:Worker", capsys=capsys)[0] == 0
    code, out = run(two_home, "agent", "replay", str(file), "--agent", "my_agents:Other", capsys=capsys)
    assert (code, "decided" in out) == (1, True)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], *lines[2:]]) if len(lines) > 2 else lines[0][:-9] + b"\n")
    assert run(two_home, "agent", "replay", str(file), capsys=capsys)[0] != 0


def _found(items: Sequence[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]
