"""Commands about the node's key: init; identity show, export, import, seal. They need no running node.

Knows: key files. Must not know: the control interface.
"""

from __future__ import annotations

from pathlib import Path

import click

from converge_node.cli.output import facts, show
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.config import load_settings, write_example
from converge_node.key_files import passphrase_of
from converge_node.paths import NodePaths, single_instance
from converge_p2p.core.identity import Identity
from converge_p2p.store.keyfile import load_identity, load_or_create_identity, save_identity

_PASSPHRASE = click.option(
    "--passphrase-file", default="", metavar="FILE", help="File whose first line is the passphrase of the copy."
)


@click.command("init")
@apply_shared
@pass_invocation
def init(invocation: Invocation) -> None:
    """Make the folders, the key and the settings file of a node, if they are missing, without starting it.

    \b
    converge-node init --home ./n1
    """
    paths = invocation.paths()
    section = load_settings(paths.config_file).config.identity
    invocation.about_to(f"make what is missing in {paths.state_dir}")
    paths.create()
    write_example(paths.config_file)
    made = load_or_create_identity(paths.chosen_key(section.path), passphrase_of(section.passphrase_file))
    data = {**_fields(made), "settings": str(paths.config_file)}
    show(invocation, data, ids=lambda: [made.id], text=lambda: facts(data.items()))


@click.group
def identity() -> None:
    """Show, export, import and seal the node's key. Whoever has the key is the agent."""


@identity.command("show")
@apply_shared
@pass_invocation
def identity_show(invocation: Invocation) -> None:
    """Show who the node is, from its key file.

    \b
    converge-node identity show
    """
    _, own = _own(invocation)
    show(invocation, _fields(own), ids=lambda: [own.id], text=lambda: facts(_fields(own).items()))


@identity.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@_PASSPHRASE
@apply_shared
@pass_invocation
def identity_export(invocation: Invocation, file: Path, passphrase_file: str) -> None:
    """Write a copy of the key to FILE, sealed if a passphrase is given. An existing file is not touched.

    \b
    converge-node identity export backup.key --passphrase-file secret.txt
    """
    _, own = _own(invocation)
    invocation.about_to(f"write a copy of the key to {file}")
    save_identity(own, file.absolute(), passphrase_of(passphrase_file))
    data = {"file": str(file), "sealed": bool(passphrase_file)}
    show(invocation, data, ids=lambda: [str(file)], text=lambda: facts(data.items()))


@identity.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@_PASSPHRASE
@apply_shared
@pass_invocation
def identity_import(invocation: Invocation, file: Path, passphrase_file: str) -> None:
    """Take the key of FILE for the node of this home, which must not have one yet.

    The file here is sealed as `identity.passphrase_file` of the settings says. Two nodes with one key contradict each
    other, and are both shut out of their pools: see docs/operations.md, back-up.

    \b
    converge-node identity import backup.key --passphrase-file secret.txt
    """
    paths = invocation.paths()
    section = load_settings(paths.config_file).config.identity
    taken = load_identity(file, passphrase_of(passphrase_file))
    invocation.about_to(f"take the key of agent {taken.id} for {paths.state_dir}")
    paths.create()
    with single_instance(paths.lock_file):
        save_identity(taken, paths.chosen_key(section.path), passphrase_of(section.passphrase_file))
    show(invocation, _fields(taken), ids=lambda: [taken.id], text=lambda: facts(_fields(taken).items()))


@identity.command("seal")
@click.option("--passphrase-file", default="", metavar="FILE", help="First line: the new passphrase; none is in clear.")
@apply_shared
@pass_invocation
def identity_seal(invocation: Invocation, passphrase_file: str) -> None:
    """Change the passphrase of the key file, while no node runs. Name the new file in the settings, too.

    \b
    converge-node identity seal --passphrase-file new-secret.txt
    """
    paths, own = _own(invocation)
    file = paths.chosen_key(load_settings(paths.config_file).config.identity.path)
    new = passphrase_of(passphrase_file)
    invocation.about_to(f"write {file} anew")
    with single_instance(paths.lock_file):
        save_identity(own, file, new, replace=True)
    data = {"file": str(file), "sealed": new is not None}
    show(invocation, data, ids=lambda: [str(file)], text=lambda: facts(data.items()))


def _own(invocation: Invocation) -> tuple[NodePaths, Identity]:
    paths = invocation.paths()
    section = load_settings(paths.config_file).config.identity
    return paths, load_identity(paths.chosen_key(section.path), passphrase_of(section.passphrase_file))


def _fields(own: Identity) -> dict[str, str]:
    return {"agent_id": own.id, "public_key": own.public_key.hex()}
