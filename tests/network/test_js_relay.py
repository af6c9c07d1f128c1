"""Relays with js-libp2p: its relay carries this project's nodes, and this project's relay carries its hosts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from js_peer import FOLDER, install

sys.path.insert(0, str(Path(__file__).parents[1] / "net"))

from net_rig import linked, start, until

from converge_p2p.net import RelayBounds, RelayUse

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    if why := install():
        pytest.skip(f"js-libp2p cannot be had: {why}")


class Lines:
    """What a process says, line by line."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._said = b""

    async def word(self, first: str) -> str:
        """The rest of the next line that begins with a word."""
        while True:
            while b"\n" not in self._said:
                more = await self._stream.receive_some()
                assert more, f"js-libp2p ended before it said {first!r}"
                self._said += more
            line, _, self._said = self._said.partition(b"\n")
            head, _, rest = line.decode().partition(" ")
            assert head != "failed", rest
            if head == first:
                return rest


@asynccontextmanager
async def js(*words: str) -> AsyncIterator[Lines]:
    """Run a peer of js-libp2p until the block ends."""
    runtime = shutil.which("node")
    assert runtime is not None
    command = [runtime, "relay_peer.mjs", *words]
    process = await trio.lowlevel.open_process(command, cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Lines(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with trio.fail_after(90):
        yield


async def test_a_relay_of_js_libp2p_carries_two_nodes_of_this_project() -> None:
    async with js("relay") as relay:
        address = await relay.word("at")
        settings: dict[str, Any] = {"listen": (), "peers_wanted": 0}
        async with start(1, relay_client=RelayUse.ON, bootstrap=(address,), **settings) as hidden:
            await until(lambda: hidden.reachability.relays, "a place at the relay", 30)
            async with start(2, **settings) as visitor:
                await visitor.connect(hidden.addresses[0])
                await linked(visitor, hidden)
                assert await visitor.request(hidden.peer_id, b"abc" * 10_000) == b"cba" * 10_000


async def test_a_relay_of_this_project_carries_a_host_of_js_libp2p_to_a_node_and_back() -> None:
    async with start(1, relay_service=RelayBounds(), peers_wanted=0) as relay:
        async with js("hidden", relay.addresses[0]) as hidden:
            address = await hidden.word("at")
            async with start(2, listen=(), peers_wanted=0) as visitor:
                peer = await visitor.connect(address)
                assert await hidden.word("met") != ""
                assert next(info for info in visitor.peers() if info.peer_id == peer).relayed
            async with js("visitor", address) as other:
                await other.word("pong")
        assert relay.counters["relay_circuits_opened"] == 2


async def test_js_libp2p_pings_a_node_of_this_project_through_its_relay() -> None:
    async with (
        start(1, relay_service=RelayBounds(), peers_wanted=0) as relay,
        start(2, listen=(), relay_client=RelayUse.ON, bootstrap=(relay.addresses[0],), peers_wanted=0) as hidden,
    ):
        await until(lambda: hidden.reachability.relays, "a place at the relay")
        async with js("visitor", hidden.addresses[0]) as visitor:
            await visitor.word("pong")
        assert hidden.counters["circuits_accepted"] == 1
