"""What a node itself thinks of other agents, for each kind of work.

Knows: scores from 0 to 1, and how outcomes move them. Must not know: the log's own trust (see `core.governance.trust`),
or any replica.
Source: the concepts page, trust: not binary, contextual, updated from outcomes, with thresholds.

This is an opinion, not a fact of the pool. It may keep a node from proposing something, from voting for it, from
vouching for a newcomer; it never changes how the node counts what others said, or nodes would count differently.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.types import AgentId

OVERALL = ""
"""The context that every outcome counts in, and that stands in for one of which nothing is known."""


class TrustModel:
    """Scores of agents, in contexts. Not thread-safe; one task owns it.

    Of at most `limits.TRUSTED_AGENTS_MAX` pairs of agent and context something is remembered; the one that was told of
    least lately makes room.
    """

    def __init__(
        self,
        *,
        default: float = 0.5,
        rate: float = 0.1,
        half_life_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with nothing known.

        Args:
            default: the score of somebody of whom nothing is known, 0 to 1.
            rate: how far an outcome moves a score towards 0 or 1; above 0, at most 1.
            half_life_s: after so many seconds without news a score is half as far from the default; None: it stays.
            clock: monotonic, in seconds.

        Raises:
            LocalError: a number is out of its range, or none.
        """
        if half_life_s is not None and not (isinstance(half_life_s, int | float) and 0 < half_life_s < math.inf):
            raise LocalError(f"half_life_s is {half_life_s!r:.40}; expected a finite number above 0, or None")
        self._half_life_s = half_life_s
        self._clock = clock
        self._default = _checked("the default", default)
        self._rate = _checked("the rate", rate)
        if self._rate == 0:
            raise LocalError("the rate is 0: no outcome would change anything")
        self._scores: OrderedDict[tuple[AgentId, str], tuple[float, float]] = OrderedDict()

    def score(self, agent: AgentId, context: str = OVERALL) -> float:
        """Return the trust in an agent, 0 to 1.

        Args:
            agent: whose.
            context: what for, an objective or the name of a topic, say; where nothing is known of it, overall.
        """
        known = self._scores.get((agent, context)) or self._scores.get((agent, OVERALL))
        return self._default if known is None else self._faded(*known)

    def _faded(self, score: float, at: float) -> float:
        if self._half_life_s is None:
            return score
        left = math.exp2(-min(1024.0, max(0.0, self._clock() - at) / self._half_life_s))
        return self._default + (score - self._default) * left

    def set(self, agent: AgentId, score: float, context: str = OVERALL) -> None:
        """Say what is thought of an agent.

        Raises:
            LocalError: the score is not from 0 to 1, or the context is too long.
        """
        self._put(agent, context, _checked("a score", score))

    def record(self, agent: AgentId, success: bool, context: str = OVERALL, *, weight: float = 1.0) -> float:
        """Move the trust in an agent after an outcome, in the context and overall.

        Args:
            agent: who did it.
            success: how it went.
            context: what it was.
            weight: how much it says, 0 to 1.

        Returns:
            The score in the context.

        Raises:
            LocalError: the weight is not from 0 to 1, or the context is too long.
        """
        step, target = self._rate * _checked("the weight", weight), 1.0 if success else 0.0
        for where in dict.fromkeys((context, OVERALL)):
            before = self.score(agent, where)
            self._put(agent, where, min(1.0, max(0.0, before + step * (target - before))))
        return self.score(agent, context)

    def meets(self, agent: AgentId, threshold: float, context: str = OVERALL) -> bool:
        """Whether the trust in an agent is at or above a threshold.

        Raises:
            LocalError: the threshold is not from 0 to 1.
        """
        return self.score(agent, context) >= _checked("the threshold", threshold)

    def trusted(self, agents: Iterable[AgentId], threshold: float, context: str = OVERALL) -> list[AgentId]:
        """Return those of some agents that meet a threshold, in their order.

        Raises:
            LocalError: the threshold is not from 0 to 1.
        """
        return [agent for agent in agents if self.meets(agent, threshold, context)]

    def forget(self, agent: AgentId) -> None:
        """Forget an agent, in every context."""
        for key in [key for key in self._scores if key[0] == agent]:
            del self._scores[key]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return agent → context → score as it is now, to be kept."""
        out: dict[str, dict[str, float]] = {}
        for (agent, context), known in self._scores.items():
            out.setdefault(agent, {})[context] = self._faded(*known)
        return out

    def load(self, kept: Mapping[str, Any]) -> None:
        """Take up what `to_dict` returned. All of it, or nothing if any of it is wrong.

        Raises:
            LocalError: another shape, or a score that is not from 0 to 1.
        """
        read: list[tuple[AgentId, str, float]] = []
        for agent, contexts in kept.items():
            if not isinstance(agent, str) or not isinstance(contexts, Mapping):
                raise LocalError("trust is kept as agent, context and score")
            for context, score in contexts.items():
                if not isinstance(context, str):
                    raise LocalError("a context is text")
                read.append((AgentId(agent), _context(context), _checked("a score", score)))
        for one, context, score in read:
            self._put(one, context, score)

    def _put(self, agent: AgentId, context: str, score: float) -> None:
        key = (agent, _context(context))
        self._scores[key] = (score, self._clock())
        self._scores.move_to_end(key)
        if len(self._scores) > limits.TRUSTED_AGENTS_MAX:
            self._scores.popitem(last=False)


def _context(context: str) -> str:
    if len(context.encode()) > limits.TEXT_BYTES_MAX:
        raise LocalError(f"a context has at most {limits.TEXT_BYTES_MAX} bytes")
    return context


def _checked(what: str, number: object) -> float:
    # asked this way round a NaN is refused as well: every comparison with one is false
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise LocalError(f"{what} is {number!r:.40}; expected a number from 0 to 1")
    return float(number)
