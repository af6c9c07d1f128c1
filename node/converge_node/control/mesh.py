"""Topics and invitations at the control interface.

Knows: their requests and answers, and the node through `control.ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from converge_node.control import views
from converge_node.control.ports import NodeLike, PoolLike
from converge_node.settings_check import topic_text
from converge_p2p.client import mesh_schema as schema
from converge_p2p.client.json_values import to_json_value
from converge_p2p.client.schema import utc_time
from converge_p2p.core.errors import CodecError, NotFound
from converge_p2p.core.governance.invitation_line import InvitationLine
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import TopicKey


class TopicHandleLike(Protocol):
    """A topic that was joined."""

    async def publish(self, payload: object) -> None: ...
    def messages(self) -> AbstractAsyncContextManager[AsyncIterator[Message]]: ...
    async def leave(self) -> None: ...


class Meshes:
    """Topics that were joined through the control interface or the settings, each once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._handles: dict[Topic, TopicHandleLike] = {}

    async def join(self, node: NodeLike, topic: Topic, key: TopicKey | None) -> None:
        """Take part in a topic. A second time changes nothing. Raises as `Node.join`."""
        await self._adopt(topic, await node.join(topic, key=key))

    async def _adopt(self, topic: Topic, handle: TopicHandleLike) -> None:
        if self._handles.setdefault(topic, handle) is not handle:
            await handle.leave()

    async def take_part(self, node: NodeLike, line: InvitationLine) -> None:
        """Take part in the topics of an invitation that was followed before. Raises as `Node.join`."""
        for handle in await node.invitations.take_part(line):
            await self._adopt(handle.topic, handle)

    async def join_topic(self, node: NodeLike, body: schema.JoinTopic) -> schema.TopicItem:
        """Take part in a topic. Raises as `Node.join`; CodecError: the key is not hexadecimal."""
        topic = views.topic_of(body.topic)
        try:
            key = TopicKey(bytes.fromhex(body.key)) if body.key else None
        except ValueError as error:
            raise CodecError("the key of a topic is hexadecimal") from error
        await self.join(node, topic, key)
        return schema.TopicItem(topic=topic_text(topic), private=key is not None)

    async def leave_topic(self, node: NodeLike, body: schema.LeaveTopic) -> list[schema.TopicItem]:
        """Leave a topic; return the others.

        Raises:
            NotFound: the node takes no part in it, or not because of this interface.
        """
        handle = self._handles.pop(views.topic_of(body.topic), None)
        if handle is None:
            raise NotFound(f"the topic {body.topic} was not joined here", hint="`converge-node topic ls` shows topics")
        await handle.leave()
        return topic_items(node)

    async def publish(self, body: schema.PublishOnTopic) -> schema.PublishOnTopic:
        """Say something on a topic.

        Raises:
            NotFound: the node takes no part in it. It is then said to nobody.
        """
        handle = self._handles.get(views.topic_of(body.topic))
        if handle is None:
            raise NotFound(f"the node takes no part in topic {body.topic}", hint="join it first")
        await handle.publish(body.payload)
        return body

    def watch(self, text: str) -> Callable[[], AbstractAsyncContextManager[AsyncGenerator[object, None]]]:
        """Return what opens the messages of a topic, as they are heard from then on.

        Raises:
            NotFound: the node takes no part in it.
        """
        handle = self._handles.get(views.topic_of(text))
        if handle is None:
            raise NotFound(f"the node takes no part in topic {text}", hint="join it first")

        @asynccontextmanager
        async def source() -> AsyncIterator[AsyncGenerator[object, None]]:
            async with handle.messages() as messages:
                yield _heard(text, messages)

        return source

    async def follow(
        self, node: NodeLike, body: schema.FollowInvitation
    ) -> tuple[schema.FollowedItem, PoolLike | None]:
        """Follow an invitation. Raises as `Invitations.accept`."""
        accepted = await node.invitations.accept(body.text, capabilities=body.capabilities, timeout_s=body.timeout_s)
        for handle in accepted.topics:
            await self._adopt(handle.topic, handle)
        return followed_item(accepted.line, running=True, pending=accepted.pending), accepted.pool


async def _heard(topic: str, messages: AsyncIterator[Message]) -> AsyncGenerator[object, None]:
    async for message in messages:
        yield schema.HeardItem(
            id=message.id.hex(),
            topic=topic,
            sender=str(message.sender),
            sent_at=utc_time(message.timestamp_ms / 1000),
            payload=to_json_value(message.payload),
        )


async def write_invitation(node: NodeLike, body: schema.WriteInvitation) -> schema.InvitationText:
    """Invite others. Raises as `Invitations.write`."""
    text = await node.invitations.write(
        pool=views.find_pool(node, body.pool) if body.pool else None,
        topics=[views.topic_of(topic) for topic in body.topics],
        joiner=views.elector_keys(node, [body.agent])[0] if body.agent else None,
        uses=body.uses,
        role=body.role,
        epochs=body.epochs,
        valid_s=body.valid_s,
        approval=body.approval,
    )
    return schema.InvitationText(text=text)


def mesh_item(node: NodeLike) -> schema.MeshItem:
    """Return the network and the topics of a node."""
    key = node.invitations.network_key
    accepted, connections = node.invitations.accepted_network or (b"", 0)
    return schema.MeshItem(
        network="" if key is None else key.network.hex(),
        topics=topic_items(node),
        accepts=accepted.hex(),
        accepted_connections=connections,
    )


def topic_items(node: NodeLike) -> list[schema.TopicItem]:
    """Return the topics of a node."""
    return [schema.TopicItem(topic=topic_text(topic), private=key is not None) for topic, key in node.topics().items()]


def followed_item(line: InvitationLine, *, running: bool, pending: bool = False) -> schema.FollowedItem:
    """Return what an invitation leads to."""
    return schema.FollowedItem(
        pool="" if line.pool is None else line.pool.pool.hex(),
        topics=[schema.TopicItem(topic=topic_text(topic), private=key is not None) for topic, key in line.topics],
        role=line.role,
        issuer=fingerprint(line.issuer),
        running=running,
        pending=pending,
    )
