"""What is coordinated in a pool, as this node's agents are told of it.

Knows: auctions, polls, negotiations and delegations, and whom they concern. Must not know: agents.
Source: `docs/coordination.md`; `docs/concepts.md`, outcomes and waking.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.coordination import PollOpenBody, ProposeBody
from converge_p2p.core.replica.coordination_notices import CoordinationChanged, Matter
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.auctions import AuctionPhase, AuctionView
from converge_p2p.core.view.delegation import DelegationView
from converge_p2p.core.view.negotiation import SessionView
from converge_p2p.core.view.polls import PollPhase, PollView
from converge_p2p.runtime.events import CoordinationEvent, MatterView

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle


def event_of(pool: PoolHandle, changed: CoordinationChanged) -> CoordinationEvent | None:
    """Return how something that changed looks now, or None if it is not all here yet."""
    view = _view(pool, changed.matter, changed.id)
    if view is None:
        return None
    return CoordinationEvent(pool.id, changed.matter, changed.id, view, _content(pool, view))


def concerns(event: CoordinationEvent, own: PublicKey) -> bool:
    """Whether this node has a say in it, or waits for it."""
    match event.view:
        case AuctionView():
            return True
        case PollView() as poll:
            return own in poll.electorate or own == poll.opener
        case SessionView() as session:
            return own in session.parties
        case DelegationView() as given:
            return own in (given.delegate, given.delegator)


def phase_of(event: CoordinationEvent, own: PublicKey) -> Any:
    """Return what has to change before somebody is told again."""
    match event.view:
        case AuctionView() as auction:
            # who holds the auction waits for bids; who bids waits for the next phase
            counts = (len(auction.commits), len(auction.reveals)) if own == auction.auctioneer else ()
            return auction.phase, auction.winner, counts
        case PollView() as poll:
            # votes of others decide nothing by themselves
            return poll.phase, poll.winner
        case SessionView() as session:
            return session.head, session.agreement, [(one.accepted_by, one.rejected_by) for one in session.proposals]
        case DelegationView() as given:
            return given.revoked_at


def open_matters(pool: PoolHandle, own: PublicKey) -> Iterator[CoordinationEvent]:
    """Yield what this node has a say in now, for an agent that begins."""
    if not pool.ready:
        return
    state, epoch = pool.council.coordination, pool.driver.replica.epoch
    found: list[tuple[Matter, OperationId]] = [
        (Matter.AUCTION, auction.id) for auction in state.auctions.views() if auction.phase is not AuctionPhase.SETTLED
    ]
    for poll in state.polls.ids:
        seen = state.polls.view(poll)
        if seen is not None and seen.phase is PollPhase.OPEN and own not in seen.votes:
            found.append((Matter.POLL, poll))
    for session in state.negotiations.ids:
        talks = state.negotiations.view(session)
        if talks is not None and talks.agreement is None and talks.until_epoch >= epoch:
            found.append((Matter.NEGOTIATION, session))
    found += [(Matter.DELEGATION, given.id) for given in state.delegations.all() if given.revoked_at is None]
    for matter, name in found:
        event = event_of(pool, CoordinationChanged(matter, name))
        if event is not None and concerns(event, own):
            yield event


def _view(pool: PoolHandle, matter: Matter, name: OperationId) -> MatterView | None:
    state = pool.council.coordination
    match matter:
        case Matter.AUCTION:
            task = state.auctions.task_of(name)
            auction = None if task is None else state.auctions.of_task(task)
            # of several that one opens for a task, the first counts
            return auction if auction is not None and auction.id == name else None
        case Matter.POLL:
            return state.polls.view(name)
        case Matter.NEGOTIATION:
            return state.negotiations.view(name)
        case Matter.DELEGATION:
            return state.delegations.get(name)


def _content(pool: PoolHandle, view: MatterView) -> Any:
    """What people wrote, in clear; None where there is nothing, or it cannot be read (yet)."""
    match view:
        case PollView():
            body = pool.council.content(view.id)
            if isinstance(body, PollOpenBody):
                return {"question": body.question, "options": list(body.options)}
        case SessionView():
            # those that can be answered or were agreed on: a negotiation may have thousands of offers
            wanted = {view.head, *(() if view.agreement is None else (view.agreement,))}
            bodies = {offer: pool.council.content(offer) for offer in wanted}
            return {name: _terms(body.terms) for name, body in bodies.items() if isinstance(body, ProposeBody)}
        case _:
            pass
    return None


def _terms(terms: bytes) -> Any:
    try:
        return decode_value(terms)
    except CodecError:
        # terms are opaque to the protocol; those of an agent's decision are a map
        return terms
