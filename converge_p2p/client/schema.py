"""What the control interface says and hears: one schema for the server, the client and the command line.

Knows: the shape of requests and answers in JSON. Must not know: HTTP, the node, or how a terminal shows it.
Source: docs/control.md. Every answer stands in an envelope `{v, ok, data}` or
`{v, ok: false, error: {code, message, hint}}`; ids are lowercase hexadecimal; times are RFC 3339 in UTC.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from converge_p2p.client.json_values import (
    from_json_value as from_json_value,
    to_json_value as to_json_value,
    utc_time as utc_time,
)
from converge_p2p.core.errors import ConvergeError

VERSION: Final = 1
TASK_LIST_MAX: Final = 1000
"""Tasks in one answer."""
SECONDS_MAX: Final = 10_000_000_000
"""Three hundred years; what is longer cannot be counted in milliseconds everywhere."""

Positive = Annotated[float, Meta(gt=0, le=SECONDS_MAX)]
Count = Annotated[int, Meta(ge=0)]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer. Unknown fields are ignored, so that a newer node can say more."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request. An unknown field is an error: it would be ignored silently otherwise."""


class ErrorItem(_Answer, frozen=True):
    """An error."""

    code: str
    message: str
    hint: str = ""


class NodeItem(_Answer, frozen=True):
    """Who the node is and where it can be found. `api_urls`: where the control interface answers over TCP."""

    id: str
    public_key: str
    peer_id: str
    addresses: list[str]
    version: str
    home: str
    socket: str
    next_command: str
    api_urls: list[str] = []


class TroubleItem(_Answer, frozen=True):
    """Something that is wrong. `fatal`: the node cannot do its work because of it; otherwise it is a warning."""

    what: str
    text: str
    hint: str = ""
    fatal: bool = True


class HealthItem(_Answer, frozen=True):
    """Whether the node does its work and takes requests, and what is wrong."""

    healthy: bool
    ready: bool
    stage: str
    reasons: list[TroubleItem] = []


class PeerItem(_Answer, frozen=True):
    """A connected peer. `relayed`: the only connections to it lead through relays."""

    peer_id: str
    agent_id: str
    public_key: str
    addresses: list[str]
    direction: str
    relayed: bool = False


class PoolItem(_Answer, frozen=True):
    """A pool the node takes part in or has heard of."""

    id: str
    name: str
    governance: str
    joined: bool
    ready: bool = False
    creator: str = ""
    task_types: list[str] = []
    members: Count = 0
    electors: Count = 0
    has_quorum: bool | None = None
    private: bool = False
    tasks: dict[str, int] = {}


class MemberItem(_Answer, frozen=True):
    """A member of a pool."""

    agent_id: str
    public_key: str
    elector: bool


class FrozenItem(_Answer, frozen=True):
    """An agent that signed two operations with one number; its data from there on counts nowhere."""

    agent_id: str
    public_key: str
    seq: Count


class CheckpointItem(_Answer, frozen=True):
    """How far a pool's log was compacted.

    Attributes:
        number: of the checkpoint in force, 0 before the first; None while that is not known after a restart.
        tasks: how many settled tasks it covers.
        tail: how many operations are held that it does not cover.
    """

    number: Count | None = 0
    tasks: Count = 0
    tail: Count = 0


class PoolDetail(PoolItem, frozen=True):
    """A pool with its members and the hash of what it knows.

    Attributes:
        culprits: how many electors an audit names; None if the log is too large for a mere count, or not known yet.
        unsure: why this node signs nothing here, as its store may be an old copy; empty if all is well.
        quorum: how many electors decide together, as the terms in force say; 0 is the smallest safe number.
        faults: how many electors may lie.
    """

    member_list: list[MemberItem] = []
    frozen: list[FrozenItem] = []
    unsure: str = ""
    frontier: str = ""
    checkpoint: CheckpointItem = CheckpointItem()
    decided_by: str = ""
    culprits: Count | None = None
    epoch: Count = 0
    admission: str = ""
    quorum: Count = 0
    faults: Count = 0


class AdmissionText(_Answer, frozen=True):
    """An invitation or a vouch, to be handed over in private.

    Attributes:
        pool: id of the pool it is for.
        text: what the newcomer shows.
    """

    pool: str
    text: str


class FindingItem(_Answer, frozen=True):
    """An elector broke a rule.

    Attributes:
        agent_id, public_key: of the elector.
        rule: short name.
        text: what the elector did, for people.
        subject: what was voted on: a task, or what stands for an epoch; empty for a fork.
        proof: ids of the operations that show it.
        contradiction: the elector's own signatures are the proof; otherwise nothing held here supports its vote.
    """

    agent_id: str
    public_key: str
    rule: str
    text: str
    subject: str
    proof: list[str]
    contradiction: bool


class OpinionItem(_Answer, frozen=True):
    """What an elector said to a motion."""

    agent_id: str
    epoch: Count
    choice: str


class MotionItem(_Answer, frozen=True):
    """Something that was put to a pool's electors.

    Attributes:
        kind: change, reject_result or rival_reports.
        state: open, carried, rejected or lapsed.
        asks: what it asks for, in words.
        decided: the option that was carried, or empty.
    """

    id: str
    pool: str
    kind: str
    state: str
    asks: list[str]
    author: str
    epoch: Count
    reason: str = ""
    task: str = ""
    options: list[str] = []
    decided: str = ""
    opinions: list[OpinionItem] = []


class EvidenceItem(_Answer, frozen=True):
    """That somebody says which content speaks for a result, or against it.

    Attributes:
        author: agent id; `weight` is what it weighs if it is an elector.
        value: hash of the result.
        digest: SHA-256 of the content.
    """

    id: str
    author: str
    weight: Count
    value: str
    supports: bool
    digest: str
    size: Count
    media: str
    summary: str = ""


class StatusItem(_Answer, frozen=True):
    """The node at a glance."""

    node: NodeItem
    ready: bool
    started_at: str
    uptime_s: float
    peers: Count
    pools: list[PoolItem]
    counters: dict[str, int]


class TaskItem(_Answer, frozen=True):
    """A task as this node sees it. Anything but a settled state is tentative until certified.

    Attributes:
        value: hash of the settled value, empty before: equal on all nodes.
        awaits_veto: a result was settled, and the pool's vetoers may still deny it.
        awaits_verdict: a result was reported, and the task's evaluator did not judge it yet.
        progress: how much is done, 0 to 1, as the worker says; null if it says nothing, or does not work.
        note: what the worker says about it.
    """

    id: str
    pool: str
    objective: str
    state: str
    key: str
    submitter: str
    assigned_to: str | None = None
    settled_by: str | None = None
    epoch: int = 0
    round: int = -1
    attempts: int = 0
    certified: bool = False
    priority: int = 0
    reason: str = ""
    value: str = ""
    awaits_veto: bool = False
    awaits_verdict: bool = False
    progress: float | None = None
    note: str = ""


class ReportedItem(_Answer, frozen=True):
    """A result that was reported, and is not settled.

    Attributes:
        value: its hash.
        by: agent id of the worker.
    """

    value: str
    by: str
    result: Any = None


class TaskDetail(TaskItem, frozen=True):
    """A task with what was asked for and what came out.

    Attributes:
        awaiting: the result that the pool's vetoers may still deny.
        evaluator: who judges results, `agent:…`, `rule:…`, or empty.
        unjudged: results that wait for its verdict.
        reported: results that were reported, by whomever, while none is settled.
    """

    inputs: Any = None
    result: Any = None
    awaiting: Any = None
    evaluator: str = ""
    unjudged: list[ReportedItem] = []
    reported: list[ReportedItem] = []
    required_capabilities: list[str] = []
    claim_ttl_s: float | None = None
    max_retries: int | None = None
    attempt_timeout_s: float | None = None


class TaskList(_Answer, frozen=True):
    """Some of a pool's tasks.

    Attributes:
        total: how many match the filter.
    """

    tasks: list[TaskItem]
    total: Count


class ShutdownItem(_Answer, frozen=True):
    """The node has begun to stop."""

    stopping: bool


class GovernanceTerms(_Request, frozen=True):
    """What a governance model is told beside the electors. A model refuses what it does not use."""

    quorum: Count = 0
    faults: Count = 0
    trusted: list[str] = []
    provisional: bool = False
    leader: str = ""
    successor: str = ""
    chambers: list[list[str]] = []
    chamber_quorums: list[Count] = []
    tie_breaker: str = ""
    vetoers: list[str] = []
    veto_window_s: Positive | None = None
    silence_denies: bool = False
    weights: dict[str, int] = {}
    speculative: Count | None = None
    evidence: Count = 0
    model: str = ""


class CreatePool(_Request, frozen=True):
    """Found a pool."""

    name: str
    governance: str
    terms: GovernanceTerms = GovernanceTerms()
    electors: list[str] = []
    task_types: list[str] = []
    topics: list[str] = []
    claim_ttl_s: Positive | None = None
    max_retries: Count | None = None
    private: bool = False
    admission: str = "open"
    whitelist: list[str] = []
    admission_need: Count = 0
    admission_custom: str = ""


class InviteRequest(_Request, frozen=True):
    """Invite whoever holds the invitation, or one agent.

    Attributes:
        agent: the only agent that may use it, or empty.
        role: what the newcomer is meant to be, for people.
        epochs: how many epochs after the present one it is good for.
        valid_s: seconds after which honest nodes do not use it any more; null is without end.
    """

    agent: str = ""
    role: str = "worker"
    epochs: Count = 0
    valid_s: Positive | None = None


class VouchRequest(_Request, frozen=True):
    """Answer for an agent. `epochs`: how many epochs after the present one the vouch is good for."""

    agent: str
    epochs: Count = 0


class JoinPool(_Request, frozen=True):
    """Become a member of a pool, if a member that knows it is found in time."""

    capabilities: list[str] = []
    timeout_s: Positive = 30.0
    invitation: str = ""
    vouches: list[str] = []


class SubmitTask(_Request, frozen=True):
    """Submit a task. `inputs` is a JSON map, with byte strings written as {"$bytes": "<base64>"}."""

    objective: str
    inputs: dict[str, Any] = {}
    key: str | None = None
    required_capabilities: list[str] = []
    priority: int = 0
    claim_ttl_s: Positive | None = None
    max_retries: Count | None = None
    attempt_timeout_s: Positive | None = None
    evaluator: str = ""
    topic: str = ""


class CancelTask(_Request, frozen=True):
    """Cancel a task."""

    reason: str = ""


class Move(_Request, frozen=True):
    """Put a change to the pool's electors. Agents are named by id, or by `key:<public key>`."""

    expel: list[str] = []
    add_electors: list[str] = []
    remove_electors: list[str] = []
    quorum: Count | None = None
    faults: Count | None = None
    claim_ttl_s: Positive | None = None
    max_retries: Count | None = None
    renew: bool = False
    admit: list[str] = []
    admission: str | None = None
    admission_need: Count | None = None
    reason: str = ""


class Dispute(_Request, frozen=True):
    """Ask the electors to find that a settled result is wrong; or, with `rivals`, which of several results is right.

    Attributes:
        rivals: hashes of results.
    """

    reason: str = ""
    rivals: list[str] = []


class SayItem(_Request, frozen=True):
    """What this elector says to a motion: yes, no, one of its options, or `by-evidence`."""

    choice: str


class VetoTask(_Request, frozen=True):
    """Deny a result that was settled, or let it pass."""

    reason: str = ""


class JudgeTask(_Request, frozen=True):
    """Approve or deny a reported result. `value` is its hash; empty is the only one that waits for a verdict."""

    approve: bool
    reason: str = ""
    value: str = ""


class CiteEvidence(_Request, frozen=True):
    """Say that a content speaks for a result, or against it. `value` is its hash; empty is the only one known."""

    digest: str
    size: Count
    value: str = ""
    supports: bool = True
    media: str = "application/octet-stream"
    summary: str = ""


def success(data: Any) -> dict[str, Any]:
    """Return the envelope of an answer."""
    return {"v": VERSION, "ok": True, "data": data}


def failure(error: ConvergeError) -> dict[str, Any]:
    """Return the envelope of an error."""
    return {"v": VERSION, "ok": False, "error": ErrorItem(code=error.code, message=str(error), hint=error.hint)}
