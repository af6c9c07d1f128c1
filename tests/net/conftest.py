"""The tests of the network room run over both transports: what holds for one has to hold for the other."""

from __future__ import annotations

import net_rig
import pytest

from converge_p2p.net import Transport


@pytest.fixture(params=list(Transport))
def transport(request, monkeypatch):
    """Make every network of a test that is not told otherwise use this transport."""
    monkeypatch.setattr(net_rig, "default_transport", request.param)
    return request.param
