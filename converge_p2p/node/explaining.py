"""The explanation of a task, made in a thread where a whole log has to be read: the node goes on meanwhile.

Knows: how to give a thread what is held, as values. Must not know: what the record of a task says (see
`core.view.explaining`).
Source: `docs/receipts.md`.
"""

from __future__ import annotations

import trio

from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.about_task import search, wanted
from converge_p2p.core.view.audit import held_chains
from converge_p2p.core.view.explaining import explain
from converge_p2p.core.view.explanation import Explanation, Renewed

_READINGS_MAX = 3
"""If the log grows while it is read, it is read again, so often; what is lacking then is said in the explanation."""


class Explanations:
    """Explains the tasks of one pool, one at a time."""

    def __init__(self, replica: Replica) -> None:
        """Nothing is read yet."""
        self._replica = replica
        self._turn = trio.Lock()

    async def of(self, task: TaskId) -> Explanation | None:
        """Return what became of a task, or None if nothing is known of it.

        Cancellation: it is given up; its thread ends by itself.
        """
        replica = self._replica
        view, log = replica.view, replica.log
        async with self._turn:
            for _ in range(_READINGS_MAX):
                digest, wants = log.digest(), wanted(view, log, task)
                found = await trio.to_thread.run_sync(search, held_chains(log), wants, abandon_on_cancel=True)
                if digest == log.digest():
                    break
        shown, said = view.task(task, expired=replica.expired(task)), replica.progress(task)
        return explain(
            view,
            log,
            wants,
            found,
            shown=None if shown is None else replica.contents.open_view(shown),
            renewed=None if said is None else Renewed(said.author, said.token, said.counter, said.fraction, said.note),
            opened=replica.contents.open_body,
            readable=replica.contents.open_motion,
        )
