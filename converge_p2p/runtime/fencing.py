"""Fencing tokens: what an effect outside carries, so that it happens once however often a task is worked on.

Knows: the token, and whom to ask for one. Must not know: how claims are decided, or what the effect is.
Source: `docs/concepts.md`, the round is the fencing token; M. Kleppmann, "How to do distributed locking" (2016).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from converge_p2p.core.types import PoolId, TaskId

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, order=True)
class Fence:
    """The right to have an effect for a task, until somebody holds a greater one.

    Whoever stores the effect keeps the greatest token it has seen of a task, and refuses a smaller one.

    Attributes:
        task_id: the task.
        epoch, round: grow with each certified claim of the task, compared in this order.
    """

    task_id: TaskId
    epoch: int
    round: int

    @property
    def token(self) -> tuple[int, int]:
        """What grows."""
        return (self.epoch, self.round)

    def __str__(self) -> str:
        return f"{self.task_id.hex()}:{self.epoch}:{self.round}"


class FencePort(Protocol):
    """Gives fences for claims of this agent."""

    async def run_fenced(self, pool_id: PoolId, task_id: TaskId, work: Callable[[Fence], Awaitable[_T]]) -> _T:
        """Wait until the claim of a task is certified, then do some work with its fence, and return what it gave.

        The work is cancelled when the claim is lost.

        Raises:
            NotFound: the pool or the task is not known here.
            ClaimLost: this agent does not stand for the task, or does not hold it any more.
            Exception: what the work raised.
        """
