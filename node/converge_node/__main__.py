"""`python -m converge_node`: the same as the command `converge-node`."""

from __future__ import annotations

from converge_node.cli import main

main()
