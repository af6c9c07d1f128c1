"""A node's own trust, from what became of tasks: learnt while it runs, kept for the next start.

Knows: tasks as they change, and a key of the store. Must not know: the log's own trust, or who asks for a score.
Source: the concepts page, "trust is computed from history"; `docs/policy.md`.

A task counts once, when this node sees it end: of one that had ended before, nothing is learnt a second time.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Literal

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value, encode_value
from converge_p2p.core.errors import ConvergeError, StoreError
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.task import Outcome, TaskView
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.runtime.trust import TrustModel
from converge_p2p.store.api import Store

_logger = logging.getLogger(__name__)

HISTORY_KEY = "trust/own"
SAVE_INTERVAL_S = 60.0


class TrustHistory:
    """Moves the trust in whoever did a task."""

    def __init__(
        self, model: TrustModel, store: Store, own: PublicKey, learn: Literal["own", "all", "off"] = "own"
    ) -> None:
        """Watch nothing yet.

        Args:
            model: what is moved.
            store: where it is kept.
            own: whose tasks count if `learn` is `own`; nobody learns of himself.
            learn: see `policy.TrustPolicy`.
        """
        self._model = model
        self._store = store
        self._own = own
        self._learn = learn
        self._open: OrderedDict[TaskId, None] = OrderedDict()
        self._changed = False

    def observe(self, view: TaskView) -> None:
        """A task changed."""
        if self._learn == "off" or view.sealed or (self._learn == "own" and view.submitter != self._own):
            return
        if not view.state.terminal:
            self._open[view.id] = None
            if len(self._open) > limits.TRUST_WATCHED_TASKS_MAX:
                self._open.popitem(last=False)
            return
        watched = self._open.pop(view.id, self) is None
        value = view.value
        if not watched or value is None or value.worker == self._own or value.outcome is Outcome.CANCELLED:
            return
        self._changed = True
        self._model.record(fingerprint(value.worker), value.outcome is Outcome.COMPLETED, view.objective)

    async def restore(self) -> None:
        """Take up what was kept. What is damaged counts as nothing: it is an opinion.

        Raises:
            StoreError: the store cannot be read.
        """
        data = await trio.to_thread.run_sync(self._store.get, HISTORY_KEY)
        if data is None:
            return
        try:
            self._model.load(decode_value(data))
        except (ConvergeError, AttributeError) as error:
            _logger.warning("what this node thought of others is damaged, and forgotten: %s", error)

    async def save(self) -> None:
        """Write down what changed. A store that cannot write is only logged."""
        if not self._changed:
            return
        self._changed = False
        kept, size = {}, 0
        # the latest are the last of the model; what does not fit one value of the store is the oldest
        for agent, scores in reversed(self._model.to_dict().items()):
            size += 80 + sum(len(context.encode()) + 16 for context in scores)
            if size > limits.STORE_VALUE_BYTES_MAX:
                break
            kept[agent] = scores
        try:
            await trio.to_thread.run_sync(self._store.put, HISTORY_KEY, encode_value(kept))
        except StoreError as error:
            self._changed = True
            _logger.warning("what this node thinks of others was not kept: %s", error)

    async def run(self) -> None:
        """Save from time to time, until cancelled."""
        while True:
            await trio.sleep(SAVE_INTERVAL_S)
            await self.save()
