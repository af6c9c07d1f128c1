"""Agents on real nodes: their decisions are answered, what they coordinate holds, and nothing they hold is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from node_library_kit import LOOPBACK, POLICY, QUICK, linked, real_node, until, who

from converge_p2p import Agent, Capability, Message, Node, PoolHandle, Task, TaskView
from converge_p2p.core.model import coordination_decision as cd, decision as d
from converge_p2p.core.model.decision import ClaimTask, Decision, ReportTask
from converge_p2p.core.model.query import DiscoveryQuery
from converge_p2p.core.model.task import TaskState
from converge_p2p.node.agents import AgentParts
from converge_p2p.runtime.events import CoordinationEvent, DecisionOutcome, Matter, OutcomeKind
from converge_p2p.runtime.inbox import Inbox, WhenFull
from converge_p2p.runtime.loop import RuntimeConfig
from converge_p2p.runtime.replay import replay
from converge_p2p.runtime.replay_log import read_turns

pytestmark = pytest.mark.network

ALL = DiscoveryQuery(limit=100)
Script = Callable[["Scripted", Sequence[Message], Sequence[TaskView]], Iterable[Decision] | None]


async def soon(condition: Callable[[], Any]) -> None:
    """Wait for something that happens in another node."""
    await until(condition, "what the lines above began")


class Scripted(Agent):
    """Does what the test says, and keeps what it was told."""

    def __init__(self, script: Script = lambda *_: None, **settings: Any) -> None:
        super().__init__(**settings)
        self.script = script
        self.told: list[DecisionOutcome] = []
        self.matters: list[CoordinationEvent] = []
        self.tasks_seen: list[TaskView] = []
        self.stopped_in: list[str] = []

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
        self.told += self.outcomes
        self.matters += [event for event in self.events if isinstance(event, CoordinationEvent)]
        self.tasks_seen += tasks
        return list(self.script(self, messages, tasks) or ())

    def kinds(self, decision: type[Decision]) -> list[OutcomeKind]:
        return [each.kind for each in self.told if type(each.decision) is decision]


def claim_and_report(agent: Scripted, _messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
    own = [event.task for event in agent.outcomes if event.kind is OutcomeKind.GRANTED and event.task is not None]
    claims: list[Decision] = [ClaimTask(task.pool_id, task.id) for task in tasks if task.claimable]
    return claims + [ReportTask(task.pool_id, task.id, {"n": task.inputs["n"] + 1}) for task in own]


async def joined(stack: AsyncExitStack, count: int, **terms: Any) -> tuple[list[Node], list[PoolHandle]]:
    """Nodes that are all members of a pool of the first."""
    first = await stack.enter_async_context(real_node(1))
    nodes = [first] + [await stack.enter_async_context(real_node(number, first)) for number in range(2, count + 1)]
    pool = await first.create_pool("agents", policy=POLICY, **terms)
    pools = [pool]
    for node in nodes[1:]:
        await linked(first, node)
        pools.append(await node.join_pool(pool.id, timeout_s=10))
    with trio.fail_after(10):
        await soon(lambda: all(len(each.members()) == count for each in pools))
    return nodes, pools


async def test_a_claim_and_a_report_are_answered_and_the_submitter_hears_the_end() -> None:
    async with AsyncExitStack() as stack:
        (one, two), (pool, _) = await joined(stack, 2)
        asker = Scripted(lambda agent, *_: [] if agent.told or agent.asked else agent.ask())  # type: ignore[attr-defined]
        asker.asked = False  # type: ignore[attr-defined]

        def ask() -> list[Decision]:
            asker.asked = True  # type: ignore[attr-defined]
            return [d.SubmitTask(pool.id, Task("count", {"n": 1}))]

        asker.ask = ask  # type: ignore[attr-defined]
        worker = Scripted(claim_and_report)
        await two.host(worker)
        await one.host(asker)
        with trio.fail_after(20):
            await soon(lambda: OutcomeKind.SETTLED in asker.kinds(d.SubmitTask))
            await soon(lambda: OutcomeKind.SETTLED in worker.kinds(ReportTask))
        end = next(each for each in asker.told if each.kind is OutcomeKind.SETTLED)
        assert end.task is not None
        assert (end.value, end.task.result) == ("completed", {"n": 2})
        granted = next(each for each in worker.told if each.kind is OutcomeKind.GRANTED)
        assert granted.token == (0, 0)
        assert OutcomeKind.SETTLED not in worker.kinds(ClaimTask), "who reports is told once how it ended"


async def test_of_two_agents_on_one_node_one_works_on_a_task_and_the_other_hears_why_not() -> None:
    async with real_node(1) as node:
        pool = await node.create_pool("agents", policy=POLICY)
        agents = [Scripted(claim_and_report) for _ in range(2)]
        runtimes = [await node.host(agent) for agent in agents]
        handle = await pool.submit(Task("count", {"n": 1}))
        with trio.fail_after(20):
            assert (await handle.result()).value == {"n": 2}
            await soon(lambda: any(OutcomeKind.SETTLED in agent.kinds(ReportTask) for agent in agents))
        assert sorted(len(agent.kinds(ReportTask)) > 0 for agent in agents) == [False, True]
        assert [view.name for view in node.agents()] == ["Scripted", "Scripted-2"]
        assert {view.state for view in node.agents()} == {"idle"}
        assert sum(runtime.health().claims for runtime in runtimes) == 0


async def test_an_auction_is_bid_revealed_and_won_by_the_cheaper_agent() -> None:
    def bidder(amount: int) -> Script:
        def script(agent: Scripted, *_: Any) -> list[Decision]:
            auctions = [event for event in agent.events if getattr(event, "matter", None) is Matter.AUCTION]
            bidding = [event for event in auctions if event.view.phase.value == "bidding"]  # type: ignore[union-attr]
            known = {each.decision.task_id for each in agent.told if isinstance(each.decision, d.SubmitBid)}
            return [
                d.SubmitBid(event.pool_id, event.view.task, amount)  # type: ignore[union-attr]
                for event in bidding
                if event.view.task not in known  # type: ignore[union-attr]
            ]

        return script

    def auctioneer(agent: Scripted, *_: Any) -> list[Decision]:
        decided: list[Decision] = []
        for event in agent.events:
            if isinstance(event, CoordinationEvent) and event.matter is Matter.AUCTION:
                view: Any = event.view
                if view.phase.value == "bidding" and len(view.commits) == 2:
                    decided.append(cd.CloseAuction(event.pool_id, view.task))
                if view.phase.value == "revealing" and len(view.reveals) == 2:
                    decided.append(cd.SettleAuction(event.pool_id, view.task))
        return decided

    async with AsyncExitStack() as stack:
        (one, two, three), (pool, *_) = await joined(stack, 3)
        seller, dear, cheap = Scripted(auctioneer), Scripted(bidder(40)), Scripted(bidder(30))
        runtime = await one.host(seller)
        await two.host(dear)
        await three.host(cheap)
        task = await pool.submit(Task("count", {"n": 1}))
        with trio.fail_after(20):
            opened = await runtime.act(cd.OpenAuction(pool.id, task.id))
            assert (await opened.wait()).value == three.public_key
            await soon(lambda: bool(cheap.kinds(d.SubmitBid)) and OutcomeKind.GRANTED in cheap.kinds(d.SubmitBid))
            await soon(lambda: OutcomeKind.LOST in dear.kinds(d.SubmitBid))
        won = next(each for each in cheap.told if each.kind is OutcomeKind.GRANTED)
        lost = next(each for each in dear.told if each.kind is OutcomeKind.LOST)
        assert won.value == 40, "the second price is paid"
        assert "won" in lost.reason


async def test_a_sealed_bid_is_opened_by_a_node_that_was_restarted_after_it_bid(tmp_path: Path) -> None:
    async with real_node(1) as one:
        pool = await one.create_pool("agents", policy=POLICY)
        task = await pool.submit(Task("count", {"n": 1}))
        seller = await one.host(Scripted())
        auction = await seller.act(cd.OpenAuction(pool.id, task.id))
        async with real_node(2, one, home=tmp_path) as two:
            await linked(one, two)
            await two.join_pool(pool.id, timeout_s=10)
            bidder = await two.host(Scripted())
            await soon(lambda: two.pools[pool.id].council.coordination.auctions.of_task(task.id))
            bid = await bidder.act(d.SubmitBid(pool.id, task.id, 12))
            assert bid.outcome is not None
            assert bid.outcome.kind is OutcomeKind.DONE
            again = await bidder.act(d.SubmitBid(pool.id, task.id, 11))
            assert "cannot be changed" in (await again.wait()).reason

        def seen() -> Any:
            view = pool.council.coordination.auctions.of_task(task.id)
            assert view is not None
            return view

        await soon(lambda: len(seen().commits) == 1)
        await seller.act(cd.CloseAuction(pool.id, task.id))
        async with real_node(2, one, home=tmp_path) as two:
            await linked(one, two)
            await soon(lambda: seen().reveals == {two.public_key: 12})
            await seller.act(cd.SettleAuction(pool.id, task.id))
            assert (await auction.wait()).value == two.public_key
            await soon(lambda: not two.bids.concerns(pool.id, task.id))


async def test_agents_vote_negotiate_and_hear_what_came_of_it() -> None:
    def voter(agent: Scripted, *_: Any) -> list[Decision]:
        decided: list[Decision] = []
        for event in agent.events:
            if not isinstance(event, CoordinationEvent):
                continue
            if event.matter is Matter.POLL and event.view.phase.value == "open":  # type: ignore[union-attr]
                decided.append(d.Vote(event.pool_id, event.id, event.content["options"][0]))
            if event.matter is Matter.NEGOTIATION:
                view: Any = event.view
                if view.agreement is None and view.proposal(view.head).author != who(2).public_key:
                    price = event.content[view.head]["price"]
                    decided.append(
                        d.AcceptProposal(event.pool_id, view.head)
                        if price <= 8
                        else d.Propose(event.pool_id, event.id, {"price": price - 2})
                    )
        return decided

    async with AsyncExitStack() as stack:
        (one, two), (pool, _) = await joined(stack, 2)
        asker, other = Scripted(), Scripted(voter)
        runtime = await one.host(asker)
        await two.host(other)
        with trio.fail_after(20):
            poll = await runtime.act(cd.OpenPoll(pool.id, "Ship it?", ("yes", "no")))
            assert poll.outcome is not None
            question = poll.outcome.value
            await (await runtime.act(d.Vote(pool.id, question, "yes"))).wait()
            assert (await poll.wait()).value == "yes"
            await soon(lambda: OutcomeKind.SETTLED in other.kinds(d.Vote))
            offer = await runtime.act(d.Propose(pool.id, b"", {"price": 10}, (two.id,)))
            await soon(lambda: any(OutcomeKind.DONE is kind for kind in other.kinds(d.Propose)))
            counter = next(each.value for each in other.told if isinstance(each.decision, d.Propose))
            await soon(lambda: any(getattr(event.view, "head", b"") == counter for event in asker.matters))
            accepted = await runtime.act(d.AcceptProposal(pool.id, counter))
            assert (await accepted.wait()).value == counter
            assert (await offer.wait()).value == counter
            await soon(lambda: OutcomeKind.SETTLED in other.kinds(d.Propose))
        bad = await runtime.act(d.Vote(pool.id, question, "maybe"))
        assert (await bad.wait()).kind is OutcomeKind.REFUSED
        assert "no option 'maybe'" in (await bad.wait()).reason


async def test_a_delegate_may_do_what_it_was_given_and_no_more_and_nothing_once_it_is_revoked() -> None:
    async with AsyncExitStack() as stack:
        (one, two), (pool, other_pool) = await joined(stack, 2)
        ann, dan = Scripted(), Scripted()
        anns, dans = await one.host(ann), await two.host(dan)
        far = 10**15
        with trio.fail_after(20):
            given = await (await anns.act(d.Delegate(pool.id, two.id, ("submit", "vote"), far))).wait()
            assert given.kind is OutcomeKind.DONE
            await soon(lambda: any(event.matter is Matter.DELEGATION for event in dan.matters))
            act = cd.ActFor(given.value, d.SubmitTask(pool.id, Task("count", {"n": 1}, key="for-ann")))
            assert (await (await dans.act(act)).wait()).kind is OutcomeKind.DONE
            await soon(lambda: any(True for _ in pool.open_tasks()))
            (view,) = pool.open_tasks()
            assert view.submitter == one.public_key, "it counts as Ann's, on every node"
            # out of scope
            cancel = await (await dans.act(cd.ActFor(given.value, d.CancelTask(pool.id, view.id)))).wait()
            assert (cancel.kind, "does not cover" in cancel.reason) == (OutcomeKind.REFUSED, True)
            # another's delegation
            mine = await (await anns.act(cd.ActFor(given.value, d.CancelTask(pool.id, view.id)))).wait()
            assert "for another agent" in mine.reason
            # revoked
            poll = await anns.act(cd.OpenPoll(pool.id, "Ship it?", ("yes", "no")))
            assert poll.outcome is not None
            question = poll.outcome.value
            await soon(lambda: other_pool.council.content(question) is not None)
            assert (await (await anns.act(d.RevokeDelegation(pool.id, given.value))).wait()).kind is OutcomeKind.DONE
            await soon(
                lambda: any(event.view.revoked_at is not None for event in dan.matters if event.id == given.value)
            )  # type: ignore[union-attr]
            vote = await (await dans.act(cd.ActFor(given.value, d.Vote(pool.id, question, "yes")))).wait()
            assert (vote.kind, "revoked" in vote.reason) == (OutcomeKind.REFUSED, True)
            seen = pool.council.coordination.polls.view(question)
            assert seen is not None
            assert dict(seen.votes) == {}
            unknown = await (await anns.act(d.Delegate(pool.id, two.id, ("rule",), far))).wait()
            assert "cancel, submit" in unknown.reason or "answer, cancel" in unknown.reason


async def test_an_agent_that_stops_hands_its_claims_back_and_is_not_found_any_more() -> None:
    def hold(agent: Scripted, _: Any, tasks: Sequence[TaskView]) -> list[Decision]:
        return [ClaimTask(task.pool_id, task.id) for task in tasks if task.claimable]

    async with AsyncExitStack() as stack:
        (one, two), (pool, _) = await joined(stack, 2)
        async with real_node(9, one) as three:
            await linked(one, three)
            await three.join_pool(pool.id, timeout_s=10)
            runtime = await three.host(Scripted(hold, capabilities=[Capability("hold")]))
            task = await pool.submit(Task("count", {"n": 1}))
            with trio.fail_after(20):
                await soon(lambda: runtime.claims is not None and runtime.claims.held())
                await soon(lambda: any(each.agent_id == three.id for each in one.discovery.find(ALL)))
        with trio.fail_after(20):
            await soon(lambda: pool.task(task.id).state is TaskState.PENDING)
            await soon(lambda: not any(each.agent_id == three.id for each in one.discovery.find(ALL)))
        worker = Scripted(claim_and_report)
        await two.host(worker)
        with trio.fail_after(20):
            assert (await task.result()).value == {"n": 2}
        assert pool.task(task.id).attempts <= 2


@pytest.mark.parametrize("resume", [True, False])
async def test_after_a_restart_a_claim_goes_on_in_its_round_or_is_handed_back(tmp_path: Path, resume: bool) -> None:
    def hold(agent: Scripted, _: Any, tasks: Sequence[TaskView]) -> list[Decision]:
        return [ClaimTask(task.pool_id, task.id) for task in tasks if task.claimable]

    def home() -> Node:
        return Node(home=tmp_path, identity=who(1), listen=LOOPBACK, config=QUICK)

    async with home() as node:
        pool = await node.create_pool("agents", policy=POLICY)
        runtime = await node.host(Scripted(hold))
        handle = await pool.submit(Task("count", {"n": 1}, constraints={"claim_ttl_sec": 60}))
        with trio.fail_after(20):
            await soon(lambda: pool.task(handle.id).assigned_to == node.public_key)
        # as after kill -9: nothing is handed back
        assert runtime.claims is not None
        for claim in runtime.claims.held():
            runtime.claims.gone(claim.task)
    async with home() as node:
        pool = node.pools[pool.id]
        assert pool.task(handle.id).state is TaskState.ASSIGNED
        agent = Scripted(claim_and_report if resume else lambda *_: None)
        await node.host(agent, config=RuntimeConfig(resume_claims=resume))
        with trio.fail_after(20):
            if resume:
                view = await pool.settled(handle.id)
                assert view.result == {"n": 2}
                assert view.attempts == 1, "the round from before the restart is the one that was settled"
                assert agent.told[0].kind is OutcomeKind.GRANTED
            else:
                await soon(lambda: pool.task(handle.id).state is TaskState.PENDING)
                assert not agent.told


class Stuck(Agent):
    """Takes a message and never gets done with it."""

    def __init__(self) -> None:
        super().__init__(name="reader")
        self.began = trio.Event()

    async def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        if messages:
            self.began.set()
            await trio.sleep_forever()
        return []


class Reader(Agent):
    """Keeps what it reads."""

    def __init__(self) -> None:
        super().__init__(name="reader")
        self.read: list[Any] = []

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        self.read += [message.payload for message in messages]
        return []


async def test_a_message_that_was_acknowledged_reaches_a_durable_inbox_although_the_node_ends(tmp_path: Path) -> None:
    def home(sender: Node) -> Any:
        return real_node(2, sender, home=tmp_path)

    async with real_node(1) as sender:
        async with home(sender) as node:
            await linked(sender, node)
            stuck = Stuck()
            await node.host(stuck, parts=AgentParts(durable_inbox=True))
            with trio.fail_after(20):
                for text in ("first", "second"):
                    await sender.deliver(Message.create(sender.id, text, recipient=node.id))
                await stuck.began.wait()
        async with home(sender) as node:
            reader = Reader()
            await node.host(reader, parts=AgentParts(durable_inbox=True))
            await soon(lambda: reader.read == ["first", "second"])
        async with home(sender) as node:
            again = Reader()
            await node.host(again, parts=AgentParts(durable_inbox=True))
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert again.read == [], "what was seen is not kept"


async def test_a_sender_waits_while_an_inbox_that_blocks_is_full_and_nothing_is_lost() -> None:
    class Slow(Reader):
        go = trio.Event()

        async def decide(  # type: ignore[override]
            self, messages: Sequence[Message], tasks: Sequence[TaskView]
        ) -> list[Decision]:
            if messages:
                await self.go.wait()
            return super().decide(messages, tasks)

    async with real_node(1) as sender, real_node(2, sender) as node:
        await linked(sender, node)
        slow = Slow()
        inbox = Inbox(2, when_full=WhenFull.BLOCK)
        await node.host(slow, parts=AgentParts(inbox=inbox), config=RuntimeConfig(batch_messages=1))
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:

                async def send_all() -> None:
                    for number in range(6):
                        await sender.deliver(Message.create(sender.id, number, recipient=node.id))

                nursery.start_soon(send_all)
                await soon(lambda: inbox.blocked > 0)
                assert sender.status().counters["sent"] < 6
                slow.go.set()
            await soon(lambda: sorted(slow.read) == list(range(6)))
        assert inbox.dropped == 0


async def test_a_replay_log_of_a_node_is_read_checked_and_replayed() -> None:
    async with real_node(1) as node:
        pool = await node.create_pool("agents", policy=POLICY)
        worker = Scripted(claim_and_report, name="worker")
        await node.host(worker, parts=AgentParts(replay_log=True))
        handle = await pool.submit(Task("count", {"n": 1}))
        with trio.fail_after(20):
            await handle.result()
            await soon(lambda: OutcomeKind.SETTLED in worker.kinds(ReportTask))
            await soon(lambda: len(node.hosting.replay_entries("worker", -1, 100)) >= 3)
        turns = read_turns(node.hosting.replay_entries("worker", -1, 100))
        again = Scripted(claim_and_report)
        assert all(each.same for each in await replay(turns, again))
        assert OutcomeKind.GRANTED in again.kinds(ClaimTask)
