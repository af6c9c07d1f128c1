"""The control server against clients that do not behave: each costs its own connection and nothing else."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from node_fakes import FakeNode

from converge_node.control import server
from converge_node.control.app import ControlApi
from converge_node.control.server import open_control_server, open_tcp_server
from converge_node.control.state import ControlState
from converge_node.errors import NodeUnreachable
from converge_p2p.client import Client
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError

BODY_CUT_SHORT = b"POST /v1/pools HTTP/1.1\r\nhost: node\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 100_000
BAD = (
    BODY_CUT_SHORT,
    b"\x00\xff" * 500,
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /v1/pools/%00/tasks/%ff%fe HTTP/1.1\r\nhost: node\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
)


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Path]:
    path = folder / "control.sock"
    state = ControlState(str(folder), str(path), lambda: None, "running", FakeNode(), True)
    with trio.fail_after(20):
        async with open_control_server(ControlApi(state).app(), path):
            yield path


async def is_healthy(path: Path) -> bool:
    """Ask until there is an answer: a connection that was closed is noticed a moment later."""
    while True:
        try:
            item = await trio.to_thread.run_sync(Client(path).health)
        except NodeUnreachable:
            await trio.lowlevel.checkpoint()
        else:
            return item.healthy


@pytest.mark.parametrize("request_bytes", BAD, ids=range(len(BAD)))
async def test_a_client_that_sends_nonsense_and_goes_harms_nobody(tmp_path: Path, request_bytes: bytes) -> None:
    async with served(tmp_path) as path:
        for _ in range(5):
            stream = await trio.open_unix_socket(path)
            try:
                await stream.send_all(request_bytes)
            except trio.BrokenResourceError:
                pass
            await trio.aclose_forcefully(stream)
        assert await is_healthy(path)


async def test_no_connection_is_held_for_a_client_that_has_its_answer(tmp_path: Path) -> None:
    async with served(tmp_path) as path:
        for _ in range(20):
            assert await is_healthy(path)
        # far less than the time after which an idle connection is closed
        with trio.fail_after(server.IDLE_S / 10):
            while server._ContainedServer._open:
                await trio.lowlevel.checkpoint()


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_CONNECTIONS_MAX", 3)
    async with served(tmp_path) as path:
        held = [await trio.open_unix_socket(path) for _ in range(3)]
        for stream in held:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nho")
        await trio.testing.wait_all_tasks_blocked(0.05)
        refused = await trio.open_unix_socket(path)
        try:
            assert await refused.receive_some() == b""
        except trio.BrokenResourceError:
            pass
        for stream in (*held, refused):
            await trio.aclose_forcefully(stream)
        assert await is_healthy(path)


async def test_an_address_that_is_taken_is_a_clear_error_and_leaves_no_socket_open(tmp_path: Path) -> None:
    app = ControlApi(ControlState(str(tmp_path), "", lambda: None, "running", FakeNode(), True)).app()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        open_before = os.listdir("/proc/self/fd")
        with pytest.raises(ConfigError, match=f"{place}: Address already in use"):
            async with open_tcp_server(app, ["127.0.0.1:0", place]):
                raise AssertionError("it listens on what is taken")
        assert os.listdir("/proc/self/fd") == open_before


async def test_a_dead_socket_is_replaced_and_one_in_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    path, mask = tmp_path / "control.sock", os.umask(0o022)
    try:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with served(tmp_path):
            assert await is_healthy(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match="No such file or directory"):
            async with served(tmp_path / "none"):
                raise AssertionError("it listens in no folder")
    finally:
        assert os.umask(mask) == 0o022
