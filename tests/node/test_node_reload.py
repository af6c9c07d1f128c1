"""Settings that are read again: what is taken over, what waits for a restart, and that wrong ones change nothing."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from node_fakes import FakeNode
from test_node_run import finish, first_document, started

from converge_node.cli.main import invoke
from converge_node.config import Settings, all_keys, load_settings
from converge_node.control.mesh import Meshes
from converge_node.errors import NotReady
from converge_node.key_files import new_topic_key, write_key_file
from converge_node.logs import log_level, set_log_level
from converge_node.reload import LiveSettings
from converge_node.shutdown import Shutdown
from converge_p2p.client import Client
from converge_p2p.core.errors import ConfigError
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import PoolId
from converge_p2p.net import peer_id_of

PEER = f"/ip4/192.0.2.1/tcp/1/p2p/{peer_id_of(Identity.from_seed(b'1' * 32).public_key)}"


@pytest.fixture(autouse=True)
def _same_log() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    set_log_level("info")
    logging.getLogger().setLevel(before)


class Place:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.toml"
        self.node, self.meshes, self.shutdown = FakeNode(), Meshes(), Shutdown(30.0)
        self.joined: list[PoolId] = []
        self.live = LiveSettings(
            load_settings(self.file, environment={}),
            lambda: load_settings(self.file, environment={}),
            str(self.file),
            node=self.node,  # type: ignore[arg-type]
            meshes=self.meshes,
            shutdown=self.shutdown,
            join_pool=self.joined.append,
        )

    def write(self, **sections: dict[str, Any]) -> None:
        lines = []
        for section, keys in sections.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        self.file.write_text("\n".join(lines))

    async def reload(self) -> dict[str, str]:
        return {change.key: change.effect for change in (await self.live.reload()).changes}


async def test_each_setting_is_taken_over_or_named_as_waiting_for_a_restart(tmp_path: Path) -> None:
    place = Place(tmp_path)
    key = tmp_path / "topic.key"
    write_key_file(key, new_topic_key().to_file())
    assert await place.reload() == {}
    place.write(
        log={"level": "error"},
        network={"bootstrap": [PEER], "listen": ["/ip4/127.0.0.1/tcp/1"]},
        node={"topics": ["acme/one"], "private_topics": [f"acme/two={key}"], "pools": ["ab" * 32]},
        shutdown={"timeout_s": 5.0},
        trust={"join_threshold": 0.75, "rate": 0.5},
        admission={"default": "token"},
    )
    effects = await place.reload()
    assert {key for key, effect in effects.items() if effect == "restart"} == {"network.listen", "trust.rate"}
    assert log_level() == "error"
    assert place.node.links.bootstrap == (PEER,)
    assert {topic.namespace for topic in place.node.topics()} == {"acme/one", "acme/two"}
    assert place.joined == [PoolId(bytes.fromhex("ab" * 32))]
    assert place.shutdown.timeout_s == 5.0
    assert place.node.policy.trust.join_threshold == 0.75
    # what was taken over is no change any more; what waits is said until there was a restart
    assert await place.reload() == {"network.listen": "restart", "trust.rate": "restart"}
    place.write()
    assert set(await place.reload()) == set(effects) - {"network.listen", "trust.rate"}
    assert place.node.topics() == {}
    assert place.node.links.bootstrap == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"log": {"level": "loud"}},
        {"log": {"levl": "debug"}},
        {"network": {"bootstrap": ["/ip4/192.0.2.1/tcp/1"]}},
        {"node": {"private_topics": ["acme/two=/nonexistent/key"]}},
    ],
)
async def test_settings_that_are_wrong_change_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    place = Place(tmp_path)
    place.write(**{"node": {"topics": ["acme/one"]}, "shutdown": {"timeout_s": 5.0}, **wrong})
    with pytest.raises(ConfigError):
        await place.reload()
    assert (place.node.topics(), place.shutdown.timeout_s, place.node.links.bootstrap) == ({}, 30.0, ())


async def test_what_cannot_be_done_yet_is_said_and_the_rest_is_done(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(node={"topics": ["acme/one"]})
    await place.reload()
    key = tmp_path / "topic.key"
    write_key_file(key, new_topic_key().to_file())
    place.write(node={"topics": ["acme/one"], "private_topics": [f"acme/one={key}"]}, shutdown={"timeout_s": 4.0})
    item = await place.live.reload()
    assert len(item.troubles) == 1
    assert "takes part in it otherwise" in item.troubles[0]
    assert place.shutdown.timeout_s == 4.0


async def test_a_topic_that_could_not_be_joined_is_tried_again_and_its_end_ends_no_other(tmp_path: Path) -> None:
    place, key = Place(tmp_path), tmp_path / "topic.key"
    write_key_file(key, new_topic_key().to_file())
    private = f"acme/one={key}"
    place.write(node={"topics": ["acme/one"]})
    await place.reload()
    place.write(node={"topics": ["acme/one"], "private_topics": [private]})
    assert (await place.live.reload()).troubles
    again = await place.live.reload()
    assert (again.changes, len(again.troubles)) == ([], 1)
    place.write(node={"topics": ["acme/one"]})
    assert not (await place.live.reload()).troubles
    assert list(place.node.topics().values()) == [None]
    place.write(node={"topics": ["acme/one"], "private_topics": [private]})
    assert (await place.live.reload()).troubles
    place.write(node={"private_topics": [private]})
    assert not (await place.live.reload()).troubles
    assert [bool(key) for key in place.node.topics().values()] == [True]


def test_every_setting_that_is_taken_over_exists() -> None:
    place = Place(Path("/nonexistent"))
    assert place.live.live <= set(all_keys())


def test_a_running_node_reads_its_settings_at_a_command_and_at_sighup(tmp_path: Path) -> None:
    home = tmp_path / "n1"
    file = home / "config.toml"

    def run(*words: str) -> int:
        return invoke(["--home", str(home), *words])

    with started("--home", str(home), "--json", "--topic", "acme/flag", CONVERGE_NODE_LOG__LEVEL="warning") as process:
        first_document(process)
        assert run("config", "set", "node.topics", "acme/file") == 0
        assert run("config", "set", "shutdown.timeout_s", "7") == 0
        # the flag comes before the file, also at a reload
        item = Client(home / "control.sock").reload()
        assert [(change.key, change.after, change.effect) for change in item.changes] == [
            ("shutdown.timeout_s", 7.0, "applied")
        ]
        file.write_text("[log]\nlevel = 'loud'\n")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        for line in process.stderr:
            if "nothing was changed" in line:
                assert "'loud' is none of" in json.loads(line)["error"]
                break
        file.write_text("")
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0, err


async def test_a_node_that_began_to_stop_meanwhile_takes_nothing_over(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(node={"pools": ["ab" * 32]}, log={"level": "error"})
    read = place.live._read

    def read_slowly() -> Settings:
        trio.from_thread.run_sync(place.shutdown.request, "a test")
        return read()

    place.live._read = read_slowly
    level = log_level()
    try:
        with pytest.raises(NotReady, match="stopping"):
            await place.reload()
    finally:
        place.shutdown.done()
    assert place.joined == []
    assert log_level() == level
