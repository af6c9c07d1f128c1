"""When a replica compares its frontier with others: soon after news, and then less and less often.

Knows: intervals, and which peers are asked. Must not know: what a comparison finds (see `session`).
Source: `docs/protocol.md`, timers. A digest can be lost too, so there is always a next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.types import PeerId

DIGEST_PEERS_MAX = 8
DIGEST_SOON_MS = 700
GENESIS_RETRY_MS = 1000


class Digests:
    """The timer of the digests of one replica."""

    def __init__(self, seed: int, interval_ms: int, set_timer: Callable[[int], None]) -> None:
        """Begin without a timer.

        Args:
            seed: spreads the timers of different nodes.
            interval_ms: how often a digest is sent when nothing happens.
            set_timer: called with a delay in milliseconds.
        """
        self._seed = seed
        self._interval_ms = interval_ms
        self._set_timer = set_timer
        self._draws = 0
        self._at_ms: int | None = None
        self._pause_ms = DIGEST_SOON_MS

    def keep_going(self, now_ms: int, *, ready: bool) -> None:
        """Set the timer if none runs; as long as the founding is not known it asks for that."""
        if self._at_ms is None:
            self._set(now_ms, self._pause_ms if ready else GENESIS_RETRY_MS)

    def soon(self, now_ms: int) -> None:
        """Something new is here."""
        self._pause_ms = DIGEST_SOON_MS
        if self._at_ms is None or self._at_ms > now_ms + 2 * DIGEST_SOON_MS:
            self._set(now_ms, DIGEST_SOON_MS)

    def fired(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """The timer is due. Returns which of the peers to send the digest."""
        self._at_ms = None
        self._pause_ms = min(2 * self._pause_ms, self._interval_ms)
        if len(peers) <= DIGEST_PEERS_MAX:
            return list(peers)
        start = self._jitter(len(peers))
        return [peers[(start + index) % len(peers)] for index in range(DIGEST_PEERS_MAX)]

    def _set(self, now_ms: int, interval_ms: int) -> None:
        delay_ms = interval_ms + self._jitter(interval_ms // 4)
        self._at_ms = now_ms + delay_ms
        self._set_timer(delay_ms)

    def _jitter(self, bound_ms: int) -> int:
        self._draws += 1
        digest = tagged_hash("jitter", self._seed.to_bytes(16, "big"), self._draws.to_bytes(8, "big"))
        return int.from_bytes(digest[:8], "big") % max(1, bound_ms)
