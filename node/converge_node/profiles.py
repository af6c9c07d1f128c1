"""Defaults for kinds of nodes.

Knows: which settings they change. Must not know: how settings are read. The help of `run` imports it, so it imports
nothing.
Source: docs/operations.md, profiles.
"""

from __future__ import annotations

from typing import Any, Final

PROFILES: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    # a machine with a public address that others find the network through
    "server": {
        "network.listen": ("/ip4/0.0.0.0/tcp/4001",),
        "network.relay_service": True,
        "network.mdns": False,
        "log.format": "json",
    },
    # somebody's own machine, at home or at work: nodes nearby are found, and others through a bootstrap peer
    "desktop": {"network.mdns": True},
    # machines on one link, without any bootstrap peer
    "lan": {"network.mdns": True, "network.relay_client": "off"},
    # whoever has the key and nobody else; it does not start without one
    "private": {"network.relay_client": "off", "network.hole_punch": False, "network.mdns": False},
    # on this machine only, for tests of applications
    "test": {
        "network.listen": ("/ip4/127.0.0.1/tcp/0",),
        "network.relay_client": "off",
        "network.mdns": False,
        "shutdown.timeout_s": 5.0,
    },
}
