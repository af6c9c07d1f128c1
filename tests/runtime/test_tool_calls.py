"""Every call of a tool goes one way: allowlist, arguments, fence, time; and its result goes where the agent says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
from test_executor import POOL, TASK, Node

from converge_p2p.core import limits
from converge_p2p.core.errors import ClaimLost, Conflict, LimitExceeded, LocalError, NotFound
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.decision import InvokeTool, ReportTask, SendMessage
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Outcome
from converge_p2p.runtime.attempt import WorkContext
from converge_p2p.runtime.executor import Executed, Failed, Refused, StandardExecutor
from converge_p2p.runtime.fencing import Fence
from converge_p2p.runtime.tool_schema import Parameters, without_patterns
from converge_p2p.runtime.tools import BadArguments, FunctionTool, ToolFailed, ToolRegistry, ToolSpec

FENCE = Fence(TASK, 2, 7)
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 5}, "to": {"enum": ["de", "fr"]}},
    "required": ["text"],
    "additionalProperties": False,
}
ME = Identity.generate()


def registry_of(function: Callable[..., Any], **options: Any) -> ToolRegistry:
    registry = ToolRegistry()
    registry.register(FunctionTool(function, name="tool", **options))
    return registry


def give_back(params: Mapping[str, Any]) -> Any:
    """Return what came."""
    return params


class Fences:
    """Gives one fence, or refuses."""

    def __init__(self, fence: Fence | None) -> None:
        self.fence = fence

    async def run_fenced(self, pool_id: Any, task_id: Any, work: Callable[[Fence], Awaitable[Any]]) -> Any:
        if self.fence is None or task_id != self.fence.task_id:
            raise ClaimLost("not held")
        return await work(self.fence)


def executor_of(registry: ToolRegistry, node: Node | None = None, fence: Fence | None = FENCE) -> StandardExecutor:
    node = node or Node()
    return StandardExecutor(messages=node, tasks=node, pools=node, tools=registry, fences=Fences(fence))


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({}, "'text' is a required property"),
        ({"text": 1}, "1 is not of type 'string' .at \\$.text"),
        ({"text": "too long"}, "too long"),
        ({"text": "a", "to": "xx"}, "not one of"),
        ({"text": "a", "more": 1}, "Additional properties"),
        ({"text": float("nan")}, "not finite"),
        ({"text": object()}, "object cannot be encoded"),
        ({1: "x"}, "map keys"),
        ([1], "list is no map"),
    ],
)
async def test_arguments_that_do_not_fit_never_reach_the_tool(params: Any, what: str) -> None:
    seen: list[Any] = []
    registry = registry_of(seen.append, parameters=SCHEMA)
    with pytest.raises(BadArguments, match=what):
        await registry.call("tool", params)
    assert (seen, registry.calls) == ([], 0)


async def test_arguments_that_fit_are_handed_over() -> None:
    assert await registry_of(give_back, parameters=SCHEMA).call("tool", {"text": "a", "to": "de"}) == {
        "text": "a",
        "to": "de",
    }


async def test_arguments_are_bounded_with_and_without_a_schema() -> None:
    with pytest.raises(LimitExceeded, match="at most"):
        await registry_of(give_back).call("tool", {"x": b"0" * limits.TOOL_PARAMS_BYTES_MAX})


async def test_a_change_of_the_arguments_by_the_caller_does_not_reach_the_tool_later() -> None:
    params: dict[str, Any] = {"n": 1}
    got = await registry_of(give_back).call("tool", params)
    params["n"] = 2
    assert got == {"n": 1}


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "nonsense"}, "not a JSON schema"),
        ({"properties": {"a": {"$ref": "https://example.org/schema.json"}}}, "only references within"),
        ({"$ref": "file:///etc/passwd"}, "only references within"),
        ({"x": object()}, "not JSON"),
        ({"minimum": float("nan")}, "not JSON"),
        ({"description": "x" * limits.TOOL_SCHEMA_BYTES_MAX}, "at most"),
    ],
)
def test_a_schema_that_cannot_hold_is_refused_when_the_tool_is_registered(schema: Any, what: str) -> None:
    with pytest.raises(LocalError, match=what):
        registry_of(give_back, parameters=schema)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"$ref": "#/$defs/missing"}])
def test_a_schema_that_leads_nowhere_refuses_and_does_not_hang(schema: Any) -> None:
    with pytest.raises(BadArguments, match="cannot be applied"):
        Parameters(schema).check({})


def test_a_strangers_schema_loses_its_regular_expressions_and_nothing_else() -> None:
    schema = {
        "properties": {"pattern": {"type": "string", "pattern": "(a+)+$"}},
        "patternProperties": {"(a+)+$": {}},
        "additionalProperties": False,
        "default": {"pattern": "kept"},
        "anyOf": [{"pattern": "(a+)+$"}, {"type": "object"}],
    }
    assert without_patterns(schema) == {
        "properties": {"pattern": {"type": "string"}},
        "default": {"pattern": "kept"},
        "anyOf": [{}, {"type": "object"}],
    }


async def test_what_is_known_of_a_tool_can_be_listed_and_a_tool_taken_away() -> None:
    registry = ToolRegistry(allowlist=["tool", "absent"], timeout_s=3)
    registry.register(FunctionTool(give_back, name="tool", parameters=SCHEMA))
    registry.register(FunctionTool(give_back, name="hidden"))
    assert registry.specs() == (ToolSpec("tool", "Return what came.", SCHEMA, False, False, 3.0),)
    registry.unregister("tool")
    assert registry.specs() == ()
    with pytest.raises(NotFound):
        registry.unregister("tool")


# ---------------------------------------------------------------- effects


def spend(params: Mapping[str, Any], fence: Fence) -> list[Any]:
    return [params["n"], fence.token, str(fence).partition(":")[2]]


async def test_a_tool_with_effects_does_not_run_without_a_fence() -> None:
    registry = registry_of(spend, side_effects=True)
    with pytest.raises(ClaimLost, match="only for a task that is held"):
        await registry.call("tool", {"n": 1})
    assert registry.calls == 0
    assert await registry.call("tool", {"n": 1}, fence=FENCE) == [1, (2, 7), "2:7"]


async def test_an_agent_runs_a_tool_with_effects_for_a_task_that_it_holds() -> None:
    executor = executor_of(registry_of(spend, side_effects=True))
    call = InvokeTool("tool", {"n": 1}, pool_id=POOL, task_id=TASK)
    assert await executor.execute(call) == Executed(call, [1, (2, 7), "2:7"])
    unnamed = await executor.execute(InvokeTool("tool", {"n": 1}))
    assert isinstance(unnamed, Refused)
    assert isinstance(unnamed.error, ClaimLost)
    lost = await executor_of(registry_of(spend, side_effects=True), fence=None).execute(call)
    assert isinstance(lost, Refused)


async def test_a_handler_hands_its_own_fence_to_a_tool_with_effects() -> None:
    context = WorkContext(TASK, (2, 7))
    assert await registry_of(spend, side_effects=True).call("tool", {"n": 1}, fence=context.fence) == [
        1,
        (2, 7),
        "2:7",
    ]


def test_fences_of_a_task_are_ordered_as_they_were_certified() -> None:
    assert Fence(TASK, 1, 9) < Fence(TASK, 2, 0) < Fence(TASK, 2, 1)


def test_a_call_names_both_pool_and_task_or_none() -> None:
    with pytest.raises(LocalError, match="give both"):
        InvokeTool("tool", task_id=TASK)


# ---------------------------------------------------------------- results


async def test_a_result_is_reported_without_passing_through_the_agent() -> None:
    node = Node()
    executor = executor_of(registry_of(give_back), node)
    await executor.execute(InvokeTool("tool", {"n": 1}, call_id="a"))
    await executor.execute(InvokeTool("tool", {"n": 2}))
    for name in ("a", "tool"):
        report = ReportTask(POOL, TASK, result_of=name)
        assert await executor.execute(report) == Executed(report)
    assert [asked[3:] for asked in node.asked] == [(Outcome.COMPLETED, {"n": 1}), (Outcome.COMPLETED, {"n": 2})]


async def test_results_are_attached_to_a_message_beside_what_it_says() -> None:
    node = Node()
    executor = executor_of(registry_of(give_back), node)
    await executor.execute(InvokeTool("tool", {"n": 1}, call_id="a"))
    letter = Message.create(ME.id, {"text": "hi"})
    assert isinstance(await executor.execute(SendMessage(letter, {"found": "a"})), Executed)
    assert node.asked[0][1].payload == {"text": "hi", "found": {"n": 1}}


async def test_the_result_of_a_call_that_failed_is_not_there_even_if_an_earlier_one_was() -> None:
    node = Node()

    def fail_once_asked(params: Mapping[str, Any]) -> str:
        if "fail" in params:
            raise ValueError("asked to fail")
        return "old"

    executor = executor_of(registry_of(fail_once_asked), node)
    await executor.execute(InvokeTool("tool", {}, call_id="a"))
    assert isinstance(await executor.execute(InvokeTool("tool", {"fail": 1}, call_id="a")), Failed)
    refused = await executor.execute(ReportTask(POOL, TASK, result_of="a"))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, NotFound)
    assert node.asked == []


async def test_nothing_is_attached_to_a_signed_message_or_to_a_payload_that_is_no_map() -> None:
    executor = executor_of(registry_of(give_back))
    await executor.execute(InvokeTool("tool", {}, call_id="a"))
    signed = Message.create(ME.id, {}).stamp(now_ms=1_700_000_000_000).sign(ME)
    for letter in (signed, Message.create(ME.id, "text")):
        result = await executor.execute(SendMessage(letter, {"found": "a"}))
        assert isinstance(result, Refused)


async def test_only_the_last_results_are_kept() -> None:
    executor = executor_of(registry_of(give_back))
    for number in range(limits.TOOL_RESULTS_KEPT_MAX + 1):
        await executor.execute(InvokeTool("tool", {}, call_id=str(number)))
    assert isinstance(await executor.execute(ReportTask(POOL, TASK, result_of="0")), Refused)
    assert isinstance(await executor.execute(ReportTask(POOL, TASK, result_of="1")), Executed)


async def test_a_tools_own_time_limit_is_its_failure_and_not_a_timeout_of_the_registry() -> None:
    async def give_up(params: Mapping[str, Any]) -> None:
        with trio.fail_after(0):
            await trio.sleep_forever()

    registry = registry_of(give_up)
    with pytest.raises(ToolFailed, match="TooSlowError"):
        await registry.call("tool", {})
    assert (registry.timeouts, registry.failures) == (0, 1)


def test_a_name_is_taken_once_and_has_a_bounded_length() -> None:
    registry = registry_of(give_back)
    with pytest.raises(Conflict):
        registry.register(FunctionTool(give_back, name="tool"))
    with pytest.raises(LocalError, match="bytes"):
        registry.register(FunctionTool(give_back, name="x" * 257))
