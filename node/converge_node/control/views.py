"""From the node's values to the schema's, and from what a user typed to ids.

Knows: both vocabularies. Must not know: HTTP.
Source: docs/control.md (ids, unique prefixes of at least six digits, unique names).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from converge_node.control.governance import decided_by
from converge_node.control.ports import AnnouncementLike, NodeLike, PeerLike, PoolLike
from converge_node.settings_check import parse_topic
from converge_p2p.client.schema import (
    CheckpointItem,
    FindingItem,
    FrozenItem,
    MemberItem,
    PeerItem,
    PoolDetail,
    PoolItem,
    ReportedItem,
    SubmitTask,
    TaskDetail,
    TaskItem,
    from_json_value,
    to_json_value,
)
from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import ConfigError, Conflict, ConvergeError, LocalError, NotFound
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.task import Outcome, Task, TaskValue, TaskView
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import PoolId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.audit import Finding

PREFIX_DIGITS_MIN: Final = 6
_HEX: Final = frozenset("0123456789abcdef")
_T = TypeVar("_T")


def peer_item(peer: PeerLike) -> PeerItem:
    """Return a peer as the schema shows it."""
    return PeerItem(
        peer_id=str(peer.peer_id),
        agent_id=str(peer.agent_id),
        public_key=peer.public_key.hex(),
        addresses=[str(address) for address in peer.addresses],
        direction=str(peer.direction),
        relayed=peer.relayed,
    )


def pool_item(pool: PoolLike) -> PoolItem:
    """Return a joined pool as lists show it."""
    return PoolItem(**_pool_fields(pool))  # type: ignore[arg-type]


async def pool_detail(pool: PoolLike) -> PoolDetail:
    """Return a joined pool with its members."""
    members = [
        MemberItem(agent_id=str(member.agent_id), public_key=member.public_key.hex(), elector=member.elector)
        for member in pool.members()
    ]
    return PoolDetail(
        **_pool_fields(pool),  # type: ignore[arg-type]
        member_list=members,
        frozen=[
            FrozenItem(agent_id=str(one.agent_id), public_key=one.public_key.hex(), seq=one.seq)
            for one in pool.frozen()
        ],
        unsure=pool.unsure,
        frontier=pool.frontier_digest,
        checkpoint=CheckpointItem(
            number=pool.checkpoint.number, tasks=pool.checkpoint.tasks, tail=pool.checkpoint.tail
        ),
        decided_by=decided_by(pool.spec) if pool.ready else "",
        culprits=await pool.culprits() if pool.ready else None,
        epoch=pool.council.epoch,
        admission=pool.spec.admission.name.lower() if pool.ready else "",
        quorum=pool.spec.quorum if pool.ready else 0,
        faults=pool.spec.faults if pool.ready else 0,
    )


def finding_item(finding: Finding) -> FindingItem:
    """Return what an audit found as the schema shows it."""
    return FindingItem(
        agent_id=str(fingerprint(finding.elector)),
        public_key=finding.elector.hex(),
        rule=finding.rule.name.lower(),
        text=finding.rule.value,
        subject="" if finding.subject is None else finding.subject.hex(),
        proof=[operation.hex() for operation in finding.proof],
        contradiction=finding.rule.is_contradiction,
    )


def announced_item(announcement: AnnouncementLike) -> PoolItem:
    """Return a pool that was only heard of."""
    return PoolItem(
        id=announcement.id.hex(),
        name=announcement.name,
        governance=announcement.governance,
        joined=False,
        creator=_agent_text(announcement.creator),
        task_types=list(announcement.task_types),
    )


def task_item(view: TaskView) -> TaskItem:
    """Return a task as lists show it."""
    return TaskItem(**_task_fields(view))  # type: ignore[arg-type]


def task_detail(view: TaskView) -> TaskDetail:
    """Return a task with inputs and result."""
    spec = view.spec
    return TaskDetail(
        **_task_fields(view),  # type: ignore[arg-type]
        inputs=to_json_value(view.inputs),
        result=to_json_value(view.result),
        awaiting=None if view.awaiting is None else shown_result(view.awaiting),
        evaluator=spec.evaluator,
        unjudged=[
            ReportedItem(value=value.hash.hex(), by=str(fingerprint(value.worker)), result=shown_result(value))
            for value in view.unjudged
        ],
        reported=[
            ReportedItem(value=value.hash.hex(), by=str(fingerprint(value.worker)), result=shown_result(value))
            for value in view.reported
        ],
        required_capabilities=list(spec.required_capabilities),
        claim_ttl_s=spec.claim_ttl_ms / 1000 or None,
        max_retries=spec.max_retries,
        attempt_timeout_s=spec.timeout_ms / 1000 or None,
    )


def task_of(body: SubmitTask) -> Task:
    """Return the task that a request describes.

    Raises:
        LocalError: its topic or its inputs are of another form.
    """
    numbers = {
        "claim_ttl_sec": body.claim_ttl_s,
        "max_retries": body.max_retries,
        "timeout_sec": body.attempt_timeout_s,
    }
    return Task(
        body.objective,
        from_json_value(body.inputs),
        key=body.key,
        topic=topic_of(body.topic).to_bytes() if body.topic else b"",
        required_capabilities=tuple(body.required_capabilities),
        priority=body.priority,
        evaluator=body.evaluator,
        constraints={name: number for name, number in numbers.items() if number is not None},
    )


def topic_of(text: str) -> Topic:
    """Return the topic that a request names, as `namespace` or `namespace@version`.

    Raises:
        LocalError: not of that form.
    """
    try:
        return parse_topic(text)
    except ConfigError as error:
        raise LocalError(str(error), hint=error.hint) from error


def value_hash(text: str) -> ValueHash | None:
    """Return the hash of a result that a request names, or None if it names none.

    Raises:
        LocalError: not 64 hexadecimal digits.
    """
    if text and (len(text) != 64 or set(text.lower()) - _HEX):
        raise LocalError(f"{text[:16]!r} is no hash of a result", hint="see `reported` in `task show --json`")
    return ValueHash(bytes.fromhex(text)) if text else None


def find_pool(node: NodeLike, reference: str) -> PoolLike:
    """Return the joined pool that an id, unique prefix or unique name means.

    Raises:
        NotFound: none, or one that was heard of but not joined.
        Conflict: several.
    """
    found = _matching(reference, [(pool.id, pool.name, pool) for pool in node.pools.values()])
    if len(found) == 1:
        return found[0]
    if found:
        raise _ambiguous("pool", reference)
    heard = _matching(reference, [(pool.id, pool.name, pool) for pool in node.known_pools()])
    if heard:
        raise NotFound(
            f"this node has not joined the pool {reference}",
            hint=f"join it first: converge-node pool join {heard[0].id.hex()}",
        )
    raise NotFound(f"no pool {reference} is known here", hint="`converge-node pool ls` lists the known pools")


def find_pool_id(node: NodeLike, reference: str) -> PoolId:
    """Return the id of a pool to join: a full id need not be known yet.

    Raises:
        NotFound: a prefix or name that no known pool has.
        Conflict: several pools have it.
    """
    if len(reference) == 64 and set(reference.lower()) <= _HEX:
        return PoolId(bytes.fromhex(reference))
    names = {pool.id: pool.name for pool in node.known_pools()} | {pool.id: pool.name for pool in node.pools.values()}
    found = _matching(reference, [(id_, name, id_) for id_, name in names.items()])
    if len(found) == 1:
        return found[0]
    if found:
        raise _ambiguous("pool", reference)
    raise NotFound(f"no pool {reference} is known here", hint="give its full id, or wait until it was announced")


def find_task(pool: PoolLike, reference: str) -> TaskView:
    """Return the task that an id or unique prefix means.

    Raises:
        NotFound: none.
        Conflict: several.
        LocalError: not hexadecimal, or too short.
    """
    text = reference.lower()
    if not text or set(text) - _HEX or not PREFIX_DIGITS_MIN <= len(text) <= 64:
        raise LocalError(f"{reference!r} is not a task id; expected {PREFIX_DIGITS_MIN} to 64 hexadecimal digits")
    if len(text) == 64:
        return pool.task(TaskId(bytes.fromhex(text)))
    found = [view for view in pool.tasks() if view.id.hex().startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise _ambiguous("task", reference)
    raise NotFound(f"no task {reference} in this pool", hint="`converge-node task ls POOL` lists its tasks")


def elector_keys(node: NodeLike, references: Sequence[str]) -> list[str]:
    """Return the public keys of electors given as agent ids or public keys, in the form that the node takes.

    Both are 64 hexadecimal digits, so an unknown one cannot be told apart, and an agent id that is taken for a key
    would be an elector that never votes. Hence an unknown one must be marked as a key, as in `key:<hex>`.

    Raises:
        LocalError: of another form.
        NotFound: neither an agent nor a key that is known here.
    """
    known = {str(node.id): node.public_key} | {str(peer.agent_id): peer.public_key for peer in node.peers()}
    for pool in node.pools.values():
        known |= {str(member.agent_id): member.public_key for member in pool.members()}
    keys = {key.hex() for key in known.values()}
    resolved: list[str] = []
    for reference in references:
        marked, text = reference.lower().startswith("key:"), reference.lower().removeprefix("key:")
        if len(text) != 64 or set(text) - _HEX:
            raise LocalError(f"{reference!r} is neither an agent id nor a public key (64 hexadecimal digits)")
        if marked or text in keys:
            resolved.append(f"key:{text}")
        elif text in known:
            resolved.append(f"key:{known[text].hex()}")
        else:
            raise NotFound(
                f"agent {reference} is not connected, so its public key is not known here",
                hint=f"connect to it first, or give its public key as key:{reference[:8]}…",
            )
    return resolved


def _pool_fields(pool: PoolLike) -> dict[str, object]:
    members = pool.members() if pool.ready else ()
    return {
        "id": pool.id.hex(),
        "name": pool.name,
        "governance": pool.governance,
        "joined": True,
        "ready": pool.ready,
        "task_types": list(pool.spec.task_types) if pool.ready else [],
        "members": len(members),
        "electors": sum(1 for member in members if member.elector),
        "has_quorum": pool.has_quorum,
        "private": pool.ready and pool.spec.private,
        "tasks": dict(Counter(view.state.value for view in pool.tasks())) if pool.ready else {},
    }


def _task_fields(view: TaskView) -> dict[str, object]:
    value = view.value
    return {
        "id": view.id.hex(),
        "pool": view.pool_id.hex(),
        "objective": view.objective,
        "state": view.state.value,
        "key": _key_text(view.spec.key),
        "submitter": str(fingerprint(view.submitter)),
        "assigned_to": None if view.assigned_to is None else str(fingerprint(view.assigned_to)),
        "settled_by": None if value is None else str(fingerprint(value.worker)),
        "epoch": view.epoch,
        "round": view.round,
        "attempts": view.attempts,
        "certified": view.certified,
        "priority": view.spec.priority,
        "value": "" if value is None else value.hash.hex(),
        "progress": None if view.progress is None else view.progress.fraction / 1000,
        "note": "" if view.progress is None else view.progress.note,
        "awaits_veto": view.awaiting is not None,
        "awaits_verdict": bool(view.unjudged),
        "reason": "" if value is None or value.outcome is Outcome.COMPLETED else _reason(view),
    }


def shown_result(value: TaskValue) -> object:
    """Return a result as a vetoer or an evaluator sees it; it is what a worker wrote, so it can be anything."""
    try:
        return to_json_value(decode_value(value.result))
    except ConvergeError:
        return "the result cannot be decoded"


def _reason(view: TaskView) -> str:
    """Return why a task ended otherwise; it is what a worker or the submitter wrote, so it can be anything."""
    try:
        result = view.result
    except ConvergeError:
        return "the reason cannot be decoded"
    if isinstance(result, dict):
        words = [str(result[name]) for name in ("error", "reason") if result.get(name)]
        result = ": ".join(words) or result
    return str(result or "")


def _matching(reference: str, candidates: Iterable[tuple[bytes, str, _T]]) -> list[_T]:
    listed = list(candidates)
    text = reference.lower()
    if len(text) >= PREFIX_DIGITS_MIN and not set(text) - _HEX:
        by_id = [item for id_, _, item in listed if id_.hex().startswith(text)]
        if by_id:
            return by_id
    return [item for _, name, item in listed if name == reference]


def _ambiguous(what: str, reference: str) -> Conflict:
    return Conflict(f"several {what}s match {reference}", hint="give more digits of the id")


def _key_text(key: bytes) -> str:
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return f"hex:{key.hex()}"
    return text if text.isprintable() else f"hex:{key.hex()}"


def _agent_text(creator: object) -> str:
    return str(fingerprint(PublicKey(creator))) if isinstance(creator, bytes) else str(creator)
