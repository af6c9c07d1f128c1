"""The home of the node whose key takes another one's place: made, or found again after a first try.

Knows: which files of the old home the new node needs, and in which order they are written. Must not know: the control
interface.
Source: docs/operations.md, a new key. The key is durable before anybody hears of it; what was handed over is written
at once. A try that was cut off goes on with the same key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from converge_node.config import load_settings, write_example
from converge_node.config_change import write_settings
from converge_node.followed import INVITATIONS_FILE
from converge_node.inheritance import (
    DamagedInheritance,
    Inheritance,
    inheritance_file,
    read_inheritance,
    write_inheritance,
)
from converge_node.key_files import NETWORK_KEY_FILE, passphrase_of
from converge_node.paths import NodePaths, single_instance
from converge_p2p.core.errors import ConfigError, Conflict, LocalError
from converge_p2p.core.identity import Identity
from converge_p2p.core.types import PublicKey
from converge_p2p.store.home import DATABASE_FILE
from converge_p2p.store.keyfile import load_identity, load_or_create_identity, save_identity
from converge_p2p.store.private_files import write_private_file

_COPIED: Final = (NETWORK_KEY_FILE, INVITATIONS_FILE)
_COPIED_BYTES_MAX: Final = 16 * 1024 * 1024


class SuccessorHome:
    """A home that was opened for the new key.

    Attributes:
        identity: the new key.
        inheritance: what the home holds of the old one.
        settings_of_old: keys of the settings that name files in the old home.
    """

    def __init__(self, paths: NodePaths, identity: Identity, inheritance: Inheritance, leaning: Sequence[str]) -> None:
        """Made by `open_successor_home`."""
        self.identity = identity
        self.inheritance = inheritance
        self.settings_of_old = tuple(leaning)
        self._paths = paths

    def keep(self, inheritance: Inheritance) -> None:
        """Write down what became of it.

        Raises:
            StoreError: it cannot be written.
        """
        write_inheritance(self._paths, inheritance)
        self.inheritance = inheritance


@contextmanager
def open_successor_home(
    paths: NodePaths, old: PublicKey, old_home: NodePaths | None, passphrase_file: str
) -> Iterator[SuccessorHome]:
    """Hold the home of the new key, which is made if it is missing.

    Args:
        paths: its places.
        old: the key that gives up its place.
        old_home: whose settings and network the new node takes over; None: the old node is on another machine.
        passphrase_file: its first line seals the new key, and the settings name it; empty: as the settings say.

    Raises:
        AlreadyRunning: a node runs there.
        Conflict: a node ran there that replaces no key, or another one.
        ConfigError, StoreError: a file cannot be read or written.
        SignatureError, LocalError: the passphrase does not open the key that is there.
    """
    paths.create()
    with single_instance(paths.lock_file):
        found, known = _found(paths)
        if found is not None and found.old != old.hex():
            raise Conflict(
                f"the home {paths.state_dir} belongs to a key that replaces another one", hint="choose another folder"
            )
        if not known and (paths.state_dir / DATABASE_FILE).exists():
            raise Conflict(
                f"a node ran in {paths.state_dir}, so its key is not new: it may have signed in the pools",
                hint="choose an empty folder with --new-home",
            )
        section = load_settings(paths.config_file, environment={}).config.identity
        passphrase = passphrase_of(passphrase_file or section.passphrase_file)
        key_file = paths.chosen_key(section.path)
        # before the settings name a passphrase: they keep the old one if this does not open the key
        identity = load_or_create_identity(key_file, passphrase)
        if identity.public_key == old or (found is not None and found.new != identity.public_key.hex()):
            raise Conflict(
                f"the key in {paths.state_dir} is not the new one that {inheritance_file(paths).name} there is for"
                if found is not None
                else f"the key in {paths.state_dir} is the one that is to be replaced",
                hint="choose an empty folder with --new-home",
            )
        leaning = _settle_settings(paths, old_home, passphrase_file)
        for name in _COPIED if old_home is not None else ():
            assert old_home is not None
            _copy(old_home.state_dir / name, paths.state_dir / name)
        if passphrase_file:
            _seal(key_file, identity, passphrase)
        yield SuccessorHome(
            paths, identity, found or Inheritance(old=old.hex(), new=identity.public_key.hex()), leaning
        )


def _found(paths: NodePaths) -> tuple[Inheritance | None, bool]:
    """Return what the home holds, and whether it is that of a key that replaces another one."""
    try:
        found = read_inheritance(paths)
    except DamagedInheritance:
        # the old node tells again what it handed over, and refuses a key that has signed something
        return None, True
    return found, found is not None


def _seal(file: Path, identity: Identity, passphrase: str | None) -> None:
    """Seal a key that is in clear, as `init` made it."""
    try:
        load_identity(file)
    except LocalError:
        return
    save_identity(identity, file, passphrase, replace=True)


def _settle_settings(paths: NodePaths, old_home: NodePaths | None, passphrase_file: str) -> list[str]:
    """Make the settings, and return the keys that name files in the old home."""
    import tomlkit

    before = old_home.config_file if old_home is not None else None
    if paths.config_file.exists() or before is None or not before.exists():
        write_example(paths.config_file)
        document = tomlkit.parse(_text(paths.config_file))
    else:
        load_settings(before, environment={})
        document = tomlkit.parse(_text(before))
        # the new node has a key and a socket of its own
        document.pop("identity", None)
        if "api" in document:
            document["api"].pop("socket", None)
    if passphrase_file:
        if "identity" not in document:
            document["identity"] = tomlkit.table()
        document["identity"]["passphrase_file"] = str(Path(passphrase_file).expanduser().absolute())
    content = tomlkit.dumps(document)
    if not paths.config_file.exists() or _text(paths.config_file) != content:
        write_settings(paths.config_file, content)
    folder = "" if old_home is None else f"{old_home.state_dir}/"
    return [] if not folder else _naming(document.unwrap(), folder)


def _naming(value: Any, folder: str, path: str = "") -> list[str]:
    """Return the keys under which texts begin with a folder."""
    if isinstance(value, dict):
        return [
            key
            for name, inner in value.items()
            for key in _naming(inner, folder, f"{path}.{name}" if path else str(name))
        ]
    texts = value if isinstance(value, list) else [value]
    return [path] if any(isinstance(text, str) and folder in text for text in texts) else []


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the settings {file}: {error}") from error


def _copy(source: Path, target: Path) -> None:
    """Copy a small private file, if there is one and it was not copied before."""
    try:
        with source.open("rb") as file:
            data = file.read(_COPIED_BYTES_MAX)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}") from error
    try:
        write_private_file(target, data)
    except Conflict:
        return
