"""Negotiations: offers that answer each other in a hash chain, and when all parties stand behind one.

Knows: sessions, the side each party takes, and what follows from them. Must not know: what the terms mean.
Source: `docs/protocol.md`, negotiation.

A party takes one side on each link of the chain: of all it proposes and accepts there, the first in its own chain. An
agreement is a proposal on which every party's side is. So two proposals on one `prev` are never both agreed, nobody can
withdraw from an agreement by an offer that comes later, and no clock is asked who was first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.oplog.coordination import AnswerBody, ProposeBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.delegation import Act, Delegations


class ProposalView(NamedTuple):
    """A proposal that counts.

    Attributes:
        depth: how many proposals stand before it in the chain.
        accepted_by, rejected_by: parties, sorted. The author is in neither.
        delegated: those of them whose answer a delegate gave; their own would go before it.
    """

    id: OperationId
    author: PublicKey
    prev: OperationId | None
    depth: int
    terms: bytes
    accepted_by: tuple[PublicKey, ...]
    rejected_by: tuple[PublicKey, ...]
    delegated: tuple[PublicKey, ...]


class SessionView(NamedTuple):
    """A negotiation as a replica sees it.

    Attributes:
        parties: everybody who has to agree, the opener among them, sorted.
        proposals: those that count, by depth, then id.
        head: the proposal to answer next: the deepest, of several the least id.
        agreement: the proposal that all parties stand behind; the deepest, of several the least id. None: no agreement.
        final: whether the agreement rests on no delegate's answer. One that does can be taken back.
    """

    id: OperationId
    opener: PublicKey
    parties: tuple[PublicKey, ...]
    until_epoch: int
    expires_ms: int
    proposals: tuple[ProposalView, ...]
    head: OperationId
    agreement: OperationId | None
    final: bool

    def proposal(self, proposal: OperationId) -> ProposalView | None:
        """A proposal that counts, or None."""
        return next((one for one in self.proposals if one.id == proposal), None)


class _Step(NamedTuple):
    """A proposal or an answer, as its author made it."""

    operation: OperationId
    epoch: int
    body: ProposeBody | AnswerBody


@dataclass(slots=True)
class _Party:
    """What a party stands behind.

    Attributes:
        sides: link → the proposal it is for, and whether a delegate said so.
        answers: proposal → accepted or rejected, and whether a delegate said so; the first answer counts.
    """

    sides: dict[OperationId | None, tuple[OperationId, bool]] = field(default_factory=dict)
    answers: dict[OperationId, tuple[bool, bool]] = field(default_factory=dict)


class Negotiations:
    """All negotiations of a pool."""

    def __init__(self, delegations: Delegations) -> None:
        self._delegations = delegations
        self._openings: dict[OperationId, tuple[PublicKey, int, ProposeBody]] = {}
        self._steps: dict[OperationId, dict[PublicKey, dict[OperationId, _Step]]] = {}
        self._acts: dict[OperationId, dict[OperationId, Act]] = {}
        self._sessions: dict[OperationId, OperationId] = {}

    # ------------------------------------------------------------ adding

    def apply(self, operation: Operation, body: ProposeBody | AnswerBody) -> None:
        """Note a proposal or an answer."""
        if isinstance(body, ProposeBody) and body.session is None:
            self._openings[operation.id] = (operation.author, operation.epoch, body)
        steps = self._steps.setdefault(_session_of(operation, body), {}).setdefault(operation.author, {})
        if len(steps) < limits.SESSION_STEPS_PER_PARTY_MAX:
            # the first in the author's chain are the same for everybody
            steps[operation.id] = _Step(operation.id, operation.epoch, body)
            if isinstance(body, ProposeBody):
                self._sessions[operation.id] = _session_of(operation, body)

    def void(self, operation: Operation, body: ProposeBody | AnswerBody) -> None:
        """Take an operation back whose author forked."""
        self._openings.pop(operation.id, None)
        self._sessions.pop(operation.id, None)
        self._steps.get(_session_of(operation, body), {}).get(operation.author, {}).pop(operation.id, None)

    def add_act(self, act: Act, body: AnswerBody) -> None:
        """Note an answer in another's name."""
        self._acts.setdefault(body.session, {})[act.operation] = act

    def void_act(self, act: Act, body: AnswerBody) -> None:
        """Take an answer in another's name back, whose author forked."""
        self._acts.get(body.session, {}).pop(act.operation, None)

    # ------------------------------------------------------------ reading

    @property
    def ids(self) -> list[OperationId]:
        """Every session, by id."""
        return sorted(self._openings)

    def session_of(self, proposal: OperationId) -> OperationId | None:
        """The session in which somebody made a proposal, or None."""
        return self._sessions.get(proposal)

    def view(self, session: OperationId) -> SessionView | None:
        """A session, or None if it is not known, its opener forked, or it has nobody to agree with."""
        opened = self._openings.get(session)
        if opened is None:
            return None
        opener, epoch, terms = opened
        names = tuple(sorted({opener, *terms.parties}))
        if len(names) < 2 or epoch > terms.until_epoch:
            return None
        parties = {name: _Party() for name in names}
        made = dict[OperationId, tuple[PublicKey, ProposeBody]]()
        for name, party in parties.items():
            self._own_steps(session, terms.until_epoch, name, party, made)
        self._acted_steps(session, terms.until_epoch, parties, made)
        proposals = tuple(_chain(session, parties, made))
        agreed = [one for one in proposals if all(_side(party, one) == one.id for party in parties.values())]
        # depth first: whoever stands behind a later agreement stood behind replacing the earlier one
        agreement = min(agreed, key=_deepest, default=None)
        return SessionView(
            session,
            opener,
            names,
            terms.until_epoch,
            terms.expires_ms,
            proposals,
            min(proposals, key=_deepest).id,
            None if agreement is None else agreement.id,
            agreement is not None and not any(party.sides[agreement.prev][1] for party in parties.values()),
        )

    def _own_steps(
        self,
        session: OperationId,
        until_epoch: int,
        name: PublicKey,
        party: _Party,
        made: dict[OperationId, tuple[PublicKey, ProposeBody]],
    ) -> None:
        for step in self._steps.get(session, {}).get(name, {}).values():
            if step.epoch > until_epoch:
                continue
            match step.body:
                case ProposeBody(_, prev):
                    made[step.operation] = (name, step.body)
                    party.sides.setdefault(prev, (step.operation, False))
                case AnswerBody() as answer:
                    _answer(party, answer, {name}, made, delegated=False)

    def _acted_steps(
        self,
        session: OperationId,
        until_epoch: int,
        parties: dict[PublicKey, _Party],
        made: dict[OperationId, tuple[PublicKey, ProposeBody]],
    ) -> None:
        # after all that the parties did themselves; of delegates' answers that contradict each other, the least id
        acts = self._acts.get(session, {})
        for operation in sorted(acts):
            act = acts[operation]
            principal = self._delegations.principal(act)
            party = None if principal is None else parties.get(principal)
            if principal is not None and party is not None and act.epoch <= until_epoch:
                assert isinstance(act.inner, AnswerBody)
                _answer(party, act.inner, {principal, act.author}, made, delegated=True)


def _session_of(operation: Operation, body: ProposeBody | AnswerBody) -> OperationId:
    return operation.id if body.session is None else body.session


def _answer(
    party: _Party,
    answer: AnswerBody,
    who: set[PublicKey],
    made: dict[OperationId, tuple[PublicKey, ProposeBody]],
    *,
    delegated: bool,
) -> None:
    """Count an answer, unless one of those who give it made the offer: nobody accepts its own, in anybody's name."""
    proposal = made.get(answer.proposal)
    if (proposal is not None and proposal[0] in who) or answer.proposal in party.answers:
        return
    party.answers[answer.proposal] = (answer.accepts, delegated)
    if answer.accepts:
        party.sides.setdefault(answer.prev, (answer.proposal, delegated))


def _chain(
    session: OperationId, parties: dict[PublicKey, _Party], made: dict[OperationId, tuple[PublicKey, ProposeBody]]
) -> Iterator[ProposalView]:
    """The proposals that count, by depth, then id: those whose author's side they are, back to the opening."""
    following: dict[OperationId | None, list[OperationId]] = {}
    for operation, (author, body) in made.items():
        if parties[author].sides[body.prev][0] == operation:
            following.setdefault(body.prev, []).append(operation)
    level, depth = [session], 0
    while level:
        for operation in sorted(level):
            author, body = made[operation]
            others = [name for name in parties if name != author]
            yield ProposalView(
                operation,
                author,
                body.prev,
                depth,
                body.terms,
                tuple(name for name in others if parties[name].sides.get(body.prev, (None,))[0] == operation),
                tuple(name for name in others if parties[name].answers.get(operation, _NONE)[0] is False),
                tuple(name for name in others if parties[name].answers.get(operation, _NONE)[1]),
            )
        level, depth = [child for operation in level for child in following.get(operation, ())], depth + 1


_NONE = (None, False)
"""No answer."""


def _side(party: _Party, proposal: ProposalView) -> OperationId | None:
    side = party.sides.get(proposal.prev)
    return None if side is None else side[0]


def _deepest(proposal: ProposalView) -> tuple[int, OperationId]:
    return -proposal.depth, proposal.id
