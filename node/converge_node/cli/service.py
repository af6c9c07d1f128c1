"""The unit with which systemd runs the node.

Knows: the unit that comes with the program. Must not know: the node.
Source: docs/operations.md; systemd.service(5), systemd.exec(5).
"""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path
from typing import Final

import click

from converge_node.cli.output import show
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation

UNIT: Final = "converge-node.service"
_FOLDER: Final = "/opt/converge-node/bin"
"""Where the unit as it stands looks for the program first."""


@click.group
def service() -> None:
    """Print what lets systemd run the node."""


@service.command
@apply_shared
@pass_invocation
def unit(invocation: Invocation) -> None:
    """Print a hardened unit: one node for the machine, under a user that exists only while it runs.

    \b
    converge-node service unit > /etc/systemd/system/converge-node.service
    """
    text = importlib.resources.files("converge_node").joinpath(UNIT).read_text("utf-8")
    # this very installation, wherever it is
    text = text.replace(_FOLDER, str(Path(sys.executable).parent))
    show(invocation, {"name": UNIT, "text": text}, ids=text.splitlines, text=lambda: text.rstrip("\n"))
