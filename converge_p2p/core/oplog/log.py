"""The operation log of one pool: a chain per author, what is parked, and what was forked.

Knows: order within a chain, missing predecessors, equivocation. Must not know: what an operation means, except that
votes are exempt from a freeze (the fold reads that from `Inserted.voided`).
Source: `docs/protocol.md`, validation and equivocation; Kleppmann, Making CRDTs Byzantine Fault Tolerant (2022).

A chain holds only the common prefix of an author. When two operations with one sequence number are seen, the author is
frozen from there: everything at or above it, on every branch, moves to a bounded set of *loose* operations, which is
replicated as a set. That set contains the fork proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.oplog.frontier import FrontierEntry, FrontierSum
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.types import OperationId, PoolId, PublicKey


@dataclass(slots=True)
class Chain:
    """The operations of one author, by sequence number."""

    ids: list[OperationId] = field(default_factory=list)
    signed: list[bytes] = field(default_factory=list)
    hlc: int = 0
    frozen_at: int | None = None
    loose: dict[OperationId, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def head(self) -> OperationId | None:
        """Id of the last operation of the common prefix."""
        return self.ids[-1] if self.ids else None


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
        missing: what to ask for, if the operation was parked.
        forked: the author, if a fork was proven or moved to a lower sequence number.
    """

    accepted: list[Operation] = field(default_factory=list)
    loose: list[Operation] = field(default_factory=list)
    voided: list[Operation] = field(default_factory=list)
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
        self.sum = FrontierSum()
        self._known: dict[OperationId, bytes] = {}
        self._parked: dict[PublicKey, dict[OperationId, Operation]] = {}
        self._parked_ids: set[OperationId] = set()
        self._parked_bytes = 0

    def __len__(self) -> int:
        """How many operations are held, parked ones not counted."""
        return len(self._known)

    def knows(self, operation: OperationId) -> bool:
        """Whether the operation is held or parked."""
        return operation in self._known or operation in self._parked_ids

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

    def frozen_at(self, author: PublicKey) -> int | None:
        """The sequence number from which the author is frozen, or None."""
        chain = self.chains.get(author)
        return None if chain is None else chain.frozen_at

    def insert(self, operation: Operation) -> Inserted:
        """Add a verified operation.

        Raises:
            RemoteViolation: it can never become part of its chain (clock runs backwards), or a quota is full:
                reason bad_chain, parked_full, authors_full or loose_full.
        """
        result = Inserted()
        if self.knows(operation.id):
            return result
        chain = self.chains.get(operation.author)
        if chain is None:
            if len(self.chains) >= limits.AUTHORS_PER_POOL_MAX:
                raise RemoteViolation("authors_full", "the pool has too many authors")
            chain = self.chains[operation.author] = Chain()
        before = self._entry_hash(operation.author)
        try:
            self._place(chain, operation, result)
            self._release_parked(chain, operation.author, result)
        finally:
            self.sum.replace(before, self._entry_hash(operation.author))
        return result

    def _place(self, chain: Chain, operation: Operation, result: Inserted) -> None:
        seq = operation.seq
        if chain.frozen_at is not None and seq >= chain.frozen_at:
            self._keep_loose(chain, operation, result)
        elif seq < len(chain):
            self._freeze(chain, operation, result)
        elif (
            seq > len(chain)
            or operation.prev != chain.head
            or any(dep not in self._known for dep in operation.deps)
            or operation.epoch != 0
        ):
            self._park(chain, operation, result)
        else:
            self._append(chain, operation, result)

    def _append(self, chain: Chain, operation: Operation, result: Inserted) -> None:
        if operation.hlc <= chain.hlc and chain.ids:
            raise RemoteViolation("bad_chain", "the operation's clock is not later than its predecessor's")
        chain.ids.append(operation.id)
        chain.signed.append(operation.signed)
        chain.hlc = operation.hlc
        self._known[operation.id] = operation.signed
        result.accepted.append(operation)

    def _park(self, chain: Chain, operation: Operation, result: Inserted) -> None:
        parked = self._parked.setdefault(operation.author, {})
        size = len(operation.signed)
        if len(parked) >= limits.PARKED_PER_AUTHOR_MAX or self._parked_bytes + size > limits.PARKED_BYTES_MAX:
            raise RemoteViolation("parked_full", "too many operations wait for a predecessor")
        parked[operation.id] = operation
        self._parked_ids.add(operation.id)
        self._parked_bytes += size
        start = len(chain)
        if operation.seq == start and operation.prev != chain.head:
            # the other branch leaves ours somewhere below: ask for a window of it
            start = max(0, operation.seq - self.WINDOW)
        if operation.seq > start:
            result.missing = Missing(operation.author, start, operation.seq)

    def _freeze(self, chain: Chain, operation: Operation, result: Inserted) -> None:
        """Two operations of one number: freeze the author there, on every branch."""
        seq = operation.seq
        for index in range(seq, len(chain.ids)):
            result.voided.append(decode_operation(chain.signed[index], self.pool, trusted=True))
            chain.loose[chain.ids[index]] = chain.signed[index]
        del chain.ids[seq:], chain.signed[seq:]
        chain.hlc = decode_operation(chain.signed[-1], self.pool, trusted=True).hlc if chain.signed else 0
        chain.frozen_at = seq
        result.forked = operation.author
        self._keep_loose(chain, operation, result, proof=True)

    def _keep_loose(self, chain: Chain, operation: Operation, result: Inserted, *, proof: bool = False) -> None:
        if not proof and len(chain.loose) >= limits.FORK_LOOSE_PER_AUTHOR_MAX:
            raise RemoteViolation("loose_full", "a forked author has too many operations")
        chain.loose[operation.id] = operation.signed
        self._known[operation.id] = operation.signed
        result.loose.append(operation)

    def _release_parked(self, chain: Chain, author: PublicKey, result: Inserted) -> None:
        while parked := self._parked.get(author):
            operation = next((item for item in parked.values() if self._is_due(chain, item)), None)
            if operation is None:
                return
            del parked[operation.id]
            self._parked_ids.discard(operation.id)
            self._parked_bytes -= len(operation.signed)
            if not parked:
                del self._parked[author]
            try:
                self._place(chain, operation, result)
            except RemoteViolation:
                continue

    def _is_due(self, chain: Chain, operation: Operation) -> bool:
        if chain.frozen_at is not None and operation.seq >= chain.frozen_at:
            return True
        if operation.seq < len(chain):
            return True
        fits = operation.seq == len(chain) and operation.prev == chain.head and operation.epoch == 0
        return fits and all(dep in self._known for dep in operation.deps)

    def unpark(self) -> Inserted:
        """Try every parked operation again, after operations of other authors arrived that were named in deps."""
        result = Inserted()
        for author in list(self._parked):
            chain = self.chains[author]
            before = self._entry_hash(author)
            self._release_parked(chain, author, result)
            self.sum.replace(before, self._entry_hash(author))
        return result

    def has_parked(self) -> bool:
        """Whether anything waits."""
        return bool(self._parked)

    # ------------------------------------------------------------ reading

    def entry(self, author: PublicKey) -> FrontierEntry | None:
        """The frontier entry of an author, or None if nothing of it is held."""
        chain = self.chains.get(author)
        if chain is None or (not chain.ids and chain.frozen_at is None):
            return None
        loose = tagged_hash("loose", *sorted(chain.loose)) if chain.frozen_at is not None else None
        return FrontierEntry(author, len(chain), chain.head, loose)

    def frontier(self) -> list[FrontierEntry]:
        """All entries, sorted by author."""
        entries = (self.entry(author) for author in sorted(self.chains))
        return [entry for entry in entries if entry is not None]

    def digest(self) -> bytes:
        """32 bytes that are equal exactly when two frontiers are."""
        return self.sum.digest()

    def read(self, author: PublicKey, start: int, stop: int) -> list[bytes]:
        """Signed operations of an author's chain, from `start` to `stop` exclusive."""
        chain = self.chains.get(author)
        return [] if chain is None else chain.signed[max(0, start) : max(0, stop)]

    def read_loose(self, author: PublicKey) -> list[bytes]:
        """The loose operations of a frozen author, sorted by id."""
        chain = self.chains.get(author)
        return [] if chain is None else [chain.loose[key] for key in sorted(chain.loose)]

    def _entry_hash(self, author: PublicKey) -> bytes | None:
        entry = self.entry(author)
        return None if entry is None else entry.hash
