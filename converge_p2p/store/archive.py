"""Backups of a node's home: made while it runs or not, checked, and put back without harm to its agent.

Knows: what belongs into a backup, and the order in which things become visible. Must not know: how a node runs.
Source: `docs/operations.md`, back-up; `docs/protocol.md`, restored stores. Everything blocks.

A backup is a folder with mode 0700: `manifest.json`, `node.sqlite`, the settings, the blobs with a list of them, and if
asked for the files that are secret on their own: `node.key` and the keys of networks and topics. The manifest holds the
hash of each file, and blobs prove themselves. It guards against damage, not against people: the
operations bear their authors' signatures, the rest is as trustworthy as the place where the backup lay.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import Conflict, NotFound, StoreError
from converge_p2p.core.identity import Identity
from converge_p2p.store.blob_copies import (
    BLOB_LIST_FILE,
    BlobItem,
    copy_blobs,
    examine_blobs,
    put_blobs,
    read_blob_list,
    read_plain,
)
from converge_p2p.store.copies import Edit, copy_database, edit_database, reading, salvage_database
from converge_p2p.store.home import (
    AGE_FILE,
    BLOB_FOLDER,
    DATABASE_FILE,
    KEY_FILE,
    LEARNED_KEY,
    LOCK_FILE,
    RESTORED_KEY,
    only_node_in,
)
from converge_p2p.store.private_files import make_private_folder, remove_left_overs, sync_folder, write_private_file
from converge_p2p.store.upkeep import Examination, age_of, examine_database, held_if_free

FORMAT: Final = 2
FORMAT_PLAIN: Final = 1
"""Of a backup with nothing in it that an earlier version does not know, so that this can put it back."""
MANIFEST_FILE: Final = "manifest.json"
SETTINGS_FILE: Final = "config.toml"
NETWORK_KEY_FILE: Final = "network.key"
ACCEPTED_KEY_FILE: Final = "network-accept.key"
_TOPIC_KEY_FILE: Final = re.compile(r"topic-[0-9a-f]{16}\.key")
_PLAIN_FILES: Final = frozenset({DATABASE_FILE, KEY_FILE, NETWORK_KEY_FILE})

_MANIFEST_BYTES_MAX: Final = 64 * 1024
SETTINGS_BYTES_MAX: Final = 1024 * 1024
_TEMPORARY: Final = f".{DATABASE_FILE}."
_JOURNALS: Final = tuple(f"{DATABASE_FILE}{suffix}" for suffix in ("-journal", "-wal", "-shm"))
_CHUNK: Final = 1 << 20
_ALLOWED: Final = frozenset({AGE_FILE, LOCK_FILE, BLOB_FOLDER})


def is_secret_file(name: str) -> bool:
    """Whether a backup holds a file only if asked for: who has it is the agent, or gets into a network or topic."""
    return name in (KEY_FILE, NETWORK_KEY_FILE, ACCEPTED_KEY_FILE) or _TOPIC_KEY_FILE.fullmatch(name) is not None


def topic_key_file(topic: str) -> str:
    """Return the name that the key file of a private topic has in a backup."""
    return f"topic-{hashlib.sha256(topic.encode()).hexdigest()[:16]}.key"


class FileItem(msgspec.Struct, frozen=True):
    """One file of a backup."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds.

    Attributes:
        format: of the backup.
        made: UTC time, RFC 3339.
        program: what made it, and its version; only shown.
        schema: version of the database's schema.
        stopped: no node ran in the home while it was made.
        agent: id of the key, hex; empty if it was not known.
        operations, pools: how many the database holds.
        lost: rows of a damaged database that could not be saved; 0 in a plain backup.
        files: by name.
        blobs, blob_bytes: how many blobs there are, and the bytes of their chunks.
    """

    format: int
    made: str
    program: str
    schema: int
    stopped: bool
    agent: str
    operations: int
    pools: int
    lost: int
    files: dict[str, FileItem]
    blobs: int = 0
    blob_bytes: int = 0


def backup_home(
    home: Path,
    target: Path,
    *,
    agent: Identity | None = None,
    secret_files: Mapping[str, Path] | None = None,
    settings: Path | None = None,
    blobs: bool = True,
    salvage: bool = False,
    program: str = "",
) -> Manifest:
    """Make a backup. A node may run there: the copy is of one moment.

    Args:
        home: the folder of the node.
        target: the folder that is made; a crash leaves it whole or absent.
        agent: whose home it is, if known; only its id is written.
        secret_files: which files go in that `is_secret_file`, and where they lie; those that do not exist are left out.
        settings: file of the settings, if there is one.
        blobs: whether the blobs of the home go in.
        salvage: of a damaged database, take what can still be read and whose signatures are right.
        program: what makes it, and its version.

    Raises:
        Conflict: the target exists.
        NotFound: there is no database.
        StoreError: the database is damaged (without `salvage`), or something cannot be read or written.
    """
    if target.exists():
        raise Conflict(f"{target} exists already", hint="name a folder that is not there yet; it was not changed")
    target = target.absolute()
    make_private_folder(target.parent)
    remove_left_overs(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.new")
    try:
        temporary.mkdir(mode=0o700)
        database = temporary / DATABASE_FILE
        with held_if_free(home) as stopped:
            if salvage:
                lost = _salvage(home / DATABASE_FILE, database)
            else:
                lost = 0
                copy_database(home / DATABASE_FILE, database)
        for name, path in (secret_files or {}).items():
            assert is_secret_file(name), name
            if path.exists():
                write_private_file(temporary / name, _small_file(path, limits.KEY_FILE_BYTES_MAX))
        if settings is not None and settings.exists():
            write_private_file(temporary / SETTINGS_FILE, _small_file(settings, SETTINGS_BYTES_MAX))
        # after the database: what an operation there names was put before it
        items = copy_blobs(home / BLOB_FOLDER, temporary / BLOB_FOLDER) if blobs else []
        if items:
            write_private_file(temporary / BLOB_LIST_FILE, msgspec.json.encode(items))
        with reading(database) as copied:
            if wrong := copied.check():
                raise StoreError(
                    f"{home / DATABASE_FILE} is damaged: {wrong[0]}",
                    hint="a copy would be damaged too; --salvage saves what can still be read",
                )
            counts = copied.counts()
            files = {each.name: _describe(each) for each in sorted(temporary.iterdir()) if each.is_file()}
            manifest = Manifest(
                format=FORMAT_PLAIN if files.keys() <= _PLAIN_FILES else FORMAT,
                made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                program=program,
                schema=copied.version,
                stopped=stopped and not salvage,
                agent="" if agent is None else agent.id,
                operations=sum(counts.values()),
                pools=len(counts),
                lost=lost,
                files=files,
                blobs=len(items),
                blob_bytes=sum(item.held_bytes for item in items),
            )
        write_private_file(temporary / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        temporary.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write the backup {target}: {error.strerror}", hint="check the folder's owner and space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def read_manifest(backup: Path) -> Manifest:
    """Return what a backup says of itself.

    Raises:
        NotFound: there is none.
        StoreError: it cannot be read, or is of a newer format.
    """
    path = backup / MANIFEST_FILE
    try:
        manifest = msgspec.json.decode(read_plain(path, _MANIFEST_BYTES_MAX), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{backup} is no backup: it has no {MANIFEST_FILE}", hint="name the folder that `store backup` made"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path} is damaged: {error}", hint="use another backup") from error
    if manifest.format not in (FORMAT_PLAIN, FORMAT):
        raise StoreError(
            f"{backup} has format {manifest.format}; this program knows formats up to {FORMAT}",
            hint="use the program that made it",
        )
    others = {name for name in manifest.files if not is_secret_file(name)}
    if DATABASE_FILE not in others or not others <= {DATABASE_FILE, SETTINGS_FILE, BLOB_LIST_FILE}:
        raise StoreError(f"{path} names files that no backup has", hint="use another backup")
    if any(manifest.files[name].size > limits.KEY_FILE_BYTES_MAX for name in manifest.files.keys() - others):
        raise StoreError(f"{path} names a key file that is too long to be one", hint="use another backup")
    if SETTINGS_FILE in others and manifest.files[SETTINGS_FILE].size > SETTINGS_BYTES_MAX:
        raise StoreError(f"{path} names settings that are too long to be some", hint="use another backup")
    return manifest


def examine_backup(backup: Path) -> tuple[Manifest, Examination]:
    """Check a backup: every hash, the structure of the database, every operation in it, and every chunk of a blob.

    Raises:
        NotFound, StoreError: it is no backup, or none that this program knows.
    """
    manifest = read_manifest(backup)
    wrong = Examination()
    for name in _JOURNALS:
        # SQLite would carry it out before the first row is read, whatever the hash of the database says
        if os.path.lexists(backup / name):
            wrong.add(f"{name} is there, and no backup has it")
    for name, item in manifest.files.items():
        try:
            if _describe(backup / name) != item:
                wrong.add(f"{name} is not what the manifest says: it was changed or damaged")
        except FileNotFoundError:
            wrong.add(f"{name} is missing")
        except OSError as error:
            wrong.add(f"cannot read {name}: {error.strerror}")
    if wrong.wrong:
        return manifest, wrong
    found = examine_database(backup / DATABASE_FILE)
    if found.operations != manifest.operations:
        found.add(f"{found.operations} operations are there; the manifest says {manifest.operations}")
    items = _blob_list(backup, manifest)
    examine_blobs(backup / BLOB_FOLDER, items, found.add)
    found.blobs = len(items)
    if (len(items), sum(item.held_bytes for item in items)) != (manifest.blobs, manifest.blob_bytes):
        found.add(f"{len(items)} blobs are listed; the manifest says {manifest.blobs}, or other sizes")
    return manifest, found


def restore_home(
    backup: Path,
    home: Path,
    *,
    agent: Identity | None = None,
    moved: bool = False,
    beside: Collection[str] = (),
    places: Mapping[str, Path] | None = None,
    settings: tuple[Path, bytes] | None = None,
) -> Manifest:
    """Put a backup back into a home without a database.

    The node that starts there signs nothing in a pool before its electors said how far its own operations go, as it may
    have signed more than the backup holds. A crash leaves a home without a database, for which this can be done again.

    Args:
        backup: the folder that `backup_home` made.
        home: the folder; made if it is missing.
        agent: whose key is used there, if it is there already.
        moved: the node did not run anywhere since the backup, which was made while it was stopped: then it holds all
            that was ever signed, and the node goes on at once. If that is not true, the agent is shut out of its pools.
        beside: names of other files that may be in the home.
        places: where secret files go, if not into the home.
        settings: where the file of the settings is written, whatever is there, and with what; None writes none.

    Raises:
        NotFound: there is no backup.
        Conflict: the home is not empty or is another agent's, or `moved` is set and the backup is of a running node.
        StoreError: the backup is damaged or of a newer version, or something cannot be written.
    """
    manifest, found = examine_backup(backup)
    if found.wrong:
        raise StoreError(
            f"the backup {backup} is damaged ({found.wrong} findings): {found.findings[0]}",
            hint="use another backup, or start with the key alone and let the peers tell; nothing was changed",
        )
    if agent is not None and manifest.agent not in ("", agent.id):
        raise Conflict(
            f"the backup is of agent {manifest.agent[:12]}, and the key in {home} of {agent.id[:12]}",
            hint="put back the key that belongs to the backup",
        )
    if moved and not manifest.stopped:
        raise Conflict(
            f"the backup {backup} was made while the node ran, or rescued from damage: it may have signed more since",
            hint="put it back without --moved: the node asks the electors then",
        )
    home = home.absolute()
    make_private_folder(home)
    with only_node_in(home):
        secrets_here = [name for name in manifest.files if is_secret_file(name)]
        secret_places = {name: (places or {}).get(name, home / name) for name in secrets_here}
        usual = (home / KEY_FILE, home / NETWORK_KEY_FILE, home / AGE_FILE)
        for path in (*usual, *secret_places.values(), *([] if settings is None else [settings[0]])):
            remove_left_overs(path)
        _check_empty(home, {*_ALLOWED, *beside})
        _put_secrets(backup, secret_places)
        if settings is not None:
            make_private_folder(settings[0].absolute().parent)
            write_private_file(settings[0].absolute(), settings[1], replace=True)
        if items := _blob_list(backup, manifest):
            put_blobs(backup / BLOB_FOLDER, items, home / BLOB_FOLDER)
        for left_over in home.glob(f"{_TEMPORARY}*"):
            left_over.unlink()
        temporary = home / f"{_TEMPORARY}restored"
        with reading(backup / DATABASE_FILE) as database:
            learned, age = database.keys(LEARNED_KEY), age_of(database)
            database.copy_to(temporary)
        if moved:
            write_private_file(home / AGE_FILE, b"%d\n" % age, replace=True)
        else:
            # in the database itself, so that no file that is left in the home, or lost, can make the node forget it
            edit_database(temporary, Edit(put={RESTORED_KEY: encode(1)}, drop_keys=learned))
        try:
            # last: a home with a database is one that was put back
            temporary.rename(home / DATABASE_FILE)
            sync_folder(home)
        except OSError as error:
            raise StoreError(f"cannot write {home}: {error.strerror}") from error
    return manifest


def _salvage(source: Path, target: Path) -> int:
    """Save what can be read, and of that what can be used; return how many rows were not saved."""
    lost = salvage_database(source, target)
    found = examine_database(target)
    edit_database(target, Edit(drop_operations=found.bad_operations, drop_snapshots=found.bad_snapshots))
    return lost + len(found.bad_operations) + len(found.bad_snapshots)


def _check_empty(home: Path, allowed: Collection[str]) -> None:
    for each in sorted(home.iterdir()):
        name = each.name
        if name.startswith((_TEMPORARY, f"{DATABASE_FILE}.v")) or name in allowed or is_secret_file(name):
            continue
        raise Conflict(
            f"{home} is not empty: it holds {each.name}",
            hint="name an empty folder with --home DIR, or move what is there away; nothing was changed",
        )


def _put_secrets(backup: Path, places: Mapping[str, Path]) -> None:
    wanted = {path: (backup / name).read_bytes() for name, path in places.items()}
    for path, data in wanted.items():
        if path.exists() and path.read_bytes() != data:
            raise Conflict(
                f"{path} is there already, and is not that of the backup",
                hint="move it away, or use another folder; nothing was changed",
            )
    for path, data in wanted.items():
        if not path.exists():
            make_private_folder(path.absolute().parent)
            write_private_file(path, data)


def _blob_list(backup: Path, manifest: Manifest) -> list[BlobItem]:
    return read_blob_list(backup / BLOB_LIST_FILE) if BLOB_LIST_FILE in manifest.files else []


def _small_file(path: Path, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise StoreError(f"{path} has more than {bytes_max} bytes, so it is not what it should be")
    return data


def _describe(path: Path) -> FileItem:
    """Return size and hash of a file. Raises `OSError` also if it is a link, a pipe, or nothing plain."""
    hashed, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
            size += len(chunk)
    return FileItem(size, hashed.hexdigest())
