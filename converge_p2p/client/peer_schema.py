"""What the control interface says and hears about peers and the settings; the rest of its schema is in `schema`.

Knows: the shape of requests and answers in JSON. Must not know: HTTP, the node, or how a terminal shows it.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from converge_p2p.client.schema import Count, Positive

PINGS_MAX = 100


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer. Unknown fields are ignored, so that a newer node can say more."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request. An unknown field is an error: it would be ignored silently otherwise."""


class PeerReportItem(_Answer, frozen=True):
    """What is known of a peer, whether or not it is connected.

    Attributes:
        addresses: where it may be reached, best first; without `/p2p/…`.
        direction: of the connection, `inbound` or `outbound`; empty without one.
        since: when it began.
        pools: ids of the pools that both are members of.
        trust: what this node thinks of its agent, 0 to 1.
        violations: how often it broke the protocol lately.
        blocked: whether it is kept out; `blocked_s` is for how many seconds more, null is until it is let in.
        bootstrap: whether it is dialled for ever.
    """

    peer_id: str
    agent_id: str
    public_key: str
    connected: bool
    addresses: list[str]
    trust: float
    violations: Count
    blocked: bool
    blocked_s: float | None = None
    bootstrap: bool = False
    direction: str = ""
    relayed: bool = False
    replicating: bool = False
    since: str = ""
    pools: list[str] = []


class ConnectPeer(_Request, frozen=True):
    """Connect to a peer: an address with `/p2p/…`, or a name of a peer whose address is known."""

    peer: str
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 15.0


class NamePeer(_Request, frozen=True):
    """A peer: its id, an address with `/p2p/…`, or six digits or more of the id of one connected or kept out."""

    peer: str


class BlockPeer(_Request, frozen=True):
    """Keep a peer out. `seconds`: null is until it is let in."""

    peer: str
    seconds: Positive | None = None


class PingPeer(_Request, frozen=True):
    """Measure how long a few bytes take to a connected peer and back."""

    peer: str
    count: Annotated[int, Meta(ge=1, le=PINGS_MAX)] = 1


class PingItem(_Answer, frozen=True):
    """How long that took, in milliseconds, each time."""

    peer_id: str
    agent_id: str
    milliseconds: list[float]


class BootstrapItem(_Answer, frozen=True):
    """An address that is dialled for ever, and whether its peer is connected."""

    address: str
    peer_id: str
    connected: bool


class SettingChange(_Answer, frozen=True):
    """A setting that has another value than the node runs with.

    Attributes:
        key: `section.key`.
        before, after: the values.
        effect: `applied`, or `restart` if the node takes it at its next start only.
    """

    key: str
    before: Any
    after: Any
    effect: Literal["applied", "restart"]


class ReloadItem(_Answer, frozen=True):
    """What reading the settings again changed.

    Attributes:
        file: that was read.
        troubles: what was changed and did not work out yet, such as a topic that cannot be joined.
    """

    file: str
    changes: list[SettingChange] = []
    troubles: list[str] = []


class TopicPeerItem(_Answer, frozen=True):
    """A connected peer that takes part in a topic."""

    peer_id: str
    agent_id: str
