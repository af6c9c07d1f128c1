"""A node's own trust: from 0 to 1, contextual, moved by outcomes, and bounded."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.types import AgentId
from converge_p2p.runtime.trust import TrustModel

ANN, BOB = AgentId("a" * 64), AgentId("b" * 64)
NO_SCORES = (math.nan, math.inf, -math.inf, -0.01, 1.01, True, "0.5", None, 10**400)


def test_a_stranger_has_the_default_and_a_context_that_of_the_whole() -> None:
    trust = TrustModel()
    assert trust.score(ANN) == trust.score(ANN, "translate") == 0.5
    trust.set(ANN, 0.9)
    assert trust.score(ANN, "translate") == 0.9
    trust.set(ANN, 0.2, "translate")
    assert (trust.score(ANN), trust.score(ANN, "translate"), trust.score(BOB)) == (0.9, 0.2, 0.5)
    trust.forget(ANN)
    assert trust.score(ANN, "translate") == 0.5


def test_outcomes_move_the_context_and_the_whole_and_nothing_else() -> None:
    trust = TrustModel(rate=0.5)
    assert trust.record(ANN, True, "translate") == 0.75
    assert trust.score(ANN) == 0.75
    assert trust.record(ANN, False, "index", weight=0.5) == pytest.approx(0.5625)
    assert trust.score(ANN, "translate") == 0.75
    assert trust.record(ANN, True) == pytest.approx(0.78125)
    assert trust.score(BOB) == 0.5


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=50), st.floats(0, 1), st.floats(0.001, 1))
def test_a_score_never_leaves_its_range(outcomes: list[tuple[bool, float]], default: float, rate: float) -> None:
    trust = TrustModel(default=default, rate=rate)
    for success, weight in outcomes:
        before = trust.score(ANN)
        after = trust.record(ANN, success, weight=weight)
        assert 0 <= after <= 1
        assert after >= before if success else after <= before


@pytest.mark.parametrize("number", NO_SCORES)
def test_what_is_no_number_from_0_to_1_is_refused_everywhere(number: Any) -> None:
    trust = TrustModel()
    for attempt in (
        lambda: trust.set(ANN, number),
        lambda: trust.meets(ANN, number),
        lambda: trust.record(ANN, True, weight=number),
        lambda: trust.trusted([ANN], number),
        lambda: trust.load({ANN: {"": number}}),
        lambda: TrustModel(default=number),
        lambda: TrustModel(rate=number),
    ):
        with pytest.raises(LocalError):
            attempt()
    assert trust.score(ANN) == 0.5
    with pytest.raises(LocalError):
        TrustModel(rate=0)


def test_a_threshold_is_met_at_its_value() -> None:
    trust = TrustModel()
    trust.set(ANN, 0.7)
    assert trust.meets(ANN, 0.7)
    assert not trust.meets(ANN, 0.71)
    assert trust.trusted([BOB, ANN], 0.6) == [ANN]


def test_what_is_kept_is_read_back_and_a_wrong_part_changes_nothing() -> None:
    trust, again = TrustModel(), TrustModel()
    trust.record(ANN, True, "translate")
    trust.set(BOB, 0.1)
    again.load(trust.to_dict())
    assert again.to_dict() == trust.to_dict()
    for wrong in ({ANN: 0.5}, {1: {}}, {ANN: {1: 0.5}}, {ANN: {"x" * (limits.TEXT_BYTES_MAX + 1): 0.5}}):
        with pytest.raises(LocalError):
            again.load({BOB: {"": 1.0}, **wrong})  # type: ignore[dict-item]
        assert again.score(BOB) == 0.1


def test_what_was_told_of_least_lately_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRUSTED_AGENTS_MAX", 2)
    trust = TrustModel()
    trust.set(ANN, 0.9)
    trust.set(BOB, 0.1)
    trust.set(ANN, 0.8)
    trust.set(AgentId("c" * 64), 0.3)
    assert (trust.score(ANN), trust.score(BOB)) == (0.8, 0.5)
