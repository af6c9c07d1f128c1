"""A client of a node's control interface, for any program: no libp2p, and no event loop but the program's own.

Knows: the public names and where each lives; a name is imported when it is first used. Must not know: the node.
Source: docs/control.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converge_p2p.client.aio import AsyncClient as AsyncClient
    from converge_p2p.client.errors import (
        NodeUnreachable as NodeUnreachable,
        Refused as Refused,
        SocketForbidden as SocketForbidden,
        TimedOut as TimedOut,
    )
    from converge_p2p.client.sync import Client as Client

_HOME = {
    "AsyncClient": "aio",
    "Client": "sync",
    "NodeUnreachable": "errors",
    "Refused": "errors",
    "SocketForbidden": "errors",
    "TimedOut": "errors",
}

__all__ = ["AsyncClient", "Client", "NodeUnreachable", "Refused", "SocketForbidden", "TimedOut"]


def __getattr__(name: str) -> object:
    """Import a public name on its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
