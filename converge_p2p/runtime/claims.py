"""The claims of one agent: renewed while it works, given back when it may not keep them.

Knows: claims, rounds and times. Must not know: how claims are decided, or what the agent does with them.
Source: `docs/protocol.md`, renewals: whoever holds a task says so now and then, or loses it. The time to live of an
agent's claim (`RuntimeConfig.claim_ttl_s`) is this node's own rule, on top of the pool's.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError, LimitExceeded
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.runtime.ports import ClaimPort

_logger = logging.getLogger(__name__)


class Standing(Enum):
    """How far a claim is: asked for, held, held and reported, or lost (it may still be won in a later round)."""

    OUT = "out"
    HELD = "held"
    REPORTED = "reported"
    LOST = "lost"


@dataclass(slots=True)
class HeldClaim:
    """A claim of the agent.

    Attributes:
        token: (epoch, round) that was granted.
        until: when it is given back, on trio's clock, and `why`.
        renew_at: when the others are told next that it is at work.
    """

    pool: PoolId
    task: TaskId
    standing: Standing = Standing.OUT
    token: tuple[int, int] | None = None
    until: float = math.inf
    why: str = ""
    renew_at: float = math.inf
    interval_s: float = field(default=math.inf)


class Claims:
    """The claims of one agent."""

    def __init__(
        self,
        port: ClaimPort,
        *,
        claim_ttl_s: float | None,
        on_overdue: Callable[[HeldClaim], None] = lambda _claim: None,
    ) -> None:
        """Hold none.

        Args:
            port: the tasks.
            claim_ttl_s: the agent may hold a task so long, seconds; then its claim is given back. None: as long as the
                pool lets it.
            on_overdue: called with a claim that is given back for that.
        """
        self._port = port
        self._ttl_s = math.inf if claim_ttl_s is None else claim_ttl_s
        self._on_overdue = on_overdue
        self._claims: OrderedDict[TaskId, HeldClaim] = OrderedDict()
        self._changed = trio.Event()
        self._run_soon: Callable[[], None] | None = None
        self._running = False

    def __len__(self) -> int:
        """Return how many claims stand."""
        return len(self._claims)

    def start(self, run_soon: Callable[[], None]) -> None:
        """The agent runs from now on. `run_soon` starts `run` in the background, and is called when it is needed."""
        self._run_soon = run_soon

    def stop(self) -> None:
        """The agent stops: nothing is renewed any more."""
        self._run_soon = None

    def held(self) -> tuple[HeldClaim, ...]:
        """Return the claims that were granted."""
        return tuple(claim for claim in self._claims.values() if claim.standing in (Standing.HELD, Standing.REPORTED))

    def standing(self, task: TaskId) -> Standing | None:
        """Return how far the claim of a task is; None without one."""
        claim = self._claims.get(task)
        return None if claim is None else claim.standing

    # ------------------------------------------------------------ what happens to them

    def asked(self, pool: PoolId, task: TaskId) -> None:
        """The agent stands for a task.

        Raises:
            LimitExceeded: it stands for too many.
        """
        if task not in self._claims and len(self._claims) >= limits.AGENT_CLAIMS_MAX:
            raise LimitExceeded(
                "AGENT_CLAIMS_MAX", "the agent stands for too many tasks", hint="report or release some first"
            )
        claim = self._claims.setdefault(task, HeldClaim(pool, task))
        if claim.standing is Standing.LOST:
            claim.standing = Standing.OUT

    def undo(self, task: TaskId) -> Callable[[], None]:
        """Return what brings the claim of a task back to how far it is now."""
        before = self._claims.get(task)
        standing, until = (None, math.inf) if before is None else (before.standing, before.until)

        def restore() -> None:
            claim = self._claims.get(task)
            if standing is None:
                self._claims.pop(task, None)
            elif claim is before and claim is not None:
                claim.standing, claim.until = standing, until

        return restore

    def adopted(self, pool: PoolId, task: TaskId, token: tuple[int, int]) -> None:
        """The agent goes on with a claim of this node from before a restart, or of an agent that ended."""
        self.asked(pool, task)
        self.won(task, token)

    def give_up(self, pool: PoolId, task: TaskId, token: tuple[int, int]) -> None:
        """Give a claim of this node back that the agent does not go on with."""
        self.adopted(pool, task, token)
        claim = self._claims[task]
        claim.until, claim.why = trio.current_time(), "from before a restart"

    def won(self, task: TaskId, token: tuple[int, int]) -> bool:
        """A claim was granted; say whether it is this agent's."""
        claim = self._claims.get(task)
        if claim is None or (claim.token is not None and claim.token >= token):
            return False
        now = trio.current_time()
        if claim.standing is not Standing.REPORTED:
            claim.standing = Standing.HELD
        claim.token = token
        if claim.until == math.inf and claim.standing is Standing.HELD and self._ttl_s < math.inf:
            claim.until, claim.why = now + self._ttl_s, f"the agent held it for {self._ttl_s:g} s without a report"
        claim.interval_s = self._port.renewal_interval_s(claim.pool, task, token[1])
        # nobody knows how long ago it was granted, if it comes from before a restart
        claim.renew_at = now
        self._wake()
        return True

    def lost(self, task: TaskId, token: tuple[int, int], *, denied: bool = False) -> bool:
        """A round is another's, or nobody's any more; say whether that is news to the agent."""
        claim = self._claims.get(task)
        if claim is None or claim.standing is Standing.LOST or (claim.token is not None and claim.token > token):
            return False
        news = claim.standing is not Standing.REPORTED or denied or claim.token is not None
        if claim.standing is not Standing.REPORTED or denied:
            # a report that was made is repeated behind the port, if the claim is won again
            claim.standing = Standing.LOST
        claim.token = None
        claim.until = claim.renew_at = math.inf
        return news

    def reported(self, pool: PoolId, task: TaskId) -> None:
        """The agent reported how a task ended; the claim is renewed until that is settled."""
        claim = self._claims.setdefault(task, HeldClaim(pool, task))
        claim.standing = Standing.REPORTED
        claim.until = math.inf

    def gone(self, task: TaskId) -> bool:
        """A claim was released, or its task is settled; say whether there was one."""
        return self._claims.pop(task, None) is not None

    async def hand_back(self, reason: str) -> int:
        """Release every claim that was not reported; return how many there were."""
        count = 0
        for claim in list(self._claims.values()):
            if claim.standing is Standing.REPORTED:
                continue
            self.gone(claim.task)
            count += await self._release(claim, reason)
        return count

    # ------------------------------------------------------------ renewing

    async def run(self) -> None:
        """Renew what is held, and give back what is held too long, until there is nothing to do. See `start`."""
        try:
            while (due := self._due()) < math.inf:
                self._changed = trio.Event()
                with trio.move_on_at(due):
                    await self._changed.wait()
                now = trio.current_time()
                for claim in self.held():
                    if claim.until <= now:
                        self.gone(claim.task)
                        await self._release(claim, claim.why)
                        self._on_overdue(claim)
                    elif claim.renew_at <= now:
                        claim.renew_at = now + claim.interval_s
                        self._renew(claim)
        finally:
            self._running = False

    def _due(self) -> float:
        return min((min(claim.renew_at, claim.until) for claim in self.held()), default=math.inf)

    def _wake(self) -> None:
        self._changed.set()
        if self._run_soon is not None and not self._running:
            self._running = True
            self._run_soon()

    def _renew(self, claim: HeldClaim) -> None:
        try:
            self._port.renew(claim.pool, claim.task)
        except ConvergeError as error:
            # lost in the meantime, which is told by itself
            _logger.debug("task %s was not renewed: %s", claim.task.hex()[:12], error, extra={"task": claim.task.hex()})

    async def _release(self, claim: HeldClaim, reason: str) -> bool:
        try:
            await self._port.release(claim.pool, claim.task, False, reason)
        except ConvergeError as error:
            _logger.debug(
                "task %s was not handed back: %s", claim.task.hex()[:12], error, extra={"task": claim.task.hex()}
            )
            return False
        return True
