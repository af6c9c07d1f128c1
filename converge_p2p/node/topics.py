"""The topics a node takes part in: public ones by their name, private ones by their key.

Knows: who joined what, keys in use, and what a message on a topic looks like on the wire. Must not know: how a message
is checked beyond its seal, or what becomes of it.
Source: `docs/protocol.md`, private topics. What is private here never goes out in clear: neither by naming a public
topic beside it, nor after the topic was left.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, RemoteViolation, SignatureError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import PrivateTopic, SealedTopicMessage, TopicKey
from converge_p2p.core.types import PeerId
from converge_p2p.net import Network
from converge_p2p.node.feed import MessageFeed

KEY_OVERLAP_S = 60.0
"""How long after a rotation messages under the old key are still taken."""

OnMessage = Callable[[PeerId, bytes], None]
Validate = Callable[[PeerId, bytes], bool]


def topic_name(topic: Topic) -> str:
    """The gossip topic of a public topic."""
    return f"converge/topic/1/{topic.name}"


def private_name(private: PrivateTopic) -> str:
    """The gossip topic of a private topic."""
    return f"converge/private/1/{private.name}"


class HasTopic(Protocol):
    """Where a topic is named by what is held of it: a `TopicHandle`, of trio or asyncio."""

    @property
    def topic(self) -> Topic:
        """The topic."""
        ...


class TopicHandle:
    """A topic this node takes part in. Made by `Node.join`."""

    def __init__(
        self,
        topics: Topics,
        topic: Topic,
        send: Callable[[Message], Awaitable[Message]],
        listen: Callable[[Topic], AbstractAsyncContextManager[MessageFeed]],
    ) -> None:
        self._topics = topics
        self._send = send
        self._listen = listen
        self._left = False
        self.topic = topic

    @property
    def private(self) -> bool:
        """Whether the topic is private."""
        return self._topics.is_private(self.topic)

    async def publish(self, payload: object) -> None:
        """Sign and send a message to everybody on the topic; on a private topic, sealed with its key."""
        await self._send(Message.create(self._topics.identity.id, payload, topics=(self.topic,)))

    @asynccontextmanager
    async def messages(self) -> AsyncIterator[MessageFeed]:
        """Give a feed of verified messages of the topic. Who reads too slowly misses some (`counters`)."""
        async with self._listen(self.topic) as feed:
            yield feed

    async def rotate(self, key: TopicKey, *, overlap_s: float = KEY_OVERLAP_S) -> None:
        """Go over to a new key: everything that is sent from now on is sealed with it.

        Args:
            key: handed to those who are to stay members, and to nobody else, beforehand.
            overlap_s: how long messages under the old key are still taken.

        Raises:
            LocalError: the topic is not private.
            LimitExceeded: `limits.TOPIC_KEYS_MAX` keys are in use.
        """
        await self._topics.rotate(self.topic, key, overlap_s)

    async def leave(self) -> None:
        """Take no more messages of the topic, unless somebody else here has joined it too."""
        if not self._left:
            self._left = True
            await self._topics.leave(self.topic)


@dataclass(slots=True)
class _Joined:
    times: int = 0
    key: TopicKey | None = None
    private: list[PrivateTopic] = field(default_factory=list)
    """The keys in use, the newest last: that one seals."""


class Topics:
    """What is joined, and how it is spoken to."""

    def __init__(self, identity: Identity) -> None:
        """Begin with none."""
        self.identity = identity
        self._network: Network | None = None
        self._nursery: trio.Nursery | None = None
        self._joined: dict[Topic, _Joined] = {}
        self._were_private: OrderedDict[Topic, None] = OrderedDict()
        self._changing = trio.Lock()
        self._seq = 0

    def open(self, network: Network, nursery: trio.Nursery) -> None:
        """Connect to a running network."""
        self._network, self._nursery = network, nursery

    def is_private(self, topic: Topic) -> bool:
        """Whether the topic is private here, or was."""
        joined = self._joined.get(topic)
        return topic in self._were_private if joined is None else joined.key is not None

    def __len__(self) -> int:
        """Return how many topics are joined."""
        return len(self._joined)

    def all(self) -> dict[Topic, TopicKey | None]:
        """Return every topic that is joined, with the key of each private one."""
        return {topic: joined.key for topic, joined in self._joined.items()}

    async def join(
        self, network: Network, topic: Topic, key: TopicKey | None, handlers: Callable[..., tuple[OnMessage, Validate]]
    ) -> None:
        """Take part in a topic, once more.

        Args:
            network: the running network.
            topic: the topic.
            key: of a private topic; None for a public one.
            handlers: gives what takes and what checks the messages of a private topic, or of a public one for None.

        Raises:
            Conflict: it is joined otherwise: in public, or with another key.
            LimitExceeded: too many topics.
        """
        async with self._changing:
            joined = self._joined.get(topic)
            if joined is None:
                if len(self._joined) >= limits.TOPICS_PER_NODE_MAX:
                    raise LimitExceeded("TOPICS_PER_NODE_MAX", "this node takes part in too many topics")
                joined = _Joined(key=key)
                if key is None:
                    await network.subscribe(topic_name(topic), *handlers(None))
                else:
                    await self._add_key(network, topic, joined, key, handlers)
                self._joined[topic] = joined
                self._were_private.pop(topic, None)
            elif joined.key != key:
                raise Conflict(
                    f"this node takes part in {topic.namespace} {'in public' if joined.key is None else 'with a key'}",
                    hint="join it in the same way, or leave it first; a new key is for rotate()",
                )
            self._handlers = handlers
            joined.times += 1

    async def _add_key(
        self,
        network: Network,
        topic: Topic,
        joined: _Joined,
        key: TopicKey,
        handlers: Callable[..., tuple[OnMessage, Validate]],
    ) -> None:
        private = PrivateTopic(topic, key)
        await network.subscribe(private_name(private), *handlers(private), member_key=private.member_key)
        joined.private.append(private)
        joined.key = key

    async def leave(self, topic: Topic) -> None:
        """Undo one `join`; after the last one no more messages of the topic are taken."""
        network = self._running()
        async with self._changing:
            joined = self._joined[topic]
            joined.times -= 1
            if joined.times > 0:
                return
            del self._joined[topic]
            if joined.key is None:
                await network.unsubscribe(topic_name(topic))
                return
            self._were_private[topic] = None
            if len(self._were_private) > limits.TOPICS_PER_NODE_MAX:
                self._were_private.popitem(last=False)
            for private in joined.private:
                await network.unsubscribe(private_name(private))

    async def rotate(self, topic: Topic, key: TopicKey, overlap_s: float) -> None:
        """See `TopicHandle.rotate`."""
        network = self._running()
        async with self._changing:
            joined = self._joined.get(topic)
            if joined is None or joined.key is None:
                raise LocalError(f"{topic.namespace} is not a private topic here", hint="join it with a key first")
            if joined.key == key:
                return
            if len(joined.private) >= limits.TOPIC_KEYS_MAX:
                raise LimitExceeded("TOPIC_KEYS_MAX", "older keys of the topic are still in use", hint="wait a minute")
            old = joined.private[-1]
            network.retire(private_name(old))
            await self._add_key(network, topic, joined, key, self._handlers)
        assert self._nursery is not None
        self._nursery.start_soon(self._retire, topic, old, overlap_s)

    async def _retire(self, topic: Topic, old: PrivateTopic, overlap_s: float) -> None:
        await trio.sleep(overlap_s)
        async with self._changing:
            joined = self._joined.get(topic)
            if joined is not None and old in joined.private and joined.private[-1] is not old:
                joined.private.remove(old)
                await self._running().unsubscribe(private_name(old))

    def wire_form(self, message: Message) -> list[tuple[str, bytes]]:
        """Return what is published where, for a message that names topics and no recipient.

        Raises:
            LocalError: it names a private topic and another one, or a private topic that is not joined.
        """
        private = [topic for topic in message.topics if self.is_private(topic)]
        if not private:
            return [(topic_name(topic), message.to_bytes()) for topic in message.topics]
        if len(message.topics) > 1:
            raise LocalError(
                "a message on a private topic names that topic alone, or it would be read on the other one",
                hint="send two messages",
            )
        joined = self._joined.get(private[0])
        if joined is None:
            raise LocalError(
                f"{private[0].namespace} is a private topic that was left", hint="join it with its key to send there"
            )
        # numbers go on from the clock, so that they are not used again after a restart
        self._seq = max(self._seq + 1, time.time_ns() // 1_000_000)
        sealing = joined.private[-1]
        sealed = sealing.seal(self.identity.public_key, self._seq, message.to_bytes())
        return [(private_name(sealing), sealed.to_bytes())]

    def _running(self) -> Network:
        assert self._network is not None, "a topic was joined before the network ran"
        return self._network


def open_private(private: PrivateTopic, data: bytes) -> Message:
    """Return the message inside, not verified yet.

    Raises:
        CodecError, SignatureError: not sealed with the topic's key, or damaged.
        RemoteViolation: what is inside is not what is outside.
    """
    sealed = SealedTopicMessage.from_bytes(data)
    message = Message.from_bytes(private.open(sealed))
    if message.public_key != sealed.sender:
        raise SignatureError("a message on a private topic is sealed by its sender")
    if message.topics != (private.topic,):
        raise RemoteViolation("message_misaddressed", "the message is not for this private topic")
    return message
