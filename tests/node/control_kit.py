"""A control application over a node in memory, and ways to ask it: in this process, and over sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from node_fakes import FakeNode, FakePool

from converge_node.control.app import ControlApi
from converge_node.control.server import open_control_server, open_tcp_server
from converge_node.control.state import ControlState
from converge_node.control.tokens import Tokens, add_token
from converge_node.log_book import LogBook
from converge_p2p.client.routes import Scope
from converge_p2p.core.model.task import Task
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.receipt import Receipt
from converge_p2p.runtime.checkpoints import Checkpoint
from converge_p2p.runtime.settings import Health

KEY = "00" * 32


class Hosting:
    """One hosted agent with one recorded turn."""

    def checkpoints(self) -> list[Any]:
        return [Checkpoint("a", 1, 0, 1_000, {"page": 3})]

    def hosted(self) -> list[Any]:
        numbers = (
            "turns",
            "failures",
            "failures_in_row",
            "restarts",
            "inbox",
            "dropped",
            "blocked",
            "claims",
            "followed",
        )
        counts = dict.fromkeys((*numbers, "decisions_dropped"), 0)
        health = Health(ok=True, running=True, stalled=False, last_error="", **counts)
        return [
            SimpleNamespace(
                name="a", kind="Agent", state="idle", capabilities=[], topics=[], discoverable=False, health=health
            )
        ]

    def replay_entries(self, name: str, after: int, count: int) -> list[Any]:
        return [SimpleNamespace(number=0, hash=bytes(32), data=b"turn")] if name == "a" and after < 0 else []


@dataclass
class Ground:
    """A node with a pool, a task and a topic."""

    node: FakeNode
    state: ControlState
    pool: FakePool
    task: TaskId
    stops: list[None]


async def ground() -> Ground:
    node, stops = FakeNode(), list[None]()
    node.hosting = Hosting()  # type: ignore[attr-defined]
    state = ControlState("/home", "/socket", lambda: stops.append(None), "running", node, True, log_book=LogBook())
    pool = await node.create_pool("demo")
    task = (await pool.submit(Task("index", {"n": 1}, key="k"))).id
    return Ground(node, state, pool, task, stops)


def some_receipt() -> Receipt:
    """A receipt that holds, of another pool than the one in memory."""
    vectors = json.loads((Path(__file__).parents[1] / "vectors" / "receipts.json").read_text(encoding="utf-8"))
    return Receipt.from_bytes(bytes.fromhex(vectors["holds"][0]["hex"]))


def asking(ground: Ground, tokens: Tokens | None = None) -> httpx.AsyncClient:
    """Return an HTTP client that calls the application in this task."""
    transport = httpx.ASGITransport(ControlApi(ground.state).app(tokens))
    return httpx.AsyncClient(transport=transport, base_url="http://node")


def some_tokens(folder: Path) -> tuple[Tokens, dict[Scope, str]]:
    """Return a token of each scope."""
    file = folder / "api-tokens"
    made = {scope: add_token(file, scope.name.lower(), scope) for scope in Scope}
    return Tokens(file), made


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Ground, Path, str, dict[Scope, str]]]:
    """Serve on a Unix socket and on loopback; yields both places, and the tokens."""
    known = await ground()
    api, path = ControlApi(known.state), folder / "control.sock"
    tokens, made = some_tokens(folder)
    async with (
        open_control_server(api.app(), path),
        open_tcp_server(api.app(tokens), ["127.0.0.1:0"]) as (url,),
    ):
        yield known, path, url, made
