"""What hosted agents are shown of large inputs: their contents, once they are here.

Knows: which tasks' inputs are on their way or here, and how much of them is held. Must not know: how they come (see
`pool_blobs`), or what an agent does with them.
Source: `docs/blobs.md`.

`decide` cannot wait for a content. So a task that was won is shown when its contents are here, or cannot be had. What
is larger than an agent is shown stays a reference, which it may fetch itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from converge_p2p.core import limits
from converge_p2p.core.codec import may_refer
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.model.task import TaskView
from converge_p2p.core.types import PoolId, TaskId

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle
    from converge_p2p.node.main import Node

_logger = logging.getLogger(__name__)


class AgentContents:
    """The inputs of tasks that agents of one node have won."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._inputs: dict[tuple[PoolId, TaskId], bytes | None] = {}
        """Encoded inputs with their contents; None while they are on their way."""

    def shown(self, pool: PoolHandle, view: TaskView, wake: Callable[[], None]) -> TaskView | None:
        """Return a task as its agent is shown it, or None as long as its contents are on their way.

        Args:
            pool: its pool.
            view: a task that this node holds.
            wake: called when they are here, or cannot be had.
        """
        name = view.pool_id, view.id
        if name not in self._inputs:
            if not may_refer(view.spec.inputs) or len(self._inputs) >= limits.BLOB_SHOWN_TASKS_MAX:
                return view
            self._inputs[name] = None
            self._node.spawn(self._bring, pool, view, wake)
        inputs = self._inputs[name]
        return None if inputs is None else replace(view, spec=replace(view.spec, inputs=inputs))

    def forget(self, pool: PoolId, task: TaskId) -> None:
        """A task ended, or went to somebody else."""
        self._inputs.pop((pool, task), None)

    def forget_pool(self, pool: PoolId) -> None:
        """A pool was left."""
        for name in [name for name in self._inputs if name[0] == pool]:
            del self._inputs[name]

    async def _bring(self, pool: PoolHandle, view: TaskView, wake: Callable[[], None]) -> None:
        inputs = view.spec.inputs
        try:
            inputs = (await pool.blobs.bring(view, limits.BLOB_SHOWN_BYTES_MAX)).spec.inputs
        except ConvergeError as error:
            _logger.warning("task %s is shown without its contents: %s", view.id.hex()[:12], error)
        name = view.pool_id, view.id
        if name in self._inputs:
            self._inputs[name] = inputs
            wake()
