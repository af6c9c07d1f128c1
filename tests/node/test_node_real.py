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


def until_state(folder: Path, pool: str, task: str, state: str) -> Any:
    for _ in range(60):
        code, item = ask(folder, "task", "show", pool, task)
        if code == 0 and item["state"] == state:
            return item
    raise AssertionError(f"the task is not {state}: {item}")


FILES = """
def turn(task, context):
    return task.inputs["file"][::-1]
"""


def test_a_file_too_large_for_a_task_is_an_input_a_result_and_a_blob(tmp_path: Path) -> None:
    (tmp_path / "files.py").write_text(FILES)
    home, content = tmp_path / "n1", os.urandom(600_000)
    (tmp_path / "in").write_bytes(content)

    def run(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        line = [word for word in command(home, *words) if word != "--json"]
        return subprocess.run(line, capture_output=True, timeout=60, check=False, env=clean(), input=given)

    with node(home, "--handler", "turn=files:turn"):
        code, pool = ask(home, "pool", "create", "demo", "--private")
        assert code == 0, pool
        code, task = ask(home, "task", "submit", "demo", "turn", "--input-file", f"file={tmp_path / 'in'}")
        assert (code, list(task["inputs"]["file"])) == (0, ["$blob"])
        turned = run("task", "result", "demo", task["id"][:12], "-o", str(tmp_path / "out"))
        assert turned.returncode == 0, turned.stderr
        assert (tmp_path / "out").read_bytes() == content[::-1]

        put = run("-q", "blob", "put", "-", given=content)
        assert put.returncode == 0, put.stderr
        reference = put.stdout.decode().strip()
        assert run("blob", "get", reference).stdout == content
        code, kept = ask(home, "blob", "ls")
        assert sorted(item["hold"] for item in kept) == ["kept", "kept", "pinned"]
        assert ask(home, "blob", "rm", reference)[0] == 0
        code, error = ask(home, "blob", "get", reference, "-o", str(tmp_path / "gone"))
        assert (code, error["code"]) == (9, "network_error")
        assert not (tmp_path / "gone").exists()
        assert ask(home, "blob", "rm", reference)[1]["code"] == "not_found"
        assert ask(home, "blob", "get", "blob:nothing")[1]["code"] == "invalid_request"


def test_a_newcomer_asks_is_admitted_and_a_peer_is_kept_out(tmp_path: Path) -> None:
    first, second = tmp_path / "n1", tmp_path / "n2"
    with node(first) as (founder, _), node(second) as (newcomer, _):
        address = founder["addresses"][0]
        assert ask(second, "bootstrap", "add", address)[1]["running"] is True
        code, peer = ask(second, "peers", "connect", address)
        assert (code, peer["agent_id"], peer["bootstrap"]) == (0, founder["id"], True)
        assert len(ask(second, "ping", founder["id"][:8], "--count", "2")[1]["milliseconds"]) == 2
        code, pool = ask(first, "pool", "create", "few", "--admission", "token")
        assert code == 0, pool

        code, line = ask(first, "mesh", "invite", "--pool", "few", "--approval")
        code, followed = ask(second, "join", line["text"])
        assert (code, followed["pending"]) == (0, True)
        assert ask(second, "pool", "join", pool["id"])[1]["code"] == "not_authorised"
        (waiting,) = ask(first, "pool", "joins", "few")[1]
        assert (waiting["agent_id"], waiting["state"], waiting["own"]) == (newcomer["id"], "pending", False)
        code, item = ask(first, "pool", "admit", "few", newcomer["id"][:12])
        assert (code, item["state"]) == (0, "admitted")
        for _ in range(60):
            if newcomer["id"] in {member["agent_id"] for member in ask(first, "pool", "members", "few")[1]}:
                break
        else:
            raise AssertionError("the newcomer did not become a member")

        # somebody works by hand
        code, task = ask(second, "task", "submit", "few", "index")
        assert ask(second, "task", "claim", "few", task["id"])[0] == 0
        assert until_state(second, "few", task["id"], "assigned")["assigned_to"] == newcomer["id"]
        assert ask(second, "task", "report", "few", task["id"], "--result", '{"n": 4}')[0] == 0
        assert until_state(first, "few", task["id"], "completed")["result"] == {"n": 4}

        code, peer = ask(first, "peers", "block", newcomer["id"][:10], "--for", "600")
        assert (code, peer["blocked"], peer["blocked_s"] <= 600) == (0, True, True)
        assert ask(first, "ping", peer["peer_id"])[0] == 9
        assert [each["blocked"] for each in ask(first, "peers", "scores")[1]] == [True]
        assert ask(first, "peers", "unblock", peer["peer_id"])[1]["blocked"] is False
