"""A new key takes the place of an old one in a pool that would not let it in by itself."""

from __future__ import annotations

from node_library_kit import POLICY, real_node, until, who

from converge_p2p import Task
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.oplog.succession import recovery


async def test_a_node_hands_over_and_a_lost_key_is_recovered() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three, real_node(4, one) as four:
        listed = [f"key:{two.public_key.hex()}"]
        pool = await one.create_pool("demo", admission=AdmissionKind.WHITELIST, whitelist=listed, policy=POLICY)
        remote = await two.join_pool(pool.id, timeout_s=15)
        word = await remote.keys.hand_over(who(3))
        taken = await three.take_place(pool.id, word, timeout_s=15)
        await until(lambda: taken.is_member, "the new key a member")
        task = await taken.submit(Task("count", key="k"))
        await until(lambda: pool.find_task(task.id), "its task on the other node")
        assert pool.keys.lineage() == {two.public_key: three.public_key}
        await taken.keys.commit_recovery(who(9).public_key)
        assert taken.own_operations == 3, "succeed, submit, recovery"
        saved = recovery(pool.id, three.public_key, 3, key=who(9), new=four.public_key)
        await until(lambda: len(pool.driver.replica.log.read(three.public_key, 0, 9)) == 3, "the commitment there")
        recovered = await four.take_place(pool.id, saved, timeout_s=15)
        await until(lambda: recovered.is_member and not taken.is_member, "the recovered key a member")
        refused = False
        try:
            await taken.submit(Task("count", key="late"))
        except ConvergeError:
            refused = True
        assert refused
