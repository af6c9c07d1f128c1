"""What `doctor` finds, with a node and without: each thing that can be wrong is made wrong, and named."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from converge_node import doctor
from converge_node.cli.main import invoke
from converge_node.errors import ExitCode, NodeUnreachable, TimedOut
from converge_node.paths import resolve_paths
from converge_p2p.client import Client, schema
from converge_p2p.client.reach_schema import CheckItem, DoctorItem, ReachItem
from converge_p2p.client.routes import Question
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.store.home import DATABASE_FILE, POOL_KEY, RESTORED_KEY
from converge_p2p.store.keyfile import save_identity
from converge_p2p.store.sqlite import SqliteStore

ASK_CLOCK = doctor._clock_state
PEER = "12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    save_identity(Identity.generate(), tmp_path / "node.key")
    return tmp_path


@pytest.fixture(autouse=True)
def _synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_clock_state", lambda: 0)


def settings(home: Path, **network: Any) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in network.items()]
    (home / "config.toml").write_text("\n".join(["[network]", *lines]))


def look(home: Path) -> DoctorItem:
    return doctor.examine(resolve_paths(home))


def named(found: DoctorItem, name: str) -> CheckItem:
    return next(check for check in found.checks if check.name == name)


def test_a_fresh_home_is_healthy_and_says_what_only_a_node_knows(home: Path) -> None:
    found = look(home)
    assert (found.healthy, found.running) == (True, False)
    verdicts = {check.name: check.verdict for check in found.checks}
    assert verdicts == {
        "settings": "pass", "key file": "pass", "network key": "skip", "disk": "pass", "database": "skip",
        "clock": "pass", "node": "skip",
        "listen": "pass", "bootstrap": "skip", "reachable": "skip", "relay": "skip", "same link": "skip",
    }  # fmt: skip


def test_nothing_is_written_by_looking(tmp_path: Path) -> None:
    look(tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == []


def break_key(home: Path) -> None:
    (home / "node.key").chmod(0o644)


def spoil_key(home: Path) -> None:
    (home / "node.key").write_bytes(b"junk")


def break_network_key(home: Path) -> None:
    (home / "swarm.key").write_text("/key/swarm/psk/1.0.0/\n/base16/\n0011\n")
    settings(home, psk_file=str(home / "swarm.key"))


def break_settings(home: Path) -> None:
    settings(home, lisen=["/ip4/127.0.0.1/tcp/4001"])


def write_in_the_future(home: Path) -> None:
    later = time.time() + 3600
    os.utime(home / "node.key", (later, later))


def listen_elsewhere(home: Path) -> None:
    settings(home, listen=["/ip4/192.0.2.1/tcp/4001"])


def name_a_dead_peer(home: Path) -> None:
    settings(home, bootstrap=[f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"])


def name_nonsense(home: Path) -> None:
    settings(home, bootstrap=[f"/dnsaddr/nowhere.invalid/p2p/{PEER}"])


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("key file", break_key, "others may read or write it"),
        ("key file", spoil_key, "key file"),
        ("network key", break_network_key, "2 bytes; expected 32"),
        ("settings", break_settings, "did you mean network.listen"),
        ("clock", write_in_the_future, "were written at"),
        ("listen", listen_elsewhere, "cannot be listened on"),
        ("bootstrap", name_a_dead_peer, "refused"),
        ("bootstrap", name_nonsense, "no host and TCP port"),
    ],
)
def test_what_is_wrong_fails_by_name_with_what_to_do(
    home: Path, name: str, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(home)
    found = look(home)
    assert not found.healthy
    check = named(found, name)
    assert check.verdict == "fail"
    assert says in check.text
    assert check.hint
    assert [other.name for other in found.checks if other.verdict == "fail"] == [name]


def test_a_port_of_another_program_fails(home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings(home, listen=[f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"])
        assert named(look(home), "listen").verdict == "fail"


def test_a_peer_that_opens_a_connection_passes(home: Path) -> None:
    with socket.socket() as peer:
        peer.bind(("127.0.0.1", 0))
        peer.listen()
        settings(home, bootstrap=[f"/ip4/127.0.0.1/tcp/{peer.getsockname()[1]}/p2p/{PEER}"])
        assert named(look(home), "bootstrap").verdict == "pass"


def test_a_network_key_that_others_can_read_is_a_warning(home: Path) -> None:
    path = home / "swarm.key"
    path.write_bytes(NetworkKey(bytes(range(32))).to_file())
    settings(home, psk_file=str(path))
    path.chmod(0o644)
    assert named(look(home), "network key").verdict == "warn"
    path.chmod(0o600)
    assert named(look(home), "network key").verdict == "pass"


@pytest.mark.parametrize(("free", "verdict"), [(2**40, "pass"), (500 * 2**20, "warn"), (2**20, "fail")])
def test_the_disk_is_judged_by_its_room(home: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=free))
    assert named(look(home), "disk").verdict == verdict


def test_a_database_is_read_and_a_damaged_or_restored_one_is_named(home: Path, tmp_path: Path) -> None:
    store = SqliteStore(home / DATABASE_FILE)
    store.put(POOL_KEY + "ab" * 32, b"")
    assert named(look(home), "database").text.endswith("MB, 1 pools")
    (home / "config.toml").write_text("[store]\nmax_bytes = 16777216\n")
    assert named(look(home), "database").verdict == "pass"
    store.put("much", bytes(16 * 1000 * 1000))
    full = named(look(home), "database")
    assert (full.verdict, "store.max_bytes allows" in full.text) == ("warn", True)
    store.delete("much")
    store.put(RESTORED_KEY, b"")
    assert (named(look(home), "database").verdict, named(look(home), "database").text[:21]) == (
        "warn",
        "it is a copy that was",
    )
    store.close()
    (home / DATABASE_FILE).write_bytes(b"rubbish" * 1000)
    found = named(look(home), "database")
    assert (found.verdict, "is damaged" in found.text, "backup" in found.hint) == ("fail", True, True)


def test_a_clock_that_nothing_keeps_right_is_a_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_clock_state", lambda: doctor._UNSYNCHRONISED)
    assert named(look(home), "clock").verdict == "warn"


def test_the_state_of_the_clock_can_be_asked_here() -> None:
    assert 0 <= ASK_CLOCK() <= doctor._UNSYNCHRONISED


# ---------------------------------------------------------------- with a node


class Said:
    """What a running node is made to say."""

    def __init__(self) -> None:
        self.reach = ReachItem(reachable="unknown")
        self.peers: list[schema.PeerItem] = []
        self.counters: dict[str, int] = {}
        self.ready = True
        self.error: Exception | None = None

    def ask(self, question: Question) -> Any:
        if self.error is not None:
            raise self.error
        node = schema.NodeItem(
            id="a", public_key="b", peer_id="c", addresses=["/ip4/192.0.2.1/tcp/4001/p2p/c"], version="1", home="",
            socket="", next_command="",
        )  # fmt: skip
        return {
            "healthz": schema.HealthItem(healthy=True, ready=self.ready, stage="running"),
            "status": schema.StatusItem(
                node=node, ready=True, started_at="", uptime_s=1.0, peers=0, pools=[], counters=self.counters
            ),
            "peers": self.peers,
            "reach": self.reach,
        }[question.route.path.rpartition("/")[2]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    said = Said()
    monkeypatch.setattr(Client, "ask", lambda _client, question: said.ask(question))
    return said


def peer(relayed: bool = False) -> schema.PeerItem:
    return schema.PeerItem(
        peer_id=PEER, agent_id="a", public_key="b", addresses=[], direction="outbound", relayed=relayed
    )


def test_a_running_node_is_asked_for_all_that_it_knows(home: Path, said: Said) -> None:
    said.peers = [peer(relayed=True)]
    said.reach = ReachItem(reachable="no", relays=["R"], wants_relays=True, link_peers=2)
    settings(home, bootstrap=[f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"], mdns=True)
    found = look(home)
    assert (found.healthy, found.running) == (True, True)
    assert {check.name: check.verdict for check in found.checks} == {
        "settings": "pass", "key file": "pass", "network key": "skip", "disk": "pass", "database": "skip",
        "clock": "pass", "node": "pass",
        "listen": "pass", "bootstrap": "pass", "peers": "pass", "reachable": "pass", "relay": "pass",
        "same link": "pass",
    }  # fmt: skip
    assert "1 of them through a relay" in named(found, "peers").text


@pytest.mark.parametrize(
    ("reach", "name", "verdict"),
    [
        (ReachItem(reachable="yes", confirmed=["/ip4/192.0.2.1/tcp/1"]), "reachable", "pass"),
        (ReachItem(reachable="unknown"), "reachable", "skip"),
        (ReachItem(reachable="no", wants_relays=True), "reachable", "warn"),
        (ReachItem(reachable="no", wants_relays=True), "relay", "warn"),
        (ReachItem(reachable="yes"), "relay", "skip"),
        (ReachItem(reachable="yes", link_trouble="UDP port 5353 cannot be used"), "same link", "fail"),
    ],
)
def test_each_way_to_the_node_has_its_verdict(
    home: Path, said: Said, reach: ReachItem, name: str, verdict: str
) -> None:
    said.reach, said.peers = reach, [peer()]
    assert named(look(home), name).verdict == verdict


@pytest.mark.parametrize(
    ("reach", "verdict"),
    [
        (ReachItem(reachable="yes", relay_reservations=3), "pass"),
        (ReachItem(reachable="no", relay_reservations=0), "warn"),
        (ReachItem(reachable="yes"), "warn"),
    ],
)
def test_serving_as_a_relay_is_looked_at_where_it_is_asked_for(
    home: Path, said: Said, reach: ReachItem, verdict: str
) -> None:
    settings(home, relay_service=True)
    said.reach, said.peers = reach, [peer()]
    assert named(look(home), "relay service").verdict == verdict


def test_a_node_without_peers_and_with_a_dead_bootstrap_peer_fails(home: Path, said: Said) -> None:
    settings(home, bootstrap=[f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"])
    found = look(home)
    assert named(found, "bootstrap").verdict == "fail"
    assert named(found, "peers").verdict == "warn"


def test_one_dead_bootstrap_peer_among_others_is_a_warning(home: Path, said: Said) -> None:
    dead = PEER[:-1] + "r"
    settings(home, bootstrap=[f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}", f"/ip4/127.0.0.1/tcp/1/p2p/{dead}"])
    said.peers = [peer()]
    verdicts = [check.verdict for check in look(home).checks if check.name == "bootstrap"]
    assert verdicts == ["pass", "warn"]


def test_refused_messages_with_wrong_times_point_at_the_clock(home: Path, said: Said) -> None:
    said.counters = {"refused_message_from_future": 3}
    assert named(look(home), "clock").verdict == "warn"


def test_a_node_that_starts_or_hangs_is_a_warning_and_the_rest_is_looked_at(home: Path, said: Said) -> None:
    said.ready, said.peers = False, [peer()]
    assert named(look(home), "node").verdict == "warn"
    said.error = TimedOut("the node did not answer in time")
    found = look(home)
    assert named(found, "node").verdict == "warn"
    assert named(found, "disk").verdict == "pass"
    said.error = NodeUnreachable("no node")
    assert named(look(home), "node").verdict == "skip"


# ---------------------------------------------------------------- the command


def test_the_command_prints_an_envelope_and_ends_with_1_if_something_failed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["doctor", "--json", "--home", str(home)]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["v"], document["ok"], document["data"]["healthy"]) == (1, True, True)
    break_key(home)
    assert invoke(["doctor", "--json", "--home", str(home)]) == ExitCode.FAILURE
    document = json.loads(capsys.readouterr().out)
    assert not document["data"]["healthy"]
    assert invoke(["doctor", "-q", "--home", str(home)]) == ExitCode.FAILURE
    assert capsys.readouterr().out == "key file\n"


def test_for_people_each_finding_is_a_line_and_what_to_do_stands_below(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_key(home)
    assert invoke(["doctor", "--home", str(home)]) == ExitCode.FAILURE
    out = capsys.readouterr().out
    assert "fail  key file" in out
    assert "-> key file: if nobody copied it: chmod 600" in out


def test_for_people_several_mistakes_in_the_settings_are_lines_too(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "config.toml").write_text("[netwrk]\nlisten = []\n[log]\nlevl = 1\n")
    assert invoke(["doctor", "--home", str(home)]) == ExitCode.FAILURE
    found = [line for line in capsys.readouterr().out.splitlines() if "unknown" in line]
    assert ["netwrk" in found[0], "log.levl" in found[1], len(found)] == [True, True, 2]
