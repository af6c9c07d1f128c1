"""The operations about a task, found in a log.

Knows: which operations are about a task, and how much of them is looked at. Must not know: what they come to (see
`explaining`), or a replica.
Source: `docs/protocol.md`, task register. A register forgets the way to a settlement; the log still shows it, until a
checkpoint covers it. `search` reads a log that was copied and knows no fold, so that it can be done in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.identity import SIGNATURE_BYTES, verify
from converge_p2p.core.oplog.bodies import (
    ActBody,
    Ballot,
    Body,
    ClaimBody,
    Phase,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    VetoBody,
    VoteBody,
)
from converge_p2p.core.oplog.coordination import (
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionSettleBody,
    BidCommitBody,
    BidRevealBody,
    DelegateBody,
)
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.motions import MotionBody, OpinionBody
from converge_p2p.core.oplog.operation import OPERATION_TAG, Operation, decode_operation, operation_id
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.types import OperationId, PoolId, TaskId
from converge_p2p.core.view.audit import HeldChain
from converge_p2p.core.view.explanation import StepKind
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.past import PastTask
from converge_p2p.core.view.tasks import TaskRegister


class Wanted(NamedTuple):
    """What makes an operation one about a task.

    Attributes:
        pool, task: which.
        veto: what votes on the veto of its result name, None if nobody may deny it.
        auction: the auction of the task, if there is one.
        motions: the questions to the electors about it.
        named: signed operations that are about it without naming it: its submit, and what that rests on.
        deciding: the votes that settled it, or its veto.
    """

    pool: PoolId
    task: TaskId
    veto: TaskId | None
    auction: OperationId | None
    motions: frozenset[OperationId]
    named: tuple[bytes, ...]
    deciding: frozenset[OperationId]


class Found(NamedTuple):
    """An operation about the task.

    Attributes:
        loose: its author forked, or was removed: it stands beside the chain.
        verified: its signature holds.
    """

    operation: Operation
    loose: bool
    verified: bool


class Searched(NamedTuple):
    """What was found.

    Attributes:
        left_out: how many operations that name the task were not looked at.
    """

    found: list[Found]
    left_out: int


def wanted(view: View, log: OperationLog, task: TaskId) -> Wanted:
    """Return what to look for, of a task of which anything or nothing is known."""
    register, named = view.registers.get(task), []
    submitted = None if register is None else register.submitted
    if submitted is not None and (signed := log.get(submitted.operation)) is not None:
        named.append(signed)
        body = decode_operation(signed, view.pool, trusted=True).body
        delegation = log.get(body.delegation) if isinstance(body, ActBody) else None
        named += [] if delegation is None else [delegation]
    auction = view.coordination.auctions.of_task(task)
    return Wanted(
        view.pool,
        task,
        None if register is None or register.veto is None else register.veto.id,
        None if auction is None else auction.id,
        frozenset(motion.id for motion in view.motions.disputes(task)),
        tuple(named),
        frozenset() if register is None else _deciding(register),
    )


def _deciding(register: TaskRegister | PastTask) -> frozenset[OperationId]:
    if isinstance(register, PastTask):
        return frozenset()
    veto = () if register.veto is None else register.veto.certificate.values()
    return frozenset((*register.certificate.values(), *veto))


def search(chains: Iterable[HeldChain], wants: Wanted) -> Searched:
    """Return the operations about a task, each once. It knows nothing but these values, so any thread may do it.

    It brings no more than can be told. Who signed the most about the task comes last, so that a flood does not hide
    what others said.
    """
    needles = [bytes(name) for name in (wants.task, wants.veto, wants.auction, *wants.motions) if name is not None]
    found = {item.operation.id: item for signed in wants.named if (item := _read(signed, wants, False)) is not None}
    named = []
    for chain in chains:
        # bytes are searched a hundred times as fast as they are decoded
        about = [
            (loose, signed)
            for loose, held in ((False, chain.prefix), (True, chain.loose))
            for signed in held
            if any(name in signed for name in needles)
        ]
        if about:
            named.append((sum(len(signed) for _, signed in about), chain.author, about))
    left_out, room = 0, limits.EXPLAINED_BYTES_MAX
    for _, _, about in sorted(named):
        own = min(room, limits.EXPLAINED_BYTES_PER_AUTHOR_MAX)
        for loose, signed in about:
            if len(signed) > own and operation_id(signed) not in wants.deciding:
                left_out += 1
                continue
            own, room = own - len(signed), room - len(signed)
            item = _read(signed, wants, loose)
            if item is not None and next(said_about(item.operation, item.operation.body, wants), None) is not None:
                found.setdefault(item.operation.id, item)
    return Searched(list(found.values()), left_out)


def _read(signed: bytes, wants: Wanted, loose: bool) -> Found | None:
    operation = decode_operation(signed, wants.pool, trusted=True)
    payload, signature = signed[SIGNATURE_BYTES:], signed[:SIGNATURE_BYTES]
    return Found(operation, loose, verify(operation.author, OPERATION_TAG, payload, signature))


def said_about(
    operation: Operation, body: Body, wants: Wanted
) -> Iterator[tuple[StepKind, Body | Ballot, int | None, bool]]:
    """What an operation says about the task: kind, body or ballot, round, and whether it is about its veto."""
    about = {wants.task: False} if wants.veto is None else {wants.task: False, wants.veto: True}
    match body:
        case VoteBody(ballots):
            for ballot in ballots:
                if ballot.task in about:
                    yield _PHASES[ballot.phase], ballot, ballot.round, about[ballot.task]
        case SubmitBody() | ActBody(_, SubmitBody()) if operation.signed in wants.named:
            yield StepKind.SUBMITTED, body, None, False
        case DelegateBody() if operation.signed in wants.named:
            yield StepKind.DELEGATED, body, None, False
        case ClaimBody(task) | ActBody(_, ClaimBody(task)) if task in about:
            yield StepKind.CLAIMED, body, None, about[task]
        case ReleaseBody(task, number) if task in about:
            yield StepKind.RELEASED, body, number if number >= 0 else None, about[task]
        case ReportBody(task, number) if task in about:
            yield StepKind.REPORTED, body, number, about[task]
        case VerdictBody(task) if task == wants.task:
            yield StepKind.JUDGED, body, None, False
        case EvidenceBody(task) if task == wants.task:
            yield StepKind.CITED, body, None, False
        case VetoBody(task, _, deny) if task == wants.task:
            yield StepKind.VETOED if deny else StepKind.LET_PASS, body, None, True
        case MotionBody() if body.subject == wants.task:
            yield StepKind.DISPUTED, body, None, False
        case OpinionBody(motion) if motion in wants.motions:
            yield StepKind.ANSWERED, body, None, False
        case AuctionOpenBody(task) if task == wants.task:
            yield StepKind.AUCTION_OPENED, body, None, False
        case (
            BidCommitBody(auction) | BidRevealBody(auction) | AuctionCloseBody(auction) | AuctionSettleBody(auction)
        ) if auction == wants.auction:
            yield _AUCTION[type(body)], body, None, False


_PHASES = {Phase.GRANT: StepKind.GRANTED, Phase.ENDORSE: StepKind.ENDORSED, Phase.ACCEPT: StepKind.ACCEPTED}
_AUCTION: dict[type, StepKind] = {
    BidCommitBody: StepKind.BID_SEALED,
    AuctionCloseBody: StepKind.AUCTION_CLOSED,
    BidRevealBody: StepKind.BID_OPENED,
    AuctionSettleBody: StepKind.AUCTION_SETTLED,
}
