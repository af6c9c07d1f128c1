"""What a call of a tool costs: in the loop, in a thread, and in a locked process; and how long others wait meanwhile.

Knows: the registry. Must not know: agents or nodes.

A ticker beside the calls measures how late the event loop comes back to it: that is what a node's other work waits.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from converge_p2p.runtime.tool_process import ProcessTool
from converge_p2p.runtime.tools import FunctionTool, ToolRegistry

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
CALLS = {"in the loop": 5000, "in a thread": 2000, "in a process": 40}
TICK_S = 0.005


async def in_loop(params: Mapping[str, Any]) -> int:
    await trio.lowlevel.checkpoint()
    return int(params["x"])


async def tick(late: list[float]) -> None:
    while True:
        due = trio.current_time() + TICK_S
        await trio.sleep_until(due)
        late.append(trio.current_time() - due)


async def measure(registry: ToolRegistry, name: str, calls: int) -> None:
    times: list[float] = []
    late: list[float] = []
    await registry.call(name, {"x": 1})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick, late)
        for _ in range(calls):
            began = time.perf_counter()
            await registry.call(name, {"x": 1})
            times.append(time.perf_counter() - began)
        nursery.cancel_scope.cancel()
    worst = sorted(late)[int(len(late) * 0.99)] if late else 0.0
    print(f"{name:14} p50 {statistics.median(times) * 1e3:8.3f} ms   loop late p99 {worst * 1e3:6.2f} ms")


async def main() -> None:
    registry = ToolRegistry()
    registry.register(FunctionTool(in_loop, name="in the loop", parameters=SCHEMA))
    registry.register(FunctionTool(lambda params: params["x"], name="in a thread", parameters=SCHEMA))
    registry.register(ProcessTool("bench_tool_body:run", name="in a process", parameters=SCHEMA))
    for name, calls in CALLS.items():
        await measure(registry, name, calls)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench_tool_body.py").write_text("def run(params):\n    return params['x']\n")
        sys.path.insert(0, folder)
        trio.run(main)
