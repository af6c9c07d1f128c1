"""Agents from the command line and the control interface: publish, find, show, revoke."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from node_fakes import FakeNode

from converge_node.cli.main import invoke
from converge_node.control.app import ControlApi
from converge_node.control.server import open_control_server
from converge_node.control.state import ControlState
from converge_node.paths import resolve_paths
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.topic import Topic

INVALID = "invalid_request"
ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)


class Desk:
    """Runs commands against a node that is served in the same home."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.paths, self.node = home, resolve_paths(home, {}), FakeNode()
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str]:
        self._capsys.readouterr()
        code = invoke(["--home", str(self.home), *words])
        return code, self._capsys.readouterr().out

    async def text(self, *words: str) -> str:
        code, out = await trio.to_thread.run_sync(self.run, *words)
        assert code == 0
        return out

    async def ask(self, *words: str) -> tuple[int, Any]:
        code, out = await trio.to_thread.run_sync(self.run, *words, "--json")
        envelope = json.loads(out)
        return code, envelope["data"] if envelope["ok"] else envelope["error"]


@pytest.fixture
def served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], Any]:
    @asynccontextmanager
    async def serve() -> AsyncIterator[Desk]:
        desk = Desk(tmp_path / "home", capsys)
        desk.paths.create()
        paths = desk.paths
        state = ControlState(str(paths.state_dir), str(paths.socket), trio.Event().set, "running", desk.node, True)
        with trio.fail_after(20):
            async with open_control_server(ControlApi(state).app(), paths.socket):
                yield desk

    return serve


async def test_what_is_published_is_found_and_what_is_revoked_is_not(served: Callable[[], Any]) -> None:
    async with served() as desk:
        assert await desk.text("agent", "ls") == "no agent is known here\n"
        words = ("--capability", "translate@1.2:5", "--capability", "count", "--topic", "acme/text@2", "--name", "Me")
        code, said = await desk.ask("agent", "publish", *words)
        assert (code, said["own"], said["name"], desk.node.discovery.kept) == (0, True, "Me", True)
        assert [(skill["name"], skill["version"], skill["cost"]) for skill in said["capabilities"]] == [
            ("count", "1.0", 0), ("translate", "1.2", 5),
        ]  # fmt: skip
        assert said["topics"] == [{"namespace": "acme/text", "attributes": {}, "version": "2"}]
        shown = await desk.text("agent", "show", said["id"][:8])
        assert "(this node)" in shown
        assert "acme/text@2" in shown
        assert await desk.ask("agent", "revoke") == (0, {"revoked": True})
        assert await desk.ask("agent", "revoke") == (0, {"revoked": False})


async def test_agents_are_found_by_version_cost_topic_and_trust(served: Callable[[], Any]) -> None:
    async with served() as desk:
        discovery = desk.node.discovery
        discovery.know(ALICE, capabilities=[Capability("translate", (1, 4), cost=7)], topics=[Topic("acme/text")])
        discovery.know(BOB, capabilities=[Capability("translate", (2, 0), cost=2)], name="B\x1b[2J")
        discovery.trust.set(ALICE.id, 0.9)

        async def find(*words: str) -> list[str]:
            code, items = await desk.ask("agent", "find", *words)
            assert code == 0
            return [item["id"] for item in items]

        assert await find() == sorted([ALICE.id, BOB.id])
        assert await find("--capability", "translate") == [BOB.id, ALICE.id]
        assert await find("--capability", "translate@1.2") == [ALICE.id]
        assert await find("--capability", "translate@1.2-3.0") == [BOB.id, ALICE.id]
        assert await find("--capability", "translate:5") == [BOB.id]
        assert await find("--topic", "acme/text") == [ALICE.id]
        assert await find("--trust", "0.6") == [ALICE.id]
        assert await find("--limit", "1", "--capability", "translate") == [BOB.id]
        assert await find("--capability", "nothing", "--refresh") == []
        assert discovery.refreshed == 1
        assert (await desk.text("agent", "ls", "-q")).split() == sorted([ALICE.id, BOB.id])
        # a name comes from a stranger, and a terminal obeys control characters
        assert "\x1b" not in await desk.text("agent", "ls")
        assert "no such agent" in await desk.text("agent", "find", "--capability", "nothing")


@pytest.mark.parametrize(
    ("words", "code"),
    [(("find", "--capability", "a b"), INVALID), (("find", "--capability", "x@1"), INVALID),
     (("find", "--capability", "x@2.0-1.0"), INVALID), (("publish", "--capability", "x@1.0-2.0"), INVALID),
     (("publish", "--topic", "no topic"), INVALID), (("show", "xyz"), INVALID), (("show", "abcdef"), "not_found"),
     (("show", "0" * 64), "not_found"), (("find", "--trust", "2"), "usage"), (("ls", "--limit", "0"), "usage")],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused_with_a_reason(
    served: Callable[[], Any], words: tuple[str, ...], code: str
) -> None:
    async with served() as desk:
        status, error = await desk.ask("agent", *words)
        assert status != 0
        assert code in error["code"]


async def test_an_ambiguous_prefix_is_a_conflict(served: Callable[[], Any]) -> None:
    async with served() as desk:
        desk.node.discovery.know(ALICE)
        desk.node.discovery.matching = lambda _prefix: [ALICE.id, BOB.id]
        status, error = await desk.ask("agent", "show", ALICE.id[:6])
        assert (status, error["code"]) == (7, "conflict")
