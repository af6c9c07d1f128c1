"""Which key took the place of which.

Knows: rotations, commitments and recoveries that stand in the chains of members. Must not know: what else a key did;
when its standing changes, the fold folds its chain anew.
Source: `docs/protocol.md`, succession. Everything here is a set of operations, and who succeeds whom a function of it,
so that the order of arrival has no say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.succession import (
    RecoverBody,
    RecoveryBody,
    RotateBody,
    SucceedBody,
    SuccessionBody,
    commitment_of,
    is_signed,
)
from converge_p2p.core.types import OperationId, PoolId, PublicKey

FOREVER = limits.SEQ_MAX + 1


class Standing(NamedTuple):
    """What succession does to a key.

    Attributes:
        end: its operations from this number on have no effect, votes excepted.
        inherits: whose place it took, by rotation or recovery, sorted.
    """

    end: int = FOREVER
    inherits: tuple[PublicKey, ...] = ()


@dataclass(slots=True)
class _Line:
    """What is known of the end of one key: its own rotations and commitments by seq, and recoveries by others."""

    rotations: dict[int, tuple[OperationId, PublicKey]] = field(default_factory=dict)
    commitments: dict[int, tuple[OperationId, bytes]] = field(default_factory=dict)
    recoveries: dict[OperationId, tuple[PublicKey, RecoverBody]] = field(default_factory=dict)


class Successions:
    """Who succeeded whom in one pool."""

    def __init__(self, pool: PoolId) -> None:
        self._pool = pool
        self._lines: dict[PublicKey, _Line] = {}
        self._heirs: dict[PublicKey, set[PublicKey]] = {}
        """By a new key: the old ones that named it, or that it recovers."""
        self._said: set[tuple[PublicKey, bytes]] = set()
        """Every commitment that was ever seen, void ones too: who is let into the log may not depend on the order."""
        self._entered: set[PublicKey] = set()
        self._first_said: dict[PublicKey, int] = {}
        """Where the first commitment of a key stands, void ones too."""
        self._folded: dict[PublicKey, Standing] = {}
        """With which standing the chain of a key was folded, if not with none."""
        self._stale: dict[PublicKey, None] = {}

    # ------------------------------------------------------------ adding

    def note(self, operation: Operation, body: SuccessionBody) -> None:
        """Note what stands in the chain of a member; of a recovery, in the chain of anybody, as its first operation."""
        author = operation.author
        if not is_signed(self._pool, author, body):
            return
        match body:
            case RotateBody(successor):
                self._line(author).rotations[operation.seq] = (operation.id, successor)
                self._changed(author, successor)
            case RecoveryBody(commitment):
                self._line(author).commitments[operation.seq] = (operation.id, commitment)
                self._changed(author)
            case RecoverBody(old):
                self._line(old).recoveries[operation.id] = (author, body)
                self._changed(old, author)
            case SucceedBody():
                pass

    def void(self, operation: Operation, body: SuccessionBody) -> None:
        """Take an operation back: its author forked, was cut off, or its chain is folded anew."""
        old = body.predecessor if isinstance(body, RecoverBody) else operation.author
        line = self._lines.get(old)
        if line is None:
            return
        line.rotations.pop(operation.seq, None) if isinstance(body, RotateBody) else None
        line.commitments.pop(operation.seq, None) if isinstance(body, RecoveryBody) else None
        line.recoveries.pop(operation.id, None) if isinstance(body, RecoverBody) else None
        self._changed(old)

    def _line(self, key: PublicKey) -> _Line:
        return self._lines.setdefault(key, _Line())

    def _changed(self, old: PublicKey, new: PublicKey | None = None) -> None:
        if new is not None:
            self._heirs.setdefault(new, set()).add(old)
        self._stale[old] = None
        line = self._lines[old]
        for heir in (*(named for _, named in line.rotations.values()), *(who for who, _ in line.recoveries.values())):
            self._stale[heir] = None
        self._stale.update(dict.fromkeys(heir for heir, of in sorted(self._heirs.items()) if old in of))

    def enter(self, key: PublicKey) -> None:
        """The chain of a key begins as that of a successor."""
        self._entered.add(key)
        self._stale[key] = None

    def saw(self, author: PublicKey, body: RecoveryBody, seq: int) -> None:
        """A commitment is held, whether or not it has an effect."""
        self._said.add((author, body.commitment))
        self._first_said[author] = min(seq, self._first_said.get(author, seq))

    # ------------------------------------------------------------ reading

    def committed(self, key: PublicKey, recovery: PublicKey) -> bool:
        """Whether a key ever said that it commits to a recovery key, with or without effect."""
        return (key, commitment_of(recovery)) in self._said

    def _commitment(self, key: PublicKey) -> tuple[int, bytes] | None:
        line = self._lines.get(key)
        if line is None or not line.commitments:
            return None
        seq = min(line.commitments)
        return seq, line.commitments[seq][1]

    def _recoveries(self, old: PublicKey) -> list[tuple[PublicKey, int]]:
        """New key and length of every recovery that the commitment covers."""
        found, line = self._commitment(old), self._lines.get(old)
        if found is None or line is None:
            return []
        seq, commitment = found
        return [
            (new, body.length)
            for new, body in line.recoveries.values()
            if commitment_of(body.recovery) == commitment and seq < body.length
        ]

    def successor(self, old: PublicKey) -> PublicKey | None:
        """Who took the place of a key. A recovery goes before a rotation; two recoveries for two keys make none."""
        recovered = {new for new, _ in self._recoveries(old)}
        if recovered:
            return min(recovered) if len(recovered) == 1 else None
        line = self._lines.get(old)
        return line.rotations[min(line.rotations)][1] if line is not None and line.rotations else None

    def standing(self, key: PublicKey) -> Standing:
        """What succession does to a key, as far as is known."""
        line = self._lines.get(key)
        ends = [length for _, length in self._recoveries(key)]
        if line is not None and line.rotations:
            ends.append(min(line.rotations) + 1)
        named = self._heirs.get(key, ()) if key in self._entered else ()
        inherits = tuple(sorted(old for old in named if self.successor(old) == key))
        return Standing(min(ends, default=FOREVER), inherits)

    def folded(self, key: PublicKey) -> Standing:
        """The standing that a key's chain is folded with."""
        return self._folded.get(key, _NONE)

    def is_heir(self, key: PublicKey) -> bool:
        """Whether a key inherits a membership."""
        return bool(self.folded(key).inherits)

    def heirs(self) -> list[PublicKey]:
        """Every key that inherits a membership."""
        return [key for key, standing in self._folded.items() if standing.inherits]

    def revocable_from(self, key: PublicKey) -> int:
        """The number from which operations of a key can still lose or gain their effect by what others sign.

        That is 0 of a key that takes another's place, and where a key committed to a recovery key, from there on.
        """
        return 0 if key in self._entered else self._first_said.get(key, FOREVER)

    def may_inherit(self, key: PublicKey) -> bool:
        """Whether a key's chain begins as that of a successor. No other key inherits anything."""
        return key in self._entered

    def ended(self, operation: Operation) -> bool:
        """Whether an operation stands beyond the end of its author."""
        return operation.seq >= self.folded(operation.author).end

    def lineage(self) -> dict[PublicKey, PublicKey]:
        """Every key that was succeeded, with the key that took its place."""
        found = ((old, self.successor(old)) for old in sorted(self._lines))
        return {old: new for old, new in found if new is not None}

    def state(self) -> list[list[bytes]]:
        """Who succeeded whom, for the state of the pool."""
        return [[old, new] for old, new in self.lineage().items()]

    # ------------------------------------------------------------ folding anew

    def take_stale(self) -> PublicKey | None:
        """A key whose standing is not the one its chain was folded with; it is taken for folded from now on."""
        while self._stale:
            key = next(iter(self._stale))
            del self._stale[key]
            standing = self.standing(key)
            if standing != self.folded(key):
                self._folded[key] = standing
                return key
        return None


_NONE = Standing()
