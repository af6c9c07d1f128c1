"""Kill -9 of processes that do tasks with an effect outside; `killing.py` does it with 500."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import kill_many

pytestmark = pytest.mark.network

TASKS = 12


async def test_tasks_whose_workers_are_killed_settle_once_and_have_one_effect_each(tmp_path: Path) -> None:
    toll = await kill_many(TASKS, tmp_path, seed=7, timeout_s=240)
    assert (toll.settled, toll.effects) == (TASKS, TASKS)
    assert (toll.twice, toll.effects_twice) == (0, 0)
    assert toll.kills > 0
