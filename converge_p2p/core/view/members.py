"""Who belongs to the pool.

Knows: joins and leaves of each author, in the order of its own chain. Must not know: tasks.
Source: `docs/protocol.md`, membership. Electors are members from their first epoch on, the creator from the genesis on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.succession import FOREVER, Successions


@dataclass(slots=True)
class MemberRecord:
    """Membership of one author.

    Attributes:
        changes: (seq, is a member from here on, declared capabilities), by seq.
    """

    changes: list[tuple[int, bool, tuple[str, ...]]]


class Members:
    """The members of a pool."""

    def __init__(self, successions: Successions) -> None:
        self._successions = successions
        self._founders: dict[PublicKey, int] = {}
        self._records: dict[PublicKey, MemberRecord] = {}
        self._frozen: dict[PublicKey, int] = {}
        self._expelled: dict[PublicKey, int] = {}

    def found(self, founders: Collection[PublicKey], epoch: int) -> None:
        """Set the members that an epoch names: its electors, and in the first one the creator."""
        for founder in founders:
            self._founders.setdefault(founder, epoch)

    def change(self, author: PublicKey, seq: int, joined: bool, capabilities: tuple[str, ...]) -> None:
        """Note a join or leave; called in chain order."""
        record = self._records.setdefault(author, MemberRecord([]))
        record.changes.append((seq, joined, capabilities))

    def changed_at(self, author: PublicKey) -> list[int]:
        """Where in the author's chain the joins and leaves stand that are in effect."""
        record = self._records.get(author)
        return [] if record is None else [change[0] for change in record.changes]

    def freeze(self, author: PublicKey, seq: int) -> None:
        """Void what an author that forked did from `seq` on."""
        self._frozen[author] = seq
        self._drop_from(author, seq)

    def thaw(self, author: PublicKey) -> None:
        """Nothing of a fork is held any more: it lay beyond the cut of a removed author."""
        self._frozen.pop(author, None)

    def expel(self, author: PublicKey, length: int) -> None:
        """End the membership of a removed author, and void what it did from `length` on."""
        self._expelled[author] = length
        self._drop_from(author, length)

    def _drop_from(self, author: PublicKey, seq: int) -> None:
        record = self._records.get(author)
        if record is not None:
            record.changes = [change for change in record.changes if change[0] < seq]

    def has_at(self, author: PublicKey, epoch: int) -> bool:
        """Whether the author is a member at the end of what is known of its chain, for an operation of an epoch.

        An elector is a member from its first epoch on, and the creator from the first, until their own chain says that
        they leave. An expelled author is judged like anybody else here: what it did beyond its cut never gets so far.
        """
        record = self._records.get(author)
        if record is not None and record.changes:
            return record.changes[-1][1]
        first = self._founders.get(author)
        return (first is not None and first <= epoch) or self._successions.is_heir(author)

    def forget(self, author: PublicKey) -> None:
        """Forget joins and leaves of an author, whose chain is folded anew."""
        self._drop_from(author, 0)

    def has(self, author: PublicKey) -> bool:
        """Whether the author is a member now."""
        gone = author in self._expelled or self._successions.folded(author).end < FOREVER
        return not gone and self.has_at(author, limits.EPOCH_MAX)

    def active(self, author: PublicKey) -> bool:
        """Whether the author is a member and not frozen."""
        return author not in self._frozen and self.has(author)

    def capabilities(self, author: PublicKey) -> tuple[str, ...]:
        """What the author declared when it joined last."""
        record = self._records.get(author)
        if record is not None and record.changes:
            return record.changes[-1][2]
        inherited = self._successions.folded(author).inherits
        return tuple(sorted({name for old in inherited for name in self._declared(old)}))

    def _declared(self, author: PublicKey) -> tuple[str, ...]:
        """What somebody declared before its end."""
        record, end = self._records.get(author), self._successions.folded(author).end
        before = () if record is None else tuple(change for change in record.changes if change[0] < end)
        return before[-1][2] if before else ()

    def frozen(self) -> dict[PublicKey, int]:
        """Frozen authors, and from which seq."""
        return self._frozen

    def expelled(self) -> dict[PublicKey, int]:
        """Removed authors, and from which seq their data is void."""
        return self._expelled

    def gone(self) -> frozenset[PublicKey]:
        """Everybody who was a member once and is no active one now: left, removed, or frozen."""
        known = self._founders.keys() | set(self._records)
        return frozenset(author for author in known if not self.active(author))

    def all(self) -> list[PublicKey]:
        """Every member, sorted."""
        return sorted(
            author for author in {*self._founders, *self._records, *self._successions.heirs()} if self.has(author)
        )
