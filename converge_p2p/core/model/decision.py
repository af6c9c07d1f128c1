"""Decisions: what an agent wants done, as values.

Knows: the fields of every decision and which of them can have no meaning. Must not know: who carries a decision out
(see `runtime.executor`), or whether it is allowed (see `runtime.safety`).
Source: the concepts page (table of decisions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converge_p2p.core.errors import LocalError
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, ModelTerms, PoolPolicy
from converge_p2p.core.model.task import Task
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import AgentId, PoolId, TaskId


@dataclass(frozen=True, slots=True)
class Decision:
    """Base of all decisions.

    An application makes its own kind by subclassing, and gives the executor a handler for the new type.
    """


@dataclass(frozen=True, slots=True)
class SendMessage(Decision):
    """Send one message: to its recipient, to its topics, or to everybody.

    Attributes:
        message: signed, or to be signed by the node that sends it.
        attach: key in the payload → call id of the tool call whose result is put there. The payload is then a map, and
            the message not signed yet.
    """

    message: Message
    attach: Mapping[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------- pools


@dataclass(frozen=True, slots=True)
class CreatePool(Decision):
    """Found a pool.

    Attributes:
        name: for people.
        governance: the model that decides.
        electors: agent ids or public keys (hexadecimal) that vote; empty means this agent alone.
        topics: what the pool is about.
        task_types: objectives the pool is for; empty means any.
        admission: who may join.
        policy: timers and defaults.
        quorum: electors (empirical: weight) that decide together; 0 is the smallest safe number.
        faults: f, how many electors may lie.
        model: what the governance model needs beside these.
    """

    name: str
    governance: GovernanceKind = GovernanceKind.DEMOCRATIC
    electors: tuple[str, ...] = ()
    topics: tuple[Topic, ...] = ()
    task_types: tuple[str, ...] = ()
    admission: AdmissionKind = AdmissionKind.OPEN
    policy: PoolPolicy = field(default_factory=PoolPolicy)
    quorum: int = 0
    faults: int = 0
    model: ModelTerms = field(default_factory=ModelTerms)


@dataclass(frozen=True, slots=True)
class JoinPool(Decision):
    """Become a member of a pool.

    Attributes:
        pool_id: which.
        capabilities: names of what this agent can do there.
        proof: what the pool's admission asks for, or empty.
    """

    pool_id: PoolId
    capabilities: tuple[str, ...] = ()
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class LeavePool(Decision):
    """Leave a pool."""

    pool_id: PoolId


# ---------------------------------------------------------------- tasks


@dataclass(frozen=True, slots=True)
class SubmitTask(Decision):
    """Ask a pool to have a task done."""

    pool_id: PoolId
    task: Task


@dataclass(frozen=True, slots=True)
class ClaimTask(Decision):
    """Stand as a worker for a task. Governance names one winner among rival claims.

    Attributes:
        pool_id: pool of the task.
        task_id: which.
        bid: what the pool's assignment rule may weigh, 0 or more.
    """

    pool_id: PoolId
    task_id: TaskId
    bid: int = 0

    def __post_init__(self) -> None:
        _check_count("bid", self.bid)


@dataclass(frozen=True, slots=True)
class ReportTask(Decision):
    """Report how a claimed task ended.

    Attributes:
        pool_id: pool of the task.
        task_id: which.
        result: any value of numbers, text, bytes, lists and maps with text keys; for a failure its reason.
        failed: the task cannot be done at all, by anybody. To let it be tried again use `ReleaseTask(failed=True)`.
        result_of: call id of the tool call whose result is reported in place of `result`; empty: none.
    """

    pool_id: PoolId
    task_id: TaskId
    result: Any = None
    failed: bool = False
    result_of: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseTask(Decision):
    """Give a claim back, so that the task can be claimed again.

    Attributes:
        pool_id: pool of the task.
        task_id: which.
        failed: an attempt was made and failed; it counts against the task's retries.
        reason: for people.
    """

    pool_id: PoolId
    task_id: TaskId
    failed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CancelTask(Decision):
    """Cancel a task that this agent submitted."""

    pool_id: PoolId
    task_id: TaskId
    reason: str = ""


# ---------------------------------------------------------------- coordination


@dataclass(frozen=True, slots=True)
class SubmitBid(Decision):
    """Bid in an auction for a task.

    Attributes:
        pool_id: pool of the task.
        task_id: what is auctioned.
        amount: 0 or more, in the smallest unit of the pool. An integer, so that every node orders bids alike.
    """

    pool_id: PoolId
    task_id: TaskId
    amount: int

    def __post_init__(self) -> None:
        _check_count("amount", self.amount)


@dataclass(frozen=True, slots=True)
class Vote(Decision):
    """Vote for one option of a question.

    Attributes:
        pool_id: where the question was put.
        question_id: id of the operation that put it.
        option: the option as it stands in the question.
    """

    pool_id: PoolId
    question_id: bytes
    option: str


@dataclass(frozen=True, slots=True)
class Propose(Decision):
    """Make an offer in a negotiation; with an empty session id, open one.

    Attributes:
        pool_id: where.
        session_id: the negotiation, or empty.
        terms: what is offered.
        participants: who may answer; only read when a session is opened.
    """

    pool_id: PoolId
    session_id: bytes
    terms: Mapping[str, Any]
    participants: tuple[AgentId, ...] = ()


@dataclass(frozen=True, slots=True)
class AcceptProposal(Decision):
    """Accept another agent's offer."""

    pool_id: PoolId
    proposal_id: bytes


@dataclass(frozen=True, slots=True)
class RejectProposal(Decision):
    """Turn another agent's offer down."""

    pool_id: PoolId
    proposal_id: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Delegate(Decision):
    """Let another agent act in this agent's name.

    Attributes:
        pool_id: where.
        delegate: who may act.
        scope: names of what it may do; empty allows nothing.
        expires_ms: Unix time at which it ends, milliseconds.
    """

    pool_id: PoolId
    delegate: AgentId
    scope: tuple[str, ...]
    expires_ms: int

    def __post_init__(self) -> None:
        _check_count("expires_ms", self.expires_ms)


@dataclass(frozen=True, slots=True)
class RevokeDelegation(Decision):
    """Take a delegation of this agent back."""

    pool_id: PoolId
    delegation_id: bytes


# ---------------------------------------------------------------- tools


@dataclass(frozen=True, slots=True)
class InvokeTool(Decision):
    """Run a registered tool. What it returns is handed to the agent's next `decide`.

    Attributes:
        tool_name: name in the tool registry.
        params: what the tool is run with.
        call_id: chosen by the agent, to tell several calls of one tool apart; empty stands for the name of the tool.
        pool_id, task_id: the task it is run for. A tool with side effects is run only for one, waits until this agent's
            claim of it is certified, and is given its fencing token.
    """

    tool_name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    call_id: str = ""
    pool_id: PoolId | None = None
    task_id: TaskId | None = None

    def __post_init__(self) -> None:
        if (self.pool_id is None) != (self.task_id is None):
            raise LocalError("a tool is run for a task of a pool: give both ids, or none")


COORDINATION: frozenset[type[Decision]] = frozenset(
    {SubmitBid, Vote, Propose, AcceptProposal, RejectProposal, Delegate, RevokeDelegation}
)
"""Decisions about auctions, polls, negotiations and delegations; see also `coordination_decision`."""


def _check_count(what: str, number: int) -> None:
    # a float would let NaN through every comparison, and two nodes could round it differently
    if type(number) is not int or number < 0:
        raise LocalError(f"{what} is {number!r}; expected an integer of 0 or more")
