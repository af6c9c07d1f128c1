"""Networks, topics and invitations from the command line: key files, and what a node is asked."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from node_fakes import FakeNode

from converge_node.cli.main import invoke
from converge_node.config import load_settings
from converge_node.control.app import ControlApi
from converge_node.control.server import open_control_server
from converge_node.control.state import ControlState
from converge_node.followed import read_followed
from converge_node.key_files import network_key_of, read_network_key, read_topic_key
from converge_node.paths import resolve_paths
from converge_p2p.core.errors import ConfigError
from converge_p2p.core.governance.invitation_line import InvitationLine, PoolInvitation
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import TopicKey
from converge_p2p.core.types import PoolId

ISSUER = Identity.from_seed(b"i" * 32)
NETWORK = NetworkKey(bytes(range(32)))


class Desk:
    """Runs commands; a node may be served in the same home."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str], node: FakeNode | None = None) -> None:
        self.home, self.paths = home, resolve_paths(home, {})
        self._capsys = capsys
        self.node = node

    def run(self, *words: str) -> tuple[int, str]:
        self._capsys.readouterr()
        code = invoke(["--home", str(self.home), *words])
        return code, self._capsys.readouterr().out

    def json(self, *words: str) -> tuple[int, Any]:
        code, out = self.run(*words, "--json")
        envelope = json.loads(out)
        return code, envelope["data"] if envelope["ok"] else envelope["error"]

    async def ask(self, *words: str) -> tuple[int, Any]:
        return await trio.to_thread.run_sync(self.json, *words)


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path / "home", capsys)


@pytest.fixture
def served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], Any]:
    @asynccontextmanager
    async def serve() -> AsyncIterator[Desk]:
        node = FakeNode()
        desk = Desk(tmp_path / "home", capsys, node)
        desk.paths.create()
        state = ControlState(str(desk.paths.state_dir), str(desk.paths.socket), trio.Event().set, "running", node, True)
        with trio.fail_after(20):
            async with open_control_server(ControlApi(state).app(), desk.paths.socket):
                yield desk

    return serve


def line(**changes: Any) -> str:
    fields: dict[str, Any] = {"network_key": NETWORK, "topics": ((Topic("acme/x"), TopicKey(b"t" * 32)),), **changes}
    return InvitationLine(ISSUER.public_key, **fields).sign(ISSUER).to_text()


def test_key_files_are_new_private_and_never_replaced(desk: Desk, tmp_path: Path) -> None:
    for words, read in ((("mesh", "new"), read_network_key), (("topic", "new-key"), read_topic_key)):
        file = tmp_path / words[0]
        code, data = desk.json(*words, str(file))
        assert (code, data["file"]) == (0, str(file))
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
        key = read(file)
        assert desk.json(*words, str(file))[1]["code"] == "conflict"
        assert read(file) == key
        assert desk.json(*words, str(tmp_path / f"other-{words[0]}"))[0] == 0
        assert read(tmp_path / f"other-{words[0]}") != key


def test_a_wrong_key_file_is_told_where_and_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "swarm.key"
    with pytest.raises(ConfigError, match="cannot read the network key file"):
        read_network_key(file)
    file.write_bytes(b"/key/swarm/psk/1.0.0/\n/base16/\nabcd")
    with pytest.raises(ConfigError, match=r"swarm\.key: .*2 bytes; expected 32") as caught:
        read_network_key(file)
    assert "mesh new" in caught.value.hint
    with pytest.raises(ConfigError, match="not a topic key file"):
        read_topic_key(file)


def test_settings_name_key_files_and_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    flags = {"network.psk_file": "/x/swarm.key", "node.private_topics": ("acme/x=/x/topic.key",)}
    config = load_settings(None, environment={}, flags=flags).config
    assert config.network.psk_file == "/x/swarm.key"
    for wrong in ("acme/x", "acme/x=", "bad topic!=/x"):
        with pytest.raises(ConfigError, match=r"node\.private_topics"):
            load_settings(None, environment={}, flags={"node.private_topics": (wrong,)})


def test_an_invitation_waits_for_a_node_that_does_not_run_and_leads_into_its_network(desk: Desk) -> None:
    code, data = desk.json("join", line(pool=PoolInvitation(PoolId(b"p" * 32))))
    assert (code, data["running"], data["pool"]) == (0, False, (b"p" * 32).hex())
    assert network_key_of("", desk.paths) == NETWORK
    (kept,) = read_followed(desk.paths)
    assert kept.topics[0][0] == Topic("acme/x")
    for name in ("network.key", "invitations"):
        assert stat.S_IMODE(os.stat(desk.paths.state_dir / name).st_mode) == 0o600
    # once more, and another one into the same network
    assert desk.json("join", kept.to_text())[0] == 0
    assert desk.json("join", line(topics=()))[0] == 0
    assert len(read_followed(desk.paths)) == 2
    for other in (None, NetworkKey(b"o" * 32)):
        code, error = desk.json("join", line(network_key=other))
        assert (code, error["code"]) == (7, "conflict")
        assert "not for this network" in error["message"]
    assert len(read_followed(desk.paths)) == 2


def test_a_home_that_was_used_does_not_change_its_network(desk: Desk) -> None:
    desk.paths.create()
    (desk.paths.state_dir / "node.sqlite").touch()
    assert desk.json("join", line())[1]["code"] == "conflict"
    assert desk.json("join", line(network_key=None))[0] == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello", "no invitation"),
        (line()[:-3], "cut off"),
        (line().replace("converge1", "converge7"), "version 7"),
        (line(expires_ms=1000), "expired"),
    ],
)
def test_a_line_that_is_no_good_says_why_and_changes_nothing(desk: Desk, text: str, reason: str) -> None:
    code, error = desk.json("join", text)
    assert code != 0
    assert reason in error["message"]
    assert not desk.paths.state_dir.exists() or not list(desk.paths.state_dir.glob("*"))


def test_a_damaged_list_of_invitations_is_told_by_its_line(desk: Desk) -> None:
    desk.paths.create()
    (desk.paths.state_dir / "invitations").write_text(line() + "\nconverge1:junk:00000000\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_followed(desk.paths)


async def test_topics_are_joined_listed_spoken_on_and_left(served: Callable[[], Any], tmp_path: Path) -> None:
    async with served() as desk:
        await desk.ask("topic", "new-key", str(tmp_path / "key"))
        key = read_topic_key(tmp_path / "key")
        assert await desk.ask("topic", "join", "acme/x@2", "--key-file", str(tmp_path / "key")) == (
            0,
            {"topic": "acme/x@2", "private": True},
        )
        assert (await desk.ask("topic", "join", "acme/open"))[0] == 0
        assert (await desk.ask("topic", "join", "acme/open"))[0] == 0, "a second time changes nothing"
        assert desk.node.joined_topics == {Topic("acme/x", version="2"): key, Topic("acme/open"): None}
        assert (await desk.ask("topic", "join", "acme/x@2"))[1]["code"] == "conflict"
        assert (await desk.ask("topic", "pub", "acme/x@2", '{"n": 1}'))[0] == 0
        assert desk.node.said == [("acme/x", {"n": 1})]
        assert (await desk.ask("topic", "pub", "acme/x@2", "no json"))[0] == 2
        assert (await desk.ask("topic", "pub", "acme/never", "1"))[0] == 6
        assert [item["topic"] for item in (await desk.ask("topic", "ls"))[1]] == ["acme/x@2", "acme/open"]
        assert (await desk.ask("topic", "leave", "acme/open"))[1] == [{"topic": "acme/x@2", "private": True}]
        assert (await desk.ask("topic", "leave", "acme/open"))[0] == 6
        assert Topic("acme/open") not in desk.node.joined_topics


async def test_an_invitation_is_written_and_followed_by_running_nodes(served: Callable[[], Any]) -> None:
    async with served() as desk:
        desk.node.invitations.network_key = NETWORK
        plain = {"network": NETWORK.network.hex(), "topics": [], "accepts": "", "accepted_connections": 0}
        assert (await desk.ask("mesh", "ls"))[1] == plain
        await desk.ask("topic", "join", "acme/open")
        await desk.ask("pool", "create", "demo")
        words = ("--pool", "demo", "--topic", "acme/open", "--uses", "3", "--role", "tester", "--valid", "60")
        code, written = await desk.ask("mesh", "invite", *words)
        assert code == 0
        (asked,) = desk.node.invitations.asked
        assert (asked["pool"], asked["uses"], asked["role"], asked["valid_s"]) == ("demo", 3, "tester", 60.0)
        assert (await desk.ask("mesh", "invite", "--any-number"))[0] == 0
        assert desk.node.invitations.asked[1]["uses"] is None
        assert (await desk.ask("mesh", "invite", "--uses", "0"))[0] == 2
        code, followed = await desk.ask("join", written["text"], "--capability", "gpu")
        assert (code, followed["running"], followed["role"]) == (0, True, "tester")
        assert [topic["topic"] for topic in followed["topics"]] == ["acme/open"]
        assert len(read_followed(desk.paths)) == 1
        # what the node refuses is not kept
        desk.node.invitations.network_key = None
        assert (await desk.ask("join", line()))[0] == 2
        assert len(read_followed(desk.paths)) == 1


async def test_what_is_said_on_a_topic_is_streamed_to_whoever_listens(served: Callable[[], Any]) -> None:
    said = Message.create(ISSUER.id, {"n": 1, "raw": b"\x00"}).stamp(now_ms=1_700_000_000_000)
    async with served() as desk:
        assert (await desk.ask("topic", "sub", "acme/open"))[1]["code"] == "not_found"
        await desk.ask("topic", "join", "acme/open")
        heard: list[Any] = []

        async def listen() -> None:
            code, out = await trio.to_thread.run_sync(desk.run, "topic", "sub", "acme/open", "--json", "--timeout", "3")
            heard.extend([code, json.loads(out.splitlines()[0])["data"]])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            while not desk.node.listeners:  # noqa: ASYNC110 - the listener is in another thread
                await trio.sleep(0.01)
            await desk.node.listeners[0].send(said)
        assert heard[0] == 0
        assert heard[1] == {
            "id": said.id.hex(),
            "topic": "acme/open",
            "sender": str(ISSUER.id),
            "sent_at": "2023-11-14T22:13:20Z",
            "payload": {"n": 1, "raw": {"$bytes": "AA=="}},
        }
