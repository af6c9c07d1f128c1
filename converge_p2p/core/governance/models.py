"""The governance models, and the ruleset each compiles to.

Knows: how dictatorial and democratic pools confirm claims and results. Must not know: tasks or votes.
Source: `docs/governance.md`; Paxos (Lamport 1998) for the intersection that every model must keep.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.formula import Threshold, least_overlap
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What a pool's governance compiles to.

    Attributes:
        grant: who together confirm a claim.
        endorse: who together vouch for a report before it is accepted; None where accepts decide directly.
        accept: who together settle a task.
        faults: f, how many electors may lie.
    """

    grant: Threshold
    endorse: Threshold | None
    accept: Threshold
    faults: int


@dataclass(frozen=True, slots=True)
class ProtocolRules:
    """The rules of the task register that safety rests on. All hold, always.

    The simulator turns one off to show that it would notice (see `testing.sim`); nothing else may.

    Attributes:
        lock_rule: a report repeats the value of the highest lock among the promises it names.
        fence_accepts: an elector endorses and accepts only in rounds not below its highest promise.
        endorse_phase: an elector accepts only with a quorum of endorsements.
        count_members: a quorum is counted over all electors, not over the votes cast.
    """

    lock_rule: bool = True
    fence_accepts: bool = True
    endorse_phase: bool = True
    count_members: bool = True


ALL_RULES = ProtocolRules()


@dataclass(frozen=True, slots=True)
class Democratic:
    """Every elector has one vote; a quorum decides.

    Attributes:
        quorum: electors that decide together; 0 takes the smallest safe number, ⌊(n+f)/2⌋+1.
        faults: f, how many electors may lie. This version installs f = 0 only.
    """

    quorum: int = 0
    faults: int = 0

    kind = GovernanceKind.DEMOCRATIC


@dataclass(frozen=True, slots=True)
class Dictatorial:
    """One leader decides alone."""

    kind = GovernanceKind.DICTATORIAL


GovernanceModel = Democratic | Dictatorial


def smallest_quorum(electors: int, faults: int) -> int:
    """Return ⌊(n+f)/2⌋+1: any two such sets share more than f electors."""
    return (electors + faults) // 2 + 1


def compile_rules(spec: PoolSpec) -> Ruleset:
    """Compile a pool's governance and check that it can be safe.

    Raises:
        CodecError: the model's parameters contradict each other, or two deciding sets need not meet.
    """
    electors = frozenset(spec.electors)
    if spec.faults != 0:
        raise CodecError(f"governance with f = {spec.faults} lying electors is not supported; use f = 0")
    match spec.governance:
        case GovernanceKind.DICTATORIAL:
            if len(electors) != 1 or spec.quorum not in (0, 1):
                raise CodecError("a dictatorial pool has exactly one elector, its leader")
            alone = Threshold(1, electors)
            return Ruleset(alone, None, alone, 0)
        case GovernanceKind.DEMOCRATIC:
            need = spec.quorum or smallest_quorum(len(electors), spec.faults)
            quorum = Threshold(need, electors)
            # an honest worker cannot be told from a lying one, so only a pool that says so leaves the endorsing out
            direct = spec.policy.trusted_workers or len(electors) == 1
            rules = Ruleset(quorum, None if direct else quorum, quorum, spec.faults)
    check_rules(rules)
    return rules


def check_rules(rules: Ruleset) -> None:
    """Check that whoever promises meets whoever accepts, in an elector that is assumed honest.

    Raises:
        CodecError: grant and accept, two endorsements, or two accepts need not share more than f electors.
    """
    pairs = [("grant", rules.grant, "accept", rules.accept), ("accept", rules.accept, "accept", rules.accept)]
    if rules.endorse is not None:
        pairs.append(("endorse", rules.endorse, "endorse", rules.endorse))
    for name, first, other, second in pairs:
        overlap = least_overlap(first, second)
        if overlap <= rules.faults:
            raise CodecError(
                f"unsafe governance: a {name} quorum and an {other} quorum share only {overlap} electors, "
                f"more than {rules.faults} are needed; raise the quorum"
            )
