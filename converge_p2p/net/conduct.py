"""Who broke the protocol how often, and who is kept out for how long.

Knows: peers and times. Must not know: what was broken, or how a peer is disconnected.
Source: docs/threat-model.md. Only what no honest node of any version does counts, never a race or a full queue; so a
few violations within a while are enough. A new name costs nothing, so that this makes attacks slower, not impossible.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque

from converge_p2p.core import limits
from converge_p2p.core.types import PeerId


class Conduct:
    """Violations of the last while, and bans. Both tables are bounded.

    The oldest violation makes room, and the ban that ends first: names cost nothing, and whoever people keep out for
    long must not come back because enough new names misbehave.
    """

    def __init__(self) -> None:
        """Begin with a clean sheet for everybody."""
        self._violations: OrderedDict[PeerId, deque[float]] = OrderedDict()
        self._banned: OrderedDict[PeerId, float] = OrderedDict()

    def violation(self, peer: PeerId, now: float) -> bool:
        """Note a violation; return whether the peer has committed too many now. Then counting begins anew."""
        times = self._violations.setdefault(peer, deque())
        self._violations.move_to_end(peer)
        if len(self._violations) > limits.BANNED_PEERS_MAX:
            self._violations.popitem(last=False)
        times.append(now)
        while times[0] < now - limits.VIOLATION_WINDOW_S:
            times.popleft()
        if len(times) < limits.VIOLATIONS_MAX:
            return False
        del self._violations[peer]
        return True

    def ban(self, peer: PeerId, until: float = math.inf) -> None:
        """Keep a peer out, at least until a time; for ever by default."""
        self._banned[peer] = max(until, self._banned.get(peer, until))
        self._banned.move_to_end(peer)
        if len(self._banned) > limits.BANNED_PEERS_MAX:
            del self._banned[min(self._banned, key=self._banned.__getitem__)]

    def unban(self, peer: PeerId) -> None:
        """Take a peer back."""
        self._banned.pop(peer, None)

    def violations(self, peer: PeerId, now: float) -> int:
        """How often a peer broke the protocol within `limits.VIOLATION_WINDOW_S`."""
        return sum(time >= now - limits.VIOLATION_WINDOW_S for time in self._violations.get(peer, ()))

    def bans(self, now: float) -> dict[PeerId, float]:
        """Who is kept out, and until when; infinity is for ever."""
        return {peer: until for peer, until in self._banned.items() if until > now}

    def banned(self, peer: PeerId, now: float) -> bool:
        """Whether a peer is kept out."""
        until = self._banned.get(peer)
        if until is None:
            return False
        if until > now:
            return True
        del self._banned[peer]
        return False
