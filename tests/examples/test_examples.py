"""Every example runs as a user would run it, ends by itself, and prints what it is about. Two run at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
LINES_MAX = 80
PRINTS = {
    "ping_pong": "pong 1\npong 2\npong 3\ndone\n",
    "translation_pool": (
        "hi → salut by the machine\nthanks → merci by the machine\ngoodbye → au revoir by the machine\n"
    ),
    "code_review": "    return sum(xs) / len(xs) if xs else 0\n\nattempts: 2, accepted by a quorum: True\n",
    "two_organisations": "bank signed with 2 of 2\nshop signed with 2 of 2\n{'owed': 42}\n",
    "llm_agent": "salut by the worker: True\n",
    "in_trio": "HELLO\nMESH\n",
    "in_asyncio": "HELLO\nMESH\nthe clerk heard: a letter\n",
    "private_mesh": (
        "joined few and acme/secret\nhello guest\n"
        "a second guest: the invitation was used as often as its issuer allowed\na stranger cannot connect\n"
    ),
}

Runs = dict[str, Future[subprocess.CompletedProcess[str]]]


def run(name: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    asked = {item.callspec.params["name"] for item in request.session.items if hasattr(item, "callspec")
             and item.path == request.path and "name" in item.callspec.params}  # fmt: skip
    with ThreadPoolExecutor(max_workers=2) as threads:
        yield {name: threads.submit(run, name) for name in PRINTS if name in asked}


@pytest.mark.network
@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs_and_prints_its_result(name: str, runs: Runs) -> None:
    ended = runs[name].result()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.endswith(PRINTS[name]), ended.stdout


def test_every_example_is_run_short_and_described() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)
    for name in PRINTS:
        source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert source.count("\n") <= LINES_MAX, f"{name} is too long for an example"
        assert f"examples/{name}.py" in page, f"docs/examples.md does not describe {name}"
