"""Commands about the settings: show, paths, validate. They need no running node.

Knows: the schema of the settings. Must not know: the control interface.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec

from converge_node.cli.output import facts, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.config import all_keys, load_settings
from converge_node.errors import ExitCode
from converge_p2p.core.errors import NotFound


@click.group
def config() -> None:
    """Show and check the settings."""


@config.command("show")
@apply_shared
@pass_invocation
def config_show(invocation: Invocation) -> None:
    """Show every key, its value, and where the value comes from."""
    settings = load_settings(invocation.paths().config_file)
    tree = msgspec.to_builtins(settings.config)
    rows = []
    for path in all_keys():
        section, name = path.split(".")
        rows.append((path, json.dumps(tree[section][name]), settings.sources[path]))
    data = {"settings": tree, "sources": settings.sources}
    show(
        invocation,
        data,
        ids=lambda: [path for path, _, _ in rows],
        text=lambda: table(("KEY", "VALUE", "FROM"), rows, empty=""),
    )


@config.command("paths")
@apply_shared
@pass_invocation
def config_paths(invocation: Invocation) -> None:
    """Show where the node keeps its files."""
    paths = invocation.paths()
    chosen = load_settings(paths.config_file).config
    data = {
        "config": str(paths.config_file),
        "state": str(paths.state_dir),
        "key": chosen.identity.path or str(paths.key_file),
        "lock": str(paths.lock_file),
        "socket": chosen.api.socket or str(paths.socket),
    }
    show(invocation, data, ids=data.values, text=lambda: facts(data.items()))


@config.command
@click.argument("file", required=False, type=click.Path(path_type=Path))
@apply_shared
@pass_invocation
def validate(invocation: Invocation, file: Path | None) -> int:
    """Check FILE, or the settings that a node would use. Exit code 3 if anything in it is wrong."""
    if file is not None and not file.is_file():
        raise NotFound(f"there is no settings file {file}")
    # a given file is judged by itself: this shell's variables are not part of it
    chosen = file if file is not None else invocation.paths().config_file
    load_settings(chosen, environment={} if file is not None else None)
    data = {"file": str(chosen), "valid": True}
    show(invocation, data, ids=list, text=lambda: f"{chosen}: valid")
    return ExitCode.OK
