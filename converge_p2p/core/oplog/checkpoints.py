"""Checkpoints: the proposal of a cut with the root of the state there, and the attestation of an elector.

Knows: their shape. Must not know: how a root is computed (see `view`), or when one is proposed (see `replica`).
Source: `docs/protocol.md`, checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.cuts import Cut, read_cuts
from converge_p2p.core.types import OperationId

_HASH = 32


@dataclass(frozen=True, slots=True)
class CheckpointBody:
    """An elector proposes a cut of the log, and says what the state there is.

    Attributes:
        number: one more than that of the checkpoint it builds on, from 1.
        base: 32 bytes: the root of that checkpoint; the pool's id if there is none.
        delta: the authors whose cut advances, sorted, each with at least one operation.
        votes: votes on epochs that stand in no chain inside, sorted: of authors that forked, or were removed.
        root: 32 bytes that commit to the snapshot of the state at the cut.
    """

    number: int
    base: bytes
    delta: tuple[Cut, ...]
    votes: tuple[OperationId, ...]
    root: bytes


@dataclass(frozen=True, slots=True)
class AttestBody:
    """An elector vouches: it holds the cut of a checkpoint, and computed this root itself.

    Attributes:
        checkpoint: the operation that proposed it.
        root: what the elector computed.
    """

    checkpoint: OperationId
    root: bytes


def encode_checkpoint(body: CheckpointBody) -> list[Any]:
    """Return the array form."""
    return [body.number, body.base, [list(cut) for cut in body.delta], list(body.votes), body.root]


def decode_checkpoint(body: list[Any]) -> CheckpointBody:
    """Read the array form.

    Raises:
        CodecError: wrong shape, or out of bounds.
    """
    match body:
        case [int() as number, bytes() as base, list() as delta, list() as votes, bytes() as root] if (
            type(number) is int and 1 <= number <= limits.SEQ_MAX and len(base) == len(root) == _HASH
        ):
            cuts = read_cuts(delta, limits.CHECKPOINT_AUTHORS_MAX)
            if not cuts or not all(cut.length for cut in cuts):
                raise CodecError("a checkpoint advances at least one author, each to at least one operation")
            if len(votes) > limits.CHECKPOINT_VOTES_MAX or any(
                type(vote) is not bytes or len(vote) != _HASH for vote in votes
            ):
                raise CodecError(f"a checkpoint names at most {limits.CHECKPOINT_VOTES_MAX} votes")
            if votes != sorted(set(votes)):
                raise CodecError("the votes of a checkpoint are sorted, without repeats")
            return CheckpointBody(number, base, cuts, tuple(OperationId(vote) for vote in votes), root)
    raise CodecError("a checkpoint body is an array of number, base, delta, votes and root")


def encode_attest(body: AttestBody) -> list[Any]:
    """Return the array form."""
    return [body.checkpoint, body.root]


def decode_attest(body: list[Any]) -> AttestBody:
    """Read the array form.

    Raises:
        CodecError: wrong shape.
    """
    match body:
        case [bytes() as checkpoint, bytes() as root] if len(checkpoint) == len(root) == _HASH:
            return AttestBody(OperationId(checkpoint), root)
    raise CodecError("an attest body is an array of a checkpoint's id and a root")
