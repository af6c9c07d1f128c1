"""What the control interface says and hears about agents; the rest of its schema is in `schema`.

Knows: the shape of requests and answers in JSON. Must not know: HTTP, the node, or how a terminal shows it.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from converge_p2p.client.schema import Count
from converge_p2p.core import limits

Limit = Annotated[int, Meta(ge=1, le=limits.QUERY_RESULTS_MAX)]
Share = Annotated[float, Meta(ge=0, le=1)]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer. Unknown fields are ignored, so that a newer node can say more."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request. An unknown field is an error: it would be ignored silently otherwise."""


class CapabilityItem(_Answer, frozen=True):
    """Something an agent says it can do, with its version as `major.minor`."""

    name: str
    version: str
    cost: Count
    latency_ms: Count
    concurrency: Count
    attributes: dict[str, Any]


class AgentItem(_Answer, frozen=True):
    """What an agent says of itself. It is signed, and proves nothing but that the agent said so.

    Attributes:
        sequence: higher replaces lower.
        topics: each with `namespace`, `attributes` and `version`.
        trust: what this node thinks of the agent, 0 to 1.
        own: it is this node itself.
    """

    id: str
    public_key: str
    name: str
    sequence: Count
    issued_at: str
    expires_at: str
    addresses: list[str]
    topics: list[dict[str, Any]]
    capabilities: list[CapabilityItem]
    trust: Share
    own: bool


class HostedItem(_Answer, frozen=True):
    """An agent that this node hosts.

    Attributes:
        kind: name of its class.
        state: idle, busy or offline, or what it says of itself.
        ok: its loop runs, the last turn succeeded, and no turn hangs.
        failures_in_row: since the last turn that succeeded; `last_error` is empty if there was none.
        inbox: messages that wait; `dropped`: lost for want of room; `blocked`: had to wait elsewhere.
        claims: tasks it stands for, and `followed`: decisions that wait for an answer.
    """

    name: str
    kind: str
    state: str
    ok: bool
    capabilities: list[str]
    topics: list[str]
    discoverable: bool
    turns: Count
    failures: Count
    failures_in_row: Count
    restarts: Count
    last_error: str
    inbox: Count
    dropped: Count
    blocked: Count
    claims: Count
    followed: Count


class RecordItem(_Answer, frozen=True):
    """An entry of an agent's replay log.

    Attributes:
        hash: hexadecimal; the next entry holds it.
        data: base64.
    """

    number: Count
    hash: str
    data: str


class RevokedItem(_Answer, frozen=True):
    """Whether something had been published."""

    revoked: bool


class PublishAgent(_Request, frozen=True):
    """Let the node's agent be found, also after a restart.

    Attributes:
        topics: as `namespace` or `namespace@version`.
        capabilities: as `name`, `name@1.2` or `name@1.2:5`, where 5 is the cost.
    """

    name: str = ""
    topics: list[str] = []
    capabilities: list[str] = []


class FindAgents(_Request, frozen=True):
    """Look for agents. All that is asked must hold.

    Attributes:
        topics: as `namespace` or `namespace@version`.
        capabilities: as `name`; `name@1.2` is at least that and of its major version; `name@1.2-3.0` at least the one
            and below the other; `:5` after any of these is the highest cost.
        trust_threshold: the least trust of this node in them.
        trust_context: what the trust is for; empty is overall.
        refresh: ask the hash table, even if somebody is known here.
    """

    topics: list[str] = []
    capabilities: list[str] = []
    trust_threshold: Share = 0.0
    trust_context: str = ""
    limit: Limit = 100
    refresh: bool = False
