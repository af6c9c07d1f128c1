"""Registers the tools of a local MCP server in a tool registry, for as long as the server runs.

Knows: the official SDK's client, and registries. Must not know: agents.
Source: `docs/mcp.md`; the `mcp` package, which runs under trio. What a server says of its tools is a stranger's word:
names and schemas are bounded, regular expressions in them are not run, and which have effects the application says.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.runtime.fencing import Fence
from converge_p2p.runtime.tool_errors import ToolFailed
from converge_p2p.runtime.tool_schema import without_patterns
from converge_p2p.runtime.tools import ToolRegistry

FENCE_META = "converge-p2p/fence"
"""Under this key of `_meta` a call of a tool with effects carries `task:epoch:round`."""
_DESCRIPTION_CHARS_MAX = 1024


@dataclass(frozen=True, slots=True)
class McpServer:
    """A program that serves tools over its standard input and output.

    Attributes:
        command: the program, with its arguments.
        env: variables it is given, beside the few that a program needs. Nothing else of the environment is handed on.
        cwd: folder it runs in.
    """

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | Path | None = None


@asynccontextmanager
async def bridged_tools(
    registry: ToolRegistry,
    server: McpServer,
    *,
    only: Collection[str] | None = None,
    prefix: str = "",
    side_effects: Collection[str] = (),
    timeout_s: float | None = None,
) -> AsyncIterator[tuple[str, ...]]:
    """Start a server, register its tools, and give their names; at the end take them away and end the server.

    Args:
        registry: where they are registered; its allowlist holds for them too.
        server: the program.
        only: names, as the server gives them, of those to register. None: all. Empty: none.
        prefix: put before each name.
        side_effects: names, as the server gives them, of those that change something: they run for held tasks only, and
            are given the fence in `_meta`.
        timeout_s: time limit of each, seconds; None is the registry's.

    Raises:
        LocalError: the SDK is not installed, the server cannot be started, or a tool that was named is not there.
        Conflict, LimitExceeded: the registry does not take a tool.
    """
    try:
        from mcp import Client, StdioServerParameters
    except ImportError as error:
        raise LocalError("the mcp library is not installed", hint="pip install converge-p2p[mcp]") from error
    program, *arguments = server.command
    parameters = StdioServerParameters(
        command=program, args=arguments, env=dict(server.env), cwd=None if server.cwd is None else str(server.cwd)
    )
    registered: list[str] = []
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(Client(parameters))
        except Exception as error:
            raise LocalError(f"the server {program} cannot be used: {_leaf(error)}") from error
        try:
            found = await _listed(client)
            for name in (*(only or ()), *side_effects):
                if name not in found:
                    raise LocalError(f"the server has no tool {name!r}; it has {', '.join(found) or 'none'}")
            for name, tool in found.items():
                if only is None or name in only:
                    bridged = _Bridged(client, name, tool, prefix=prefix, effects=name in side_effects)
                    registry.register(bridged, timeout_s=timeout_s)
                    registered.append(bridged.name)
            yield tuple(registered)
        except Exception as error:  # noqa: BLE001 - raised below: the SDK's nurseries would wrap it in a group
            failure = error
        finally:
            for name in registered:
                registry.unregister(name)
    if failure is not None:
        raise failure


def _leaf(error: Exception) -> str:
    """What is wrong, without the groups of the SDK's nurseries."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {str(error)[:300]}"


async def _listed(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cursor = None
    while True:
        try:
            page = await client.list_tools(cursor=cursor)
        except Exception as error:
            raise LocalError(f"the server does not list its tools: {_leaf(error)}") from error
        for tool in page.tools:
            found[tool.name] = tool
        if len(found) > limits.MCP_TOOLS_MAX:
            raise LocalError(f"the server has more than {limits.MCP_TOOLS_MAX} tools")
        # a server that gives one page for ever is no server of these tools
        if page.next_cursor is None or page.next_cursor == cursor or not page.tools:
            return found
        cursor = page.next_cursor


class _Bridged:
    """One tool of a server."""

    network = True

    def __init__(self, client: Any, name: str, tool: Any, *, prefix: str, effects: bool) -> None:
        self.name = prefix + name
        self.description = str(tool.description or "")[:_DESCRIPTION_CHARS_MAX]
        self.parameters = without_patterns(tool.input_schema)
        self.side_effects = effects
        self._client = client
        self._name = name

    async def run(self, params: Mapping[str, Any], fence: Fence | None = None) -> Any:
        """Call it. Cancellation: the server is told, and not waited for."""
        meta = None if fence is None else {FENCE_META: str(fence)}
        try:
            result = await self._client.call_tool(self._name, dict(params), meta=meta)
        except Exception as error:
            raise ToolFailed(f"tool {self.name!r} failed: {type(error).__name__}: {str(error)[:500]}") from error
        text = "\n".join(block.text if block.type == "text" else f"<{block.type}>" for block in result.content)
        if result.is_error:
            raise ToolFailed(f"tool {self.name!r} failed: {text[:500]}")
        value = text if result.structured_content is None else result.structured_content
        if len(json.dumps(value)) > limits.MCP_RESULT_CHARS_MAX:
            raise ToolFailed(f"tool {self.name!r} gave more than {limits.MCP_RESULT_CHARS_MAX} characters")
        return value
