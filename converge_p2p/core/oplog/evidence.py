"""Evidence: a statement that some content speaks for or against a reported result, and its array form.

Knows: the shape, and the bounds of its texts. Must not know: whether a vote may rest on it (see `view.evidence`).
Source: `docs/protocol.md`, evidence. The content itself is elsewhere; here is only its hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.fields import check_shape, count_field, hash_field, sorted_ids, text_field
from converge_p2p.core.types import OperationId, TaskId, ValueHash


@dataclass(frozen=True, slots=True)
class EvidenceBody:
    """The author cites a content that speaks for a result that was reported, or against it.

    Attributes:
        value: hash of the reported value.
        supports: it speaks for the value; otherwise against it.
        digest: SHA-256 of the content, 32 bytes.
        size: of the content, in bytes.
        media: what kind of content it is, such as `text/csv`; 1 to `limits.NAME_BYTES_MAX` bytes.
        summary: for people.
    """

    task: TaskId
    value: ValueHash
    supports: bool
    digest: bytes
    size: int
    media: str
    summary: str = ""


def encode_evidence(body: EvidenceBody) -> list[Any]:
    """Return the array form."""
    return [body.task, body.value, body.supports, body.digest, body.size, body.media, body.summary]


def decode_evidence(body: list[Any]) -> EvidenceBody:
    """Read the array form.

    Raises:
        CodecError: wrong shape, or out of bounds.
    """
    check_shape("evidence", body, bytes, bytes, bool, bytes, int, str, str)
    task, value, supports, digest, size, media, summary = body
    if not media:
        raise CodecError("evidence says what kind of content it cites")
    return EvidenceBody(
        TaskId(hash_field("a task id", task)),
        ValueHash(hash_field("a value hash", value)),
        supports,
        hash_field("the hash of a content", digest),
        count_field("the size of a content", size),
        text_field(media, limits.NAME_BYTES_MAX),
        text_field(summary),
    )


def encode_citations(evidence: tuple[OperationId, ...]) -> list[Any]:
    """Return what is added to the array of a body that may cite evidence: nothing, if it cites none."""
    return [list(evidence)] if evidence else []


def decode_citations(body: list[Any], fields: int) -> tuple[OperationId, ...]:
    """Read what `encode_citations` added after the fields of a body.

    Raises:
        CodecError: not 1 to `limits.CITATIONS_MAX` sorted ids, or something after them.
    """
    if len(body) == fields:
        return ()
    if len(body) != fields + 1 or type(body[fields]) is not list or not body[fields]:
        raise CodecError("what follows is an array of the evidence that is cited, and nothing if there is none")
    return sorted_ids("evidence", body[fields], limits.CITATIONS_MAX)
