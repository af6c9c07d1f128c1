"""What is unreliable inside one simulated machine: its clocks and its disk.

Knows: skew, drift, and which writes a crash forgets. Must not know: the network, or what an operation says.
Source: `docs/protocol.md`, storage: a durable write makes everything before it durable, as a log file does.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from math import ceil

from converge_p2p.core.oplog.operation import operation_id
from converge_p2p.core.types import OperationId

EPOCH_MS = 1_700_000_000_000
COPIES_MAX = 4


@dataclass(slots=True)
class Clock:
    """The clocks of one machine since it was started.

    Attributes:
        born_ms: virtual time of the start.
        base_ms: what the monotonic clock showed then; each start has another.
        rate: how fast the monotonic clock runs.
        skew_ms: how wrong the wall clock is.
    """

    born_ms: int
    base_ms: int
    rate: float
    skew_ms: int

    @classmethod
    def draw(cls, rng: random.Random, now_ms: int, *, drift: float, skew_ms: int) -> Clock:
        """Draw the clocks of a machine that starts now."""
        return cls(now_ms, rng.randint(0, 10**6), 1.0 + rng.uniform(-drift, drift), rng.randint(-skew_ms, skew_ms))

    def mono_ms(self, now_ms: int) -> int:
        """The monotonic clock."""
        return self.base_ms + int((now_ms - self.born_ms) * self.rate)

    def wall_ms(self, now_ms: int) -> int:
        """The wall clock."""
        return EPOCH_MS + now_ms + self.skew_ms

    def due_ms(self, at_ms: int) -> int:
        """The virtual time at which the monotonic clock reaches `at_ms`."""
        return self.born_ms + ceil(max(0, at_ms - self.base_ms) / self.rate)


@dataclass(slots=True)
class Disk:
    """The operation log of one machine: batches in the order in which they were written.

    Attributes:
        snapshot: what the operations build on.
        batches: each is one transaction, there as a whole or not at all.
        synced: how many of them survive a crash for certain.
        copies: what there was before it was compacted, the last few times.
    """

    batches: list[tuple[bytes, ...]] = field(default_factory=list)
    snapshot: bytes | None = None
    synced: int = 0
    free_ms: int = 0
    copies: list[tuple[list[tuple[bytes, ...]], bytes | None]] = field(default_factory=list)

    def write(self, operations: tuple[bytes, ...]) -> int:
        """Write a batch, and return its position for `sync`."""
        self.batches.append(operations)
        return len(self.batches)

    def compact(self, snapshot: bytes, drop: Collection[OperationId]) -> None:
        """Replace operations by a snapshot, in one transaction that takes everything before it to the disk."""
        self.copies = [*self.copies[1 - COPIES_MAX :], (self.batches, self.snapshot)]
        gone = frozenset(drop)
        self.batches = [tuple(signed for signed in batch if operation_id(signed) not in gone) for batch in self.batches]
        self.snapshot = snapshot
        self.synced = len(self.batches)

    def sync_at(self, now_ms: int, latency_ms: int) -> int:
        """When a sync asked for now is done; syncs are done in order."""
        self.free_ms = max(self.free_ms, now_ms + latency_ms)
        return self.free_ms

    def sync(self, position: int) -> None:
        """Everything up to a position survives from now on."""
        self.synced = max(self.synced, position)

    def crash(self, rng: random.Random) -> None:
        """Lose some of what was not synced: a suffix, from nothing to all of it."""
        del self.batches[rng.randint(self.synced, len(self.batches)) :]
        self.synced = len(self.batches)
        self.free_ms = 0

    def restore(self, rng: random.Random) -> None:
        """Put an older copy in place: batches that were synced are gone as well."""
        if self.copies and rng.random() < 0.5:
            batches, self.snapshot = rng.choice(self.copies)
            self.batches = list(batches)
        del self.batches[rng.randint(0, len(self.batches)) :]
        self.synced = len(self.batches)

    def operations(self) -> tuple[bytes, ...]:
        """Every operation, in the order written, each once."""
        return tuple(dict.fromkeys(signed for batch in self.batches for signed in batch))
