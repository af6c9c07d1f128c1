"""Private pools between real nodes on loopback: work is done, the stores show nothing, a restart reads on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from node_library_kit import POLICY, linked, real_node, until, who

from converge_p2p.core.errors import StoreError
from converge_p2p.core.model.task import Task, TaskView
from converge_p2p.core.types import PoolId
from converge_p2p.node.vault import keyring_key, open_secrets, seal_secrets
from converge_p2p.runtime.attempt import WorkContext
from converge_p2p.store.memory import MemoryStore

pytestmark = pytest.mark.network


def stored(store: MemoryStore) -> Iterator[bytes]:
    for pool in store.pools():
        yield from store.load(pool)
    for key in store.list():
        yield store.get(key) or b""


async def test_a_private_pool_works_between_nodes_and_is_read_again_after_a_restart(tmp_path: Path) -> None:
    store = MemoryStore()
    with trio.fail_after(60):
        async with real_node(1, store=store) as founder:
            async with real_node(2, founder, home=tmp_path / "worker") as worker:
                await linked(founder, worker)
                pool = await founder.create_pool("quiet", policy=POLICY, private=True)
                task = await pool.submit(Task("whisper", {"words": "the harbour at night"}, key="customer-7"))
                joined = await worker.join_pool(pool.id, timeout_s=20)

                @joined.handler("whisper")
                async def whisper(view: TaskView, context: WorkContext) -> object:
                    return {"heard": view.inputs["words"]}

                result = await task.result()
                assert result.value == {"heard": "the harbour at night"}
                assert result.receipt.verify()
                # the same task, whatever its key is called in the log
                again = await pool.submit(Task("whisper", {"words": "the harbour at night"}, key="customer-7"))
                assert again.id == task.id
                await until(lambda: joined.task(task.id).state.terminal, "the worker heard of the settlement")
            everything = b"".join(stored(store))
            for word in (b"harbour", b"whisper", b"customer-7"):
                assert word not in everything
            async with real_node(2, founder, home=tmp_path / "worker") as worker:
                view = worker.pools[pool.id].task(task.id)
                assert (view.objective, view.result) == ("whisper", {"heard": "the harbour at night"})


def test_stored_secrets_open_for_nobody_else() -> None:
    pool = PoolId(b"p" * 32)
    sealed = seal_secrets(who(1), pool, b"keys")
    assert b"keys" not in sealed
    assert open_secrets(who(1), pool, sealed) == b"keys"
    assert open_secrets(who(1), pool, None) == b""
    for identity, other in ((who(2), pool), (who(1), PoolId(b"q" * 32))):
        with pytest.raises(StoreError, match="cannot be opened"):
            open_secrets(identity, other, sealed)
    assert keyring_key(pool).endswith(pool.hex())
