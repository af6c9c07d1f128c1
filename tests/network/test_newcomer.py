"""The first ten minutes of somebody who has never seen the project, on two machines, from the installation on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "newcomer"
INSTALL_S = 1200
"""A fresh environment takes a minute, of which most is pip; many where others use the machine."""
STEPS = (
    "pool create",
    "mesh invite",
    "join",
    "run",
    "task submit",
    "task watch",
    "task explain",
    "task receipt",
    "shutdown",
    "receipt verify",
)


@pytest.mark.network
@pytest.mark.namespaces
def test_a_newcomer_gets_from_nothing_to_a_verified_receipt(tmp_path: Path) -> None:
    run = subprocess.run(
        [SCRIPT, tmp_path / "place"],
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
        start_new_session=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    typed = re.findall(r"^ *\d+ (?:ann|bob|   )\$ (.*)$", run.stderr, re.MULTILINE)
    assert len(typed) <= 25
    assert run.stdout.splitlines()[-1] == f"newcomer: done, with {len(typed)} commands"
    places = [next(at for at, line in enumerate(typed) if step in line) for step in STEPS]
    assert len(set(places)) == len(places), "a step was left out"
    assert not [line for line in typed if re.search(r"\b(sed|vi|vim|nano|tee)\b", line)]
    # another program, which shares no code with the node, comes to the same
    assert run.stdout.count("outcome      completed") == 1
    assert re.search(r"^holds +yes$", run.stdout, re.MULTILINE)
    task = re.search(r"^task +([0-9a-f]{64})$", run.stdout, re.MULTILINE)
    assert task is not None
    assert run.stdout.count(task[1]) >= 4, "explanation, receipt and both verifiers speak of one task"
