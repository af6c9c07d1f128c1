"""A private network by invitation: one line leads into the network, a private topic and a pool."""

import secrets

import trio

from converge_p2p import AdmissionKind, ConvergeError, InvitationLine, NetworkKey, Node, NodeConfig, Task, TopicKey

LOCAL = ["/ip4/127.0.0.1/tcp/0"]


async def main():
    config = NodeConfig(network_key=NetworkKey(secrets.token_bytes(32)))
    async with Node(listen=LOCAL, config=config) as host:
        topic = await host.join("acme/secret", key=TopicKey(secrets.token_bytes(32)))
        pool = await host.create_pool("few", admission=AdmissionKind.TOKEN)
        pool.add_handler("greet", lambda task, context: f"hello {task.inputs['name']}")
        line = await host.invitations.write(pool=pool, topics=[topic.topic])
        print("invited with", line[:12], "…")

        key = InvitationLine.from_text(line).network_key
        async with Node(listen=LOCAL, config=NodeConfig(network_key=key)) as guest:
            accepted = await guest.invitations.accept(line, timeout_s=60)
            print("joined", accepted.pool.name, "and", accepted.topics[0].topic.namespace)
            with trio.fail_after(60):
                result = await (await accepted.pool.submit(Task("greet", {"name": "guest"}))).result()
            print(result.value)

            async with Node(listen=LOCAL, config=NodeConfig(network_key=key)) as second:
                try:
                    await second.invitations.accept(line, timeout_s=60)
                except ConvergeError as error:
                    print("a second guest:", error)

        async with Node(listen=LOCAL) as stranger:
            try:
                await stranger.connect(host.addresses[0])
            except ConvergeError:
                print("a stranger cannot connect")


trio.run(main)
