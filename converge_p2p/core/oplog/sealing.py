"""Which fields of operations are contents, and their sealed form in a private pool.

Knows: the fields of each body. Must not know: which key is the right one (see `view.keys.writing_key`).
Source: `docs/protocol.md`, private pools; `docs/decisions/0007-sealed-contents.md`.

Sealed: objective, inputs and topic of a submit (together), the result of a report, every reason, question
and options of a poll, the terms of a negotiation, what kind of content evidence cites and its summary. Clear: all
that relays, electors and the fold judge by. A sealed content is bound to what it belongs to: a submit's to its author
and key, a result to task, outcome and worker (a locked value travels in reports of others, and electors vote on the
hash of the sealed bytes), the rest to author and number of its operation.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from typing import Any, Final

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, decode_value, encode
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, SignatureError
from converge_p2p.core.model.keyring import Keyring
from converge_p2p.core.model.secrecy import ContentKey, is_sealed, open_content, seal_content
from converge_p2p.core.model.task import TaskSpec, TaskValue
from converge_p2p.core.oplog.bodies import (
    ActBody,
    Body,
    ClaimBody,
    Kind,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    VetoBody,
    kind_of,
)
from converge_p2p.core.oplog.coordination import AnswerBody, PollOpenBody, PollVoteBody, ProposeBody
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.motions import MotionBody
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.types import PublicKey, TaskId

SEALED_OBJECTIVE: Final = "sealed"
"""Stands where the objective of a sealed task would: a task without one is refused."""

SEALED_INPUT_BYTES_MAX: Final = limits.TASK_INPUT_BYTES_MAX - limits.SEALED_OVERHEAD_BYTES
"""Of objective, inputs and topic together, encoded."""

SEALED_RESULT_BYTES_MAX: Final = limits.RESULT_BYTES_MAX - limits.SEALED_OVERHEAD_BYTES
SEALED_TEXT_BYTES_MAX: Final = limits.TEXT_BYTES_MAX * 3 // 4 - limits.SEALED_OVERHEAD_BYTES
"""A text stays text when it is sealed: base64 makes four bytes of three."""

SEALED_OPTION_BYTES_MAX: Final = limits.NAME_BYTES_MAX * 3 // 4 - limits.SEALED_OVERHEAD_BYTES
SEALED_TERMS_BYTES_MAX: Final = limits.TERMS_BYTES_MAX - limits.SEALED_OVERHEAD_BYTES

_KEY_BYTES: Final = 32

Inner = SubmitBody | ClaimBody | PollVoteBody | AnswerBody
"""What can be done in another's name."""


class ContentSealer:
    """Seals and opens the contents of operations for one identity in one private pool."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    # ------------------------------------------------------------ whole bodies

    def seal_body(self, body: Body, author: PublicKey, seq: int, key: ContentKey) -> Body:
        """Return the body with its contents sealed. A task or value that is sealed already stays as it is.

        The value of a report is sealed when the work is done (`seal_value`), so that its hash is known before it is
        reported; here that of a value which is still clear is sealed, so that nothing leaves in clear.

        Args:
            body: in clear. A submit must carry its blinded key (`Keyring.blind`).
            author, seq: of the operation that will carry it.
            key: the content key.

        Raises:
            LimitExceeded: a content too large to be sealed.
        """
        match body:
            case SubmitBody(spec):
                return SubmitBody(self.seal_spec(author, spec, key))
            case ReportBody(task, _, value):
                return replace(body, value=self.seal_value(task, value, key))
            case ActBody(_, inner):
                return replace(body, inner=self._seal_inner(inner, [int(Kind.ACT), author, seq], key))
            case ProposeBody():
                context = [int(Kind.PROPOSE), author, seq]
                _bounded("TERMS_BYTES_MAX", "the terms", len(body.terms), SEALED_TERMS_BYTES_MAX)
                return replace(body, terms=seal_content(key, context, body.terms))
            case PollOpenBody():
                context = [int(Kind.POLL_OPEN), author, seq]
                options = tuple(
                    self._seal_option(option, [*context, index + 1], key) for index, option in enumerate(body.options)
                )
                return replace(body, question=self.seal_text(body.question, [*context, 0], key), options=options)
            case EvidenceBody():
                context = [int(Kind.EVIDENCE), author, seq]
                summary = self.seal_text(body.summary, [*context, 1], key) if body.summary else ""
                return replace(body, media=self._seal_option(body.media, [*context, 0], key), summary=summary)
            case VetoBody() if body.reason:
                return replace(body, reason=self.seal_text(body.reason, veto_context(author, body.task), key))
            case ClaimBody() | ReleaseBody() | MotionBody() | AnswerBody() | VerdictBody() if body.reason:
                return replace(body, reason=self.seal_text(body.reason, [int(kind_of(body)), author, seq], key))
            case _:
                return body

    def _seal_inner(self, inner: Inner, context: list[Any], key: ContentKey) -> Inner:
        """Seal what is done in another's name. A submit is sealed before, by its submitter (`seal_spec`)."""
        match inner:
            case ClaimBody() | AnswerBody() if inner.reason:
                return replace(inner, reason=self.seal_text(inner.reason, context, key))
            case _:
                return inner

    def _seal_option(self, option: str, context: list[Any], key: ContentKey) -> str:
        _bounded("NAME_BYTES_MAX", "a name or an option", len(option.encode()), SEALED_OPTION_BYTES_MAX)
        return self.seal_text(option, context, key)

    def open_body(self, body: Body, author: PublicKey, seq: int) -> Body:
        """Return the body with its contents in clear.

        Raises:
            NotFound: the content key is not held (yet).
            LocalError: a content is not sealed.
            SignatureError: a content does not open: changed, or moved from somewhere else.
            CodecError: what was sealed is no such content.
        """
        match body:
            case SubmitBody(spec):
                return SubmitBody(self.open_spec(author, spec))
            case ReportBody(task, _, value):
                return replace(body, value=self.open_value(task, value))
            case ActBody(_, ClaimBody() | AnswerBody() as inner) if inner.reason:
                reason = self.open_text(inner.reason, [int(Kind.ACT), author, seq])
                return replace(body, inner=replace(inner, reason=reason))
            case ProposeBody():
                return replace(body, terms=self._open(body.terms, [int(Kind.PROPOSE), author, seq]))
            case PollOpenBody():
                context = [int(Kind.POLL_OPEN), author, seq]
                options = tuple(
                    self.open_text(option, [*context, index + 1]) for index, option in enumerate(body.options)
                )
                return replace(body, question=self.open_text(body.question, [*context, 0]), options=options)
            case EvidenceBody():
                context = [int(Kind.EVIDENCE), author, seq]
                summary = self.open_text(body.summary, [*context, 1]) if body.summary else ""
                return replace(body, media=self.open_text(body.media, [*context, 0]), summary=summary)
            case VetoBody() if body.reason:
                return replace(body, reason=self.open_text(body.reason, veto_context(author, body.task)))
            case ClaimBody() | ReleaseBody() | MotionBody() | AnswerBody() | VerdictBody() if body.reason:
                return replace(body, reason=self.open_text(body.reason, [int(kind_of(body)), author, seq]))
            case _:
                return body

    # ------------------------------------------------------------ tasks

    def seal_spec(self, author: PublicKey, spec: TaskSpec, key: ContentKey) -> TaskSpec:
        """Return a task with objective, inputs and topic sealed, or as it is if it is sealed already.

        Raises:
            LimitExceeded: these have more than `SEALED_INPUT_BYTES_MAX` bytes together.
            LocalError: a task that is out of bounds in clear.
        """
        if is_sealed(spec.inputs):
            return spec
        spec.check()
        plain = encode([spec.objective, spec.inputs, spec.topic])
        _bounded("TASK_INPUT_BYTES_MAX", "objective, inputs and topic", len(plain), SEALED_INPUT_BYTES_MAX)
        sealed = seal_content(key, _spec_context(author, spec), plain)
        return replace(spec, objective=SEALED_OBJECTIVE, inputs=sealed, topic=b"")

    def open_spec(self, author: PublicKey, spec: TaskSpec) -> TaskSpec:
        """Return a task with its contents in clear. Its key stays the blinded one, which the task's id commits to.

        Raises:
            NotFound, LocalError, SignatureError, CodecError: as `open_body`.
        """
        if (spec.objective, spec.topic) != (SEALED_OBJECTIVE, b""):
            raise LocalError("the task is not sealed")
        match decode(self._open(spec.inputs, _spec_context(author, spec))):
            case [str() as objective, bytes() as inputs, bytes() as topic]:
                opened = replace(spec, objective=objective, inputs=inputs, topic=topic)
            case _:
                raise CodecError("what was sealed is not the content of a task")
        try:
            opened.check()
        except (LocalError, LimitExceeded) as error:
            raise CodecError(f"what was sealed is out of bounds: {error}") from error
        return opened

    def seal_value(self, task: TaskId, value: TaskValue, key: ContentKey) -> TaskValue:
        """Return a value with its result sealed, or as it is if it is sealed already, as a lock's is.

        Raises:
            LimitExceeded: the result has more than `SEALED_RESULT_BYTES_MAX` bytes.
        """
        if is_sealed(value.result):
            return value
        _bounded("RESULT_BYTES_MAX", "the result", len(value.result), SEALED_RESULT_BYTES_MAX)
        return replace(value, result=seal_content(key, _value_context(task, value), value.result))

    def open_value(self, task: TaskId, value: TaskValue) -> TaskValue:
        """Return a value with its result in clear. Its hash stays that of the sealed one, which electors vote on.

        Raises:
            NotFound, LocalError, SignatureError: as `open_body`.
        """
        return replace(value, result=self._open(value.result, _value_context(task, value)), voted=value.hash)

    # ------------------------------------------------------------ single contents

    def seal_text(self, text: str, context: list[Any], key: ContentKey) -> str:
        """Return a text sealed, as text: base64 with `-` and `_`, without padding.

        Args:
            text: at most `SEALED_TEXT_BYTES_MAX` bytes of UTF-8.
            context: begins with the number of the operation's kind, then author and seq, then whatever tells several
                contents of one body apart.
            key: the content key.

        Raises:
            LimitExceeded: the text is longer.
        """
        plain = text.encode()
        _bounded("TEXT_BYTES_MAX", "the text", len(plain), SEALED_TEXT_BYTES_MAX)
        return urlsafe_b64encode(seal_content(key, context, plain)).rstrip(b"=").decode()

    def open_text(self, text: str, context: list[Any]) -> str:
        """Return what `seal_text` sealed.

        Raises:
            NotFound, LocalError, SignatureError: as `open_body`.
            CodecError: what was sealed is not UTF-8.
        """
        try:
            return self._open(_text_bytes(text), context).decode()
        except UnicodeDecodeError as error:
            raise CodecError("what was sealed is not text") from error

    def _open(self, sealed: bytes, context: list[Any]) -> bytes:
        refusal: SignatureError | None = None
        for key in self._keyring.named_in(sealed):
            try:
                return open_content(key, context, sealed)
            except SignatureError as error:
                refusal = error
        assert refusal is not None, "a name that is held names a key"
        raise refusal


def check_sealed(body: Body) -> None:
    """Check that a body shows no content in clear. A function of the body alone: every node says the same.

    Raises:
        CodecError: a content is not in sealed form. Whether it opens cannot be seen without the key.
    """
    match body:
        case SubmitBody(spec) | ActBody(_, SubmitBody(spec)):
            hidden = (spec.objective, spec.topic) == (SEALED_OBJECTIVE, b"")
            sealed = hidden and is_sealed(spec.inputs)
        case ReportBody(_, _, value):
            sealed = is_sealed(value.result) or verdict_of(value.result) is not None
        case ProposeBody():
            sealed = is_sealed(body.terms)
        case EvidenceBody():
            sealed = is_sealed(_text_bytes(body.media)) and _sealed_reason(body.summary)
        case PollOpenBody():
            sealed = all(is_sealed(_text_bytes(text)) for text in (body.question, *body.options))
        case ClaimBody() | ReleaseBody() | MotionBody() | AnswerBody() | VetoBody() | VerdictBody():
            sealed = _sealed_reason(body.reason)
        case ActBody(_, ClaimBody() | AnswerBody() as inner):
            sealed = _sealed_reason(inner.reason)
        case _:
            sealed = True
    if not sealed:
        raise CodecError("an operation of a private pool shows its content in clear")


def verdict_of(result: bytes) -> dict[str, Any] | None:
    """Return what the register of a veto is settled on, or None if this is something else.

    Everybody judges it, so it is not sealed; the reason in it is, by the vetoer who gave it.
    """
    try:
        content = decode_value(result)
    except CodecError:
        return None
    if content == "passed":
        return {}
    match content:
        case {"error": "vetoed", "by": bytes() as author, "reason": str() as reason} if len(content) == 3:
            return content if len(author) == _KEY_BYTES and _sealed_reason(reason) else None
    return None


def veto_context(author: PublicKey, task: TaskId) -> list[Any]:
    """Return the place of a vetoer's reason: it stands in the task's end, where the operation is not named."""
    return [int(Kind.VETO), author, task]


def shows_content(body: Body) -> bool:
    """Whether a body shows a content in clear."""
    try:
        check_sealed(body)
    except CodecError:
        return True
    return False


def _sealed_reason(reason: str) -> bool:
    return not reason or is_sealed(_text_bytes(reason))


def cut_reason(text: str) -> str:
    """Return the beginning of a text that can be sealed: for reasons, which are shortened rather than refused."""
    return text.encode()[:SEALED_TEXT_BYTES_MAX].decode(errors="ignore")


def _spec_context(author: PublicKey, spec: TaskSpec) -> list[Any]:
    return [int(Kind.SUBMIT), author, spec.key]


def _value_context(task: TaskId, value: TaskValue) -> list[Any]:
    return [int(Kind.REPORT), task, int(value.outcome), value.worker]


def _text_bytes(text: str) -> bytes:
    """Read base64 in its one form; anything else is no sealed content, so it is returned as what it is not."""
    try:
        data = urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except ValueError:
        return b""
    return data if urlsafe_b64encode(data).rstrip(b"=").decode() == text else b""


def _bounded(limit: str, what: str, size: int, bound: int) -> None:
    if size > bound:
        raise LimitExceeded(
            limit,
            f"{what} of a sealed operation: {size} bytes, at most {bound} allowed",
            hint="store the content elsewhere, sealed, and name it here",
        )
