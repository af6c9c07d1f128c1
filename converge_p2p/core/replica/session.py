"""Anti-entropy with each peer: find out what is missing, and fetch it from whoever has it.

Knows: when to compare with whom, whom to ask next, and whom to leave alone. Must not know: what operations mean; how
frontiers are compared (see `reconcile`); how chains are cut into pieces (see `fetch`).
Source: `docs/protocol.md`, sync. Gossip is a hint; delivery comes from here.

Nothing a peer says is believed for long: what it claims to have is forgotten when its answers bring nothing new, and it
is then left alone for a while, so that a liar cannot keep the place of a peer that would help. A request that stalls
costs as much, and no more: its pieces are asked of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Missing, OperationLog
from converge_p2p.core.replica.fetch import Fetch, Piece
from converge_p2p.core.replica.peer import PeerState
from converge_p2p.core.replica.reconcile import answer, opening
from converge_p2p.core.replica.wire import (
    Comparison,
    Digest,
    Entries,
    GenesisWanted,
    LooseWanted,
    Operations,
    SyncMessage,
    Want,
    batches,
)
from converge_p2p.core.types import PeerId, PublicKey

REQUEST_PATIENCE_MS = 3000
"""A request that brings nothing for so long is given up, and its pieces may be asked of another peer."""

STRANGER_PATIENCE_MS = 1000
"""The same, of a peer that has brought nothing yet."""

HURRY_MS = 1000
HURRY_STRANGER_MS = 300
"""The same, while another peer, which keeps its word, has nothing to do but what was asked of the first."""

RECONCILE_PAUSE_MS = 300
"""At most one comparison is begun with a peer in this time, however many digests differ."""

AVOID_MS = 300
AVOID_DOUBLINGS_MAX = 5
"""How long a peer is not asked after answers that brought nothing: doubling, up to about ten seconds."""

LOOK_AGAIN_MS = 30_000
"""A peer that has just what waits here at the end of a chain is asked for it again after this time."""

VAIN_SCANS_MAX = 8
SCAN_PAUSE_MS = 20
"""So many peers are looked through in a row without finding anything to ask; the others after a pause."""


class Sessions:
    """Anti-entropy with all peers of one pool."""

    def __init__(
        self,
        log: OperationLog,
        send: Callable[[PeerId, SyncMessage], None],
        wake: Callable[[int], None],
        out_of_chain: Callable[[], Sequence[bytes]],
    ) -> None:
        """Begin without peers.

        Args:
            log: what is held here.
            send: sends a message to a peer.
            wake: sees to it that `on_timer` is called at a time, in local milliseconds.
            out_of_chain: gives the operations that opened epochs and stand in no chain, for a predecessor is lost.
        """
        self._log = log
        self._out_of_chain = out_of_chain
        self._offers = 0
        self._send = send
        self._wake = wake
        self._wake_ms: int | None = None
        self._fetch = Fetch(log)
        self._idle: dict[PeerId, None] = {}
        self._loose_requests = 0
        self.peers: dict[PeerId, PeerState] = {}
        self.caught_up = False
        """Whether a peer was once found to have nothing that is missing here."""

    def peer_up(self, peer: PeerId) -> None:
        """Begin with a digest."""
        if peer not in self.peers:
            self.peers[peer] = PeerState()
        self._send(peer, Digest(self._log.digest()))

    def peer_down(self, peer: PeerId, now_ms: int) -> None:
        """Forget a peer, and ask others for what was asked of it."""
        state = self.peers.pop(peer, None)
        if state is not None:
            self._end_request(state)
            self._pursue_all(now_ms)

    def behind(self) -> int:
        """Return how many operations are missing here: the most that any one peer is known to have beyond ours."""
        return max((self._ahead(state) for state in self.peers.values()), default=0)

    def _ahead(self, state: PeerState) -> int:
        return sum(max(0, length - self._log.length(author)) for author, length in state.targets.items())

    def _state(self, peer: PeerId) -> PeerState:
        """The state of a peer; of one too many, a state that is not kept."""
        state = self.peers.get(peer)
        if state is None:
            state = PeerState()
            if len(self.peers) < limits.PEERS_MAX:
                self.peers[peer] = state
        return state

    def restart(self) -> None:
        """The log begins anew from a checkpoint: forget what was asked for, and compare with everybody."""
        for peer, state in self.peers.items():
            self._end_request(state)
            self.peers[peer] = PeerState()
        self._idle.clear()
        self.digests(list(self.peers))

    # ------------------------------------------------------------ comparing

    def on_message(self, peer: PeerId, message: Digest | Comparison | Entries | Want, now_ms: int) -> None:
        """A peer compares frontiers, or asks for operations."""
        match message:
            case Digest():
                self.on_digest(peer, message, now_ms)
            case Comparison():
                self.on_comparison(peer, message, now_ms)
            case Entries():
                self.on_entries(peer, message, now_ms)
            case Want():
                self.on_want(peer, message)

    def on_digest(self, peer: PeerId, message: Digest, now_ms: int) -> None:
        """Begin a comparison if the peer's frontier differs."""
        mine = self._log.digest()
        if message.digest == mine:
            self.caught_up = True
            return
        state = self._state(peer)
        if now_ms - state.reconciled_ms < RECONCILE_PAUSE_MS:
            return
        state.reconciled_ms = now_ms
        if len(self._log.index) <= limits.FRONTIER_WHOLE_AUTHORS_MAX or mine < message.digest:
            self._send(peer, opening(self._log))
        else:
            # of two large frontiers one side begins, or everything would be compared twice
            self._send(peer, Digest(mine))

    def on_comparison(self, peer: PeerId, message: Comparison, now_ms: int) -> None:
        """Compare, answer what differs, and ask for what is missing here."""
        state = self._state(peer)
        result = answer(self._log, message)
        if result.comparisons:
            state.reconciled_ms = now_ms
        for entry, mine in result.theirs:
            self._note(state, entry, mine)
        if result.whole and not state.wants_anything():
            self.caught_up = True
        self._pursue(peer, now_ms)
        for reply in result.messages():
            self._send(peer, reply)
        if result.lacking:
            self._offer(peer)

    def _offer(self, peer: PeerId) -> None:
        """Send what nobody can ask for: a peer in an older epoch may lack just that. A part at a time, in turn."""
        offered = self._out_of_chain()
        start = self._offers % (len(offered) or 1)
        batch = next(batches((*offered[start:], *offered[:start]), limits.BATCH_BYTES_MAX), ())
        self._offers += len(batch)
        if batch:
            self._send(peer, Operations(batch, last=False))

    def on_entries(self, peer: PeerId, message: Entries, now_ms: int) -> None:
        """Ask for what is missing here."""
        state = self._state(peer)
        state.more |= message.more
        for entry in message.entries:
            mine = self._log.entry(entry.author)
            if mine != entry:
                self._note(state, entry, mine)
        self._pursue(peer, now_ms)

    def _note(self, state: PeerState, theirs: FrontierEntry, mine: FrontierEntry | None) -> None:
        # of somebody new to a pool that is full of authors nothing would be taken, and the peer would look like a liar
        if mine is not None or len(self._log.chains) < limits.AUTHORS_PER_POOL_MAX:
            state.note(theirs, mine)

    def on_gap(self, peer: PeerId | None, missing: Missing, now_ms: int) -> None:
        """An operation came before its predecessors: ask whoever sent it."""
        state = None if peer is None else self.peers.get(peer)
        if peer is None or state is None:
            return
        if missing.author in state.hints or len(state.hints) < limits.SYNC_HINTS_PER_PEER_MAX:
            state.hints[missing.author] = max(missing.stop, state.hints.get(missing.author, 0))
            self._pursue(peer, now_ms)

    # ------------------------------------------------------------ asking

    def _pursue(self, peer: PeerId, now_ms: int) -> bool:
        """Ask a peer for as much of what it has and we lack as fits one request. One request at a time.

        Returns:
            False if what it has was looked through in vain.
        """
        state = self.peers.get(peer)
        if state is not None and state.asked and now_ms >= state.asked_until_ms:
            self._give_up(state, now_ms)
        if state is None or state.asked or not state.wants_anything():
            return True
        if now_ms < state.avoided_until_ms:
            state.held_back = True
            self._wake_at(state.avoided_until_ms)
            return True
        pieces: list[Piece] = []
        room = limits.OPERATIONS_PER_RANGE_MAX
        # who kept no word yet since it last broke it gets one piece to show that it does
        pieces_max = 1 if state.barren else limits.WANTS_PER_MESSAGE_MAX
        known = chain(state.targets, state.apart, state.loose, state.hints)
        for author in dict.fromkeys(islice(known, limits.SYNC_SCAN_AUTHORS_MAX)):
            if len(pieces) >= pieces_max or room <= 0:
                break
            piece = self._next_piece(state, author, room, now_ms)
            if piece is not None:
                pieces.append(piece)
                self._fetch.begin(piece)
                room -= piece.stop - piece.start
            elif not self._still_missing(state, author):
                state.forget(author)
            else:
                state.put_last(author)
        if not pieces:
            return self._hurry(state, now_ms) and self._pursue(peer, now_ms)
        state.asked, state.came, state.came_ms = tuple(pieces), 0, now_ms
        state.asked_until_ms = now_ms + (REQUEST_PATIENCE_MS if state.proven else STRANGER_PATIENCE_MS)
        self._wake_at(state.asked_until_ms)
        ranges = tuple(piece.missing for piece in pieces if piece.stop)
        self._send(peer, Want(ranges, tuple(self._loose_wanted(piece.author) for piece in pieces if not piece.stop)))
        return True

    def _next_piece(self, state: PeerState, author: PublicKey, room: int, now_ms: int) -> Piece | None:
        """What to ask a peer for of an author now, or None."""
        have, goal = self._log.length(author), state.goal(author)
        if self._log.growing(author) and goal > have:
            size = min(room, self._size(state, author, goal - have))
            piece = self._fetch.next_piece(author, goal, size, looked_at=state.has_just(author, have, now_ms))
            if piece is not None and not piece.ahead and state.barren and self._better_is_there(state, author, now_ms):
                return None
            return piece
        if author in state.apart and have and goal <= have:
            # also of one that is frozen: its branches may part below where two operations were first seen to differ
            return self._fetch.search(author, max(0, have - self._log.WINDOW), have)
        return self._fetch.loose(author) if author in state.loose else None

    def _still_missing(self, state: PeerState, author: PublicKey) -> bool:
        """Whether the peer has something of the author that we lack, though it cannot be asked for now."""
        have = self._log.length(author)
        if author in state.loose or (author in state.apart and have):
            return True
        return self._log.growing(author) and state.goal(author) > have

    def _size(self, state: PeerState, author: PublicKey, missing: int) -> int:
        """How many operations of a chain to ask a peer for: fewer, the more peers share the work.

        The only one that has a long part of it is asked for all that fits an answer, if it kept its word before.
        """
        least = limits.OPERATIONS_PER_PIECE_MIN
        if not state.proven or missing <= least:
            return least
        others = sum(author in other.targets for other in self.peers.values() if other is not state)
        return max(least, limits.PARKED_PER_AUTHOR_MAX // (others + 1)) if others else limits.OPERATIONS_PER_RANGE_MAX

    def _hurry(self, state: PeerState, now_ms: int) -> bool:
        """Give up requests that keep a peer that keeps its word from going on with a chain. Whether one was."""
        if state.barren or not state.proven:
            return False
        gave_up = False
        for other in self.peers.values():
            late_ms = other.came_ms + (HURRY_MS if other.proven and not other.barren else HURRY_STRANGER_MS)
            if not other.asked:
                continue
            if now_ms < late_ms:
                state.held_back = True
                self._wake_at(late_ms)
            elif any(self._holds_up(piece, state) for piece in other.asked):
                self._give_up(other, now_ms)
                gave_up = True
        return gave_up

    def _holds_up(self, piece: Piece, state: PeerState) -> bool:
        """Whether a piece stands at the end of a chain that a peer has more of."""
        have = self._log.length(piece.author)
        return piece.start <= have < state.targets.get(piece.author, 0)

    def _better_is_there(self, state: PeerState, author: PublicKey, now_ms: int) -> bool:
        """Whether a peer that keeps its word has the author's chain too. All others then wait behind its piece only.

        Not one that was found to have just what waits here at the end of the chain: it brings nothing more.
        """
        have = self._log.length(author)
        return any(
            author in other.targets and other.proven and not other.barren and not other.has_just(author, have, now_ms)
            for other in self.peers.values()
            if other is not state
        )

    def _loose_wanted(self, author: PublicKey) -> LooseWanted:
        """A request for loose operations that begins anywhere in the ring of their ids.

        A set that does not fit one answer so comes in whole after some requests, without remembering how far we got.
        """
        self._loose_requests += 1
        return LooseWanted(author, tagged_hash("loose-start", self._loose_requests.to_bytes(8, "big")))

    def _pursue_all(self, now_ms: int) -> None:
        """Ask whoever is idle: something that was under way no longer is, or more can be parked."""
        self._idle.update(dict.fromkeys(self.peers))
        self._pursue_idle(now_ms)

    def _pursue_idle(self, now_ms: int) -> None:
        vain = 0
        while self._idle:
            if vain >= VAIN_SCANS_MAX:
                self._wake_at(now_ms + SCAN_PAUSE_MS)
                return
            peer = next(iter(self._idle))
            del self._idle[peer]
            vain += not self._pursue(peer, now_ms)

    def _end_request(self, state: PeerState) -> None:
        for piece in state.asked:
            self._fetch.end(piece)
        state.asked = ()

    def _give_up(self, state: PeerState, now_ms: int) -> None:
        self._avoid(state, now_ms)
        self._end_request(state)

    def _avoid(self, state: PeerState, now_ms: int) -> None:
        state.avoided_until_ms = now_ms + (AVOID_MS << state.barren)
        state.barren = min(state.barren + 1, AVOID_DOUBLINGS_MAX)

    # ------------------------------------------------------------ answers

    def on_want(self, peer: PeerId, message: Want) -> None:
        """Send what was asked for, a bounded part of it."""
        parts = list(islice(batches(self._wanted(message), limits.BATCH_BYTES_MAX), limits.ANSWER_BATCHES_MAX)) or [()]
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
        if state is None or not state.asked:
            return
        came = [self._fetch.progress(piece) for piece in state.asked]
        if not message.last:
            if sum(came) > state.came:
                state.came, state.came_ms = sum(came), now_ms
                state.asked_until_ms = now_ms + REQUEST_PATIENCE_MS
            return
        fruitful = [index for index, count in enumerate(came) if count]
        if fruitful:
            state.barren, state.proven = 0, True
        elif any(piece.author in state.targets and not self._blocked(piece) for piece in state.asked):
            self._avoid(state, now_ms)
        # an answer has the pieces in order, and may end before the last one
        for piece in state.asked[: fruitful[-1] if fruitful else None]:
            if self._fetch.progress(piece):
                continue
            if self._blocked(piece):
                state.look(piece.author, piece.start, now_ms + LOOK_AGAIN_MS)
            state.forget(piece.author)
        self._end_request(state)
        self._pursue(peer, now_ms)
        self._pursue_all(now_ms)
        if not state.wants_anything():
            self.caught_up |= not state.more
            state.more = False
            self._send(peer, Digest(self._log.digest()))

    def _blocked(self, piece: Piece) -> bool:
        """Whether a piece was asked for to see if a peer has what waits at the end of a chain here."""
        return piece.alone and piece.stop == piece.start + 1 == self._log.length(piece.author) + 1

    # ------------------------------------------------------------ time

    def on_timer(self, now_ms: int) -> None:
        """Give up requests that stall, and ask again whom we left alone for long enough."""
        self._wake_ms = None
        late = [state for state in self.peers.values() if state.asked and now_ms >= state.asked_until_ms]
        for state in late:
            self._give_up(state, now_ms)
        if late:
            self._idle.update(dict.fromkeys(self.peers))
        for peer, state in self.peers.items():
            if state.asked:
                self._wake_at(state.asked_until_ms)
            elif state.held_back:
                # it is asked now, or this is put off again
                state.held_back = False
                self._idle[peer] = None
        self._pursue_idle(now_ms)

    def _wake_at(self, at_ms: int) -> None:
        if self._wake_ms is None or at_ms < self._wake_ms:
            self._wake_ms = at_ms
            self._wake(at_ms)

    def digests(self, peers: list[PeerId]) -> None:
        """Send the own digest to some peers."""
        for peer in peers:
            self._send(peer, Digest(self._log.digest()))

    def want_genesis(self) -> None:
        """Ask everybody for the founding operation."""
        for peer in self.peers:
            self._send(peer, GenesisWanted())
