"""Who wants into pools, at the control interface; and the terms that say who may.

Knows: requests and answers, and join requests through `control.peer_ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from converge_node.control import views
from converge_node.control.ports import NodeLike, PoolLike
from converge_node.control.state import Asked, Endpoint
from converge_node.settings_check import topic_text
from converge_p2p.client import member_schema as schema
from converge_p2p.client.schema import utc_time
from converge_p2p.core.errors import Conflict, LocalError, NotFound
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.join_request import Application, HeldRequest
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import PublicKey

PREFIX_DIGITS_MIN: Final = 6
ADMITTED_DIGITS_MIN: Final = 12
"""A key whose id begins with six given digits is found within minutes, and asks in place of who is meant."""


def held_item(request: HeldRequest) -> schema.JoinItem:
    """Return a request that waits here."""
    return schema.JoinItem(
        pool=request.pool.hex(),
        agent_id=str(fingerprint(request.joiner)),
        public_key=request.joiner.hex(),
        own=False,
        state=request.state.value,
        asked_at=utc_time(request.asked_ms / 1000),
        expires_at=utc_time(request.expires_ms / 1000),
        note=request.note,
        reason=request.reason,
        motion=request.motion.hex(),
    )


def own_item(node: NodeLike, application: Application) -> schema.JoinItem:
    """Return what this node asks for."""
    return schema.JoinItem(
        pool=application.pool.hex(),
        agent_id=str(node.id),
        public_key=node.public_key.hex(),
        own=True,
        state=application.state.value,
        asked_at=utc_time(application.asked_ms / 1000),
        expires_at=utc_time(application.expires_ms / 1000),
        note=application.note,
        reason="; ".join(sorted({why for why in application.refused.values() if why})),
        silent=node.joins.asking.silence(application.pool),
        yes=len(application.given),
    )


async def joins(asked: Asked) -> list[schema.JoinItem]:
    """Return who waits here, then what this node asks for."""
    node = asked.node
    pool = None if asked.query.pool is None else views.find_pool_id(node, asked.query.pool)
    held = [held_item(each) for each in node.joins.requests.all(pool)]
    return held + [own_item(node, each) for each in node.joins.asking.all() if pool in (None, each.pool)]


async def ask_to_join(asked: Asked) -> schema.JoinItem:
    """Ask to be let into a pool. Raises as `JoinAsking.ask`."""
    node, body = asked.node, asked.body
    pool = views.find_pool_id(node, asked.places["pool"])
    application = await node.joins.asking.ask(
        pool, note=body.note, capabilities=body.capabilities, timeout_s=body.timeout_s
    )
    return own_item(node, application)


async def withdraw(asked: Asked) -> list[schema.JoinItem]:
    """Ask no more. Raises as `JoinAsking.withdraw`."""
    node = asked.node
    await node.joins.asking.withdraw(views.find_pool_id(node, asked.places["pool"]))
    return [own_item(node, each) for each in node.joins.asking.all()]


async def admit(asked: Asked) -> schema.JoinItem:
    """Let somebody in. Raises as `JoinRequests.admit`."""
    pool = asked.pool()
    joiner = _waiting(asked.node, pool, asked.places["agent"], ADMITTED_DIGITS_MIN)
    return held_item(await asked.node.joins.requests.admit(pool, joiner, asked.body.reason, vote=asked.body.vote))


async def refuse(asked: Asked) -> schema.JoinItem:
    """Refuse somebody. Raises as `JoinRequests.refuse`."""
    pool = asked.pool()
    joiner = _waiting(asked.node, pool, asked.places["agent"])
    return held_item(await asked.node.joins.requests.refuse(pool, joiner, asked.body.reason))


def _waiting(node: NodeLike, pool: PoolLike, reference: str, digits_min: int = PREFIX_DIGITS_MIN) -> PublicKey:
    text = reference.lower()
    if len(text) < digits_min or set(text) - set("0123456789abcdef"):
        raise LocalError(f"{reference!r:.80} is no agent id; expected {digits_min} to 64 hexadecimal digits")
    found = [each for each in node.joins.requests.all(pool.id) if fingerprint(each.joiner).startswith(text)]
    if len(found) > 1:
        raise Conflict(f"{reference} means several of those who ask", hint="give more digits")
    if not found:
        raise NotFound(
            f"no agent {reference:.64} asked here to join the pool",
            hint="`converge-node pool joins` lists who did; `pool invite --for` and `pool vouch` need no request",
        )
    return found[0].joiner


async def terms(asked: Asked) -> schema.TermsItem:
    """Return the terms in force. Raises `NotFound` as long as they are not known."""
    pool = asked.pool()
    spec = pool.spec
    policy: dict[str, Any] = {field.name: getattr(spec.policy, field.name) for field in dataclasses.fields(spec.policy)}
    policy["assignment"] = spec.policy.assignment.name.lower()
    return schema.TermsItem(
        pool=pool.id.hex(),
        name=spec.name,
        epoch=pool.council.epoch,
        governance=spec.governance.name.lower(),
        electors=[str(fingerprint(key)) for key in spec.electors],
        quorum=spec.quorum,
        faults=spec.faults,
        admission=spec.admission.name.lower(),
        admission_need=spec.admission_need,
        admission_rule=spec.admission_custom,
        whitelist=[str(fingerprint(key)) for key in spec.whitelist],
        whitelist_keys=[key.hex() for key in spec.whitelist],
        task_types=list(spec.task_types),
        topics=[topic_text(Topic.from_bytes(topic)) for topic in spec.topics],
        private=spec.private,
        policy=policy,
    )


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "joins": joins,
    "ask_to_join": ask_to_join,
    "withdraw_join": withdraw,
    "admit": admit,
    "refuse": refuse,
    "terms": terms,
}
