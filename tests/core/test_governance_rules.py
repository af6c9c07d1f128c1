"""Formulas over electors: who is enough, who must meet, and which pools are refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Pool, feed, rejected

from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.admission import admits
from converge_p2p.core.governance.check import least_honest_overlap
from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.governance.models import Ruleset, check_rules, compile_rules, smallest_quorum
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, PoolPolicy, PoolSpec
from converge_p2p.core.types import PublicKey


def keys(count: int, start: int = 0) -> tuple[PublicKey, ...]:
    return tuple(PublicKey(bytes([start + number]) * 32) for number in range(count))


def spec(electors: int, **terms: object) -> PoolSpec:
    terms.setdefault("governance", GovernanceKind.DEMOCRATIC)
    return PoolSpec("p", b"n" * 16, electors=keys(electors), **terms)  # type: ignore[arg-type]


thresholds = st.sets(st.integers(0, 5), min_size=1, max_size=5).flatmap(
    lambda who: st.integers(1, len(who)).map(
        lambda need: Threshold.flat(need, frozenset(PublicKey(bytes([number]) * 32) for number in who))
    )
)


def deciding(threshold: Threshold) -> list[set[PublicKey]]:
    return [set(group) for group in itertools.combinations(sorted(threshold.electors), threshold.need)]


@given(thresholds, thresholds)
@settings(max_examples=150, deadline=None)
def test_the_least_overlap_is_that_of_the_worst_two_sets(one: Threshold, other: Threshold) -> None:
    worst = min(len(left & right) for left in deciding(one) for right in deciding(other))
    assert least_honest_overlap(one, other, trusted=frozenset()) == worst


@given(thresholds, st.sets(st.sampled_from(keys(8))))
@settings(max_examples=150, deadline=None)
def test_a_threshold_counts_electors_and_nobody_else(threshold: Threshold, voters: set[PublicKey]) -> None:
    assert threshold.satisfied_by(voters) == (len(voters & threshold.electors) >= threshold.need)
    assert threshold.reachable(voters) == (len(threshold.electors - voters) >= threshold.need)


@pytest.mark.parametrize("electors", range(1, 32))
def test_the_smallest_quorum_is_safe_and_one_less_is_not(electors: int) -> None:
    rules = compile_rules(spec(electors))
    assert rules.accept.need == smallest_quorum(electors, 0) == electors // 2 + 1
    if electors > 1:
        with pytest.raises(CodecError, match="unsafe"):
            compile_rules(spec(electors, quorum=rules.accept.need - 1))


def test_a_larger_quorum_is_allowed_and_one_beyond_the_electors_is_not() -> None:
    assert compile_rules(spec(3, quorum=3)).grant.need == 3
    with pytest.raises(CodecError):
        spec(3, quorum=4).check()


def test_whoever_grants_must_meet_whoever_accepts() -> None:
    alone, quorum = Threshold.flat(1, keys(1)), Threshold.flat(2, keys(3))
    check_rules(Ruleset(quorum, quorum, quorum, quorum))
    with pytest.raises(CodecError, match="grant"):
        check_rules(Ruleset(alone, quorum, quorum, quorum))
    with pytest.raises(CodecError, match="endorse"):
        check_rules(Ruleset(quorum, Threshold.flat(1, keys(3)), quorum, quorum))
    with pytest.raises(CodecError, match="share only 1"):
        check_rules(Ruleset(quorum, quorum, quorum, quorum, 1))


def test_the_endorse_phase_is_left_out_only_where_it_adds_nothing_or_the_pool_says_so() -> None:
    assert compile_rules(spec(3)).endorse is not None
    assert compile_rules(spec(1)).endorse is None
    assert compile_rules(spec(3, policy=PoolPolicy(trusted_workers=True))).endorse is None
    assert compile_rules(spec(1, governance=GovernanceKind.DICTATORIAL)).endorse is None


@pytest.mark.parametrize(
    "bad",
    [
        spec(2, governance=GovernanceKind.DICTATORIAL),
        spec(1, governance=GovernanceKind.DICTATORIAL, quorum=2),
        spec(4, faults=1, quorum=2),
        spec(4, quorum=2),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(bad: PoolSpec) -> None:
    with pytest.raises(CodecError):
        compile_rules(bad)


def test_an_unsafe_genesis_is_refused_though_its_id_is_right() -> None:
    pool = Pool(electors=4, quorum=2)
    replica = pool.replica()
    assert rejected(feed(replica, [pool.genesis])) == ["bad_genesis"]
    assert not replica.ready


def test_an_open_pool_admits_everybody_and_an_empty_list_nobody() -> None:
    stranger = keys(1, 50)[0]
    assert admits(spec(3), stranger)
    assert not admits(spec(3, admission=AdmissionKind.WHITELIST), stranger)
    assert admits(spec(3, admission=AdmissionKind.WHITELIST, whitelist=(stranger,)), stranger)


def test_the_first_operation_of_a_stranger_is_a_join_that_is_admitted() -> None:
    pool = Pool(admission=AdmissionKind.WHITELIST, whitelist=(3,))
    replica = pool.replica()
    assert rejected(feed(replica, [pool.genesis, *pool.joins])) == ["not_member"]
    assert replica.view.members.has(pool.workers[0].key)
    assert not replica.view.members.has(pool.workers[1].key)
