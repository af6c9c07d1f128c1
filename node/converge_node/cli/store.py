"""Commands about the node's database: store info, verify, backup, restore, compact. They need no running node.

Knows: where the files of a home lie. Must not know: what is in them (see `converge_p2p.store`).
Source: docs/operations.md, back-up.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from converge_node.cli.output import clean, facts, short, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.config import Settings, load_settings
from converge_node.errors import ExitCode, UsageError
from converge_node.inheritance import INHERITANCE_FILE
from converge_node.key_files import passphrase_of
from converge_node.paths import NodePaths, single_instance
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.identity import Identity

_BESIDE: Final = ("config.toml", "node.lock", "api-tokens", "invitations", INHERITANCE_FILE, "run", "control.sock")
"""What may be in a home that a backup is put back into: none of it says what the node signed."""


@click.group
def store() -> None:
    """The node's database: what is in it, whether it is whole, backups, and compaction."""


@store.command("info")
@apply_shared
@pass_invocation
def info(invocation: Invocation) -> None:
    """Show size, schema version and pools of the database. The node may run."""
    from converge_p2p.store.upkeep import home_facts

    paths, _ = _home(invocation)
    found = home_facts(paths.state_dir)
    pools = [
        {
            "pool": each.pool.hex(),
            "operations": each.operations,
            "snapshot_bytes": each.snapshot_bytes,
            "member": each.member,
            "in_doubt": each.in_doubt,
        }
        for each in found.pools
    ]
    general = {
        "folder": str(paths.state_dir),
        "schema": found.version,
        "bytes": found.size,
        "free_bytes": found.free,
        "age": found.age,
        "restored": found.restored,
        "running": found.running,
    }
    rows = [
        (
            short(each.pool.hex()),
            each.operations,
            each.snapshot_bytes,
            "in doubt" if each.in_doubt else "member" if each.member else "left",
        )
        for each in found.pools
    ]
    columns = ("POOL", "OPERATIONS", "SNAPSHOT BYTES", "STATE")
    show(
        invocation,
        {**general, "pools": pools},
        ids=lambda: [each.pool.hex() for each in found.pools],
        text=lambda: facts(general.items()) + "\n\n" + table(columns, rows, empty="no pools"),
    )


@store.command("verify")
@click.argument("backup", metavar="[BACKUP]", required=False, type=click.Path(path_type=Path))
@apply_shared
@pass_invocation
def verify(invocation: Invocation, backup: Path | None) -> int:
    """Check the database of the node, which may run, or a BACKUP: structure, and hash and signature of every operation.

    Of a backup also every file, and every chunk of its blobs; those of a node are checked whenever they are read.
    Exit code 10 if something is wrong. Nothing is changed.
    """
    from converge_p2p.store.archive import examine_backup
    from converge_p2p.store.home import DATABASE_FILE
    from converge_p2p.store.upkeep import examine_database

    if backup is None:
        where = _home(invocation)[0].state_dir / DATABASE_FILE
        found = examine_database(where)
    else:
        where = backup
        _, found = examine_backup(backup)
    data = {
        "checked": str(where),
        "whole": not found.wrong,
        "operations": found.operations,
        "snapshots": found.snapshots,
        "blobs": found.blobs,
        "wrong": found.wrong,
        "findings": found.findings,
    }

    def text() -> str:
        counts = f"{found.operations} operations, {found.snapshots} snapshots and {found.blobs} blobs"
        lines = [f"{where}: {counts} checked"]
        lines += [clean(finding) for finding in found.findings]
        if not found.wrong:
            return "\n".join([*lines, "everything is as it was written"])
        if found.wrong > len(found.findings):
            lines.append(f"and {found.wrong - len(found.findings)} more")
        todo = (
            "-> use another backup"
            if backup is not None
            else "-> stop the node, save what can be read with `store backup --salvage DIR`, move the database away, "
            "and put that or an older backup back with `store restore`; peers tell the rest"
        )
        return "\n".join([*lines, todo])

    show(invocation, data, ids=lambda: found.findings, text=text)
    return ExitCode.STORE if found.wrong else ExitCode.OK


@store.command("backup")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--identity", is_flag=True, help="With the keys of node, networks and topics: secrets. See below.")
@click.option("--no-blobs", is_flag=True, help="Without blobs, which may be much larger than the rest.")
@click.option("--salvage", is_flag=True, help="Of a damaged database, take what can still be read.")
@apply_shared
@pass_invocation
def backup(invocation: Invocation, target: Path, *, identity: bool, no_blobs: bool, salvage: bool) -> None:
    """Write a backup of the node to the new folder DIR. The node may run: the database is of one moment.

    It holds all operations, messages, known peers, invitations that are still good, blobs, and the settings. Content
    keys of private pools are in it sealed, and need the node's key. With --identity the files of keys are in it as they
    lie on the disk, sealed or in clear: whoever has them is the agent, and gets into its networks and topics, so keep
    such a backup secret. Only its owner can read it (0700, files 0600), and nothing encrypts it. Passphrases and tokens
    are not in it.
    """
    from converge_node.backup_files import secret_files
    from converge_p2p import __version__
    from converge_p2p.store.archive import backup_home

    paths, settings = _home(invocation)
    invocation.about_to(f"write a backup of {paths.state_dir} to {target}")
    manifest = backup_home(
        paths.state_dir,
        target,
        agent=_agent(paths.chosen_key(settings.config.identity.path), settings.config.identity.passphrase_file),
        secret_files=secret_files(paths, settings) if identity else None,
        settings=paths.config_file,
        blobs=not no_blobs,
        salvage=salvage,
        program=f"converge-node {__version__}",
    )
    data: dict[str, Any] = {
        "folder": str(target),
        "operations": manifest.operations,
        "pools": manifest.pools,
        "blobs": manifest.blobs,
        "blob_bytes": manifest.blob_bytes,
        "files": sorted(manifest.files),
        "stopped": manifest.stopped,
        "lost": manifest.lost,
    }

    def text() -> str:
        shown = {**data, "files": ", ".join(data["files"])}
        word = "" if manifest.stopped else "\nThe node ran: what it signs from now on is not in it."
        if salvage:
            word = f"\n{manifest.lost} rows could not be saved; peers tell the rest."
        return facts(shown.items()) + word

    show(invocation, data, ids=lambda: [str(target)], text=text)


@store.command("restore")
@click.argument("source", metavar="BACKUP", type=click.Path(path_type=Path))
@click.option("--moved", is_flag=True, help="The node ran nowhere since this backup, made while it was stopped.")
@apply_shared
@pass_invocation
def restore(invocation: Invocation, source: Path, *, moved: bool) -> None:
    """Put BACKUP back into an empty home. It is checked in full first.

    The node that starts there signs nothing in a pool before the electors of that pool told it how far its own
    operations go: it may have signed more than the backup holds, and to sign a number twice would shut it out. With
    --moved you answer for that there is nothing more. Never let two nodes run with one key.

    Settings that are here already stay. Keys go into the home, unless settings of this machine name another place, and
    settings from the backup are changed to name it.
    """
    from converge_node.backup_files import plan_restoration
    from converge_p2p.store.archive import examine_backup, read_manifest, restore_home

    paths, _ = _home(invocation)
    if invocation.dry_run:
        examine_backup(source)
    plan = plan_restoration(paths, source, read_manifest(source).files)
    invocation.about_to(f"put {source} back into {paths.state_dir}")
    with ExitStack() as stack:
        if paths.state_dir.is_dir():
            stack.enter_context(single_instance(paths.lock_file))
        manifest = restore_home(
            source,
            paths.state_dir,
            agent=_agent(plan.key, plan.passphrase_file),
            moved=moved,
            beside=_BESIDE,
            places=plan.places,
            settings=None if plan.content is None else (paths.config_file, plan.content),
        )
    data = {
        "folder": str(paths.state_dir),
        "operations": manifest.operations,
        "pools": manifest.pools,
        "blobs": manifest.blobs,
        "made": manifest.made,
        "files": sorted(manifest.files),
        "in_doubt": not moved,
        "settings_kept": plan.kept,
        "settings_changed": list(plan.moved),
    }

    def text() -> str:
        shown = {name: ", ".join(value) if isinstance(value, list) else value for name, value in data.items()}
        lines = [facts(shown.items())]
        if not moved:
            lines.append("The node signs nothing in a pool before its electors were heard: connect it to them.")
        if plan.kept:
            lines.append(f"The settings that were here stay; those of the backup are in {source / 'config.toml'}.")
        lines += [f"{setting} names the place in this home now." for setting in plan.moved]
        if _agent(plan.key, plan.passphrase_file) is None:
            lines.append("The key is not here: put it back with `converge-node identity import FILE`.")
        return "\n".join(lines)

    show(invocation, data, ids=lambda: [str(paths.state_dir)], text=text)


@store.command("compact")
@click.option("--left", is_flag=True, help="Also remove the operations of pools that the node left.")
@apply_shared
@pass_invocation
def compact(invocation: Invocation, *, left: bool) -> None:
    """Give room in the database that is no longer used back to the disk, while the node is stopped.

    What pools no longer need the node removes by itself, at checkpoints. With --left goes what is kept of pools that it
    left: it asks their electors how far its own operations go if it ever comes back.
    """
    from converge_p2p.store.upkeep import compact_home, home_facts

    paths, _ = _home(invocation)
    home_facts(paths.state_dir)
    invocation.about_to(f"compact the database in {paths.state_dir}")
    with single_instance(paths.lock_file):
        before, after = compact_home(paths.state_dir, left_pools=left)
    data = {"folder": str(paths.state_dir), "bytes_before": before, "bytes_after": after}
    show(invocation, data, ids=lambda: [str(after)], text=lambda: facts(data.items()))


def _home(invocation: Invocation) -> tuple[NodePaths, Settings]:
    if invocation.url:
        raise UsageError(
            "the database of a node elsewhere cannot be reached", hint="run this on its machine, with --home DIR"
        )
    paths = invocation.paths()
    return paths, load_settings(paths.config_file)


def _agent(key: Path, passphrase_file: str) -> Identity | None:
    """Return whose home it is, None if the key is not here or cannot be opened."""
    from converge_p2p.store.keyfile import load_identity

    try:
        return load_identity(key, passphrase_of(passphrase_file))
    except ConvergeError:
        return None
