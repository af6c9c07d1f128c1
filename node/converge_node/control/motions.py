"""Motions over the control interface: put a change to the electors, list what was put, and answer.

Knows: the schema, and a pool through `control.ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from converge_node.control.governance import admission_kind
from converge_node.control.ports import PoolLike
from converge_node.control.views import value_hash
from converge_p2p.client import schema
from converge_p2p.core.errors import Conflict, LocalError, NotFound
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.pool import AdmissionKind, PoolSpec
from converge_p2p.core.oplog.motions import MotionKind
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.core.view.motions import MotionView, Outcome

PREFIX_DIGITS_MIN = 6
BY_EVIDENCE = "by-evidence"
"""A choice among rival reports: the one for which most evidence speaks."""


def motion_item(pool: PoolLike, view: MotionView) -> schema.MotionItem:
    """Return a motion as the schema shows it."""
    motion = view.motion
    options = [_option(option) for option in motion.options]
    return schema.MotionItem(
        id=motion.id.hex(),
        pool=pool.id.hex(),
        kind=motion.kind.name.lower(),
        state=view.outcome.value,
        asks=_asks(pool.spec, view),
        author=str(fingerprint(motion.author)),
        epoch=motion.epoch,
        reason=motion.reason,
        task="" if motion.task is None else motion.task.hex(),
        options=options,
        decided="" if view.decided is None else options[view.decided],
        opinions=[
            schema.OpinionItem(agent_id=str(fingerprint(elector)), epoch=epoch, choice=options[choice])
            for epoch, elector, choice in view.ballots
        ],
    )


def _option(option: bytes) -> str:
    return option.decode() if option in (b"no", b"yes") else option.hex()


def _asks(now: PoolSpec, view: MotionView) -> list[str]:
    """What a motion asks for, in words, against the terms in force."""
    motion = view.motion
    if motion.task is not None:
        return [
            f"find the result of task {motion.task.hex()[:12]} wrong" if len(motion.options) == 2 else "choose a result"
        ]
    said = [f"expel {fingerprint(author)}" for author in motion.expelled]
    terms = motion.terms
    if terms is None:
        return said
    said += [f"add elector {fingerprint(key)}" for key in terms.electors if key not in now.electors]
    said += [f"remove elector {fingerprint(key)}" for key in now.electors if key not in terms.electors]
    said += [f"admit {fingerprint(key)}" for key in terms.whitelist if key not in now.whitelist]
    said += [f"admit {fingerprint(key)} no more" for key in now.whitelist if key not in terms.whitelist]
    for name in (
        "governance",
        "quorum",
        "faults",
        "admission",
        "admission_need",
        "policy",
        "model",
        "task_types",
        "topics",
    ):
        before, after = getattr(now, name), getattr(terms, name)
        if before != after:
            said.append(f"set {name} to {getattr(after, 'name', after)}")
    if said:
        return said
    # terms that were carried are those in force, so that nothing tells any more what they changed
    return ["install the terms in force now"] if view.outcome is Outcome.CARRIED else ["keep the terms"]


async def move(pool: PoolLike, body: schema.Move, keys_of: Callable[[Sequence[str]], list[PublicKey]]) -> MotionView:
    """Put a change to the electors.

    Raises:
        LocalError, NotFound, NotAuthorised: see `PoolHandle.council`.
    """
    now = pool.spec
    expel, gone = keys_of(body.expel), set(keys_of(body.remove_electors))
    strangers = gone - set(now.electors)
    if strangers:
        raise LocalError(f"{fingerprint(min(strangers))} is no elector of the pool")
    electors = (set(now.electors) | set(keys_of(body.add_electors))) - gone
    policy = now.policy
    if body.claim_ttl_s is not None:
        policy = replace(policy, claim_ttl_ms=round(body.claim_ttl_s * 1000))
    if body.max_retries is not None:
        policy = replace(policy, max_retries=body.max_retries)
    policy.check()
    admission, need, whitelist = _admission(now, body, keys_of)
    terms = replace(
        now,
        electors=tuple(sorted(electors)),
        quorum=now.quorum if body.quorum is None else body.quorum,
        faults=now.faults if body.faults is None else body.faults,
        policy=policy,
        admission=admission,
        admission_need=need,
        whitelist=whitelist,
    )
    if terms == now and not expel and not body.renew:
        raise LocalError("nothing to change was given", hint="see `converge-node pool propose --help`")
    council = pool.council
    return council.motion(
        await council.move(expel=expel, terms=None if terms == now and expel else terms, reason=body.reason)
    )


def _admission(
    now: PoolSpec, body: schema.Move, keys_of: Callable[[Sequence[str]], list[PublicKey]]
) -> tuple[AdmissionKind, int, tuple[PublicKey, ...]]:
    """Return who may join from then on. What another admission does not use is left out."""
    kind = now.admission if body.admission is None else admission_kind(body.admission)
    if kind is AdmissionKind.CUSTOM and kind is not now.admission:
        raise LocalError("a pool's own rule is chosen when it is founded", hint="propose another admission")
    if body.admit and kind is not AdmissionKind.WHITELIST:
        raise LocalError(
            f"agents are admitted by name only where a whitelist decides, and here it is {kind.name.lower()}",
            hint="add --admission whitelist, or see `pool invite --for` and `pool vouch`",
        )
    listed = tuple(sorted({*now.whitelist, *keys_of(body.admit)} - set(keys_of(body.expel))))
    need = now.admission_need if body.admission_need is None else body.admission_need
    return kind, need if kind is AdmissionKind.VOUCHED else 0, listed if kind is AdmissionKind.WHITELIST else ()


async def dispute(pool: PoolLike, task: TaskId, body: schema.Dispute) -> MotionView:
    """Put a settled result to the electors, or several results that stand against each other.

    Raises:
        LocalError: a rival is no hash of a result, or there is only one.
        NotFound: no such task.
    """
    council = pool.council
    if not body.rivals:
        return council.motion(await council.dispute(task, body.reason))
    rivals = [found for text in body.rivals if (found := value_hash(text)) is not None]
    if len(set(rivals)) < 2:
        raise LocalError("rival results are at least two different ones", hint="see `reported` in `task show --json`")
    return council.motion(await council.dispute_rivals(task, rivals, body.reason))


def find_motion(pool: PoolLike, reference: str) -> MotionView:
    """Return the motion that an id or unique prefix means.

    Raises:
        NotFound: none.
        Conflict: several.
        LocalError: not hexadecimal, or too short.
    """
    text = reference.lower()
    if len(text) < PREFIX_DIGITS_MIN or set(text) - set("0123456789abcdef"):
        raise LocalError(f"{reference!r} is not a motion's id; expected {PREFIX_DIGITS_MIN} to 64 hexadecimal digits")
    found = [view for view in pool.council.motions() if view.motion.id.hex().startswith(text)]
    if len(found) > 1:
        raise Conflict(f"{reference} means several motions", hint="give more digits")
    if not found:
        raise NotFound(f"no motion {reference} in this pool", hint="`converge-node pool motions POOL` lists them")
    return found[0]


async def say(pool: PoolLike, view: MotionView, choice: str) -> MotionView:
    """Give this elector's opinion.

    Raises:
        LocalError: an unknown choice.
        NotAuthorised, Conflict: see `PoolHandle.council`.
    """
    options = [_option(option) for option in view.motion.options]
    if choice == BY_EVIDENCE and view.motion.kind is MotionKind.RIVAL_REPORTS:
        await pool.council.say(view.motion.id, None)
        return pool.council.motion(view.motion.id)
    if choice not in options:
        raise LocalError(f"the motion is answered by {' or '.join(options)}, not by {choice!r}")
    await pool.council.say(view.motion.id, options.index(choice))
    return pool.council.motion(view.motion.id)
