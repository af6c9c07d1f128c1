"""The simulator's own test: with a rule of the protocol switched off, random seeds find what the rule prevents.

Each search looks at no more than 2,000 seeds. `start` lies near the first seed that fails, so that the test is quick; a
change of the simulator moves it, and then the search goes on. The shortest schedule that breaks without each rule is in
`test_schedules`.
"""

from __future__ import annotations

import pytest

from converge_p2p.testing.scenario import ABLATIONS, WALK, Options
from converge_p2p.testing.sim import first_failure

pytestmark = pytest.mark.simulation

SEEDS_MAX = 2000
SETTLED_TWICE = 3
CERTIFIED_TWICE = 2
EPOCH_TWICE = 4
CUT_TOO_LATE = 6
UNFOUNDED = 9

CASES: list[tuple[str, str, int, set[int]]] = [
    ("lock_rule", "betrayal", 8, {SETTLED_TWICE}),
    ("fence_accepts", "betrayal", 8, {SETTLED_TWICE}),
    ("endorse_phase", "betrayal", 32, {SETTLED_TWICE}),
    ("check_cuts", "purge", 78, {CUT_TOO_LATE}),
    ("count_members", "swarm", 0, {CERTIFIED_TWICE, SETTLED_TWICE, EPOCH_TWICE, 1, UNFOUNDED}),
    ("check_named_grants", WALK, 40, {SETTLED_TWICE, UNFOUNDED}),
    ("claims_need_promises", WALK, 40, {SETTLED_TWICE, UNFOUNDED}),
    ("check_value_against_lock", WALK, 130, {SETTLED_TWICE, EPOCH_TWICE}),
    ("seal_at_promise", WALK, 308, {SETTLED_TWICE}),
    ("seal_stops_votes", WALK, 788, {SETTLED_TWICE}),
    ("initial_locks", WALK, 776, {SETTLED_TWICE}),
    ("epoch_rounds", WALK, 36, {EPOCH_TWICE}),
    ("epoch_locks", WALK, 75, {EPOCH_TWICE}),
    ("epoch_endorse", WALK, 1095, {EPOCH_TWICE}),
]
NOT_FOUND = {"lock_by_epoch"}
"""Needs three values that nobody knows to be settled, in two epochs: only the schedule finds that so far."""


@pytest.mark.parametrize(("rule", "profile", "start", "invariants"), CASES, ids=[case[0] for case in CASES])
def test_without_the_rule_the_simulator_finds_a_violation(
    rule: str, profile: str, start: int, invariants: set[int]
) -> None:
    of_rule = {"mode": WALK} if profile == WALK else {"profile": profile}
    options = Options(**of_rule, ablate=(rule,), perturb=False)
    # one process: it stops at the first seed that fails, and the tests are shared out already
    failure = first_failure(range(start, start + SEEDS_MAX), options)
    assert failure is not None, f"{SEEDS_MAX} seeds without {rule} and nothing found"
    assert failure.invariant in invariants, failure.violation
    # with the rule in force the same seed is clean, so it is the rule that was missing
    intact = Options(**of_rule, perturb=False, checkpoints=0)
    assert first_failure([failure.seed], intact) is None


def test_every_rule_is_searched_for() -> None:
    assert sorted([*NOT_FOUND, *(case[0] for case in CASES)]) == sorted(ABLATIONS)
