"""Rules of the index of agents: a lookup finds what a scan does, the newest counts, a flood costs who brings it."""

from __future__ import annotations

import random

import pytest
from agent_kit import NOW, QUERIES, descriptor, gone, said, who
from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError
from converge_p2p.core.model.agent_index import AgentIndex, Taken, bucket_of
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.query import CapabilityNeed, DiscoveryQuery
from converge_p2p.core.model.topic import Topic

WEIGHT = len(descriptor(0, 1, "x").to_bytes()) + limits.DESCRIPTOR_OVERHEAD_BYTES


def newest(descriptors: list[AgentDescriptor]) -> dict[str, AgentDescriptor]:
    best: dict[str, AgentDescriptor] = {}
    for one in descriptors:
        if one.agent_id not in best or one.supersedes(best[one.agent_id]):
            best[one.agent_id] = one
    return best


def scan(query: DiscoveryQuery, held: list[AgentDescriptor], now_ms: int) -> list[AgentDescriptor]:
    """What the index must find, without an index."""
    matching = [one for one in held if now_ms < one.expires_ms and query.matches(one)]
    return sorted(matching, key=query.order)[: query.limit]


@pytest.mark.no_cover
@settings(max_examples=200, deadline=None)
@given(st.lists(said(), max_size=25), QUERIES, st.sampled_from([0, 2000, 6000]), st.randoms(use_true_random=False))
def test_a_lookup_finds_what_a_scan_finds_whatever_came_in_whatever_order(
    heard: list[AgentDescriptor], query: DiscoveryQuery, later_ms: int, order: random.Random
) -> None:
    index = AgentIndex()
    for one in heard:
        index.put(one, "x", NOW)
    best = newest(heard)
    assert {one.agent_id: one for one in index} == best
    assert index.find(query, NOW + later_ms) == scan(query, list(best.values()), NOW + later_ms)
    # another order, with repeats, gives the same index; so does forgetting and hearing again
    other = AgentIndex()
    again = [*heard, *heard]
    order.shuffle(again)
    for position, one in enumerate(again):
        other.put(one, "y", NOW)
        if order.random() < 0.2:
            other.forget(one.agent_id)
            for each in again[: position + 1]:
                other.put(each, "z", NOW)
    assert other.digests() == index.digests()
    assert other.weight == index.weight
    index.expire(NOW + later_ms)
    assert {one.agent_id for one in index} == {one.agent_id for one in best.values() if one.expires_ms > NOW + later_ms}
    assert index.find(query, NOW + later_ms) == scan(query, list(best.values()), NOW + later_ms)


@pytest.mark.no_cover
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(said(12), st.sampled_from("pqr")), max_size=60), st.integers(1, 5), st.integers(1, 6))
def test_whatever_comes_the_bounds_hold_and_the_books_are_right(
    heard: list[tuple[AgentDescriptor, str]], entries_max: int, weights: int
) -> None:
    index = AgentIndex(lambda agent: agent == who(0).id, entries_max=entries_max, weight_max=weights * WEIGHT)
    for number, (one, source) in enumerate(heard):
        taken = index.put(one, source, NOW)
        assert (index.get(one.agent_id) == one) is (taken in (*[t for t in Taken if t.is_news], Taken.KNOWN))
        assert len(index) <= entries_max
        assert index.weight <= weights * WEIGHT
        if number % 7 == 3:
            index.source_gone(source, "gone")
        held = list(index)
        assert index.weight == sum(len(each.to_bytes()) + limits.DESCRIPTOR_OVERHEAD_BYTES for each in held)
        assert sum(index._source_weights.values()) == index.weight
        assert sorted(agent for brought in index._sources.values() for agent in brought) == sorted(
            each.agent_id for each in held
        )
        assert sum(map(len, index._skills.values())) == sum(len(each.capabilities) for each in held)
    for one, _ in heard:
        index.forget(one.agent_id)
    assert (index.weight, index._sources, index._source_weights, index._skills, index._topics) == (0, {}, {}, {}, {})


def test_a_tombstone_keeps_away_what_it_replaced_until_all_of_that_has_expired() -> None:
    index = AgentIndex()
    old = descriptor(1, 1, "x", ttl_ms=limits.DESCRIPTOR_TTL_MS_MAX)
    assert index.put(old, "p", NOW) is Taken.NEW
    assert index.put(gone(1, 2), "p", NOW) is Taken.NEWER
    assert index.find(DiscoveryQuery.of(["x"]), NOW) == []
    assert index.put(old, "p", NOW) is Taken.OLD
    assert index.put(gone(1, 2), "p", NOW) is Taken.KNOWN
    after = NOW + limits.DESCRIPTOR_TTL_MS_MAX
    assert index.expire(after) == 1
    assert index.put(old, "p", after) is Taken.EXPIRED
    assert len(index) == 0


def test_a_version_a_cost_and_attributes_are_asked_for_and_the_cheapest_comes_first() -> None:
    index = AgentIndex()
    for number, skill in enumerate([
        Capability("t", (1, 0), cost=1), Capability("t", (1, 4), cost=5), Capability("t", (2, 0), cost=2),
        Capability("t", (2, 7), cost=9, attributes={"lang": "en"}), Capability("u", cost=0),
    ]):  # fmt: skip
        index.put(descriptor(number, 1, skill), "p", NOW)

    def find(**need: object) -> list[int]:
        found = index.find(DiscoveryQuery((CapabilityNeed("t", **need),)), NOW)  # type: ignore[arg-type]
        return [next(n for n in range(5) if who(n).id == one.agent_id) for one in found]

    assert find() == [0, 2, 1, 3]
    assert find(version=(1, 1)) == [1]
    assert find(version=(1, 0)) == [0, 1]
    assert find(version=(1, 1), below=(2, 1)) == [2, 1]
    assert find(below=(2, 0)) == [0, 1]
    assert find(cost_max=4) == [0, 2]
    assert find(attributes={"lang": "en"}) == [3]
    assert [one.agent_id for one in index.find(DiscoveryQuery.of(["t"], limit=2), NOW)] == [who(0).id, who(2).id]


def test_trust_is_asked_before_the_limit_counts() -> None:
    index = AgentIndex()
    for number in range(20):
        index.put(descriptor(number, 1, "t", topics=[Topic("rare")] if number > 17 else []), "p", NOW)
    trusted = {who(3).id, who(18).id}
    accept = lambda one: one.agent_id in trusted  # noqa: E731
    assert {one.agent_id for one in index.find(DiscoveryQuery.of(["t"], limit=2), NOW, accept)} == trusted
    assert {one.agent_id for one in index.find(DiscoveryQuery.of([], limit=2), NOW, accept)} == trusted
    assert [one.agent_id for one in index.find(DiscoveryQuery.of(["t"], ["rare"]), NOW, accept)] == [who(18).id]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [({"limit": 0}, LocalError), ({"limit": limits.QUERY_RESULTS_MAX + 1}, LimitExceeded),
     ({"trust_threshold": 1.1}, LocalError), ({"trust_threshold": float("nan")}, LocalError),
     ({"capabilities": ("x",)}, LocalError), ({"topics": ("x",)}, LocalError),
     ({"topics": (Topic("x"),) * 17}, LimitExceeded)],
)  # fmt: skip
def test_a_question_of_another_form_is_refused(wrong: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        DiscoveryQuery(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"name": "a b"}, {"version": (1,)}, {"version": (1, -1)}, {"below": (0, 0)},
              {"version": (2, 0), "below": (2, 0)}, {"cost_max": -1}],
)  # fmt: skip
def test_a_need_of_another_form_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(LocalError):
        CapabilityNeed(**{"name": "x", **wrong})  # type: ignore[arg-type]


# ---------------------------------------------------------------- floods


def full(entries_max: int, *protected: int) -> AgentIndex:
    ids = {who(number).id for number in protected}
    return AgentIndex(lambda agent: agent in ids, entries_max=entries_max)


def test_one_source_that_floods_pushes_out_nobody_but_its_own_youngest() -> None:
    index = full(10)
    for number in range(5):
        index.put(descriptor(number, 1, "x"), "honest", NOW)
    taken = [index.put(descriptor(number, 1, "x"), "flood", NOW) for number in range(100, 200)]
    assert taken.count(Taken.NEW) == 5
    assert taken.count(Taken.NO_ROOM) == 95
    assert all(index.get(who(number).id) for number in range(5))


def test_a_newcomer_of_a_small_source_takes_the_place_of_the_youngest_of_the_largest() -> None:
    index = full(10)
    for number in range(10):
        index.put(descriptor(number, 1, "x"), "large", NOW)
    # a renewal keeps the place in the order
    index.put(descriptor(0, 2, "x"), "large", NOW)
    for number in range(20, 40):
        index.put(descriptor(number, 1, "x"), "small", NOW)
    left = {number for number in range(40) if index.get(who(number).id)}
    assert left == {0, 1, 2, 3, 4, 20, 21, 22, 23, 24}, "half for each, and of each who was there first"


def test_a_source_cannot_shed_its_load_by_leaving() -> None:
    index = full(10)
    for number in range(10):
        index.put(descriptor(number, 1, "x"), f"name-{number}", NOW)
        index.source_gone(f"name-{number}", "gone")
    index.put(descriptor(50, 1, "x"), "fresh", NOW)
    assert index.get(who(50).id)
    assert index.get(who(9).id) is None


def test_who_is_protected_stays_and_finds_room_in_any_flood() -> None:
    index = full(4, 1, 2)
    index.put(descriptor(1, 1, "x"), "flood", NOW)
    for number in range(10, 20):
        index.put(descriptor(number, 1, "x"), "flood", NOW)
    assert index.put(descriptor(2, 1, "x"), "flood", NOW) is Taken.NEW
    assert index.get(who(1).id)
    for number in range(20, 30):
        index.put(descriptor(number, 1, "x"), f"name-{number}", NOW)
    assert index.get(who(1).id)
    assert index.get(who(2).id)


def test_what_grew_and_found_no_room_is_forgotten_rather_than_stale() -> None:
    index = AgentIndex(weight_max=2 * WEIGHT + 10)
    index.put(descriptor(1, 1, "x"), "p", NOW)
    index.put(descriptor(2, 1, "x"), "p", NOW)
    larger = descriptor(2, 2, "x", addresses=[f"/ip4/{n}" for n in range(20)])
    assert index.put(larger, "p", NOW) is Taken.NO_ROOM
    assert index.get(who(2).id) is None
    assert index.get(who(1).id)


def test_an_agent_that_speaks_all_the_time_is_heard_only_so_often() -> None:
    index = AgentIndex()
    agent = who(1).id
    heard = 0
    for sequence in range(1, 100):
        if index.may_update(agent, NOW):
            heard += index.put(descriptor(1, sequence, "x"), "p", NOW).is_news
    assert heard == limits.DESCRIPTOR_UPDATES_BURST_MAX + 1
    assert index.may_update(agent, NOW + limits.DESCRIPTOR_UPDATE_MS)
    assert index.may_update(who(2).id, NOW)


def test_expiry_times_of_what_was_replaced_are_not_kept() -> None:
    index = AgentIndex()
    for sequence in range(1000):
        index.put(descriptor(1, sequence), "p", NOW)
    assert len(index._expiries) < 100


def test_an_agent_has_its_bucket_by_the_first_byte_of_its_id() -> None:
    index = AgentIndex()
    index.put(descriptor(1, 1, "x"), "p", NOW)
    (changed,) = [n for n, (a, b) in enumerate(zip(index.digests(), AgentIndex().digests(), strict=True)) if a != b]
    assert changed == bucket_of(who(1).id) == bytes.fromhex(who(1).id)[0]
    assert index.bucket(changed) == list(index)
