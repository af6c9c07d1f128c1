"""`task explain`, `task receipt` and `receipt verify`: what a person, a program, and somebody without a node see."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from control_kit import Ground, asking, ground, served, some_receipt

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "core"))

from test_auctions import Auction  # noqa: E402
from test_explanations import Story, explained  # noqa: E402
from test_vetoes import Vetoed  # noqa: E402

from converge_node.cli.explain import explanation_text  # noqa: E402
from converge_node.cli.main import invoke  # noqa: E402
from converge_node.control.explaining import explanation_item  # noqa: E402
from converge_node.errors import ExitCode  # noqa: E402
from converge_p2p.client import Client, Refused  # noqa: E402
from converge_p2p.client.explain_schema import ExplanationItem  # noqa: E402
from converge_p2p.core.codec import encode_value  # noqa: E402
from converge_p2p.core.identity import Identity, fingerprint  # noqa: E402
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolSpec, pool_id  # noqa: E402
from converge_p2p.core.model.task import Outcome, TaskValue  # noqa: E402
from converge_p2p.core.oplog.bodies import Ballot, Genesis, Phase, VoteBody  # noqa: E402
from converge_p2p.core.oplog.motions import YES, OpinionBody, dispute_result  # noqa: E402
from converge_p2p.core.oplog.operation import sign_operation  # noqa: E402
from converge_p2p.core.types import OperationId, TaskId  # noqa: E402
from converge_p2p.core.view.explanation import Explanation  # noqa: E402
from converge_p2p.core.view.receipt import Receipt  # noqa: E402

SCRIPT = ROOT / "scripts" / "verify_receipt.py"


def agent(author: Any) -> str:
    return str(fingerprint(author.key))


async def items(*told: Explanation) -> list[ExplanationItem]:
    known = await ground()
    return [explanation_item(known.pool, each) for each in told]


async def test_a_person_reads_who_won_by_which_rule_and_whose_signatures_decided() -> None:
    story = Story()
    (item,) = await items(story.explained(story.settled()))
    text = explanation_text(item)
    first, second, third = (agent(elector)[:12] for elector in story.pool.electors)
    assert f"won by        {agent(story.worker)}" in text
    assert "state         completed (for ever)" in text
    assert "decided       in epoch 0, round 0: 2 of 3" in text
    signed = next(line for line in text.splitlines() if line.startswith("signed by"))
    assert (first in signed, second in signed, third in signed) == (True, False, True)
    assert f"not by {second}" in text
    assert "Terms of epoch 0 (democratic)\n  2 of 3" in text
    for words in ("submitted the task", "claimed the task", "granted round 0 to", "reported the result", "endorsed"):
        assert words in text, words
    assert "Tentative" not in text
    assert "no effect" not in text


async def test_what_is_open_is_named_as_tentative() -> None:
    story = Story()
    (item,) = await items(story.explained(story.assigned))
    text = explanation_text(item)
    assert "state         assigned (see below what is tentative)" in text
    assert "Tentative\n  a claim is certified and no result is" in text
    assert "won by" not in text
    assert f"held by       {agent(story.worker)} in epoch 0, round 0" in text
    assert f"claim for {agent(story.worker)[:12]}: enough, needed: 2 of 3" in text


async def test_bids_vetoes_and_disputes_are_told_in_words() -> None:
    auction = Auction(second_price=True)
    auction.run(dan=7, eve=5)
    live = Vetoed(word=True)
    task = live.submit(b"x")
    live.settle(task)
    sold, vetoed = await items(explained(auction.replica, auction.task_id), explained(live.mesh.replicas[0], task))
    text = explanation_text(sold)
    assert "bid, sealed" in text
    assert "opened its bid of 5" in text
    assert sorted(step.said["amount"] for step in sold.steps if step.step == "bid_opened") == [5, 7]
    text = explanation_text(vetoed)
    assert "vetoed the result" in text
    assert ": not like this" in text
    assert "(veto)  settlement" in text
    assert "state         failed (for ever)" in text
    assert "reported by" in text
    assert "reported a failure" in text
    assert "in round 0 on the veto" in text
    story = Story()
    motion = story.rival.sign(dispute_result(story.task, "the sum\x1b[31m is wrong"))
    yes = [story.pool.electors[who].sign(OpinionBody(motion.id, YES)) for who in (0,)]
    (item,) = await items(story.explained([*story.assigned, motion, *yes]))
    text = explanation_text(item)
    assert "asked the electors whether the result is wrong" in text
    assert "said yes to the question" in text
    assert "\x1b" not in text, "a reason comes from strangers, and a terminal obeys them"
    assert item.disputes[0].state == "open"


async def test_a_program_gets_the_whole_record_and_every_signature() -> None:
    story = Story()
    (item,) = await items(story.explained(story.settled()))
    assert (item.final, item.tentative, len(item.steps)) == (True, [], 10)
    deciding = [each for each in item.certificates if each.decides]
    assert [(each.decision, each.rule, each.complete) for each in deciding] == [("settlement", "2 of 3", True)]
    assert {each.operation for each in deciding[0].signatures} == {vote.id.hex() for vote in story.accepts}
    reported = next(step for step in item.steps if step.step == "reported")
    assert (reported.said["result"], reported.said["grants"]) == (1, sorted(grant.id.hex() for grant in story.grants))
    assert {step.operation for step in item.steps} >= {story.submit.id.hex(), story.report.id.hex()}


@contextmanager
def arguments(home: Path) -> Iterator[Any]:
    async def run(*words: str) -> int:
        return await trio.to_thread.run_sync(invoke, ["--home", str(home), *words])

    yield run


async def test_the_commands_ask_a_node_and_write_a_file_that_both_verifiers_accept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story, file = Story(), tmp_path / "a.receipt"
    async with served(tmp_path) as (known, path, _, _):
        await prepare(known, story)
        with arguments(tmp_path) as run:
            assert await run("task", "explain", "demo", known.task.hex()[:8]) == 0
            assert "signed by" in capsys.readouterr().out
            assert await run("task", "explain", "demo", known.task.hex(), "--json") == 0
            assert json.loads(capsys.readouterr().out)["data"]["certificates"][-1]["decides"] is True
            assert await run("task", "explain", "demo", "ab" * 32) == ExitCode.NOT_FOUND
            assert await run("task", "receipt", "demo", known.task.hex()) == ExitCode.USAGE
            assert await run("--dry-run", "task", "receipt", "demo", known.task.hex(), "-o", str(file)) == 0
            assert not file.exists()
            capsys.readouterr()
            assert await run("task", "receipt", "demo", known.task.hex(), "-o", str(file), "--json") == 0
            said = json.loads(capsys.readouterr().out)["data"]
        to = io.BytesIO()
        await trio.to_thread.run_sync(Client(str(path)).receipt, "demo", known.task.hex(), to)
        assert to.getvalue() == file.read_bytes()
        del known.pool.receipts[known.task]
        with pytest.raises(Refused) as refused:
            await trio.to_thread.run_sync(Client(str(path)).receipt, "demo", known.task.hex(), to)
        assert refused.value.code == "conflict"
    assert said["pool"] == story.pool.id.hex()
    # the node is gone
    pool = story.pool.id.hex()
    assert invoke(["receipt", "verify", str(file), "--pool", pool]) == 0
    shown = capsys.readouterr().out
    assert "WARNING" not in shown
    assert f"worker      {agent(story.worker)}" in shown
    assert "terms of 0  democratic, 2 of 3" in shown
    done = script(file, pool)
    assert (done.returncode, "completed" in done.stdout) == (0, True), done.stderr


async def prepare(known: Ground, story: Story) -> None:
    known.pool.explained[known.task] = story.explained(story.settled())
    receipt = story.receipt()
    known.pool.receipts[known.task] = receipt


def script(file: Path, pool: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), str(file), pool]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_after_any_changed_byte_neither_verifier_accepts_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, file = some_receipt().to_bytes(), tmp_path / "bad"
    pool = some_receipt().pool.hex()
    for at in range(0, len(good), max(1, len(good) // 60)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert invoke(["receipt", "verify", str(file), "--pool", pool, "--json"]) == ExitCode.FAILURE, at
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_signature"
    assert script(file, pool).returncode == 1
    file.write_bytes(good[:-1])
    assert invoke(["receipt", "verify", str(file)]) == ExitCode.FAILURE
    assert "not a receipt, or a damaged one" in capsys.readouterr().err


def test_a_receipt_of_another_pool_or_without_a_pool_to_compare_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.receipt"
    file.write_bytes(some_receipt().to_bytes())
    assert invoke(["receipt", "verify", str(file), "--pool", "00" * 32]) == ExitCode.FAILURE
    assert "and not of the one that was named" in capsys.readouterr().err
    assert invoke(["receipt", "verify", str(file)]) == 0
    assert "WARNING: the pool was not compared" in capsys.readouterr().out
    assert invoke(["receipt", "verify", str(file), "--pool", "demo"]) == ExitCode.USAGE
    assert invoke(["receipt", "verify", str(tmp_path / "none")]) == ExitCode.USAGE
    assert invoke(["receipt", "verify", str(file), "--json", "--pool", some_receipt().pool.hex()]) == 0
    (line,) = capsys.readouterr().out.splitlines()[-1:]
    data = json.loads(line)["data"]
    assert (data["result"], data["warnings"], data["pool_compared"]) == ({"tokens": 12}, [], True)
    assert data["signers"] == [str(fingerprint(key)) for key in some_receipt().signers]


def provisional() -> Receipt:
    """A task that one of two electors settled alone, under terms that allow it."""
    people = sorted((Identity.from_seed(bytes([number]) * 32) for number in (1, 2)), key=lambda each: each.public_key)
    electors = tuple(each.public_key for each in people)
    spec = PoolSpec(
        "loose", b"n" * 16, GovernanceKind.DEMOCRATIC, electors, quorum=1, model=ModelTerms(provisional=True)
    )
    pool, task = pool_id(electors[0], spec), TaskId(b"t" * 32)
    value = TaskValue(Outcome.COMPLETED, electors[1], encode_value("done"))
    genesis = sign_operation(people[0], pool, Genesis(spec), seq=0, prev=None, epoch=0, hlc=1)
    ballot = VoteBody((Ballot(Phase.ACCEPT, task, 0, value.hash),))
    vote = sign_operation(people[1], pool, ballot, seq=1, prev=OperationId(b"p" * 32), epoch=0, hlc=2)
    return Receipt(pool, task, value, genesis.signed, (vote.signed,))


def test_provisional_terms_are_warned_of_by_both_verifiers_and_refused_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, proof = tmp_path / "a.receipt", provisional()
    file.write_bytes(proof.to_bytes())
    known = ["receipt", "verify", str(file), "--pool", proof.pool.hex()]
    assert invoke(known) == 0
    shown = capsys.readouterr().out
    assert "WARNING: the terms of epoch 0 are provisional" in shown
    assert "1 of 2" in shown
    assert invoke([*known, "--strict"]) == ExitCode.FAILURE
    done = script(file, proof.pool.hex())
    assert done.returncode == 0
    assert "WARNING: epoch 0 is provisional: two sets that decide may share only 0 electors" in done.stderr
    assert "democratic, 1 of 2 electors" in done.stdout


async def test_a_receipt_is_sent_as_bytes_and_an_explanation_in_an_envelope() -> None:
    known = await ground()
    known.pool.receipts[known.task] = some_receipt()
    async with asking(known) as http:
        got = await http.get(f"/v1/pools/demo/tasks/{known.task.hex()}/receipt")
        assert (got.status_code, got.headers["content-type"]) == (200, "application/octet-stream")
        assert Receipt.from_bytes(got.content) == some_receipt()
        told = (await http.get(f"/v1/pools/demo/tasks/{known.task.hex()[:7]}/explain")).json()["data"]
        assert (told["state"], told["tentative"][0]["name"]) == ("pending", "pending")
        assert (await http.get(f"/v1/pools/demo/tasks/{'00' * 32}/explain")).status_code == 404
