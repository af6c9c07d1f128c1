"""Real nodes: whoever has an invitation or enough vouches is let in, nobody else; and a task finds its home pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import POLICY, linked, real_node, until, who

from converge_p2p import AdmissionKind, Identity, Task, TaskView, Topic
from converge_p2p.core.errors import CodecError, LocalError, NotAuthorised
from converge_p2p.core.model.pool import GovernanceKind
from converge_p2p.node.home_pool import HOME

pytestmark = pytest.mark.network


async def test_an_invitation_lets_in_whoever_holds_it_and_a_named_one_only_its_agent() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three:
        await linked(one, two)
        await linked(one, three)
        pool = await one.create_pool("private", admission=AdmissionKind.TOKEN, policy=POLICY)
        with pytest.raises(NotAuthorised):
            await two.join_pool(pool.id, timeout_s=15)
        named, open_ = pool.invite(joiner=str(two.id), role="tester"), pool.invite()
        with pytest.raises(LocalError, match="another agent"):
            await three.join_pool(pool.id, invitation=named, timeout_s=15)
        assert (await two.join_pool(pool.id, invitation=named, timeout_s=15)).is_member
        joined = await three.join_pool(pool.id, invitation=f"  {open_}\n", timeout_s=15)
        assert joined.is_member
        with pytest.raises(NotAuthorised, match="elector or the creator"):
            joined.invite()


async def test_an_invitation_that_is_not_whole_or_not_for_this_pool_is_refused_before_anything_is_sent() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        pool = await one.create_pool("private", admission=AdmissionKind.TOKEN, policy=POLICY)
        other = await one.create_pool("other", admission=AdmissionKind.TOKEN, policy=POLICY)
        text = pool.invite()
        for wrong in (text[:-9], "?", "", other.invite(), pool.invite(valid_s=0)):
            with pytest.raises(LocalError):
                await two.join_pool(pool.id, invitation=wrong, timeout_s=15)
        with pytest.raises(LocalError, match="not several"):
            await two.join_pool(pool.id, invitation=text, proof=b"x", timeout_s=15)
        assert two.pools == {}
        public = await one.create_pool("public", policy=POLICY)
        with pytest.raises(LocalError, match="asks for no invitations"):
            public.invite()
        with pytest.raises(LocalError, match="asks for no vouches"):
            public.vouch(str(two.id))


async def test_as_many_electors_as_the_pool_says_have_to_vouch() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three:
        for first, second in ((one, two), (one, three), (two, three)):
            await linked(first, second)
        pool = await one.create_pool(
            "vouched", admission=AdmissionKind.VOUCHED, admission_need=2, electors=[one.id, two.id], policy=POLICY
        )
        other = await two.join_pool(pool.id, timeout_s=15)
        words = [pool.vouch(str(three.id)), other.vouch(str(three.id))]
        with pytest.raises(NotAuthorised):
            await three.join_pool(pool.id, vouches=words[:1], timeout_s=15)
        with pytest.raises(LocalError, match="not for this agent"):
            await three.join_pool(pool.id, vouches=[pool.vouch(str(two.id)), words[1]], timeout_s=15)
        joined = await three.join_pool(pool.id, vouches=words, timeout_s=15)
        assert joined.is_member
        with pytest.raises(NotAuthorised, match="only electors"):
            joined.vouch(str(two.id))


async def test_terms_of_admission_that_contradict_each_other_found_nothing() -> None:
    async with real_node(1) as one:
        for terms in ({"admission_need": 1}, {"admission": AdmissionKind.VOUCHED}, {"admission_custom": "nobody"}):
            with pytest.raises(LocalError):
                await one.create_pool("wrong", **terms)  # type: ignore[arg-type]
        assert one.pools == {}


# ---------------------------------------------------------------- home pools


async def test_a_task_without_a_pool_goes_to_the_home_pool_and_others_on_its_topic_do_it() -> None:
    topic = Topic("acme.tests")

    async def work(task: TaskView, _context: Any) -> int:
        return int(task.inputs["n"]) + 1

    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        async with two.watch_pools() as heard:
            with trio.fail_after(30):
                handle = await one.submit(Task("add", {"n": 1}, topic=topic.to_bytes()))
                async for announcement in heard:
                    if announcement.name == HOME:
                        break
                assert announcement.creator == one.id
                pool = await two.join_pool(announcement.id, timeout_s=15)
                pool.add_handler("add", work)
                assert (await handle.result()).value == 2
        assert pool.spec.governance is GovernanceKind.DICTATORIAL
        assert pool.spec.electors == (one.public_key,)


async def test_there_is_one_home_pool_however_often_and_also_after_a_restart(tmp_path: Path) -> None:
    async with real_node(1, home=tmp_path) as one:
        handles = []

        async def submit() -> None:
            handles.append(await one.submit(Task("add", key="same")))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(submit)
        # a pool of that name in which others vote, or which another founded, is no home
        await one.create_pool(HOME, electors=[f"key:{who(9).public_key.hex()}", str(one.id)])
        home = await one.home_pool()
        assert len({handle.id for handle in handles}) == 1
    async with real_node(1, home=tmp_path) as one:
        assert (await one.home_pool()).id == home.id
        assert (await one.submit(Task("add", key="same"))).id == handles[0].id
        assert len(one.pools) == 2


async def test_a_home_pool_founded_with_a_whitelist_lets_nobody_else_in() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three:
        await linked(one, two)
        await linked(one, three)
        home = await one.home_pool(admission=AdmissionKind.WHITELIST, whitelist=[str(two.id)])
        handle = await one.submit(Task("add"))
        assert handle.pool is home
        assert (await two.join_pool(home.id, timeout_s=15)).is_member
        with pytest.raises(NotAuthorised):
            await three.join_pool(home.id, timeout_s=15)


async def test_a_node_in_many_pools_stops_without_an_error() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        for number in range(6):
            await one.create_pool(f"pool {number}")


async def test_a_topic_of_another_form_submits_nothing() -> None:
    async with real_node(1) as one:
        with pytest.raises(CodecError):
            await one.submit(Task("add", topic=b"no topic"))
        assert one.pools == {}


async def test_a_pool_is_heard_of_on_a_topic_alone_and_a_false_announcement_is_not_taken() -> None:
    from converge_p2p.core.model.message import Message

    topic = Topic("acme.tests")
    stranger = Identity.generate()
    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        await two.join(topic)
        for payload in ({"pool": bytes(32), "genesis": b"x"}, {"pool": b"", "genesis": b""}, "x", None):
            message = Message.create(stranger.id, {"pool_announcement": payload}, topics=(topic,))
            two._deliver(message, private=False)
        assert two.known_pools() == []
        home = await one.home_pool()
        await until(lambda: [pool.id for pool in two.known_pools()] == [home.id], "the pool is announced")
        genesis = two.known_pools()[0].genesis
        two._switchboard.directory.forget(home.id)
        said = {"pool_announcement": {"pool": home.id, "genesis": genesis}}
        heard = Message.create(stranger.id, said, topics=(topic,))
        two._deliver(heard, private=True)
        assert two.known_pools() == [], "what is said in private is not announced to everybody"
        two._deliver(heard, private=False)
        assert [pool.id for pool in two.known_pools()] == [home.id]
