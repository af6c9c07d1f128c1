"""What an agent is told between its turns: what became of its decisions, and what others coordinate.

Knows: the vocabulary. Must not know: who finds it out, or when a turn is.
Source: the concepts page (decisions); `docs/concepts.md`, outcomes.

Nothing of it has to be asked for: it stands in `Agent.events` during the next `decide`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from converge_p2p.core.model.decision import Decision
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.replica.coordination_notices import Matter as Matter
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.core.view.auctions import AuctionView
from converge_p2p.core.view.delegation import DelegationView
from converge_p2p.core.view.negotiation import SessionView
from converge_p2p.core.view.polls import PollView

MatterView = AuctionView | PollView | SessionView | DelegationView


class OutcomeKind(Enum):
    """What became of a decision.

    DONE: it was carried out; of what is decided by others only the asking was.
    REFUSED: it was not carried out, and nothing was changed.
    FAILED: something broke on the way; what was changed is unknown.
    GRANTED: the electors granted the claim, or the bid won.
    LOST: the claim, or the bid, is not this agent's, or not any more.
    SETTLED: what it was about has ended: the task, poll, auction or negotiation.
    """

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    GRANTED = "granted"
    LOST = "lost"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True)
class DecisionOutcome:
    """What became of a decision of this agent.

    Attributes:
        decision: which.
        kind: what became of it.
        value: DONE: what it gave (the id of a new task, pool or poll, the result of a tool). SETTLED: the state of the
            task as text, the option of the poll, the id of the agreed proposal, or None if there is none. GRANTED, of a
            bid: the price.
        reason: why, if it is LOST, REFUSED or FAILED; for people.
        error: the error, if it is REFUSED or FAILED.
        token: the fencing token (epoch, round) of a claim that was granted or lost.
        task: the task, where it is about one and known here.
    """

    decision: Decision
    kind: OutcomeKind
    value: Any = None
    reason: str = ""
    error: Exception | None = None
    token: tuple[int, int] | None = None
    task: TaskView | None = None


@dataclass(frozen=True, slots=True)
class CoordinationEvent:
    """An auction, poll, negotiation or delegation that this agent may take part in looks different.

    Attributes:
        pool_id: where.
        matter: what it is.
        id: the operation that opened it: `Vote.question_id`, `Propose.session_id`, `ActFor.delegation_id`.
        view: how it is now. In a private pool its texts are sealed there: see `content`.
        content: the texts in clear: the question and options of a poll, the terms of
            a negotiation's head, and of what was agreed, by the ids of their proposals.
    """

    pool_id: PoolId
    matter: Matter
    id: OperationId
    view: MatterView
    content: Any = None


AgentEvent = DecisionOutcome | CoordinationEvent
