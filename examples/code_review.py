"""Three reviewers are the electors of a pool: a review counts once two of them checked it and found it good."""

from contextlib import AsyncExitStack

import trio

from converge_p2p import Node, Task, governance, register_evaluator

LOCAL = ["/ip4/127.0.0.1/tcp/0"]
CODE = "def mean(xs):\n    return sum(xs) / len(xs)\n"


def sound(inputs, result):
    """What every elector's node asks by itself: a pure function of the task's inputs and the result."""
    scope = {}
    exec(result["patch"], scope)
    return scope["mean"]([]) == 0 and scope["mean"]([1, 2]) == 1.5


async def main():
    register_evaluator("sound", sound)  # what it raises denies the result
    async with AsyncExitStack() as stack:
        ann = await stack.enter_async_context(Node(listen=LOCAL))
        ben, cid = [await stack.enter_async_context(Node(listen=LOCAL, bootstrap=ann.addresses)) for _ in range(2)]
        for other in (ben, cid):
            await ann.connect(other.addresses[0])
        pool = await ann.create_pool(
            "reviews", governance=governance.Democratic(), electors=[ann.id, ben.id, cid.id], task_types=["review"]
        )
        theirs = [await node.join_pool(pool.id, timeout_s=60) for node in (ben, cid)]
        attempts = []

        @theirs[0].handler("review")
        async def review(task, context):
            attempts.append(context.token)
            better = CODE if len(attempts) == 1 else CODE.replace("len(xs)", "len(xs) if xs else 0")
            return {"patch": better}

        task = Task("review", {"code": CODE}, evaluator="rule:sound", constraints={"max_retries": 3})
        with trio.fail_after(60):
            result = await (await pool.submit(task)).result()
        print(result.value["patch"])
        print(f"attempts: {len(attempts)}, accepted by a quorum:", len(result.receipt.signers) >= 2)


trio.run(main)
