"""The chain of epochs of a pool: who decides, under which rules, and what the next epoch inherits.

Knows: the content of an epoch's value, and the epochs installed so far. Must not know: how votes are counted on a
subject (see `register`), or tasks.
Source: `docs/protocol.md`, epochs; reconfiguration as in Lamport, Malkhi and Zhou, Vertical Paxos (2009), with one
register for each epoch number.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode, tagged_hash
from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.governance.models import ProtocolRules, Ruleset
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.model.task import TaskValue
from converge_p2p.core.oplog.cuts import Cut, read_cuts
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId

_HASH = 32


class Counting(NamedTuple):
    """How votes on a subject are counted in an epoch."""

    rules: Ruleset
    protocol: ProtocolRules

    def enough(
        self, threshold: Threshold, voters: Collection[PublicKey], options: Mapping[Any, Collection[PublicKey]]
    ) -> bool:
        """Whether the voters for one option decide, given the voters for each option."""
        if self.protocol.count_members:
            return threshold.satisfied_by(voters)
        return 2 * len(voters) > len({voter for option in options.values() for voter in option})


@dataclass(frozen=True, slots=True)
class EpochValue:
    """What the register of an epoch is settled on.

    Attributes:
        number: of the epoch it founds, from 1.
        before: 32 bytes that name the epoch before: the hash of its value; of epoch 0 the pool's id.
        motion: the carried motion that asked for the change.
        spec: the terms from now on.
        cuts: the removed authors, sorted, and where their data ends.
        promises: the votes with the promises that this epoch starts from, sorted.
        key_commit: commitment to the content key of a private pool, else empty.
    """

    number: int
    before: bytes
    motion: OperationId
    spec: PoolSpec
    cuts: tuple[Cut, ...]
    promises: tuple[OperationId, ...]
    key_commit: bytes = b""

    def to_bytes(self) -> bytes:
        """Canonical bytes: the result of the register's value."""
        cuts = [[cut.author, cut.length, cut.head] for cut in self.cuts]
        return encode(
            [self.number, self.before, self.motion, self.spec.to_body(), cuts, list(self.promises), self.key_commit]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> EpochValue:
        """Read the bytes of a value.

        Raises:
            CodecError: not of that shape, or out of bounds.
        """
        match decode(data):
            case [
                int() as number,
                bytes() as before,
                bytes() as motion,
                list() as spec,
                list() as cuts,
                list() as promises,
                bytes() as key_commit,
            ] if (
                1 <= number <= limits.EPOCH_MAX
                and len(before) == len(motion) == _HASH
                and len(promises) <= limits.ELECTORS_MAX
                and all(type(item) is bytes and len(item) == _HASH for item in promises)
                and promises == sorted(set(promises))
                and len(key_commit) in (0, _HASH)
            ):
                names = tuple(OperationId(item) for item in promises)
                terms = PoolSpec.from_body(spec)
                return cls(number, before, OperationId(motion), terms, read_cuts(cuts), names, key_commit)
        raise CodecError("an epoch value is an array of seven: number, before, motion, terms, cuts, promises, key")


def epoch_subject(pool: PoolId, number: int) -> TaskId:
    """The subject that votes on epoch `number` name: it stands where a task's id stands in votes on a task."""
    return TaskId(tagged_hash("epoch", pool, number.to_bytes(8, "big")))


@dataclass
class Epoch:
    """An epoch that was certified, or the first.

    Attributes:
        number: from 0.
        hash: what the next epoch names as the one before.
        spec: its terms.
        counting: how votes on tasks are counted.
        changing: how votes on the next epoch are counted.
        electors: who votes.
        promised: the electors whose promises it starts from, and the seq of each in the elector's chain.
        cuts: authors removed by it.
        value: what its register was settled on; None for the first.
        key_commit: the content key of a private pool that its certificate fixes, else empty.
    """

    number: int
    hash: bytes
    spec: PoolSpec
    counting: Counting
    changing: Counting
    electors: frozenset[PublicKey]
    promised: Mapping[PublicKey, int] = field(default_factory=dict)
    cuts: tuple[Cut, ...] = ()
    value: TaskValue | None = None
    key_commit: bytes = b""

    @functools.cached_property
    def ranks(self) -> dict[PublicKey, int]:
        """The electors in the order of their keys, each with its place."""
        return {elector: rank for rank, elector in enumerate(sorted(self.electors))}


class Epochs:
    """The epochs installed so far, one after the other."""

    def __init__(self, pool: PoolId, protocol: ProtocolRules) -> None:
        """Begin with none: the first comes from the founding operation."""
        self.protocol = protocol
        self._pool = pool
        self._epochs: list[Epoch] = []
        self.number = -1
        """The number of the last one; -1 before the founding."""
        self._subjects: dict[TaskId, int] = {}
        self._electors: dict[PublicKey, int] = {}
        self._vetoers: dict[PublicKey, int] = {}
        self.frozen: set[PublicKey] = set()
        """Authors that are known to have forked."""
        self.certified_keys: dict[int, bytes] = {}
        """Of a private pool: epoch → the commitment that its certificate fixes."""
        self.last_removal = 0
        """The last epoch that removed somebody, or 0."""
        self.veto_changed = False
        """Whether any two epochs differ in who may deny results, and how."""

    def __len__(self) -> int:
        return len(self._epochs)

    def __getitem__(self, number: int) -> Epoch:
        return self._epochs[number]

    @property
    def current(self) -> Epoch:
        """The last one. Only after the founding."""
        return self._epochs[-1]

    def add(
        self,
        spec: PoolSpec,
        rules: Ruleset,
        *,
        value: TaskValue | None = None,
        promised: Mapping[PublicKey, int] | None = None,
        made_of: EpochValue | None = None,
    ) -> Epoch:
        """Install the next epoch.

        Args:
            spec, rules: its terms.
            value: what its register was settled on; None for the first.
            promised: see `Epoch`.
            made_of: the content of `value`.
        """
        number = len(self._epochs)
        cuts, key_commit = ((), b"") if made_of is None else (made_of.cuts, made_of.key_commit)
        electors = frozenset(spec.electors)
        epoch = Epoch(
            number,
            self._pool if value is None else value.hash,
            spec,
            Counting(rules, self.protocol),
            _changing(rules, self.protocol),
            electors,
            dict(promised or {}),
            cuts,
            value,
            key_commit,
        )
        self.veto_changed |= bool(self._epochs) and self.current.counting.rules.veto != rules.veto
        self._epochs.append(epoch)
        self.number = number
        if key_commit:
            self.certified_keys[number] = key_commit
        if cuts:
            self.last_removal = number
        self._subjects[epoch_subject(self._pool, number + 1)] = number + 1
        for elector in electors:
            self._electors.setdefault(elector, number)
        for vetoer in rules.veto.vetoers if rules.veto is not None else ():
            self._vetoers.setdefault(vetoer, number)
        return epoch

    @property
    def private(self) -> bool:
        """Whether contents of the pool are sealed. It is founded so, or it never is."""
        return bool(self._epochs) and self._epochs[0].spec.private

    def changes(self, subject: TaskId) -> int | None:
        """The number of the epoch a subject is about, or None if it is none that can be voted on yet."""
        return self._subjects.get(subject)

    def was_elector(self, author: PublicKey, number: int) -> bool:
        """Whether the author was an elector in this epoch or before it."""
        first = self._electors.get(author)
        return first is not None and first <= number

    def was_vetoer(self, author: PublicKey, number: int) -> bool:
        """Whether the author might deny results in this epoch or before it."""
        first = self._vetoers.get(author)
        return first is not None and first <= number

    def find(self, number: int) -> Epoch | None:
        """An epoch, or None if it is not installed here."""
        return self._epochs[number] if 0 <= number < len(self._epochs) else None


def _changing(rules: Ruleset, protocol: ProtocolRules) -> Counting:
    """How the register of the next epoch is counted: one formula for every step, so that any two of them meet."""
    alone = len(rules.epoch.electors) == 1
    changing = Ruleset(
        grant=rules.epoch,
        endorse=None if alone else rules.epoch,
        accept=rules.epoch,
        epoch=rules.epoch,
        faults=rules.faults,
        trusted=rules.trusted,
        deciders=rules.deciders,
    )
    own = replace(
        protocol,
        endorse_phase=protocol.epoch_endorse,
        lock_rule=protocol.epoch_locks,
        fence_accepts=protocol.epoch_rounds,
    )
    return Counting(changing, own)
