"""The command line of converge-node. Imports nothing but click until a command runs."""

from __future__ import annotations

from converge_node.cli.main import main as main
