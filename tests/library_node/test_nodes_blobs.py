"""Blobs between real nodes on loopback: large inputs and results, dead, lying and busy providers, private pools."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from converge_p2p.core.model.blob_text import reference_text
from node_library_kit import POLICY, QUICK, linked, real_node, until, who

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import LimitExceeded, LocalError, NetworkError
from converge_p2p.core.model import decisions as d
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.task import Task, TaskView
from converge_p2p.core.types import BlobId, BlobRef
from converge_p2p.node import Node, NodeConfig
from converge_p2p.node.blobs import Blobs
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.attempt import WorkContext
from converge_p2p.store.blobs import Hold

pytestmark = pytest.mark.network
CHUNK = limits.BLOB_CHUNK_BYTES


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converge_p2p.node.blob_fetch.PAUSE_S", 0.05)


class Stingy:
    """Gives another source's manifest and first chunks, then does something else."""

    def __init__(self, blobs: Blobs, gives: int, lie: bytes | None = None) -> None:
        self._blobs = blobs
        self._gives = gives
        self._lie = lie
        self.asked = 0

    async def manifest(self, blob: BlobId) -> bytes | None:
        return await self._blobs.manifest(blob)

    async def chunk(self, blob: BlobId, index: int) -> bytes | None:
        self.asked += 1
        if self.asked <= self._gives:
            return await self._blobs.chunk(blob, index)
        return self._lie


class Silent:
    """Never answers."""

    count = 0

    async def manifest(self, blob: BlobId) -> bytes | None:
        self.count += 1
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def chunk(self, blob: BlobId, index: int) -> bytes | None:
        raise AssertionError("nobody asks without a manifest")


async def all_linked(*nodes: Node) -> None:
    for number, one in enumerate(nodes):
        for other in nodes[:number]:
            await linked(one, other)


@pytest.mark.parametrize("private", [False, True])
async def test_large_inputs_and_results_come_over_as_if_they_were_small(private: bool, tmp_path: Path) -> None:
    text, image = "the harbour at night " * 20_000, os.urandom(3 * CHUNK)
    with trio.fail_after(60):
        async with real_node(1) as founder, real_node(2, founder, home=tmp_path / "worker") as worker:
            await linked(founder, worker)
            pool = await founder.create_pool("large", policy=POLICY, private=private)
            inputs = {"text": text, "image": image, "lang": "fr"}
            task = await pool.submit(Task("double", inputs, key="one"))
            again = await pool.submit(Task("double", inputs, key="one"))
            assert again.id == task.id, "the same inputs are the same blobs, and the same task"
            shown = task.view.inputs
            assert (shown["lang"], shown["image"].size) == ("fr", len(image))
            assert bool(shown["image"].key) is private
            joined = await worker.join_pool(pool.id, timeout_s=20)

            # a plain handler runs in a thread
            @joined.handler("double")
            def double(view: TaskView, context: WorkContext) -> object:
                assert context.blobs is not None
                handle = trio.from_thread.run(context.blobs.put, view.inputs["image"][:CHUNK])
                return {"twice": view.inputs["image"] * 2, "text": view.inputs["text"], "handle": handle}

            result = await task.result()
            assert result.value["twice"] == image * 2
            assert result.value["text"] == text
            assert result.receipt.verify()
            assert result.view.value is not None
            assert len(result.view.value.result) < limits.RESULT_BYTES_MAX
            handle = result.value["handle"]
            assert await pool.blobs.get(handle) == image[:CHUNK]
            await pool.blobs.fetch(handle, tmp_path / "part")
            assert (tmp_path / "part").read_bytes() == image[:CHUNK]
        on_disk = b"".join(path.read_bytes() for path in (tmp_path / "worker" / "blobs").rglob("*") if path.is_file())
        assert (b"harbour" in on_disk) is not private


async def test_a_fetch_goes_on_with_the_next_provider_where_the_first_one_died() -> None:
    content = os.urandom(20 * CHUNK + 5)
    with trio.fail_after(60):
        async with real_node(3) as reader, real_node(2, reader) as second:
            async with real_node(1, reader, second) as first:
                await all_linked(reader, second, first)
                reference = await first.blobs.put(content)
                await second.blobs.get(reference)
                first._network.serve_blobs(source := Stingy(first.blobs, 18))
                second_stays = second._network.serve_blobs
                second_stays(nobody := Stingy(second.blobs, 0))
                with pytest.raises(NetworkError, match="cannot be had"):
                    await reader.blobs.get(reference, providers=[second.public_key])
                assert source.asked > 18
                assert nobody.asked
                (info,) = reader.blobs.list()
                assert info.held_bytes == 18 * CHUNK
            await until(lambda: first.public_key not in reader.connected_keys(), "the first provider is gone")
            second_stays(rest := Stingy(second.blobs, 100))
            assert await reader.blobs.get(reference, providers=[second.public_key]) == content
            assert rest.asked == 3, "what was there was not fetched again"


async def test_a_provider_that_lies_is_blamed_and_another_is_used() -> None:
    content = os.urandom(2 * CHUNK)
    with trio.fail_after(60):
        async with real_node(3) as reader, real_node(1, reader) as liar, real_node(2, reader, liar) as honest:
            await all_linked(reader, liar, honest)
            reference = await liar.blobs.put(content)
            await honest.blobs.get(reference)
            liar._network.serve_blobs(Stingy(liar.blobs, 1, lie=b"x" * CHUNK))
            assert await reader.blobs.get(reference, providers=[honest.public_key]) == content
            counters = reader.status().counters
            assert (counters["blob_lies"], counters["violations"]) == (1, 1)


async def test_a_provider_that_is_silent_is_given_up_for_one_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converge_p2p.node.blob_fetch.HURRY_S", 0.5)
    content = os.urandom(2 * CHUNK)
    with trio.fail_after(60):
        async with real_node(3) as reader, real_node(1, reader) as silent, real_node(2, reader, silent) as honest:
            await all_linked(reader, silent, honest)
            reference = await silent.blobs.put(content, sealed=True)
            # it is asked although nobody names it, because it can read nothing of it
            await honest.blobs.get(reference)
            silent._network.serve_blobs(asked := Silent())
            assert await reader.blobs.get(reference) == content
            assert asked.count == 1


async def test_a_peer_is_given_so_many_streams_and_no_more() -> None:
    with trio.fail_after(60):
        async with real_node(1) as giver, real_node(2, giver) as taker:
            await linked(giver, taker)
            reference = await giver.blobs.put(b"small")
            network = taker._network
            async with network.open_blobs(giver.peer_id) as one, network.open_blobs(giver.peer_id) as two:
                for stream in (one, two):
                    assert await stream.manifest(reference.id, 30) is not None
                async with network.open_blobs(giver.peer_id) as third:
                    with pytest.raises(NetworkError, match="busy"):
                        await third.manifest(reference.id, 30)
            assert giver.status().counters["blob_streams_refused"] == 1
            # the places are free again
            await until(lambda: not giver._network._blobs._running, "the streams ended")
            assert await taker.blobs.get(reference) == b"small"
            async with network.open_blobs(giver.peer_id) as rude:
                await rude._ask(b"\x07" + reference.id)
                with pytest.raises(NetworkError):
                    await rude.answer(30)
            assert giver.status().counters["violations"] == 1


async def test_one_node_keeps_reads_and_refuses(tmp_path: Path) -> None:
    content = os.urandom(CHUNK + 1)
    (tmp_path / "file").write_bytes(content)
    config = NodeConfig(network=QUICK.network, blob_bytes_max=4 * CHUNK)
    with trio.fail_after(60):
        async with real_node(1, home=tmp_path / "home", config=config) as node:
            clear = await node.blobs.put(tmp_path / "file")
            assert await node.blobs.put(content) == clear
            sealed = await node.blobs.put(content, sealed=True)
            assert sealed == await node.blobs.put(content, sealed=True)
            assert sealed.id != clear.id
            assert await node.blobs.get(reference_text(sealed)) == await node.blobs.get(clear) == content
            with pytest.raises(LimitExceeded, match="no room"):
                await node.blobs.put(os.urandom(2 * CHUNK))
            with pytest.raises(LocalError, match="not a file"):
                await node.blobs.put(tmp_path)
            with pytest.raises(LocalError, match="cannot write"):
                await node.blobs.fetch(clear, tmp_path / "no" / "folder")
            await node.blobs.remove(clear.id)
            assert [info.hold for info in node.blobs.list()] == [Hold.PINNED]
            with pytest.raises(NetworkError, match="cannot be had"):
                await node.blobs.get(clear)
        async with real_node(1, home=tmp_path / "home") as node:
            assert await node.blobs.get(sealed) == content
            chunk = next((tmp_path / "home" / "blobs" / sealed.id.hex()).glob("?" * 64))
            chunk.write_bytes(bytes(chunk.stat().st_size))
            with pytest.raises(NetworkError, match="cannot be had"):
                await node.blobs.get(sealed)
            assert await node.blobs.put(content, sealed=True) == sealed
            assert await node.blobs.get(sealed) == content


async def test_a_task_whose_inputs_nobody_has_says_so_and_a_value_that_is_too_large_is_refused() -> None:
    gone = BlobRef(BlobId(bytes(32)), 10, who(9).public_key)
    with trio.fail_after(60):
        async with real_node(1) as node:
            pool = await node.create_pool("alone", policy=POLICY)
            with pytest.raises(NetworkError, match="cannot be had"):
                await pool.blobs.get(gone)
            with pytest.raises(LimitExceeded, match="at most"):
                await pool.submit(Task("x", {"all": bytes(limits.BLOB_VALUE_BYTES_MAX)}))
            assert node.blobs.list() == []
            many = {f"{number:05}": "some words" * 3 for number in range(3000)}
            task = await pool.submit(Task("many", many))
            assert isinstance(decode_value(task.view.spec.inputs), BlobRef)
            assert (await pool.blobs.bring(task.view)).inputs == many


class Turner(Agent):
    """Claims what it can, and reports the text of what it won the other way round."""

    capabilities = ("turn",)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[d.Decision]:
        decided: list[d.Decision] = []
        for view in tasks:
            if view.claimable:
                decided.append(d.ClaimTask(view.pool_id, view.id))
                continue
            self.seen.append(view.inputs["text"])
            if isinstance(view.inputs["text"], str):
                result = {"text": view.inputs["text"][::-1], "size": view.inputs["more"].size}
                decided.append(d.ReportTask(view.pool_id, view.id, result))
        return decided


async def test_an_agent_is_shown_contents_of_what_it_won_and_references_to_what_is_larger() -> None:
    text, more = "the harbour at night " * 10_000, bytes(limits.BLOB_SHOWN_BYTES_MAX + 1)
    with trio.fail_after(60):
        async with real_node(1) as founder, real_node(2, founder) as host:
            await linked(founder, host)
            pool = await founder.create_pool("agents", policy=POLICY)
            await host.join_pool(pool.id, timeout_s=20)
            agent = Turner()
            await host.host(agent)
            task = await pool.submit(Task("turn", {"text": text, "more": more}))
            result = await task.result()
            assert result.value == {"text": text[::-1], "size": len(more)}
            assert set(agent.seen) == {text}
