"""Real nodes: a pool that asks for evidence settles a result when another member cited some, sealed or not."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import trio
from node_library_kit import POLICY, linked, real_node, until

from converge_p2p import Task, TaskView, governance
from converge_p2p.core.errors import NotFound
from converge_p2p.core.identity import fingerprint

pytestmark = pytest.mark.network


@pytest.mark.parametrize("private", [False, True])
async def test_a_result_waits_until_another_member_cites_evidence_for_it(private: bool) -> None:
    async def work(_task: TaskView, _context: Any) -> int:
        return 12

    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        pool = await one.create_pool(
            "proven", governance=governance.Empirical(evidence=1), policy=POLICY, private=private
        )
        other = await two.join_pool(pool.id, timeout_s=15)
        pool.add_handler("count", work)
        with trio.fail_after(60):
            handle = await pool.submit(Task("count"))
            await until(lambda: handle.id in {view.id for view in other.tasks()}, "the task on the other node")
            await until(lambda: other.task(handle.id).reported, "a report on the other node")
            value = other.task(handle.id).reported[0]
            with pytest.raises(NotFound):
                await other.council.evidence.cite(handle.id, b"", value=handle.id)  # type: ignore[arg-type]
            await other.council.evidence.cite(
                handle.id, b"a,12\n", value=value.hash, media="text/csv", summary="by hand"
            )
            result = await handle.result()
            assert result.value == 12
            (cited,) = pool.council.evidence.about(handle.id)
            assert (cited.digest, cited.size) == (hashlib.sha256(b"a,12\n").digest(), 5)
            assert (cited.media, cited.summary, cited.weight) == ("text/csv", "by hand", 0)
            assert fingerprint(cited.author) == two.id
            assert pool.council.evidence.standing(handle.id, value.hash) == (0, 1)
            assert await handle.cite(b"a,12\n", media="text/csv") is not None
            assert await handle.cite(b"a,12\n", media="text/csv") is None
            assert pool.council.evidence.standing(handle.id, value.hash) == (1, 1)
