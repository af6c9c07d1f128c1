"""Commands about the node's key: init; identity show, export, import, seal. They need no running node.

Knows: key files. Must not know: the control interface.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converge_node.cli.output import facts, show
from converge_node.cli.rotation import rotate
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.config import load_settings, write_example
from converge_node.inheritance import read_inheritance
from converge_node.key_files import passphrase_of
from converge_node.paths import NodePaths, single_instance
from converge_p2p.core.errors import SignatureError
from converge_p2p.core.identity import Identity, fingerprint, verify
from converge_p2p.core.types import PublicKey
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
    """Show who the node is, from its key file; and whose key it replaces, with the pools where that is not done yet.

    \b
    converge-node identity show
    """
    paths, own = _own(invocation)
    left = read_inheritance(paths)
    data: dict[str, Any] = dict(_fields(own))
    pairs: list[tuple[str, object]] = [*data.items()]
    if left is not None:
        pools = [*left.waiting, *(place.pool for place in left.places)]
        data |= {"replaces": str(fingerprint(PublicKey(bytes.fromhex(left.old)))), "places_to_take": pools}
        names = ", ".join(pool[:12] for pool in pools)
        pairs += [("replaces", data["replaces"]), ("places to take", names or "none, all are taken")]
    show(invocation, data, ids=lambda: [own.id], text=lambda: facts(pairs))


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


@identity.command("verify")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--agent", default="", metavar="AGENT", help="The agent id that it should have.")
@_PASSPHRASE
@apply_shared
@pass_invocation
def identity_verify(invocation: Invocation, file: Path | None, agent: str, passphrase_file: str) -> None:
    """Check that the key of this node, or the copy in FILE, opens and signs; and that it is AGENT's, if that is said.

    \b
    converge-node identity verify backup.key --passphrase-file secret.txt
    """
    own = _own(invocation)[1] if file is None else load_identity(file, passphrase_of(passphrase_file))
    if agent and agent.lower() != own.id:
        raise SignatureError(f"the key is that of agent {own.id}, not of {agent}", hint="look for another copy")
    message = b"converge-node identity verify"
    if not verify(own.public_key, "check", message, own.sign("check", message)):
        raise SignatureError("the key signs, and its own signature does not verify", hint="do not use this file")
    data = {**_fields(own), "verified": True}
    show(invocation, data, ids=lambda: [own.id], text=lambda: facts(data.items()))


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


identity.add_command(rotate)


def _own(invocation: Invocation) -> tuple[NodePaths, Identity]:
    paths = invocation.paths()
    section = load_settings(paths.config_file).config.identity
    return paths, load_identity(paths.chosen_key(section.path), passphrase_of(section.passphrase_file))


def _fields(own: Identity) -> dict[str, str]:
    return {"agent_id": own.id, "public_key": own.public_key.hex()}
