"""Contents of a private pool as the local identity writes and reads them.

Knows: what is sealed with which key, and what becomes of a content that does not open. Must not know: how keys come
here, or who gets them (see `private`).
Source: `docs/protocol.md`, private pools. In a pool that is not private everything passes as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import ConvergeError, LimitExceeded, LocalError, NoContentKey
from converge_p2p.core.model.evaluator import EvaluatorKind, parse_evaluator
from converge_p2p.core.model.keyring import Keyring
from converge_p2p.core.model.secrecy import ContentKey, is_sealed
from converge_p2p.core.model.task import TaskSpec, TaskValue, TaskView
from converge_p2p.core.oplog.bodies import (
    ActBody,
    Body,
    ClaimBody,
    Kind,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    VetoBody,
)
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.sealing import (
    SEALED_OBJECTIVE,
    ContentSealer,
    cut_reason,
    shows_content,
    verdict_of,
    veto_context,
)
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.replica.coordination import ActFor, CoordinationCommand, SubmitFor
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.keys import writing_key
from converge_p2p.core.view.motions import MotionView
from converge_p2p.core.view.register import StandingClaim

_NOTHING: Final = encode_value(None)
_NO_INPUTS: Final = encode_value({})
_SEALED: Final = SEALED_OBJECTIVE


class Contents:
    """Seals what the local identity writes in one pool, and opens what others wrote."""

    def __init__(self, key: PublicKey, view: View, ring: Keyring | None) -> None:
        """Begin to write and read.

        Args:
            key: the local identity.
            view: the fold.
            ring: its content keys; None: it can follow a private pool, and neither read nor write.
        """
        self._key = key
        self._view = view
        self._ring = ring
        self._sealer = None if ring is None else ContentSealer(ring)
        self._opened: dict[TaskId, tuple[TaskSpec, TaskSpec]] = {}

    @property
    def on(self) -> bool:
        """Whether the pool is private, as far as its founding is known."""
        return self._view.epochs.private

    @property
    def able(self) -> bool:
        """Whether there is randomness to make keys of."""
        return self._ring is not None

    # ------------------------------------------------------------ sealing

    def _writing_key(self) -> ContentKey:
        epochs = self._view.epochs
        if self._ring is None:
            raise NoContentKey("this replica was made without entropy, and cannot write into a private pool")
        return writing_key(self._view.keys, self._ring, floor=epochs.last_removal, certified=epochs.certified_keys)

    def seal(self, body: Body, seq: int) -> Body:
        """Return a body as it is to be signed. Reasons of claims and releases that cannot be sealed are left out.

        Raises:
            LocalError: there is no key yet for a content that cannot be left out.
            LimitExceeded: a content too large to be sealed.
        """
        if not self.on or self._is_epoch(body) or not shows_content(body):
            return body
        try:
            key = self._writing_key()
        except NoContentKey:
            if isinstance(body, ClaimBody | ReleaseBody):
                return replace(body, reason="")
            raise
        assert self._sealer is not None, "who has a key has a ring"
        if isinstance(body, ClaimBody | ReleaseBody | VetoBody | VerdictBody):
            body = replace(body, reason=cut_reason(body.reason))
        if isinstance(body, EvidenceBody):
            body = replace(body, summary=cut_reason(body.summary))
        if isinstance(body, ActBody) and isinstance(body.inner, SubmitBody):
            given = self._view.coordination.delegations.get(body.delegation)
            if given is None:
                raise LocalError("the delegation is not known here")
            # a task is bound to whose it is, and that is not who signs it
            return replace(body, inner=SubmitBody(self._sealer.seal_spec(given.delegator, body.inner.spec, key)))
        return self._sealer.seal_body(body, self._key, seq, key)

    def _is_epoch(self, body: Body) -> bool:
        """The value of an epoch is judged by everybody, so it stays clear."""
        return isinstance(body, ReportBody) and self._view.epochs.changes(body.task) is not None

    def spec_to_submit(self, spec: TaskSpec) -> TaskSpec:
        """Return a task under its blinded key, in clear.

        Raises:
            LocalError: inputs that look as if they were sealed, or a rule as evaluator.
        """
        if not self.on:
            return spec
        if is_sealed(spec.inputs):
            raise LocalError("the inputs are not an encoded value")
        evaluator = parse_evaluator(spec.evaluator)
        if evaluator is not None and evaluator.kind is EvaluatorKind.RULE:
            raise LocalError("a rule cannot judge what is sealed", hint="name an agent that is a member of the pool")
        return replace(spec, key=self.task_key(spec.key))

    def command_to_coordinate(self, command: CoordinationCommand) -> CoordinationCommand:
        """Return a command under whose blinded key a task is submitted in another's name."""
        if self.on and isinstance(command, ActFor) and isinstance(command.what, SubmitFor):
            return replace(command, what=SubmitFor(self.spec_to_submit(command.what.spec)))
        return command

    def task_key(self, key: bytes) -> bytes:
        """Return the idempotency key under which a task of this identity stands in the log."""
        return self._ring.blind(key) if self.on and self._ring is not None else key

    def seal_spec(self, spec: TaskSpec) -> TaskSpec:
        """Return a task as it is signed.

        Raises:
            LocalError, LimitExceeded: see `seal`.
        """
        if not self.on or self._sealer is None:
            return spec
        return self._sealer.seal_spec(self._key, spec, self._writing_key())

    def check_result(self, result: bytes) -> None:
        """Check that a result can be sealed, before work is called done.

        Raises:
            LocalError: it looks as if it was sealed.
            LimitExceeded: it is too large.
        """
        if self.on and is_sealed(result):
            raise LocalError("the result is not an encoded value")
        if self.on and len(result) > limits.RESULT_BYTES_MAX - limits.SEALED_OVERHEAD_BYTES:
            raise LimitExceeded(
                "RESULT_BYTES_MAX",
                f"the result has {len(result)} bytes, and sealed {limits.SEALED_OVERHEAD_BYTES} more; at most "
                f"{limits.RESULT_BYTES_MAX} allowed",
                hint="store the content elsewhere, sealed, and report a reference to it",
            )

    def seal_value(self, task: TaskId, value: TaskValue) -> TaskValue | None:
        """Return a value as it is reported, or None as long as there is no key to seal it with."""
        if not self.on:
            return value
        if self._sealer is None:
            return None
        try:
            return self._sealer.seal_value(task, value, self._writing_key())
        except NoContentKey:
            return None

    # ------------------------------------------------------------ opening

    def open_spec(self, task: TaskId, author: PublicKey, spec: TaskSpec) -> TaskSpec | None:
        """Return a task in clear, or None if it does not open here (yet)."""
        if not self.on:
            return spec
        known = self._opened.get(task)
        if known is not None and known[0] is spec:
            return known[1]
        if self._sealer is None:
            return None
        try:
            opened = self._sealer.open_spec(author, spec)
        except ConvergeError:
            return None
        if len(self._opened) >= limits.OPENED_TASKS_HELD_MAX:
            del self._opened[next(iter(self._opened))]
        self._opened[task] = (spec, opened)
        return opened

    def open_view(self, view: TaskView) -> TaskView:
        """Return a task as it can be read here; what does not open is left out (`TaskView.sealed`)."""
        if not self.on:
            return view
        spec = self.open_spec(view.id, view.submitter, view.spec)
        sealed = spec is None
        if spec is None:
            spec = replace(view.spec, objective=SEALED_OBJECTIVE, inputs=_NO_INPUTS, topic=b"")
        value, hidden = self._shown(view.id, view.value)
        awaiting, hidden_awaiting = self._shown(view.id, view.awaiting)
        unjudged = [self._shown(view.id, one) for one in view.unjudged]
        reported = [self._shown(view.id, one) for one in view.reported]
        return replace(
            view,
            spec=spec,
            value=value,
            awaiting=awaiting,
            unjudged=tuple(one for one, _ in unjudged if one is not None),
            reported=tuple(one for one, _ in reported if one is not None),
            sealed=sealed or hidden or hidden_awaiting or any(shut for _, shut in unjudged),
        )

    def _shown(self, task: TaskId, value: TaskValue | None) -> tuple[TaskValue | None, bool]:
        """A value as it can be read here, and whether something had to be left out."""
        if value is None:
            return None, False
        opened = self._open_value(task, value)
        return (opened, False) if opened is not None else (replace(value, result=_NOTHING, voted=value.hash), True)

    def _open_value(self, task: TaskId, value: TaskValue) -> TaskValue | None:
        verdict = verdict_of(value.result)
        if verdict is not None:
            reason = self._open_text(verdict.get("reason", ""), veto_context(verdict.get("by", b""), task))
            shown = encode_value({**verdict, "reason": reason}) if verdict else value.result
            return replace(value, result=shown, voted=value.hash)
        try:
            return None if self._sealer is None else self._sealer.open_value(task, value)
        except ConvergeError:
            return None

    def open_body(self, operation: Operation) -> Body | None:
        """Return what an operation says, in clear, or None if it does not open here (yet)."""
        if not self.on:
            return operation.body
        try:
            return (
                None
                if self._sealer is None
                else self._sealer.open_body(operation.body, operation.author, operation.seq)
            )
        except ConvergeError:
            return None

    def reason_of(self, claim: StandingClaim) -> str:
        """Return the reason that an own claim gives, in clear; empty if it does not open."""
        kind = Kind.CLAIM if claim.principal is None else Kind.ACT
        reason = self.open_reason(kind, claim.author, claim.seq, claim.reason)
        return "" if self.on and reason == SEALED_OBJECTIVE else reason

    def open_reason(self, kind: int, author: PublicKey, seq: int, reason: str) -> str:
        """Return the reason that an operation gives, in clear; "sealed" if it does not open."""
        return self._open_text(reason, [int(kind), author, seq]) if self.on else reason

    def open_motion(self, view: MotionView) -> MotionView:
        """Return a motion with its reason in clear."""
        motion = view.motion
        reason = self.open_reason(Kind.MOTION, motion.author, motion.seq, motion.reason)
        return replace(view, motion=replace(motion, reason=reason))

    def _open_text(self, text: str, context: list[Any]) -> str:
        try:
            return self._sealer.open_text(text, context) if text and self._sealer is not None else text and _SEALED
        except ConvergeError:
            return _SEALED
