"""What the control interface says of a task's record, and the command line of a receipt.

Knows: shapes. Must not know: HTTP, or how votes are counted.
Source: docs/receipts.md.
"""

from __future__ import annotations

from typing import Any

import msgspec

from converge_p2p.client.schema import Count, MotionItem, TaskDetail


class StepItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that somebody signed about a task.

    Attributes:
        at: what the author's clock said, RFC 3339 in UTC; it decides nothing, and can be wrong.
        step: submitted, delegated, auction_opened, bid_sealed, auction_closed, bid_opened, auction_settled, claimed,
            released, granted, reported, endorsed, accepted, judged, cited, vetoed, let_pass, disputed or answered.
        text: the same in words.
        agent_id, public_key: of whoever signed.
        operation: id of the operation that it stands in, and `seq` its place in the author's chain.
        round: that it names, -1 if none.
        on_veto: it is about whether the result passes the vetoers.
        verified: the signature was checked now, and holds.
        counts: it has an effect, as far as is known here.
        sealed: its content does not open here.
        said: what else it says, by kind; ids and hashes in hexadecimal.
    """

    at: str
    step: str
    text: str
    agent_id: str
    public_key: str
    operation: str
    seq: Count
    epoch: Count
    round: int = -1
    on_veto: bool = False
    verified: bool = True
    counts: bool = True
    sealed: bool = False
    said: dict[str, Any] = {}


class SignatureItem(msgspec.Struct, frozen=True, kw_only=True):
    """An elector's vote. `operation` is empty if the vote was pruned; `verified`: it was checked now, and holds."""

    agent_id: str
    public_key: str
    operation: str
    verified: bool


class CertificateItem(msgspec.Struct, frozen=True, kw_only=True):
    """Votes of electors for one thing in one round.

    Attributes:
        decision: claim, endorsement or settlement.
        on_veto: about whether the result passes the vetoers.
        holder: of a claim: the agent that the round was granted to; empty if it was opened for several.
        claim: of a claim: the id of its operation.
        value: otherwise: the hash of the value.
        rule: whose votes are enough, in words.
        missing: agent ids of electors that did not sign it.
        complete: enough signed.
        decides: these votes settled the task, or its veto.
    """

    decision: str
    epoch: Count
    round: Count
    on_veto: bool = False
    holder: str = ""
    claim: str = ""
    value: str = ""
    rule: str = ""
    signatures: list[SignatureItem] = []
    missing: list[str] = []
    complete: bool = False
    decides: bool = False


class TermsItem(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of an epoch.

    Attributes:
        decided_by: whose votes decide, in words.
        electors: agent ids.
        faults: how many of them may lie.
        provisional: two sides of a partition could decide differently.
        certified_by: the electors of the epoch before that certified it; nobody for the founding terms.
    """

    epoch: Count
    pool: str
    governance: str
    decided_by: str
    electors: list[str]
    faults: Count
    provisional: bool
    certified_by: list[SignatureItem] = []


class RenewedItem(msgspec.Struct, frozen=True, kw_only=True):
    """What the holder said last, heard by this node: gossip, which is not kept and proves nothing."""

    at: str
    agent_id: str
    epoch: Count
    round: Count
    progress: float
    note: str


class TentativeItem(msgspec.Struct, frozen=True, kw_only=True):
    """Why something is not certain, by name and in words."""

    name: str
    text: str


class ExplanationItem(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a task, and why.

    Attributes:
        task: as this node sees it; null if a checkpoint covers it, or no submit of it is known.
        final: it is settled, for ever.
        submitter, worker: agent ids; empty if not known, or not settled.
        value: hash of what it was settled on.
        tentative: what of all this is not certain; empty if nothing is left open.
        left_out: steps that are not shown.
    """

    id: str
    pool: str
    state: str
    final: bool
    submitter: str
    worker: str
    value: str
    task: TaskDetail | None
    steps: list[StepItem]
    certificates: list[CertificateItem]
    terms: list[TermsItem]
    disputes: list[MotionItem]
    renewed: RenewedItem | None
    tentative: list[TentativeItem]
    left_out: Count = 0


class ReceiptItem(msgspec.Struct, frozen=True, kw_only=True):
    """What a receipt proves.

    Attributes:
        file: where it is.
        pool: id of the pool; `pool_compared`: it is the one that was asked for.
        outcome: completed, failed or cancelled.
        worker: agent id of whom the value is credited to.
        sha256, bytes: of the encoded result.
        result: the result, null if it is sealed or cannot be shown.
        epoch: in which it was settled.
        signers: agent ids of the electors whose votes settled it.
        terms: of every epoch of the proof.
        warnings: what the proof does not show.
    """

    file: str
    pool: str
    pool_name: str
    pool_compared: bool
    task: str
    outcome: str
    worker: str
    sha256: str
    bytes: Count
    result: Any
    epoch: Count
    signers: list[str]
    terms: list[TermsItem]
    warnings: list[str]
