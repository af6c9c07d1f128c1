"""Agents at the control interface: publish this one, and find others.

Knows: their requests and answers, and the node through `control.ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

import base64
import re
from typing import Final

import trio

from converge_node.control.ports import NodeLike
from converge_node.control.views import topic_of
from converge_p2p.client import agent_schema as schema
from converge_p2p.client.schema import utc_time
from converge_p2p.core.errors import Conflict, LocalError, NotFound
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.query import CapabilityNeed, DiscoveryQuery
from converge_p2p.core.types import AgentId

PREFIX_DIGITS_MIN: Final = 6
RECORD_ENTRIES_MAX: Final = 64
"""At most so many entries of a replay log in one answer."""
_HEX: Final = frozenset("0123456789abcdef")
_CAPABILITY: Final = re.compile(
    r"([^@:]+)(?:@(\d{1,15})\.(\d{1,15})(?:-(\d{1,15})\.(\d{1,15}))?)?(?::(\d{1,15}))?", re.ASCII
)


def agent_item(node: NodeLike, descriptor: AgentDescriptor) -> schema.AgentItem:
    """Return a descriptor as the schema shows it."""
    return schema.AgentItem(
        id=descriptor.agent_id,
        public_key=descriptor.public_key.hex(),
        name=descriptor.name,
        sequence=descriptor.sequence,
        issued_at=utc_time(descriptor.issued_ms / 1000),
        expires_at=utc_time(descriptor.expires_ms / 1000),
        addresses=list(descriptor.addresses),
        topics=[topic.to_dict() for topic in descriptor.topics],
        capabilities=[
            schema.CapabilityItem(
                name=skill.name,
                version=f"{skill.version[0]}.{skill.version[1]}",
                cost=skill.cost,
                latency_ms=skill.latency_ms,
                concurrency=skill.concurrency,
                attributes=dict(skill.attributes),
            )
            for skill in descriptor.capabilities
        ],
        trust=node.discovery.trust.score(descriptor.agent_id),
        own=descriptor.agent_id == node.id,
    )


def list_agents(node: NodeLike, limit: int) -> list[schema.AgentItem]:
    """Return agents that are known here, sorted by id."""
    return [agent_item(node, one) for one in node.discovery.find(DiscoveryQuery(limit=limit))]


def list_hosted(node: NodeLike) -> list[schema.HostedItem]:
    """Return the agents that the node hosts, by name."""
    return [
        schema.HostedItem(
            name=each.name,
            kind=each.kind,
            state=each.state,
            ok=each.health.ok,
            capabilities=list(each.capabilities),
            topics=list(each.topics),
            discoverable=each.discoverable,
            turns=each.health.turns,
            failures=each.health.failures,
            failures_in_row=each.health.failures_in_row,
            restarts=each.health.restarts,
            last_error=each.health.last_error,
            inbox=each.health.inbox,
            dropped=each.health.dropped,
            blocked=each.health.blocked,
            claims=each.health.claims,
            followed=each.health.followed,
        )
        for each in node.hosting.hosted()
    ]


async def read_record(node: NodeLike, name: str, after: int, limit: int) -> list[schema.RecordItem]:
    """Return entries of an agent's replay log that come after a number, the oldest first."""
    entries = await trio.to_thread.run_sync(node.hosting.replay_entries, name, after, limit)
    return [
        schema.RecordItem(number=entry.number, hash=entry.hash.hex(), data=base64.b64encode(entry.data).decode())
        for entry in entries
    ]


async def find_agents(node: NodeLike, body: schema.FindAgents) -> list[schema.AgentItem]:
    """Look for agents.

    Raises:
        LocalError, LimitExceeded: a capability or topic of another form, or too many.
    """
    query = DiscoveryQuery(
        tuple(_need(text) for text in body.capabilities),
        tuple(topic_of(text) for text in body.topics),
        body.trust_threshold,
        body.trust_context,
        body.limit,
    )
    return [agent_item(node, one) for one in await node.discovery.query(query, refresh=body.refresh)]


async def publish(node: NodeLike, body: schema.PublishAgent) -> schema.AgentItem:
    """Let the node's agent be found, now and after a restart.

    Raises:
        LocalError, LimitExceeded: a capability or topic of another form, or too much.
    """
    said = await node.discovery.register(
        [_capability(text) for text in body.capabilities],
        [topic_of(text) for text in body.topics],
        body.name,
        keep=True,
    )
    return agent_item(node, said)


async def show_agent(node: NodeLike, reference: str) -> schema.AgentItem:
    """Return the newest that can be found of the agent that an id or unique prefix means.

    Raises:
        NotFound: none, or it left.
        Conflict: several.
        LocalError: not hexadecimal, or too short.
    """
    text = reference.lower()
    if set(text) - _HEX or not PREFIX_DIGITS_MIN <= len(text) <= 64:
        raise LocalError(f"{reference!r} is not an agent id; expected {PREFIX_DIGITS_MIN} to 64 hexadecimal digits")
    if len(text) < 64:
        found = node.discovery.matching(text)
        if len(found) > 1:
            raise Conflict(f"{reference} means several agents", hint="give more digits")
        if not found:
            raise NotFound(f"no agent {reference} is known here", hint="give its full id to ask the network")
        text = found[0]
    return agent_item(node, await node.discovery.lookup(AgentId(text)))


def _capability(text: str) -> Capability:
    name, version, below, cost = _parts(text)
    if below is not None:
        raise LocalError(f"{text!r} is a range of versions; publish one, as in translate@1.2")
    return Capability(name, version or (1, 0), cost or 0)


def _need(text: str) -> CapabilityNeed:
    return CapabilityNeed(*_parts(text))


def _parts(text: str) -> tuple[str, tuple[int, int] | None, tuple[int, int] | None, int | None]:
    match = _CAPABILITY.fullmatch(text)
    if match is None:
        raise LocalError(
            f"{text!r} is not a capability", hint="write for example translate, translate@1.2 or translate@1.2:5"
        )
    name, major, minor, below_major, below_minor, cost = match.groups()
    version = None if major is None else (int(major), int(minor))
    below = None if below_major is None else (int(below_major), int(below_minor))
    return name, version, below, None if cost is None else int(cost)
