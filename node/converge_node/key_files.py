"""Files of keys: of a private network, and of private topics.

Knows: where such a file may lie, and how an error names it. Must not know: what a key is used for.
Source: docs/operations.md, private networks.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from converge_node.paths import NodePaths
from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, ConfigError
from converge_p2p.core.model.network_key import NETWORK_KEY_BYTES, NetworkKey
from converge_p2p.core.model.topic_key import TOPIC_KEY_BYTES, TopicKey
from converge_p2p.store.private_files import make_private_folder, write_private_file

NETWORK_KEY_FILE: Final = "network.key"
"""In the state folder: the key of the network that an invitation led into."""


def new_network_key() -> NetworkKey:
    """Return the key of a network that nobody is in yet."""
    return NetworkKey(secrets.token_bytes(NETWORK_KEY_BYTES))


def new_topic_key() -> TopicKey:
    """Return the key of a topic that nobody takes part in yet."""
    return TopicKey(secrets.token_bytes(TOPIC_KEY_BYTES))


def write_key_file(path: Path, data: bytes) -> None:
    """Write a key file that only its owner can read.

    Raises:
        Conflict: there is such a file; it is not touched.
        StoreError: it cannot be written.
    """
    make_private_folder(path.absolute().parent)
    write_private_file(path.absolute(), data)


def read_network_key(path: Path) -> NetworkKey:
    """Read the key of a private network from a `swarm.key` file.

    Raises:
        ConfigError: it cannot be read, or is no such file.
    """
    try:
        return NetworkKey.from_file(_content("network", path))
    except CodecError as error:
        raise ConfigError(f"{path}: {error}", hint=error.hint) from error


def read_topic_key(path: Path) -> TopicKey:
    """Read the key of a private topic. Raises as `read_network_key`."""
    try:
        return TopicKey.from_file(_content("topic", path))
    except CodecError as error:
        raise ConfigError(f"{path}: {error}", hint=error.hint) from error


def network_key_of(psk_file: str, paths: NodePaths) -> NetworkKey | None:
    """Return the key of the network that a node is in: that of the settings, or of an invitation that it followed.

    Raises:
        ConfigError: a file cannot be read, or is no key file.
    """
    if psk_file:
        return read_network_key(Path(psk_file).expanduser())
    followed = paths.state_dir / NETWORK_KEY_FILE
    return read_network_key(followed) if followed.exists() else None


def passphrase_of(file: str) -> str | None:
    """Return the first line of a file, or None if none is named. Raises `ConfigError` if there is none to read."""
    if not file:
        return None
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"cannot read the passphrase file {file}: {why}") from error
    if not lines or not lines[0]:
        raise ConfigError(f"the first line of the passphrase file {file} is empty; expected the passphrase")
    return lines[0]


def accepted_key_of(psk_accept_file: str, key: NetworkKey | None) -> NetworkKey | None:
    """Return the second key that a node takes while its network changes from one to another.

    Raises:
        ConfigError: the file cannot be read, or is no key file; or the node has no key, or the same.
    """
    if not psk_accept_file:
        return None
    accepted = read_network_key(Path(psk_accept_file).expanduser())
    if key is None or key == accepted:
        wrong = "the node is in no private network" if key is None else "it is the same as that of the network"
        raise ConfigError(
            f"a second network key is to be accepted ({psk_accept_file}), but {wrong}",
            hint="network.psk_file is the key that the node dials with, network.psk_accept_file the other one",
        )
    return accepted


def _content(what: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limits.KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the {what} key file {path}: {error.strerror}") from error
