"""Tools of a local MCP server are called like any other, and a server that fails harms nobody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from converge_p2p.core.errors import ClaimLost, LocalError, NotFound
from converge_p2p.core.types import TaskId
from converge_p2p.runtime.fencing import Fence
from converge_p2p.runtime.tools import BadArguments, ToolFailed, ToolRegistry, ToolTimeout

pytest.importorskip("mcp")

from converge_p2p.extensions.mcp import McpServer, bridged_tools

PROGRAM = str(Path(__file__).with_name("some_mcp_server.py"))
SERVER = McpServer([sys.executable, PROGRAM])
FENCE = Fence(TaskId(b"t" * 32), 1, 2)


async def test_tools_of_a_server_are_registered_while_it_runs_and_called_like_others() -> None:
    registry = ToolRegistry(timeout_s=30)
    with trio.fail_after(60):
        async with bridged_tools(registry, SERVER, prefix="far/", only=["shout", "structured", "environment"]) as names:
            assert set(names) == {"far/environment", "far/shout", "far/structured"} == set(registry.names())
            assert await registry.call("far/shout", {"text": "hi"}) == "HI"
            assert await registry.call("far/structured", {}) == {"n": 1}
            spec = registry.spec("far/shout")
            assert (spec.network, len(spec.description)) == (True, 1024)
            with pytest.raises(BadArguments, match="required"):
                await registry.call("far/shout", {})
        assert registry.names() == ()
        with pytest.raises(NotFound):
            await registry.call("far/shout", {"text": "hi"})


async def test_a_regular_expression_of_the_server_does_not_stop_the_node() -> None:
    registry = ToolRegistry(timeout_s=30)
    with trio.fail_after(60):
        async with bridged_tools(registry, SERVER):
            assert await registry.call("shout", {"text": "a" * 40 + "!"}) == "A" * 40 + "!"


async def test_errors_floods_and_silence_of_a_tool_are_its_own_failure() -> None:
    registry = ToolRegistry(timeout_s=30)
    with trio.fail_after(60):
        async with bridged_tools(registry, SERVER, only=["fail", "flood", "shout"]):
            with pytest.raises(ToolFailed, match="asked to fail"):
                await registry.call("fail", {})
            with pytest.raises(ToolFailed, match="more than"):
                await registry.call("flood", {})
            assert await registry.call("shout", {"text": "hi"}) == "HI"
        async with bridged_tools(registry, SERVER, only=["hang"], timeout_s=0.5):
            with pytest.raises(ToolTimeout):
                await registry.call("hang", {})


async def test_a_server_that_crashes_fails_the_call_and_those_after_it() -> None:
    registry = ToolRegistry(timeout_s=20)
    with trio.fail_after(60):
        async with bridged_tools(registry, SERVER, only=["crash", "shout"]):
            for name, params in (("crash", {}), ("shout", {"text": "hi"})):
                with pytest.raises(ToolFailed):
                    await registry.call(name, params)
    assert registry.names() == ()


async def test_tools_with_effects_run_for_held_tasks_and_carry_the_fence() -> None:
    registry = ToolRegistry(timeout_s=30)
    with trio.fail_after(60):
        async with bridged_tools(registry, SERVER, only=["pay"], side_effects=["pay"]):
            with pytest.raises(ClaimLost):
                await registry.call("pay", {})
            assert await registry.call("pay", {}, fence=FENCE) == str(FENCE)


async def test_the_environment_is_not_handed_on_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "key")
    registry = ToolRegistry(timeout_s=30)
    with trio.fail_after(60):
        async with bridged_tools(registry, SERVER, only=["environment"]):
            assert await registry.call("environment", {}) == "none"
        named = McpServer(SERVER.command, env={"SECRET": "given"})
        async with bridged_tools(registry, named, only=["environment"]):
            assert await registry.call("environment", {}) == "given"


@pytest.mark.parametrize(
    ("server", "what"),
    [
        (McpServer(["/no/such/program"]), "cannot be used"),
        (McpServer([sys.executable, PROGRAM, "--leave"]), "cannot be used"),
        (McpServer([sys.executable, PROGRAM, "--garbage"]), "cannot be used"),
    ],
)
async def test_a_server_that_is_none_is_refused_with_its_name(server: McpServer, what: str) -> None:
    registry = ToolRegistry()
    with trio.fail_after(60), pytest.raises(LocalError, match=what):
        async with bridged_tools(registry, server):
            pytest.fail("there is nothing to call")
    assert registry.names() == ()


async def test_a_tool_that_is_not_there_is_refused_and_an_empty_choice_registers_nothing() -> None:
    registry = ToolRegistry()
    with trio.fail_after(60):
        with pytest.raises(LocalError, match="no tool 'nothing'"):
            async with bridged_tools(registry, SERVER, only=["nothing"]):
                pytest.fail("not reached")
        async with bridged_tools(registry, SERVER, only=[]) as names:
            assert names == ()


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    with trio.fail_after(60), pytest.raises(KeyError, match="mine"):
        async with bridged_tools(ToolRegistry(), SERVER):
            raise KeyError("mine")


def test_the_sdk_is_imported_when_a_server_is_started_and_not_before() -> None:
    code = (
        "import sys, converge_p2p.extensions.mcp as m; m.bridged_tools, m.McpServer;"
        "print({'mcp', 'mcp_types', 'pydantic', 'anyio'} & {name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "set()"
