"""Messages between agents: to one agent, to a topic, to everybody.

Knows: how a message is checked before anybody sees it, and how one agent's message is brought to it. Must not know:
pools and tasks, or which topics are private (see `topics`).
Source: the concepts page (verified receive is the only receive); `docs/protocol.md`, direct requests. Nothing ever
falls back to "everyone": what cannot reach its recipient is an error of its sender.

The way of a message: verified → not seen before → waits in its sender's turn → written down as taken → handed on, and
if it was for this node alone, acknowledged with a receipt.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import (
    CodecError,
    ConvergeError,
    LocalError,
    NetworkError,
    NotFound,
    RemoteViolation,
    SignatureError,
)
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.delivery import DeliveryReceipt, sign_delivery
from converge_p2p.core.model.fair_queue import FairQueue
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.model.replay import ReplayWindow, Taken
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import PrivateTopic, TopicKey
from converge_p2p.core.types import PeerId, PublicKey
from converge_p2p.net import Network, peer_id_of
from converge_p2p.node.feed import Feeds, MessageFeed
from converge_p2p.node.replay_journal import ReplayJournal
from converge_p2p.node.topics import OnMessage, TopicHandle, Topics, Validate, open_private
from converge_p2p.runtime.tracing import NO_TRACER, Tracer, received, sending

BROADCAST = "converge/broadcast/1"
TAKEN = b"\x01"
"""Begins the answer to a direct message that was taken; the receipt follows."""
REFUSED = b"\x00"
"""Begins the answer to a direct message that was not taken; the reason follows, ASCII, at most `_REASON_BYTES_MAX`."""
BUSY = "busy"
"""The reason of a refusal that may be gone a moment later."""
DEADLINE_S = 10.0
_REASON_BYTES_MAX = 64
_ATTEMPT_S = 10.0
_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 2.0


class _Deliver(Protocol):
    def __call__(self, message: Message, /, *, private: bool) -> None: ...


class Readers(Protocol):
    """Who gets messages in the end."""

    def room(self, message: Message, /) -> bool:
        """Whether there is room for a message; otherwise its sender is told to try again."""

    async def keep(self, messages: Sequence[Message], /) -> None:
        """Write down what must not be lost, before anybody is told that it was taken."""


@dataclass(eq=False, slots=True)
class _Arrival:
    """A message that was taken and waits to be handed on."""

    message: Message
    private: bool
    done: trio.Event = field(default_factory=trio.Event)
    dropped: bool = False


class Mail:
    """All messages of one node."""

    def __init__(
        self,
        identity: Identity,
        deliver: _Deliver,
        journal: ReplayJournal,
        readers: Readers | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Make it; `open` connects it to a network.

        Args:
            identity: who signs.
            deliver: called with each verified message, and whether it came on a private topic.
            journal: where it is written down what was taken.
            readers: who gets messages in the end; None takes every message, and keeps none.
            tracer: records what is sent and received.
        """
        self.tracer = tracer
        self.identity = identity
        self.registry = IdentityRegistry()
        self.counters: Counter[str] = Counter()
        self.topics = Topics(identity)
        self._deliver = deliver
        self._journal = journal
        self._readers = readers
        self._replay = ReplayWindow(floor_ms=_now_ms())
        self._network: Network | None = None
        self._nursery: trio.Nursery
        self._listeners: dict[Topic, Feeds] = {}
        self._waiting: FairQueue[_Arrival] = FairQueue(limits.MAIL_WAITING_MAX)
        self._arrivals: dict[tuple[str, bytes], _Arrival] = {}
        self._arrived = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    async def start(self, nursery: trio.Nursery, *, trusted: bool) -> None:
        """Learn what was taken before. To be done before the network brings anything.

        Args:
            nursery: where messages are handed on, for as long as it runs.
            trusted: whether the store is the newest there is.

        Raises:
            StoreError: the store cannot be read.
        """
        self._replay = await self._journal.read(_now_ms(), trusted=trusted)
        self._nursery = nursery
        nursery.start_soon(self._run)

    async def open(self, network: Network) -> None:
        """Begin to take part in topics, and to take what is for everybody."""
        self._network = network
        self.topics.open(network, self._nursery)
        await network.subscribe(BROADCAST, *self._handlers(None))

    async def join(self, topic: Topic, key: TopicKey | None = None) -> TopicHandle:
        """Take part in a topic. See `Node.join`.

        Raises:
            Conflict: it is joined otherwise.
            LimitExceeded: too many topics.
        """
        await self.topics.join(self._net(), topic, key, self._handlers)
        return TopicHandle(self.topics, topic, self.send, self.listen)

    async def leave(self, topic: Topic) -> None:
        """Undo one `join`; after the last one no more messages of the topic are taken."""
        await self.topics.leave(topic)

    @asynccontextmanager
    async def listen(self, topic: Topic) -> AsyncIterator[MessageFeed]:
        """Give a feed of verified messages that name the topic."""
        feeds = self._listeners.get(topic)
        if feeds is None:
            feeds = self._listeners[topic] = Feeds()
        try:
            async with feeds.open() as feed:
                yield feed
        finally:
            if not len(feeds) and self._listeners.get(topic) is feeds:
                del self._listeners[topic]

    # ------------------------------------------------------------ sending

    async def send(self, message: Message, *, deadline_s: float = DEADLINE_S) -> Message:
        """Stamp, sign and send a message: to its recipient, or to its topics, or to everybody.

        Args:
            message: to one agent it is sealed, unless its payload is encrypted already.
            deadline_s: for a message to one agent, as in `deliver`.

        Returns:
            The message as it was sent.

        Raises:
            LocalError: the message is not this node's to sign, or names a private topic beside another one.
            NetworkError: the recipient did not take it in time. It is not sent to anybody else.
        """
        if message.recipient is not None:
            return (await self.deliver(message, deadline_s=deadline_s))[0]
        with sending(self.tracer, message) as message:
            message = self._signed(message, None)
            published = self.topics.wire_form(message) if message.topics else [(BROADCAST, message.to_bytes())]
            for name, data in published:
                await self._net().publish(name, data)
        # gossip only queues: without this, who sends in a loop would let nobody else run
        await trio.lowlevel.checkpoint()
        self.counters["sent"] += 1
        return message

    async def deliver(self, message: Message, *, deadline_s: float = DEADLINE_S) -> tuple[Message, DeliveryReceipt]:
        """Send a message to one agent, again and again until it says that it took it.

        The recipient takes it once, however often it is sent.

        Args:
            message: with a recipient.
            deadline_s: how long to try; never longer than the message lives.

        Returns:
            The message as it was sent, and the recipient's receipt, which proves to anybody that it was taken.

        Raises:
            LocalError: the message has no recipient, or is not this node's to sign.
            NetworkError: it was not taken in time, or was refused for good. It is not sent to anybody else.

        Cancellation: whether the message was taken is not known then.
        """
        with sending(self.tracer, message) as message:
            return await self._deliver_until(message, deadline_s)

    async def _deliver_until(self, message: Message, deadline_s: float) -> tuple[Message, DeliveryReceipt]:
        net, key = self._net(), self._recipient_key(message)
        message = self._signed(message, key)
        data, peer = message.to_bytes(), peer_id_of(key)
        lives_s = (message.expires_ms - _now_ms()) / 1000
        until = trio.current_time() + min(deadline_s, lives_s)
        pause, reason = _PAUSE_FIRST_S, "it was not tried"
        while (left := until - trio.current_time()) > 0:
            try:
                answer = await _ask(net, peer, data, min(left, _ATTEMPT_S))
                if answer[:1] == TAKEN:
                    receipt = DeliveryReceipt.from_bytes(answer[1:])
                    if not receipt.proves(message):
                        raise CodecError("the receipt is not for this message")
                    self.counters["sent"] += 1
                    return message, receipt
                reason = answer[1 : 1 + _REASON_BYTES_MAX].decode("ascii", "replace") if answer[:1] == REFUSED else ""
                reason = f"it refused the message: {reason or 'no reason given'}"
                if answer != REFUSED + BUSY.encode():
                    break
            except NetworkError as error:
                reason = str(error)
            except (CodecError, RemoteViolation) as error:
                reason = f"it answered with something else than a receipt: {error}"
                break
            self.counters["sent_again"] += 1
            await trio.sleep(min(pause, max(0.0, until - trio.current_time())))
            pause = min(2 * pause, _PAUSE_MAX_S)
        self.counters["not_delivered"] += 1
        raise NetworkError(f"agent {message.recipient} did not take the message: {reason}")

    def _recipient_key(self, message: Message) -> PublicKey:
        if message.recipient is None:
            raise LocalError("the message has no recipient", hint="create it with recipient=agent id")
        if message.recipient == self.identity.id:
            raise LocalError("the message is for this node itself", hint="name another agent, or a topic")
        try:
            return self.registry.public_key(message.recipient)
        except NotFound as error:
            raise NetworkError(
                f"agent {message.recipient[:12]} is not known here", hint="connect to its node first"
            ) from error

    def _signed(self, message: Message, recipient: PublicKey | None) -> Message:
        if not message.stamped:
            message = message.stamp(_now_ms())
        if message.signed:
            return message
        if recipient is not None and not message.sealed:
            message = message.seal(recipient)
        return message.sign(self.identity)

    # ------------------------------------------------------------ receiving

    async def on_request(self, data: bytes) -> bytes:
        """Take a direct message, and return the answer: `TAKEN` and a receipt, or `REFUSED` and the reason.

        A message that was taken before gets a receipt again: its sender did not see the first one. A refusal is an
        answer and no exception: what strangers send must not fill the log.
        """
        try:
            message = self._read(data)
            if message.recipient != self.identity.id:
                raise RemoteViolation("message_misaddressed", "the message is for another agent")
            arrival = self._arrivals.get((message.sender, message.id))
            if arrival is None:
                arrival = self._take(self._readable(message), private=True)
            await arrival.done.wait()
            if arrival.dropped:
                raise RemoteViolation(BUSY, "too many messages wait")
        except RemoteViolation as error:
            if error.reason != "message_replayed":
                return self._refusal(error)
            self.counters["repeats_acknowledged"] += 1
        except ConvergeError as error:
            return self._refusal(error)
        return TAKEN + sign_delivery(self.identity, message, _now_ms()).to_bytes()

    def _refusal(self, error: ConvergeError) -> bytes:
        return REFUSED + self._refused(error).encode("ascii", "replace")[:_REASON_BYTES_MAX]

    def _readable(self, message: Message) -> Message:
        """Open what is sealed to this node. What only the agent has a key for is handed on as it is."""
        if not message.sealed:
            return message
        try:
            return message.unseal(self.identity)
        except SignatureError:
            self.counters["received_sealed"] += 1
            return message

    def _handlers(self, private: PrivateTopic | None) -> tuple[OnMessage, Validate]:
        """Return what takes and what checks the messages of one gossip topic."""

        def read(data: bytes) -> Message:
            message = Message.from_bytes(data) if private is None else open_private(private, data)
            message.check(_now_ms())
            if message.recipient is not None:
                raise RemoteViolation("message_misaddressed", "a message for one agent is not gossiped")
            if private is None and any(self.topics.is_private(topic) for topic in message.topics):
                raise RemoteViolation("message_misaddressed", "the message names a topic that is private here")
            return message

        checked: list[tuple[bytes, Message]] = []

        def validate(_peer: PeerId, data: bytes) -> bool:
            """Whether a gossiped message may be passed on: signed, timely, and not for one agent alone."""
            try:
                checked[:] = [(data, read(data))]
            except ConvergeError as error:
                self._refused(error)
                return False
            return True

        def on_message(_peer: PeerId, data: bytes) -> None:
            try:
                # gossip hands on what it just had checked; opening and verifying it again would cost as much again
                message = checked[0][1] if checked and checked[0][0] == data else read(data)
                checked.clear()
                self._take(message, private=private is not None)
            except ConvergeError as error:
                self._refused(error)

        return on_message, validate

    def _refused(self, error: ConvergeError) -> str:
        reason = error.reason if isinstance(error, RemoteViolation) else error.code
        self.counters[f"refused_{reason}"] += 1
        return reason

    def _read(self, data: bytes) -> Message:
        message = Message.from_bytes(data)
        message.check(_now_ms())
        return message

    def _take(self, message: Message, *, private: bool) -> _Arrival:
        """Let a verified message wait for its turn, once."""
        if self._readers is not None and not self._readers.room(message):
            # it is not remembered as taken, so that it may come again
            raise RemoteViolation(BUSY, "the agent's inbox is full")
        self._replay.check(message, _now_ms())
        arrival = _Arrival(message, private)
        self._arrivals[message.sender, message.id] = arrival
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        for lost in self._waiting.push(message.sender, arrival):
            self.counters["dropped_flood"] += 1
            lost.dropped = True
            # nobody saw it, so that it may be sent again
            self._replay.withdraw(lost.message)
            self._settle(lost)
        self._arrived.set()
        return arrival

    def _settle(self, arrival: _Arrival) -> None:
        self._arrivals.pop((arrival.message.sender, arrival.message.id), None)
        arrival.done.set()

    @property
    def waiting(self) -> int:
        """How many messages wait to be handed on, at most `limits.MAIL_WAITING_MAX`."""
        return len(self._waiting)

    async def settled(self) -> None:
        """Wait until everything that was taken so far is handed on."""
        await self._idle.wait()

    async def _run(self) -> None:
        """Write down and hand on what waits, for ever.

        Raises:
            StoreError: it cannot be written down. Nothing of it was handed on; the node must stop.
        """
        while True:
            batch = self._waiting.poll(limits.MAIL_BATCH_MAX)
            if not batch:
                self._idle.set()
                self._arrived = trio.Event()
                await self._arrived.wait()
                continue
            if self._readers is not None:
                # before it is remembered as taken: else a crash in between would lose what its sender may not repeat
                await self._readers.keep([arrival.message for arrival in batch])
            await self._journal.record([Taken.of(arrival.message) for arrival in batch], self._replay)
            for arrival in batch:
                self._hand_on(arrival)
                self._settle(arrival)

    def _hand_on(self, arrival: _Arrival) -> None:
        message = arrival.message
        self.registry.register(message.sender, message.public_key)
        self.counters["received"] += 1
        received(self.tracer, message)
        for topic in message.topics:
            feeds = self._listeners.get(topic)
            if feeds is not None:
                self.counters["dropped_slow_reader"] += feeds.send(message)
        if message.sender != self.identity.id:
            self._deliver(message, private=arrival.private)

    def _net(self) -> Network:
        if self._network is None:
            raise NetworkError("the node is not running", hint="use it inside `async with Node(...)`")
        return self._network


async def _ask(net: Network, peer: PeerId, data: bytes, timeout_s: float) -> bytes:
    """Ask a peer, and connect to it first if it is not connected and an address of it is known.

    Raises:
        NetworkError: it cannot be reached, or did not answer in time.
    """
    with trio.move_on_after(timeout_s):
        await net.reach(peer)
        return await net.request(peer, data, math.inf)
    raise NetworkError(f"peer {peer} did not answer within {timeout_s:.1f} s")


def _now_ms() -> int:
    return int(time.time() * 1000)
