"""A service of trio that hands its requests to a pool: the node is one more task of the application."""

from functools import partial

import trio
import trio.testing

from converge_p2p import Node, Task

LOCAL = ["/ip4/127.0.0.1/tcp/0"]


async def work(addresses, pool_id, *, task_status):
    """A worker, which would run elsewhere."""
    async with Node(listen=LOCAL, bootstrap=addresses) as node:
        pool = await node.join_pool(pool_id, timeout_s=60)

        @pool.handler("shout", concurrency=4)
        async def shout(task, context):
            await context.progress(0.5)
            return task.inputs["text"].upper()

        task_status.started()
        await trio.sleep_forever()


async def main():
    async with Node(listen=LOCAL) as node, trio.open_nursery() as nursery:
        pool = await node.create_pool("shouting")
        await nursery.start(work, node.addresses, pool.id)

        async def serve(stream):
            text = (await stream.receive_some(100)).decode()
            handle = await pool.submit(Task("shout", {"text": text}))
            await stream.send_all((await handle.result()).value.encode())

        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        for text in ("hello", "mesh"):
            client = await trio.testing.open_stream_to_socket_listener(listener)
            async with client:
                await client.send_all(text.encode())
                with trio.fail_after(60):
                    print((await client.receive_some(100)).decode())
        nursery.cancel_scope.cancel()


trio.run(main)
