"""Asking to be let into a pool: what a newcomer sends, what it is answered, and what both sides keep meanwhile.

Knows: the fields, their canonical bytes, and their bounds. Must not know: who answers, stores, or the network.
Source: `docs/protocol.md`, join requests. Whoever lets a newcomer in answers with what its join then shows (see
`core.governance.proofs`): there is no further way into a pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.identity import PUBLIC_KEY_BYTES
from converge_p2p.core.types import PoolId, PublicKey

_ID_BYTES = 32


class JoinState(StrEnum):
    """What became of a request."""

    PENDING = "pending"
    ADMITTED = "admitted"
    REFUSED = "refused"
    EXPIRED = "expired"


class AnswerKind(IntEnum):
    """What somebody who was asked says."""

    REFUSED = 0
    GIVEN = 1
    """What the newcomer's join shall show."""
    PENDING = 2
    FREE = 3
    """The terms let the newcomer in, or it is a member: there is nothing to show."""
    CANNOT = 4
    """Whoever was asked can do nothing; the reason is one of `CANNOT_WORDS`."""


CANNOT_WORDS: Final = {
    "elsewhere": "takes no part in the pool",
    "powerless": "can let nobody into the pool",
    "rule": "the pool's own rule decides, and nobody can be asked",
    "full": "holds as many requests as it may",
    "malformed": "did not understand the request",
}


@dataclass(frozen=True, slots=True)
class JoinAsk:
    """A newcomer asks. Its key is that of the connection.

    Attributes:
        pool: which pool.
        note: for people, at most `JOIN_NOTE_BYTES_MAX` bytes.
    """

    pool: PoolId
    note: str

    def to_bytes(self) -> bytes:
        """Return canonical bytes."""
        return encode([self.pool, self.note])

    @classmethod
    def from_bytes(cls, data: bytes) -> JoinAsk:
        """Read a request.

        Raises:
            CodecError: not canonical, another shape, or out of bounds.
        """
        if len(data) > limits.JOIN_REQUEST_BYTES_MAX:
            raise CodecError(f"a join request has at most {limits.JOIN_REQUEST_BYTES_MAX} bytes")
        match decode(data):
            case [bytes(pool), str(note)] if len(pool) == _ID_BYTES:
                return cls(PoolId(pool), checked_note(note))
        raise CodecError("a join request is an array of a pool and text")


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """What whoever was asked says.

    Attributes:
        kind: what.
        proof: an invitation in the newcomer's name, or a vouch, as `core.governance.proofs` encodes them; else empty.
        reason: why not, for people; of CANNOT one of `CANNOT_WORDS`.
    """

    kind: AnswerKind
    proof: bytes = field(default=b"", repr=False)
    reason: str = ""

    def to_bytes(self) -> bytes:
        """Return canonical bytes."""
        return encode([int(self.kind), self.proof, self.reason])

    @classmethod
    def from_bytes(cls, data: bytes) -> JoinAnswer:
        """Read an answer. What it gives is verified when it is used.

        Raises:
            CodecError: not canonical, another shape, or out of bounds.
        """
        if len(data) > limits.INVITATION_BYTES_MAX + limits.JOIN_REQUEST_BYTES_MAX:
            raise CodecError("the answer to a join request is too long")
        match decode(data):
            case [int(kind), bytes(proof), str(reason)] if type(kind) is int and kind in set(AnswerKind):
                answer = cls(AnswerKind(kind), proof, checked_note(reason))
                if bool(proof) is (answer.kind is AnswerKind.GIVEN) and len(proof) <= limits.INVITATION_BYTES_MAX:
                    return answer
        raise CodecError("the answer to a join request is an array of a kind, bytes and text")


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A request of somebody else, as whoever was asked keeps it.

    Attributes:
        pool, joiner: who wants into what.
        note: what the newcomer says; anybody can write anything there.
        asked_ms, expires_ms: Unix times.
        state: what became of it here.
        proof: what the newcomer is given.
        reason: why it was refused.
        motion: the id of the motion that would let it in, if one was moved here; else empty.
        host: where it asked from, as far as that can be counted.
    """

    pool: PoolId
    joiner: PublicKey
    note: str
    asked_ms: int
    expires_ms: int
    state: JoinState = JoinState.PENDING
    proof: bytes = field(default=b"", repr=False)
    reason: str = ""
    motion: bytes = b""
    host: str = ""

    def to_bytes(self) -> bytes:
        """Return canonical bytes, for the store."""
        return encode(
            [
                self.pool, self.joiner, self.note, self.asked_ms, self.expires_ms, str(self.state), self.proof,
                self.reason, self.motion, self.host,
            ]
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> HeldRequest:
        """Read what `to_bytes` wrote.

        Raises:
            CodecError: it is something else.
        """
        match decode(data):
            case [
                bytes(pool), bytes(joiner), str(note), int(asked), int(expires), str(state), bytes(proof), str(reason),
                bytes(motion), *rest,
            ] if len(pool) == _ID_BYTES and len(joiner) == PUBLIC_KEY_BYTES and state in set(JoinState):  # fmt: skip
                # the host is newer than the rest
                host = rest[0] if rest else ""
                if len(rest) <= 1 and isinstance(host, str):
                    known = PoolId(pool), PublicKey(joiner)
                    return cls(*known, note, asked, expires, JoinState(state), proof, reason, motion, host)
        raise CodecError("this is no kept join request")


@dataclass(frozen=True, slots=True)
class Application:
    """An own request, as the newcomer keeps it.

    Attributes:
        pool: which pool.
        note: what was said.
        capabilities: what this node will declare once it is a member.
        asked_ms, expires_ms: Unix times.
        state: what became of it.
        given: what was given, by who gave it.
        refused: who refused, and why.
    """

    pool: PoolId
    note: str
    capabilities: tuple[str, ...]
    asked_ms: int
    expires_ms: int
    state: JoinState = JoinState.PENDING
    given: dict[PublicKey, bytes] = field(default_factory=dict, repr=False)
    refused: dict[PublicKey, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return canonical bytes, for the store."""
        given = [[key, self.given[key]] for key in sorted(self.given)]
        refused = [[key, self.refused[key]] for key in sorted(self.refused)]
        fields: list[Any] = [
            self.pool, self.note, list(self.capabilities), self.asked_ms, self.expires_ms, str(self.state), given,
            refused,
        ]  # fmt: skip
        return encode(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> Application:
        """Read what `to_bytes` wrote.

        Raises:
            CodecError: it is something else.
        """
        match decode(data):
            case [
                bytes(pool),
                str(note),
                list(names),
                int(asked),
                int(expires),
                str(state),
                list(given),
                list(refused),
            ]:
                pass
            case _:
                raise CodecError("this is no kept application")
        if len(pool) != _ID_BYTES or state not in set(JoinState) or not all(type(name) is str for name in names):
            raise CodecError("a kept application has fields of another form")
        try:
            by_key = ({PublicKey(key): proof for key, proof in given}, {PublicKey(key): why for key, why in refused})
        except (TypeError, ValueError) as error:
            raise CodecError("a kept application has fields of another form") from error
        return cls(PoolId(pool), note, tuple(names), asked, expires, JoinState(state), *by_key)


def is_over(expires_ms: int, now_ms: int) -> bool:
    """Whether a request is over: its time has passed, or it ends later than any could that was made by this clock.

    A clock that was wrong and was put right would otherwise leave requests that hold their places for years. A
    correction by less than `JOIN_REQUEST_TTL_S` changes nothing.
    """
    return not now_ms < expires_ms <= now_ms + round(2 * limits.JOIN_REQUEST_TTL_S * 1000)


def checked_note(note: str) -> str:
    """Return a note.

    Raises:
        CodecError: longer than `JOIN_NOTE_BYTES_MAX` bytes.
    """
    if len(note.encode()) > limits.JOIN_NOTE_BYTES_MAX:
        most = limits.JOIN_NOTE_BYTES_MAX
        raise CodecError(f"what is said with a join request has at most {most} bytes", hint="say less")
    return note
