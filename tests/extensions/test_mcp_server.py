"""`converge-node mcp`, spoken with by the SDK's own client: what it offers, what it does, and what it refuses."""

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
import trio

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters

ROOT = Path(__file__).resolve().parents[2]
READING = {
    "node_status", "find_agents", "list_topics", "read_topic", "list_pools", "show_pool", "list_tasks", "watch_task",
    "explain_task",
}  # fmt: skip
WRITING = {"join_topic", "publish", "submit_task", "cancel_task"}
JOBS = "def double(task, context):\n    return {'n': 2 * task.inputs['n']}\n"


def client_of(home: Path, *words: str) -> Client:
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = [str(ROOT / "node"), "--home", str(home), "mcp", *words]
    return Client(StdioServerParameters(command=sys.executable, args=command, env=environment))


async def call(client: Client, name: str, **arguments: Any) -> Any:
    result = await client.call_tool(name, arguments)
    text = result.content[0].text  # type: ignore[union-attr]
    return text if result.is_error else json.loads(text)


def ask(home: Path, *words: str) -> Any:
    command = [sys.executable, str(ROOT / "node"), "--json", "--home", str(home), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return json.loads(done.stdout)["data"]


@contextmanager
def node(home: Path, *words: str) -> Iterator[Any]:
    command = [sys.executable, str(ROOT / "node"), "--json", "--home", str(home), "run", "--listen",
               "/ip4/127.0.0.1/tcp/0", *words]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=home.parent
    ) as run:
        try:
            assert run.stdout is not None
            yield json.loads(run.stdout.readline())["data"]
            run.terminate()
            assert run.wait(35) == 0
        finally:
            run.kill()


async def test_without_a_node_every_tool_says_what_to_do_and_the_server_lives(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with client_of(tmp_path / "home") as client:
            listed = (await client.list_tools()).tools
            assert {tool.name for tool in listed} == READING
            assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in listed)
            for name in ("node_status", "list_pools"):
                assert "no node answers" in await call(client, name)
            assert "start one with" in await call(client, "node_status")


async def test_what_changes_something_is_neither_offered_nor_taken_without_permission(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with client_of(tmp_path / "home") as client:
            for name in WRITING:
                assert "no tool is named" in await call(client, name, topic="x", payload=1)
        async with client_of(tmp_path / "home", "--allow-write") as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == READING | WRITING


async def test_arguments_that_do_not_fit_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with client_of(tmp_path / "home") as client:
            for arguments, what in (
                ({}, "required"),
                ({"pool": 7}, "not of type 'string'"),
                ({"pool": "../../x", "more": 1}, "Additional properties"),
                ({"pool": "x" * 5000}, "does not satisfy maxLength 1024"),
            ):
                said = await call(client, "show_pool", **arguments)
                assert said.startswith("bad_arguments")
                assert what in said


@pytest.mark.network
async def test_a_client_finds_reads_submits_watches_and_explains_on_real_nodes(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    one, two = tmp_path / "one", tmp_path / "two"
    with ExitStack() as stack:
        first = stack.enter_context(node(one, "--handler", "double=jobs:double", "--topic", "acme/news"))
        stack.enter_context(node(two, "--bootstrap", first["addresses"][0], "--topic", "acme/news"))
        pool = ask(one, "pool", "create", "demo")["id"]
        ask(two, "agent", "publish", "--capability", "translate@1.2", "--name", "dolmetsch")
        with trio.fail_after(120):
            async with client_of(one, "--allow-write") as client:
                assert (await call(client, "node_status"))["node"]["id"] == first["id"]
                task = await call(client, "submit_task", pool=pool, objective="double", inputs={"n": 21}, key="k")
                again = await call(client, "submit_task", pool=pool, objective="double", inputs={"n": 21}, key="k")
                assert again["id"] == task["id"]
                done = await call(client, "watch_task", pool=pool[:12], task=task["id"], wait_s=60)
                assert (done["state"], done["result"]) == ("completed", {"n": 42})
                why = await call(client, "explain_task", pool=pool, task=task["id"])
                assert (why["settled_by"], why["waits_for"]) == (first["id"], [])
                assert "certificate" in why["rests_on"]
                waiting = await call(client, "submit_task", pool=pool, objective="nobody does this")
                still = await call(client, "watch_task", pool=pool, task=waiting["id"], wait_s=0.2)
                assert still["state"] == "pending"
                why = await call(client, "explain_task", pool=pool, task=waiting["id"])
                assert why["waits_for"] == ["a worker that claims it"]
                cancelled = await call(client, "cancel_task", pool=pool, task=waiting["id"], reason="enough")
                assert cancelled["id"] == waiting["id"]
                assert (await call(client, "list_tasks", pool=pool, limit=1))["total"] == 2
                assert (await call(client, "show_pool", pool=pool))["name"] == "demo"
                assert [each["name"] for each in await call(client, "list_pools")] == ["demo"]
                assert "not_found" in await call(client, "show_pool", pool="ff" * 32)

                found: list[Any] = []
                while not found:
                    found = await call(client, "find_agents", capabilities=["translate@1.1"])
                assert found[0]["name"] == "dolmetsch"

                assert (await call(client, "read_topic", topic="acme/news"))["messages"] == []
                heard: list[Any] = []
                while not heard:
                    # gossip promises nothing while its mesh forms
                    await trio.to_thread.run_sync(ask, two, "topic", "pub", "acme/news", '{"n": 1}')
                    heard = (await call(client, "read_topic", topic="acme/news", wait_s=1))["messages"]
                assert heard[0]["payload"] == {"n": 1}
                assert (await call(client, "publish", topic="acme/news", payload=7))["payload"] == 7
                assert "not_found" in await call(client, "read_topic", topic="acme/else", wait_s=5)
                assert (await call(client, "join_topic", topic="acme/else"))["topic"] == "acme/else"


def test_neither_the_help_nor_the_library_imports_the_sdk() -> None:
    code = (
        "import sys, converge_p2p\n"
        "from converge_node.cli.main import invoke\n"
        "for words in (['--help'], ['mcp', '--help']):\n"
        "    assert invoke(words) == 0\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(tops & {'mcp', 'mcp_types', 'pydantic', 'anyio', 'openai', 'httpx', 'jsonschema', 'trio'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.splitlines()[-1] == "set()"
