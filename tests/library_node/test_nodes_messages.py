"""Messages among real nodes: delivered in spite of restarts, taken once, sealed, fair, and private where asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import QUICK, linked, real_node, until

from converge_p2p import Agent, NetworkKey, Node, Topic, TopicKey
from converge_p2p.core.errors import NetworkError
from converge_p2p.core.model.message import Message

pytestmark = pytest.mark.network

KEY, NEXT_KEY = b"k" * 32, b"n" * 32
NETWORK = replace(QUICK, network_key=NetworkKey(bytes(range(32))))


@pytest.fixture(autouse=True)
async def _in_time() -> Any:
    with trio.fail_after(90):
        yield


class Listener(Agent):
    """Keeps what it is told."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.got: list[Any] = []

    def decide(self, messages: Any, tasks: Any) -> list[Any]:
        self.got += [message.payload for message in messages]
        return []


async def heard(topic: Any, handle: Any, payload: str) -> Any:
    """Publish until it is heard: gossip promises nothing while its mesh forms."""
    async with handle.messages() as feed:
        while True:
            await topic.publish(payload)
            with trio.move_on_after(0.3):
                return await feed.receive()


async def test_a_message_sent_while_its_recipient_restarts_is_delivered_once(tmp_path: Path) -> None:
    async with real_node(1) as one:
        async with real_node(2, one, home=tmp_path) as two:
            await linked(one, two)
            before, _ = await one.deliver(Message.create(one.id, "before", recipient=two.id))
            address = two.addresses[0]
        listener, receipts = Listener(), []

        async def send() -> None:
            receipts.append(await one.deliver(Message.create(one.id, "meanwhile", recipient=two.id), deadline_s=60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await until(lambda: one.status().counters.get("sent_again", 0) > 0, "it is tried, and nobody is there")
            again = await nursery.start(_run_again, tmp_path, one, listener, address)
            await until(lambda: receipts, "it is delivered", 60)
            sent, receipt = receipts[0]
            assert receipt.proves(sent)
            # what was taken before the restart is acknowledged, and not taken a second time
            assert (await one.deliver(before))[1].proves(before)
            await one.deliver(Message.create(one.id, "after", recipient=again.id))
            await until(lambda: "after" in listener.got, "the last one")
            assert listener.got == ["meanwhile", "after"]
            nursery.cancel_scope.cancel()


async def _run_again(
    home: Path, one: Node, listener: Listener, address: str, *, task_status: trio.TaskStatus[Node]
) -> None:
    listen = (address.split("/p2p/")[0],)
    async with real_node(2, one, home=home, listen=listen) as two:
        await two.host(listener)
        task_status.started(two)
        await trio.sleep_forever()


async def test_a_message_to_who_is_not_there_is_an_error_and_goes_to_nobody_else() -> None:
    listener = Listener()
    async with real_node(1) as one, real_node(3, one) as three:
        async with real_node(2, one) as two:
            await linked(one, two)
        await linked(one, three)
        await three.host(listener)
        with pytest.raises(NetworkError, match="did not take the message"):
            await one.send(Message.create(one.id, "for two", recipient=two.id), deadline_s=1.0)
        await one.send(Message.create(one.id, "for three", recipient=three.id))
        await until(lambda: listener.got, "the other message")
        assert listener.got == ["for three"]


async def test_private_topics_are_heard_by_their_members_alone_also_after_the_key_was_changed() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one, two) as outsider:
        for here, there in ((one, two), (one, outsider), (two, outsider)):
            await linked(here, there)
        spoken = await one.join("acme/secret", key=KEY)
        members = await two.join("acme/secret", key=KEY)
        # it knows the topic's name and thinks it is public; and it once had a key
        public = await outsider.join("acme/secret")
        assert (await heard(spoken, members, "among us")).payload == "among us"
        await members.rotate(TopicKey(NEXT_KEY))
        await spoken.rotate(TopicKey(NEXT_KEY))
        await public.leave()
        former = await outsider.join("acme/secret", key=KEY)
        async with former.messages() as feed:
            assert (await heard(spoken, members, "without you")).payload == "without you"
            with pytest.raises(trio.WouldBlock):
                feed.receive_nowait()
        assert two.topics() == {Topic("acme/secret"): TopicKey(NEXT_KEY)}


async def test_nodes_of_a_private_network_find_each_other_and_keep_others_out() -> None:
    async with (
        real_node(1, config=NETWORK) as one,
        real_node(2, one, config=NETWORK) as two,
        real_node(3, config=QUICK) as stranger,
    ):
        await linked(one, two)
        with pytest.raises(NetworkError, match="private network"):
            await stranger.connect(one.addresses[0])
        await one.send(Message.create(one.id, "hi", recipient=two.id))
        assert stranger.peers() == ()


async def test_an_agent_on_a_topic_that_is_private_hears_it() -> None:
    topic = Topic("acme/secret")
    listener = Listener(topics=[topic])
    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        spoken = await one.join(topic, key=KEY)
        members = await two.join(topic, key=KEY)
        await two.host(listener)
        assert members.private
        await heard(spoken, members, "hello")
        await until(lambda: "hello" in listener.got, "the agent hears it")


async def test_who_floods_everybody_does_not_keep_another_from_being_heard() -> None:
    listener, stop = Listener(), trio.Event()
    async with real_node(1) as one, real_node(2, one) as flooder, real_node(3, one) as honest:
        await linked(one, flooder)
        await linked(one, honest)
        await one.host(listener)

        async def flood() -> None:
            while not stop.is_set():
                await flooder.send(Message.create(flooder.id, "noise"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await until(lambda: listener.got.count("noise") > 50, "the flood has come", 30)
            for number in range(5):
                sent, receipt = await honest.deliver(Message.create(honest.id, number, recipient=one.id), deadline_s=30)
                assert receipt.proves(sent)
            stop.set()
        await until(lambda: set(range(5)) <= {item for item in listener.got if item != "noise"}, "all of it", 30)
        assert [item for item in listener.got if item != "noise"] == list(range(5))
