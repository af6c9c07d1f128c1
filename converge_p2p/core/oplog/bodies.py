"""What an operation can say: one frozen dataclass per kind, and its array form.

Knows: the shape of each body. Must not know: whether a body has an effect (the fold in `view` decides).
Source: `docs/protocol.md`, operation kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue
from converge_p2p.core.oplog import coordination_codec, key_bodies, motions, succession
from converge_p2p.core.oplog.checkpoints import (
    AttestBody,
    CheckpointBody,
    decode_attest,
    decode_checkpoint,
    encode_attest,
    encode_checkpoint,
)
from converge_p2p.core.oplog.coordination import AnswerBody, CoordinationBody, PollVoteBody
from converge_p2p.core.oplog.cuts import Cut as Cut, read_cuts as read_cuts
from converge_p2p.core.oplog.evidence import EvidenceBody, decode_evidence, encode_evidence
from converge_p2p.core.oplog.fields import (
    HASH_BYTES,
    check_shape as _shape,
    hash_field as _hash,
    round_field as _round,
    text_field as _text,
)
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, PrekeyBody
from converge_p2p.core.oplog.motions import MotionBody, OpinionBody
from converge_p2p.core.oplog.succession import SuccessionBody, decode_recovery, decode_rotate, encode_succession
from converge_p2p.core.oplog.verdicts import VerdictBody, decode_verdict, encode_verdict
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash


class Kind(IntEnum):
    """Operation kinds. Numbers are never used again for something else."""

    GENESIS = 0
    JOIN = 1
    LEAVE = 2
    SUBMIT = 3
    CLAIM = 4
    RELEASE = 5
    REPORT = 6
    VOTE = 7
    MOTION = 8
    OPINION = 9
    VETO = 10
    CHECKPOINT = 11
    CONTENT_KEY = 12
    PREKEY = 13
    ATTEST = 14
    EVIDENCE = 15
    VERDICT = 16
    ROTATE = 17
    RECOVERY = 18
    AUCTION = 20
    BID = 21
    POLL_OPEN = 22
    POLL_VOTE = 23
    POLL_CLOSE = 24
    PROPOSE = 25
    ANSWER = 26
    DELEGATE = 27
    REVOKE = 28
    ACT = 29


class Token(NamedTuple):
    """The fencing token of a task: rounds never restart, and epochs come first."""

    epoch: int
    round: int


class Lock(NamedTuple):
    """The highest value an elector accepted, carried by its promises."""

    token: Token
    value: ValueHash


class Phase(IntEnum):
    """What a ballot says."""

    GRANT = 0
    ENDORSE = 1
    ACCEPT = 2


_PHASES = tuple(Phase)
"""By number: a look-up costs a fifth of what making an enumeration's member from its number does."""


class Purpose(IntEnum):
    """Why somebody claims.

    To work, to settle a cancellation, to settle a failure after the last retry; or, an elector: to found an epoch, to
    let a result pass its vetoers, or to carry out a veto.
    """

    WORK = 0
    CANCEL = 1
    FAIL = 2
    EPOCH = 3
    PASS = 4
    DENY = 5


@dataclass(frozen=True, slots=True)
class Genesis:
    """Founds the pool. First operation of its creator."""

    spec: PoolSpec


@dataclass(frozen=True, slots=True)
class JoinBody:
    """The author becomes a member."""

    capabilities: tuple[str, ...] = ()
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class LeaveBody:
    """The author is no longer a member."""


@dataclass(frozen=True, slots=True)
class SubmitBody:
    """The author asks for a task."""

    spec: TaskSpec


@dataclass(frozen=True, slots=True)
class ClaimBody:
    """The author stands for a task, in every round until it releases.

    It names no round: a claim that could would let anybody start a round of a thousand million.

    Attributes:
        ref: to found an epoch, the id of the motion that asked for it; to deny a result, the id of the veto; 32 bytes.
            Otherwise empty.
    """

    task: TaskId
    purpose: Purpose = Purpose.WORK
    bid: int = 0
    reason: str = ""
    ref: bytes = b""


@dataclass(frozen=True, slots=True)
class ReleaseBody:
    """The author withdraws its claim; if it held `token`'s round, the next round may open."""

    task: TaskId
    round: int
    failed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReportBody:
    """The certified claimant of a round proposes a value, and names the promises it rests on."""

    task: TaskId
    round: int
    value: TaskValue
    grants: tuple[OperationId, ...]


class Ballot(NamedTuple):
    """One vote. Its epoch is the operation's.

    Attributes:
        ref: GRANT: id of the claim operation; ENDORSE and ACCEPT: hash of the value.
        lock: GRANT only: the highest value the elector accepted, or None.
        expired: GRANT only: the round whose holder ran out of time on this elector's clock, if that is why it grants a
            later one; else None.
        held: a promise for the next epoch only: how much of each author that it removes the elector holds, sorted.
    """

    phase: Phase
    task: TaskId
    round: int
    ref: bytes
    lock: Lock | None = None
    expired: int | None = None
    held: tuple[Cut, ...] = ()


@dataclass(frozen=True, slots=True)
class VoteBody:
    """An elector's ballots, many under one signature."""

    ballots: tuple[Ballot, ...]


@dataclass(frozen=True, slots=True)
class VetoBody:
    """A vetoer denies a result that was settled, or lets it pass.

    Attributes:
        value: hash of what the task was settled on.
        reason: for people.
    """

    task: TaskId
    value: ValueHash
    deny: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ActBody:
    """The author acts in the name of whoever delegated to it.

    Attributes:
        delegation: id of the delegate operation.
        inner: a submit, a claim to cancel, a vote in a poll, or an answer to a proposal. Nothing else can be delegated,
            another act least of all.
    """

    delegation: OperationId
    inner: SubmitBody | ClaimBody | PollVoteBody | AnswerBody


Body = (
    Genesis
    | JoinBody
    | LeaveBody
    | SubmitBody
    | ClaimBody
    | ReleaseBody
    | ReportBody
    | VoteBody
    | MotionBody
    | OpinionBody
    | VetoBody
    | ContentKeyBody
    | PrekeyBody
    | VerdictBody
    | CheckpointBody
    | AttestBody
    | EvidenceBody
    | SuccessionBody
    | CoordinationBody
    | ActBody
)

VOTES = (VoteBody, OpinionBody, VetoBody, AttestBody, EvidenceBody)
"""Bodies that count under the electorate they name, whatever becomes of their author: never frozen, never refused.

Evidence is among them because votes rest on it.
"""


def kind_of(body: Body) -> Kind:
    """Return the kind number of a body."""
    return _KINDS[type(body)]


def encode_body(body: Body) -> list[Any]:
    """Return the array form of a body."""
    if isinstance(body, SuccessionBody):
        return encode_succession(body)
    match body:
        case Genesis(spec):
            return spec.to_body()
        case JoinBody(capabilities, proof):
            return [list(capabilities), proof]
        case LeaveBody():
            return []
        case SubmitBody(task):
            return task.to_body()
        case ClaimBody(task_id, purpose, bid, reason, ref):
            return [task_id, int(purpose), bid, reason, ref]
        case ReleaseBody(task_id, number, failed, reason):
            return [task_id, number, failed, reason]
        case ReportBody(task_id, number, value, grants):
            return [task_id, number, int(value.outcome), value.worker, value.result, list(grants)]
        case VoteBody(ballots):
            return [_encode_ballot(ballot) for ballot in ballots]
        case MotionBody():
            return motions.encode_motion(body)
        case OpinionBody():
            return motions.encode_opinion(body)
        case VetoBody(task_id, value, deny, reason):
            return [task_id, value, deny, reason]
        case ContentKeyBody() | PrekeyBody():
            return key_bodies.encode_key_body(body)
        case VerdictBody():
            return encode_verdict(body)
        case CheckpointBody():
            return encode_checkpoint(body)
        case AttestBody():
            return encode_attest(body)
        case EvidenceBody():
            return encode_evidence(body)
        case ActBody(delegation, inner):
            return [delegation, int(kind_of(inner)), encode_body(inner)]
        case _:
            return coordination_codec.encode_coordination(body)


def decode_body(kind: int, body: Any) -> Body:
    """Read the array form of a body.

    Raises:
        CodecError: unknown kind, wrong shape, or out of bounds.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise CodecError(f"unknown operation kind {kind}")
    if type(body) is not list:
        raise CodecError("an operation body is an array")
    return decoder(body)


def _encode_ballot(ballot: Ballot) -> list[Any]:
    lock = ballot.lock
    plain = None if lock is None else [lock.token.epoch, lock.token.round, lock.value]
    held = [list(cut) for cut in ballot.held]
    return [int(ballot.phase), ballot.task, ballot.round, ballot.ref, plain, ballot.expired, held]


def _genesis(body: list[Any]) -> Genesis:
    return Genesis(PoolSpec.from_body(body))


def _join(body: list[Any]) -> JoinBody:
    _shape("join", body, list, bytes)
    names, proof = body
    if any(type(name) is not str for name in names) or names != sorted(set(names)):
        raise CodecError("capabilities of a join are sorted text, without repeats")
    if len(names) > limits.CAPABILITIES_PER_TASK_MAX or len(proof) > limits.ADMISSION_PROOF_BYTES_MAX:
        raise CodecError("a join names too many capabilities, or its proof is too long")
    return JoinBody(tuple(_text(name) for name in names), proof)


def _leave(body: list[Any]) -> LeaveBody:
    _shape("leave", body)
    return LeaveBody()


def _claim(body: list[Any]) -> ClaimBody:
    _shape("claim", body, bytes, int, int, str, bytes)
    task, purpose, bid, reason, ref = body
    if purpose not in tuple(Purpose) or not -(2**53) <= bid <= 2**53:
        raise CodecError("a claim has an unknown purpose or a bid out of range")
    if len(ref) != (HASH_BYTES if purpose in (Purpose.EPOCH, Purpose.DENY) else 0):
        raise CodecError("a claim names a motion to found an epoch, a veto to deny a result, and otherwise nothing")
    return ClaimBody(TaskId(_hash("a task id", task)), Purpose(purpose), bid, _text(reason), ref)


def _release(body: list[Any]) -> ReleaseBody:
    _shape("release", body, bytes, int, bool, str)
    task, number, failed, reason = body
    if number != -1:
        _round(number)
    return ReleaseBody(TaskId(_hash("a task id", task)), number, failed, _text(reason))


def _report(body: list[Any]) -> ReportBody:
    _shape("report", body, bytes, int, int, bytes, bytes, list)
    task, number, outcome, worker, result, grants = body
    if outcome not in (0, 1, 2):
        raise CodecError("a report has an unknown outcome")
    if len(result) > limits.RESULT_BYTES_MAX:
        raise CodecError(f"a result has at most {limits.RESULT_BYTES_MAX} bytes")
    if len(grants) > limits.ELECTORS_MAX:
        raise CodecError(f"a report names at most {limits.ELECTORS_MAX} grants")
    names = tuple(OperationId(_hash("a grant", grant)) for grant in grants)
    if len(set(names)) != len(names):
        raise CodecError("a report names a grant twice")
    value = TaskValue(Outcome(outcome), PublicKey(_hash("a worker", worker)), result)
    return ReportBody(TaskId(_hash("a task id", task)), _round(number), value, names)


def _veto(body: list[Any]) -> VetoBody:
    _shape("veto", body, bytes, bytes, bool, str)
    task, value, deny, reason = body
    return VetoBody(TaskId(_hash("a task id", task)), ValueHash(_hash("a value hash", value)), deny, _text(reason))


def _vote(body: list[Any]) -> VoteBody:
    if not 1 <= len(body) <= limits.BALLOTS_PER_VOTE_MAX:
        raise CodecError(f"a vote holds 1 to {limits.BALLOTS_PER_VOTE_MAX} ballots")
    ballots = tuple(_ballot(item) for item in body)
    # a report names a promise by the vote it stands in, so a vote may hold only one for each subject
    if len({(ballot.phase, ballot.task, ballot.round) for ballot in ballots}) != len(ballots):
        raise CodecError("a vote holds two ballots for one task, round and phase")
    return VoteBody(ballots)


def _ballot(item: Any) -> Ballot:
    if type(item) is not list or len(item) != 7:
        raise CodecError("a ballot is an array of seven")
    phase, task, number, ref, plain, expired, held = item
    if type(phase) is not int or phase not in (0, 1, 2):
        raise CodecError("a ballot has an unknown phase")
    lock = None
    if plain is not None:
        if phase != Phase.GRANT or type(plain) is not list or len(plain) != 3:
            raise CodecError("a lock is an array of three, and only a grant carries one")
        epoch, locked_round, value = plain
        if type(epoch) is not int or epoch < 0:
            raise CodecError("the epoch of a lock is 0 or more")
        lock = Lock(Token(epoch, _round(locked_round)), ValueHash(_hash("a value hash", value)))
    if expired is not None and (phase != Phase.GRANT or _round(expired) >= _round(number)):
        raise CodecError("only a grant names an expired round, and one below its own")
    if held and phase != Phase.GRANT:
        raise CodecError("only a grant says what is held of others")
    return Ballot(
        _PHASES[phase],
        TaskId(_hash("a task id", task)),
        _round(number),
        _hash("the reference of a ballot", ref),
        lock,
        expired,
        read_cuts(held) if held != [] else (),
    )


def _act(body: list[Any]) -> ActBody:
    _shape("act", body, bytes, int, list)
    delegation, kind, plain = body
    inner = decode_body(kind, plain) if kind != Kind.ACT else None
    if not isinstance(inner, SubmitBody | ClaimBody | PollVoteBody | AnswerBody):
        raise CodecError("an act is a submit, a claim to cancel, a vote in a poll or an answer to a proposal")
    if isinstance(inner, ClaimBody) and inner.purpose is not Purpose.CANCEL:
        raise CodecError("of the claims only one to cancel can be delegated: a worker claims for itself")
    return ActBody(OperationId(_hash("a delegation", delegation)), inner)


_KINDS: dict[type, Kind] = {
    Genesis: Kind.GENESIS,
    JoinBody: Kind.JOIN,
    LeaveBody: Kind.LEAVE,
    SubmitBody: Kind.SUBMIT,
    ClaimBody: Kind.CLAIM,
    ReleaseBody: Kind.RELEASE,
    ReportBody: Kind.REPORT,
    VoteBody: Kind.VOTE,
    MotionBody: Kind.MOTION,
    OpinionBody: Kind.OPINION,
    VetoBody: Kind.VETO,
    CheckpointBody: Kind.CHECKPOINT,
    AttestBody: Kind.ATTEST,
    ContentKeyBody: Kind.CONTENT_KEY,
    PrekeyBody: Kind.PREKEY,
    VerdictBody: Kind.VERDICT,
    EvidenceBody: Kind.EVIDENCE,
    ActBody: Kind.ACT,
    **{body: Kind(number) for body, number in succession.KIND_NUMBERS.items()},
    **{body: Kind(number) for body, number in coordination_codec.KIND_NUMBERS.items()},
}
_DECODERS: dict[int, Callable[[list[Any]], Body]] = {
    Kind.GENESIS: _genesis,
    Kind.JOIN: _join,
    Kind.LEAVE: _leave,
    Kind.SUBMIT: lambda body: SubmitBody(TaskSpec.from_body(body)),
    Kind.CLAIM: _claim,
    Kind.RELEASE: _release,
    Kind.REPORT: _report,
    Kind.VOTE: _vote,
    Kind.MOTION: motions.decode_motion,
    Kind.OPINION: motions.decode_opinion,
    Kind.CHECKPOINT: decode_checkpoint,
    Kind.ATTEST: decode_attest,
    Kind.VETO: _veto,
    Kind.CONTENT_KEY: key_bodies.decode_content_key,
    Kind.PREKEY: key_bodies.decode_prekey,
    Kind.VERDICT: decode_verdict,
    Kind.EVIDENCE: decode_evidence,
    Kind.ROTATE: decode_rotate,
    Kind.RECOVERY: decode_recovery,
    Kind.ACT: _act,
    **coordination_codec.DECODERS,
}
