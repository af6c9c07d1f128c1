"""What an evaluator says about a result, and its array form.

Knows: the shape of a verdict. Must not know: whether it has an effect (see `view.verdicts`).
Source: `docs/protocol.md`, operation kinds and evaluators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converge_p2p.core.oplog.fields import check_shape, hash_field, text_field
from converge_p2p.core.types import TaskId, ValueHash


@dataclass(frozen=True, slots=True)
class VerdictBody:
    """The author judges a result that was reported.

    Attributes:
        value: hash of the reported value.
        approve: it may be settled; an approval is never taken back.
        reason: for people.
    """

    task: TaskId
    value: ValueHash
    approve: bool
    reason: str = ""


def encode_verdict(body: VerdictBody) -> list[Any]:
    """Return the array form."""
    return [body.task, body.value, body.approve, body.reason]


def decode_verdict(body: list[Any]) -> VerdictBody:
    """Read the array form.

    Raises:
        CodecError: wrong shape, or out of bounds.
    """
    check_shape("verdict", body, bytes, bytes, bool, str)
    task, value, approve, reason = body
    return VerdictBody(
        TaskId(hash_field("a task id", task)),
        ValueHash(hash_field("a value hash", value)),
        approve,
        text_field(reason),
    )
