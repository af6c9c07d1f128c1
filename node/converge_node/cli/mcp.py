"""The command that serves the mesh to clients of the Model Context Protocol.

Knows: the client, and where the server is. Must not know: the protocol.
"""

from __future__ import annotations

import importlib.util

import click

from converge_node.cli.client import connect
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import UsageError


@click.command
@click.option("--allow-write", is_flag=True, help="Offer tools that change something: publish, submit, cancel.")
@apply_shared
@pass_invocation
def mcp(invocation: Invocation, allow_write: bool) -> None:
    """Serve the running node to an MCP client, over standard input and output.

    \b
    In the client's settings: {"command": "converge-node", "args": ["mcp"]}
    """
    if importlib.util.find_spec("mcp") is None:
        raise UsageError("the mcp library is not installed", hint="pip install converge-p2p[mcp]")
    import trio

    from converge_node.mcp_server import serve
    from converge_node.mcp_tools import MeshTools

    trio.run(serve, MeshTools(connect(invocation), allow_write=allow_write), strict_exception_groups=True)
