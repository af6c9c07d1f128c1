"""Who belongs to the pool.

Knows: joins and leaves of each author, in the order of its own chain. Must not know: tasks.
Source: `docs/protocol.md`, membership. Electors and the creator are members from the genesis on.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core.types import PublicKey


@dataclass(slots=True)
class MemberRecord:
    """Membership of one author.

    Attributes:
        changes: (seq, is a member from here on, declared capabilities), by seq.
    """

    changes: list[tuple[int, bool, tuple[str, ...]]]


class Members:
    """The members of a pool."""

    def __init__(self) -> None:
        self._founders: frozenset[PublicKey] = frozenset()
        self._records: dict[PublicKey, MemberRecord] = {}
        self._frozen: dict[PublicKey, int] = {}

    def found(self, founders: frozenset[PublicKey]) -> None:
        """Set the members that the genesis names."""
        self._founders = founders

    def change(self, author: PublicKey, seq: int, joined: bool, capabilities: tuple[str, ...]) -> None:
        """Note a join or leave; called in chain order."""
        record = self._records.setdefault(author, MemberRecord([]))
        record.changes.append((seq, joined, capabilities))

    def freeze(self, author: PublicKey, seq: int) -> None:
        """Void what an author that forked did from `seq` on."""
        self._frozen[author] = seq
        record = self._records.get(author)
        if record is not None:
            record.changes = [change for change in record.changes if change[0] < seq]

    def has(self, author: PublicKey) -> bool:
        """Whether the author is a member now."""
        record = self._records.get(author)
        if record is not None and record.changes:
            return record.changes[-1][1]
        return author in self._founders

    def active(self, author: PublicKey) -> bool:
        """Whether the author is a member and not frozen."""
        return author not in self._frozen and self.has(author)

    def capabilities(self, author: PublicKey) -> tuple[str, ...]:
        """What the author declared when it joined last."""
        record = self._records.get(author)
        return record.changes[-1][2] if record is not None and record.changes else ()

    def frozen(self) -> dict[PublicKey, int]:
        """Frozen authors, and from which seq."""
        return self._frozen

    def all(self) -> list[PublicKey]:
        """Every member, sorted."""
        return sorted(author for author in self._founders | set(self._records) if self.has(author))
