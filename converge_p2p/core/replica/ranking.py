"""Which claim an elector grants a round to: who may stand, and in which order.

Knows: the pool's assignment rule. Must not know: timers, or what the elector signed.
Source: `docs/protocol.md`, electors. The order decides who works, never what counts: electors that know
different claims may differ, and the round then has no certificate.
"""

from __future__ import annotations

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.governance.trust import objective_context
from converge_p2p.core.model.pool import AssignmentRule
from converge_p2p.core.oplog.bodies import Purpose, Token
from converge_p2p.core.types import OperationId, PublicKey, TaskId
from converge_p2p.core.view.changes import EpochRegister
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import Register, RoundVotes, StandingClaim
from converge_p2p.core.view.tasks import TaskRegister
from converge_p2p.core.view.vetoes import VetoRegister

_NEVER = Token(-1, -1)
_STILL = Token(-2, -2)
"""Before everybody else: who held the task when a new epoch began goes on."""

_ORDER = {
    Purpose.CANCEL: 0, Purpose.FAIL: 1, Purpose.WORK: 2, Purpose.EPOCH: 3, Purpose.DENY: 4, Purpose.PASS: 5,
}  # fmt: skip


def claim_rank(task: TaskId, number: int, worker: PublicKey) -> bytes:
    """Where a worker stands among those who claim a task in a round, if nothing else tells them apart: less is better.

    Rendezvous hashing (Thaler and Ravishankar, 1998), so that workers take turns without talking.
    """
    return tagged_hash("claim-rank", task, number.to_bytes(8, "big"), worker)


def best_claim(view: View, register: Register, token: Token) -> StandingClaim | None:
    """The claim to grant a round to, by the pool's assignment rule, the same for all who know the same claims."""
    claims = [claim for claim in register.claims.values() if eligible(view, register, claim)]
    if not claims:
        return None
    had = last_held(register, token)
    best = min(claims, key=lambda claim: _rank(view, register, claim, token, had))
    votes, rules = register.rounds.get(token) or RoundVotes(), register.counting(token.epoch).rules
    spoken = {voter for claim, voters in votes.granted.items() if claim != best.operation for voter in voters}
    if spoken and not rules.grant.reachable(spoken):
        # the best claim can no longer win this round: help the one that is ahead instead of splitting further
        ahead = [claim for claim in claims if votes.granted.get(claim.operation)]
        if ahead:
            return max(ahead, key=lambda claim: (len(votes.granted[claim.operation]), claim.operation))
    return best


def eligible(view: View, register: Register, claim: StandingClaim) -> bool:
    """Whether a round may be granted to a claim."""
    if not register.stands(claim) or not view.members.active(claim.author):
        return False
    if isinstance(register, EpochRegister):
        motions = register.motions
        return claim.purpose is Purpose.EPOCH and claim.author in view.electors and claim.ref in motions
    if isinstance(register, VetoRegister):
        return claim.author in view.electors and register.may_hold(claim)
    assert isinstance(register, TaskRegister)
    submitted = register.submitted
    if submitted is None:
        return False
    match claim.purpose:
        case Purpose.CANCEL:
            return claim.entitled == submitted.author
        case Purpose.FAIL:
            entitled = claim.author == submitted.author or claim.author in view.electors
            return entitled and register.exhausted()
        case Purpose.WORK:
            wanted = submitted.spec.required_capabilities
            able = not wanted or set(wanted) <= set(view.members.capabilities(claim.author))
            return able and not register.exhausted()
        case Purpose.EPOCH | Purpose.PASS | Purpose.DENY:
            return False


def last_held(register: Register, token: Token) -> dict[tuple[PublicKey, Purpose], Token]:
    """Who held a round before this one, for what, and the last such round."""
    had: dict[tuple[PublicKey, Purpose], Token] = {}
    for held, claim in register.held_rounds():
        if held < token:
            who = (claim.author, claim.purpose)
            had[who] = max(held, had.get(who, held))
    if had and token.round == 0:
        who, last = max(had.items(), key=lambda item: (item[1], item[0][0]))
        faults = register.counting(last.epoch).rules.faults
        if (who[0], last) not in register.releases and len(register.expired.get(last, ())) <= faults:
            had[who] = _STILL
    return had


def _rank(
    view: View,
    register: Register,
    claim: StandingClaim,
    token: Token,
    had: dict[tuple[PublicKey, Purpose], Token],
) -> tuple[bool, Token, int, bool, int, bytes, OperationId]:
    # whoever had its chance comes after everybody who had none, and then they take turns: a canceller or a worker
    # that died may not keep a round from those who live
    turn = had.get((claim.author, claim.purpose), _NEVER)
    tie = claim_rank(register.id, token.round, claim.author)
    lost, cost = _merit(view, register, claim, token)
    return register.reported_twice(claim.author), turn, _ORDER[claim.purpose], lost, cost, tie, claim.operation


def _merit(view: View, register: Register, claim: StandingClaim, token: Token) -> tuple[bool, int]:
    """Whether somebody else won the task's auction, and what the pool's rule says of a claim: less is better."""
    if claim.purpose is not Purpose.WORK or not isinstance(register, TaskRegister) or register.submitted is None:
        return False, 0
    winner = view.coordination.winner(register.id)
    lost = winner is not None and winner != claim.author
    spec, epoch = register.submitted.spec, view.epochs[token.epoch]
    match epoch.spec.policy.assignment:
        case AssignmentRule.BEST_BID:
            return lost, claim.bid
        case AssignmentRule.TRUST:
            return lost, -view.trust.score(claim.author, objective_context(spec.objective), token.epoch)
        case AssignmentRule.FIT:
            # whoever can do least besides is kept for what others cannot do
            return lost, len(set(view.members.capabilities(claim.author)) - set(spec.required_capabilities))
        case _:
            return lost, 0
