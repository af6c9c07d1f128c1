"""Real nodes: who asks to be let into a pool waits, and is let in or refused by those who may, in each kind of pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import POLICY, linked, real_node, until, who

from converge_p2p import AdmissionKind, Node
from converge_p2p.core.errors import Conflict, LocalError, NotAuthorised, NotFound
from converge_p2p.core.model.join_request import AnswerKind, JoinAnswer, JoinAsk, JoinState
from converge_p2p.core.types import OperationId
from converge_p2p.core.view.motions import Outcome
from converge_p2p.net import open_network, peer_id_of
from converge_p2p.node.switchboard import ASK

pytestmark = pytest.mark.network


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with trio.fail_after(90):
        yield


async def admitted(node: Node, pool: Any) -> None:
    await until(lambda: pool.id in node.pools and node.pools[pool.id].is_member, "the newcomer is a member")


async def test_a_newcomer_waits_until_an_elector_lets_it_in_also_over_a_restart_of_both(tmp_path: Path) -> None:
    async with real_node(1, home=tmp_path / "1") as one:
        pool = await one.create_pool("few", admission=AdmissionKind.TOKEN, policy=POLICY)
        listen = (one.addresses[0].split("/p2p/")[0],)
        async with one.observation.watch_events() as events, real_node(2, one, home=tmp_path / "2") as two:
            await linked(one, two)
            asked = await two.joins.asking.ask(pool.id, note="let me in", capabilities=["gpu"], timeout_s=15)
            assert asked.state is JoinState.PENDING
            assert [(each.joiner, each.note) for each in one.joins.requests.all()] == [(two.public_key, "let me in")]
            assert two.public_key not in {member.public_key for member in pool.members()}
            async for event in events:
                if event.kind == "join_asked":
                    assert event.about["agent"] == two.id
                    break
            with pytest.raises(NotFound):
                await one.joins.requests.admit(pool, one.public_key)
    async with real_node(1, home=tmp_path / "1", listen=listen) as one, real_node(2, one, home=tmp_path / "2") as two:
        pool = one.pools[pool.id]
        (waiting,) = one.joins.requests.all(pool.id)
        let_in = await one.joins.requests.admit(pool, waiting.joiner)
        assert let_in.state is JoinState.ADMITTED
        await admitted(two, pool)
        assert two.pools[pool.id].own_capabilities == ("gpu",)
        with pytest.raises(Conflict):
            await two.joins.asking.ask(pool.id, timeout_s=15)
        with pytest.raises(Conflict, match="let the newcomer in before"):
            await one.joins.requests.refuse(pool, waiting.joiner)


async def test_who_waits_is_known_before_anybody_can_ask_so_that_nothing_decided_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[int] = []

    def opening(config: Any, *, seed: bytes, handler: Any) -> Any:
        known.append(len(handler.visitors[ASK].__self__.all()))
        return open_network(config, seed=seed, handler=handler)

    monkeypatch.setattr("converge_p2p.node.main.open_network", opening)
    async with real_node(1, home=tmp_path) as one:
        pool = await one.create_pool("few", admission=AdmissionKind.TOKEN, policy=POLICY)
        await one.joins.requests.on_ask(peer_id_of(who(9).public_key), JoinAsk(pool.id, "").to_bytes())
        await one.joins.requests.admit(pool, who(9).public_key)
    async with real_node(1, home=tmp_path) as one:
        assert one.joins.requests.all()[0].state is JoinState.ADMITTED
    assert known == [0, 1]


async def test_where_electors_vouch_each_of_them_is_asked_and_enough_have_to_say_yes() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one, two) as three:
        for first, second in ((one, two), (one, three), (two, three)):
            await linked(first, second)
        pool = await one.create_pool(
            "vouched", admission=AdmissionKind.VOUCHED, admission_need=2, electors=[one.id, two.id], policy=POLICY
        )
        other = await two.join_pool(pool.id, timeout_s=15)
        asked = await three.joins.asking.ask(pool.id, timeout_s=15)
        assert asked.state is JoinState.PENDING
        await one.joins.requests.admit(pool, three.public_key)
        await until(lambda: three.joins.asking.all()[0].given, "the first vouch is heard")
        assert not three.pools[pool.id].is_member
        await two.joins.requests.admit(other, three.public_key)
        await admitted(three, pool)
        await until(lambda: three.joins.asking.all()[0].state is JoinState.ADMITTED, "it knows")


async def test_where_a_list_decides_the_electors_vote_and_a_refusal_ends_the_waiting() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one, two) as three:
        for first, second in ((one, two), (one, three), (two, three)):
            await linked(first, second)
        pool = await one.create_pool(
            "listed", admission=AdmissionKind.WHITELIST, electors=[one.id, two.id], policy=POLICY
        )
        other = await two.join_pool(pool.id, timeout_s=15)
        await three.joins.asking.ask(pool.id, timeout_s=15)
        held = await one.joins.requests.admit(pool, three.public_key)
        assert held.state is JoinState.PENDING
        await until(other.council.motions, "the motion arrives")
        # the other elector supports the same motion, by admitting the newcomer
        assert (await two.joins.requests.admit(other, three.public_key)).motion == held.motion
        await admitted(three, pool)
        assert pool.council.epoch == 1

        closed = await one.create_pool("closed", admission=AdmissionKind.TOKEN, policy=POLICY)
        await three.joins.asking.ask(closed.id, timeout_s=15)
        await one.joins.requests.refuse(closed, three.public_key, "no room")
        await until(lambda: three.joins.asking.all()[-1].state is JoinState.REFUSED, "the refusal is heard")
        assert list(three.joins.asking.all()[-1].refused.values()) == ["no room"]
        await until(lambda: closed.id not in three.pools, "a refused pool is followed no more")


async def test_an_invitation_with_approval_leads_to_the_queue_and_asking_needs_a_say_to_be_decided() -> None:
    async with real_node(1) as one, real_node(2) as two:
        pool = await one.create_pool("few", admission=AdmissionKind.TOKEN, policy=POLICY)
        line = await one.invitations.write(pool=pool, approval=True)
        accepted = await two.invitations.accept(line, timeout_s=15)
        assert (accepted.pool, accepted.pending) == (None, True)
        assert one.joins.requests.all()[0].note.endswith(one.id)
        with pytest.raises(NotAuthorised):
            two.joins.requests._check_power(two.pools[pool.id])
        await two.joins.asking.withdraw(pool.id)
        assert pool.id not in two.pools
        with pytest.raises(NotFound):
            await two.joins.asking.withdraw(pool.id)
        # what was asked stays with the elector, and an answer still counts when it is asked again
        await one.joins.requests.admit(pool, two.public_key)
        assert (await two.joins.asking.ask(pool.id, timeout_s=15)).state is JoinState.ADMITTED
        assert two.pools[pool.id].is_member


async def test_where_invitations_are_needed_the_electors_can_vote_before_one_is_given() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one, two) as three:
        for first, second in ((one, two), (one, three), (two, three)):
            await linked(first, second)
        pool = await one.create_pool("few", admission=AdmissionKind.TOKEN, electors=[one.id, two.id], policy=POLICY)
        other = await two.join_pool(pool.id, timeout_s=15)
        await three.joins.asking.ask(pool.id, timeout_s=15)
        held = await one.joins.requests.admit(pool, three.public_key, "she is fine", vote=True)
        assert (held.state, held.proof, bool(held.motion)) == (JoinState.PENDING, b"", True)
        assert (await one.joins.requests.admit(pool, three.public_key, vote=True)).motion == held.motion
        with pytest.raises(Conflict, match="are voting"):
            await one.joins.requests.admit(pool, three.public_key)
        await until(other.council.motions, "the motion arrives")
        (view,) = other.council.motions()
        assert view.motion.reason == f"let agent {three.id} in: she is fine"
        # asked again before it is carried, nobody gives anything
        three.joins.asking._cases[pool.id].nudged.set()
        assert not three.pools[pool.id].is_member
        await other.council.say(OperationId(held.motion))
        await admitted(three, pool)
        assert pool.spec.admission is AdmissionKind.TOKEN
        await until(lambda: three.joins.asking.all()[0].state is JoinState.ADMITTED, "it knows")

        vouched = await one.create_pool("vouched", admission=AdmissionKind.VOUCHED, admission_need=1, policy=POLICY)
        await three.joins.asking.ask(vouched.id, timeout_s=15)
        with pytest.raises(LocalError, match="a vote already"):
            await one.joins.requests.admit(vouched, three.public_key, vote=True)


async def test_a_vote_that_was_carried_counts_for_every_elector_but_not_for_ever_and_a_no_is_one() -> None:
    async with real_node(1) as one:
        pool = await one.create_pool("few", admission=AdmissionKind.TOKEN, policy=POLICY)
        requests = one.joins.requests

        async def ask(number: int) -> AnswerKind:
            asked = await requests.on_ask(peer_id_of(who(number).public_key), JoinAsk(pool.id, "").to_bytes())
            return JoinAnswer.from_bytes(asked).kind

        async def carried(epoch: int) -> None:
            await until(lambda: pool.council.epoch == epoch, f"epoch {epoch}")

        # moved by a member with the same words, as by the node of another elector
        for number in (7, 8):
            assert await ask(number) is AnswerKind.PENDING
        await pool.council.move(terms=pool.spec, reason=f"let agent {who(7).id} in")
        await carried(1)
        assert [await ask(7), await ask(8)] == [AnswerKind.GIVEN, AnswerKind.PENDING]
        # neither the beginning of an id nor other words do
        await pool.council.move(terms=pool.spec, reason=f"let agent {who(8).id[:12]} in")
        await carried(2)
        await pool.council.move(terms=pool.spec, reason=f"let agent {who(8).id} into the garden")
        await carried(3)
        assert await ask(8) is AnswerKind.PENDING
        await requests.admit(pool, who(8).public_key, vote=True)
        await carried(4)
        for epoch in (5, 6):
            await pool.council.move(terms=pool.spec, reason="something else")
            await carried(epoch)
        assert await ask(8) is AnswerKind.PENDING, "the electors changed the pool twice since"
        assert [each.motion for each in requests.all(pool.id) if each.joiner == who(8).public_key] == [b""]


async def test_a_vote_that_is_lost_refuses_the_newcomer() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        pool = await one.create_pool("few", admission=AdmissionKind.TOKEN, electors=[one.id, two.id], policy=POLICY)
        other = await two.join_pool(pool.id, timeout_s=15)
        newcomer = who(9)
        payload = JoinAsk(pool.id, "").to_bytes()
        await one.joins.requests.on_ask(peer_id_of(newcomer.public_key), payload)
        held = await one.joins.requests.admit(pool, newcomer.public_key, vote=True)
        await until(other.council.motions, "the motion arrives")
        await other.council.say(OperationId(held.motion), 0)
        motion = OperationId(held.motion)
        await until(lambda: pool.council.motion(motion).outcome is Outcome.REJECTED, "the no arrives")
        answer = JoinAnswer.from_bytes(await one.joins.requests.on_ask(peer_id_of(newcomer.public_key), payload))
        assert (answer.kind, answer.reason) == (AnswerKind.REFUSED, "the electors turned it down")
