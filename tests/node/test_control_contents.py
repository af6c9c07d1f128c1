"""Contents and bodies at the control interface: senders that are slow, break off or lie, and readers that stop."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from control_kit import asking, ground, served

from converge_node.control import server
from converge_node.control.requests import discard, paced
from converge_node.errors import TimedOut
from converge_p2p.client import AsyncClient, Client, NodeUnreachable, Refused
from converge_p2p.client.queries import ContentQuery
from converge_p2p.client.routes import Scope
from converge_p2p.client.wire import PIECE_BYTES
from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import BlobForm
from converge_p2p.node.blobs import Blobs
from converge_p2p.store.blobs import Hold

PUT = "POST /v1/blobs HTTP/1.1\r\nhost: x\r\n"


async def answer_of(stream: trio.SocketStream) -> tuple[int, Any]:
    answer = b""
    while not answer.endswith(b"}"):
        part = await stream.receive_some()
        assert part, answer
        answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await trio.lowlevel.checkpoint()


def sender(count: int, size: int, pause_s: float) -> AsyncGenerator[bytes, None]:
    async def parts() -> AsyncGenerator[bytes, None]:
        for _ in range(count):
            await trio.sleep(pause_s)
            yield b"." * size

    return parts()


async def test_a_sender_is_waited_for_as_long_as_it_is_fast_enough(autojump_clock: trio.testing.MockClock) -> None:
    rate = limits.CONTROL_BODY_BYTES_PER_SECOND_MIN
    assert sum([len(part) async for part in paced(sender(300, rate, 1.0))]) == 300 * rate
    begun = trio.current_time()
    with pytest.raises(TimedOut):
        async for _ in paced(sender(10_000, 1, 1.0)):
            pass
    assert trio.current_time() - begun <= limits.CONTROL_BODY_WAIT_S + 1
    begun = trio.current_time()
    await discard(paced(sender(10_000, 1, 1.0)))
    assert trio.current_time() - begun <= limits.CONTROL_BODY_WAIT_S + 1


async def test_what_the_node_takes_to_write_is_not_the_senders_time(autojump_clock: trio.testing.MockClock) -> None:
    async for _ in paced(sender(10, 1, 0.5)):
        await trio.sleep(limits.CONTROL_BODY_WAIT_S)


@pytest.mark.parametrize("path", ["/v1/pools", "/v1/blobs"])
async def test_a_body_that_never_ends_is_given_up_with_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(limits, "CONTROL_BODY_WAIT_S", 0.05)
    async with served(tmp_path) as (known, socket, url, made):
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
        port = int(url.rpartition(":")[2])
        with trio.fail_after(20):
            async with await trio.open_unix_socket(socket) as stream:
                await stream.send_all(f"{head}\r\n{{".encode())
                status, said = await answer_of(stream)
            assert (status, said["error"]["code"]) == (504, "timeout")
            for token, expected in ((None, 401), (made[Scope.READ], 403), (made[Scope.WRITE], 504)):
                header = "" if token is None else f"authorization: Bearer {token}\r\n"
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(f"{head}{header}\r\n{{".encode())
                    assert (await answer_of(stream))[0] == expected
            await until(lambda: not known.state.requests and not known.state.transfers)
        assert known.node.blobs.list() == []


async def test_contents_are_bounded_and_leave_room_for_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONTROL_TRANSFERS_MAX", 1)
    async with served(tmp_path) as (known, socket, _url, _made):
        with trio.fail_after(20):
            first, broken = await trio.open_unix_socket(socket), await trio.open_unix_socket(socket)
            async with first, broken:
                await first.send_all(f"{PUT}content-length: 4\r\n\r\nab".encode())
                await until(lambda: known.state.transfers == 1)
                with pytest.raises(Refused) as refused:
                    # much more than the kernel buffers: the refusal is heard all the same
                    await trio.to_thread.run_sync(Client(socket).put_blob, io.BytesIO(bytes(4 * 2**20)))
                assert refused.value.code == "busy"
                assert (await trio.to_thread.run_sync(Client(socket).node)).home
                await first.send_all(b"cd")
                status, said = await answer_of(first)
                assert (status, said["data"]["size"]) == (200, 4)
                await until(lambda: not known.state.transfers)
                await broken.send_all(f"{PUT}content-length: 400\r\n\r\nab".encode())
                await until(lambda: known.state.transfers == 1)
                await trio.aclose_forcefully(broken)
                await until(lambda: not known.state.transfers)
            kept = io.BytesIO()
            query = ContentQuery(reference=said["data"]["reference"])
            await trio.to_thread.run_sync(Client(socket).blob, query, kept)
            assert kept.getvalue() == b"abcd"
            await until(lambda: not known.state.transfers)
        assert [info.size for info in known.node.blobs.list()] == [4]
        assert known.state.refused == 1


async def test_of_a_request_beyond_the_bound_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_REQUESTS_MAX", 0)
    async with asking(await ground()) as client:
        # one that was kept would be refused for its size
        answer = await client.post("/v1/pools", content=bytes(2 * limits.CONTROL_REQUEST_BYTES_MAX))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")


async def test_who_takes_nothing_of_an_answer_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTROL_SEND_STALL_S", 0.05)
    async with served(tmp_path) as (known, socket, _url, _made):
        with trio.fail_after(20):
            item = await trio.to_thread.run_sync(Client(socket).put_blob, io.BytesIO(os.urandom(1_000_000)))
            async with await trio.open_unix_socket(socket) as stream:
                target = f"/v1/blobs/content?reference={item.reference}"
                await stream.send_all(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                await until(lambda: known.state.transfers == 1)
                await until(lambda: not known.state.transfers)
                await until(lambda: not server._ContainedServer._open)


async def test_a_full_disk_is_named_as_such_after_all_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_options: Full())
    known, sent = await ground(), 0

    async def content() -> AsyncGenerator[bytes, None]:
        nonlocal sent
        for _ in range(50):
            sent += 1
            yield bytes(1000)

    async with asking(known) as client:
        answer = await client.post("/v1/blobs", content=content())
    error = answer.json()["error"]
    assert (error["code"], sent) == ("store_error", 50)
    assert "No space left" in error["message"]
    assert not known.state.transfers


def test_a_file_that_changes_takes_no_other_content_with_it() -> None:
    blobs = Blobs(Identity.from_seed(b"1" * 32), None, 2**22, Counter())
    kept, passes = list[Any](), 0

    def changing(_size: int) -> Iterator[bytes]:
        nonlocal passes
        passes += 1
        if passes == 1:
            yield b"the same"
        else:
            # another request puts the same content, and is told that it is kept
            kept.append(blobs._put_now(lambda _size: iter([b"the same"]), False, BlobForm.HANDLE, Hold.PINNED))
            yield b"something else"

    with pytest.raises(LocalError, match="changed"):
        blobs._put_now(changing, False, BlobForm.HANDLE, Hold.PINNED)
    assert [(info.id, info.hold) for info in blobs.list()] == [(kept[0].id, Hold.PINNED)]


class Growing(io.BytesIO):
    """A file that another program changes as soon as it is read."""

    def __init__(self, content: bytes, then: Callable[[Growing], Any]) -> None:
        super().__init__(content)
        self._then = then

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        here = self.tell()
        self._then(self)
        self.seek(here)
        return found


@pytest.mark.parametrize("plain", [True, False])
async def test_of_a_file_that_changes_while_it_is_sent_no_more_is_sent_than_was_said(
    tmp_path: Path, plain: bool
) -> None:
    async with served(tmp_path) as (known, socket, _url, _made):

        async def put(content: io.BytesIO) -> Any:
            if plain:
                return await trio.to_thread.run_sync(Client(socket).put_blob, content)
            async with AsyncClient(socket) as client:
                return await client.put_blob(content)

        def grow(file: Growing) -> None:
            file.seek(0, os.SEEK_END)
            if file.tell() < 10 * PIECE_BYTES:
                file.write(b"POST /v1/shutdown HTTP/1.1\r\nhost: x\r\n\r\n")

        with trio.fail_after(20):
            item = await put(Growing(bytes(PIECE_BYTES), grow))
            assert item.size == PIECE_BYTES
            assert known.stops == []
            with pytest.raises(LocalError, match="shorter"):
                await put(Growing(bytes(2 * PIECE_BYTES), lambda file: file.truncate(PIECE_BYTES)))
            await until(lambda: not known.state.transfers)
        assert [info.size for info in known.node.blobs.list()] == [PIECE_BYTES]


@pytest.mark.parametrize("length", [b"", b"content-length: some\r\n", b"transfer-encoding: chunked\r\n"])
async def test_an_answer_that_does_not_say_its_length_is_no_content(tmp_path: Path, length: bytes) -> None:
    async def lie(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + length + b"\r\n")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, lie, [listener])
        query, url = ContentQuery(reference="blob:x"), f"http://127.0.0.1:{port}"
        with trio.fail_after(20):
            with pytest.raises(NodeUnreachable):
                await trio.to_thread.run_sync(Client(url=url).blob, query, io.BytesIO())
            async with AsyncClient(url=url) as client:
                with pytest.raises(NodeUnreachable):
                    await client.blob(query, io.BytesIO())
        nursery.cancel_scope.cancel()
