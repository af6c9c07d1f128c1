"""Tools stop when their time is up; allowlists and limits refuse what they do not name."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.core.model.decision import ClaimTask, Decision, InvokeTool, LeavePool
from converge_p2p.core.model.task import Task, TaskSpec
from converge_p2p.core.types import PoolId
from converge_p2p.runtime.safety import ActionPolicy, ResourceLimits, SafetyPolicy
from converge_p2p.runtime.tools import ToolFailed, ToolRegistry, ToolTimeout


class FunctionTool:
    def __init__(self, name: str, function: Callable[[Mapping[str, Any]], Any]) -> None:
        self.name = name
        self.run = function


async def test_plain_and_async_tools_return_their_value() -> None:
    async def double(params: Mapping[str, Any]) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * int(params["x"])

    registry = ToolRegistry()
    registry.register(FunctionTool("double", double))
    registry.register(FunctionTool("hidden coroutine", lambda params: double({"x": 5})))
    registry.register(FunctionTool("thread", lambda params: threading.current_thread() is threading.main_thread()))
    assert await registry.call("double", {"x": 4}) == 8
    assert await registry.call("hidden coroutine", {"x": 5}) == 10
    assert await registry.call("thread", {}) is False, "a plain tool must not block the event loop"


@pytest.mark.parametrize(("allowlist", "names"), [(None, ("a", "b")), ((), ()), (["b"], ("b",))])
async def test_the_allowlist_names_what_may_run(allowlist: Any, names: tuple[str, ...]) -> None:
    registry = ToolRegistry(allowlist=allowlist)
    for name in ("a", "b"):
        registry.register(FunctionTool(name, lambda params: "ran"))
    assert registry.names() == names
    for name in ("a", "b"):
        if name in names:
            assert await registry.call(name, {}) == "ran"
        else:
            with pytest.raises(NotAuthorised):
                await registry.call(name, {})


async def test_a_name_off_the_allowlist_is_refused_alike_whether_it_exists_or_not() -> None:
    registry = ToolRegistry(allowlist=["other"])
    with pytest.raises(NotAuthorised):
        await registry.call("nothing", {})
    with pytest.raises(NotFound):
        await ToolRegistry().call("nothing", {})


async def test_an_async_tool_is_cancelled_when_its_time_is_up(autojump_clock: MockClock) -> None:
    cleaned_up = trio.Event()

    async def hang(params: Mapping[str, Any]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cleaned_up.set()

    registry = ToolRegistry()
    registry.register(FunctionTool("hang", hang), timeout_s=2)
    with pytest.raises(ToolTimeout, match="within 2 s"):
        await registry.call("hang", {})
    assert cleaned_up.is_set()
    assert trio.current_time() == 2
    assert (registry.timeouts, registry.abandoned) == (1, 0)


async def test_a_plain_tool_that_does_not_end_keeps_its_place_until_it_ends() -> None:
    let_go, ended = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def block(params: Mapping[str, Any]) -> str:
        let_go.wait(30)
        token.run_sync_soon(ended.set)
        return "too late"

    registry = ToolRegistry(threads_max=1)
    registry.register(FunctionTool("block", block), timeout_s=0.05)
    registry.register(FunctionTool("quick", lambda params: "ok"), timeout_s=0.05)
    try:
        with pytest.raises(ToolTimeout):
            await registry.call("block", {})
        assert registry.abandoned == 1
        with pytest.raises(ToolTimeout, match="1 threads are held"):
            await registry.call("quick", {})
    finally:
        let_go.set()
    with trio.fail_after(10):
        await ended.wait()
        assert await ToolRegistryUntilFree(registry).call("quick") == "ok"
    assert registry.abandoned == 0


class ToolRegistryUntilFree:
    """Calls a tool again while the thread before is still on its last instructions."""

    def __init__(self, registry: ToolRegistry) -> None:
        self._registry = registry

    async def call(self, name: str) -> Any:
        while True:
            try:
                return await self._registry.call(name, {})
            except ToolTimeout:
                continue


async def test_what_a_tool_raises_is_its_failure_with_the_cause() -> None:
    def broken(params: Mapping[str, Any]) -> None:
        raise ZeroDivisionError("no")

    registry = ToolRegistry()
    registry.register(FunctionTool("broken", broken))
    with pytest.raises(ToolFailed, match="ZeroDivisionError: no") as caught:
        await registry.call("broken", {})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert registry.failures == 1


def test_registering_nonsense_is_refused() -> None:
    registry = ToolRegistry()
    registry.register(FunctionTool("a", len))
    with pytest.raises(Conflict):
        registry.register(FunctionTool("a", len))
    for timeout_s in (0, -1, math.nan, math.inf):
        with pytest.raises(LocalError):
            registry.register(FunctionTool("b", len), timeout_s=timeout_s)
    with pytest.raises(LocalError, match="collection of names"):
        ToolRegistry(allowlist="ab")


# ---------------------------------------------------------------- safety


@pytest.mark.parametrize("number", [math.nan, -1, math.inf, True])
def test_a_limit_or_a_request_that_is_no_sensible_number_is_refused(number: float) -> None:
    with pytest.raises(LocalError):
        ResourceLimits(cpu=number)
    with pytest.raises(LocalError):
        ResourceLimits().check(number, 0)
    with pytest.raises(LocalError):
        ResourceLimits(memory_mb=10).check(0, number)


def test_a_request_up_to_the_limit_passes_and_more_does_not() -> None:
    policy = SafetyPolicy(ResourceLimits(cpu=2, memory_mb=100))
    policy.check_submit(Task("x", constraints={"cpu": 2, "memory_mb": 100}))
    policy.check_claim(TaskSpec(b"k", "x", b"", cpu_milli=2000, memory_mb=100))
    with pytest.raises(LimitExceeded) as caught:
        policy.check_submit(Task("x", constraints={"memory_mb": 100.5}))
    assert caught.value.limit == "memory_mb"
    with pytest.raises(LimitExceeded):
        policy.check_claim(TaskSpec(b"k", "x", b"", cpu_milli=2001))


def test_no_list_allows_all_kinds_and_an_empty_one_allows_none() -> None:
    leave, tool = LeavePool(PoolId(b"p")), InvokeTool("t")
    ActionPolicy().check(leave)
    for decision in (leave, tool):
        with pytest.raises(NotAuthorised):
            ActionPolicy([]).check(decision)
    ActionPolicy([LeavePool]).check(leave)
    with pytest.raises(NotAuthorised, match="InvokeTool"):
        ActionPolicy([LeavePool]).check(tool)
    with pytest.raises(NotAuthorised):
        ActionPolicy(denied=[LeavePool]).check(leave)


def test_an_allowed_kind_does_not_allow_its_subclasses() -> None:
    class Sneaky(LeavePool):
        pass

    with pytest.raises(NotAuthorised, match="Sneaky"):
        ActionPolicy([LeavePool]).check(Sneaky(PoolId(b"p")))
    with pytest.raises(LocalError, match="not a kind of decision"):
        ActionPolicy([ClaimTask, str])  # type: ignore[list-item]
    ActionPolicy([Decision])
