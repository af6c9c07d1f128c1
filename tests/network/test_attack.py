"""The attack script, in a process of its own: attackers do not tidy up behind them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.network

SCRIPT = Path(__file__).with_name("attack.py")


def test_real_nodes_hold_against_every_attack() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["broken"] == []
    assert done.returncode == 0
    assert len(report["attacks"]) >= 40
    assert all(outcome["sent"] for outcome in report["attacks"]), "an attack that sends nothing shows nothing"
    # the attacks came through to what has to stop them
    counters = report["counters"]
    stopped = ("peers_banned", "handshakes_given_up", "stream_window_overrun", "gossip_streams_refused", "rejected")
    reach = ("relay_circuits_opened", "relay_requests_refused", "relay_requests_broken", "reach_requests_refused")
    for name in (*stopped, *reach):
        assert counters.get(name), name
    assert not counters.get("handler_errors")
