"""Two agents in two nodes write to each other. `Pong` is a whole agent."""

import trio

from converge_p2p import Agent, Message, Node, decisions

LOCAL = ["/ip4/127.0.0.1/tcp/0"]


class Pong(Agent):
    def decide(self, messages, tasks):
        return [decisions.SendMessage(message.reply({"pong": message.payload["ping"]})) for message in messages]


class Ping(Agent):
    def __init__(self, rounds):
        super().__init__()
        self.rounds = rounds
        self.done = trio.Event()

    def decide(self, messages, tasks):
        for message in messages:
            number = message.payload["pong"]
            print("pong", number)
            if number < self.rounds:
                return [decisions.SendMessage(message.reply({"ping": number + 1}))]
            self.done.set()
        return []


async def main():
    async with Node(listen=LOCAL) as one, Node(listen=LOCAL) as two:
        await one.connect(two.addresses[0])
        await two.host(Pong())
        ping = Ping(rounds=3)
        await one.host(ping)
        await one.send(Message.create(one.id, {"ping": 1}, recipient=two.id))
        with trio.fail_after(60):
            await ping.done.wait()
        print("done")


trio.run(main)
