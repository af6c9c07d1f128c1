"""Letting newcomers in by a vote of the electors: which motion asks for that.

Knows: motions. Must not know: who waits (see `join_requests`).
Source: `docs/governance.md`, letting newcomers in.

Where a whitelist decides, the motion puts the newcomer on it. Where invitations do, it is one that keeps the terms,
and its reason names the newcomer: the electors carry it by the pool's own rule, and whoever holds the request then
gives the invitation. The log does not ask for that vote: an elector may invite without one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.pool import AdmissionKind, PoolSpec
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.motions import MotionView, Outcome

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle

EPOCHS_SINCE_MAX: Final = 2
"""A yes of the electors that was not used ends so many epochs after its own, the first of which it began itself."""


async def put_to_vote(pool: PoolHandle, joiner: PublicKey, reason: str) -> bytes:
    """Move that a newcomer is let in, or say yes to a motion that asks for it; return its id.

    Raises:
        LocalError: neither can be done here; see `Council.move` and `Council.say`.
    """
    council, spec = pool.council, pool.spec
    if (known := await council.second(lambda view: _asks_for(view, joiner, spec))) is not None:
        return bytes(known)
    if spec.admission is AdmissionKind.WHITELIST:
        listed = _with_listed(spec, joiner)
        return bytes(await council.move(terms=listed, reason=reason or f"let {fingerprint(joiner)[:12]} in"))
    said = _words(joiner) + (f": {reason}" if reason else "")
    return bytes(await council.move(terms=spec, reason=said))


def carried_vote(pool: PoolHandle, joiner: PublicKey) -> bytes:
    """Return the id of the motion by which the electors let a newcomer in who then needs an invitation, or nothing."""
    for view in pool.council.motions():
        if view.outcome is Outcome.CARRIED and _asks_for(view, joiner, pool.spec) and is_recent(pool, view):
            return bytes(view.motion.id)
    return b""


def is_recent(pool: PoolHandle, view: MotionView) -> bool:
    """Whether a motion that was carried still says what the electors want: they may have changed their minds since."""
    return pool.council.epoch <= view.motion.epoch + EPOCHS_SINCE_MAX


def is_moved_again(pool: PoolHandle, view: MotionView, joiner: PublicKey) -> bool:
    """Whether a motion that lapsed may be moved again: at once, and not under another admission than its own."""
    terms, kind = view.motion.terms, pool.spec.admission
    if terms is None or terms.admission is not kind or view.motion.epoch + 1 < pool.council.epoch:
        return False
    return kind is AdmissionKind.WHITELIST or is_vote_on(view, joiner)


def is_vote_on(view: MotionView, joiner: PublicKey) -> bool:
    """Whether a motion was made to let somebody in by an invitation; in other terms its words mean nothing."""
    motion = view.motion
    if motion.terms is None or motion.expelled or motion.terms.admission is not AdmissionKind.TOKEN:
        return False
    return (motion.reason + ":").startswith(_words(joiner) + ":")


def _asks_for(view: MotionView, joiner: PublicKey, now: PoolSpec) -> bool:
    """Whether a motion does nothing but let somebody in."""
    motion = view.motion
    if now.admission is AdmissionKind.WHITELIST:
        return motion.terms == _with_listed(now, joiner) and not motion.expelled
    return motion.terms == now and is_vote_on(view, joiner)


def _with_listed(spec: PoolSpec, joiner: PublicKey) -> PoolSpec:
    return replace(spec, whitelist=tuple(sorted({*spec.whitelist, joiner})))


def _words(joiner: PublicKey) -> str:
    # the whole id: of the first digits of one, anybody can make another
    return f"let agent {fingerprint(joiner)} in"
