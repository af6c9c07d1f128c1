"""What became of a task and why: everything that was signed about it, and what each signature decided.

Knows: the shape of the answer. Must not know: how it is found in a log (see `explaining`), or how it is shown.
Source: `docs/receipts.md`. An explanation is what one node knows now. A receipt is the proof for everybody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from converge_p2p.core.governance.rules import Ruleset
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.oplog.bodies import Ballot, Body, Token
from converge_p2p.core.oplog.operation import HLC_COUNTER_BITS
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.motions import MotionView


class StepKind(Enum):
    """What somebody did about a task."""

    SUBMITTED = "submitted"
    DELEGATED = "delegated"
    AUCTION_OPENED = "auction_opened"
    BID_SEALED = "bid_sealed"
    AUCTION_CLOSED = "auction_closed"
    BID_OPENED = "bid_opened"
    AUCTION_SETTLED = "auction_settled"
    CLAIMED = "claimed"
    RELEASED = "released"
    GRANTED = "granted"
    REPORTED = "reported"
    ENDORSED = "endorsed"
    ACCEPTED = "accepted"
    JUDGED = "judged"
    CITED = "cited"
    VETOED = "vetoed"
    LET_PASS = "let_pass"
    DISPUTED = "disputed"
    ANSWERED = "answered"


class Decision(Enum):
    """What electors decide together, in the order in which it happens in a round."""

    CLAIM = "claim"
    ENDORSEMENT = "endorsement"
    SETTLEMENT = "settlement"


class Tentative(Enum):
    """Why not everything that is told is certain. The value is for people."""

    PENDING = "no claim is certified in the highest round, so anybody may still get the task"
    HELD = "a claim is certified and no result is: a later round may give the task to somebody else"
    OPEN_TO_SEVERAL = "several workers work on it at once, and no result is certified"
    AWAITS_VERDICT = "a result was reported, and its evaluator has not approved it"
    AWAITS_VETO = "a result is certified, and vetoers may still deny it"
    CONTENT_MISSING = "electors certified a value whose content has not arrived here"
    DISPUTED = "electors are asked about its result and have not decided; whatever they say, the task stays settled"
    PROVISIONAL = "the terms are provisional: two sides of a partition could decide differently"
    CONFLICT = "two values were certified: more electors lied than the terms allow for"
    UNVERIFIED = "a signature that is held here does not verify: the store is damaged"
    INCOMPLETE = "not everything that was signed about it is held here, or it is too much to be shown"
    COMPACTED = "it was settled before the last checkpoint: only its end is kept, and whose votes settled it"
    NEVER_SUBMITTED = "nobody whose submit counts asked for it, as far as is known here"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that somebody signed about a task.

    Attributes:
        kind: what it is.
        operation: the operation it stands in; a vote holds many ballots, and each about this task is a step.
        author, seq, epoch: of the operation.
        round: the round that it names, None if it names none.
        hlc: what its author's hybrid clock said. It decides nothing, and can be wrong.
        said: the body, or the ballot, in clear if it opens here.
        on_veto: it is about whether the result passes the vetoers, not about the task itself.
        verified: its signature was checked now, and holds.
        counts: it has an effect, as far as is known here; not if its author was no member or elector, forked, or was
            removed before.
        sealed: its content does not open here.
    """

    kind: StepKind
    operation: OperationId
    author: PublicKey
    seq: int
    epoch: int
    round: int | None
    hlc: int
    said: Body | Ballot
    on_veto: bool = False
    verified: bool = True
    counts: bool = True
    sealed: bool = False

    @property
    def at_ms(self) -> int:
        """The time of its author's clock, in Unix milliseconds."""
        return self.hlc >> HLC_COUNTER_BITS


class Signature(NamedTuple):
    """An elector's vote in a certificate.

    Attributes:
        operation: the vote; None if it was pruned.
        verified: its signature was checked now, and holds.
    """

    elector: PublicKey
    operation: OperationId | None
    verified: bool


@dataclass(frozen=True, slots=True)
class Certificate:
    """Votes of electors for one thing in one round, enough or not.

    Attributes:
        decision: what they are for.
        token: epoch and round.
        claim: CLAIM: the claim that was granted the round, None if it was opened for several.
        holder: CLAIM: whose claim that is, None if it is not known.
        value: ENDORSEMENT and SETTLEMENT: hash of the value.
        on_veto: they are about whether the result passes the vetoers.
        signatures: sorted by elector.
        missing: electors of the epoch that did not sign this, sorted.
        complete: enough of them signed, by the terms of the epoch.
        decides: these are the votes that settled the task, or its veto.
        granter: CLAIM: who alone grants this round, on the fast path.
    """

    decision: Decision
    token: Token
    claim: OperationId | None
    holder: PublicKey | None
    value: ValueHash | None
    on_veto: bool
    signatures: tuple[Signature, ...]
    missing: tuple[PublicKey, ...]
    complete: bool
    decides: bool = False
    granter: PublicKey | None = None


@dataclass(frozen=True, slots=True)
class TermsInForce:
    """The terms under which something was decided.

    Attributes:
        epoch: that they hold in.
        spec: the terms.
        rules: what they compile to.
        signatures: of the electors of the epoch before that certified them; none for the founding terms.
    """

    epoch: int
    spec: PoolSpec
    rules: Ruleset
    signatures: tuple[Signature, ...]


class Renewed(NamedTuple):
    """What the holder said last while it worked. Gossip: it is not kept, and proves nothing to anybody else.

    Attributes:
        at_ms: by the clock of the holder.
        fraction: how much is done, in thousandths.
    """

    author: PublicKey
    token: Token
    at_ms: int
    fraction: int
    note: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What became of a task, and why.

    Attributes:
        pool, task: which.
        state: as it is now.
        submitter: who asked for it, or in whose name it was asked for; None if that is not known.
        worker: whom the value that settled it is credited to; None if it is not settled.
        value: hash of what the electors settled it on, before vetoers; None if it is not settled.
        view: the task as this node sees it, None if it was compacted or no submit of it is known.
        steps: everything that was signed about it, in the order of the authors' clocks.
        certificates: what electors voted on, by epoch and round.
        terms: of each epoch that a certificate names, and of the present one while it is open.
        disputes: questions to the electors about its results, and what became of them.
        renewed: what its holder said last, if it was heard here.
        tentative: what of all this is not certain; empty if the task is settled for ever.
        left_out: how many steps there are beside these; an operation that was not looked at counts as one.
    """

    pool: PoolId
    task: TaskId
    state: TaskState
    submitter: PublicKey | None
    worker: PublicKey | None
    value: ValueHash | None
    view: TaskView | None
    steps: tuple[Step, ...]
    certificates: tuple[Certificate, ...]
    terms: tuple[TermsInForce, ...]
    disputes: tuple[MotionView, ...]
    renewed: Renewed | None
    tentative: tuple[Tentative, ...]
    left_out: int = 0

    @property
    def settled_by(self) -> Certificate | None:
        """The votes that settled it, None if it is not settled."""
        return next((each for each in self.certificates if each.decides and not each.on_veto), None)
