"""The tasks that were settled below a checkpoint, in a table of records of one size, sorted by task.

Knows: the bytes of what is kept of each (see `past`). Must not know: how it came about: inputs, results and votes are
gone.
Source: `docs/protocol.md`, checkpoints. A sorted table of bytes is searched by halving, takes in memory what it takes
on disk, and is the same wherever the same tasks were settled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.trust import TrustSums
from converge_p2p.core.model.task import Outcome
from converge_p2p.core.oplog.bodies import Token
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.past import SEVERAL, Attempts, Past

_HASH = 32
_NUMBER = 4
_KEYS_AT: Final = 2 * _HASH + 1
"""Behind task, value and outcome: worker and submitter by their places among the keys, then the contexts by theirs."""
_FIRST_AT: Final = _KEYS_AT + 3 * _NUMBER
"""Epoch and round in which it was settled first, and who accepted it there."""
RECORD_BYTES: Final = _FIRST_AT + 3 * _NUMBER + 1
"""The last byte says whether vetoers had a say, and whether there is more in `SettledTable.extras`."""
_ASKED, _MORE = 1, 2


class Parts(NamedTuple):
    """What a table is written as.

    Attributes:
        keys: of workers and submitters, one after the other, sorted.
        contexts: what tasks are about, sorted.
        records: one after the other, sorted.
        extras: task → what its record has no room for.
        sums: what trust adds up to by these tasks, disputes about them left out.
    """

    keys: bytes
    contexts: tuple[tuple[bytes, ...], ...]
    records: bytes
    extras: Mapping[TaskId, bytes]
    sums: TrustSums


class SettledTable:
    """Settled tasks. It never changes; `extended` makes a larger one."""

    __slots__ = ("_count", "parts")

    def __init__(self, parts: Parts | None = None) -> None:
        """Take over what was checked before, or nothing."""
        self.parts = Parts(b"", (), b"", {}, TrustSums()) if parts is None else parts
        self._count = len(self.parts.records) // RECORD_BYTES

    @property
    def sums(self) -> TrustSums:
        """What trust adds up to by these tasks. Not to be changed."""
        return self.parts.sums

    @classmethod
    def read(cls, plain: Any) -> SettledTable:
        """Take a table that came from somewhere.

        Raises:
            CodecError: it is not sorted, or a record is out of bounds.
        """
        match plain:
            case [bytes() as keys, list() as contexts, bytes() as records, list() as extras, list() as sums]:
                names = tuple(_context(item) for item in contexts)
                pairs = [_extra(item) for item in extras]
                parts = Parts(keys, names, records, dict(pairs), _sums(sums))
            case _:
                raise CodecError("a table of settled tasks is an array of keys, contexts, records, extras and sums")
        table = cls(parts)
        rows = [row for _, row in table._rows()]
        known = [keys[at : at + _HASH] for at in range(0, len(keys), _HASH)]
        if len(keys) % _HASH or len(records) % RECORD_BYTES or known != sorted(set(known)):
            raise CodecError("a table of settled tasks has whole records, and keys that rise")
        if any(one[:_HASH] >= other[:_HASH] for one, other in itertools.pairwise(rows)):
            raise CodecError("settled tasks rise")
        if list(names) != sorted(set(names)) or [name for name, _ in pairs] != sorted(parts.extras):
            raise CodecError("contexts and extras rise")
        used = {number for row in rows for number in _numbers(row)[:2]}
        if used != set(range(len(known))) or {_numbers(row)[2] for row in rows} != set(range(len(names))):
            raise CodecError("a settled task names two keys and a context, and each of them is named")
        if any(row[2 * _HASH] not in (0, 1, 2) or row[-1] > _ASKED | _MORE for row in rows):
            raise CodecError("a settled task has an outcome")
        if {row[:_HASH] for row in rows if row[-1] & _MORE} != parts.extras.keys():
            raise CodecError("a settled task has extras exactly if it says so")
        for task in parts.extras:
            # whether they can be read
            table.get(task)
        return table

    def plain(self) -> list[Any]:
        """The array form."""
        keys, contexts, records, extras, sums = self.parts
        pairs = [[task, extras[task]] for task in sorted(extras)]
        return [keys, [list(item) for item in contexts], records, pairs, [list(row) for row in sums.plain()]]

    @property
    def last_epoch(self) -> int:
        """The last epoch that something in the table names; -1 if there is nothing."""
        named = [int.from_bytes(row[_FIRST_AT : _FIRST_AT + _NUMBER], "big") for _, row in self._rows()]
        for task in self.parts.extras:
            past = self.get(task)
            if past is not None:
                named.extend(token.epoch for token in past.attempts.tokens())
        return max(named, default=-1)

    def _rows(self) -> Iterator[tuple[bytes, bytes]]:
        records = self.parts.records
        for at in range(0, len(records), RECORD_BYTES):
            yield records[at : at + _HASH], records[at : at + RECORD_BYTES]

    def __len__(self) -> int:
        return self._count

    def __contains__(self, task: object) -> bool:
        return isinstance(task, bytes) and self._find(task) is not None

    def get(self, task: TaskId) -> Past | None:
        """What is kept of a task, or None if it is not in the table."""
        at = self._find(task)
        return None if at is None else self._past(at)

    def endings(self) -> Iterator[tuple[TaskId, ValueHash]]:
        """Every task, sorted, and what it ended with."""
        records, extras = self.parts.records, self.parts.extras
        for at in range(0, len(records), RECORD_BYTES):
            task = TaskId(records[at : at + _HASH])
            past = self._past(at) if task in extras else None
            yield task, ValueHash(records[at + _HASH : at + 2 * _HASH]) if past is None else past.final

    def asked(self) -> Iterator[tuple[TaskId, ValueHash]]:
        """The tasks of which vetoers had a say, and what these were settled on."""
        records = self.parts.records
        for at in range(0, len(records), RECORD_BYTES):
            if records[at + RECORD_BYTES - 1] & _ASKED:
                yield TaskId(records[at : at + _HASH]), ValueHash(records[at + _HASH : at + 2 * _HASH])

    def strayed(self) -> Iterator[TaskId]:
        """The tasks of which some elector accepted another value."""
        for task in self.parts.extras:
            past = self.get(task)
            if past is not None and past.attempts.strays:
                yield task

    def extended(self, pasts: Mapping[TaskId, Past], sums: TrustSums) -> SettledTable:
        """A table with these tasks too; of those that are in it already, this is what is known now.

        Args:
            pasts: what is kept of them.
            sums: what trust adds up to by all tasks of the new table.
        """
        if not pasts:
            return self
        keys, contexts, extras = self.parts.keys, self.parts.contexts, self.parts.extras
        rows = dict(self._rows())
        old_keys = [PublicKey(keys[at : at + _HASH]) for at in range(0, len(keys), _HASH)]
        all_keys = sorted({*old_keys, *(key for past in pasts.values() for key in (past.worker, past.submitter))})
        all_contexts = sorted({*contexts, *(past.contexts for past in pasts.values())})
        key_places = {key: _number(place) for place, key in enumerate(all_keys)}
        context_places = {name: _number(place) for place, name in enumerate(all_contexts)}
        if all_keys != old_keys or all_contexts != list(contexts):
            moved = [key_places[key] for key in old_keys]
            moved_contexts = [context_places[name] for name in contexts]
            for task, row in rows.items():
                worker, submitter, about = _numbers(row)
                places = moved[worker] + moved[submitter] + moved_contexts[about]
                rows[task] = row[:_KEYS_AT] + places + row[_FIRST_AT:]
        more = dict(extras)
        for task, past in pasts.items():
            extra = _write_extra(past)
            more.pop(task, None)
            if extra:
                more[task] = extra
            places = key_places[past.worker] + key_places[past.submitter] + context_places[past.contexts]
            first = _number(past.first.epoch) + _number(past.first.round) + _number(past.accepted)
            flags = (_ASKED if past.asked else 0) | (_MORE if extra else 0)
            rows[task] = task + past.value + bytes([int(past.outcome)]) + places + first + bytes([flags])
        joined = b"".join(rows[task] for task in sorted(rows))
        return SettledTable(Parts(b"".join(all_keys), tuple(all_contexts), joined, more, sums))

    def _past(self, at: int) -> Past:
        keys, contexts, records, extras, _ = self.parts
        row = records[at : at + RECORD_BYTES]
        worker, submitter, about = _numbers(row)
        epoch, number, accepted = (
            int.from_bytes(row[start : start + _NUMBER], "big") for start in range(_FIRST_AT, RECORD_BYTES - 1, _NUMBER)
        )
        value = ValueHash(row[_HASH : 2 * _HASH])
        past = Past(
            value, value, bool(row[-1] & _ASKED), Outcome(row[2 * _HASH]),
            PublicKey(keys[worker * _HASH : (worker + 1) * _HASH]),
            PublicKey(keys[submitter * _HASH : (submitter + 1) * _HASH]),
            contexts[about], Token(epoch, number), accepted, Attempts(),
        )  # fmt: skip
        extra = extras.get(TaskId(row[:_HASH]))
        return past._replace(attempts=past.plain) if extra is None else _read_extra(past, extra)

    def _find(self, task: bytes) -> int | None:
        records, low, high = self.parts.records, 0, self._count
        while low < high:
            middle = (low + high) // 2
            at = middle * RECORD_BYTES
            found = records[at : at + _HASH]
            if found == task:
                return at
            if found < task:
                low = middle + 1
            else:
                high = middle
        return None


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER, "big")


def _numbers(row: bytes) -> tuple[int, int, int]:
    """Worker, submitter and contexts of a record, by their places."""
    return (
        int.from_bytes(row[_KEYS_AT : _KEYS_AT + 4], "big"),
        int.from_bytes(row[_KEYS_AT + 4 : _KEYS_AT + 8], "big"),
        int.from_bytes(row[_KEYS_AT + 8 : _FIRST_AT], "big"),
    )


def _write_extra(past: Past) -> bytes:
    if past.attempts == past.plain and past.final == past.value:
        return b""
    accepted, granted, expired, claims, releases, reported, strays = past.attempts
    return encode([
        past.final,
        [[*token, voters] for token, voters in accepted],
        [[*token, claim, voters] for token, claim, voters in granted],
        [[*token, voters] for token, voters in expired],
        [list(item) for item in claims],
        [[author, *token, failed] for author, token, failed in releases],
        [[*token, author, value] for token, author, value in reported],
        [[*token, value, elector, seq] for token, value, elector, seq in strays],
    ])  # fmt: skip


def _read_extra(past: Past, extra: bytes) -> Past:
    match decode(extra):
        case [
            bytes() as final,
            list() as accepted,
            list() as granted,
            list() as expired,
            list() as claims,
            list() as releases,
            list() as reported,
            list() as strays,
        ]:
            attempts = Attempts(
                tuple((_token(*at), _bits(voters)) for *at, voters in _rows(accepted, 3)),
                tuple(
                    (_token(*at), OperationId(_hash(claim)), _bits(voters)) for *at, claim, voters in _rows(granted, 4)
                ),
                tuple((_token(*at), _bits(voters)) for *at, voters in _rows(expired, 3)),
                tuple((OperationId(_hash(claim)), PublicKey(_hash(author))) for claim, author in _rows(claims, 2)),
                tuple((PublicKey(_hash(key)), _token(*at), failed is True) for key, *at, failed in _rows(releases, 4)),
                tuple(
                    (_token(*at), PublicKey(_hash(key)), SEVERAL if value == SEVERAL else ValueHash(_hash(value)))
                    for *at, key, value in _rows(reported, 4)
                ),
                tuple(
                    (_token(*at), ValueHash(_hash(value)), PublicKey(_hash(elector)), _count(seq))
                    for *at, value, elector, seq in _rows(strays, 5)
                ),
            )
            found = past._replace(final=ValueHash(_hash(final)), attempts=attempts)
            if _write_extra(found) == extra:
                return found
    raise CodecError("the extras of a settled task are an array of its end and seven sorts of words")


def _rows(items: list[Any], length: int) -> list[list[Any]]:
    if any(type(item) is not list or len(item) != length for item in items):
        raise CodecError("a row in the extras of a settled task has another length")
    return items


def _token(epoch: Any, number: Any) -> Token:
    if type(epoch) is not int or type(number) is not int:
        raise CodecError("a round is two integers")
    if not (0 <= epoch <= limits.EPOCH_MAX and 0 <= number <= limits.ROUND_MAX):
        raise CodecError("a round is out of bounds")
    return Token(epoch, number)


def _bits(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << limits.ELECTORS_MAX:
        raise CodecError("a set of electors is out of bounds")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= limits.SEQ_MAX:
        raise CodecError("expected a sequence number")
    return value


def _hash(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != _HASH:
        raise CodecError(f"expected a byte string of {_HASH}")
    return value


def _context(item: Any) -> tuple[bytes, ...]:
    if type(item) is not list or any(type(name) is not bytes for name in item):
        raise CodecError("contexts are byte strings")
    return tuple(item)


def _extra(item: Any) -> tuple[TaskId, bytes]:
    if type(item) is not list or len(item) != 2 or type(item[1]) is not bytes:
        raise CodecError("extras are pairs of a task and a byte string")
    return TaskId(_hash(item[0])), item[1]


def _sums(rows: list[Any]) -> TrustSums:
    read = []
    for row in rows:
        match row:
            case [bytes() as author, bytes() as context, int() as epoch, int() as gain, int() as loss] if (
                0 <= epoch <= limits.EPOCH_MAX and min(gain, loss) >= 0 and max(gain, loss) > 0
            ):
                read.append((PublicKey(_hash(author)), context, epoch, gain, loss))
            case _:
                raise CodecError("a sum of trust is an array of author, context, epoch, gains and losses")
    if read != sorted(read) or len({row[:3] for row in read}) != len(read):
        raise CodecError("sums of trust rise")
    return TrustSums.of_plain(read)
