"""The simulator's own test: with a rule of the protocol switched off, random seeds find what the rule prevents.

Each search looks at no more than 2,000 seeds. `start` lies near the first seed that fails, so that the test is quick; a
change of the simulator moves it, and then the search goes on. What random seeds seldom meet is in `test_schedules`,
where every rule has a schedule that breaks without it.
"""

from __future__ import annotations

import pytest

from converge_p2p.testing.scenario import Options
from converge_p2p.testing.sim import first_failure

pytestmark = pytest.mark.simulation

SEEDS_MAX = 2000
SETTLED_TWICE = 3
CERTIFIED_TWICE = 2
EPOCH_TWICE = 4
CUT_TOO_LATE = 6


@pytest.mark.parametrize(
    ("rule", "profile", "start", "invariants"),
    [
        ("lock_rule", "betrayal", 8, {SETTLED_TWICE}),
        ("fence_accepts", "betrayal", 8, {SETTLED_TWICE}),
        ("endorse_phase", "betrayal", 32, {SETTLED_TWICE}),
        ("check_cuts", "purge", 78, {CUT_TOO_LATE}),
        ("count_members", "swarm", 0, {CERTIFIED_TWICE, SETTLED_TWICE, EPOCH_TWICE, 1, 9}),
    ],
)
def test_without_the_rule_the_simulator_finds_a_violation(
    rule: str, profile: str, start: int, invariants: set[int]
) -> None:
    options = Options(profile=profile, ablate=(rule,), perturb=False)
    # one process: it stops at the first seed that fails, and the tests are shared out already
    failure = first_failure(range(start, start + SEEDS_MAX), options)
    assert failure is not None, f"{SEEDS_MAX} seeds without {rule} and nothing found"
    assert failure.invariant in invariants, failure.violation
    # with the rule in force the same seed is clean, so it is the rule that was missing
    intact = Options(profile=profile, perturb=False, checkpoints=0)
    assert first_failure([failure.seed], intact) is None
