"""A bicameral pool: nothing is settled unless a quorum of either organisation agrees."""

from contextlib import AsyncExitStack

import trio

from converge_p2p import Node, Task, governance

LOCAL = ["/ip4/127.0.0.1/tcp/0"]


async def main():
    async with AsyncExitStack() as stack:

        async def start(*bootstrap):
            return await stack.enter_async_context(Node(listen=LOCAL, bootstrap=bootstrap))

        bank = [first := await start(), await start(*first.addresses)]
        shop = [await start(*first.addresses), await start(*first.addresses)]
        for node in (*bank[1:], *shop):
            await first.connect(node.addresses[0])

        chambers = governance.Bicameral(first=[node.id for node in bank], second=[node.id for node in shop])
        pool = await first.create_pool("settlements", governance=chambers, task_types=["settle"])
        for node in (*bank[1:], *shop):
            joined = await node.join_pool(pool.id, timeout_s=60)

        @joined.handler("settle")
        async def settle(task, context):
            return {"owed": sum(task.inputs["invoices"])}

        with trio.fail_after(60):
            result = await (await pool.submit(Task("settle", {"invoices": [40, 2]}))).result()
        assert result.receipt.verify()
        signed = set(result.receipt.signers)
        for name, chamber in (("bank", bank), ("shop", shop)):
            print(name, "signed with", sum(node.public_key in signed for node in chamber), "of", len(chamber))
        print(result.value)


trio.run(main)
