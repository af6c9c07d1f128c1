"""What the application may ask of a negotiation, and the operation that answers it.

Knows: who may propose and answer what. Must not know: how an operation is signed, stored or sent.
Source: `docs/protocol.md`, negotiation.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.core.oplog.bodies import Body
from converge_p2p.core.oplog.coordination import AnswerBody, ProposeBody
from converge_p2p.core.replica.refusals import check_epoch, check_time, short
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.negotiation import ProposalView, SessionView


@dataclass(frozen=True, slots=True)
class OpenNegotiation:
    """Command: make an offer to others.

    Attributes:
        terms: opaque bytes, at most `limits.TERMS_BYTES_MAX`.
        parties: who else has to agree.
        until_epoch: last epoch in which anything is taken.
        expires_ms: Unix time until which answers are welcome, 0 for no end. Only told.
    """

    terms: bytes
    parties: tuple[PublicKey, ...]
    until_epoch: int = 0
    expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class CounterProposal:
    """Command: answer a proposal with another one. `prev` None is the head of the session."""

    session: OperationId
    terms: bytes
    prev: OperationId | None = None


@dataclass(frozen=True, slots=True)
class AnswerProposal:
    """Command: accept or reject another's proposal."""

    proposal: OperationId
    accepts: bool
    reason: str = ""


class NegotiationCommands:
    """Turns commands of the local identity into operation bodies."""

    def __init__(self, key: PublicKey, view: View) -> None:
        self._key = key
        self._view = view

    def negotiate(self, command: OpenNegotiation, epoch: int) -> Body:
        """Open a session.

        Raises:
            LocalError, LimitExceeded: it cannot be done.
        """
        parties = tuple(sorted(set(command.parties) - {self._key}))
        if not parties:
            raise LocalError("a negotiation needs somebody else", hint="name the parties")
        if len(parties) >= limits.PARTIES_PER_SESSION_MAX:
            raise LimitExceeded("PARTIES_PER_SESSION_MAX", f"at most {limits.PARTIES_PER_SESSION_MAX} negotiate")
        strangers = [key for key in parties if not self._view.members.active(key)]
        if strangers:
            raise NotFound(f"party {short(strangers[0])} is not an active member of the pool")
        _check_terms(command.terms)
        check_epoch("the negotiation", command.until_epoch, epoch)
        return ProposeBody(None, None, command.terms, parties, command.until_epoch, command.expires_ms)

    def _session(self, session: OperationId, party: PublicKey, epoch: int, wall_ms: int) -> SessionView:
        view = self._view.coordination.negotiations.view(session)
        if view is None:
            raise NotFound(f"no negotiation {short(session)} in this pool")
        if party not in view.parties:
            raise NotAuthorised("not a party of this negotiation, which were named when it was opened")
        check_epoch("the negotiation", view.until_epoch, epoch)
        check_time("the negotiation", view.expires_ms, wall_ms)
        return view

    def counter(self, command: CounterProposal, epoch: int, wall_ms: int) -> Body:
        """Make a proposal in a session.

        Raises:
            LocalError, LimitExceeded: it cannot be done.
        """
        session = self._session(command.session, self._key, epoch, wall_ms)
        prev = session.head if command.prev is None else command.prev
        if session.proposal(prev) is None:
            raise NotFound(f"no proposal {short(prev)} in this negotiation")
        taken = _side_taken(session, self._key, prev)
        if taken is not None and self._key not in taken.delegated:
            raise Conflict(
                f"this agent stands behind {short(taken.id)} already as the answer to {short(prev)}",
                hint="make the new proposal an answer to that one",
            )
        _check_terms(command.terms)
        return ProposeBody(command.session, prev, command.terms)

    def answer(self, command: AnswerProposal, party: PublicKey, epoch: int, wall_ms: int) -> AnswerBody | None:
        """Accept or reject a proposal in the name of a party; None if that was done already.

        Raises:
            LocalError: it cannot be done.
        """
        session_id = self._view.coordination.negotiations.session_of(command.proposal)
        if session_id is None:
            raise NotFound(f"no proposal {short(command.proposal)} in this pool")
        session = self._session(session_id, party, epoch, wall_ms)
        proposal = session.proposal(command.proposal)
        if proposal is None:
            raise Conflict("the proposal does not count: its author stands behind another one in its place")
        if proposal.author in (party, self._key):
            raise NotAuthorised("nobody can answer its own proposal, in its own name or another's")
        # what a delegate said in a party's name, the party itself may say otherwise
        overrides = party == self._key and party in proposal.delegated
        if not overrides and party in (proposal.accepted_by if command.accepts else proposal.rejected_by):
            return None
        if not overrides and party in (*proposal.accepted_by, *proposal.rejected_by):
            raise Conflict("the proposal was answered already, and the first answer counts")
        taken = _side_taken(session, party, proposal.prev)
        if command.accepts and taken is not None and not (party == self._key and party in taken.delegated):
            raise Conflict(
                f"the party stands behind {short(taken.id)} already, which answers the same proposal",
                hint="propose the terms again, as an answer to this one",
            )
        return AnswerBody(session_id, proposal.prev, command.proposal, command.accepts, command.reason)


def _side_taken(session: SessionView, party: PublicKey, prev: OperationId | None) -> ProposalView | None:
    """The proposal that a party stands behind in a place of the chain."""
    for proposal in session.proposals:
        if proposal.prev == prev and (proposal.author == party or party in proposal.accepted_by):
            return proposal
    return None


def _check_terms(terms: bytes) -> None:
    if len(terms) > limits.TERMS_BYTES_MAX:
        raise LimitExceeded(
            "TERMS_BYTES_MAX", f"the terms have {len(terms)} bytes, at most {limits.TERMS_BYTES_MAX} allowed"
        )
