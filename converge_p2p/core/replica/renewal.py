"""What a worker says while it works: its bytes, and how far it stretches the others' patience.

Knows: the statement, and the time of one holder on a local clock. Must not know: votes, or how a statement travels.
Source: `docs/protocol.md`, renewals; leases with a renewal and a longest hold (Gray and Cheriton, 1989).

A renewal is no operation: it is not stored, proves nothing to anybody later, and decides nothing but how long a node
waits. The payload is canonical CBOR, signed under the tag `renewal` by the holder of the round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, RemoteViolation
from converge_p2p.core.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from converge_p2p.core.oplog.bodies import Token
from converge_p2p.core.types import PoolId, PublicKey, TaskId

RENEWAL_TAG: Final = "renewal"
VERSION: Final = 1
THOUSANDTHS: Final = 1000
"""A fraction of 1."""
RENEWALS_PER_TTL: Final = 3
"""So often a holder speaks within a time to live: two in a row may be lost."""

_TASK_BYTES = 32


@dataclass(frozen=True, slots=True)
class Renewal:
    """The holder of a round says that it is at work.

    Attributes:
        task: on what.
        author: who holds the round.
        token: the round.
        fraction: how much is done, in thousandths, 0 to 1000.
        note: for people, at most `limits.RENEWAL_NOTE_BYTES_MAX` bytes of UTF-8.
        counter: grows with each statement of a round; 0 to `limits.SEQ_MAX`.
    """

    task: TaskId
    author: PublicKey
    token: Token
    fraction: int
    note: str
    counter: int


def sign_renewal(identity: Identity, pool: PoolId, renewal: Renewal) -> bytes:
    """Return signature and payload. The author must be the identity, and the fields within their bounds."""
    assert renewal.author == identity.public_key
    epoch, number = renewal.token
    payload = encode(
        [
            VERSION,
            pool,
            renewal.task,
            renewal.author,
            epoch,
            number,
            renewal.fraction,
            renewal.note,
            renewal.counter,
        ]
    )
    return identity.sign(RENEWAL_TAG, payload) + payload


def decode_renewal(signed: bytes, pool: PoolId) -> Renewal:
    """Decode a renewal. Its signature is not verified: that costs most, and most of what is replayed is not worth it.

    Args:
        signed: signature and payload.
        pool: the pool it must belong to.

    Raises:
        RemoteViolation: refused; `reason` is one of too_large, bad_renewal, wrong_pool, bad_version.
    """
    if not SIGNATURE_BYTES < len(signed) <= limits.RENEWAL_BYTES_MAX:
        raise RemoteViolation("too_large", f"a renewal of {len(signed)} bytes; at most {limits.RENEWAL_BYTES_MAX}")
    try:
        return _read(decode(signed[SIGNATURE_BYTES:]), pool)
    except CodecError as error:
        raise RemoteViolation("bad_renewal", str(error)) from error


def check_signature(signed: bytes, renewal: Renewal) -> None:
    """Verify that the author signed what was decoded.

    Raises:
        RemoteViolation: with the reason bad_signature.
    """
    if not verify(renewal.author, RENEWAL_TAG, signed[SIGNATURE_BYTES:], signed[:SIGNATURE_BYTES]):
        raise RemoteViolation("bad_signature", f"the signature is not {renewal.author.hex()[:12]}'s")


def _read(fields: object, pool: PoolId) -> Renewal:
    if type(fields) is not list or not fields:
        raise CodecError("a renewal is an array")
    if type(fields[0]) is not int or fields[0] != VERSION:
        raise RemoteViolation("bad_version", f"renewal version {fields[0]!r}; this node speaks {VERSION}")
    if len(fields) != 9:
        raise CodecError("a renewal is an array of nine")
    _, its_pool, task, author, epoch, number, fraction, note, counter = fields
    if its_pool != pool:
        raise RemoteViolation("wrong_pool", "the renewal belongs to another pool")
    if type(task) is not bytes or len(task) != _TASK_BYTES:
        raise CodecError("the task is an id of 32 bytes")
    if type(author) is not bytes or len(author) != PUBLIC_KEY_BYTES:
        raise CodecError("the author is a public key of 32 bytes")
    if type(note) is not str or len(note.encode()) > limits.RENEWAL_NOTE_BYTES_MAX:
        raise CodecError(f"the note is a text of at most {limits.RENEWAL_NOTE_BYTES_MAX} bytes")
    token = Token(_number(epoch, limits.SEQ_MAX), _number(number, limits.ROUND_MAX))
    done, count = _number(fraction, THOUSANDTHS), _number(counter, limits.SEQ_MAX)
    return Renewal(TaskId(task), PublicKey(author), token, done, note, count)


def _number(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise CodecError(f"expected an integer from 0 to {most}")
    return value


def round_ttl_ms(base_ms: int, number: int) -> int:
    """How long the holder of a round may take without a word.

    Args:
        base_ms: the task's or the pool's time to live.
        number: the round.
    """
    return min(base_ms << min(number, limits.CLAIM_TTL_DOUBLINGS_MAX), limits.CLAIM_TTL_MS_MAX)


def renewal_interval_ms(base_ms: int, number: int) -> int:
    """How long the holder of a round waits between two renewals."""
    return max(round_ttl_ms(base_ms, number) // RENEWALS_PER_TTL, limits.RENEWAL_PAUSE_MS)


@dataclass(slots=True)
class Hold:
    """The patience with whoever holds one round, on the local monotonic clock.

    Attributes:
        token: the round.
        ttl_ms: how long the holder may take without a word.
        since_ms: when its certificate was first seen here.
        renewal: what it said last.
        signed: the bytes of that.
        renewed_ms: when that came.
        passed_on: that was passed on by gossip.
    """

    token: Token
    ttl_ms: int
    since_ms: int
    renewal: Renewal | None = None
    signed: bytes = b""
    renewed_ms: int = 0
    passed_on: bool = False

    @property
    def ends_ms(self) -> int:
        """When the holder's time is over, whatever it says."""
        return self.since_ms + limits.CLAIM_HOLD_FACTOR_MAX * self.ttl_ms

    def takes(self, renewal: Renewal, now_ms: int) -> bool:
        """Whether a statement, if its signature holds, is news. Costs nothing: replays and floods end here."""
        if renewal.token != self.token:
            return False
        last = self.renewal
        # half of what an honest holder waits, for the network can bring two closer together
        return last is None or (
            renewal.counter > last.counter and now_ms - self.renewed_ms >= limits.RENEWAL_PAUSE_MS // 2
        )

    def renew(self, renewal: Renewal, signed: bytes, now_ms: int) -> int | None:
        """Note a statement that was verified, and return how long the holder has from now.

        Returns:
            Milliseconds until its time is over, or None if the longest hold is: the progress is news all the same.
        """
        self.renewal, self.signed, self.renewed_ms, self.passed_on = renewal, signed, now_ms, False
        left = self.ends_ms - now_ms
        return min(self.ttl_ms, left) if left > 0 else None
