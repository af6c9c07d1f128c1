"""What an application holds of one task, and of its result.

Knows: how to wait for a task and to ask for what can become of it. Must not know: effects, stores, the network.
Source: `docs/embedding.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converge_p2p.core.errors import TaskCancelled, TaskFailed
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.task import Outcome, TaskView
from converge_p2p.core.types import AgentId, OperationId, TaskId, ValueHash
from converge_p2p.core.view.explanation import Explanation
from converge_p2p.core.view.receipt import Receipt
from converge_p2p.node.evidence import DEFAULT_MEDIA

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task was completed.

    Attributes:
        value: the decoded result, with the contents of blobs that stand in it.
        by: agent id of the worker it is credited to.
        view: the task as it was settled.
        receipt: proof that verifies offline; None if the votes were pruned before the result was read.
    """

    value: Any
    by: AgentId
    view: TaskView
    receipt: Receipt | None


class TaskHandle:
    """A task of a pool.

    Attributes:
        pool: the pool.
        id: the task's id.
    """

    def __init__(self, pool: PoolHandle, task: TaskId) -> None:
        """Name a task; nothing is looked up."""
        self.pool = pool
        self.id = task

    @property
    def view(self) -> TaskView:
        """The task as this node sees it now."""
        return self.pool.task(self.id)

    async def result(self) -> TaskResult:
        """Wait until the task is settled, and return its result.

        Raises:
            TaskFailed: settled as failed; the message is the reason.
            TaskCancelled: settled as cancelled.
            NotFound: settled before the last checkpoint, and this node did not submit it: its result is kept elsewhere.
            LocalError: this node left the pool or stopped in the meantime.
            NetworkError: the result is a blob that nobody could be asked for who has it. Asking again may help; the
                reference to it is in `view.result`.

        Cancellation: the task goes on.
        """
        view = await self.pool.settled(self.id)
        assert view.value is not None
        match view.value.outcome:
            case Outcome.FAILED:
                raise TaskFailed(": ".join(filter(None, (_reason(view, "error"), _detail(view)))) or "the task failed")
            case Outcome.CANCELLED:
                raise TaskCancelled(_reason(view, "reason") or "the submitter cancelled the task")
        receipt = None if self.pool.is_compacted(self.id) else self.pool.receipt(self.id)
        value = (await self.pool.blobs.bring_result(view)).result
        return TaskResult(value, fingerprint(view.value.worker), view, receipt)

    async def explain(self) -> Explanation:
        """Return what became of it, and why. See `PoolHandle.explain`."""
        return await self.pool.explain(self.id)

    async def cancel(self, reason: str = "") -> None:
        """Ask for the cancellation. It competes with a result, and only one of them settles the task."""
        await self.pool.cancel(self.id, reason)

    async def judge(self, approve: bool, reason: str = "", *, value: ValueHash | None = None) -> None:
        """As the task's evaluator, approve or deny the result that was reported (`view.unjudged`)."""
        await self.pool.judge(self.id, approve, reason, value=value)

    async def cite(
        self,
        content: bytes,
        *,
        value: ValueHash | None = None,
        supports: bool = True,
        media: str = DEFAULT_MEDIA,
        summary: str = "",
    ) -> OperationId | None:
        """Say that a content speaks for a result, or against it. See `Council.evidence`."""
        return await self.pool.council.evidence.cite(
            self.id, content, value=value, supports=supports, media=media, summary=summary
        )

    async def veto(self, reason: str = "") -> None:
        """Deny the result that was settled (`view.awaiting`), as one of the pool's vetoers."""
        await self.pool.veto(self.id, reason)

    async def let_pass(self, reason: str = "") -> None:
        """As a vetoer, let the result pass, so that nobody waits for this vetoer any longer."""
        await self.pool.let_pass(self.id, reason)


def _detail(view: TaskView) -> str:
    """What a vetoer gave as its reason."""
    result = view.result
    return str(result.get("reason") or "") if isinstance(result, dict) else ""


def _reason(view: TaskView, name: str) -> str:
    result = view.result
    return str(result.get(name, "")) if isinstance(result, dict) else str(result or "")
