"""Trust from the log: integers, in a context, fading by the epoch.

Knows: events with points, and the score that follows from a set of them. Must not know: where events come from (see
`view.trust`), or what a node thinks of somebody for itself (see `runtime.trust`).
Source: `docs/protocol.md`, trust; the expected value of a beta distribution over gains and losses (Jøsang and Ismail,
The Beta Reputation System, 2002), in whole numbers. Unlike a sum that is cut off at a maximum, it does not let an agent
store up successes and then fail for a long time without a trace.

A score ranks rival claims. It never weighs a vote: certificates do not depend on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.model.task import TaskSpec
from converge_p2p.core.types import PublicKey

OVERALL = b""
"""The context that every event counts in."""

SCORE_DEFAULT = 500
SCORE_MAX = 1000

PRIOR_POINTS = 100
"""What is assumed of a stranger, for and against: about ten tasks move a score to three quarters."""

_TOPIC = b"topic\0"

FADES_TO = 7
FADES_FROM = 8
"""With each epoch an event counts 7/8 of what it counted before."""

COMPLETED = 10
FAILED = -10
EXPIRED = -10
REPORTED_TWICE = -200
RESULT_REJECTED = -60
DISPUTE_LOST = -10


class TrustEvent(NamedTuple):
    """Something an author did.

    Attributes:
        id: names the event, and commits to what it is about.
        author: whose trust it changes.
        contexts: what it says something about, beside `OVERALL` (see `contexts_of`).
        epoch: when.
        points: for (above 0) or against the author, within ±`limits.TRUST_POINTS_MAX`.
    """

    id: bytes
    author: PublicKey
    contexts: tuple[bytes, ...]
    epoch: int
    points: int


class TrustSums:
    """Gains and losses, added up by author, context and epoch: what scores follow from."""

    def __init__(self) -> None:
        self._sums: dict[tuple[PublicKey, bytes], dict[int, tuple[int, int]]] = {}

    def of(self, author: PublicKey, context: bytes) -> Mapping[int, tuple[int, int]]:
        """Epoch → sum of gains, sum of losses."""
        return self._sums.get((author, context), {})

    def count(self, event: TrustEvent, times: int = 1) -> None:
        """Add an event in each of its contexts; times -1: take it out again."""
        change = times * abs(event.points)
        gain, loss = (change, 0) if event.points > 0 else (0, change)
        for context in (OVERALL, *event.contexts):
            self._add(event.author, context, event.epoch, gain, loss)

    def add(self, other: TrustSums, times: int = 1) -> None:
        """Add what others add up to."""
        for author, context, epoch, gain, loss in other.plain():
            self._add(author, context, epoch, times * gain, times * loss)

    def plain(self) -> list[tuple[PublicKey, bytes, int, int, int]]:
        """Author, context, epoch, gains, losses; sorted."""
        return [
            (author, context, epoch, *self._sums[author, context][epoch])
            for author, context in sorted(self._sums)
            for epoch in sorted(self._sums[author, context])
        ]

    def authors(self) -> set[PublicKey]:
        """Everybody of whom something is known."""
        return {author for author, _ in self._sums}

    @classmethod
    def of_plain(cls, rows: Iterable[tuple[PublicKey, bytes, int, int, int]]) -> TrustSums:
        """Take over what `plain` gave."""
        self = cls()
        for author, context, epoch, gain, loss in rows:
            self._add(author, context, epoch, gain, loss)
        return self

    def _add(self, author: PublicKey, context: bytes, epoch: int, gain: int, loss: int) -> None:
        sums = self._sums.setdefault((author, context), {})
        before = sums.get(epoch, (0, 0))
        sums[epoch] = (before[0] + gain, before[1] + loss)
        if sums[epoch] == (0, 0):
            del sums[epoch]
            if not sums:
                del self._sums[author, context]


class TrustLedger:
    """Scores of authors, as a function of a set of events: any order, and duplicates, give the same."""

    def __init__(self) -> None:
        self._events: dict[bytes, TrustEvent] = {}
        self._sources: dict[bytes, tuple[bytes, ...]] = {}
        self.sums = TrustSums()
        """Of all events, and of those that were given as sums."""

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event_id: bytes, author: PublicKey, context: bytes, epoch: int, points: int) -> None:
        """Count an event in one context and overall. One that is counted already changes nothing.

        If two events have one id, which they should not, the greater counts, so that the order still does not matter.
        """
        event = TrustEvent(event_id, author, () if context == OVERALL else (context,), epoch, points)
        known = self._events.get(event_id)
        if known is None or event > known:
            self._put(event)

    def remove(self, event_id: bytes) -> None:
        """Take an event back, if it is counted."""
        event = self._events.pop(event_id, None)
        if event is not None:
            self.sums.count(event, -1)

    def replace(self, source: bytes, events: Iterable[TrustEvent]) -> None:
        """Say which events follow from a source now, in place of those that followed from it before.

        Args:
            source: a task, say. The events of two sources have different ids.
            events: all that follow from it.
        """
        new = {event.id: event for event in events}
        for gone in self._sources.get(source, ()):
            if gone not in new:
                self.remove(gone)
        for event in new.values():
            if self._events.get(event.id) != event:
                self._put(event)
        if new:
            self._sources[source] = tuple(new)
        else:
            self._sources.pop(source, None)

    def score(self, author: PublicKey, context: bytes = OVERALL, epoch: int = 0) -> int:
        """Return the trust in an author, 0 to 1000; 500 if nothing is known.

        Args:
            author: whose.
            context: what for (see `contexts_of`), or `OVERALL`.
            epoch: as seen in this epoch; later events do not count, nor those older than `limits.TRUST_EPOCHS_MAX`.
        """
        gains = losses = PRIOR_POINTS
        for number, (gain, loss) in self.sums.of(author, context).items():
            age = epoch - number
            if 0 <= age <= limits.TRUST_EPOCHS_MAX:
                gains += faded(gain, age)
                losses += faded(loss, age)
        return SCORE_MAX * gains // (gains + losses)

    def authors(self) -> list[PublicKey]:
        """Everybody of whom something is known, sorted."""
        return sorted(self.sums.authors())

    def state(self) -> list[list[Any]]:
        """The sums that scores follow from: author, context, epoch, gains, losses; sorted."""
        return [list(row) for row in self.sums.plain()]

    def _put(self, event: TrustEvent) -> None:
        assert abs(event.points) <= limits.TRUST_POINTS_MAX
        self.remove(event.id)
        self._events[event.id] = event
        self.sums.count(event)


def faded(points: int, age: int) -> int:
    """Return what is left of a sum of points (0 or more) after some epochs: `points · 7^age / 8^age`, rounded down."""
    kept: int = FADES_TO**age
    whole: int = FADES_FROM**age
    return points * kept // whole


def contexts_of(spec: TaskSpec) -> tuple[bytes, ...]:
    """Return the contexts that work on a task says something about: topic, objective, and required capabilities."""
    topic: Collection[bytes] = (topic_context(spec.topic),) if spec.topic else ()
    capabilities = [capability_context(name) for name in spec.required_capabilities]
    return (*topic, objective_context(spec.objective), *capabilities)


def topic_of(contexts: tuple[bytes, ...]) -> bytes:
    """Return the topic of a task with these contexts, empty if it has none."""
    first = contexts[0] if contexts else b""
    return first.removeprefix(_TOPIC) if first.startswith(_TOPIC) else b""


def topic_context(topic: bytes) -> bytes:
    """Return the context of a topic, given by its canonical bytes."""
    return _TOPIC + topic


def objective_context(objective: str) -> bytes:
    """Return the context of an objective."""
    return b"objective\0" + objective.encode()


def capability_context(name: str) -> bytes:
    """Return the context of a capability."""
    return b"capability\0" + name.encode()
