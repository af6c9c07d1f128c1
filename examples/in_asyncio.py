"""A service of asyncio that hands its requests to a pool, and a worker and an agent that are written for asyncio."""

import asyncio

from converge_p2p import Message, Task, decisions
from converge_p2p.aio import Agent, Node

LOCAL = ["/ip4/127.0.0.1/tcp/0"]


class Clerk(Agent):
    """Its `decide` runs in asyncio, so that any library of asyncio may be used."""

    def __init__(self):
        super().__init__()
        self.done = asyncio.Event()

    async def decide(self, messages, tasks):
        await asyncio.sleep(0.01)
        for message in messages:
            print("the clerk heard:", message.payload)
            self.done.set()
        return [decisions.SendMessage(message.reply("noted")) for message in messages]


async def main():
    async with Node(listen=LOCAL) as node, Node(listen=LOCAL, bootstrap=node.addresses) as worker:
        pool = await node.create_pool("shouting")
        remote = await worker.join_pool(pool.id, timeout_s=60)

        @remote.handler("shout", concurrency=4)
        async def shout(task, context):
            await context.progress(0.5)
            await asyncio.sleep(0.01)
            return task.inputs["text"].upper()

        async def serve(reader, writer):
            handle = await pool.submit(Task("shout", {"text": (await reader.read(100)).decode()}))
            writer.write((await handle.result()).value.encode())
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            for text in ("hello", "mesh"):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(text.encode())
                writer.write_eof()
                async with asyncio.timeout(60):
                    print((await reader.read()).decode())
                writer.close()

        clerk = Clerk()
        await worker.host(clerk)
        await node.send(Message.create(node.id, "a letter", recipient=worker.id))
        async with asyncio.timeout(60):
            await clerk.done.wait()


asyncio.run(main())
