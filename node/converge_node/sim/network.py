"""The virtual network: a clock, messages that take their time or are lost, partitions, and what each node sends.

Knows: who is linked with whom, and when. Must not know: what a message says.
Source: docs/capacity.md, what is modelled. Nothing here takes processor time of a simulated node.
"""

from __future__ import annotations

import heapq
import random
from array import array
from collections.abc import Callable
from typing import Any

from converge_node.sim.graph import Graph
from converge_node.sim.plan import Cut, Plan

SILENT_MS = 20_000
"""After so long both ends of a link that is cut take it for gone (`node.switchboard`: a silent peer)."""

REDIAL_MS_MAX = 30_000
"""The longest pause between two dials of one peer (`net.config`: `retry_max_s`)."""


class Calendar:
    """What happens when. Of two things due at one time the one that was planned first comes first."""

    def __init__(self) -> None:
        """Begin at time 0 with nothing planned."""
        self.now_ms = 0
        self.events = 0
        self._due: dict[int, list[tuple[Callable[..., None], tuple[Any, ...]]]] = {}
        self._times: list[int] = []

    def at(self, time_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action` at a time; what is over already happens next."""
        time_ms = max(time_ms, self.now_ms)
        due = self._due.get(time_ms)
        if due is None:
            due = self._due[time_ms] = []
            heapq.heappush(self._times, time_ms)
        due.append((action, arguments))

    def run_until(self, time_ms: int, tell: Callable[[], None]) -> None:
        """Do everything that is due until a time; call `tell` now and then."""
        while self._times and self._times[0] <= time_ms:
            self.now_ms = self._times[0]
            due = self._due[self.now_ms]
            for action, arguments in due:  # grows while it is read
                self.events += 1
                if not self.events % 4096:
                    tell()
                action(*arguments)
            del self._due[self.now_ms]
            heapq.heappop(self._times)
        self.now_ms = max(self.now_ms, time_ms)


class Traffic:
    """What each node sent and received since the last `reset`: messages, and bytes as a stream carries them."""

    def __init__(self, nodes: int) -> None:
        """Begin with nothing sent."""
        self._nodes = nodes
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.sent, self.sent_bytes, self.received, self.received_bytes = (
            array("q", bytes(8 * self._nodes)) for _ in range(4)
        )
        self.lost = 0


class VirtualNetwork:
    """Carries messages along the links of a graph.

    Attributes:
        up: of each node, the neighbours that it takes for connected.
    """

    def __init__(self, plan: Plan, graph: Graph, rng: random.Random) -> None:
        """Begin with all links down, at time 0."""
        self.calendar = Calendar()
        self.traffic = Traffic(plan.nodes)
        self.graph = graph
        self.up: list[set[int]] = [set() for _ in range(plan.nodes)]
        self._loss = plan.loss
        self._rng = rng
        self._sides: list[frozenset[int]] = []
        self._nodes = plan.nodes

    def send(self, sender: int, receiver: int, size: int, deliver: Callable[..., None], *arguments: Any) -> None:
        """Let a message of so many bytes travel; `deliver(*arguments)` is called when it is there, if ever."""
        traffic = self.traffic
        traffic.sent[sender] += 1
        traffic.sent_bytes[sender] += size
        if (self._sides and self._parted(sender, receiver)) or (self._loss and self._rng.random() < self._loss):
            traffic.lost += 1
            return
        calendar = self.calendar
        latency_ms = self.graph.latency[sender][receiver]
        calendar.at(calendar.now_ms + latency_ms, self._arrive, receiver, size, deliver, arguments)

    def _arrive(self, receiver: int, size: int, deliver: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.traffic.received[receiver] += 1
        self.traffic.received_bytes[receiver] += size
        deliver(*arguments)

    def _parted(self, one: int, other: int) -> bool:
        return any((one in side) != (other in side) for side in self._sides)

    def links(self) -> list[tuple[int, int]]:
        """All links, each once."""
        return [(node, other) for node, near in enumerate(self.graph.links) for other in near if node < other]

    def plan_cut(
        self, cut: Cut, start_ms: int, connect: Callable[[int, int], None], disconnect: Callable[[int, int], None]
    ) -> None:
        """Plan a partition. Its ends notice after `SILENT_MS`, and dial again with growing pauses."""
        count = min(self._nodes - 1, max(1, round(cut.share * self._nodes)))
        side = frozenset(self._rng.sample(range(self._nodes), count))
        self.calendar.at(start_ms, self._sides.append, side)
        end_ms = start_ms + cut.length_ms
        self.calendar.at(end_ms, self._sides.remove, side)
        if cut.length_ms <= SILENT_MS:
            return
        pause_ms = min(REDIAL_MS_MAX, cut.length_ms - SILENT_MS)
        for one, other in self.links():
            if (one in side) != (other in side):
                self.calendar.at(start_ms + SILENT_MS, disconnect, one, other)
                self.calendar.at(end_ms + self._rng.randint(1, pause_ms), connect, one, other)
