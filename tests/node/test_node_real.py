"""Two real nodes as processes on loopback, driven by the command line alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[2]
DEAD = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWB8ByWevpkhVFdFUEu13bju4ATMQXMdK2pY25hCSqBLUy"

JOBS = """
def double(task, context):
    return {"n": 2 * task.inputs["n"], "raw": task.inputs["raw"][::-1]}
"""


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "node"), "--json", "--home", *([str(folder), *words])]


def ask(folder: Path, *words: str) -> tuple[int, Any]:
    done = subprocess.run(command(folder, *words), capture_output=True, text=True, timeout=60, check=False, env=clean())
    document = json.loads(done.stdout)
    return done.returncode, document["data"] if document["ok"] else document["error"]


def clean() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}


@contextmanager
def node(folder: Path, *words: str) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """Run a node in a process, and check that it ends in order and logs nothing but JSON."""
    process = subprocess.Popen(
        command(folder, "run", "--listen", "/ip4/127.0.0.1/tcp/0", *words),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean(), cwd=folder.parent,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line)["data"], process
        process.terminate()
        _, err = process.communicate(timeout=35)
        assert process.returncode == 0, err
        for logged in err.splitlines():
            json.loads(logged)
    finally:
        process.kill()
        process.communicate()


def test_a_worker_finds_the_pool_does_the_work_and_comes_back_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    first, second = tmp_path / "n1", tmp_path / "n2"
    with ExitStack() as stack:
        founder, _ = stack.enter_context(node(first))
        code, pool = ask(first, "pool", "create", "demo", "--task-type", "double")
        assert (code, pool["governance"], pool["ready"]) == (0, "democratic", True)

        # the two sides of every link run different code, which must make no difference
        words = ("--bootstrap", founder["addresses"][0], "--bootstrap", DEAD, "--pool", "open", "--transport", "stock")
        submit = (
            "task",
            "submit",
            "demo",
            "double",
            "--input",
            "n:=21",
            "--input",
            'raw:={"$bytes": "AAEC"}',
            "--wait",
        )
        ids = set()
        for key in ("before", "after"):
            with node(second, *words, "--handler", "double=jobs:double@2") as (worker, _):
                ids.add(worker["id"])
                code, task = ask(first, *submit, "--timeout", "40", "--key", key)
                assert (code, task["state"], task["certified"], task["settled_by"]) == (
                    0,
                    "completed",
                    True,
                    worker["id"],
                )
                assert task["result"] == {"n": 42, "raw": {"$bytes": "AgEA"}}
                (peer,) = ask(first, "peers", "ls")[1]
                assert peer["agent_id"] == worker["id"]
                # what the founder sees as settled, the worker sees too, and in the same words
                seen = ask(second, "task", "show", "demo", task["id"])[1]
                assert (seen["state"], seen["result"]) == ("completed", task["result"])
        assert len(ids) == 1
        assert ask(first, *submit, "--key", "before")[1]["settled_by"] in ids
        code, error = ask(first, "task", "submit", "demo", "double", "--wait", "--timeout", "0.2")
        assert (code, error["code"]) == (8, "timeout")
