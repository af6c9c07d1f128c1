"""A node's process: how it starts, says so, refuses to run twice, and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from converge_node.control.tokens import add_token
from converge_node.errors import ExitCode
from converge_node.handlers import load_handlers
from converge_node.run import next_command
from converge_node.supervisor import tell_supervisor
from converge_p2p.client import Client, Refused
from converge_p2p.client.routes import Scope
from converge_p2p.core.errors import ConfigError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment(**extra: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "node"), str(HERE)])
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": paths, **extra}


@contextmanager
def started(*words: str, fault: str = "", **extra: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "run_fake_node.py"), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(FAKE_NODE=fault, **extra),
        cwd=HERE,
    )
    try:
        with process:
            yield process
    finally:
        process.kill()


def finish(process: subprocess.Popen[str], timeout_s: float = 20) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def first_document(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return json.loads(line)


def test_the_first_start_makes_key_and_settings_and_says_how_to_join(tmp_path: Path) -> None:
    home = tmp_path / "n1"
    with started("--home", str(home), "--json") as process:
        document = first_document(process)
        socket = home / "control.sock"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert code == 0, err
    data = document["data"]
    assert data["next_command"] == f"converge-node --home ./second-node --bootstrap {data['addresses'][0]}"
    assert not socket.exists()
    for name in ("node.key", "config.toml"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    logged = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in logged] == ["stopping", "stopped"]
    assert logged[0]["timestamp"].endswith("Z")
    # the identity stays, and so do edited settings
    (home / "config.toml").write_text("[shutdown]\ntimeout_s = 9\n")
    with started("--home", str(home), "--json") as process:
        assert first_document(process)["data"]["id"] == data["id"]
        process.send_signal(signal.SIGINT)
        assert finish(process)[0] == 0
    assert "timeout_s = 9" in (home / "config.toml").read_text()


def test_with_addresses_in_the_settings_the_control_interface_is_served_to_token_holders_too(tmp_path: Path) -> None:
    token = add_token(tmp_path / "api-tokens", "one", Scope.READ)
    with started("--home", str(tmp_path), "--json", CONVERGE_NODE_API__LISTEN="127.0.0.1:0") as process:
        first_document(process)
        assert process.stderr is not None
        (url,) = json.loads(process.stderr.readline())["places"]
        assert Client(url=url, token=token).health().ready
        assert Client(url=url, token=token).node().api_urls == [url]
        with pytest.raises(Refused) as refused:
            Client(url=url).health()
        process.terminate()
        assert finish(process)[0] == 0
    assert refused.value.code == "not_authenticated"


@pytest.mark.parametrize(
    ("setting", "what"),
    [("CONVERGE_NODE_API__LISTEN", "the control addresses {}"), ("CONVERGE_NODE_METRICS__LISTEN", "{} for metrics")],
)
def test_a_port_that_is_taken_ends_the_start_and_is_named(tmp_path: Path, setting: str, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with started("--home", str(tmp_path), "--json", **{setting: place}) as process:
            error = first_document(process)["error"]
            assert finish(process)[0] == ExitCode.BAD_CONFIGURATION
    assert error["code"] == "bad_configuration"
    assert error["message"] == f"cannot listen on {what.format(place)}: Address already in use"
    assert "listen" in error["hint"]


def test_the_profile_private_does_not_start_without_a_key(tmp_path: Path) -> None:
    with started("--home", str(tmp_path), "--profile", "private", "--json") as process:
        error = first_document(process)["error"]
        assert finish(process)[0] == ExitCode.BAD_CONFIGURATION
    assert "needs the key of a network" in error["message"]


def test_a_person_reads_the_address_and_the_next_command(tmp_path: Path) -> None:
    with started("--home", str(tmp_path)) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().rstrip() for _ in range(5)]
        process.terminate()
        finish(process)
    assert [line.split()[0] for line in lines] == ["agent", "peer", "listening", "home", "next"]
    assert lines[4].endswith("converge-node --home ./second-node --bootstrap /ip4/127.0.0.1/tcp/4001/p2p/12D3KooWMe")


def test_one_home_runs_one_node_and_a_killed_one_leaves_nothing_behind(tmp_path: Path) -> None:
    with started("--home", str(tmp_path), "--json") as first:
        first_document(first)
        with started("--home", str(tmp_path), "--json") as second:
            document = first_document(second)
            assert finish(second)[0] == ExitCode.CONFLICT
        assert document["error"]["code"] == "already_running"
        assert str(first.pid) in document["error"]["message"]
        first.kill()
        first.wait()
    with started("--home", str(tmp_path), "--json") as third:
        assert first_document(third)["ok"]
        third.terminate()
        assert finish(third)[0] == 0


def test_an_ephemeral_node_keeps_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    # a short one: the path of a socket has about a hundred bytes
    tmp_path = tmp_path_factory.mktemp("e")
    with started("--ephemeral", "--json", TMPDIR=str(tmp_path)) as process:
        home = Path(first_document(process)["data"]["home"])
        assert home.parent == tmp_path
        process.terminate()
        assert finish(process)[0] == 0
    assert list(tmp_path.iterdir()) == []
    with started("--ephemeral", "--home", str(tmp_path)) as process:
        assert finish(process)[0] == ExitCode.USAGE


def test_the_control_interface_stops_the_node(tmp_path: Path) -> None:
    with started("--home", str(tmp_path), "--json") as process:
        first_document(process)
        client = [sys.executable, "-m", "converge_node", "--home", str(tmp_path), "shutdown"]
        subprocess.run(client, env=environment(), check=True, capture_output=True, timeout=20)
        code, _, err = finish(process)
    assert code == 0
    assert "asked by the control interface" in err


def test_a_node_that_still_starts_can_be_stopped(tmp_path: Path) -> None:
    with started("--home", str(tmp_path), fault="slow-start") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "opening\n"
        client = [sys.executable, "-m", "converge_node", "--home", str(tmp_path), "--json", "health", "--ready"]
        answer = subprocess.run(client, env=environment(), capture_output=True, timeout=20, check=False)
        assert answer.returncode == 1
        assert json.loads(answer.stdout)["data"]["stage"] == "starting"
        process.terminate()
        assert finish(process)[0] == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("slow-close", "shutdown takes too long: cancelling"),
        ("stuck-close", "it hangs in: closing the node"),
        ("blocked-close", "it hangs in: closing the node"),
    ],
)
def test_a_close_that_hangs_is_named_and_ended_in_time(tmp_path: Path, fault: str, message: str) -> None:
    variable = {"CONVERGE_NODE_SHUTDOWN__TIMEOUT_S": "0.5"}
    with started("--home", str(tmp_path), "--json", fault=fault, **variable) as process:
        first_document(process)
        process.terminate()
        code, _, err = finish(process)
    assert code == ExitCode.FAILURE
    assert message in err
    if fault == "slow-close":
        assert "in open_fake, line" in err


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with started("--home", str(tmp_path), "--json", fault="stuck-close") as process:
        first_document(process)
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.readline() == "closing\n"
        process.send_signal(signal.SIGINT)
        assert finish(process, 5)[0] == ExitCode.FORCED


def test_a_client_that_does_not_read_cannot_keep_a_node_from_ending(tmp_path: Path) -> None:
    with started("--home", str(tmp_path), "--json", "--pool", "ab" * 32) as process:
        first_document(process)
        with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX) as half:
            idle.connect(str(tmp_path / "control.sock"))
            idle.sendall(f"GET /v1/pools/{'ab' * 32}/watch HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert b"200" in idle.recv(12)
            half.connect(str(tmp_path / "control.sock"))
            half.sendall(b"POST /v1/pools HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            process.terminate()
            code, _, err = finish(process)
    assert code == 0, err
    assert "hangs" not in err


def test_a_node_that_breaks_ends_with_a_failure_and_the_cause(tmp_path: Path) -> None:
    with started("--home", str(tmp_path), "--json", fault="crash") as process:
        first_document(process)
        process.terminate()
        code, out, err = finish(process)
    assert code == ExitCode.FAILURE
    assert "the node broke" in err
    assert json.loads(out.splitlines()[-1])["ok"] is False


def test_open_means_every_announced_pool_with_work_for_a_handler(tmp_path: Path) -> None:
    words = ("--home", str(tmp_path), "--json", "--pool", "open", "--pool", "ab" * 32)
    with started(*words, "--handler", "index=run_fake_node:index@3", fault="open-pool") as process:
        first_document(process)
        # both joins were started before the announcement; this answer comes after they had their turn
        client = [sys.executable, "-m", "converge_node", "--home", str(tmp_path), "-q", "pool", "ls"]
        subprocess.run(client, env=environment(), check=True, capture_output=True, timeout=20)
        process.terminate()
        code, out, _ = finish(process)
    assert code == 0
    joined = out.splitlines()[-1]
    assert joined.count("index") == 2
    assert "ababab" in joined
    assert "other" not in joined


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--listen", "0.0.0.0:1"), 3, "is not a multiaddr"),
        (("--handler", "index=no_such_module:f"), 3, "cannot import the handler no_such_module:f"),
        (("--pool", "demo"), 3, "is not a pool id"),
        (("--bogus",), 2, "No such option"),
    ],
)
def test_what_cannot_work_is_said_at_once(tmp_path: Path, words: tuple[str, ...], code: int, message: str) -> None:
    with started("--home", str(tmp_path), *words) as process:
        actual, out, err = finish(process)
    assert (actual, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_handlers_are_functions_one_for_each_objective() -> None:
    loaded = load_handlers(["index=run_fake_node:index@2", "more=run_fake_node:index"], default_concurrency=5)
    assert loaded.objectives == ("index", "more")
    for wrong in (
        ["a=run_fake_node:index", "a=run_fake_node:index"],
        ["a=run_fake_node:NOT_A_FUNCTION"],
        ["a=run_fake_node:missing"],
    ):
        with pytest.raises(ConfigError):
            load_handlers(wrong, default_concurrency=1)


def test_the_next_command_names_the_address_that_most_machines_reach() -> None:
    local, private, public = (f"/ip4/{host}/tcp/1/p2p/Q" for host in ("127.0.0.1", "10.0.0.1", "8.8.8.8"))
    named, anywhere = "/dns4/a.example/tcp/1/p2p/Q", "/ip4/0.0.0.0/tcp/1/p2p/Q"
    assert next_command([local, private, public]) == f"converge-node --bootstrap {public}"
    assert next_command([anywhere, local, private]) == f"converge-node --bootstrap {private}"
    # behind a router, the way through a relay with a public address
    relayed = "/ip4/8.8.4.4/tcp/1/p2p/R/p2p-circuit/p2p/Q"
    assert next_command([private, relayed, local]) == f"converge-node --bootstrap {relayed}"
    assert next_command([public, named]) == f"converge-node --bootstrap {named}"
    assert next_command([anywhere, local]) == f"converge-node --home ./second-node --bootstrap {local}"


def test_the_service_manager_is_told_of_the_start_and_of_the_end(tmp_path: Path) -> None:
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(place))
        heard.settimeout(20)
        with started("--home", str(tmp_path / "n1"), "--json", NOTIFY_SOCKET=str(place)) as process:
            assert heard.recv(1000).decode().splitlines() == ["READY=1", "STATUS=running"]
            first_document(process)
            process.send_signal(signal.SIGTERM)
            assert heard.recv(1000).decode().splitlines()[0] == "STOPPING=1"
            assert finish(process)[0] == 0


def test_a_service_manager_that_does_not_listen_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    tell_supervisor("READY=1")
    assert not caplog.records
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    tell_supervisor("READY=1")
    assert [record.message for record in caplog.records] == ["the service manager was not told"]
    name = f"converge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        tell_supervisor("READY=1", "STATUS=running")
        assert heard.recv(1000, socket.MSG_DONTWAIT) == b"READY=1\nSTATUS=running"


def test_the_unit_that_comes_with_the_node_waits_to_be_told() -> None:
    unit = (ROOT / "node" / "converge_node" / "converge-node.service").read_text(encoding="utf-8").splitlines()
    assert {"Type=notify", "NotifyAccess=main", "RestartPreventExitStatus=2 3 7 10"} <= set(unit)
