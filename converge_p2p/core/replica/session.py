"""Anti-entropy with each peer: find out what is missing, and ask one peer for it.

Knows: frontiers, ranges, which range was asked of whom. Must not know: what operations mean.
Source: `docs/protocol.md`, sync. Gossip is a hint; delivery comes from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Missing, OperationLog
from converge_p2p.core.replica.wire import (
    Digest,
    FrontierPage,
    GenesisWanted,
    Operations,
    SyncMessage,
    Want,
    batches,
)
from converge_p2p.core.types import PeerId, PublicKey

ANSWER_BATCHES_MAX = 4
"""Batches sent for one Want; the asker asks again for the rest, so that it sets the pace."""

REQUEST_PATIENCE_MS = 3000
"""After this a range may be asked of another peer."""

RECONCILE_PAUSE_MS = 300
"""At most one frontier is sent to a peer in this time, however many digests differ."""


@dataclass(slots=True)
class PeerState:
    """What is going on with one peer.

    Attributes:
        targets: how long each author's chain is over there, as far as it said so and we lack some of it.
        reconciled_ms: when our frontier was last sent.
    """

    targets: dict[PublicKey, int] = field(default_factory=dict)
    reconciled_ms: int = -(10**9)


class Sessions:
    """Anti-entropy with all peers of one pool."""

    def __init__(self, log: OperationLog, send: Callable[[PeerId, SyncMessage], None]) -> None:
        self._log = log
        self._send = send
        self.peers: dict[PeerId, PeerState] = {}
        self.caught_up = False
        """Whether a peer was once found to have nothing that is missing here."""
        self._asked: dict[PublicKey, tuple[PeerId, int]] = {}

    def peer_up(self, peer: PeerId) -> None:
        """Begin with a digest."""
        if peer not in self.peers:
            self.peers[peer] = PeerState()
        self._send(peer, Digest(self._log.digest()))

    def peer_down(self, peer: PeerId) -> None:
        """Forget a peer; what was asked of it may be asked of another."""
        self.peers.pop(peer, None)
        for author in [author for author, (who, _) in self._asked.items() if who == peer]:
            del self._asked[author]

    def on_digest(self, peer: PeerId, message: Digest, now_ms: int) -> None:
        """Send the own frontier if the peer's differs."""
        if message.digest != self._log.digest():
            self._reconcile(peer, now_ms)
        else:
            self.caught_up = True

    def _reconcile(self, peer: PeerId, now_ms: int) -> None:
        state = self.peers.setdefault(peer, PeerState())
        if now_ms - state.reconciled_ms < RECONCILE_PAUSE_MS:
            return
        state.reconciled_ms = now_ms
        for page in self._pages():
            self._send(peer, page)

    def _pages(self) -> Iterator[FrontierPage]:
        entries, size = self._log.frontier(), limits.FRONTIER_PAGE_AUTHORS_MAX
        low = b""
        for start in range(0, max(1, len(entries)), size):
            following = entries[start + size].author if start + size < len(entries) else b""
            yield FrontierPage(tuple(entries[start : start + size]), low, following, True)
            low = following

    def on_frontier(self, peer: PeerId, page: FrontierPage, now_ms: int) -> None:
        """Ask for what is missing here; tell the peer if it lacks something."""
        state = self.peers.setdefault(peer, PeerState())
        theirs = {entry.author: entry for entry in page.entries}
        ours = {
            entry.author: entry
            for entry in self._log.frontier()
            if page.low <= entry.author and (not page.high or entry.author < page.high)
        }
        they_lack = False
        loose: list[PublicKey] = []
        for author, entry in theirs.items():
            mine = ours.get(author)
            if mine == entry:
                continue
            if entry.loose is not None and (mine is None or mine.loose != entry.loose):
                loose.append(author)
            they_lack |= mine is not None and self._lacks(entry, mine)
            if entry.length > (0 if mine is None else mine.length):
                state.targets[author] = entry.length
            elif mine is not None and entry.length == mine.length and entry.head != mine.head:
                self._ask(peer, [Missing(author, max(0, entry.length - self._log.WINDOW), entry.length)], now_ms)
        they_lack |= any(author not in theirs for author in ours)
        if loose:
            self._send(peer, Want((), tuple(loose[: limits.WANTS_PER_MESSAGE_MAX])))
        self._pursue(peer, now_ms)
        if page.answer and they_lack:
            for own in self._pages():
                if own.low == page.low and own.high == page.high:
                    self._send(peer, FrontierPage(own.entries, own.low, own.high, False))
                    return
            entries = tuple(ours[author] for author in sorted(ours))[: limits.FRONTIER_PAGE_AUTHORS_MAX]
            self._send(peer, FrontierPage(entries, page.low, page.high if len(entries) == len(ours) else b"", False))

    @staticmethod
    def _lacks(theirs: FrontierEntry, mine: FrontierEntry) -> bool:
        return theirs.length < mine.length or theirs.loose != mine.loose or theirs.head != mine.head

    def _pursue(self, peer: PeerId, now_ms: int) -> None:
        """Ask a peer for as much of what it has and we lack as fits one request."""
        state = self.peers.get(peer)
        if state is None:
            return
        ranges: list[Missing] = []
        for author, length in list(state.targets.items()):
            have = self._log.length(author)
            if have >= length or self._log.frozen_at(author) is not None:
                del state.targets[author]
            elif len(ranges) < limits.WANTS_PER_MESSAGE_MAX:
                ranges.append(Missing(author, have, min(length, have + limits.OPERATIONS_PER_RANGE_MAX)))
        self._ask(peer, ranges, now_ms)

    def _ask(self, peer: PeerId, ranges: list[Missing], now_ms: int) -> None:
        free = []
        for item in ranges:
            who, until = self._asked.get(item.author, (peer, 0))
            if who == peer or now_ms >= until:
                self._asked[item.author] = (peer, now_ms + REQUEST_PATIENCE_MS)
                free.append(item)
        if free:
            self._send(peer, Want(tuple(free)))

    def on_gap(self, peer: PeerId | None, missing: Missing, now_ms: int) -> None:
        """An operation came before its predecessors: ask whoever sent it."""
        _, until = self._asked.get(missing.author, (None, 0))
        if peer is not None and peer in self.peers and now_ms >= until:
            self._ask(peer, [missing], now_ms)

    def on_want(self, peer: PeerId, message: Want) -> None:
        """Send what was asked for, a bounded part of it."""
        wanted = [signed for author in message.loose for signed in self._log.read_loose(author)]
        size = sum(map(len, wanted))
        for item in message.ranges:
            if size > ANSWER_BATCHES_MAX * limits.BATCH_BYTES_MAX:
                break
            part = self._log.read(item.author, item.start, min(item.stop, item.start + limits.OPERATIONS_PER_RANGE_MAX))
            wanted.extend(part)
            size += sum(map(len, part))
        parts = list(batches(wanted, limits.BATCH_BYTES_MAX))[:ANSWER_BATCHES_MAX]
        for index, batch in enumerate(parts):
            self._send(peer, Operations(batch, last=index == len(parts) - 1))

    def on_operations(self, peer: PeerId, message: Operations, now_ms: int) -> None:
        """After the operations of an answer were handled: ask for the rest, or see whether all is equal now."""
        if not message.last:
            return
        for author in [author for author, (who, _) in self._asked.items() if who == peer]:
            del self._asked[author]
        state = self.peers.get(peer)
        if state is None:
            return
        self._pursue(peer, now_ms)
        if not state.targets:
            self._send(peer, Digest(self._log.digest()))

    def on_genesis_wanted(self, peer: PeerId, creator: PublicKey) -> None:
        """Send the founding operation."""
        self._send(peer, Operations(tuple(self._log.read(creator, 0, 1)), last=False))

    def digests(self, peers: list[PeerId]) -> None:
        """Send the own digest to some peers."""
        for peer in peers:
            self._send(peer, Digest(self._log.digest()))

    def want_genesis(self) -> None:
        """Ask everybody for the founding operation."""
        for peer in self.peers:
            self._send(peer, GenesisWanted())
