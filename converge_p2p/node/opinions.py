"""Answers motions with a function of the application, as an elector.

Knows: which motions wait for this elector's word, and how foreign code is run so that it harms nobody. Must not know:
how words are counted.
Source: `docs/policy.md`, governance hooks.

What the function says is said once. What it raises says nothing, and is logged: a fault must not carry a change.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.motions import MotionView
from converge_p2p.node.policy import OpinionFunction
from converge_p2p.runtime.threads import BoundedThreads

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle

_logger = logging.getLogger(__name__)


class Opinions:
    """Motions of one pool that wait for this node's word."""

    def __init__(self, pool: PoolHandle, own: PublicKey, function: OpinionFunction) -> None:
        """Begin with nothing to say; `own` is this node's key."""
        self._pool = pool
        self._own = own
        self._function = function
        self._threads = BoundedThreads(limits.OPINIONS_AT_ONCE_MAX)

    async def run(self) -> None:
        """Answer every motion that is open or becomes known, for as long as the node runs."""
        try:
            await self._answer_all()
        except* ConvergeError as errors:
            # too many read already, or the pool was left: nothing that may end the node
            _logger.error("motions are not answered any more: %s", errors.exceptions[0])

    async def _answer_all(self) -> None:
        asked: set[OperationId] = set()
        async with self._pool.council.moved.open() as moved, trio.open_nursery() as nursery:
            limiter = trio.CapacityLimiter(limits.OPINIONS_AT_ONCE_MAX)
            if self._pool.ready:
                for view in self._pool.council.motions():
                    await self._take(view, asked, nursery, limiter)
            async for view in moved:
                await self._take(view, asked, nursery, limiter)

    async def _take(
        self, view: MotionView, asked: set[OperationId], nursery: trio.Nursery, limiter: trio.CapacityLimiter
    ) -> None:
        # of each author only so many count in an epoch, so that those of this one are few
        asked &= {known.motion.id for known in self._pool.council.motions()}
        if view.motion.id not in asked and self._waits(view) and len(asked) < limits.OPINIONS_WAITING_MAX:
            asked.add(view.motion.id)
            nursery.start_soon(self._answer, view, limiter)

    def _waits(self, view: MotionView) -> bool:
        if self._own not in self._pool.spec.electors or view.motion.epoch != self._pool.council.epoch:
            return False
        return view.decided is None and all(elector != self._own for _, elector, _ in view.ballots)

    async def _answer(self, view: MotionView, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                said = await self._threads.call(self._function, view)
            except Exception:
                _logger.exception("the opinion on motion %s failed; nothing is said", view.motion.id.hex()[:12])
                return
        if said is None:
            return
        if type(said) not in (bool, int):
            _logger.error("an opinion is %r; expected a bool, an index or None. Nothing is said", said)
            return
        try:
            await self._pool.council.say(view.motion.id, int(said))
        except ConvergeError as error:
            # decided, or made for an epoch that is over by now
            _logger.info("nothing is said to motion %s: %s", view.motion.id.hex()[:12], error)
