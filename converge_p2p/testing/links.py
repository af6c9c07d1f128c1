"""The network between simulated nodes: which messages arrive, how often and when.

Knows: loss, duplication, delay, reordering, partitions of either direction. Must not know: what a message says.
Source: `docs/simulator.md`. Delays are drawn for each message, so any two can overtake one another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from converge_p2p.testing.scenario import Scenario

HEALED_DELAY_MS = (1, 20)


@dataclass(frozen=True, slots=True)
class Partition:
    """A cut between two sides.

    Attributes:
        side: nodes of one side.
        one_way: only messages from `side` to the others are lost.
    """

    side: frozenset[int]
    one_way: bool

    def cuts(self, sender: int, receiver: int) -> bool:
        """Whether messages from one node to the other are lost."""
        if self.one_way:
            return sender in self.side and receiver not in self.side
        return (sender in self.side) != (receiver in self.side)


class Links:
    """All links of one run."""

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        self._scenario = scenario
        self._rng = rng
        self._partitions: list[Partition] = []
        self._healed = False
        self.lost = 0

    def split(self, partition: Partition) -> None:
        """A partition begins."""
        self._partitions.append(partition)

    def join(self, partition: Partition) -> None:
        """A partition ends."""
        if partition in self._partitions:
            self._partitions.remove(partition)

    def heal(self) -> None:
        """End every fault of the network for good."""
        self._partitions.clear()
        self._healed = True

    def cut(self, sender: int, receiver: int) -> bool:
        """Whether nothing passes from one node to the other now."""
        return any(partition.cuts(sender, receiver) for partition in self._partitions)

    def delays(self, sender: int, receiver: int) -> tuple[int, ...]:
        """After how many milliseconds each copy of a message arrives; empty if it is lost."""
        rng, scenario = self._rng, self._scenario
        if self._healed:
            return (rng.randint(*HEALED_DELAY_MS),)
        if self.cut(sender, receiver) or rng.random() < scenario.loss:
            self.lost += 1
            return ()
        copies = 2 if rng.random() < scenario.duplicate else 1
        return tuple(self._delay() for _ in range(copies))

    def _delay(self) -> int:
        rng, scenario = self._rng, self._scenario
        delay = rng.randint(*scenario.delay_ms)
        if rng.random() < scenario.straggle:
            delay += rng.randint(0, scenario.straggle_ms)
        return delay
