"""Metrics: what is counted and measured while a node runs, behind a port that an application can fill.

Knows: counts, and how values are spread. Must not know: what is counted (see `node.metric_catalogue`), or Prometheus.
Source: Prometheus' instruments (counter, histogram with fixed buckets). One set for each node, no global state.

What can be read when somebody asks (queues, tables, sizes) is not counted here: see `node.gauges`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from converge_p2p.core import limits

OTHER: Final = "other"
"""Stands for the label of whatever is one too many."""

SECONDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
"""Upper bounds of the buckets of times."""


class Metrics(Protocol):
    """Where a node counts and measures. Called in the event loop: neither method blocks, or raises."""

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """Count something; a label tells kinds of it apart, and there are few of them."""

    def observe(self, name: str, seconds: float) -> None:
        """Note a duration."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How durations are spread.

    Attributes:
        counts: by bucket of `SECONDS`, and at the end what is longer.
        total_s: their sum.
    """

    counts: tuple[int, ...]
    total_s: float

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


class MemoryMetrics:
    """Keeps counts and spreads in memory: what a node has if it is given nothing else."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._counts: dict[str, dict[str, float]] = {}
        self._spreads: dict[str, tuple[list[int], list[float]]] = {}

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """See `Metrics`. Labels beyond `limits.METRIC_LABELS_MAX` are counted as `other`."""
        by_label = self._counts.get(name)
        if by_label is None:
            by_label = self._counts[name] = {}
        if label not in by_label and len(by_label) >= limits.METRIC_LABELS_MAX:
            label = OTHER
        by_label[label] = by_label.get(label, 0) + amount

    def observe(self, name: str, seconds: float) -> None:
        """See `Metrics`."""
        spread = self._spreads.get(name)
        if spread is None:
            spread = self._spreads[name] = ([0] * (len(SECONDS) + 1), [0.0])
        spread[0][bisect_left(SECONDS, seconds)] += 1
        spread[1][0] += seconds

    def counts(self) -> Mapping[str, Mapping[str, float]]:
        """Return the counts, by name and label."""
        return {name: dict(by_label) for name, by_label in self._counts.items()}

    def spreads(self) -> Mapping[str, Spread]:
        """Return the durations, by name."""
        return {name: Spread(tuple(counts), total[0]) for name, (counts, total) in self._spreads.items()}


class NoMetrics:
    """Measures nothing."""

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """See `Metrics`."""

    def observe(self, name: str, seconds: float) -> None:
        """See `Metrics`."""
