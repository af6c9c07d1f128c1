"""Find out where two frontiers differ: ranges of authors, with fingerprints, that are split until few entries are left.

Knows: the own frontier, and one message of a peer. Must not know: peers, time, or what is done about a difference.
Source: range-based set reconciliation (Meyer, arXiv 2212.13567; negentropy), over the frontier map;
`docs/protocol.md`, sync.

Nothing is remembered between two messages: whoever receives a comparison answers what differs in it, so that a message
that is lost costs a round, never the outcome. A range is split by the answerer's own authors, into parts of equal
count, so that nobody can make ranges deep by choosing keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.oplog.frontier import FrontierEntry, FrontierIndex
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.replica.wire import Comparison, Entries, Part

PARTS_PER_SPLIT = 16
"""More parts make fewer rounds and more bytes."""

ENTRIES_PER_RANGE = 3
"""A range in which so few authors are held is answered with their entries: five times a fingerprint each."""


@dataclass(slots=True)
class Answer:
    """What a comparison led to.

    Attributes:
        comparisons: what is to be compared further.
        lacking: entries that the peer lacks or has less of.
        more: more than these are lacking.
        theirs: entries of the peer that differ here, each with the own one.
        whole: the comparison had the peer's whole frontier in it.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    lacking: list[FrontierEntry] = field(default_factory=list)
    more: bool = False
    theirs: list[tuple[FrontierEntry, FrontierEntry | None]] = field(default_factory=list)
    whole: bool = False

    def messages(self) -> Iterator[Comparison | Entries]:
        """What to send back."""
        yield from self.comparisons
        size = limits.FRONTIER_ENTRIES_PER_MESSAGE_MAX
        for start in range(0, len(self.lacking), size):
            part = tuple(self.lacking[start : start + size])
            yield Entries(part, self.more or start + size < len(self.lacking))


class _Writer:
    """Puts parts into as few comparisons as possible; between two that do not touch stands one that says nothing."""

    def __init__(self) -> None:
        self.comparisons: list[Comparison] = []
        self.count = 0
        self._parts: list[Part] = []
        self._low = self._end = b""
        self._entries = 0

    def add(self, low: bytes, bound: bytes, content: bytes | tuple[FrontierEntry, ...]) -> None:
        """Add a range that begins where the one before it ended, or later."""
        entries = len(content) if isinstance(content, tuple) else 0
        full = len(self._parts) + 2 > limits.RANGE_PARTS_PER_MESSAGE_MAX
        if full or self._entries + entries > limits.FRONTIER_ENTRIES_PER_MESSAGE_MAX:
            self.flush()
        if not self._parts:
            self._low = low
        elif self._end != low:
            self._parts.append(Part(low, None))
        self._parts.append(Part(bound, content))
        self._end = bound
        self._entries += entries
        self.count += 1

    def flush(self) -> None:
        """End the comparison that is being written."""
        if self._parts:
            self.comparisons.append(Comparison(self._low, tuple(self._parts)))
        self._parts, self._entries = [], 0


def opening(log: OperationLog) -> Comparison:
    """The first message: the whole frontier if it is small, else fingerprints of its ranges."""
    writer = _Writer()
    if len(log.index) <= limits.FRONTIER_WHOLE_AUTHORS_MAX:
        writer.add(b"", b"", tuple(log.frontier()))
    else:
        _split(writer, log.index, b"", b"")
    writer.flush()
    (comparison,) = writer.comparisons
    return comparison


def answer(log: OperationLog, message: Comparison) -> Answer:
    """Compare a peer's ranges with the own frontier."""
    result, writer, low = Answer(), _Writer(), message.low
    waiting = len(message.parts)
    for bound, content in message.parts:
        waiting -= 1
        if isinstance(content, bytes):
            room = limits.RANGE_PARTS_PER_ANSWER_MAX - writer.count - waiting
            _compare(log, writer, low, bound, content, room=room)
        elif content is not None:
            result.whole |= not (low or bound)
            _compare_entries(log, low, bound, content, result)
        low = bound
    writer.flush()
    result.comparisons = writer.comparisons
    return result


def _compare(log: OperationLog, writer: _Writer, low: bytes, high: bytes, theirs: bytes, *, room: int) -> None:
    start, stop = log.index.span(low, high)
    mine = log.index.fingerprint(start, stop)
    if mine == theirs:
        return
    if stop - start <= ENTRIES_PER_RANGE:
        writer.add(low, high, tuple(log.frontier(low, high)))
    elif room < PARTS_PER_SPLIT:
        # too much differs for one answer: the peer goes on with this range, so that none is left out for ever
        writer.add(low, high, mine)
    else:
        _split(writer, log.index, low, high)


def _split(writer: _Writer, index: FrontierIndex, low: bytes, high: bytes) -> None:
    start, stop = index.span(low, high)
    parts = min(PARTS_PER_SPLIT, stop - start)
    ranks = [start + (stop - start) * number // parts for number in range(parts + 1)]
    for number in range(parts):
        last = number == parts - 1
        bound = high if last else _bound_between(index.author(ranks[number + 1] - 1), index.author(ranks[number + 1]))
        writer.add(low, bound, index.fingerprint(ranks[number], ranks[number + 1]))
        low = bound


def _bound_between(below: bytes, above: bytes) -> bytes:
    """The shortest bound that is above one author, and not above the next."""
    length = next(at for at, (one, other) in enumerate(zip(below, above, strict=True)) if one != other) + 1
    return above[:length]


def _compare_entries(
    log: OperationLog, low: bytes, high: bytes, theirs: tuple[FrontierEntry, ...], result: Answer
) -> None:
    said = {entry.author: entry for entry in theirs}
    for entry in theirs:
        mine = log.entry(entry.author)
        if mine != entry:
            result.theirs.append((entry, mine))
    for mine in log.frontier(low, high):
        other = said.get(mine.author)
        if other is not None and (other == mine or (mine.loose is None and mine.length < other.length)):
            continue
        if len(result.lacking) >= limits.FRONTIER_ENTRIES_PER_ANSWER_MAX:
            result.more = True
            return
        result.lacking.append(mine)
