"""Messages between agents: to one agent, to a topic, to everybody.

Knows: how a message is checked before anybody sees it. Must not know: pools and tasks.
Source: the concepts page (verified receive is the only receive); nothing ever falls back to "everyone".

The replay window begins at the start of the node, because what was taken before is no longer known: messages stamped
before are refused. So somebody whose clock is late by a minute is not heard in the first minute, and only messages
from clocks that are ahead (at most `limits.MESSAGE_CLOCK_SKEW_MS`) can be taken a second time after a restart.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import (
    ConvergeError,
    LimitExceeded,
    LocalError,
    NetworkError,
    NotFound,
    RemoteViolation,
)
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.model.replay import ReplayWindow
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import PeerId
from converge_p2p.net import Network, peer_id_of
from converge_p2p.node.fanout import Fanout

BROADCAST = "converge/broadcast/1"
ACK = b"\x01"
REFUSED = b"\x00"
"""Begins the answer to a direct message that was not taken; the reason follows, ASCII, at most `_REASON_BYTES_MAX`."""
_REASON_BYTES_MAX = 64


def _topic_name(topic: Topic) -> str:
    return f"converge/topic/1/{topic.name}"


class TopicHandle:
    """A topic this node takes part in."""

    def __init__(self, mail: Mail, topic: Topic) -> None:
        self._mail = mail
        self._left = False
        self.topic = topic

    async def publish(self, payload: object) -> None:
        """Sign and send a message to everybody on the topic."""
        await self._mail.send(Message.create(self._mail.identity.id, payload, topics=(self.topic,)))

    @asynccontextmanager
    async def messages(self) -> AsyncIterator[trio.MemoryReceiveChannel[Message]]:
        """Give a channel of verified messages of the topic. Who reads too slowly misses some (`counters`)."""
        async with self._mail.listen(self.topic) as channel:
            yield channel

    async def leave(self) -> None:
        """Take no more messages of the topic, unless somebody else here has joined it too."""
        if not self._left:
            self._left = True
            await self._mail.leave(self.topic)


class Mail:
    """All messages of one node."""

    def __init__(self, identity: Identity, deliver: Callable[[Message], None]) -> None:
        """Make it; `open` connects it to a network.

        Args:
            identity: who signs.
            deliver: called with each verified message.
        """
        self.identity = identity
        self.registry = IdentityRegistry()
        self.counters: Counter[str] = Counter()
        self._deliver = deliver
        self._replay = ReplayWindow(floor_ms=_now_ms())
        self._network: Network | None = None
        self._topics: Counter[Topic] = Counter()
        """How often each topic was joined."""
        self._joining = trio.Lock()
        self._listeners: dict[Topic, Fanout[Message]] = {}

    async def open(self, network: Network) -> None:
        """Begin to take broadcasts."""
        self._network = network
        await network.subscribe(BROADCAST, self._on_gossip, self._validate)

    async def join(self, topic: Topic) -> TopicHandle:
        """Take part in a topic.

        Raises:
            LimitExceeded: too many topics.
        """
        async with self._joining:
            if not self._topics[topic]:
                if len(self._topics) >= limits.TOPICS_PER_NODE_MAX:
                    raise LimitExceeded("TOPICS_PER_NODE_MAX", "this node takes part in too many topics")
                await self._net().subscribe(_topic_name(topic), self._on_gossip, self._validate)
            self._topics[topic] += 1
        return TopicHandle(self, topic)

    async def leave(self, topic: Topic) -> None:
        """Undo one `join`; after the last one no more messages of the topic are taken."""
        async with self._joining:
            self._topics[topic] -= 1
            if self._topics[topic] <= 0:
                del self._topics[topic]
                await self._net().unsubscribe(_topic_name(topic))

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[trio.MemoryReceiveChannel[Message]]:
        """Give a channel of verified messages that name the topic."""
        fanout = self._listeners.get(topic)
        if fanout is None:
            fanout = self._listeners[topic] = Fanout(limits.INBOX_MESSAGES_MAX)
        try:
            async with fanout.open() as receive:
                yield receive
        finally:
            if not len(fanout) and self._listeners.get(topic) is fanout:
                del self._listeners[topic]

    async def send(self, message: Message) -> Message:
        """Stamp, sign and send a message: to its recipient, or to its topics, or to everybody.

        Returns:
            The message as it was sent.

        Raises:
            LocalError: the message is not this node's to sign.
            NetworkError: the recipient is not connected or did not take it. It is not sent to anybody else.
        """
        if not message.stamped:
            message = message.stamp(_now_ms())
        if not message.signed:
            message = message.sign(self.identity)
        data = message.to_bytes()
        if message.recipient is not None:
            await self._send_direct(message, data)
        elif message.topics:
            for topic in message.topics:
                await self._net().publish(_topic_name(topic), data)
        else:
            await self._net().publish(BROADCAST, data)
        self.counters["sent"] += 1
        return message

    async def _send_direct(self, message: Message, data: bytes) -> None:
        assert message.recipient is not None
        if message.recipient == self.identity.id:
            raise LocalError("the message is for this node itself", hint="name another agent, or a topic")
        try:
            peer = peer_id_of(self.registry.public_key(message.recipient))
        except NotFound as error:
            raise NetworkError(
                f"agent {message.recipient[:12]} is not known here", hint="connect to its node first"
            ) from error
        answer = await self._net().request(peer, data)
        if answer != ACK:
            reason = answer[1 : 1 + _REASON_BYTES_MAX].decode("ascii", "replace") if answer[:1] == REFUSED else ""
            raise NetworkError(f"agent {message.recipient[:12]} refused the message: {reason or 'no reason given'}")

    # ------------------------------------------------------------ receiving

    async def on_request(self, data: bytes) -> bytes:
        """Take a direct message, and return the answer: `ACK`, or `REFUSED` and the reason.

        A refusal is an answer and no exception: what strangers send must not fill the log.
        """
        try:
            message = self._read(data)
            if message.recipient != self.identity.id:
                raise RemoteViolation("message_misaddressed", "the message is for another agent")
            self._take(message)
        except ConvergeError as error:
            return REFUSED + self._refused(error).encode("ascii", "replace")[:_REASON_BYTES_MAX]
        return ACK

    def _validate(self, _peer: PeerId, data: bytes) -> bool:
        """Whether a gossiped message may be passed on: signed, timely, and not for one agent alone."""
        try:
            return self._read(data).recipient is None
        except ConvergeError as error:
            self._refused(error)
            return False

    def _on_gossip(self, _peer: PeerId, data: bytes) -> None:
        try:
            self._take(Message.from_bytes(data))
        except ConvergeError as error:
            self._refused(error)

    def _refused(self, error: ConvergeError) -> str:
        reason = error.reason if isinstance(error, RemoteViolation) else error.code
        self.counters[f"refused_{reason}"] += 1
        return reason

    def _read(self, data: bytes) -> Message:
        message = Message.from_bytes(data)
        message.check(_now_ms())
        return message

    def _take(self, message: Message) -> None:
        """Hand a verified message on, once."""
        self._replay.check(message, _now_ms())
        self.registry.register(message.sender, message.public_key)
        self.counters["received"] += 1
        for topic in message.topics:
            fanout = self._listeners.get(topic)
            if fanout is not None:
                before = fanout.dropped
                fanout.send(message)
                self.counters["dropped_slow_reader"] += fanout.dropped - before
        if message.sender != self.identity.id:
            self._deliver(message)

    def _net(self) -> Network:
        if self._network is None:
            raise NetworkError("the node is not running", hint="use it inside `async with Node(...)`")
        return self._network


def _now_ms() -> int:
    return int(time.time() * 1000)
