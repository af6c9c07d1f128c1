"""Who may become a member.

Knows: the admission policies, and the rules that applications register. Must not know: the membership itself (see
`view.members`), or how a proof is made (see `proofs`).
Source: the concepts page (open, whitelist, token, trust threshold, custom); `docs/protocol.md`, admission. An empty
whitelist admits nobody.

Every answer is a function of the terms, the epoch that the join names, and the join itself: the same on every node, at
any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, Conflict, LocalError
from converge_p2p.core.governance.proofs import read_invitation_use, read_vouches
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.pool import AdmissionKind, PoolSpec
from converge_p2p.core.types import AgentId, PoolId, PublicKey


@dataclass(frozen=True, slots=True)
class AdmissionContext:
    """What a join is judged by, beside the terms.

    Attributes:
        pool: the pool.
        epoch: the epoch that the join names.
        electors: those of that epoch.
        creator: who founded the pool, or None if it was expelled.
        joiner: whose join it is.
        proof: what the join shows.
    """

    pool: PoolId
    epoch: int
    electors: frozenset[PublicKey]
    creator: PublicKey | None
    joiner: PublicKey
    proof: bytes = field(default=b"", repr=False)


AdmissionRule: TypeAlias = Callable[[AgentId, AdmissionContext], bool]
"""Whether an agent may join. Pure and deterministic: the same answer on every node, at any time."""


class UnknownAdmission(CodecError):
    """A pool names an admission rule that is not registered here. Its terms may be right."""

    code = "unknown_admission"


def admits(spec: PoolSpec, author: PublicKey, context: AdmissionContext | None = None) -> bool:
    """Whether the terms let somebody in who is neither elector nor creator.

    Args:
        spec: the terms of the epoch that the join names.
        author: who joins.
        context: what the join shows; without it, the key alone is judged.

    Raises:
        UnknownAdmission: the terms name a rule that is not registered here; nobody is admitted.
    """
    match spec.admission:
        case AdmissionKind.OPEN:
            return True
        case AdmissionKind.WHITELIST:
            return author in spec.whitelist
        case AdmissionKind.TOKEN:
            return context is not None and _invited(context)
        case AdmissionKind.VOUCHED:
            return context is not None and _vouched_for(context, max(1, spec.admission_need))
        case AdmissionKind.CUSTOM:
            rule = admission_rule(spec.admission_custom)
            return context is not None and _allowed(rule, context)


def judges_key(spec: PoolSpec) -> bool:
    """Whether the key alone says who may join. Otherwise only a join can be judged, by the proof it shows."""
    return spec.admission in (AdmissionKind.OPEN, AdmissionKind.WHITELIST)


def check_admission(spec: PoolSpec) -> None:
    """Check that the terms of admission fit each other, and that this node knows the rule they name.

    Raises:
        CodecError: a field is there that the policy does not use, or one is missing.
        UnknownAdmission: the rule is not registered here.
    """
    if spec.whitelist and spec.admission is not AdmissionKind.WHITELIST:
        raise CodecError("only admission by whitelist has a whitelist")
    vouched = spec.admission is AdmissionKind.VOUCHED
    if vouched and not 1 <= spec.admission_need <= len(spec.electors):
        raise CodecError("admission by vouches needs 1 or more of them, and no more than there are electors")
    if spec.admission_need and not vouched:
        raise CodecError("only admission by vouches says how many are needed")
    if bool(spec.admission_custom) != (spec.admission is AdmissionKind.CUSTOM):
        raise CodecError("admission by an own rule names that rule, and no other admission does")
    if spec.admission is AdmissionKind.CUSTOM:
        admission_rule(spec.admission_custom)


def _invited(context: AdmissionContext) -> bool:
    try:
        shown = read_invitation_use(context.proof, context.pool)
    except CodecError:
        return False
    invitation = shown.invitation
    if context.epoch > invitation.until_epoch:
        return False
    if invitation.issuer != context.creator and invitation.issuer not in context.electors:
        return False
    return shown.admits(context.joiner)


def _vouched_for(context: AdmissionContext, need: int) -> bool:
    try:
        vouches = read_vouches(context.proof)
    except CodecError:
        return False
    count = 0
    for vouch in vouches:
        # one that does not count is not looked at any further: signatures cost
        if vouch.elector in context.electors and context.epoch <= vouch.until_epoch:
            if not vouch.genuine(context.pool, context.joiner):
                return False
            count += 1
    return count >= need


def _allowed(rule: AdmissionRule, context: AdmissionContext) -> bool:
    try:
        return rule(fingerprint(context.joiner), context) is True
    except Exception:  # noqa: BLE001 - a stranger chose the input; foreign code that fails on it admits nobody
        return False


_rules: dict[str, AdmissionRule] = {}


def register_admission(name: str, rule: AdmissionRule) -> None:
    """Make an admission rule known under the name that pools give it. On every node, before it takes part in one.

    Args:
        name: 1 to `limits.NAME_BYTES_MAX` bytes.
        rule: `can_admit(agent_id, context)`; pure and deterministic, or nodes will disagree about who is a member.

    Raises:
        LocalError: the name is empty or too long, or there are too many.
        Conflict: another rule has the name.
    """
    if not 1 <= len(name.encode()) <= limits.NAME_BYTES_MAX:
        raise LocalError(f"the name of an admission rule has 1 to {limits.NAME_BYTES_MAX} bytes")
    if _rules.get(name, rule) is not rule:
        raise Conflict(f"another admission rule is registered as {name!r}", hint="choose another name")
    if len(_rules) >= limits.ADMISSION_RULES_MAX and name not in _rules:
        raise LocalError(f"at most {limits.ADMISSION_RULES_MAX} admission rules can be registered")
    _rules[name] = rule


def forget_admission(name: str) -> None:
    """Take a registration back. Pools that name it can then not be taken part in."""
    _rules.pop(name, None)


def admission_rule(name: str) -> AdmissionRule:
    """Return the rule that is registered under a name.

    Raises:
        UnknownAdmission: there is none.
    """
    rule = _rules.get(name)
    if rule is None:
        raise UnknownAdmission(
            f"the admission rule {name!r} is not registered here",
            hint=f"call register_admission({name!r}, rule) before the node takes part in the pool",
        )
    return rule
