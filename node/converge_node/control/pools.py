"""Pools at the control interface, and what is put to their electors.

Knows: requests and answers, and pools through `control.ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from converge_node.control import motions, views
from converge_node.control.governance import admission_kind, governance_model
from converge_node.control.requests import milliseconds
from converge_node.control.state import Asked, Endpoint
from converge_p2p.client import schema
from converge_p2p.core.model.pool import PoolPolicy


async def pools(asked: Asked) -> list[schema.PoolItem]:
    """Return joined pools, then announced ones."""
    node = asked.node
    joined = [views.pool_item(pool) for pool in node.pools.values()]
    heard = [views.announced_item(pool) for pool in node.known_pools() if pool.id not in node.pools]
    return joined + heard


async def pool(asked: Asked) -> schema.PoolDetail:
    """Return a pool with its members."""
    return await views.pool_detail(asked.pool())


async def create_pool(asked: Asked) -> schema.PoolDetail:
    """Found a pool. Raises as `Node.create_pool`."""
    node, body = asked.node, asked.body
    model = governance_model(body.governance, body.terms, lambda names: views.elector_keys(node, names))
    policy = PoolPolicy()
    if body.claim_ttl_s is not None:
        policy = replace(policy, claim_ttl_ms=milliseconds(body.claim_ttl_s))
    if body.max_retries is not None:
        policy = replace(policy, max_retries=body.max_retries)
    policy.check()
    made = await node.create_pool(
        body.name,
        governance=model,
        electors=views.elector_keys(node, body.electors),
        topics=[views.topic_of(topic) for topic in body.topics],
        task_types=body.task_types,
        admission=admission_kind(body.admission),
        whitelist=views.elector_keys(node, body.whitelist),
        admission_need=body.admission_need,
        admission_custom=body.admission_custom,
        policy=policy,
        private=body.private,
    )
    asked.state.pool_joined(made)
    return await views.pool_detail(made)


async def join_pool(asked: Asked) -> schema.PoolDetail:
    """Become a member of a pool. Raises as `Node.join_pool`."""
    node, body = asked.node, asked.body
    joined = await node.join_pool(
        views.find_pool_id(node, asked.places["pool"]),
        capabilities=body.capabilities,
        invitation=body.invitation or None,
        vouches=body.vouches,
        timeout_s=body.timeout_s,
    )
    asked.state.pool_joined(joined)
    return await views.pool_detail(joined)


async def leave_pool(asked: Asked) -> list[schema.PoolItem]:
    """Leave a pool. Raises as `PoolHandle.leave`."""
    await asked.pool().leave()
    return [views.pool_item(each) for each in asked.node.pools.values()]


async def invite(asked: Asked) -> schema.AdmissionText:
    """Write an invitation. Raises as `PoolHandle.invite`."""
    found, body = asked.pool(), asked.body
    joiner = views.elector_keys(asked.node, [body.agent])[0] if body.agent else None
    until = found.council.epoch + body.epochs
    text = found.invite(joiner=joiner, until_epoch=until, role=body.role, valid_s=body.valid_s)
    return schema.AdmissionText(pool=found.id.hex(), text=text)


async def vouch(asked: Asked) -> schema.AdmissionText:
    """Answer for an agent. Raises as `PoolHandle.vouch`."""
    found, body = asked.pool(), asked.body
    (agent,) = views.elector_keys(asked.node, [body.agent])
    text = found.vouch(agent, until_epoch=found.council.epoch + body.epochs)
    return schema.AdmissionText(pool=found.id.hex(), text=text)


async def audit(asked: Asked) -> list[schema.FindingItem]:
    """Return electors that broke a rule."""
    return [views.finding_item(finding) for finding in await asked.pool().audit()]


async def list_motions(asked: Asked) -> list[schema.MotionItem]:
    """Return what was put to the electors."""
    found = asked.pool()
    return [motions.motion_item(found, view) for view in found.council.motions()]


async def move(asked: Asked) -> schema.MotionItem:
    """Put a change to the electors. Raises as `motions.move`."""
    found = asked.pool()
    return motions.motion_item(found, await motions.move(found, asked.body, asked.keys))


async def say(asked: Asked) -> schema.MotionItem:
    """Give this elector's opinion. Raises as `motions.say`."""
    found = asked.pool()
    view = motions.find_motion(found, asked.places["motion"])
    return motions.motion_item(found, await motions.say(found, view, asked.body.choice))


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "pools": pools,
    "pool": pool,
    "create_pool": create_pool,
    "join_pool": join_pool,
    "leave_pool": leave_pool,
    "invite": invite,
    "vouch": vouch,
    "audit": audit,
    "motions": list_motions,
    "move": move,
    "say": say,
}
