"""The command line against a node, over a real socket: what is shown, and how every command ends."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from node_fakes import FakeAnnouncement, FakeNode, FakePeer, FakePool

from converge_node.cli.main import invoke
from converge_node.control.app import ControlApi
from converge_node.control.server import open_control_server
from converge_node.control.state import ControlState
from converge_node.paths import resolve_paths
from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value, tagged_hash
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.task import Outcome, Progress, Task, TaskState, TaskValue
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import OperationId, PoolId, TaskId
from converge_p2p.core.view.audit import Finding, Rule
from converge_p2p.node import FrozenView

OTHER = Identity.from_seed(b"\1" * 32)
STRANGER = Identity.from_seed(b"\2" * 32)


@dataclass
class Bench:
    """A served node, and a way to run commands against it."""

    node: FakeNode
    state: ControlState
    home: Path
    capsys: pytest.CaptureFixture[str]
    stopped: trio.Event

    async def run(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = await trio.to_thread.run_sync(invoke, ["--home", str(self.home), *words])
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err

    async def json(self, *words: str) -> tuple[int, Any]:
        code, out, _ = await self.run(*words, "--json")
        (line,) = out.splitlines()
        envelope = json.loads(line)
        assert envelope["v"] == 1
        return code, envelope["data"] if envelope["ok"] else envelope["error"]


@pytest.fixture
def bench_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], Any]:
    @asynccontextmanager
    async def open_bench() -> AsyncIterator[Bench]:
        paths = resolve_paths(tmp_path / "home", {})
        paths.create()
        node, stopped = FakeNode(), trio.Event()
        state = ControlState(str(paths.state_dir), str(paths.socket), stopped.set, "running", node, True)
        with trio.fail_after(20):
            async with open_control_server(ControlApi(state).app(), paths.socket):
                yield Bench(node, state, tmp_path / "home", capsys, stopped)

    return open_bench


async def test_who_the_node_is(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        bench.state.next_command = lambda addresses: f"converge-node --bootstrap {len(addresses)}"
        code, data = await bench.json("id")
        assert (code, data["id"], data["next_command"]) == (0, bench.node.id, "converge-node --bootstrap 1")
        assert (await bench.run("id", "-q"))[1] == bench.node.id + "\n"
        code, out, _ = await bench.run("status")
        assert code == 0
        assert "count gossip_rejected  2" in out
        mode = stat.S_IMODE(os.stat(bench.state.socket).st_mode)
        assert mode == 0o600


async def test_peers_are_listed_and_their_names_cannot_move_the_cursor(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        assert (await bench.run("peers", "ls"))[1] == "no peer is connected\n"
        bench.node.fake_peers = [FakePeer(OTHER, direction="in\x1b[2J")]
        code, out, _ = await bench.run("peers", "ls")
        assert code == 0
        assert OTHER.id[:12] in out
        assert "\x1b" not in out
        assert "in\\x1b[2J" in out


async def test_a_pool_is_created_with_everything_that_was_asked_for(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        joined: list[FakePool] = []
        bench.state.pool_joined = joined.append
        bench.node.fake_peers = [FakePeer(OTHER)]
        code, data = await bench.json(
            "pool", "create", "demo", "--governance", "democratic", "--elector", OTHER.id,
            "--elector", bench.node.id, "--task-type", "index",
            "--topic", "acme/jobs@2", "--claim-ttl", "1.5", "--max-retries", "7",
        )  # fmt: skip
        assert code == 0
        (pool,) = bench.node.pools.values()
        assert joined == [pool]
        assert set(pool.spec.electors) == {OTHER.public_key, bench.node.public_key}
        assert (pool.spec.policy.claim_ttl_ms, pool.spec.policy.max_retries) == (1500, 7)
        assert pool.spec.topics == (Topic("acme/jobs", version="2").to_bytes(),)
        assert (data["id"], data["task_types"], data["electors"]) == (pool.id.hex(), ["index"], 2)
        code, _, _ = await bench.run("pool", "create", "led", "--governance", "dictatorial")
        assert code == 0
        assert sorted(pool.governance for pool in bench.node.pools.values()) == ["democratic", "dictatorial"]


@pytest.mark.parametrize(
    ("options", "decided_by"),
    [
        (["democratic", "--elector", OTHER.id, "--elector", "{node}", "--quorum", "2"], "2 of 2"),
        (
            ["dictatorial", "--leader", "{node}", "--successor", OTHER.id],
            "(2 of 2) and (1 of 2); only what leader or successor decided",
        ),
        (["bicameral", "--chamber", "{node}", "--chamber", f"{OTHER.id},{{node}}"], "{short} and (2 of 2)"),
        (
            ["veto", "--vetoer", OTHER.id, "--veto-window", "2.5"],
            "{short}; 1 may deny, waited for 2.5 s",
        ),
        (["veto", "--vetoer", OTHER.id, "--silence-denies"], "{short}; 1 may deny, waited for without end"),
        (
            ["empirical", "--weight", "{node}=3", "--elector", OTHER.id, "--speculative", "4"],
            "3 of [{weights}]; up to 4 workers on a task",
        ),
        (
            ["democratic", "--elector", OTHER.id, "--elector", "{node}", "--quorum", "1", "--provisional"],
            "1 of 2; PROVISIONAL: two sides could decide differently",
        ),
    ],
)
async def test_every_governance_is_founded_and_shown(
    bench_of: Callable[[], Any], options: list[str], decided_by: str
) -> None:
    async with bench_of() as bench:
        bench.node.fake_peers = [FakePeer(OTHER)]
        words = [option.replace("{node}", bench.node.id) for option in options]
        code, data = await bench.json("pool", "create", "demo", "--governance", *words)
        assert code == 0
        weights = {bench.node.public_key: f"3×{bench.node.id[:12]}", OTHER.public_key: OTHER.id[:12]}
        shown = decided_by.format(short=bench.node.id[:12], weights=", ".join(weights[key] for key in sorted(weights)))
        assert (data["governance"], data["decided_by"]) == (options[0], shown)
        code, out, _ = await bench.run("pool", "show", "demo")
        assert code == 0
        assert shown in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["democratic", "--successor", OTHER.id], "democratic governance does not use successor"),
        (["bicameral", "--chamber", OTHER.id], "two chambers, not 1"),
        (
            ["bicameral", "--chamber", OTHER.id, "--chamber", OTHER.id, "--chamber-quorum", "1"],
            "quorum for each chamber",
        ),
        (["veto"], "at least one vetoer"),
        (["custom", "--model", "nobody-knows"], "'nobody-knows' is not registered here"),
        (["empirical", "--weight", "me"], "expected AGENT=N"),
    ],
)
async def test_terms_that_a_model_cannot_use_are_refused_with_the_reason(
    bench_of: Callable[[], Any], options: list[str], message: str
) -> None:
    async with bench_of() as bench:
        bench.node.fake_peers = [FakePeer(OTHER)]
        code, _, err = await bench.run("pool", "create", "demo", "--governance", *options)
        assert code != 0
        assert message in err
        assert not bench.node.pools


async def test_whoever_forked_is_shown_with_the_number(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        await bench.run("pool", "create", "demo")
        assert "frozen" not in (await bench.run("pool", "show", "demo"))[1]
        (pool,) = bench.node.pools.values()
        pool.shut_out = [FrozenView(OTHER.id, OTHER.public_key, 7)]
        assert (await bench.json("pool", "show", "demo"))[1]["frozen"] == [
            {"agent_id": OTHER.id, "public_key": OTHER.public_key.hex(), "seq": 7}
        ]
        assert f"{OTHER.id} signed two operations with number 7" in (await bench.run("pool", "show", "demo"))[1]


async def test_electors_that_broke_a_rule_are_named_with_the_proof(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        await bench.run("pool", "create", "demo")
        assert (await bench.run("pool", "audit", "demo"))[1] == "no elector broke a rule\n"
        assert "culprits    none" in (await bench.run("pool", "show", "demo"))[1]
        (pool,) = bench.node.pools.values()
        proof = (OperationId(b"\1" * 32), OperationId(b"\2" * 32))
        pool.found = [
            Finding(OTHER.public_key, Rule.HIDDEN_LOCK, proof, TaskId(bytes(32))),
            Finding(OTHER.public_key, Rule.FORK, proof),
        ]
        code, data = await bench.json("pool", "audit", "demo")
        assert (code, len(data)) == (0, 2)
        assert (data[0]["agent_id"], data[0]["rule"], data[0]["contradiction"]) == (OTHER.id, "hidden_lock", True)
        assert data[0]["proof"] == [operation.hex() for operation in proof]
        assert (data[1]["rule"], data[1]["subject"]) == ("fork", "")
        assert (await bench.run("pool", "audit", "demo", "-q"))[1] == OTHER.id + "\n"
        assert "hid in a promise what it had accepted" in (await bench.run("pool", "audit", "demo"))[1]
        assert "1 electors broke a rule" in (await bench.run("pool", "show", "demo"))[1]
        assert (await bench.json("pool", "show", "demo"))[1]["culprits"] == 1


async def test_the_default_governance_is_a_setting(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        (bench.home / "config.toml").write_text('[governance]\ndefault = "dictatorial"\n')
        assert (await bench.run("pool", "create", "demo"))[0] == 0
        assert [pool.governance for pool in bench.node.pools.values()] == ["dictatorial"]


async def test_an_unknown_elector_is_never_guessed_to_be_a_key(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        code, error = await bench.json("pool", "create", "demo", "--elector", STRANGER.id)
        assert (code, error["code"]) == (6, "not_found")
        assert "key:" in error["hint"]
        assert not bench.node.pools
        code, data = await bench.json("pool", "create", "demo", "--elector", f"key:{STRANGER.public_key.hex()}")
        assert (code, data["member_list"][0]["agent_id"]) == (0, STRANGER.id)
        # once it is a member somewhere, its key and its id are known
        code, data = await bench.json("pool", "create", "second", "--elector", STRANGER.public_key.hex())
        assert (code, data["member_list"][0]["agent_id"]) == (0, STRANGER.id)
        assert (await bench.run("pool", "create", "third", "--elector", "zz"))[0] == 2
        # whoever is to be expelled need not be an elector
        error = (await bench.json("pool", "expel", "second", "zz"))[1]
        assert error["message"].startswith("'zz' is neither an agent id nor")


async def test_a_pool_is_meant_by_id_prefix_or_name(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        first = await bench.node.create_pool("demo")
        second = await bench.node.create_pool("demo", task_types=["x"])
        other = await bench.node.create_pool("other")
        for reference in (other.id.hex(), other.id.hex()[:6].upper(), "other"):
            assert (await bench.json("pool", "show", reference))[1]["id"] == other.id.hex()
        code, error = await bench.json("pool", "show", "demo")
        assert (code, error["code"]) == (7, "conflict")
        assert (await bench.json("pool", "show", other.id.hex()[:5]))[0] == 6
        ids = (await bench.run("pool", "ls", "-q"))[1].split()
        assert sorted(ids) == sorted(pool.id.hex() for pool in (first, second, other))


async def test_a_pool_whose_name_holds_a_slash_is_meant_by_it(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("acme/scans 100%2F")
        assert (await bench.json("pool", "show", "acme/scans 100%2F"))[1]["id"] == pool.id.hex()
        assert (await bench.json("task", "submit", "acme/scans 100%2F", "x"))[1]["pool"] == pool.id.hex()


@pytest.mark.parametrize("words", [("pool", "show", ""), ("pool", "leave", ""), ("task", "show", "demo", "")])
async def test_an_empty_name_is_a_usage_error(bench_of: Callable[[], Any], words: tuple[str, ...]) -> None:
    async with bench_of() as bench:
        await bench.node.create_pool("demo")
        code, error = await bench.json(*words)
        assert (code, error["code"]) == (2, "invalid_request")
        assert error["message"] == f"no {words[0]} is named"


async def test_an_announced_pool_is_shown_and_can_be_joined_by_name(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        id_ = PoolId(tagged_hash("test", b"1"))
        bench.node.announced = [FakeAnnouncement(id_, "work", "democratic", ("index",), OTHER.id)]
        data = (await bench.json("pool", "ls"))[1]
        assert [(item["name"], item["joined"], item["creator"]) for item in data] == [("work", False, OTHER.id)]
        code, error = await bench.json("pool", "show", "work")
        assert (code, error["hint"]) == (6, f"join it first: converge-node pool join {id_.hex()}")
        assert (await bench.run("pool", "join", "work", "--capability", "gpu"))[0] == 0
        assert id_ in bench.node.pools
        assert (await bench.run("pool", "join", "ab" * 32, "--timeout", "0.5"))[0] == 9
        unheard = tagged_hash("test", b"2").hex()
        assert (await bench.run("pool", "join", unheard, "-q"))[1] == unheard + "\n"


async def test_a_task_is_submitted_once_per_key_and_shown_with_its_values(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        file = bench.home / "inputs.json"
        file.write_text('{"raw": {"$bytes": "AAE="}, "text": "overridden"}')
        words = ["task", "submit", "demo", "translate", "--inputs-json", str(file), "--input", "text=a=b",
                 "--input", "n:=[1,2.5]", "--key", "k1", "--priority", "3", "--claim-ttl", "2", "--max-retries", "0",
                 "--attempt-timeout", "9", "--require", "gpu", "--require", "cpu"]  # fmt: skip
        code, data = await bench.json(*words)
        assert code == 0
        assert (await bench.json(*words))[1]["id"] == data["id"]
        (view,) = pool.tasks()
        assert view.inputs == {"raw": b"\x00\x01", "text": "a=b", "n": [1, 2.5]}
        spec = view.spec
        assert (spec.key, spec.priority, spec.claim_ttl_ms, spec.max_retries, spec.timeout_ms) == (
            b"k1",
            3,
            2000,
            0,
            9000,
        )
        assert spec.required_capabilities == ("cpu", "gpu")
        code, shown = await bench.json("task", "show", "demo", data["id"][:8])
        assert (code, shown["inputs"]["raw"], shown["state"]) == (0, {"$bytes": "AAE="}, "pending")


@pytest.mark.parametrize(
    "words",
    [("--input", "novalue"), ("--input", "=x"), ("--input", "x:={"), ("--inputs-json", "/nowhere"), ("--timeout", "5")],
)
async def test_inputs_that_make_no_sense_are_usage_errors(bench_of: Callable[[], Any], words: tuple[str, str]) -> None:
    async with bench_of() as bench:
        await bench.node.create_pool("demo")
        code, error = await bench.json("task", "submit", "demo", "x", *words)
        assert (code, error["code"]) == (2, "usage")
        assert not next(iter(bench.node.pools.values())).tasks()


async def test_tasks_are_listed_by_state_and_in_pages(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        ids = [(await pool.submit(Task("a" if number % 2 else "b", key=f"k{number}"))).id for number in range(7)]
        pool.settle(ids[0], Outcome.COMPLETED, 1)
        pool.settle(ids[1], Outcome.FAILED, "bad")
        assert (await bench.run("task", "ls", "demo", "-q"))[1].split() == [id_.hex() for id_ in ids]
        data = (await bench.json("task", "ls", "demo", "--state", "pending", "--limit", "2", "--offset", "1"))[1]
        assert (data["total"], [item["key"] for item in data["tasks"]]) == (5, ["k3", "k4"])
        data = (await bench.json("task", "ls", "demo", "--objective", "a", "--state", "failed"))[1]
        assert [(item["key"], item["reason"]) for item in data["tasks"]] == [("k1", "bad")]
        assert "… and 5 more: --offset 2" in (await bench.run("task", "ls", "demo", "--limit", "2"))[1]
        assert (await bench.json("task", "show", "demo", "ffffffff"))[0] == 6
        assert (await bench.json("task", "show", "demo", "xyz"))[0] == 2


async def test_who_settled_a_failure_is_not_called_its_worker(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        id_ = (await pool.submit(Task("x", key="k"))).id
        pool.settle(id_, Outcome.FAILED, "too often")
        shown = (await bench.run("task", "show", "demo", id_.hex()))[1].splitlines()
        facts = {line.split("  ", 1)[0]: line.split("  ", 1)[1].strip() for line in shown}
        assert (facts["worker"], facts["reason"], facts["settled by"]) == ("none", "too often", bench.node.id)
        assert facts["each attempt"] == f"`converge-node task explain {pool.id.hex()[:12]} {id_.hex()[:12]}`"
        pool.settle(id_, Outcome.COMPLETED, 1)
        assert f"worker     {bench.node.id}" in (await bench.run("task", "show", "demo", id_.hex()))[1].splitlines()


@pytest.mark.parametrize(
    ("outcome", "value", "expected"),
    [
        (Outcome.COMPLETED, {"n": 1}, 0),
        (Outcome.FAILED, {"error": "no gpu"}, 11),
        (Outcome.CANCELLED, {"reason": "late"}, 11),
    ],
)
async def test_waiting_ends_when_the_task_is_settled(
    bench_of: Callable[[], Any], outcome: Outcome, value: Any, expected: int
) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")

        async def settle() -> None:
            await pool.watching.wait()
            (view,) = pool.tasks()
            pool.settle(view.id, outcome, value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle)
            code, data = await bench.json("task", "submit", "demo", "x", "--wait", "--timeout", "15")
        assert (code, data["state"], data["certified"]) == (expected, outcome.state.value, True)
        assert data["result"] == value
        assert data["reason"] == {0: "", 1: "no gpu", 2: "late"}[int(outcome)]
        # a task that is settled already is answered at once
        assert (await bench.run("task", "watch", "demo", data["id"]))[0] == expected


async def test_waiting_too_long_ends_with_its_own_code(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        await bench.node.create_pool("demo")
        code, error = await bench.json("task", "submit", "demo", "x", "--wait", "--timeout", "0.05")
        assert (code, error["code"]) == (8, "timeout")
        (task,) = (await bench.run("task", "ls", "demo", "-q"))[1].split()
        assert task in error["message"]
        assert task[:12] in error["hint"]
        assert (await bench.json("task", "submit", "demo", "y", "--wait", "--timeout", "-1"))[0] == 2
        assert len((await bench.run("task", "ls", "demo", "-q"))[1].split()) == 1
        assert (await bench.json("task", "watch", "demo", "--timeout", "-1"))[0] == 2
        assert bench.state.streams == 0


async def test_watching_a_pool_prints_every_change_and_ends_when_the_node_stops(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")

        async def work() -> None:
            await pool.watching.wait()
            handle = await pool.submit(Task("x", key="k"))
            pool.settle(handle.id, Outcome.COMPLETED, 5)
            await trio.testing.wait_all_tasks_blocked()
            bench.state.stopping.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            code, out, _ = await bench.run("task", "watch", "demo", "--json")
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["data"]["state"] for line in lines[:-1]] == ["pending", "completed"]
        assert (code, lines[-1]["ok"], lines[-1]["error"]["code"]) == (4, False, "not_ready")
        assert not pool.watchers


async def test_the_progress_of_a_task_is_shown_without_what_a_worker_may_not_do_to_a_terminal(
    bench_of: Callable[[], Any],
) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        handle = await pool.submit(Task("x", key="k"))
        said = Progress(420, "almost\x1b[2Jhalf")
        working = replace(pool.task(handle.id), state=TaskState.ASSIGNED, certified=True, progress=said)
        pool.change(working)
        code, data = await bench.json("task", "show", "demo", handle.id.hex())
        assert (code, data["progress"], data["note"]) == (0, 0.42, said.note)

        async def work() -> None:
            await pool.watching.wait()
            pool.change(working)
            await trio.testing.wait_all_tasks_blocked()
            bench.state.stopping.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            _, out, _ = await bench.run("task", "watch", "demo")
        assert "\x1b" not in out
        assert "assigned" in out
        assert "42% almost" in out


async def test_cancelling_carries_the_reason_and_the_refusal(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        id_ = (await pool.submit(Task("x"))).id.hex()
        code, error = await bench.json("task", "cancel", "demo", id_, "--reason", "not mine")
        assert (code, error["code"]) == (5, "not_authorised")
        data = (await bench.json("task", "cancel", "demo", id_, "--reason", "late"))[1]
        assert (data["state"], data["reason"]) == ("cancelled", "late")


async def test_a_vetoer_sees_the_result_that_waits_and_denies_it_or_lets_it_pass(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        handles = [await pool.submit(Task("x")) for _ in range(2)]
        code, error = await bench.json("task", "pass", "demo", handles[0].id.hex())
        assert (code, error["code"]) == (7, "conflict")
        result = TaskValue(Outcome.COMPLETED, OTHER.public_key, encode_value({"words": 2}))
        for handle in handles:
            pool.change(replace(pool.task(handle.id), state=TaskState.ASSIGNED, awaiting=result))
        denied, passed = (handle.id.hex() for handle in handles)
        data = (await bench.json("task", "show", "demo", denied))[1]
        assert (data["state"], data["awaits_veto"], data["awaiting"]) == ("assigned", True, {"words": 2})
        assert "awaits its vetoers" in (await bench.run("task", "ls", "demo"))[1]
        data = (await bench.json("task", "veto", "demo", denied, "--reason", "too few"))[1]
        assert (data["state"], data["reason"], data["awaits_veto"]) == ("failed", "vetoed: too few", False)
        data = (await bench.json("task", "pass", "demo", passed))[1]
        assert (data["state"], data["result"], data["awaiting"]) == ("completed", {"words": 2}, None)


async def test_a_task_for_no_pool_goes_to_the_home_pool_which_is_founded_once(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        joined: list[Any] = []
        bench.state.pool_joined = joined.append
        data = (await bench.json("task", "submit", "-", "add", "--key", "k", "--topic", "acme.tests"))[1]
        again = (await bench.json("task", "submit", "-", "add", "--key", "k", "--topic", "acme.tests"))[1]
        assert (data["id"], data["pool"]) == (again["id"], again["pool"])
        assert [pool.name for pool in joined] == ["home"]
        view = joined[0].task(TaskId(bytes.fromhex(data["id"])))
        assert view.spec.topic == Topic("acme.tests").to_bytes()


async def test_a_pool_says_who_may_join_and_lets_people_in(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        key = f"key:{OTHER.public_key.hex()}"
        data = (await bench.json("pool", "create", "few", "--admission", "whitelist", "--admit", key))[1]
        assert data["admission"] == "whitelist"
        (pool,) = bench.node.pools.values()
        assert pool.spec.whitelist == (OTHER.public_key,)
        assert (await bench.json("pool", "invite", "few"))[0] == 2
        await bench.json("pool", "create", "invited", "--admission", "token")
        code, out, _ = await bench.run("pool", "invite", "invited", "--for", key, "--role", "tester", "--epochs", "2")
        assert (code, out) == (0, f"invitation {key} 2 tester None\n")
        await bench.json("pool", "create", "vouched", "--admission", "vouched", "--vouches", "1")
        assert (await bench.json("pool", "vouch", "vouched", key))[1]["text"] == f"vouch {key} 0"
        await bench.json("pool", "join", "ab" * 32, "--invitation", "one")
        await bench.json("pool", "join", "cd" * 32, "--vouch", "one", "--vouch", "two")
        assert bench.node.shown == [("one", []), (None, ["one", "two"])]


async def test_an_evaluator_sees_what_was_reported_and_approves_or_denies_it(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        judge = f"agent:{OTHER.id}"
        ids = [(await bench.json("task", "submit", "demo", "x", "--evaluator", judge))[1]["id"] for _ in range(2)]
        code, error = await bench.json("task", "submit", "demo", "x", "--evaluator", "me")
        assert (code, "names no evaluator" in error["message"]) == (2, True)
        values = [TaskValue(Outcome.COMPLETED, OTHER.public_key, encode_value(number)) for number in (1, 2)]
        for id_ in ids:
            name = TaskId(bytes.fromhex(id_))
            pool.change(replace(pool.task(name), state=TaskState.ASSIGNED, unjudged=tuple(values)))
        data = (await bench.json("task", "show", "demo", ids[0]))[1]
        assert (data["evaluator"], data["awaits_verdict"]) == (judge, True)
        assert data["unjudged"][1] == {"value": values[1].hash.hex(), "by": OTHER.id, "result": 2}
        assert values[0].hash.hex() in (await bench.run("task", "show", "demo", ids[0]))[1]
        assert "awaits a verdict" in (await bench.run("task", "ls", "demo"))[1]
        assert (await bench.json("task", "judge", "demo", ids[0], "approve"))[0] == 7
        assert (await bench.json("task", "judge", "demo", ids[0], "approve", "--value", "12"))[0] == 2
        chosen = ("--value", values[1].hash.hex())
        data = (await bench.json("task", "judge", "demo", ids[0], "approve", *chosen))[1]
        assert (data["state"], data["result"], data["unjudged"]) == ("completed", 2, [])
        data = (await bench.json("task", "judge", "demo", ids[1], "deny", *chosen, "--reason", "poor"))[1]
        assert data["state"] == "pending"


async def test_a_node_that_is_not_ready_says_what_it_does(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        assert (await bench.run("health", "--ready"))[0] == 0
        assert (await bench.json("health"))[1]["ready"] is True
        bench.state.ready, bench.state.stage = False, "closing the node"
        assert (await bench.run("health"))[0] == 0
        code, data = await bench.json("health", "--ready")
        assert (code, data["ready"], data["stage"]) == (1, False, "closing the node")
        code, error = await bench.json("pool", "ls")
        assert (code, error["code"]) == (4, "not_ready")
        assert "closing the node" in error["message"]


async def test_shutdown_is_asked_for(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        assert await bench.run("shutdown") == (0, "stopping\n", "")
        assert bench.stopped.is_set()


async def test_a_defect_in_one_request_harms_no_other(
    bench_of: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with bench_of() as bench:
        bench.node.peers = lambda: 1 / 0
        code, error = await bench.json("peers", "ls")
        assert (code, error["code"]) == (1, "error")
        assert "ZeroDivisionError" in error["message"]
        assert "control request GET /v1/peers failed" in caplog.text
        assert (await bench.run("id"))[0] == 0
        assert bench.state.requests == 0


async def ask(bench: Bench, head: str, body: bytes = b"") -> tuple[int, Any]:
    stream = await trio.open_unix_socket(bench.state.socket)
    async with stream:
        await stream.send_all(f"{head} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        try:
            await stream.send_all(body)
        except trio.BrokenResourceError:
            pass
        answer = b""
        while not answer.endswith(b"}"):
            chunk = await stream.receive_some()
            assert chunk, answer
            answer += chunk
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), json.loads(content)["error"]


async def test_requests_that_make_no_sense_are_refused_with_the_blame(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        await bench.node.create_pool("demo")
        tasks = "POST /v1/pools/demo/tasks"
        assert (await ask(bench, "GET /v1/nothing"))[0] == 404
        assert (await ask(bench, "GET /v1/pools/"))[0] == 404
        # the answer is not lost with a body that is still on its way
        assert (await ask(bench, "POST /v1/nothing", b" " * (limits.CONTROL_REQUEST_BYTES_MAX + 1)))[0] == 404
        assert (await ask(bench, "DELETE /v1/pools"))[0] == 400
        for body in (b"{", b'{"objective": 5}', b'{"objective": "x", "inputz": {}}', b"[" * 5000, b'{"objective": ""}'):
            status, error = await ask(bench, tasks, body)
            assert status == 400, body
        assert error["code"] == "invalid_request"
        error = (await ask(bench, tasks, b'{"objective": "x", "claim_ttl_s": -1}'))[1]
        assert error["message"] == "the request is not as expected: claim_ttl_s: expected a number > 0.0"
        status, error = await ask(bench, tasks, b" " * (limits.CONTROL_REQUEST_BYTES_MAX + 1))
        assert (status, error["code"]) == (413, "limit_exceeded")
        assert not next(iter(bench.node.pools.values())).tasks()


async def test_requests_and_streams_are_bounded_and_refusals_counted(
    bench_of: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        monkeypatch.setattr(limits, "CONTROL_STREAMS_MAX", 1)
        async with await trio.open_unix_socket(bench.state.socket) as first:
            await first.send_all(b"GET /v1/pools/demo/watch HTTP/1.1\r\nhost: x\r\n\r\n")
            await pool.watching.wait()
            status, error = await ask(bench, "GET /v1/pools/demo/watch")
            assert (status, error["code"]) == (429, "busy")
        assert bench.state.refused == 1
        # the place is free again when the first client has gone
        pool.watching = trio.Event()
        while bench.state.streams:
            await trio.testing.wait_all_tasks_blocked(0.01)
        monkeypatch.setattr(limits, "CONTROL_REQUESTS_MAX", 0)
        assert (await ask(bench, "GET /healthz"))[0] == 429


async def test_a_client_that_does_not_speak_the_protocol_is_told_so(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "control.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve)
            assert await trio.to_thread.run_sync(invoke, ["--home", str(home), "id"]) == 4


async def test_a_change_is_put_to_the_electors_answered_and_listed(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        assert (await bench.run("pool", "create", "demo"))[0] == 0
        key = f"key:{STRANGER.public_key.hex()}"
        code, moved = await bench.json("pool", "propose", "demo", "--add-elector", key, "--reason", "a second machine")
        assert code == 0
        assert (moved["state"], moved["kind"], moved["reason"]) == ("open", "change", "a second machine")
        assert moved["asks"] == [f"add elector {STRANGER.id}"]
        code, said = await bench.json("pool", "vote", "demo", moved["id"][:8], "yes")
        assert code == 0
        assert [(item["agent_id"], item["choice"]) for item in said["opinions"]] == [(bench.node.id, "yes")]
        assert said["state"] == "carried"
        code, listed = await bench.json("pool", "motions", "demo")
        assert (code, [item["id"] for item in listed]) == (0, [moved["id"]])
        assert "a second machine" in (await bench.run("pool", "vote", "demo", moved["id"], "yes"))[1]


async def test_a_new_epoch_with_the_terms_as_they_are_can_be_proposed(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        assert (await bench.run("pool", "create", "demo"))[0] == 0
        code, moved = await bench.json("pool", "propose", "demo", "--renew")
        assert (code, moved["asks"]) == (0, ["keep the terms"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["propose", "demo"], 2),
        (["propose", "demo", "--remove-elector", f"key:{STRANGER.public_key.hex()}"], 2),
        (["propose", "demo", "--expel", "zz"], 2),
        (["propose", "nowhere", "--quorum", "1"], 6),
        (["vote", "demo", "abcdef", "yes"], 6),
        (["vote", "demo", "abc", "yes"], 2),
    ],
)
async def test_a_motion_that_says_nothing_sensible_is_refused(
    bench_of: Callable[[], Any], words: list[str], code: int
) -> None:
    async with bench_of() as bench:
        await bench.node.create_pool("demo")
        assert (await bench.run("pool", *words))[0] == code


async def test_a_settled_result_is_disputed_before_the_electors(bench_of: Callable[[], Any]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        handle = await pool.submit(Task("count", {}, key="a"))
        pool.settle(handle.id, Outcome.COMPLETED, {"n": 1})
        code, item = await bench.json("task", "dispute", "demo", handle.id.hex()[:10], "--reason", "it is two")
        assert (code, item["kind"], item["task"]) == (0, "reject_result", handle.id.hex())


async def test_rival_results_are_put_to_the_electors_who_choose_by_evidence_that_a_file_is_hashed_for(
    bench_of: Callable[[], Any], tmp_path: Path
) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        handle = await pool.submit(Task("count", {}, key="a"))
        task = handle.id.hex()
        values = [TaskValue(Outcome.COMPLETED, OTHER.public_key, encode_value(number)) for number in (1, 2)]
        pool.change(replace(pool.task(handle.id), reported=tuple(values)))
        data = (await bench.json("task", "show", "demo", task))[1]
        assert data["reported"] == [
            {"value": value.hash.hex(), "by": OTHER.id, "result": number}
            for number, value in zip((1, 2), values, strict=True)
        ]
        table = tmp_path / "table.csv"
        table.write_bytes(b"a,2\n")
        chosen = values[1].hash.hex()
        words = ("task", "cite", "demo", task, str(table), "--value", chosen, "--media", "text/csv", "--summary", "all")
        code, cited = await bench.json(*words)
        assert code == 0
        assert [(item["digest"], item["size"], item["supports"], item["summary"]) for item in cited] == [
            (hashlib.sha256(b"a,2\n").hexdigest(), 4, True, "all")
        ]
        against = ("task", "cite", "demo", task, "--digest", "ab" * 32, "--size", "9", "--against", "--value", chosen)
        assert [item["supports"] for item in (await bench.json(*against))[1]].count(False) == 1
        code, listed = await bench.json("task", "evidence", "demo", task)
        assert (code, {item["value"] for item in listed}) == (0, {chosen})
        assert "against" in (await bench.run("task", "evidence", "demo", task))[1]
        rivals = [word for value in values for word in ("--rival", value.hash.hex())]
        code, motion = await bench.json("task", "dispute", "demo", task, *rivals, "--reason", "which?")
        assert (code, motion["kind"], sorted(motion["options"])) == (
            0, "rival_reports", sorted(value.hash.hex() for value in values)
        )  # fmt: skip
        code, said = await bench.json("pool", "vote", "demo", motion["id"], "by-evidence")
        assert (code, said["decided"]) == (0, chosen)


@pytest.mark.parametrize(
    "words",
    [
        ["cite", "demo", "TASK"],
        ["cite", "demo", "TASK", "--digest", "xyz"],
        ["cite", "demo", "TASK", "--digest", "ab" * 32, "--value", "12"],
        ["cite", "demo", "TASK", "nowhere.csv"],
        ["dispute", "demo", "TASK", "--rival", "12"],
        ["dispute", "demo", "TASK", "--rival", "ab" * 32],
    ],
)
async def test_evidence_that_says_nothing_sensible_is_refused(bench_of: Callable[[], Any], words: list[str]) -> None:
    async with bench_of() as bench:
        pool = await bench.node.create_pool("demo")
        task = (await pool.submit(Task("count", {}, key="a"))).id.hex()
        assert (await bench.run("task", *(task if word == "TASK" else word for word in words)))[0] == 2
