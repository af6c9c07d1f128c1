"""Anti-entropy with each peer: find out what is missing, and ask one peer for it.

Knows: frontiers, ranges, which range was asked of whom. Must not know: what operations mean.
Source: `docs/protocol.md`, sync. Gossip is a hint; delivery comes from here.

Nothing a peer says is believed for long: what it claims to have is forgotten when its answers bring nothing new, and it
is then left alone for a while, so that a liar cannot keep the place of a peer that would help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Missing, OperationLog
from converge_p2p.core.replica.wire import (
    Digest,
    FrontierPage,
    GenesisWanted,
    LooseWanted,
    Operations,
    SyncMessage,
    Want,
    batches,
)
from converge_p2p.core.types import PeerId, PublicKey

ANSWER_BATCHES_MAX = 4
"""Batches sent for one Want; the asker asks again for the rest, so that it sets the pace."""

PAGES_MAX = 16
"""Frontier pages sent at a time; the next time goes on where this one ended."""

REQUEST_PATIENCE_MS = 3000
"""After this a range may be asked of another peer."""

RECONCILE_PAUSE_MS = 300
"""At most one frontier is sent to a peer in this time, however many digests differ."""

AVOID_MS = 300
AVOID_DOUBLINGS_MAX = 5
"""How long a peer is not asked after answers that brought nothing: doubling, up to about ten seconds."""


@dataclass(slots=True)
class PeerState:
    """What is going on with one peer.

    Attributes:
        targets: how long each author's chain is over there, as far as it said so and we lack some of it.
        apart: authors whose chain is as long over there and ends differently.
        loose: frozen authors whose loose operations differ over there.
        asked: authors of the request under way, and how much of each was held when it was sent.
        asked_until_ms: when it no longer counts as under way.
        avoided_until_ms: until when it is not asked.
        barren: answers in a row that brought nothing.
        reconciled_ms: when our frontier was last sent.
        page_from: where the next frontier sent begins.
    """

    targets: dict[PublicKey, int] = field(default_factory=dict)
    apart: dict[PublicKey, None] = field(default_factory=dict)
    loose: dict[PublicKey, None] = field(default_factory=dict)
    asked: dict[PublicKey, int] = field(default_factory=dict)
    asked_until_ms: int = -(10**9)
    avoided_until_ms: int = -(10**9)
    barren: int = 0
    reconciled_ms: int = -(10**9)
    page_from: bytes = b""

    def wants_anything(self) -> bool:
        """Whether the peer said that it has something we lack."""
        return bool(self.targets or self.apart or self.loose)

    def forget(self, author: PublicKey) -> None:
        """Forget what the peer said of an author."""
        self.targets.pop(author, None)
        self.apart.pop(author, None)
        self.loose.pop(author, None)


class Sessions:
    """Anti-entropy with all peers of one pool."""

    def __init__(self, log: OperationLog, send: Callable[[PeerId, SyncMessage], None]) -> None:
        self._log = log
        self._send = send
        self.peers: dict[PeerId, PeerState] = {}
        self.caught_up = False
        """Whether a peer was once found to have nothing that is missing here."""
        self._asked: dict[PublicKey, tuple[PeerId, int]] = {}
        self._loose_requests = 0

    def peer_up(self, peer: PeerId) -> None:
        """Begin with a digest."""
        if peer not in self.peers:
            self.peers[peer] = PeerState()
        self._send(peer, Digest(self._log.digest()))

    def peer_down(self, peer: PeerId) -> None:
        """Forget a peer; what was asked of it may be asked of another."""
        state = self.peers.pop(peer, None)
        if state is not None:
            self._end_request(peer, state)

    def _state(self, peer: PeerId) -> PeerState:
        """The state of a peer; of one too many, a state that is not kept."""
        state = self.peers.get(peer)
        if state is None:
            state = PeerState()
            if len(self.peers) < limits.PEERS_MAX:
                self.peers[peer] = state
        return state

    # ------------------------------------------------------------ comparing

    def on_digest(self, peer: PeerId, message: Digest, now_ms: int) -> None:
        """Send the own frontier if the peer's differs."""
        if message.digest == self._log.digest():
            self.caught_up = True
            return
        state = self._state(peer)
        if now_ms - state.reconciled_ms < RECONCILE_PAUSE_MS:
            return
        state.reconciled_ms = now_ms
        last = None
        for page in self._pages(state.page_from, b"", answer=True):
            self._send(peer, page)
            last = page
        state.page_from = b"" if last is None else last.high

    def _pages(self, low: bytes, high: bytes, *, answer: bool) -> Iterator[FrontierPage]:
        """The own frontier in a range, in pages without a gap between them; the first of them if there are many."""
        entries = self._log.frontier(low, high)
        page = list(islice(entries, limits.FRONTIER_PAGE_AUTHORS_MAX))
        for _ in range(PAGES_MAX):
            following = list(islice(entries, limits.FRONTIER_PAGE_AUTHORS_MAX))
            yield FrontierPage(tuple(page), low, following[0].author if following else high, answer)
            if not following:
                return
            low, page = following[0].author, following

    def on_frontier(self, peer: PeerId, page: FrontierPage, now_ms: int) -> None:
        """Ask for what is missing here; tell the peer if it lacks something."""
        state = self._state(peer)
        they_lack, common = False, 0
        for entry in page.entries:
            if entry.author < page.low or (page.high and entry.author >= page.high):
                continue
            mine = self._log.entry(entry.author)
            common += mine is not None
            if mine != entry:
                they_lack |= mine is not None
                self._note(state, entry, mine)
        they_lack |= self._log.count(page.low, page.high) > common
        if not (page.low or page.high or state.wants_anything()):
            self.caught_up = True
        self._pursue(peer, now_ms)
        if page.answer and they_lack:
            for own in self._pages(page.low, page.high, answer=False):
                self._send(peer, own)

    @staticmethod
    def _note(state: PeerState, theirs: FrontierEntry, mine: FrontierEntry | None) -> None:
        author = theirs.author
        if theirs.loose is not None and (mine is None or mine.loose != theirs.loose):
            _add(state.loose, author, None)
        if theirs.length > (0 if mine is None else mine.length):
            _add(state.targets, author, theirs.length)
        elif mine is not None and theirs.length == mine.length and theirs.head != mine.head:
            _add(state.apart, author, None)

    # ------------------------------------------------------------ asking

    def _pursue(self, peer: PeerId, now_ms: int) -> None:
        """Ask a peer for as much of what it has and we lack as fits one request. One request at a time."""
        state = self.peers.get(peer)
        if state is None or now_ms < state.avoided_until_ms or (state.asked and now_ms < state.asked_until_ms):
            return
        self._end_request(peer, state)
        ranges: list[Missing] = []
        loose: list[LooseWanted] = []
        for author in (*state.targets, *state.apart, *state.loose):
            if len(ranges) + len(loose) >= limits.WANTS_PER_MESSAGE_MAX:
                break
            if author in state.asked or now_ms < self._asked.get(author, (peer, now_ms))[1]:
                continue
            wanted = self._missing(state, author)
            if wanted is not None:
                ranges.append(wanted)
            elif author in state.loose:
                loose.append(self._loose_wanted(author))
            else:
                state.forget(author)
                continue
            state.asked[author] = self._log.held(author)
        if not state.asked:
            return
        state.asked_until_ms = now_ms + REQUEST_PATIENCE_MS
        for author in state.asked:
            self._asked[author] = (peer, state.asked_until_ms)
        self._send(peer, Want(tuple(ranges), tuple(loose)))

    def _missing(self, state: PeerState, author: PublicKey) -> Missing | None:
        """The range of an author's chain to ask for, or None if its chain is not what is missing."""
        have, length = self._log.length(author), state.targets.get(author, 0)
        if self._log.frozen_at(author) is not None:
            return None
        if have < length:
            start = self._log.needed_from(author)
            return Missing(author, start, min(length, start + limits.OPERATIONS_PER_RANGE_MAX))
        if author in state.apart and have:
            return Missing(author, max(0, have - self._log.WINDOW), have)
        return None

    def _loose_wanted(self, author: PublicKey) -> LooseWanted:
        """A request for loose operations that begins anywhere in the ring of their ids.

        A set that does not fit one answer so comes in whole after some requests, without remembering how far we got.
        """
        self._loose_requests += 1
        return LooseWanted(author, tagged_hash("loose-start", self._loose_requests.to_bytes(8, "big")))

    def _end_request(self, peer: PeerId, state: PeerState) -> None:
        for author in state.asked:
            if self._asked.get(author, (None, 0))[0] == peer:
                del self._asked[author]
        state.asked = {}

    def on_gap(self, peer: PeerId | None, missing: Missing, now_ms: int) -> None:
        """An operation came before its predecessors: ask whoever sent it."""
        state = None if peer is None else self.peers.get(peer)
        if peer is not None and state is not None:
            _add(state.targets, missing.author, max(missing.stop, state.targets.get(missing.author, 0)))
            self._pursue(peer, now_ms)

    # ------------------------------------------------------------ answering

    def on_want(self, peer: PeerId, message: Want) -> None:
        """Send what was asked for, a bounded part of it."""
        parts = list(islice(batches(self._wanted(message), limits.BATCH_BYTES_MAX), ANSWER_BATCHES_MAX)) or [()]
        for index, batch in enumerate(parts):
            self._send(peer, Operations(batch, last=index == len(parts) - 1))

    def _wanted(self, message: Want) -> Iterator[bytes]:
        for item in message.ranges:
            yield from self._log.read(
                item.author, item.start, min(item.stop, item.start + limits.OPERATIONS_PER_RANGE_MAX)
            )
        for wanted in message.loose:
            yield from self._log.read_loose(wanted.author, wanted.start)

    def on_operations(self, peer: PeerId, message: Operations, now_ms: int) -> None:
        """After the operations of an answer were handled: ask for the rest, or see whether all is equal now."""
        state = self.peers.get(peer)
        if not message.last or state is None or not state.asked:
            return
        fruitless = [author for author, held in state.asked.items() if self._log.held(author) == held]
        if len(fruitless) < len(state.asked):
            state.barren = 0
        elif any(author in state.targets for author in fruitless):
            state.avoided_until_ms = now_ms + (AVOID_MS << state.barren)
            state.barren = min(state.barren + 1, AVOID_DOUBLINGS_MAX)
        for author in fruitless:
            state.forget(author)
        self._end_request(peer, state)
        self._pursue(peer, now_ms)
        for other in [other for other, its in self.peers.items() if other != peer and its.wants_anything()]:
            self._pursue(other, now_ms)
        if not state.wants_anything():
            self.caught_up = True
            self._send(peer, Digest(self._log.digest()))

    def digests(self, peers: list[PeerId]) -> None:
        """Send the own digest to some peers."""
        for peer in peers:
            self._send(peer, Digest(self._log.digest()))

    def want_genesis(self) -> None:
        """Ask everybody for the founding operation."""
        for peer in self.peers:
            self._send(peer, GenesisWanted())


_T = TypeVar("_T")


def _add(table: dict[PublicKey, _T], author: PublicKey, value: _T) -> None:
    """Note something a peer said of an author, as long as there is room for what this peer says."""
    if author in table or len(table) < limits.SYNC_AUTHORS_PER_PEER_MAX:
        table[author] = value
