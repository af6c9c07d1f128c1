"""Real nodes on loopback: every member tells the same of a task, and its receipt holds for somebody without a node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import POLICY, real_node, until

from converge_p2p import Task, TaskView, governance
from converge_p2p.core.errors import NotFound
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.explanation import Decision, StepKind, Tentative

pytestmark = pytest.mark.network

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "verify_receipt.py"


async def test_two_nodes_explain_a_task_alike_and_both_verifiers_accept_its_receipt(tmp_path: Path) -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        electors = [f"key:{node.public_key.hex()}" for node in (one, two)]
        pool = await one.create_pool("workers", governance=governance.Democratic(), electors=electors, policy=POLICY)
        remote = await two.join_pool(pool.id, timeout_s=15)
        release = trio.Event()

        @remote.handler("translate")
        async def translate(task: TaskView, context: Any) -> Any:
            await context.progress(0.5, "half")
            await release.wait()
            return task.inputs["text"][::-1]

        handle = await pool.submit(Task("translate", {"text": "hi"}))
        with pytest.raises(NotFound):
            await pool.explain(TaskId(bytes(32)))
        await until(lambda: handle.view.progress is not None, "the work has begun", 20)
        told = await handle.explain()
        assert told.tentative == (Tentative.HELD,)
        assert told.renewed is not None
        assert (told.renewed.author, told.renewed.note) == (two.public_key, "half")
        assert told.worker is None
        release.set()
        with trio.fail_after(30):
            result = await handle.result()
        await until(lambda: remote.frontier_digest == pool.frontier_digest, "equal logs")
        told, theirs = await handle.explain(), await remote.explain(handle.id)
        assert (told.steps, told.certificates, told.terms) == (theirs.steps, theirs.certificates, theirs.terms)
        assert (told.tentative, told.submitter, told.worker) == ((), one.public_key, two.public_key)
        assert {step.kind for step in told.steps} == {
            StepKind.SUBMITTED, StepKind.CLAIMED, StepKind.GRANTED, StepKind.REPORTED, StepKind.ENDORSED,
            StepKind.ACCEPTED,
        }  # fmt: skip
        assert told.steps[0].kind is StepKind.SUBMITTED
        assert all(step.verified and step.counts for step in told.steps)
        for decision in Decision:
            (certificate,) = (each for each in told.certificates if each.decision is decision)
            assert certificate.complete
            assert {each.elector for each in certificate.signatures} == {one.public_key, two.public_key}
        assert result.receipt is not None
        file = tmp_path / "a.receipt"
        file.write_bytes(pool.receipt(handle.id).to_bytes())
        assert {each.elector for each in told.settled_by.signatures} == set(result.receipt.signers)  # type: ignore[union-attr]
    command = [sys.executable, "-I", str(SCRIPT), str(file), pool.id.hex()]
    with trio.fail_after(60):
        run = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert (run.returncode, b"completed" in run.stdout) == (0, True), run.stderr
