"""Fast-forward: take the state at a certified checkpoint from others, because what led there was pruned.

Knows: offers, chunks, and who sent them. Must not know: what a state means, or how the replica begins anew with it.
Source: `docs/protocol.md`, checkpoints and sync.

An offer is checked before anything is fetched if the epoch that it names is known here; otherwise the snapshot is
fetched first, for it holds the chain of epochs, and is believed only if that chain leads to the electors who certified
it. A chunk is checked against the manifest, which the root commits to, so that chunks can come from several peers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, RemoteViolation
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.replica.wire import Chunk, ChunkWanted, Offer, SyncMessage
from converge_p2p.core.types import PeerId, PublicKey
from converge_p2p.core.view.epochs import Epochs
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.snapshot import Manifest, Snapshot, chunk_hash
from converge_p2p.core.view.summary import Summary

CHUNK_PATIENCE_MS = 3000
"""A chunk that does not come in this time is asked of another peer."""

LATE_MAX = 3
"""Who lets so many chunks in a row go by is not asked any more."""

REFUSED_ROOTS_MAX = 64


class Taken(NamedTuple):
    """A snapshot that is certified.

    Attributes:
        snapshot: as it came.
        summary: the state it makes.
        certificate: the proposal and its attestations.
    """

    snapshot: Snapshot
    summary: Summary
    certificate: tuple[Operation, ...]


@dataclass(slots=True)
class _Offered:
    """What one peer offers.

    Attributes:
        checkpoint, attests: the certificate, as this peer gave it.
        verified: whether the certificate was checked already.
        chunk: which chunk is asked of it, None if none is.
        until_ms: when that is given up.
        late: how many were given up in a row.
    """

    checkpoint: Operation
    attests: tuple[Operation, ...]
    verified: bool = False
    chunk: int | None = None
    until_ms: int = 0
    late: int = 0

    def certified(self, epochs: Epochs) -> bool:
        """Whether those who attested may settle a task in the epoch."""
        epoch = epochs.find(self.checkpoint.epoch)
        if epoch is None:
            return False
        return epoch.counting.rules.accept.satisfied_by(epoch.electors & {attest.author for attest in self.attests})

    @property
    def body(self) -> CheckpointBody:
        """The proposal."""
        assert isinstance(self.checkpoint.body, CheckpointBody), "see Forward._read"
        return self.checkpoint.body


@dataclass(slots=True)
class _Candidate:
    """A snapshot on offer.

    Attributes:
        manifest: what its root commits to.
        offers: by whom.
        chunks: those that are here.
    """

    manifest: Manifest
    offers: dict[PeerId, _Offered] = field(default_factory=dict)
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[bool, bool, int, bytes]:
        """What is fetched first: a certified one, then what most peers offer."""
        verified = any(offered.verified for offered in self.offers.values())
        return not self.offers, not verified, -len(self.offers), self.manifest.root


class Forward:
    """Snapshots that are on offer to one replica."""

    def __init__(
        self,
        log: OperationLog,
        view: View,
        *,
        send: Callable[[PeerId, SyncMessage], None],
        wake: Callable[[int], None],
        refuse: Callable[[PeerId, str], None],
    ) -> None:
        """Begin without offers.

        Args:
            log: what is held.
            view: its fold.
            send: sends a message to a peer.
            wake: sees to it that `on_timer` is called after so many milliseconds.
            refuse: called with a peer and a reason, when it sent what no honest peer sends.
        """
        self._log = log
        self._view = view
        self._send = send
        self._wake = wake
        self._refuse = refuse
        self._candidates: dict[bytes, _Candidate] = {}
        self._refused: dict[bytes, None] = {}

    @property
    def under_way(self) -> bool:
        """Whether a snapshot is being fetched."""
        return bool(self._candidates)

    # ------------------------------------------------------------ offers

    def on_offer(self, peer: PeerId, offer: Offer, *, number: int, now_ms: int) -> None:
        """Take note of an offer, and begin to fetch it if it is of use.

        Args:
            peer: who offers it.
            offer: the checkpoint.
            number: of the checkpoint that is in force here, 0 if there is none; -1: one is wanted from others.
            now_ms: monotonic clock.
        """
        root = offer.manifest.root
        candidate = self._candidates.get(root)
        if root in self._refused or (candidate is not None and peer in candidate.offers):
            return
        try:
            offered = self._read(offer)
        except RemoteViolation as violation:
            self._refuse(peer, violation.reason)
            return
        if number >= 0 and (offered.body.number <= number or all(map(self._reaches, offered.body.delta))):
            return
        if candidate is None:
            if len(self._candidates) >= limits.SNAPSHOT_OFFERS_MAX:
                worst = max(self._candidates.values(), key=lambda item: item.rank)
                if worst.offers and not offered.verified:
                    return
                del self._candidates[worst.manifest.root]
            candidate = self._candidates[root] = _Candidate(offer.manifest)
        if len(candidate.offers) < limits.PEERS_MAX:
            candidate.offers[peer] = offered
        self._ask(now_ms)

    def _read(self, offer: Offer) -> _Offered:
        """Check what can be checked of an offer.

        Raises:
            RemoteViolation: an operation in it is none, or it is not what it says.
        """
        checkpoint = decode_operation(offer.checkpoint, self._log.pool)
        attests = tuple(decode_operation(signed, self._log.pool) for signed in offer.attests)
        body = checkpoint.body
        if not isinstance(body, CheckpointBody) or body.root != offer.manifest.root:
            raise RemoteViolation("bad_offer", "the operation does not propose this snapshot")
        if any(
            attest.body != AttestBody(checkpoint.id, body.root) or attest.epoch != checkpoint.epoch
            for attest in attests
        ):
            raise RemoteViolation("bad_offer", "an operation does not attest this checkpoint")
        offered = _Offered(checkpoint, attests)
        if self._view.epochs.find(checkpoint.epoch) is not None:
            if not offered.certified(self._view.epochs):
                raise RemoteViolation("bad_offer", "too few electors attest the checkpoint")
            offered.verified = True
        return offered

    def _reaches(self, cut: Cut) -> bool:
        chain = self._log.chains.get(cut.author)
        # what was pruned here beyond it is in a later checkpoint
        return chain is not None and (chain.base > cut.length or chain.head_at(cut.length) == cut.head)

    def peer_down(self, peer: PeerId, now_ms: int) -> None:
        """Ask others for what was asked of a peer."""
        for candidate in self._candidates.values():
            candidate.offers.pop(peer, None)
        self._ask(now_ms)

    # ------------------------------------------------------------ chunks

    def _ask(self, now_ms: int) -> None:
        """Ask for chunks of one snapshot, one of each peer that has it."""
        candidate = min(self._candidates.values(), key=lambda item: item.rank, default=None)
        if candidate is None or not candidate.offers:
            return
        asked = {offered.chunk for offered in candidate.offers.values() if offered.chunk is not None}
        every = range(len(candidate.manifest.hashes))
        missing = [index for index in every if index not in candidate.chunks and index not in asked]
        # whoever was late comes last
        for peer, offered in sorted(candidate.offers.items(), key=lambda item: item[1].late):
            if not missing or len(asked) >= limits.SNAPSHOT_CHUNKS_AHEAD_MAX:
                break
            if offered.chunk is None:
                offered.chunk, offered.until_ms = missing.pop(0), now_ms + CHUNK_PATIENCE_MS
                asked.add(offered.chunk)
                self._send(peer, ChunkWanted(candidate.manifest.root, offered.chunk))
        self._wake(CHUNK_PATIENCE_MS)

    def on_chunk(self, peer: PeerId, chunk: Chunk, *, bases: Mapping[PublicKey, int], now_ms: int) -> Taken | None:
        """Take a chunk.

        Args:
            peer: who sent it.
            chunk: what came.
            bases: what is pruned here of each author; a snapshot that covers less is of no use.
            now_ms: monotonic clock.

        Returns:
            The snapshot, once it is complete and certified.
        """
        candidate = self._candidates.get(chunk.root)
        offered = None if candidate is None else candidate.offers.get(peer)
        if candidate is None or offered is None or chunk.index >= len(candidate.manifest.hashes):
            return None
        if chunk_hash(chunk.data) != candidate.manifest.hashes[chunk.index]:
            del candidate.offers[peer]
            self._refuse(peer, "bad_chunk")
            self._ask(now_ms)
            return None
        offered.late = 0
        if offered.chunk == chunk.index:
            offered.chunk = None
        candidate.chunks[chunk.index] = chunk.data
        taken = None
        if len(candidate.chunks) == len(candidate.manifest.hashes):
            del self._candidates[chunk.root]
            taken = self._complete(candidate, bases)
        if taken is None:
            self._ask(now_ms)
        else:
            self._candidates.clear()
        return taken

    def _complete(self, candidate: _Candidate, bases: Mapping[PublicKey, int]) -> Taken | None:
        root = candidate.manifest.root
        data = b"".join(candidate.chunks[index] for index in range(len(candidate.chunks)))
        try:
            snapshot = Snapshot.read(data, self._log.pool)
            summary = Summary.restore(snapshot, self._view.epochs.protocol)
        except CodecError:
            self._refuse_all(candidate)
            return None
        if snapshot.root != root or not summary.sound or not summary.check_signatures():
            self._refuse_all(candidate)
            return None
        certified = [offered for offered in candidate.offers.values() if offered.certified(summary.view.epochs)]
        for peer, offered in candidate.offers.items():
            if offered not in certified:
                self._refuse(peer, "bad_offer")
        if not certified:
            # the snapshot may be right for all that, and is offered again with its certificate
            return None
        lengths = {row.author: row.length for row in snapshot.rows}
        if any(lengths.get(author, 0) < base for author, base in bases.items()):
            # neither contains the other; both are right, and a later one will contain both
            self._note_refused(root)
            return None
        return Taken(snapshot, summary, (certified[0].checkpoint, *certified[0].attests))

    def _refuse_all(self, candidate: _Candidate) -> None:
        """Whoever offers a snapshot has verified it."""
        for peer in candidate.offers:
            self._refuse(peer, "bad_snapshot")
        self._note_refused(candidate.manifest.root)

    def _note_refused(self, root: bytes) -> None:
        self._refused[root] = None
        if len(self._refused) > REFUSED_ROOTS_MAX:
            del self._refused[next(iter(self._refused))]

    # ------------------------------------------------------------ time

    def on_timer(self, now_ms: int) -> None:
        """Ask others for what did not come."""
        for candidate in self._candidates.values():
            for peer, offered in list(candidate.offers.items()):
                if offered.chunk is not None and now_ms >= offered.until_ms:
                    offered.chunk, offered.late = None, offered.late + 1
                    if offered.late > LATE_MAX:
                        # it may offer again
                        del candidate.offers[peer]
        self._ask(now_ms)
