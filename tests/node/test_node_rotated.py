"""Real nodes as processes on loopback: one of them gets a new key, and goes on where the old one was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_node_real import JOBS, ask, node, until_state

pytestmark = pytest.mark.network


def until(what: Callable[[], Any], said: str) -> Any:
    """Ask again until it is so; each question takes a process of its own, which is pause enough."""
    for _ in range(60):
        if found := what():
            return found
    raise AssertionError(said)


def electors_and_members(folder: Path) -> tuple[set[str], set[str]]:
    code, items = ask(folder, "pool", "members", "few")
    assert code == 0, items
    return {item["agent_id"] for item in items if item["elector"]}, {item["agent_id"] for item in items}


def test_an_elector_that_works_gets_a_new_key_votes_and_works_with_it_and_the_old_one_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    (tmp_path / "secret").write_text("a passphrase\n")
    first, old, new = tmp_path / "n1", tmp_path / "n2", tmp_path / "n3"
    rotate = ("identity", "rotate", "--new-home", str(new), "--passphrase-file", str(tmp_path / "secret"))
    work = ("--handler", "double=jobs:double")
    submit = (
        "task",
        "submit",
        "few",
        "double",
        "--input",
        "n:=21",
        "--input",
        'raw:={"$bytes": "AAEC"}',
        "--require",
        "double",
    )
    with node(first) as (founder, _):
        words = (*work, "--bootstrap", founder["addresses"][0])
        with node(old, *words) as (worker, _):
            electors = ("--elector", founder["id"], "--elector", worker["id"])
            until(lambda: ask(first, "peers", "ls")[1], "the nodes are linked")
            code, pool = ask(first, "pool", "create", "few", "--admission", "token", *electors)
            assert code == 0, pool
            code, joined = ask(old, "pool", "join", pool["id"], "--capability", "double")
            assert code == 0, joined

            code, done = ask(old, *rotate, "--timeout", "0.5")
            assert (code, [row["outcome"] for row in done["pools"]]) == (1, ["waits for the electors"])
            (motion,) = until(lambda: ask(first, "pool", "motions", "few")[1], "the motion arrived")
            assert ask(first, "pool", "vote", "few", motion["id"], "yes")[0] == 0
            code, done = ask(old, *rotate, "--timeout", "20")
            assert (code, done["complete"], done["old"]) == (0, True, worker["id"]), done
            code, error = ask(old, *submit)
            assert error["code"] == "not_authorised", error
            assert "another key took the place" in error["message"]

            with node(new, *words) as (heir, process):
                assert heir["id"] == done["new"]
                process.kill()
                process.wait()
                # it was killed somewhere between its start and the first word; this is not the end of it
                process.returncode = 0
            with node(new, *words):
                left = until(lambda: not ask(new, "identity", "show")[1]["places_to_take"], "every place was taken")
                assert left
                both = {founder["id"], heir["id"]}
                until(lambda: electors_and_members(first) == (both, both), "the new key is where the old one was")
        # the old node has ended: two electors decide, and one of them has the new key
        with node(new, *words):
            code, task = ask(first, *submit, "--wait", "--timeout", "60")
            assert (code, task["state"], task["settled_by"]) == (0, "completed", heir["id"]), task
            seen = until_state(new, "few", task["id"], "completed")
            assert seen["result"] == {"n": 42, "raw": {"$bytes": "AgEA"}}
