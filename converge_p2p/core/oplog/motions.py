"""What members put to the electors, and what an elector says to it: the bodies of kinds 8 and 9.

Knows: the shape of a motion and of an opinion. Must not know: who is an elector, or what a carried motion leads to
(see `view.motions`).
Source: `docs/protocol.md`, motions.

A motion changes nothing by itself. It is data, like a submit; an opinion is a vote, and counts under the electorate of
the epoch that it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.oplog.evidence import decode_citations, encode_citations
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash

_HASH_BYTES = 32

NO = 0
"""The choice of an opinion against a change or a dispute."""

YES = 1
"""The choice of an opinion for a change or a dispute."""


class MotionKind(IntEnum):
    """What is asked of the electors. Numbers are never used again for something else."""

    CHANGE = 0
    REJECT_RESULT = 1
    RIVAL_REPORTS = 2


@dataclass(frozen=True, slots=True)
class Change:
    """What a motion to change the pool asks for.

    Attributes:
        expelled: authors that shall be members no more, sorted, at most `limits.MOTION_EXPELLED_MAX`.
        terms: the terms that shall hold from the next epoch on, or None to keep those of this one.
    """

    expelled: tuple[PublicKey, ...] = ()
    terms: PoolSpec | None = None


@dataclass(frozen=True, slots=True)
class MotionBody:
    """The author asks the electors a question. Made by `move_change`, `dispute_result` and `dispute_rivals`.

    Attributes:
        motion: what is asked.
        subject: the id of the task in dispute; empty for a change.
        payload: canonical CBOR of the change, or of the rival values; empty for a disputed result.
        reason: for people, at most `limits.TEXT_BYTES_MAX` bytes.
    """

    motion: MotionKind
    subject: bytes
    payload: bytes
    reason: str = ""

    @property
    def change(self) -> Change:
        """What a CHANGE asks for.

        Raises:
            CodecError: the payload is none of a change.
        """
        return _decode_change(self.payload)

    @property
    def rivals(self) -> tuple[ValueHash, ...]:
        """The values that stand against each other in RIVAL_REPORTS; an opinion names one by its index.

        Raises:
            CodecError: the payload is none of rival reports.
        """
        return _decode_rivals(self.payload)


@dataclass(frozen=True, slots=True)
class OpinionBody:
    """An elector's opinion on a motion.

    Attributes:
        motion: id of the motion's operation.
        choice: `NO` or `YES`, or for rival reports the index of a value.
        evidence: what the choice rests on: up to `limits.CITATIONS_MAX` ids of evidence operations, sorted.
    """

    motion: OperationId
    choice: int
    evidence: tuple[OperationId, ...] = ()


def move_change(expelled: tuple[PublicKey, ...] = (), terms: PoolSpec | None = None, reason: str = "") -> MotionBody:
    """Return a motion to expel authors, to change the terms, or both. The order of `expelled` does not matter.

    Raises:
        CodecError: it asks for nothing, or its payload is out of bounds.
    """
    plain = [sorted(set(expelled)), None if terms is None else terms.to_body()]
    return _checked(MotionKind.CHANGE, b"", encode(plain), reason)


def dispute_result(task: TaskId, reason: str = "") -> MotionBody:
    """Return a motion that the settled result of a task is wrong.

    Raises:
        CodecError: the id or the reason is out of bounds.
    """
    return _checked(MotionKind.REJECT_RESULT, task, b"", reason)


def dispute_rivals(task: TaskId, rivals: tuple[ValueHash, ...], reason: str = "") -> MotionBody:
    """Return the question which of several reported values is right. The order of `rivals` does not matter.

    Raises:
        CodecError: fewer than two values, too many, or no hashes.
    """
    return _checked(MotionKind.RIVAL_REPORTS, task, encode(sorted(set(rivals))), reason)


def encode_motion(body: MotionBody) -> list[Any]:
    """Return the array form of a motion."""
    return [int(body.motion), body.subject, body.payload, body.reason]


def encode_opinion(body: OpinionBody) -> list[Any]:
    """Return the array form of an opinion."""
    return [body.motion, body.choice, *encode_citations(body.evidence)]


def decode_motion(body: list[Any]) -> MotionBody:
    """Read the array form of a motion; what the payload says is checked as well.

    Raises:
        CodecError: wrong shape, not canonical, or out of bounds.
    """
    if [type(item) for item in body] != [int, bytes, bytes, str]:
        raise CodecError("a motion body is an array of int, bytes, bytes, str")
    number, subject, payload, reason = body
    try:
        motion = MotionKind(number)
    except ValueError as error:
        raise CodecError(f"unknown kind of motion {number}") from error
    if len(reason.encode()) > limits.TEXT_BYTES_MAX:
        raise CodecError(f"the reason of a motion is longer than {limits.TEXT_BYTES_MAX} bytes")
    if len(payload) > limits.MOTION_PAYLOAD_BYTES_MAX:
        raise CodecError(f"the payload of a motion is longer than {limits.MOTION_PAYLOAD_BYTES_MAX} bytes")
    if len(subject) != (0 if motion is MotionKind.CHANGE else _HASH_BYTES):
        raise CodecError("the subject of a motion is a task id, and empty for a change")
    match motion:
        case MotionKind.CHANGE:
            _decode_change(payload)
        case MotionKind.REJECT_RESULT:
            if payload:
                raise CodecError("a motion to reject a result has no payload")
        case MotionKind.RIVAL_REPORTS:
            _decode_rivals(payload)
    return MotionBody(motion, subject, payload, reason)


def decode_opinion(body: list[Any]) -> OpinionBody:
    """Read the array form of an opinion.

    Raises:
        CodecError: wrong shape, or out of bounds.
    """
    evidence = decode_citations(body, 2)
    motion, choice = body[:2]
    if type(motion) is not bytes or type(choice) is not int:
        raise CodecError("an opinion body is an array of bytes, int")
    if len(motion) != _HASH_BYTES:
        raise CodecError(f"the motion of an opinion is a byte string of {_HASH_BYTES}")
    if not 0 <= choice < limits.MOTION_OPTIONS_MAX:
        raise CodecError(f"the choice of an opinion is 0 to {limits.MOTION_OPTIONS_MAX - 1}")
    return OpinionBody(OperationId(motion), choice, evidence)


def _checked(motion: MotionKind, subject: bytes, payload: bytes, reason: str) -> MotionBody:
    """What is made here passes the checks that others will make."""
    return decode_motion([int(motion), subject, payload, reason])


def _decode_change(payload: bytes) -> Change:
    fields = decode(payload)
    if type(fields) is not list or len(fields) != 2 or type(fields[0]) is not list:
        raise CodecError("the payload of a change is an array of expelled keys and terms")
    expelled, plain = fields
    if len(expelled) > limits.MOTION_EXPELLED_MAX:
        raise CodecError(f"a motion expels at most {limits.MOTION_EXPELLED_MAX} authors")
    _check_hashes("expelled authors", expelled)
    terms = None if plain is None else PoolSpec.from_body(plain)
    if not expelled and terms is None:
        raise CodecError("a motion to change nothing")
    if terms is not None and (set(expelled) & set(terms.electors) or set(expelled) & set(terms.whitelist)):
        raise CodecError("the new terms name an author that the same motion expels")
    return Change(tuple(PublicKey(key) for key in expelled), terms)


def _decode_rivals(payload: bytes) -> tuple[ValueHash, ...]:
    fields = decode(payload)
    if type(fields) is not list or not 2 <= len(fields) <= limits.MOTION_OPTIONS_MAX:
        raise CodecError(f"the payload of rival reports is an array of 2 to {limits.MOTION_OPTIONS_MAX} value hashes")
    _check_hashes("rival values", fields)
    return tuple(ValueHash(value) for value in fields)


def _check_hashes(what: str, values: list[Any]) -> None:
    if any(type(value) is not bytes or len(value) != _HASH_BYTES for value in values):
        raise CodecError(f"{what} are byte strings of {_HASH_BYTES}")
    if values != sorted(set(values)):
        raise CodecError(f"{what} are sorted, without repeats")
