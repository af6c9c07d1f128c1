"""The operation log of one pool: a chain per author, what is parked, and what was forked.

Knows: order within a chain, missing predecessors, equivocation. Must not know: what an operation means, except that
votes are exempt from a freeze (the fold reads that from `Inserted.voided`).
Source: `docs/protocol.md`, validation and equivocation; Kleppmann, Making CRDTs Byzantine Fault Tolerant (2022).

A chain holds only the common prefix of an author. When two operations with one sequence number are seen, or one whose
clock runs backwards, the author is frozen from there: everything at or above it, on every branch, moves to a set of
*loose* operations, which is replicated as a set. That set contains the proof.

What a certified checkpoint covers may be pruned: of such an author only the length and the head of what was pruned are
known, and the few operations of it that the checkpoint retains.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.oplog.bodies import VOTES, ReportBody
from converge_p2p.core.oplog.chain import Chain, Row
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.frontier import FrontierEntry, FrontierIndex, FrontierSum
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.oplog.parking import Parking
from converge_p2p.core.types import OperationId, PoolId, PublicKey


@dataclass(frozen=True, slots=True)
class Missing:
    """A gap: operations `start` to `stop` (exclusive) of an author are needed."""

    author: PublicKey
    start: int
    stop: int


@dataclass(slots=True)
class Inserted:
    """What inserting one operation did.

    Attributes:
        accepted: operations that became part of a chain, in chain order (the given one, and parked ones it released).
        loose: operations of a frozen author that were kept: only their votes count.
        voided: operations that were part of a chain and no longer are, because their author forked.
        parked: the operation, if it has to wait.
        missing: what to ask for then.
        forked: the author, if a fork was proven or moved to a lower sequence number.
    """

    accepted: list[Operation] = field(default_factory=list)
    loose: list[Operation] = field(default_factory=list)
    voided: list[Operation] = field(default_factory=list)
    parked: Operation | None = None
    missing: Missing | None = None
    forked: PublicKey | None = None

    @property
    def kept(self) -> Iterator[Operation]:
        """Everything new that the store has to hold."""
        yield from self.accepted
        yield from self.loose


class OperationLog:
    """All chains of one pool. Not thread-safe; one replica owns it."""

    WINDOW = 256
    """How far below a conflicting head the other branch is asked for at a time."""

    def __init__(self, pool: PoolId) -> None:
        self.pool = pool
        self.chains: dict[PublicKey, Chain] = {}
        self.index = FrontierIndex()
        """The authors of whom something is held, in order, with sums over any range of them."""
        self._known: dict[OperationId, bytes] = {}
        self.parking = Parking()
        """What waits for a predecessor. Only the log adds and removes."""
        self._below: dict[OperationId, bytes] = {}
        self._retained: dict[PublicKey, list[Operation]] = {}
        """Those of them that had an effect, by author, in the order of its chain."""
        self._cuts: dict[PublicKey, int] = {}
        self.epoch = 0
        """The last epoch whose rules are known here; operations that name a later one wait."""

    def __len__(self) -> int:
        """How many operations are held, parked ones not counted."""
        return len(self._known)

    def knows(self, operation: OperationId) -> bool:
        """Whether the operation is held or parked."""
        return operation in self._known or operation in self.parking

    def holds(self, operation: OperationId) -> bool:
        """Whether the operation is part of a chain or loose."""
        return operation in self._known

    def get(self, operation: OperationId) -> bytes | None:
        """The signed bytes of an operation that is held, or None."""
        return self._known.get(operation)

    def length(self, author: PublicKey) -> int:
        """How many operations of the author's common prefix are held."""
        chain = self.chains.get(author)
        return 0 if chain is None else len(chain)

    def base(self, author: PublicKey) -> int:
        """How many operations at the beginning of the author's chain were pruned."""
        chain = self.chains.get(author)
        return 0 if chain is None else chain.base

    def held(self, author: PublicKey) -> int:
        """How much of an author is here in any form: to see whether an answer brought something."""
        chain = self.chains.get(author)
        return self.parking.count(author) + (0 if chain is None else len(chain) + len(chain.loose))

    def held_in(self, author: PublicKey, start: int, stop: int) -> int:
        """How many sequence numbers of a range are here, in the chain or parked."""
        length = max(start, min(self.length(author), stop))
        return length - start + sum(self.parking.waits(author, seq) for seq in range(length, stop))

    def needed_from(self, author: PublicKey) -> int:
        """The sequence number from which an author's operations are to be asked for.

        The next one; but if an operation of another branch waits there, the branches part somewhere below, and a window
        of the other one has to be seen to find out where.
        """
        chain = self.chains.get(author)
        if chain is None or not len(chain):
            return 0
        if any(operation.prev != chain.head for operation in self.parking.at(author, len(chain))):
            return max(chain.base, len(chain) - self.WINDOW)
        return len(chain)

    def growing(self, author: PublicKey) -> bool:
        """Whether the author's chain can still become longer here: it neither forked nor was cut off where it ends."""
        chain, cut = self.chains.get(author), self._cuts.get(author)
        end = cut if chain is None else chain.frozen_at
        return end is None or self.length(author) < end

    def forked(self, author: PublicKey) -> bool:
        """Whether a fork of the author is held. Beyond the cut of a removed author only one of votes counts."""
        chain = self.chains.get(author)
        return chain is not None and chain.forked

    def frozen_at(self, author: PublicKey) -> int | None:
        """The sequence number from which the author is frozen, or None."""
        chain = self.chains.get(author)
        return None if chain is None else chain.frozen_at

    def insert(self, operation: Operation) -> Inserted:
        """Add a verified operation.

        Raises:
            RemoteViolation: a quota is full: reason parked_full, authors_full or loose_full; or it stands where a
                checkpoint covers the chain: reason compacted.
        """
        result = Inserted()
        if self.knows(operation.id):
            return result
        author = operation.author
        chain = self._chain_of(author)
        if chain is None:
            raise RemoteViolation("authors_full", "the pool has too many authors")
        self._place(chain, operation, result)
        self._release_parked(chain, author, result)
        self._sum_up(chain, author, result)
        return result

    def _chain_of(self, author: PublicKey) -> Chain | None:
        """The chain of an author, a new one that is not kept yet, or None if there is no room for one."""
        chain = self.chains.get(author)
        if chain is None and len(self.chains) < limits.AUTHORS_PER_POOL_MAX:
            cut = self._cuts.get(author)
            return Chain(frozen_at=cut, cut=cut)
        return chain

    def _place(self, chain: Chain, operation: Operation, result: Inserted) -> None:
        seq = operation.seq
        if operation.epoch > self.epoch:
            # who votes in that epoch is not known yet: also what stands beside a chain has to wait for it
            self._park(operation, result)
        elif chain.frozen_at is not None and seq >= chain.frozen_at:
            self._keep_loose(chain, operation, result)
        elif seq < chain.base:
            # a quorum attested what stands there, and nobody holds it any more: no fork can be shown there
            raise RemoteViolation("compacted", "a checkpoint covers what the operation stands beside")
        elif seq < len(chain):
            self._freeze(chain, operation, result)
        elif not self._follows(chain, operation):
            self._park(operation, result)
        elif len(chain) and (operation.hlc <= chain.hlc or operation.epoch < chain.epoch):
            # refusing it would let the order of arrival decide whether it is a fork proof when another one comes
            self._freeze(chain, operation, result)
        else:
            self._append(chain, operation, result)

    def _follows(self, chain: Chain, operation: Operation) -> bool:
        return (
            operation.seq == len(chain)
            and operation.prev == chain.head
            and all(dep in self._known for dep in operation.deps)
        )

    def _append(self, chain: Chain, operation: Operation, result: Inserted) -> None:
        chain.ids.append(operation.id)
        chain.signed.append(operation.signed)
        chain.hlc, chain.epoch = operation.hlc, operation.epoch
        self._hold(operation)
        result.accepted.append(operation)

    def _hold(self, operation: Operation) -> None:
        self._known[operation.id] = operation.signed
        self.parking.arrived(operation.id)

    def _park(self, operation: Operation, result: Inserted) -> None:
        result.parked = operation
        lacking = [dep for dep in operation.deps if dep not in self._known]
        # what stands too far ahead would only take the room of what is needed before it: sync brings it in its turn
        if operation.seq - self.length(operation.author) < limits.PARKED_PER_AUTHOR_MAX:
            self.parking.add(operation, lacking)
        start = self.needed_from(operation.author)
        if operation.seq > start:
            result.missing = Missing(operation.author, start, operation.seq)

    def _freeze(self, chain: Chain, operation: Operation, result: Inserted) -> None:
        """Two operations of one number, or a clock or epoch that runs backwards: freeze the author there."""
        seq = operation.seq
        for voided in self._truncate(chain, seq):
            result.voided.append(voided)
            chain.add_loose(voided)
        chain.frozen_at = seq
        chain.forked = True
        result.forked = operation.author
        self._keep_loose(chain, operation, result, proof=True)

    def _keep_loose(self, chain: Chain, operation: Operation, result: Inserted, *, proof: bool = False) -> None:
        # votes are never refused: a certificate that somebody counted must not be un-made for somebody else
        beyond = chain.cut is not None and operation.seq >= chain.cut
        if isinstance(operation.body, VOTES):
            if beyond and operation.seq in chain.votes_beyond and not chain.forked:
                chain.forked, result.forked = True, operation.author
            if beyond:
                chain.votes_beyond.add(operation.seq)
        else:
            if beyond and not isinstance(operation.body, ReportBody):
                raise RemoteViolation("removed", "the author was removed from the pool")
            if chain.overflowing and not proof:
                raise RemoteViolation("loose_full", "a forked author has too many operations")
        chain.add_loose(operation)
        self._hold(operation)
        result.loose.append(operation)

    def _release_parked(self, chain: Chain, author: PublicKey, result: Inserted) -> None:
        while (operation := self._next_due(chain, author)) is not None:
            self.parking.remove(operation)
            try:
                self._place(chain, operation, result)
            except RemoteViolation:
                continue

    def _next_due(self, chain: Chain, author: PublicKey) -> Operation | None:
        if chain.frozen_at is not None and len(chain) >= chain.frozen_at:
            # whatever waits stands above the prefix, so it is loose now
            return self.parking.first(author, self.epoch)
        for operation in self.parking.at(author, len(chain) - 1):
            if operation.epoch <= self.epoch:
                return operation
        for operation in self.parking.at(author, len(chain)):
            if operation.epoch <= self.epoch and self._follows(chain, operation):
                return operation
        return None

    def know_epoch(self, number: int) -> None:
        """The rules of an epoch are known: operations that name it wait no longer."""
        self.epoch = number
        self.parking.wake_all()

    def cut(self, author: PublicKey, length: int) -> list[Operation]:
        """Remove an author's data operations from a sequence number on, for good.

        Its votes stay, as loose operations, and so do its reports: what was certified may rest on the content of one,
        as the epoch does that removed the author if it was its own proposal.

        Returns:
            What was part of its chain or loose, and is data: it has no effect any more.
        """
        self._cuts[author] = min(length, self._cuts.get(author, length))
        chain = self.chains.get(author)
        if chain is None:
            return []
        # what a checkpoint covers stays settled: with at most f lying electors no cut stands below one
        chain.cut = max(chain.base, self._cuts[author])
        # a fork beyond the cut is one only if votes are part of it: the rest is held by nobody from now on
        chain.forked = chain.forked and chain.frozen_at is not None and chain.frozen_at < chain.cut
        gone = self._truncate(chain, chain.cut)
        chain.frozen_at = chain.cut if chain.frozen_at is None else min(chain.cut, chain.frozen_at)
        gone.extend(self._take_loose(chain))
        voided = []
        for operation in gone:
            beyond, vote = operation.seq >= chain.cut, isinstance(operation.body, VOTES)
            if beyond and vote:
                chain.forked = chain.forked or operation.seq in chain.votes_beyond
                chain.votes_beyond.add(operation.seq)
            if beyond and not vote:
                voided.append(operation)
            if beyond and not vote and not isinstance(operation.body, ReportBody):
                del self._known[operation.id]
            else:
                chain.add_loose(operation)
        self._update(author)
        return voided

    def _truncate(self, chain: Chain, length: int) -> list[Operation]:
        """Shorten a chain, and return what stood beyond."""
        at = max(0, length - chain.base)
        gone = [self._decoded(signed) for signed in chain.signed[at:]]
        del chain.ids[at:], chain.signed[at:]
        last = self._decoded(chain.signed[-1]) if chain.signed else None
        chain.hlc, chain.epoch = chain.end if last is None else (last.hlc, last.epoch)
        return gone

    def _take_loose(self, chain: Chain) -> list[Operation]:
        operations = [self._decoded(signed) for signed in chain.loose.values()]
        chain.loose, chain.votes, chain.data, chain.data_count = {}, FrontierSum(), FrontierSum(), 0
        return operations

    def _decoded(self, signed: bytes) -> Operation:
        return decode_operation(signed, self.pool, trusted=True)

    def unpark(self) -> Inserted:
        """Try the parked operations of one author again, after others arrived that they name in deps.

        Only if `has_parked`. One author at a time, because the result tells of one fork.
        """
        result = Inserted()
        author = self.parking.take_woken()
        chain = self._chain_of(author)
        if chain is not None:
            self._release_parked(chain, author, result)
            # what waited for an epoch may stand where the chain went on without it: that is a fork
            passed = self.parking.first(author, self.epoch, below=len(chain))
            if passed is not None:
                self.parking.remove(passed)
                with suppress(RemoteViolation):
                    self._place(chain, passed, result)
                self._release_parked(chain, author, result)
            self._sum_up(chain, author, result)
        return result

    def has_parked(self) -> bool:
        """Whether `unpark` may release something."""
        return self.parking.woken

    # ------------------------------------------------------------ checkpoints

    def prune(
        self, rows: Collection[Row], retained: Mapping[OperationId, bytes], ends: Mapping[OperationId, bytes]
    ) -> list[OperationId]:
        """Let go of what a checkpoint covers, except what it retains.

        Args:
            rows: every author of the checkpoint, each of which `reaches` here.
            retained: operations below the rows that are kept, because they had an effect that matters.
            ends: the last operation below each row.

        Returns:
            The operations that are no longer part of a chain, those that are kept among them.
        """
        gone: list[OperationId] = []
        for row in rows:
            gone.extend(self.chains[row.author].prune(row))
        for name in (*gone, *self._below):
            self._known.pop(name, None)
        self._keep(retained, ends)
        return gone

    def reset(
        self, rows: Collection[Row], retained: Mapping[OperationId, bytes], ends: Mapping[OperationId, bytes]
    ) -> None:
        """Begin anew from a checkpoint. What is held above it, and every cut and epoch, has to be given again."""
        self.chains, self.index, self.parking = {}, FrontierIndex(), Parking()
        self._known, self._cuts, self.epoch = {}, {}, 0
        self._keep(retained, ends)
        for row in rows:
            self.chains[row.author] = Chain.above(row)
            self._update(row.author)

    def _keep(self, retained: Mapping[OperationId, bytes], ends: Mapping[OperationId, bytes]) -> None:
        self._below = {**ends, **retained}
        self._known.update(self._below)
        self._retained = {}
        for operation in map(self._decoded, retained.values()):
            self._retained.setdefault(operation.author, []).append(operation)
        for operations in self._retained.values():
            operations.sort(key=lambda operation: operation.seq)

    def keep_aside(self, operation: Operation) -> None:
        """Hold an operation that is part of no chain any more, because somebody counted on it."""
        self._below[operation.id] = self._known[operation.id] = operation.signed

    @property
    def below(self) -> Mapping[OperationId, bytes]:
        """What is held though a checkpoint covers where it stood."""
        return self._below

    def tail(self) -> int:
        """How many operations are held that no checkpoint covers."""
        return len(self._known) - len(self._below)

    # ------------------------------------------------------------ reading

    def entry(self, author: PublicKey) -> FrontierEntry | None:
        """The frontier entry of an author, or None if nothing of it is held."""
        chain = self.chains.get(author)
        if chain is None or not (len(chain) or chain.loose):
            return None
        return FrontierEntry(author, len(chain), chain.head, chain.loose_hash)

    def frontier(self, low: bytes = b"", high: bytes = b"") -> Iterator[FrontierEntry]:
        """Entries in the order of their authors, from `low` (inclusive) to `high` (exclusive; empty: to the end)."""
        for author in self.index.authors(*self.index.span(low, high)):
            entry = self.entry(author)
            assert entry is not None, "the index has whom the chains have"
            yield entry

    def digest(self) -> bytes:
        """32 bytes that are equal exactly when two frontiers are."""
        return self.index.digest()

    def read(self, author: PublicKey, start: int, stop: int) -> list[bytes]:
        """Signed operations of an author's chain, from `start` to `stop` exclusive; none of what was pruned."""
        chain = self.chains.get(author)
        return [] if chain is None else chain.signed[max(0, start - chain.base) : max(0, stop - chain.base)]

    def reaches(self, row: Row) -> bool:
        """Whether the author's chain is at least so long, with that head; False also where that was pruned long ago."""
        chain = self.chains.get(row.author)
        return chain is not None and chain.head_at(row.length) == row.head

    def prefix(self, author: PublicKey) -> Cut:
        """How much of an author's chain is held."""
        chain = self.chains.get(author)
        return Cut(author, 0, None) if chain is None else Cut(author, len(chain), chain.head)

    def retained_of(self, author: PublicKey) -> Sequence[Operation]:
        """What was retained of an author's chain below a checkpoint, in order."""
        return self._retained.get(author, ())

    def vouches(self, cut: Cut) -> bool:
        """Whether this log holds as much of an author as somebody says. See `Chain.reaches`."""
        chain = self.chains.get(cut.author)
        return cut.head is None if chain is None else chain.reaches(cut.length, cut.head)

    def decoded(self, author: PublicKey) -> list[Operation]:
        """The operations of an author's chain; of what was pruned, what was retained."""
        chain = self.chains.get(author)
        signed = () if chain is None else chain.signed
        return [*self.retained_of(author), *map(self._decoded, signed)]

    def last_of(self, author: PublicKey) -> bytes:
        """The signed operation that an author's chain ends with; of a frozen author a loose one, beyond its chain.

        Empty if nothing of it is held.
        """
        chain = self.chains.get(author)
        if chain is None:
            return b""
        return next(iter(chain.loose.values()), b"") or (b"" if chain.head is None else self._known[chain.head])

    def read_loose(self, author: PublicKey, start: bytes = b"") -> list[bytes]:
        """The loose operations of a frozen author in the order of their ids, as a ring from `start` on."""
        chain = self.chains.get(author)
        if chain is None:
            return []
        ids = sorted(chain.loose)
        at = bisect_left(ids, start)
        return [chain.loose[key] for key in (*ids[at:], *ids[:at])]

    def _sum_up(self, chain: Chain, author: PublicKey, result: Inserted) -> None:
        """Bring the frontier up to date with an author's chain. One of whom nothing is held leaves no trace."""
        if result.accepted or result.loose:
            self.chains[author] = chain
            self._update(author)

    def _update(self, author: PublicKey) -> None:
        entry = self.entry(author)
        if entry is None:
            # everything of it was cut off
            self.chains.pop(author, None)
            self.index.drop(author)
        else:
            self.index.put(author, entry.hash)
