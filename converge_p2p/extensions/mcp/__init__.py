"""Tools of servers of the Model Context Protocol, for agents. `pip install converge-p2p[mcp]`.

Knows: the public names and where each lives. Must not know: the protocol's library before it is used.
Source: `docs/mcp.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converge_p2p.extensions.mcp.bridge import McpServer as McpServer, bridged_tools as bridged_tools

__all__ = ["McpServer", "bridged_tools"]


def __getattr__(name: str) -> object:
    """Import a public name on its first use."""
    if name not in ("McpServer", "bridged_tools"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from converge_p2p.extensions.mcp import bridge

    return getattr(bridge, name)
