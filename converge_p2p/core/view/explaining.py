"""How the record of a task is found in a log, and what its votes add up to.

Knows: which operations are about a task, and how the fold counts them. Must not know: a replica, or how it is shown.
Source: `docs/protocol.md`, task register. A register forgets the way to a settlement; the log still shows it, until a
checkpoint covers it. That is why the log is read here, as the audit does.

It takes two steps, so that the first can be done in a thread: `about_task.search` reads the log, and `explain` asks the
fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.identity import SIGNATURE_BYTES, verify
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.oplog.bodies import (
    ActBody,
    Ballot,
    Body,
    ClaimBody,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    Token,
    VetoBody,
    VoteBody,
)
from converge_p2p.core.oplog.coordination import (
    DelegateBody,
)
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.motions import MotionBody, OpinionBody
from converge_p2p.core.oplog.operation import OPERATION_TAG, Operation
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.about_task import Found, Searched, Wanted, said_about
from converge_p2p.core.view.epochs import epoch_subject
from converge_p2p.core.view.explanation import (
    Certificate,
    Decision,
    Explanation,
    Renewed,
    Signature,
    Step,
    StepKind,
    Tentative,
    TermsInForce,
)
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.motions import MotionView, Outcome as MotionOutcome
from converge_p2p.core.view.past import PastTask
from converge_p2p.core.view.register import NOBODY, Register
from converge_p2p.core.view.tasks import TaskRegister
from converge_p2p.core.view.vetoes import VetoRegister

_TERMS_MAX = limits.EXPLAINED_STEPS_MAX // limits.ELECTORS_MAX
"""Epochs whose certificates are shown, so that they are no more signatures than there are steps."""


class _Counted(NamedTuple):
    """Where a vote is counted."""

    token: Token
    decision: Decision
    ref: bytes
    on_veto: bool


_DECISIONS = {
    StepKind.GRANTED: Decision.CLAIM,
    StepKind.ENDORSED: Decision.ENDORSEMENT,
    StepKind.ACCEPTED: Decision.SETTLEMENT,
}
_ORDER = {kind: place for place, kind in enumerate(Decision)}


# ---------------------------------------------------------------- the fold


def explain(
    view: View,
    log: OperationLog,
    wants: Wanted,
    searched: Searched,
    *,
    shown: TaskView | None,
    renewed: Renewed | None = None,
    opened: Callable[[Operation], Body | None] = lambda operation: operation.body,
    readable: Callable[[MotionView], MotionView] = lambda motion: motion,
) -> Explanation | None:
    """Return what became of a task, or None if nothing is known of it.

    Args:
        view, log: the fold, and the log that it is of.
        wants, searched: see `wanted` and `search`.
        shown: the task as an application sees it.
        renewed: what its holder said last.
        opened: returns what an operation says, in clear; None if it does not open here.
        readable: returns a motion with its reason in clear.
    """
    if not len(view.epochs):
        return None
    register = view.registers.get(wants.task)
    if register is None or isinstance(register, PastTask):
        found_past = _compacted(view, wants.task)
        if found_past is not None or register is None:
            return found_past
    steps, left_out = _kept(_steps(view, register, wants, searched.found, opened), register)
    left_out += searched.left_out
    motions = (view.motions.view(name, view.epochs.number) for name in sorted(wants.motions))
    disputes = tuple(readable(motion) for motion in motions if motion is not None)
    if not steps and register.submitted is None:
        return None
    certificates = _certificates(view, register, steps)
    epochs = {each.token.epoch for each in certificates} | ({view.epochs.number} if register.final is None else set())
    named = sorted(epochs)[-_TERMS_MAX:]
    credited = register.credited
    lacking = left_out > 0 or len(named) < len(epochs) or _is_incomplete(register, certificates)
    return Explanation(
        pool=view.pool,
        task=wants.task,
        state=register.state,
        submitter=register.submitter,
        worker=None if credited is None else credited[1],
        value=register.settled,
        view=shown,
        steps=steps,
        certificates=certificates,
        terms=tuple(_terms(view, log, number) for number in named),
        disputes=disputes,
        renewed=renewed,
        tentative=tuple(_tentative(view, register, steps, disputes, lacking=lacking)),
        left_out=left_out,
    )


def _steps(
    view: View,
    register: TaskRegister,
    wants: Wanted,
    found: Iterable[Found],
    opened: Callable[[Operation], Body | None],
) -> list[Step]:
    steps = []
    for operation, loose, verified in sorted(found, key=lambda item: (item.operation.hlc, item.operation.id)):
        clear = opened(operation)
        counts = _counts(view, register, operation, loose=loose)
        steps += [
            Step(
                kind, operation.id, operation.author, operation.seq, operation.epoch, number, operation.hlc, said,
                on_veto, verified, counts, clear is None and _hides(operation.body),
            )
            for kind, said, number, on_veto in said_about(operation, clear or operation.body, wants)
        ]  # fmt: skip
    return steps


def _hides(body: Body) -> bool:
    """Whether a body has a content that a private pool seals."""
    match body:
        case SubmitBody() | ReportBody() | EvidenceBody():
            return True
        case ClaimBody() | ReleaseBody() | VerdictBody() | VetoBody() | MotionBody():
            return bool(body.reason)
        case ActBody(_, ClaimBody() as claim):
            return bool(claim.reason)
        case _:
            return False


def _kept(steps: list[Step], register: TaskRegister) -> tuple[tuple[Step, ...], int]:
    """The steps to be shown, and how many others there are: what decided goes first, then what counts."""
    if len(steps) <= limits.EXPLAINED_STEPS_MAX:
        return tuple(steps), 0
    deciding = set(register.certificate.values())
    ranked = sorted(range(len(steps)), key=lambda at: (steps[at].operation not in deciding, not steps[at].counts, at))
    kept = sorted(ranked[: limits.EXPLAINED_STEPS_MAX])
    return tuple(steps[at] for at in kept), len(steps) - len(kept)


def _counts(view: View, register: TaskRegister, operation: Operation, *, loose: bool) -> bool:
    """Whether an operation about the task has an effect, as far as is known here."""
    author, name, veto = operation.author, operation.id, register.veto
    epoch = view.epochs.find(operation.epoch)
    registers: list[Register] = [register] if veto is None else [register, veto]
    match operation.body:
        case VoteBody() | OpinionBody():
            return epoch is not None and author in epoch.electors
        case EvidenceBody():
            return True
        case VetoBody():
            # like a vote, it counts whatever became of its author
            return (
                isinstance(veto, VetoRegister)
                and author in veto.terms.vetoers
                and view.epochs.was_vetoer(author, operation.epoch)
            )
        case SubmitBody() | ActBody(_, SubmitBody()):
            return register.submitted is not None and register.submitted.operation == name
        case ClaimBody() | ActBody(_, ClaimBody()):
            return any(name in one.claims for one in registers)
        case ReleaseBody():
            return any(name in said for one in registers for said in one.releases.values())
        case ReportBody():
            # a settled register forgot its reports; who reports stands for it, or nothing comes of the report
            return not loose and any(claim.author == author for one in registers for claim in one.claims.values())
        case VerdictBody():
            return not loose and register.evaluator is not None and register.evaluator.is_agent(author)
        case MotionBody():
            return view.motions.get(name) is not None
        case DelegateBody():
            return view.coordination.delegations.get(name) is not None
        case _:
            return not loose


# ---------------------------------------------------------------- certificates


def _certificates(view: View, register: TaskRegister, steps: Iterable[Step]) -> tuple[Certificate, ...]:
    """What the votes that count add up to, by epoch and round; of two of an elector the first is shown."""
    heard: dict[_Counted, dict[PublicKey, Signature]] = {}
    for step in steps:
        if isinstance(step.said, Ballot) and step.counts:
            token = Token(step.epoch, step.said.round)
            place = _Counted(token, _DECISIONS[step.kind], step.said.ref, step.on_veto)
            voters = heard.setdefault(place, {})
            voters.setdefault(step.author, Signature(step.author, step.operation, step.verified))
    order = sorted(heard, key=lambda at: (at.on_veto, at.token, _ORDER[at.decision], at.ref))
    return tuple(_certificate(view, register, place, heard[place]) for place in order)


def _certificate(
    view: View, register: TaskRegister, place: _Counted, voters: dict[PublicKey, Signature]
) -> Certificate:
    token, decision, ref, on_veto = place
    epoch, about = view.epochs[token.epoch], register.veto if on_veto else register
    assert about is not None, "votes on a veto are looked for where there is one"
    rules, claim, granter = epoch.counting.rules, None, None
    if decision is Decision.CLAIM:
        claim = about.claims.get(OperationId(ref))
        granter = None if on_veto else register.granter(token)
        complete = rules.grant.satisfied_by(voters) if granter is None else granter in voters
    elif decision is Decision.ENDORSEMENT:
        complete = rules.endorse is not None and rules.endorse.satisfied_by(voters)
    else:
        complete = rules.accept.satisfied_by(voters)
    settles = decision is Decision.SETTLEMENT and (token, ref) == (about.settled_token, about.settled)
    is_claim = decision is Decision.CLAIM
    return Certificate(
        decision=decision,
        token=token,
        claim=OperationId(ref) if is_claim and ref != NOBODY else None,
        holder=None if claim is None else claim.author,
        value=None if is_claim else ValueHash(ref),
        on_veto=on_veto,
        signatures=tuple(voters[elector] for elector in sorted(voters)),
        missing=tuple(sorted(epoch.electors - voters.keys())),
        complete=complete,
        decides=settles and complete,
        granter=granter,
    )


def _terms(view: View, log: OperationLog, number: int) -> TermsInForce:
    epoch = view.epochs[number]
    change = view.changes.get(epoch_subject(view.pool, number)) if number else None
    signatures = []
    for elector, vote in sorted(change.certificate.items()) if change is not None else ():
        signed = log.get(vote) or change.early.get(vote, b"") if change is not None else b""
        payload, signature = signed[SIGNATURE_BYTES:], signed[:SIGNATURE_BYTES]
        holds = bool(signed) and verify(elector, OPERATION_TAG, payload, signature)
        signatures.append(Signature(elector, vote, holds))
    return TermsInForce(number, epoch.spec, epoch.counting.rules, tuple(signatures))


def _is_incomplete(register: TaskRegister, certificates: Iterable[Certificate]) -> bool:
    """Whether votes that decided, as the fold counted them, are not among what was found."""
    decided = {each.on_veto for each in certificates if each.decides}
    veto_decided = register.veto is not None and register.veto.settled is not None
    return (register.settled is not None and False not in decided) or (veto_decided and True not in decided)


def _tentative(
    view: View, register: TaskRegister, steps: Iterable[Step], disputes: Iterable[MotionView], *, lacking: bool
) -> Iterator[Tentative]:
    if register.submitted is None:
        yield Tentative.NEVER_SUBMITTED
    if register.settled is None:
        held = register.state is TaskState.ASSIGNED
        several = held and register.is_open_to_several
        yield Tentative.OPEN_TO_SEVERAL if several else Tentative.HELD if held else Tentative.PENDING
        if register.to_judge():
            yield Tentative.AWAITS_VERDICT
    elif register.value is None:
        yield Tentative.CONTENT_MISSING
    elif register.awaiting is not None:
        yield Tentative.AWAITS_VETO
    if any(dispute.outcome is MotionOutcome.OPEN for dispute in disputes):
        yield Tentative.DISPUTED
    if view.epochs.current.counting.rules.provisional:
        yield Tentative.PROVISIONAL
    if register.conflict or (register.veto is not None and register.veto.conflict):
        yield Tentative.CONFLICT
    if not all(step.verified for step in steps):
        yield Tentative.UNVERIFIED
    if lacking:
        yield Tentative.INCOMPLETE


def _compacted(view: View, task: TaskId) -> Explanation | None:
    """What is left of a task that a checkpoint covers: whose votes settled it first, and no signature of them."""
    past = view.compacted.get(task)
    if past is None:
        return None
    accepted = PastTask(task, view.epochs, past).round(past.first).accepted[past.value]
    epoch = view.epochs[past.first.epoch]
    certificate = Certificate(
        decision=Decision.SETTLEMENT,
        token=past.first,
        claim=None,
        holder=None,
        value=past.value,
        on_veto=False,
        signatures=tuple(Signature(elector, None, False) for elector in sorted(accepted)),
        missing=tuple(sorted(epoch.electors - accepted.keys())),
        complete=True,
        decides=True,
    )
    return Explanation(
        pool=view.pool,
        task=task,
        state=past.ended.state,
        submitter=past.submitter,
        worker=past.worker,
        value=past.value,
        view=None,
        steps=(),
        certificates=(certificate,),
        terms=(TermsInForce(epoch.number, epoch.spec, epoch.counting.rules, ()),),
        disputes=(),
        renewed=None,
        tentative=(Tentative.COMPACTED,),
    )
