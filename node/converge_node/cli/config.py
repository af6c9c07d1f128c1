"""Commands about the settings: show, get, set, schema, paths, validate. They need no running node.

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
from converge_node.config_change import changed_file, check_key, write_settings
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


@config.command("get")
@click.argument("key", metavar="SECTION.KEY")
@apply_shared
@pass_invocation
def config_get(invocation: Invocation, key: str) -> None:
    """Show one value that is in force, and where it comes from.

    \b
    converge-node config get network.listen
    """
    check_key(key)
    settings = load_settings(invocation.paths().config_file)
    section, name = key.split(".")
    value = msgspec.to_builtins(settings.config)[section][name]
    data = {"key": key, "value": value, "from": settings.sources[key]}
    show(invocation, data, ids=lambda: [json.dumps(value)], text=lambda: json.dumps(value))


@config.command("set")
@click.argument("key", metavar="SECTION.KEY")
@click.argument("value")
@apply_shared
@pass_invocation
def config_set(invocation: Invocation, key: str, value: str) -> None:
    """Write a value to the settings file, where the rest stays as it is. A running node takes it at its next start.

    VALUE is text, or JSON for numbers, truth values and lists; a list may also be written with commas.

    \b
    converge-node config set network.mdns true
    converge-node config set network.listen /ip4/0.0.0.0/tcp/4001
    """
    paths = invocation.paths()
    new = changed_file(paths.config_file, key, value)
    invocation.about_to(f"set {key} in {paths.config_file}")
    paths.create()
    write_settings(paths.config_file, new)
    data = {"file": str(paths.config_file), "key": key, "value": value}
    show(invocation, data, ids=lambda: [key], text=lambda: f"{key} is set in {paths.config_file}")


@config.command("schema")
@apply_shared
@pass_invocation
def config_schema(invocation: Invocation) -> None:
    """Show every key with its default, its environment variable and what it is for.

    \b
    converge-node config schema --json
    """
    keys = all_keys().values()
    data = [
        {
            "key": each.path,
            "default": each.default,
            "variable": each.variable,
            "choices": each.choices,
            "description": each.description,
        }
        for each in keys
    ]
    rows = [(each.path, json.dumps(each.default), each.variable, each.description) for each in keys]
    columns = ("KEY", "DEFAULT", "VARIABLE", "MEANING")
    show(invocation, data, ids=lambda: [each.path for each in keys], text=lambda: table(columns, rows, empty=""))


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
