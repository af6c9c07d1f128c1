"""A local MCP server, written with the SDK, whose tools are of several kinds. Started as a program by the tests."""

from __future__ import annotations

import os
import sys
from typing import Any

import anyio
import mcp_types as types
from mcp.server import Server
from mcp.server.stdio import stdio_server

TEXT = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^(a+)+$"}}, "required": ["text"]}
TOOLS = {
    "shout": TEXT,
    "structured": {"type": "object"},
    "fail": {"type": "object"},
    "crash": {"type": "object"},
    "hang": {"type": "object"},
    "flood": {"type": "object"},
    "environment": {"type": "object"},
    "pay": {"type": "object"},
}


async def list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
    return types.ListToolsResult(
        tools=[types.Tool(name=name, description="D" * 5000, input_schema=schema) for name, schema in TOOLS.items()]
    )


async def call_tool(_context: Any, params: Any) -> types.CallToolResult:
    arguments = params.arguments or {}
    match params.name:
        case "shout":
            return _said(arguments["text"].upper())
        case "structured":
            return types.CallToolResult(content=[], structured_content={"n": 1})
        case "fail":
            return types.CallToolResult(content=[types.TextContent(text="asked to fail")], is_error=True)
        case "crash":
            os._exit(3)
        case "hang":
            await anyio.sleep_forever()
        case "flood":
            return _said("x" * 1_000_000)
        case "environment":
            return _said(os.environ.get("SECRET", "none"))
        case "pay":
            return _said(str((params.meta or {}).get("converge-p2p/fence")))
    raise AssertionError(params.name)


def _said(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)])


async def main() -> None:
    server: Any = Server("some", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    if "--garbage" in sys.argv:
        sys.stdout.write("this is no protocol\n" * 3)
        sys.stdout.flush()
    elif "--leave" not in sys.argv:
        anyio.run(main)
