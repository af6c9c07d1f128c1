"""A private network of processes, made and joined with the command line alone; and with js-libp2p."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from js_peer import FOLDER, install
from processes import WAIT_S

from converge_node.demo.mesh import wait_for

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[2]


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "node"), "--json", "--home", str(folder), *words]


def clean() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(folder: Path, *words: str) -> tuple[int, Any]:
    done = subprocess.run(command(folder, *words), capture_output=True, text=True, timeout=60, check=False, env=clean())
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    return done.returncode, document["data"] if document["ok"] else document["error"]


@contextmanager
def node(folder: Path, *words: str) -> Iterator[Any]:
    """Run a node in a process; gives what it says at its start."""
    process = subprocess.Popen(
        command(folder, "run", *(() if "--listen" in words else ("--listen", "/ip4/127.0.0.1/tcp/0")), *words),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line)["data"]
        process.terminate()
        _, err = process.communicate(timeout=35)
        assert process.returncode == 0, err
    finally:
        process.kill()
        process.communicate()


def test_an_invitation_leads_a_new_process_into_network_topic_and_pool(tmp_path: Path) -> None:
    swarm, topic_key = str(tmp_path / "swarm.key"), str(tmp_path / "topic.key")
    assert ask(tmp_path / "x", "mesh", "new", swarm)[0] == 0
    assert ask(tmp_path / "x", "topic", "new-key", topic_key)[0] == 0
    first, second = tmp_path / "n1", tmp_path / "n2"
    with node(first, "--mesh", swarm) as founder:
        network = ask(first, "mesh", "ls")[1]["network"]
        assert len(network) == 16
        assert ask(first, "topic", "join", "acme/secret", "--key-file", topic_key)[0] == 0
        assert ask(first, "pool", "create", "demo", "--admission", "token")[0] == 0
        code, written = ask(first, "mesh", "invite", "--pool", "demo", "--topic", "acme/secret")
        assert code == 0
        # nobody runs there: it is kept, with the network's key
        code, followed = ask(second, "join", written["text"])
        assert (code, followed["running"]) == (0, False)
        with node(second):
            assert ask(second, "mesh", "ls")[1]["network"] == network
            # it joins in the background; to ask again joins too, and changes nothing
            code, followed = ask(second, "join", written["text"])
            assert (code, followed["running"], followed["topics"][0]["private"]) == (0, True, True)
            code, pool = ask(second, "pool", "show", followed["pool"])
            assert (code, pool["joined"], pool["members"]) == (0, True, 2)
            assert ask(second, "topic", "ls")[1] == [{"topic": "acme/secret", "private": True}]
        # the one place is taken, and whoever is in no private network is told so
        third, stranger = tmp_path / "n3", tmp_path / "n4"
        assert ask(third, "join", written["text"])[0] == 0
        with node(third):
            code, error = ask(third, "join", written["text"])
            assert (code, error["code"]) == (5, "not_authorised")
            assert "as often as its issuer allowed" in error["message"]
        with node(stranger):
            code, error = ask(stranger, "join", written["text"])
            assert code != 0
            assert "not for this network" in error["message"]
        assert ask(first, "pool", "show", "demo")[1]["members"] == 2
        assert founder["addresses"]


def test_a_wrong_key_file_ends_the_start_with_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "swarm.key").write_text("/key/swarm/psk/1.0.0/\n/base16/\n0011\n")
    code, error = ask(tmp_path / "n1", "run", "--mesh", str(tmp_path / "swarm.key"))
    assert (code, error["code"]) == (3, "bad_configuration")
    assert "2 bytes; expected 32" in error["message"]


def test_a_network_changes_its_key_node_by_node_and_is_whole_all_the_time(tmp_path: Path) -> None:
    old, new = str(tmp_path / "old.key"), str(tmp_path / "new.key")
    names = [ask(tmp_path / "x", "mesh", "new", file)[1]["network"] for file in (old, new)]
    port = free_port()
    steps = [
        ("--mesh", old),
        ("--mesh", old, "--mesh-accept", new),
        ("--mesh", new, "--mesh-accept", old),
        ("--mesh", new),
    ]
    first, second = tmp_path / "n1", tmp_path / "n2"
    # none of the two ever runs alone: while one is started again, it finds the other one step behind it
    with ExitStack() as running:
        one, two = ExitStack(), ExitStack()
        running.push(one)
        running.push(two)
        for step in steps:
            one.close()
            address = one.enter_context(node(first, "--listen", f"/ip4/127.0.0.1/tcp/{port}", *step))["addresses"][0]
            if step != steps[0]:
                wait_for(lambda: len(ask(second, "peers", "ls")[1]) == 1, WAIT_S, "the second node to come back")
            two.close()
            two.enter_context(node(second, "--bootstrap", address, *step))
            wait_for(lambda: len(ask(first, "peers", "ls")[1]) == 1, WAIT_S, "the nodes to find each other")
            said = ask(first, "mesh", "ls")[1]
            assert said["network"] == names[step[1] == new]
            assert said["accepts"] == ("" if len(step) == 2 else names[step[1] == old])
            assert said["accepted_connections"] == 0
        stranger = tmp_path / "n3"
        with node(stranger, "--mesh", old, "--bootstrap", address):
            wait_for(lambda: ask(first, "status")[1]["counters"].get("strangers_refused"), WAIT_S, "a refusal")
            assert len(ask(first, "peers", "ls")[1]) == 1


@pytest.fixture(scope="module")
def program() -> Path:
    if why := install():
        pytest.skip(f"js-libp2p cannot be had: {why}")
    return FOLDER / "private_network_peer.mjs"


def test_js_libp2p_joins_with_the_same_key_file_and_not_with_another(tmp_path: Path, program: Path) -> None:
    keys = [tmp_path / "swarm.key", tmp_path / "other.key"]
    for key in keys:
        assert ask(tmp_path / "x", "mesh", "new", str(key))[0] == 0
    runtime = shutil.which("node")
    assert runtime is not None
    with node(tmp_path / "n1", "--mesh", str(keys[0])) as started:
        said = [
            subprocess.run(
                [runtime, str(program), str(key), started["addresses"][0]],
                capture_output=True, text=True, timeout=60, check=True, cwd=FOLDER,
            ).stdout.split()
            for key in keys
        ]  # fmt: skip
    assert [words[0] for words in said] == ["pong", "refused"]


def test_js_libp2p_gets_in_with_either_key_while_the_key_changes(tmp_path: Path, program: Path) -> None:
    keys = [tmp_path / name for name in ("new.key", "old.key", "other.key")]
    for key in keys:
        assert ask(tmp_path / "x", "mesh", "new", str(key))[0] == 0
    runtime = shutil.which("node")
    assert runtime is not None
    with node(tmp_path / "n1", "--mesh", str(keys[0]), "--mesh-accept", str(keys[1])) as started:
        said = [
            subprocess.run(
                [runtime, str(program), str(key), started["addresses"][0]],
                capture_output=True, text=True, timeout=60, check=True, cwd=FOLDER,
            ).stdout.split()
            for key in keys
        ]  # fmt: skip
    assert [words[0] for words in said] == ["pong", "pong", "refused"]


def test_a_node_finds_js_libp2p_in_its_private_network(tmp_path: Path, program: Path) -> None:
    assert ask(tmp_path / "x", "mesh", "new", str(tmp_path / "swarm.key"))[0] == 0
    runtime = shutil.which("node")
    assert runtime is not None
    peer = subprocess.Popen(
        [runtime, str(program), str(tmp_path / "swarm.key")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=FOLDER,
    )  # fmt: skip
    try:
        assert peer.stdout is not None
        address = peer.stdout.readline().strip()
        assert "/p2p/" in address
        with node(tmp_path / "n1", "--mesh", str(tmp_path / "swarm.key"), "--bootstrap", address) as started:
            assert peer.stdout.readline().split() == ["met", started["peer_id"]]
    finally:
        peer.kill()
        peer.communicate()
