"""A node hands its place, roles and content keys over to a key that it never sees, between real nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from node_library_kit import POLICY, linked, real_node, until, who

from converge_p2p import Task
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import Conflict, LocalError, NetworkError, NotAuthorised, SignatureError, Undecided
from converge_p2p.core.governance import Democratic, Dictatorial
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.oplog.succession import SucceedBody
from converge_p2p.core.types import PoolId
from converge_p2p.node import PoolHandle
from converge_p2p.node.keys import Bequest
from converge_p2p.runtime.attempt import WorkContext

pytestmark = pytest.mark.network


def consent(pool: PoolId, old: int, new: int) -> bytes:
    return who(new).sign("rotation", encode([pool, who(old).public_key, who(new).public_key]))


async def pass_on(pool: PoolHandle, old: int, new: int, timeout_s: float = 40.0) -> Bequest:
    return await pool.keys.pass_on(who(new).public_key, consent(pool.id, old, new), timeout_s=timeout_s)


def double(pool: PoolHandle) -> None:
    @pool.handler("double")
    async def _double(view: TaskView, context: WorkContext) -> object:
        return {"n": 2 * view.inputs["n"]}


async def test_an_elector_is_an_elector_with_its_new_key_and_the_old_one_is_nothing() -> None:
    with trio.fail_after(90):
        async with real_node(1) as one, real_node(2, one) as two, real_node(3, one, two) as three:
            keys = [f"key:{who(number).public_key.hex()}" for number in (1, 2, 3)]
            pool = await one.create_pool("demo", governance=Democratic(), electors=keys, policy=POLICY)
            second, third = [await node.join_pool(pool.id, timeout_s=20) for node in (two, three)]
            for wrong in (b"", consent(pool.id, 3, 4)[:-1] + b"\0", consent(pool.id, 2, 4)):
                with pytest.raises(SignatureError):
                    await third.keys.pass_on(who(4).public_key, wrong, timeout_s=1)
            with pytest.raises(LocalError, match="has a vote already"):
                await third.keys.pass_on(two.public_key, consent(pool.id, 3, 2), timeout_s=1)
            # nobody agreed yet: nothing is handed over, and a second call asks for nothing more
            for _ in range(2):
                with pytest.raises(Undecided, match="have not agreed"):
                    await pass_on(third, 3, 4, 0.2)
            assert (third.is_member, third.keys.lineage()) == (True, {})
            (motion,) = third.council.motions()
            await until(second.council.motions, "the motion is there", 30)
            await second.council.say(motion.motion.id)
            left = await pass_on(third, 3, 4)
            assert left.content_keys == b""
            # asked again, told again
            assert await pass_on(third, 3, 4) == left
            with pytest.raises(Conflict, match="took this node's place"):
                await pass_on(third, 3, 5, 1)
            async with real_node(4, one, two, three) as four:
                four.joins.asking.hold_back([pool.id])
                # the new key is an elector by now, and would begin with a vote as soon as it only followed
                with pytest.raises(Conflict, match="has not handed over its place"):
                    await four.join_pool(pool.id, timeout_s=20)
                fourth = await four.take_place(pool.id, left.word, timeout_s=20)
                # safe to repeat; another's word is not for this key
                assert await four.take_place(pool.id, left.word, timeout_s=20) is fourth
                with pytest.raises(LocalError, match="did not sign"):
                    await four.take_place(pool.id, SucceedBody(who(3).public_key, bytes(64)), timeout_s=1)
                await until(lambda: fourth.is_member and fourth.driver.replica.is_elector, "the new key an elector", 30)
                with pytest.raises(NotAuthorised, match="another key took the place"):
                    await third.submit(Task("double", {"n": 1}, key="late"))
                # two of three decide: without the first elector it takes the new key's votes
                await pool.leave()
                double(second)
                task = await fourth.submit(Task("double", {"n": 4}, key="k"))
                assert (await task.result()).value == {"n": 8}
                voters = {who(number).public_key for number in (2, 4)}
                assert voters <= {
                    key for key in second.driver.replica.log.chains if second.driver.replica.log.held(key)
                }
                assert who(3).public_key not in second.spec.electors


async def test_the_only_member_of_a_private_pool_leaves_everything_to_its_new_key(tmp_path: Path) -> None:
    with trio.fail_after(90):
        async with real_node(1) as one:
            pool = await one.create_pool("quiet", governance=Dictatorial(), policy=POLICY, private=True)
            task = await pool.submit(Task("double", {"n": 21}, key="before"))
            left = await pass_on(pool, 1, 2)
            assert left.content_keys
            # the new node is killed before it hears of the pool, and once more after it took the place
            async with real_node(2, home=tmp_path / "new", bootstrap=()) as two:
                with pytest.raises(NetworkError):
                    await two.take_place(pool.id, left.word, keys=left.content_keys, timeout_s=0)
            async with real_node(2, one, home=tmp_path / "new") as two:
                await linked(one, two)
                # it begins by itself with the word that it kept
                await until(lambda: two.pools[pool.id].is_member, "the new key the only member", 30)
            async with real_node(2, one, home=tmp_path / "new") as two:
                taken = await two.take_place(pool.id, left.word, keys=left.content_keys, timeout_s=20)
                log = taken.driver.replica.log
                first = [decode_operation(each, pool.id).body for each in log.read(two.public_key, 0, 99)]
                assert first[0] == left.word
                assert sum(isinstance(body, SucceedBody) for body in first) == 1
                assert taken.task(task.id).inputs == {"n": 21}
                double(taken)
                await until(lambda: taken.task(task.id).state is TaskState.COMPLETED, "the old task done", 30)
                assert taken.task(task.id).result == {"n": 42}
                again = await taken.submit(Task("double", {"n": 4}, key="after"))
                assert (await again.result()).value == {"n": 8}
                assert not pool.is_member


async def test_a_worker_hands_over_without_asking_anybody_and_its_new_key_can_do_what_it_could(tmp_path: Path) -> None:
    with trio.fail_after(90):
        async with real_node(1) as one:
            listed = [f"key:{who(number).public_key.hex()}" for number in (2, 4)]
            pool = await one.create_pool("demo", admission=AdmissionKind.WHITELIST, whitelist=listed, policy=POLICY)
            async with real_node(2, one, home=tmp_path / "old") as two:
                worker = await two.join_pool(pool.id, capabilities=["gpu"], timeout_s=20)
                async with real_node(4, one) as four:
                    await four.join_pool(pool.id, timeout_s=20)
                    await until(
                        lambda: four.public_key in {one.public_key for one in worker.members()}, "it joined", 30
                    )
                    with pytest.raises(Conflict, match="takes no other key's place"):
                        await pass_on(worker, 2, 4)
                assert worker.keys.lineage() == {}
                left = await pass_on(worker, 2, 3)
                assert pool.council.motions() == worker.council.motions() == []
            # the answer was lost: after a restart the old node tells it again
            async with real_node(2, one, home=tmp_path / "old") as two, real_node(3, one, two) as three:
                assert await pass_on(two.pools[pool.id], 2, 3) == left
                taken = await three.take_place(pool.id, left.word, timeout_s=20)
                double(taken)
                await until(lambda: taken.is_member, "the new key a member", 30)
                task = await pool.submit(Task("double", {"n": 4}, key="k", required_capabilities=("gpu",)))
                result = await task.result()
                assert (result.value, result.by) == ({"n": 8}, three.id)
                with pytest.raises(NotAuthorised, match="another key took the place"):
                    await two.join_pool(pool.id, timeout_s=5)


async def test_roles_that_went_to_one_new_key_let_no_other_take_the_place() -> None:
    with trio.fail_after(60):
        async with real_node(1) as one:
            pool = await one.create_pool("demo", governance=Dictatorial(), policy=POLICY)
            async with pool.council.watch_epochs() as epochs:
                # as by a first try with another new home, killed before it handed over
                await pool.council.rotate_elector(who(1).public_key, who(2).public_key)
                await epochs.receive()
            with pytest.raises(Conflict, match="gave the roles of this node's key to"):
                await pass_on(pool, 1, 3)
            assert (pool.is_member, pool.keys.lineage()) == (True, {})
            await pass_on(pool, 1, 2)
            assert pool.keys.lineage() == {who(1).public_key: who(2).public_key}


async def test_who_is_no_member_yet_hands_nothing_over_and_works_once_it_is_let_in() -> None:
    with trio.fail_after(60):
        async with real_node(1) as one, real_node(2, one) as two:
            pool = await one.create_pool("demo", admission=AdmissionKind.TOKEN, policy=POLICY)
            waiting = await two.joins.asking.follow(pool.id, 20)
            double(waiting)
            with pytest.raises(NotAuthorised, match="not an active member"):
                await pass_on(waiting, 2, 3)
            await two.join_pool(pool.id, invitation=pool.invite(), timeout_s=20)
            task = await pool.submit(Task("double", {"n": 4}, key="k"))
            assert (await task.result()).by == two.id
