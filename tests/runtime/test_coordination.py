"""Decisions about coordination: each is one command of the log, and none goes around the policy."""

from __future__ import annotations

from typing import Any

import pytest

from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.core.model import coordination_decision as cd, decision as d
from converge_p2p.core.model.task import Task
from converge_p2p.core.oplog.coordination import AuctionRule, PollRule, Scope
from converge_p2p.core.replica import coordination as c
from converge_p2p.core.replica.auction_commands import CloseAuction, OpenAuction, SettleAuction
from converge_p2p.core.replica.negotiation_commands import AnswerProposal, CounterProposal, OpenNegotiation
from converge_p2p.core.types import AgentId, OperationId, PoolId, PublicKey, TaskId
from converge_p2p.runtime.coordination import DECISIONS
from converge_p2p.runtime.executor import Executed, Refused, StandardExecutor
from converge_p2p.runtime.safety import ActionPolicy, ResourceLimits, SafetyPolicy

POOL, TASK, BOB = PoolId(b"p" * 32), TaskId(b"t" * 32), AgentId("b" * 64)
NAME, SIGNED, KEY = OperationId(b"n" * 32), OperationId(b"s" * 32), PublicKey(b"k" * 32)


class Port:
    """Notes the commands."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def bid(self, pool_id: PoolId, task_id: TaskId, amount: int) -> None:
        self.asked.append(("bid", pool_id, task_id, amount))

    async def coordinate(self, pool_id: PoolId, command: Any) -> OperationId:
        self.asked.append((pool_id, command))
        return SIGNED

    def key_of(self, agent: str) -> PublicKey:
        if agent != BOB:
            raise NotFound("nobody")
        return KEY

    def epoch(self, pool_id: PoolId) -> int:
        return 4

    def question(self, pool_id: PoolId, question_id: bytes) -> tuple[str, ...]:
        return ("yes", "no")

    def session_of(self, pool_id: PoolId, proposal_id: bytes) -> OperationId:
        return NAME


WAYS: list[tuple[d.Decision, Any, Any]] = [
    (d.SubmitBid(POOL, TASK, 3), ("bid", POOL, TASK, 3), None),
    (cd.OpenAuction(POOL, TASK, highest=True), (POOL, OpenAuction(TASK, AuctionRule(True, True))), SIGNED),
    (cd.CloseAuction(POOL, TASK), (POOL, CloseAuction(TASK)), SIGNED),
    (cd.SettleAuction(POOL, TASK), (POOL, SettleAuction(TASK)), SIGNED),
    (
        cd.OpenPoll(POOL, "?", ("a", "b"), plurality=True, electors_only=True, quorum=2),
        (POOL, c.OpenPoll("?", ("a", "b"), PollRule.PLURALITY, 2, c.Electorate.ELECTORS)),
        SIGNED,
    ),
    (cd.ClosePoll(POOL, NAME), (POOL, c.ClosePoll(NAME)), SIGNED),
    (d.Vote(POOL, NAME, "no"), (POOL, c.CastVote(NAME, 1)), SIGNED),
    (d.AcceptProposal(POOL, NAME), (POOL, AnswerProposal(NAME, True)), NAME),
    (d.RejectProposal(POOL, NAME, "dear"), (POOL, AnswerProposal(NAME, False, "dear")), SIGNED),
    (
        d.Delegate(POOL, BOB, ("vote", "submit"), 7),
        (POOL, c.GiveDelegation(KEY, (Scope.VOTE, Scope.SUBMIT), until_epoch=4, expires_ms=7)),
        SIGNED,
    ),
    (d.RevokeDelegation(POOL, NAME), (POOL, c.RevokeDelegation(NAME)), SIGNED),
    (cd.ActFor(NAME, d.CancelTask(POOL, TASK, "x")), (POOL, c.ActFor(NAME, c.CancelFor(TASK, "x"))), SIGNED),
    (cd.ActFor(NAME, d.Vote(POOL, NAME, "yes")), (POOL, c.ActFor(NAME, c.CastVote(NAME, 0))), SIGNED),
]


@pytest.mark.parametrize(("decision", "asked", "value"), WAYS, ids=lambda item: type(item).__name__)
async def test_each_decision_is_one_command(decision: d.Decision, asked: Any, value: Any) -> None:
    port = Port()
    assert await StandardExecutor(coordination=port).execute(decision) == Executed(decision, value)
    assert port.asked == [asked]


async def test_offers_carry_their_terms_and_name_the_parties() -> None:
    port = Port()
    executor = StandardExecutor(coordination=port)
    await executor.execute(d.Propose(POOL, b"", {"price": 1.5}, (BOB,)))
    await executor.execute(d.Propose(POOL, NAME, {"price": 2}))
    (_, opened), (_, counter) = port.asked
    assert isinstance(opened, OpenNegotiation)
    assert (decode_value(opened.terms), opened.parties, opened.until_epoch) == ({"price": 1.5}, (KEY,), 4)
    assert isinstance(counter, CounterProposal)
    assert (decode_value(counter.terms), counter.session) == ({"price": 2}, NAME)


async def test_a_task_for_somebody_else_goes_under_the_delegation() -> None:
    port = Port()
    await StandardExecutor(coordination=port).execute(cd.ActFor(NAME, d.SubmitTask(POOL, Task("x", key="k"))))
    ((_, act),) = port.asked
    assert (act.delegation, act.what.spec.key) == (NAME, b"k")


def test_every_decision_about_coordination_was_tried() -> None:
    assert {type(way[0]) for way in WAYS} | {d.Propose} == DECISIONS


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (d.Vote(POOL, NAME, "maybe"), "no option 'maybe'; it has yes, no"),
        (d.Delegate(POOL, BOB, ("rule",), 7), "answer, cancel, submit, vote"),
        (d.Delegate(POOL, AgentId("c" * 64), ("vote",), 7), "nobody"),
        (d.Propose(POOL, b"", {"x": object()}), "cannot be encoded"),
    ],
    ids=lambda item: type(item).__name__,
)
async def test_what_makes_no_sense_is_refused_with_what_would(decision: d.Decision, said: str) -> None:
    port = Port()
    result = await StandardExecutor(coordination=port).execute(decision)
    assert isinstance(result, Refused)
    assert said in str(result.error)
    assert port.asked == []


async def test_what_may_not_be_done_may_not_be_done_in_anothers_name_either() -> None:
    port = Port()
    policy = SafetyPolicy(ResourceLimits(cpu=1), ActionPolicy(denied=[d.CancelTask]))
    executor = StandardExecutor(coordination=port, safety=policy)
    denied = await executor.execute(cd.ActFor(NAME, d.CancelTask(POOL, TASK)))
    large = await executor.execute(cd.ActFor(NAME, d.SubmitTask(POOL, Task("x", constraints={"cpu": 64}))))
    assert isinstance(denied, Refused)
    assert isinstance(denied.error, NotAuthorised)
    assert isinstance(large, Refused)
    assert isinstance(large.error, LimitExceeded)
    assert port.asked == []


def test_only_what_can_be_delegated_is_done_in_anothers_name() -> None:
    with pytest.raises(LocalError, match="cannot be done in another's name"):
        cd.ActFor(NAME, d.LeavePool(POOL))  # type: ignore[arg-type]
