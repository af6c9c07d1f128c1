"""Decisions about auctions, polls, negotiations and delegations, as commands of a pool's log.

Knows: which command a decision is. Must not know: whether it may be done (the replica says), or who is behind the port.
Source: the concepts page (coordination); `docs/coordination.md`.
"""

from __future__ import annotations

from nacl.utils import random as random_bytes

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import LocalError, NotFound
from converge_p2p.core.model import coordination_decision as cd, decision as d
from converge_p2p.core.oplog.coordination import AuctionRule, PollRule, Scope
from converge_p2p.core.replica import coordination as command
from converge_p2p.core.replica.auction_commands import CloseAuction, OpenAuction, SettleAuction
from converge_p2p.core.replica.negotiation_commands import AnswerProposal, CounterProposal, OpenNegotiation
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.runtime.ports import CoordinationPort

_KEY_BYTES = 16

DECISIONS: frozenset[type[d.Decision]] = d.COORDINATION | {
    cd.OpenAuction,
    cd.CloseAuction,
    cd.SettleAuction,
    cd.OpenPoll,
    cd.ClosePoll,
    cd.ActFor,
}
"""What is carried out here."""


async def coordinate(port: CoordinationPort, decision: d.Decision) -> OperationId | None:
    """Carry out a decision about coordination.

    Returns:
        The id of what was opened or made: a poll, an offer (which names its negotiation if it is the first), a
        delegation. Of an accepted offer the negotiation. None of a bid, and of what was done before.

    Raises:
        LocalError, LimitExceeded: it cannot be done; the message says why, and nothing was changed.
    """
    match decision:
        case d.SubmitBid(pool, task, amount):
            await port.bid(pool, task, amount)
            return None
        case cd.OpenAuction(pool, task, highest, second_price, expires_ms):
            rule = AuctionRule(highest=highest, second_price=second_price)
            return await port.coordinate(pool, OpenAuction(task, rule, expires_ms))
        case cd.CloseAuction(pool, task):
            return await port.coordinate(pool, CloseAuction(task))
        case cd.SettleAuction(pool, task):
            return await port.coordinate(pool, SettleAuction(task))
        case cd.OpenPoll():
            return await port.coordinate(decision.pool_id, _poll(decision))
        case cd.ClosePoll(pool, question):
            return await port.coordinate(pool, command.ClosePoll(OperationId(question)))
        case d.Propose():
            return await port.coordinate(decision.pool_id, _offer(port, decision))
        case d.Delegate():
            return await port.coordinate(decision.pool_id, _delegation(port, decision))
        case d.RevokeDelegation(pool, delegation):
            return await port.coordinate(pool, command.RevokeDelegation(OperationId(delegation)))
        case d.Vote() | d.AcceptProposal() | d.RejectProposal():
            signed = await port.coordinate(decision.pool_id, _own(port, decision))
            if isinstance(decision, d.AcceptProposal):
                return port.session_of(decision.pool_id, decision.proposal_id)
            return signed
        case cd.ActFor(delegation, action):
            act = command.ActFor(OperationId(delegation), _inner(port, action))
            return await port.coordinate(action.pool_id, act)
    raise LocalError(f"{type(decision).__name__} is no decision about coordination")


def _poll(decision: cd.OpenPoll) -> command.OpenPoll:
    return command.OpenPoll(
        decision.question,
        decision.options,
        PollRule.PLURALITY if decision.plurality else PollRule.MAJORITY,
        decision.quorum,
        command.Electorate.ELECTORS if decision.electors_only else command.Electorate.MEMBERS,
        decision.expires_ms,
    )


def _offer(port: CoordinationPort, decision: d.Propose) -> OpenNegotiation | CounterProposal:
    terms = encode_value(dict(decision.terms))
    if decision.session_id:
        return CounterProposal(OperationId(decision.session_id), terms)
    parties = tuple(map(port.key_of, decision.participants))
    return OpenNegotiation(terms, parties, port.epoch(decision.pool_id))


def _delegation(port: CoordinationPort, decision: d.Delegate) -> command.GiveDelegation:
    names = {scope.name.lower(): scope for scope in Scope}
    unknown = sorted(set(decision.scope) - names.keys())
    if unknown:
        raise LocalError(f"nobody can be given the scope {unknown[0]!r}; there are {', '.join(sorted(names))}")
    scopes = tuple(names[name] for name in decision.scope)
    until = port.epoch(decision.pool_id)
    return command.GiveDelegation(
        port.key_of(decision.delegate), scopes, until_epoch=until, expires_ms=decision.expires_ms
    )


def _own(
    port: CoordinationPort, decision: d.Vote | d.AcceptProposal | d.RejectProposal
) -> command.CastVote | AnswerProposal:
    match decision:
        case d.Vote(pool, question, option):
            return command.CastVote(OperationId(question), _option(port, pool, question, option))
        case d.AcceptProposal(_, proposal):
            return AnswerProposal(OperationId(proposal), True)
        case d.RejectProposal(_, proposal, reason):
            return AnswerProposal(OperationId(proposal), False, reason)


def _option(port: CoordinationPort, pool: PoolId, question: bytes, option: str) -> int:
    options = port.question(pool, question)
    if option not in options:
        raise NotFound(f"the poll has no option {option!r}; it has {', '.join(options)}")
    return options.index(option)


def _inner(
    port: CoordinationPort,
    action: d.SubmitTask | d.CancelTask | d.Vote | d.AcceptProposal | d.RejectProposal,
) -> command.SubmitFor | command.CancelFor | command.CastVote | AnswerProposal:
    match action:
        case d.SubmitTask(_, task):
            return command.SubmitFor(task.to_spec(key=random_bytes(_KEY_BYTES)))
        case d.CancelTask(_, task_id, reason):
            return command.CancelFor(task_id, reason)
        case d.Vote() | d.AcceptProposal() | d.RejectProposal():
            return _own(port, action)
