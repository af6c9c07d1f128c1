"""The web page without a browser: its files, who is told what, the gateway, and the command that leads there."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from control_kit import served

from converge_node.cli.main import invoke
from converge_node.control.server import open_tcp_server
from converge_node.control.tokens import Tokens, read_tokens
from converge_node.errors import ExitCode
from converge_node.web.gateway import QUESTIONS, gateway_app
from converge_node.web.pages import STATIC, TYPES
from converge_p2p.client import Client, Refused
from converge_p2p.client.routes import Scope
from converge_p2p.core import limits
from converge_p2p.node.observation import NodeEvent

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in STATIC.iterdir() if path.suffix in TYPES)
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
TOKEN = "t0ken"


def named_in(path: Path) -> set[str]:
    """Which of the page's files a file names."""
    text = path.read_text(encoding="utf-8")
    return set(re.findall(r'(?:/web/|from "\./)([a-z.-]+)"', text))


# ------------------------------------------------------------ the files


def test_every_file_is_used_and_every_file_that_is_named_is_there() -> None:
    named = set.union(*(named_in(path) for path in FILES))
    assert named | {"index.html"} == {path.name for path in STATIC.iterdir()}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_or_code_of_what_it_is_told(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text
    )
    assert not re.search(r"localStorage|document\.cookie|\bimport\(", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    assert len(text.splitlines()) <= 500


def test_the_page_holds_no_code_of_its_own_and_names_no_other_host() -> None:
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|https?:", text)
    assert re.findall(r"<script[^>]*>(.*?)</script>", text) == [""]
    assert not re.search(r"url\(|@import|https?:", (STATIC / "style.css").read_text(encoding="utf-8"))


def test_a_wheel_brings_the_files(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"converge_node/web/static/{path.name}" for path in FILES} <= names


# ------------------------------------------------------------ who is told what


async def test_the_page_takes_no_token_and_everything_it_shows_does(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, path, url, tokens), httpx.AsyncClient(base_url=url) as http:
        for file in FILES:
            answer = await http.get("/" if file.name == "index.html" else f"/web/{file.name}")
            assert (answer.status_code, answer.content) == (200, file.read_bytes()), file
            assert answer.headers["content-type"] == TYPES[file.suffix]
            policy = answer.headers["content-security-policy"].split("; ")
            assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)
            assert "unsafe" not in " ".join(policy)
            assert answer.headers["x-content-type-options"] == "nosniff"
        for name in ("/v1/status", "/healthz", "/openapi.json"):
            assert (await http.get(name)).status_code == 401
        assert (await http.get("/web/../control/tokens.py")).status_code == 404
        assert (await http.post("/")).status_code in (404, 400)
        bearer = {"authorization": f"Bearer {tokens[Scope.READ]}"}
        assert (await http.get("/v1/status", headers=bearer)).status_code == 200
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as owner:
            assert (await owner.get("/")).status_code == 404


# ------------------------------------------------------------ the gateway


async def test_the_gateway_passes_the_questions_of_the_page_on_and_nothing_else(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            served(tmp_path) as (known, path, _, _),
            open_tcp_server(gateway_app(path, TOKEN), ["127.0.0.1:0"]) as (url,),
            httpx.AsyncClient(base_url=url) as http,
        ):
            bearer = {"authorization": f"Bearer {TOKEN}"}
            assert (await http.get("/")).status_code == 200
            places = {"pool": known.pool.id.hex(), "task": known.task.hex()}
            for target in ("/v1/status", "/v1/pools/{pool}/tasks?state=pending", "/v1/pools/{pool}/tasks/{task}"):
                answer = await http.get(target.format(**places), headers=bearer)
                assert answer.status_code == 200, target
                assert answer.json()["ok"]
                for wrong in ({}, {"authorization": b"Bearer wrong"}, {"authorization": b"Bearer \xe4"}):
                    refused = await http.get(target.format(**places), headers=wrong)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "not_authenticated")
            assert (await http.get("/v1/pools/none/tasks", headers=bearer)).json()["error"]["code"] == "not_found"
            assert "/v1/status" in (await http.get("/openapi.json", headers=bearer)).json()["paths"]
            assert (await http.get("/openapi.json")).status_code == 401
            assert (await http.get("/metrics", headers=bearer)).text.startswith("#")
            for method, target in (
                ("GET", "/v1/logs"),
                ("GET", "/v1/blobs/content"),
                ("POST", "/v1/shutdown"),
                ("POST", "/v1/pools"),
            ):
                answer = await http.request(method, target, headers=bearer)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), target
            assert known.stops == []


async def test_a_stream_comes_through_as_it_is_said_and_ends_with_its_reader(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            served(tmp_path) as (known, path, _, _),
            open_tcp_server(gateway_app(path, TOKEN), ["127.0.0.1:0"]) as (url,),
        ):
            client = Client(url=url, token=TOKEN)
            events = client.events()
            first = partial(next, events)
            async with trio.open_nursery() as nursery:

                async def hear() -> None:
                    event: Any = await trio.to_thread.run_sync(first)
                    assert event.kind == "peer_up"

                nursery.start_soon(hear)
                while not len(known.node.observation.events):
                    await trio.lowlevel.checkpoint()
                known.node.observation.events.send(NodeEvent(0.0, "peer_up", {}))
            await trio.to_thread.run_sync(events.close)  # type: ignore[attr-defined]
            while known.state.streams:
                await trio.lowlevel.checkpoint()


async def test_while_there_is_no_node_the_gateway_says_so(tmp_path: Path) -> None:
    with trio.fail_after(60):
        app = gateway_app(tmp_path / "none.sock", TOKEN)
        async with open_tcp_server(app, ["127.0.0.1:0"]) as (url,):
            with pytest.raises(Refused) as refused:
                await trio.to_thread.run_sync(Client(url=url, token=TOKEN).status)
            assert refused.value.code == "node_unreachable"


@pytest.mark.parametrize("said", [b"", b"\r\n\r\n", b"HTTP/1.0\r\n\r\n", b"HTTP/1.0 many\r\n\r\n", b"x" * 100_000])
async def test_what_answers_in_another_language_is_no_node_to_the_gateway(tmp_path: Path, said: bytes) -> None:
    async def foreign(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            try:
                await stream.send_all(said)
            except trio.BrokenResourceError:
                pass

    path = tmp_path / "foreign.sock"
    with trio.fail_after(60), socket.socket(socket.AF_UNIX) as raw:
        raw.bind(str(path))
        raw.listen()
        async with trio.open_nursery() as nursery:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(raw))
            nursery.start_soon(trio.serve_listeners, foreign, [listener])
            transport = httpx.ASGITransport(gateway_app(path, TOKEN))
            async with httpx.AsyncClient(transport=transport, base_url="http://page") as http:
                answer = await http.get("/v1/status", headers={"authorization": f"Bearer {TOKEN}"})
            assert answer.json()["error"]["code"] == "node_unreachable"
            nursery.cancel_scope.cancel()


async def test_a_stranger_who_breaks_off_or_never_ends_a_question_costs_the_gateway_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    app, sent = gateway_app(tmp_path / "none.sock", TOKEN), list[Any]()
    scope = {
        "type": "http", "method": "GET", "path": "/v1/status", "raw_path": b"/v1/status", "root_path": "",
        "query_string": b"", "headers": [], "scheme": "http", "server": ("x", 1), "client": ("x", 1),
        "asgi": {"version": "3.0"}, "http_version": "1.1",
    }  # fmt: skip

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def endless() -> dict[str, Any]:
        await trio.sleep(1)
        return {"type": "http.request", "body": b".", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    for receive, status in ((gone, 499), (endless, 401)):
        with trio.fail_after(limits.CONTROL_BODY_WAIT_S + 1):
            await app(scope, receive, send)
        assert sent[0]["status"] == status
        sent.clear()


def test_the_page_asks_nothing_that_is_not_passed_on() -> None:
    asked = set(re.findall(r"[\"`](/v1/[a-z]+|/healthz|/metrics)", "".join(path.read_text() for path in SCRIPTS)))
    from converge_p2p.client.api import all_routes

    passed = {"/".join(route.path.split("/")[:3]) for name, route in all_routes().items() if name in QUESTIONS}
    assert asked <= passed


# ------------------------------------------------------------ the command


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = invoke([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    return code, document["data"] if document["ok"] else document["error"]


async def test_the_page_of_a_node_that_listens_is_opened_by_a_token_that_the_next_one_replaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path) as (known, _, url, _):
        known.state.api_urls = (url.replace("127.0.0.1", "0.0.0.0"),)
        found = []
        for _ in range(2):
            code, data = await trio.to_thread.run_sync(partial(ask, capsys, "--home", str(tmp_path), "web"))
            assert code == 0
            place, _, token = data["url"].partition("/#token=")
            assert place == url
            found.append(token)
        file = tmp_path / "api-tokens"
        assert [token.name for token in read_tokens(file)].count("web") == 1
        assert [Tokens(file).scope_of(token) for token in found] == [None, Scope.READ]
        before = file.read_bytes()
        assert await trio.to_thread.run_sync(invoke, ["--home", str(tmp_path), "--dry-run", "web"]) == 0
        assert "would make the token web" in capsys.readouterr().out
        assert file.read_bytes() == before


async def test_the_page_of_a_node_elsewhere_is_only_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "--url", "http://192.0.2.1:4080", "web") == (0, {"url": "http://192.0.2.1:4080/"})
    assert ask(capsys, "--url", "http://192.0.2.1:4080", "web", "--open")[0] == ExitCode.USAGE
    code, error = ask(capsys, "--home", str(tmp_path), "web")
    assert (code, error["code"]) == (ExitCode.UNREACHABLE, "node_unreachable")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_the_page_of_a_node_that_does_not_listen_is_served_until_a_signal(tmp_path: Path, how: int) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\nls -l "${{1#file://}}" >> {tmp_path}/opened\n')
    browser.chmod(0o755)

    def story() -> None:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "node"), "--home", str(tmp_path), "web", "--open", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "BROWSER": f"{browser} %s"},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            url, _, token = json.loads(process.stdout.readline())["data"]["url"].partition("/#token=")
            client = Client(url=url, token=token)
            assert [pool.name for pool in client.status().pools] == ["demo"]
            with pytest.raises(Refused) as refused:
                client.shutdown()
            assert refused.value.code == "not_found"
            while not (tmp_path / "opened").exists() or "\n-rw" not in (tmp_path / "opened").read_text():
                assert process.poll() is None
            # what other users can read in the list of processes does not hold the token
            said, listed = (tmp_path / "opened").read_text().splitlines()
            assert said.startswith("file:///")
            assert token not in said
            assert listed.startswith("-rw-------")
            process.send_signal(how)
            out, err = process.communicate(timeout=30)
            assert (process.returncode, out, err) == (0, "", "")
            assert not Path(said.removeprefix("file://")).exists()
        finally:
            process.kill()
            process.communicate()

    async with served(tmp_path) as (known, _, _, _):
        await trio.to_thread.run_sync(story)
        assert read_tokens(tmp_path / "api-tokens")
        assert not [token for token in read_tokens(tmp_path / "api-tokens") if token.name == "web"]
        assert known.stops == []
