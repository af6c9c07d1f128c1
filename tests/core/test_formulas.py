"""Nested formulas: what satisfies them, their one encoding, and the exact check that two of them must meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.check import TooIrregular, least_honest_overlap, must_share_honest
from converge_p2p.core.governance.formula import (
    Part,
    Threshold,
    decode_formula,
    encode_formula,
    formula_from_plain,
    formula_of,
    formula_to_plain,
)
from converge_p2p.core.types import PublicKey


def key(number: int) -> PublicKey:
    return PublicKey(bytes([number]) * 32)


NOBODY: frozenset[PublicKey] = frozenset()
EVERYBODY = tuple(key(number) for number in range(6))


def made(parts: Iterable[tuple[int, Part]], share: int) -> Threshold:
    listed = tuple(parts)
    total = sum(weight for weight, _ in listed)
    return Threshold(1 + share % total, listed)


def formulas(electors: int, depth: int = 3) -> st.SearchStrategy[Threshold]:
    leaf: st.SearchStrategy[Part] = st.sampled_from([key(number) for number in range(electors)])
    part = leaf if depth == 1 else leaf | formulas(electors, depth - 1)
    parts = st.lists(st.tuples(st.integers(1, 3), part), min_size=1, max_size=4)
    return st.builds(made, parts, st.integers(0, 20))


def meets(formula: Threshold, voters: frozenset[PublicKey]) -> bool:
    """What a formula means, without any shortcut."""
    return formula.need <= sum(
        weight
        for weight, part in formula.parts
        if (meets(part, voters) if isinstance(part, Threshold) else part in voters)
    )


def subsets(electors: frozenset[PublicKey]) -> list[frozenset[PublicKey]]:
    listed = sorted(electors)
    return [frozenset(some) for size in range(len(listed) + 1) for some in itertools.combinations(listed, size)]


def smallest(formula: Threshold) -> list[frozenset[PublicKey]]:
    """The satisfying sets of which nobody can be missed."""
    enough = [some for some in subsets(formula.electors) if meets(formula, some)]
    return [some for some in enough if not any(meets(formula, some - {one}) for one in some)]


@given(formulas(6), st.lists(st.sampled_from([*EVERYBODY, key(99)]), max_size=8))
@settings(max_examples=150, deadline=None)
def test_a_formula_is_met_by_those_parts_that_weigh_enough(formula: Threshold, voters: list[PublicKey]) -> None:
    present = frozenset(voters)
    assert formula.satisfied_by(voters) == formula.satisfied_by(present) == meets(formula, present)
    assert formula.satisfied_by(dict.fromkeys(voters)) == formula.satisfied_by(dict.fromkeys(voters).keys())
    assert formula.reachable(voters) == meets(formula, formula.electors - present)
    assert formula.satisfied_by(formula.electors)


@given(formulas(6), st.permutations(EVERYBODY))
@settings(max_examples=100, deadline=None)
def test_nobody_can_be_missed_in_a_minimal_quorum(formula: Threshold, order: list[PublicKey]) -> None:
    quorum = formula.minimal_quorum(order)
    assert quorum is not None
    assert meets(formula, frozenset(quorum))
    assert not any(meets(formula, frozenset(quorum) - {one}) for one in quorum)
    assert list(quorum) == sorted(quorum, key=order.index)
    assert formula.minimal_quorum([one for one in order if one not in quorum[:1]] if len(quorum) == 6 else []) is None


@pytest.mark.no_cover
@given(formulas(7), formulas(7), st.sets(st.sampled_from([key(number) for number in range(7)]), max_size=2))
@settings(max_examples=100, deadline=None)
def test_the_overlap_is_that_of_the_worst_two_sets(one: Threshold, other: Threshold, names: set[PublicKey]) -> None:
    trusted = frozenset(names)
    shared = [left & right for left in smallest(one) for right in smallest(other)]
    worst = min((len(both) for both in shared if not both & trusted), default=None)
    assert least_honest_overlap(one, other, trusted=trusted) == worst
    for faults in range(3):
        safe = all(len(both) > faults or both & trusted for both in shared)
        assert must_share_honest(one, other, faults=faults, trusted=trusted) == safe


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_weights_that_suffice_are_never_an_excuse(weights: list[int], one: int, other: int) -> None:
    parts: list[tuple[int, Part]] = [(weight, key(number)) for number, weight in enumerate(weights)]
    first, second = made(parts, one), made(parts, other)
    worst = min(len(left & right) for left in smallest(first) for right in smallest(second))
    for faults in range(3):
        assert must_share_honest(first, second, faults=faults, trusted=NOBODY) == (worst > faults)


@pytest.mark.parametrize("faults", [0, 1, 5, 10])
def test_the_largest_pools_are_checked(faults: int) -> None:
    electors = [key(number) for number in range(limits.ELECTORS_MAX)]
    need = (len(electors) + faults) // 2 + 1
    quorum = Threshold.flat(need, electors)
    assert must_share_honest(quorum, quorum, faults=faults, trusted=NOBODY)
    assert least_honest_overlap(quorum, quorum, trusted=NOBODY) == 2 * need - len(electors)
    fewer = Threshold.flat(need - 1, electors)
    assert not must_share_honest(fewer, fewer, faults=faults, trusted=NOBODY)
    groups = [Threshold.flat(3, electors[start : start + 4]) for start in range(0, 28, 4)]
    nested = Threshold.flat(1, electors[28:])
    most = Threshold.all_of(Threshold(4, tuple((1, group) for group in groups)), nested)
    assert least_honest_overlap(most, most, trusted=NOBODY) == 2
    assert least_honest_overlap(most, most, trusted=frozenset(electors[:28])) is None


def test_weights_that_all_differ_are_checked_where_the_sum_proves_it() -> None:
    weights = [3**number % 999_983 + 1 for number in range(limits.ELECTORS_MAX)]
    heaviest = sum(sorted(weights, reverse=True)[:3])
    formula = Threshold((sum(weights) + heaviest) // 2 + 1, tuple((w, key(n)) for n, w in enumerate(weights)))
    assert must_share_honest(formula, formula, faults=3, trusted=NOBODY)


def test_what_is_too_irregular_to_be_checked_is_refused_soon() -> None:
    parts: list[tuple[int, Part]] = [
        (
            1,
            Threshold(
                2 + number % 3, tuple((1 + (number * step) % 5, key((number * 7 + step * 3) % 31)) for step in range(6))
            ),
        )
        for number in range(36)
    ]
    formula = Threshold(20, tuple(parts))
    with pytest.raises(TooIrregular, match="give more electors the same"):
        must_share_honest(formula, formula, faults=1, trusted=NOBODY)


@given(formulas(6))
@settings(max_examples=100, deadline=None)
def test_a_formula_survives_its_bytes(formula: Threshold) -> None:
    assert decode_formula(encode_formula(formula)) == formula


def deep(levels: int) -> Threshold:
    formula = Threshold.flat(1, [key(0)])
    for _ in range(levels - 1):
        formula = Threshold.all_of(formula)
    return formula


def test_size_and_depth_of_a_formula_are_bounded() -> None:
    assert decode_formula(encode_formula(deep(limits.FORMULA_DEPTH_MAX))).depth == limits.FORMULA_DEPTH_MAX
    with pytest.raises(CodecError, match="levels"):
        deep(limits.FORMULA_DEPTH_MAX + 1)
    wide = [1, *([1, key(number)] for number in range(200))]
    with pytest.raises(CodecError, match="parts"):
        formula_from_plain([1, [1, wide], [1, wide]])
    largest = [1, *([1, key(number)] for number in range(limits.FORMULA_PARTS_MAX))]
    assert formula_from_plain(largest).size == limits.FORMULA_PARTS_MAX
    with pytest.raises(CodecError):
        formula_from_plain([*largest, [1, key(0)]])
    plain: object = [1, [1, key(0)]]
    for _ in range(limits.FORMULA_DEPTH_MAX):
        plain = [1, [1, plain]]
    with pytest.raises(CodecError, match="levels"):
        formula_from_plain(plain)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        [1],
        [True, [1, key(0)]],
        [0, [1, key(0)]],
        [2, [1, key(0)]],
        [1, [0, key(0)]],
        [1, [True, key(0)]],
        [1, [limits.FORMULA_WEIGHT_MAX + 1, key(0)]],
        [1, [1, b"short"]],
        [1, [1, "text"]],
        [1, [1, key(0), 1]],
        [1, [1]],
        [1, key(0)],
        [1, [1, [1]]],
        {1: 2},
    ],
)
def test_what_is_no_formula_is_refused(plain: object) -> None:
    with pytest.raises(CodecError):
        formula_from_plain(plain)
    with pytest.raises(CodecError):
        decode_formula(encode(plain))


def test_bytes_beyond_the_bound_are_not_read() -> None:
    with pytest.raises(CodecError, match="bytes"):
        decode_formula(bytes(limits.FORMULA_BYTES_MAX + 1))


def test_plain_form_is_the_documented_one() -> None:
    inner = Threshold.flat(1, [key(1), key(2)])
    assert formula_to_plain(Threshold(2, ((1, key(0)), (3, inner)))) == [
        2,
        [1, key(0)],
        [3, [1, [1, key(1)], [1, key(2)]]],
    ]


@given(formulas(5))
@settings(max_examples=60, deadline=None)
def test_a_predicate_and_its_formula_are_true_for_the_same_electors(formula: Threshold) -> None:
    found = formula_of(lambda some: meets(formula, some), formula.electors)
    assert all(found.satisfied_by(some) == meets(formula, some) for some in subsets(formula.electors))


def test_a_predicate_that_is_no_formula_is_refused() -> None:
    with pytest.raises(CodecError, match="false for more"):
        formula_of(lambda some: len(some) == 2, EVERYBODY[:3])
    for never in (lambda some: False, lambda some: True):
        with pytest.raises(CodecError, match="nobody"):
            formula_of(never, EVERYBODY[:3])
    with pytest.raises(CodecError, match="at most 8 electors"):
        formula_of(lambda some: len(some) > 5, [key(number) for number in range(9)])
    with pytest.raises(CodecError, match="parts"):
        formula_of(lambda some: len(some) >= 4, [key(number) for number in range(8)])


def test_whatever_a_predicate_says_of_eight_electors_can_be_checked() -> None:
    eight = [key(number) for number in range(8)]
    odd = formula_of(lambda some: sum(one[0] ** 2 % 11 for one in some) > 18, eight)
    assert least_honest_overlap(odd, odd, trusted=NOBODY) is not None
