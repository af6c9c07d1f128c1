"""Which operations inside a cut have to be kept as they are, because a fold of what follows needs them.

Knows: what an operation is about, and what of it is in a table. Must not know: how a fold counts it.
Source: `docs/protocol.md`, checkpoints; the reasons are in `docs/decisions/0010-checkpoints.md`.

The answer is a function of the operations inside the cut, whatever earlier checkpoints let go of: what was let go once
is never asked for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from converge_p2p.core.model.task import task_id
from converge_p2p.core.oplog.bodies import (
    ActBody,
    ClaimBody,
    Genesis,
    JoinBody,
    LeaveBody,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    VetoBody,
    VoteBody,
)
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.coordination import CoordinationBody
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, PrekeyBody
from converge_p2p.core.oplog.motions import MotionBody, OpinionBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.succession import RecoverBody, RecoveryBody, SucceedBody, SuccessionBody
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.settled import SettledTable
from converge_p2p.core.view.succession import FOREVER
from converge_p2p.core.view.vetoes import veto_subject


def subjects_of(pool: PoolId, operation: Operation) -> tuple[TaskId, ...] | None:
    """The tasks, vetoes and epochs that an operation is about; None if it is about something else."""
    body = operation.body
    match body:
        case SubmitBody(spec):
            return (task_id(pool, operation.author, spec.key),)
        case ClaimBody(task) | ReleaseBody(task) | ReportBody(task) | VerdictBody(task) | VetoBody(task):
            return (task,)
        case VoteBody(ballots):
            return tuple({ballot.task: None for ballot in ballots})
        case (
            Genesis()
            | JoinBody()
            | LeaveBody()
            | MotionBody()
            | OpinionBody()
            | EvidenceBody()
            | ContentKeyBody()
            | PrekeyBody()
            | CheckpointBody()
            | AttestBody()
            | ActBody()
        ):
            return None
        case _:
            if isinstance(body, SuccessionBody | CoordinationBody):
                return None
            assert_never(body)


def is_effective(view: View, operation: Operation) -> bool:
    """Whether an operation has an effect, or may have one later; asked before it is applied.

    Who is a member where an operation stands is decided by its author's own chain, except of one that takes another's
    place. A vote counts for the electors of its epoch, which is known by now; so it is left to whoever counts it.
    """
    author, body = operation.author, operation.body
    if isinstance(body, CheckpointBody | AttestBody):
        return False
    if isinstance(body, VoteBody | OpinionBody):
        return view.epochs.was_elector(author, operation.epoch)
    if isinstance(body, VetoBody):
        return view.epochs.was_vetoer(author, operation.epoch)
    if isinstance(body, EvidenceBody):
        # votes rest on it, whoever it is from
        return True
    if isinstance(body, Genesis):
        return view.is_genesis(operation)
    if view.successions.may_inherit(author) or isinstance(body, SucceedBody | RecoverBody | RecoveryBody):
        # a commitment is remembered by whoever lets its author's successor in, whether or not it has an effect
        return True
    if isinstance(body, JoinBody):
        return view.may_join(author, operation.epoch, body.proof)
    return view.members.has_at(author, operation.epoch)


class Retention:
    """What is to be retained of the operations that were folded, given that they had an effect."""

    def __init__(self, view: View, settled: SettledTable) -> None:
        """Look at a state.

        Args:
            view: the state at the cut.
            settled: the tasks that are in a table from now on.
        """
        self._view = view
        self._settled = settled
        self._closed = frozenset(veto_subject(task, value) for task, value in settled.asked())
        self._kept: dict[PublicKey, tuple[frozenset[int], frozenset[int]]] = {}

    def needs(self, operation: Operation) -> bool:
        """Whether an operation is to be retained."""
        body = operation.body
        if isinstance(body, JoinBody | LeaveBody):
            return self._stands(operation.author, 0, operation.seq)
        if isinstance(body, PrekeyBody):
            return self._stands(operation.author, 1, operation.seq)
        subjects = subjects_of(self._view.pool, operation)
        # coordination, motions and opinions, keys and successions stay: what they lead to is asked for ever
        return subjects is None or not all(name in self._settled or name in self._closed for name in subjects)

    def _stands(self, author: PublicKey, which: int, seq: int) -> bool:
        """Of joins and leaves, and of prekeys, the last one is enough, unless it can still be taken back.

        Of a key whose place was taken also the last one before its end: whoever took the place inherits that.
        """
        found = self._kept.get(author)
        if found is None:
            places = (self._view.successions.revocable_from(author), self._view.successions.folded(author).end)
            members, keys = self._view.members.changed_at(author), self._view.keys.prekeys_at(author)
            found = self._kept[author] = (frozenset(_last(members, *places)), frozenset(_last(keys, *places)))
        return seq in found[which] or self._view.successions.may_inherit(author)


def _last(places: list[int], since: int, end: int) -> Iterator[int]:
    """The last place before each of two numbers, and all from the first of them on."""
    for limit in (since, end, FOREVER):
        yield from [place for place in places if place < limit][-1:]
    yield from (place for place in places if place >= since)
