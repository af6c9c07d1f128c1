"""Evidence over the control interface: cite some, and list what was cited.

Knows: the schema, and a pool through `control.ports`. Must not know: HTTP.
Source: docs/control.md.
"""

from __future__ import annotations

from converge_node.control.ports import PoolLike
from converge_node.control.views import value_hash
from converge_p2p.client import schema
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.types import TaskId

_DIGEST_DIGITS = 64


def evidence_items(pool: PoolLike, task: TaskId) -> list[schema.EvidenceItem]:
    """Return what was cited about the results of a task."""
    return [
        schema.EvidenceItem(
            id=view.id.hex(),
            author=str(fingerprint(view.author)),
            weight=view.weight,
            value=view.value.hex(),
            supports=view.supports,
            digest=view.digest.hex(),
            size=view.size,
            media=view.media,
            summary=view.summary,
        )
        for view in pool.council.evidence.about(task)
    ]


async def cite(pool: PoolLike, task: TaskId, body: schema.CiteEvidence) -> list[schema.EvidenceItem]:
    """Cite evidence, and return everything that was cited about the task.

    Raises:
        LocalError: the digest is not 64 hexadecimal digits.
        NotFound, Conflict, LimitExceeded: see `PoolEvidence.cite`.
    """
    text = body.digest.lower()
    if len(text) != _DIGEST_DIGITS or set(text) - set("0123456789abcdef"):
        raise LocalError(f"{body.digest[:16]!r} is no SHA-256", hint=f"it has {_DIGEST_DIGITS} hexadecimal digits")
    await pool.council.evidence.cite(
        task,
        digest=bytes.fromhex(text),
        size=body.size,
        value=value_hash(body.value),
        supports=body.supports,
        media=body.media,
        summary=body.summary,
    )
    return evidence_items(pool, task)
