"""Descriptors of many agents, found by what they say: a lookup, not a scan.

Knows: the newest descriptor of each agent, who brought it, and which to forget when there is no room. Must not know:
the network, clocks, or whether a signature holds: what is put in was checked before (`AgentDescriptor.check`).
Source: `docs/protocol.md`, discovery; `docs/threat-model.md`, floods of descriptors.

Room is shared out between those that bring descriptors (*sources*), by weight. When there is none left, the source
with the most makes room, and of its descriptors the one that came last: so newcomers out of nothing push out newcomers
out of nothing, not who has been there for long. Who is *protected* (a connected peer, a trusted agent) makes room for
nobody.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.query import DiscoveryQuery
from converge_p2p.core.types import AgentId

BUCKET_DIGEST_BYTES = 8
_BUCKET_TAG = "agent-bucket"


class Taken(Enum):
    """What became of a descriptor that was put in."""

    NEW = "new"
    NEWER = "newer"
    KNOWN = "known"
    OLD = "old"
    EXPIRED = "expired"
    NO_ROOM = "no_room"

    @property
    def is_news(self) -> bool:
        """Whether it is held now, and was not before."""
        return self in (Taken.NEW, Taken.NEWER)


@dataclass(slots=True)
class _Entry:
    descriptor: AgentDescriptor
    rank: int
    weight: int
    source: str
    updates: float
    updated_ms: int


class AgentIndex:
    """The newest descriptor of each of at most `limits.DESCRIPTORS_HELD_MAX` agents. Not thread-safe.

    A tombstone is held like any other until it expires, so that what it replaced cannot come back.
    """

    def __init__(
        self,
        protected: Callable[[AgentId], bool] = lambda _agent: False,
        *,
        entries_max: int = limits.DESCRIPTORS_HELD_MAX,
        weight_max: int = limits.DESCRIPTORS_HELD_BYTES_MAX,
    ) -> None:
        """Make it empty.

        Args:
            protected: who makes room for nobody but others that are protected.
            entries_max: how many agents are remembered.
            weight_max: bytes of descriptors, with `limits.DESCRIPTOR_OVERHEAD_BYTES` for each.
        """
        self._protected = protected
        self._entries_max = entries_max
        self._weight_max = weight_max
        self._weight = 0
        self._entries: dict[AgentId, _Entry] = {}
        self._skills: dict[str, list[tuple[int, AgentId]]] = {}
        """Capability → cost and agent, sorted; an agent stands once for each capability of that name."""
        self._topics: dict[str, list[AgentId]] = {}
        """Namespace → agents, sorted, likewise."""
        self._sources: dict[str, dict[AgentId, None]] = {}
        """Who brought whom, in the order they came."""
        self._source_weights: dict[str, int] = {}
        self._expiries: list[tuple[int, AgentId]] = []
        self._buckets: list[dict[AgentId, None]] = [{} for _ in range(limits.AGENT_BUCKETS)]
        self._digests: list[bytes | None] = [None] * limits.AGENT_BUCKETS

    def __len__(self) -> int:
        """Return how many agents are remembered, those that left among them."""
        return len(self._entries)

    @property
    def weight(self) -> int:
        """Bytes held, as they are counted."""
        return self._weight

    def __iter__(self) -> Iterator[AgentDescriptor]:
        return (entry.descriptor for entry in self._entries.values())

    # ------------------------------------------------------------ reading

    def get(self, agent: AgentId) -> AgentDescriptor | None:
        """Return the newest descriptor of an agent, which may be a tombstone or expired, or None."""
        entry = self._entries.get(agent)
        return None if entry is None else entry.descriptor

    def compare(self, agent: AgentId, rank: int) -> int:
        """Compare what is held of an agent with a rank: 1 if it is newer, 0 if it is that, -1 if older or nothing."""
        entry = self._entries.get(agent)
        return -1 if entry is None else (entry.rank > rank) - (entry.rank < rank)

    def may_update(self, agent: AgentId, now_ms: int) -> bool:
        """Whether another descriptor of an agent is worth a look: each replaces its own only so often.

        `put` counts; asking does not, so that a forgery takes nothing from whom it pretends to be.
        """
        entry = self._entries.get(agent)
        return entry is None or _allowance(entry, now_ms) >= 1

    def find(
        self, query: DiscoveryQuery, now_ms: int, accept: Callable[[AgentDescriptor], bool] = lambda _one: True
    ) -> list[AgentDescriptor]:
        """Return the descriptors that answer a question, sorted by `DiscoveryQuery.order`, at most `query.limit`.

        Costs about as much as the rarest thing asked for is common, or less if the limit is reached before.

        Args:
            query: the question; its trust threshold is left to `accept`.
            now_ms: Unix time, milliseconds.
            accept: asked last, of what matches.
        """

        def answers(agent: AgentId) -> bool:
            descriptor = self._entries[agent].descriptor
            return now_ms < descriptor.expires_ms and query.matches(descriptor) and accept(descriptor)

        costs = [self._skills.get(need.name, []) for need in query.capabilities]
        topics = [self._topics.get(topic.namespace, []) for topic in query.topics]
        sizes = [*map(len, costs), *map(len, topics)]
        if not sizes:
            found: Iterable[AgentId] = heapq.nsmallest(query.limit, filter(answers, self._entries))
            return [self._entries[agent].descriptor for agent in found]
        if costs and len(costs[0]) <= 4 * min(sizes):
            return self._cheapest(query, costs[0], answers)
        # what is rare is looked at whole, and sorted
        rarest = sizes.index(min(sizes))
        if rarest < len(costs):
            agents = [agent for _, agent in costs[rarest]]
        else:
            agents = topics[rarest - len(costs)]
        matching = [self._entries[agent].descriptor for agent in dict.fromkeys(agents) if answers(agent)]
        return heapq.nsmallest(query.limit, matching, key=query.order)

    def _cheapest(
        self, query: DiscoveryQuery, postings: list[tuple[int, AgentId]], answers: Callable[[AgentId], bool]
    ) -> list[AgentDescriptor]:
        """The postings stand in the order of the answers already; so the first matching ones are the answer."""
        need, found, refused = query.capabilities[0], dict[AgentId, AgentDescriptor](), set[AgentId]()
        for cost, agent in postings:
            if agent in found or agent in refused:
                continue
            descriptor = self._entries[agent].descriptor
            if not any(each.cost == cost and need.met_by(each) for each in descriptor.capabilities):
                # another capability of that name, at a higher cost, may do
                continue
            if not answers(agent):
                refused.add(agent)
                continue
            found[agent] = descriptor
            if len(found) >= query.limit:
                break
        return list(found.values())

    # ------------------------------------------------------------ changing

    def put(self, descriptor: AgentDescriptor, source: str, now_ms: int) -> Taken:
        """Hold a descriptor that was checked, if it is newer than what is held of its agent.

        Args:
            descriptor: signed, and checked.
            source: who brought it.
            now_ms: Unix time, milliseconds.
        """
        if now_ms >= descriptor.expires_ms:
            return Taken.EXPIRED
        agent, rank = descriptor.agent_id, descriptor.rank
        held = self._entries.get(agent)
        updates = float(limits.DESCRIPTOR_UPDATES_BURST_MAX)
        if held is not None:
            if rank <= held.rank:
                return Taken.KNOWN if rank == held.rank else Taken.OLD
            # who brought it first answers for it: otherwise its room would be that of whoever is quickest
            source = held.source
            updates = _allowance(held, now_ms) - 1
        weight = len(descriptor.to_bytes()) + limits.DESCRIPTOR_OVERHEAD_BYTES
        if not self._make_room(agent, source, weight - (held.weight if held else 0), now_ms):
            # what was held is older than something that was heard, so nobody may be told it any more
            self.forget(agent)
            return Taken.NO_ROOM
        if held is not None:
            self._unlist(held.descriptor)
            self._weigh(held, -1)
        entry = self._entries[agent] = _Entry(descriptor, rank, weight, source, max(0.0, updates), now_ms)
        # an agent that is known already keeps its place in the order of its source
        self._sources.setdefault(source, {}).setdefault(agent)
        self._weigh(entry, 1)
        self._list(descriptor)
        heapq.heappush(self._expiries, (descriptor.expires_ms, agent))
        if len(self._expiries) > 2 * len(self._entries) + 64:
            self._expiries = [(each.descriptor.expires_ms, name) for name, each in self._entries.items()]
            heapq.heapify(self._expiries)
        return Taken.NEW if held is None else Taken.NEWER

    def forget(self, agent: AgentId) -> bool:
        """Forget an agent; say whether it was known."""
        entry = self._entries.pop(agent, None)
        if entry is None:
            return False
        self._unlist(entry.descriptor)
        self._weigh(entry, -1)
        brought = self._sources[entry.source]
        del brought[agent]
        if not brought:
            del self._sources[entry.source], self._source_weights[entry.source]
        return True

    def expire(self, now_ms: int) -> int:
        """Forget what expired; say how many."""
        count = 0
        while self._expiries and self._expiries[0][0] <= now_ms:
            _, agent = heapq.heappop(self._expiries)
            entry = self._entries.get(agent)
            if entry is not None and entry.descriptor.expires_ms <= now_ms:
                count += self.forget(agent)
        return count

    def source_gone(self, source: str, heir: str) -> None:
        """A source is gone: what it brought counts as brought by `heir`, which stands for all that are gone."""
        brought = self._sources.pop(source, None)
        if brought is None or source == heir:
            return
        weight = self._source_weights.pop(source)
        for agent in brought:
            self._entries[agent].source = heir
        self._sources.setdefault(heir, {}).update(brought)
        self._source_weights[heir] = self._source_weights.get(heir, 0) + weight

    def _make_room(self, agent: AgentId, source: str, more: int, now_ms: int) -> bool:
        """Forget others until `more` bytes of `agent` fit; False if they may not."""
        one_more = 0 if agent in self._entries else 1

        def fits() -> bool:
            return len(self._entries) + one_more <= self._entries_max and self._weight + more <= self._weight_max

        if fits():
            return True
        self.expire(now_ms)
        protected = self._protected(agent)
        while not fits():
            victim = self._victim(agent, source, more, protected)
            if victim is None:
                return False
            self.forget(victim)
        return True

    def _victim(self, agent: AgentId, source: str, more: int, protected: bool) -> AgentId | None:
        own_weight = self._source_weights.get(source, 0) + more
        for heaviest in sorted(self._sources, key=self._source_weights.__getitem__, reverse=True):
            if not protected and (heaviest == source or self._source_weights[heaviest] <= own_weight):
                # then the two would take turns for ever; and of one source the newcomer is who came last
                return None
            for each in reversed(self._sources[heaviest]):
                if each != agent and not self._protected(each):
                    return each
        return None

    def _weigh(self, entry: _Entry, sign: int) -> None:
        self._weight += sign * entry.weight
        self._source_weights[entry.source] = self._source_weights.get(entry.source, 0) + sign * entry.weight

    def _list(self, descriptor: AgentDescriptor) -> None:
        agent = descriptor.agent_id
        for capability in descriptor.capabilities:
            insort(self._skills.setdefault(capability.name, []), (capability.cost, agent))
        for topic in descriptor.topics:
            insort(self._topics.setdefault(topic.namespace, []), agent)
        bucket = bucket_of(agent)
        self._buckets[bucket][agent] = None
        self._digests[bucket] = None

    def _unlist(self, descriptor: AgentDescriptor) -> None:
        agent = descriptor.agent_id
        for capability in descriptor.capabilities:
            _remove(self._skills, capability.name, (capability.cost, agent))
        for topic in descriptor.topics:
            _remove(self._topics, topic.namespace, agent)
        bucket = bucket_of(agent)
        self._buckets[bucket].pop(agent, None)
        self._digests[bucket] = None

    # ------------------------------------------------------------ comparing with another index

    def digests(self) -> list[bytes]:
        """Return a hash of each bucket: two indexes with one hash hold the same descriptors in that bucket."""
        found = []
        for number, digest in enumerate(self._digests):
            if digest is None:
                # sorted and hashed whole: sums of hashes could be made to agree by who chooses what is summed
                ranks = sorted(_digest(self._entries[agent].rank) for agent in self._buckets[number])
                digest = self._digests[number] = tagged_hash(_BUCKET_TAG, *ranks)[:BUCKET_DIGEST_BYTES]
            found.append(digest)
        return found

    def bucket(self, number: int) -> list[AgentDescriptor]:
        """Return what is held in a bucket."""
        return [self._entries[agent].descriptor for agent in self._buckets[number]]


def bucket_of(agent: AgentId) -> int:
    """Return the bucket of an agent: the first byte of its id, so that nobody can fill one without trying keys."""
    return int(agent[:2], 16)


def _digest(rank: int) -> bytes:
    return (rank & (1 << 256) - 1).to_bytes(32, "big")


def _allowance(entry: _Entry, now_ms: int) -> float:
    """How many updates of an agent may come now."""
    back = max(0, now_ms - entry.updated_ms) / limits.DESCRIPTOR_UPDATE_MS
    return min(float(limits.DESCRIPTOR_UPDATES_BURST_MAX), entry.updates + back)


def _remove(postings: dict[str, list[Any]], name: str, item: Any) -> None:
    listed = postings[name]
    del listed[bisect_left(listed, item)]
    if not listed:
        del postings[name]
