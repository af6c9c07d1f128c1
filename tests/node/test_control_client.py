"""The clients: the same methods, plain and under both event loops, over both kinds of sockets."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from control_kit import Ground, served

from converge_p2p.client import AsyncClient, Client, NodeUnreachable, Refused, TimedOut, schema
from converge_p2p.client.api import all_routes
from converge_p2p.client.queries import TaskQuery, WatchQuery
from converge_p2p.client.routes import Form, Scope
from converge_p2p.core.errors import LocalError

ROOT = Path(__file__).parents[2]


async def story(client: AsyncClient) -> list[Any]:
    """Use every kind of method, and say what came of it."""
    found: list[Any] = [[pool.name for pool in await client.pools()]]
    item = await client.submit("demo", schema.SubmitTask(objective="index", key="mine"))
    found.append((await client.tasks("demo", TaskQuery(state="pending", limit=1, offset=1))).tasks[0].id == item.id)
    async with client.watch_task("demo", item.id) as changes:
        async for change in changes:
            found.append(change.state)
            if change.state == "pending":
                await client.cancel("demo", item.id)
    try:
        await client.pool("none")
    except Refused as refused:
        found.append(refused.code)
    try:
        async with client.watch_pool("demo", WatchQuery(timeout_s=0.01)) as changes:
            found.append([change async for change in changes])
    except Refused as refused:
        found.append(refused.code)
    return found


TOLD = [["demo"], True, "pending", "cancelled", "not_found", "timeout"]


async def test_the_async_client_works_under_trio_over_both_sockets(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with served(tmp_path) as (_, path, url, tokens), AsyncClient(path) as near:
            assert await story(near) == TOLD
            async with AsyncClient(url=url, token=tokens[Scope.READ]) as far:
                assert [pool.name for pool in await far.pools()] == ["demo"]
                with pytest.raises(Refused) as refused:
                    await far.shutdown()
                assert refused.value.code == "scope_too_small"


async def test_the_async_client_works_under_asyncio(tmp_path: Path) -> None:
    async def main(path: Path) -> list[Any]:
        async with AsyncClient(path) as client:
            return await story(client)

    with trio.fail_after(60):
        async with served(tmp_path) as (_, path, _, _):
            assert await trio.to_thread.run_sync(lambda: asyncio.run(main(path))) == TOLD


def plain_story(path: Path, url: str, token: str) -> list[Any]:
    client, far = Client(path), Client(url=url, token=token)
    found: list[Any] = [[pool.name for pool in far.pools()]]
    item = far.submit("demo", schema.SubmitTask(objective="index", key="plain"))
    for change in client.watch_task("demo", item.id):
        found.append(change.state)
        if change.state == "pending":
            client.cancel("demo", item.id)
    with pytest.raises(Refused) as refused:
        far.shutdown()
    found.append(refused.value.code)
    with pytest.raises(Refused) as nobody:
        Client(url=url).node()
    return [*found, nobody.value.code]


async def test_the_plain_client_works_over_both_sockets_and_streams_end_with_it(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with served(tmp_path) as (known, path, url, tokens):
            told = await trio.to_thread.run_sync(plain_story, path, url, tokens[Scope.WRITE])
            assert told == [["demo"], "pending", "cancelled", "scope_too_small", "not_authenticated"]
            await left(known, Client(path))


async def left(known: Ground, client: Client) -> None:
    """A stream whose reader went is closed on the node, too."""

    def glance() -> str:
        changes = client.watch_task("demo", known.task.hex())
        state = next(changes).state
        changes.close()  # type: ignore[attr-defined]
        return state

    assert await trio.to_thread.run_sync(glance) == "pending"
    while known.state.streams:
        await trio.lowlevel.checkpoint()


async def test_who_is_not_there_or_says_nothing_is_told_as_such(tmp_path: Path) -> None:
    async with AsyncClient(tmp_path / "none") as client:
        with pytest.raises(NodeUnreachable, match="no node answers"):
            await client.node()
    with pytest.raises(NodeUnreachable, match="no node answers"):
        Client(tmp_path / "none").node()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"

        async def silent(stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        nursery.start_soon(trio.serve_listeners, silent, listeners)
        async with AsyncClient(url=url, timeout_s=0.05) as client:
            with pytest.raises(TimedOut):
                await client.node()
        with pytest.raises(TimedOut):
            await trio.to_thread.run_sync(Client(url=url, timeout_s=0.05).node)
        nursery.cancel_scope.cancel()


async def test_what_answers_in_another_language_is_no_node(tmp_path: Path) -> None:
    async def foreign(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, foreign, listeners)
        with pytest.raises(NodeUnreachable, match="does not speak"):
            await trio.to_thread.run_sync(Client(url=url).node)
        async with AsyncClient(url=url) as client:
            with pytest.raises(NodeUnreachable, match="does not speak"):
                await client.node()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "given",
    [
        {}, {"socket": "/s", "url": "http://a"}, {"url": "ftp://a"}, {"url": "http://a/b"}, {"url": "http://u:p@a"},
        {"url": "http://a:0x"}, {"url": "http://a", "token": "two words"}, {"url": "http://a", "token": "a\r\nb: c"},
    ],
)  # fmt: skip
def test_a_place_that_is_none_is_refused_before_anything_is_sent(given: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(LocalError):
            kind(**given)


def test_both_clients_have_a_method_for_every_route_with_the_parameters_of_its_path() -> None:
    for name, route in all_routes().items():
        declared = getattr(Client, name)
        assert getattr(AsyncClient, name) is declared
        parameters = list(inspect.signature(declared._function).parameters)
        kinds = {"content": route.raw, "body": route.body, "query": route.query, "to": route.form is Form.BYTES}
        wanted = ["self", *route.places, *(kind for kind, taken in kinds.items() if taken)]
        assert parameters == wanted, name
        assert declared.__doc__


def test_a_name_in_a_path_cannot_lead_elsewhere() -> None:
    assert Client.pool.question("../shutdown?x#y").target == "/v1/pools/..%2Fshutdown%3Fx%23y"
    assert Client.tasks.question("p", TaskQuery(objective="a&b=c")).target.endswith("/tasks?objective=a%26b%3Dc")


@pytest.mark.parametrize(("name", "more"), [("Client", set()), ("AsyncClient", {"httpx", "rich", "trio"})])
def test_a_client_brings_neither_libp2p_nor_the_node(name: str, more: set[str]) -> None:
    code = f"""
import json, sys
import converge_p2p.client as c
assert "converge_p2p.client.aio" not in sys.modules
client = c.{name}("/nonexistent")
if isinstance(client, c.Client):
    try:
        client.pools()
    except c.NodeUnreachable:
        pass
print(json.dumps(sorted(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    # httpx looks for a terminal library and for trio, and uses the latter only where it runs
    modules = set(json.loads(run.stdout))
    brought = {module.partition(".")[0] for module in modules}
    assert not brought & ({"libp2p", "trio", "multiaddr", "converge_node", "nacl", "starlette", "rich", "httpx"} - more)
    rooms = {module.split(".")[1] for module in modules if module.startswith("converge_p2p.")}
    assert rooms == {"client", "core"}
