"""Which files beside the database belong to a backup, and where they go when it is put back.

Knows: which settings name files of keys. Must not know: how a backup is made (see `converge_p2p.store.archive`).
Source: docs/operations.md, back-up.

What a backup says decides nothing about where something is written: a key goes to where this machine's own settings
name its place, and otherwise into the home, whatever the settings in the backup say. Those are changed to name it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converge_node.config import Settings, example_file, load_settings
from converge_node.config_change import with_values
from converge_node.key_files import NETWORK_KEY_FILE
from converge_node.paths import NodePaths
from converge_node.settings_check import parse_private_topic
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, StoreError
from converge_p2p.store.archive import (
    ACCEPTED_KEY_FILE,
    NETWORK_KEY_FILE as NETWORK_KEY,
    SETTINGS_BYTES_MAX,
    SETTINGS_FILE,
    topic_key_file,
)
from converge_p2p.store.blob_copies import read_plain
from converge_p2p.store.home import KEY_FILE

_SETTINGS: Final = {
    KEY_FILE: "identity.path",
    NETWORK_KEY: "network.psk_file",
    ACCEPTED_KEY_FILE: "network.psk_accept_file",
}
"""Which setting names the place of a file."""
_TOPICS: Final = "node.private_topics"


def secret_files(paths: NodePaths, settings: Settings) -> dict[str, Path]:
    """Return the files of keys that the settings name, by the name that each has in a backup."""
    config = settings.config
    found = {KEY_FILE: paths.chosen_key(config.identity.path)}
    network = config.network.psk_file
    found[NETWORK_KEY] = Path(network).expanduser() if network else paths.state_dir / NETWORK_KEY_FILE
    if config.network.psk_accept_file:
        found[ACCEPTED_KEY_FILE] = Path(config.network.psk_accept_file).expanduser()
    for entry in config.node.private_topics:
        found[topic_key_file(entry.partition("=")[0])] = parse_private_topic(entry)[1]
    return found


@dataclass(frozen=True, slots=True)
class Restoration:
    """How a backup is put back.

    Attributes:
        key: where the node will look for its key.
        passphrase_file: names the passphrase of that key, or is empty.
        content: of the file of the settings; None leaves what is there.
        places: where files of keys go, by their names in the backup.
        kept: there are other settings here, which stay.
        moved: settings that now name another place.
    """

    key: Path
    passphrase_file: str
    content: bytes | None
    places: dict[str, Path]
    kept: bool
    moved: tuple[str, ...]


def plan_restoration(paths: NodePaths, backup: Path, names: Collection[str]) -> Restoration:
    """Say what goes where.

    Args:
        paths: of the node that is made.
        backup: the folder.
        names: the files in it.

    Raises:
        ConfigError: settings that this program cannot use, here or in the backup.
        StoreError: the settings in the backup are no plain file.
    """
    here = load_settings(paths.config_file)
    as_they_are = _Places(paths.chosen_key(here.config.identity.path), _named(secret_files(paths, here), names, paths))
    passphrase = here.config.identity.passphrase_file
    if SETTINGS_FILE not in names:
        return Restoration(as_they_are.key, passphrase, None, as_they_are.of, False, ())
    file = backup / SETTINGS_FILE
    status = os.lstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_size > SETTINGS_BYTES_MAX:
        raise StoreError(f"{file} is no plain file, or too long to be settings", hint="use another backup")
    try:
        theirs = load_settings(file)
        places, changes = _settled(paths, backup, names, theirs)
        content = with_values(file.read_text(encoding="utf-8"), changes).encode()
    except ConfigError as error:
        raise ConfigError(
            f"the settings in the backup cannot be used: {error}",
            hint=f"put a copy of {file} that was corrected at {paths.config_file}, and restore again: it stays then",
        ) from error
    there = paths.config_file.read_bytes() if paths.config_file.exists() else b""
    if there not in (b"", example_file().encode(), content):
        return Restoration(as_they_are.key, passphrase, None, as_they_are.of, True, ())
    passphrase = theirs.config.identity.passphrase_file
    return Restoration(places.key, passphrase, content, places.of, False, tuple(sorted(changes)))


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the node looks for its key, and where the keys of a backup go."""

    key: Path
    of: dict[str, Path]


def _settled(
    paths: NodePaths, backup: Path, names: Collection[str], theirs: Settings
) -> tuple[_Places, dict[str, Any]]:
    """Return the places of keys if the settings of a backup are used, and what is changed in these, by key path."""
    named, changes = secret_files(paths, theirs), dict[str, Any]()
    places = _named(named, names, paths)
    topics = list(theirs.config.node.private_topics)
    of_topic = {topic_key_file(entry.partition("=")[0]): number for number, entry in enumerate(topics)}
    for name, place in named.items():
        setting, home = _SETTINGS.get(name, _TOPICS), paths.state_dir / name
        if theirs.sources[setting] != "file" or place == home:
            # this machine says so itself, or nobody says anything
            continue
        if _same(place, backup / name) if name in names else place.exists() or not home.exists():
            # the key is there already; or nothing is known of it
            continue
        if name in names:
            places[name] = home
        if name in of_topic:
            topics[of_topic[name]] = f"{topics[of_topic[name]].partition('=')[0]}={home}"
            changes[_TOPICS] = topics
        else:
            # of these two the place in the home is the default
            changes[setting] = "" if name in (KEY_FILE, NETWORK_KEY) else str(home)
    key = paths.key_file if _SETTINGS[KEY_FILE] in changes else named[KEY_FILE]
    return _Places(key, places), changes


def _named(found: dict[str, Path], names: Collection[str], paths: NodePaths) -> dict[str, Path]:
    """Return the places of the keys that are in a backup; those that no setting names go into the home."""
    secrets = [name for name in names if name.endswith(".key")]
    return {name: found.get(name, paths.state_dir / name) for name in secrets}


def _same(path: Path, other: Path) -> bool:
    """Whether a key lies in a place that the settings of a backup name, which may be any, a pipe or a device."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return False
            return file.read(limits.KEY_FILE_BYTES_MAX + 1) == read_plain(other, limits.KEY_FILE_BYTES_MAX)
    except OSError:
        return False
