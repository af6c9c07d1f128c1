"""What the control interface says and hears about topics and invitations; the rest of its schema is in `schema`.

Knows: the shape of requests and answers in JSON. Must not know: HTTP, the node, or how a terminal shows it.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from converge_p2p.client.schema import Positive
from converge_p2p.core import limits

Uses = Annotated[int, Meta(ge=1, le=limits.INVITATION_USES_MAX)]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer. Unknown fields are ignored, so that a newer node can say more."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request. An unknown field is an error: it would be ignored silently otherwise."""


class TopicItem(_Answer, frozen=True):
    """A topic the node takes part in, as `namespace` or `namespace@version`."""

    topic: str
    private: bool


class MeshItem(_Answer, frozen=True):
    """The network the node is in, and its topics.

    Attributes:
        network: the name of a private network, 16 digits that follow from its key; empty in a public one.
        accepts: during a change of the network's key, the name that follows from the other key.
        accepted_connections: connections that others made to this node with that key, and that live.
    """

    network: str
    topics: list[TopicItem]
    accepts: str = ""
    accepted_connections: int = 0


class JoinTopic(_Request, frozen=True):
    """Take part in a topic. `key`: of a private one, 64 hexadecimal digits."""

    topic: str
    key: str = ""


class LeaveTopic(_Request, frozen=True):
    """Take part in a topic no more."""

    topic: str


class PublishOnTopic(_Request, frozen=True):
    """Say something on a topic that the node takes part in. `payload` is any JSON value."""

    topic: str
    payload: Any = None


class HeardItem(_Answer, frozen=True):
    """A message that was heard on a topic.

    Attributes:
        sender: agent id; its signature was verified.
        sent_at: as the sender says.
        payload: byte strings are written as {"$bytes": "<base64>"}.
    """

    id: str
    topic: str
    sender: str
    sent_at: str
    payload: Any = None


class WriteInvitation(_Request, frozen=True):
    """Invite others to the node's network.

    Attributes:
        pool: to become a member of; empty: none.
        topics: to take part in, with the keys of private ones.
        agent: the only agent that may use it for the pool, or empty.
        uses: how many agents it lets into the pool; null: whoever holds it.
        role, epochs, valid_s: see `schema.InviteRequest`.
        approval: it lets nobody into the pool by itself: whoever follows it asks the pool's electors.
    """

    pool: str = ""
    topics: list[str] = []
    agent: str = ""
    uses: Uses | None = 1
    role: str = "worker"
    epochs: Annotated[int, Meta(ge=0)] = 0
    valid_s: Positive | None = None
    approval: bool = False


class InvitationText(_Answer, frozen=True):
    """An invitation, to be handed over in private."""

    text: str


class FollowInvitation(_Request, frozen=True):
    """Follow an invitation."""

    text: str
    capabilities: list[str] = []
    timeout_s: Positive = 30.0


class FollowedItem(_Answer, frozen=True):
    """What came of an invitation.

    Attributes:
        pool: id of the pool that was joined, or empty.
        issuer: agent id of who invited.
        running: whether a node followed it now, and not at its next start.
        pending: whether the electors of the pool were asked to let this node in, and did not answer yet.
    """

    pool: str
    topics: list[TopicItem]
    role: str
    issuer: str
    running: bool = True
    pending: bool = False
