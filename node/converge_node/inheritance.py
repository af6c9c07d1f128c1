"""What a node inherits from the one whose key its own replaces, kept in its home until it has taken everything up.

Knows: one file. Must not know: how a place is handed over (see `cli.rotation`), or taken (see `inheriting`).
Source: docs/operations.md, a new key.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from converge_node.paths import NodePaths
from converge_p2p.client.identity_schema import Key, Signature
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError
from converge_p2p.core.oplog.succession import SucceedBody
from converge_p2p.core.types import PoolId, PublicKey
from converge_p2p.store.private_files import write_private_file

INHERITANCE_FILE: Final = "inheritance.json"


class DamagedInheritance(ConfigError):
    """The file holds something else. What it held can be had again from the old key's node."""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place of the old key in a pool.

    Attributes:
        pool, name: which.
        authorisation: the old key's signature that the new one takes it.
        content_keys: of a private pool, sealed to the new key, in base64.
    """

    pool: Key
    name: str
    authorisation: Signature
    content_keys: str = ""

    @property
    def id(self) -> PoolId:
        """Id of the pool."""
        return PoolId(bytes.fromhex(self.pool))

    def secrets(self) -> bytes:
        """Return the sealed content keys."""
        return base64.b64decode(self.content_keys)


class Inheritance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be taken up.

    Attributes:
        old, new: both keys.
        places: what was handed over, and was not taken yet.
        waiting: pools that the old key has not handed over yet. Until then the new one may sign nothing there.
        bootstrap: addresses at which somebody in the pools was found last.
    """

    old: Key
    new: Key
    version: Annotated[int, Meta(ge=1, le=1)] = 1
    places: Annotated[tuple[Place, ...], Meta(max_length=limits.POOLS_PER_NODE_MAX)] = ()
    waiting: Annotated[tuple[Key, ...], Meta(max_length=limits.POOLS_PER_NODE_MAX)] = ()
    bootstrap: Annotated[tuple[str, ...], Meta(max_length=limits.EXCHANGED_PEERS_MAX)] = ()

    def word(self, place: Place) -> SucceedBody:
        """Return what the new key begins with in a pool."""
        return SucceedBody(PublicKey(bytes.fromhex(self.old)), bytes.fromhex(place.authorisation))

    def given(self, place: Place) -> Inheritance:
        """Return it with a place that was handed over now."""
        rest = self.without(place.pool)
        return replace(rest, places=(*rest.places, place))

    def without(self, pool: str) -> Inheritance:
        """Return it without a pool."""
        return replace(
            self,
            places=tuple(place for place in self.places if place.pool != pool),
            waiting=tuple(each for each in self.waiting if each != pool),
        )


def inheritance_file(paths: NodePaths) -> Path:
    """Return the place of the file."""
    return paths.state_dir / INHERITANCE_FILE


def read_inheritance(paths: NodePaths) -> Inheritance | None:
    """Return what the home holds; None if it is that of a node that replaces no other.

    Raises:
        DamagedInheritance: the file is damaged.
        ConfigError: it cannot be read.
    """
    file = inheritance_file(paths)
    hint = "run `converge-node identity rotate` again with this folder as --new-home: it writes the file anew"
    try:
        with file.open("rb") as handle:
            data = handle.read(limits.INHERITANCE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > limits.INHERITANCE_BYTES_MAX:
        raise DamagedInheritance(f"{file} has more than {limits.INHERITANCE_BYTES_MAX} bytes", hint=hint)
    try:
        found = msgspec.json.decode(data, type=Inheritance)
        for place in found.places:
            place.secrets()
    except (msgspec.MsgspecError, ValueError) as error:
        raise DamagedInheritance(f"{file} is damaged: {error}", hint=hint) from error
    return found


def write_inheritance(paths: NodePaths, inheritance: Inheritance) -> None:
    """Replace the file in one step, readable by its owner only.

    Raises:
        StoreError: it cannot be written.
    """
    write_private_file(inheritance_file(paths), msgspec.json.encode(inheritance), replace=True)
