"""Evidence of a pool as an application reads and cites it.

Knows: evidence in clear, and how a content is hashed. Must not know: how a choice by evidence is counted.
Source: `docs/governance.md`, empirical.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.evidence import Standing
from converge_p2p.node.driver import PoolDriver

DEFAULT_MEDIA = "application/octet-stream"
_UNREADABLE = "sealed"


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """That somebody says which content speaks for a result, or against it.

    Attributes:
        id: of the operation; opinions name it.
        author: who says so.
        weight: of the author in the present epoch, if it is an elector; else 0.
        value: hash of the result.
        supports: it speaks for the result; otherwise against it.
        digest: SHA-256 of the content, 32 bytes.
        size: of the content, in bytes.
        media: what kind of content it is; "sealed" if that cannot be read here.
        summary: for people; the same.
    """

    id: OperationId
    author: PublicKey
    weight: int
    value: ValueHash
    supports: bool
    digest: bytes
    size: int
    media: str
    summary: str


class PoolEvidence:
    """The evidence of one pool."""

    def __init__(self, driver: PoolDriver) -> None:
        """Made by the pool's council."""
        self._driver = driver
        self._view = driver.replica.view

    def about(self, task: TaskId) -> list[EvidenceView]:
        """Everything that was cited about the results of a task, by id."""
        weights = self._view.counting.rules.weights if len(self._view.epochs) else {}
        found = []
        for cited in self._view.evidence.about(task):
            body = self._body(cited.id)
            found.append(
                EvidenceView(
                    cited.id,
                    cited.author,
                    weights.get(cited.author, 0),
                    cited.value,
                    cited.supports,
                    cited.digest,
                    cited.size,
                    _UNREADABLE if body is None else body.media,
                    _UNREADABLE if body is None else body.summary,
                )
            )
        return found

    def _body(self, name: OperationId) -> EvidenceBody | None:
        signed = self._driver.replica.log.get(name)
        if signed is None:
            return None
        operation = decode_operation(signed, self._driver.pool, trusted=True)
        body = self._driver.replica.contents.open_body(operation)
        return body if isinstance(body, EvidenceBody) else None

    def standing(self, task: TaskId, value: ValueHash) -> Standing:
        """How much speaks for a result, by the weights of the present epoch."""
        weights = self._view.counting.rules.weights if len(self._view.epochs) else {}
        return self._view.evidence.standing(task, value, weights)

    async def cite(
        self,
        task: TaskId,
        content: bytes | None = None,
        *,
        digest: bytes | None = None,
        size: int = 0,
        value: ValueHash | None = None,
        supports: bool = True,
        media: str = DEFAULT_MEDIA,
        summary: str = "",
    ) -> OperationId | None:
        """Say that a content speaks for a result of a task, or against it. The content itself is not sent to anybody.

        Args:
            task: the task.
            content: what is cited; or
            digest, size: its SHA-256 and length, where the content is not at hand.
            value: hash of the result (see `TaskView.reported`); None is the only one that is known.
            supports: False says that it speaks against the result.
            media: what kind of content it is.
            summary: for people; what is too long is cut off.

        Returns:
            The id of the evidence; None if the same was cited before.

        Raises:
            NotFound: no such task or result here.
            Conflict: several results were reported, and none is named.
            LocalError, LimitExceeded: something is out of bounds; nothing was changed.
        """
        if content is not None:
            digest, size = hashlib.sha256(content).digest(), len(content)
        command = ev.Cite(task, digest or b"", size, media, summary, value, supports)
        operations = await self._driver.record(command)
        return operations[0] if operations else None
