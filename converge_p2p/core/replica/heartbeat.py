"""When the digest of the frontier is sent, and to whom.

Knows: one timer, and a source of spread that depends on nothing but a seed. Must not know: what a digest says.
Source: `docs/protocol.md`, sync. After something new it is sent soon, and then less and less often: one can be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.replica.events import TimerKey, TimerKind
from converge_p2p.core.types import PeerId

DIGEST_PEERS_MAX = 8
DIGEST_SOON_MS = 700
GENESIS_RETRY_MS = 1000


class Heartbeat:
    """The timer of digests."""

    def __init__(
        self, seed: int, interval_ms: int, set_timer: Callable[[TimerKey, int], None], now_ms: Callable[[], int]
    ) -> None:
        """Begin without a timer.

        Args:
            seed: spreads the timers of different nodes.
            interval_ms: how often a digest is sent when nothing happens.
            set_timer: called with a key and a delay in milliseconds.
            now_ms: returns the local monotonic clock.
        """
        self._seed = seed
        self._interval_ms = interval_ms
        self._set_timer = set_timer
        self._now_ms = now_ms
        self._draws = 0
        self._at: int | None = None
        self._pause_ms = DIGEST_SOON_MS

    def soon(self) -> None:
        """Something new came."""
        self._pause_ms = DIGEST_SOON_MS
        if self._at is None or self._at > self._now_ms() + 2 * DIGEST_SOON_MS:
            self._set(DIGEST_SOON_MS)

    def end_turn(self, *, ready: bool) -> None:
        """See that the timer runs."""
        if self._at is None:
            self._set(self._pause_ms if ready else GENESIS_RETRY_MS)

    def fired(self) -> None:
        """The timer is due."""
        self._at = None
        self._pause_ms = min(2 * self._pause_ms, self._interval_ms)

    def some_of(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """Return a few of many peers, others each time."""
        if len(peers) <= DIGEST_PEERS_MAX:
            return list(peers)
        start = self._jitter(len(peers))
        return [peers[(start + index) % len(peers)] for index in range(DIGEST_PEERS_MAX)]

    def _set(self, interval_ms: int) -> None:
        delay_ms = interval_ms + self._jitter(interval_ms // 4)
        self._at = self._now_ms() + delay_ms
        self._set_timer(TimerKey(TimerKind.DIGEST), delay_ms)

    def _jitter(self, bound_ms: int) -> int:
        self._draws += 1
        digest = tagged_hash("jitter", self._seed.to_bytes(16, "big"), self._draws.to_bytes(8, "big"))
        return int.from_bytes(digest[:8], "big") % max(1, bound_ms)
