"""What a node is opened with: its identity, its store, and the settings of its network.

Knows: which file is what, and which setting goes before which. Must not know: who uses them. What ends in
`_now` blocks.
Source: `docs/operations.md`, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import trio

from converge_p2p.core.identity import Identity
from converge_p2p.net import NetworkConfig
from converge_p2p.node.config import NodeConfig
from converge_p2p.node.records import NAMESPACE, DescriptorRecords
from converge_p2p.node.restored import StoreAge
from converge_p2p.store.api import NodeStore
from converge_p2p.store.home import BLOB_FOLDER, DATABASE_FILE, KEY_FILE, only_node_in
from converge_p2p.store.keyfile import load_or_create_identity
from converge_p2p.store.memory import MemoryStore
from converge_p2p.store.private_files import remove_left_overs
from converge_p2p.store.sqlite import SqliteStore


async def open_files(
    stack: AsyncExitStack, home: Path | None, identity: Identity | None, store: NodeStore | None, *, restored: bool
) -> tuple[Identity, NodeStore, StoreAge]:
    """Hold the home for as long as the stack, and open what lies in it: identity, store, and how old the store is.

    Args:
        stack: closes what was opened.
        home: of the node; None is in memory.
        identity, store: what was given in place of what is there.
        restored: see `StoreAge.open_now`.

    Raises:
        StoreError, CodecError: another node is there, or something cannot be read.
    """
    if home is not None:
        stack.enter_context(only_node_in(home))
    opened_identity = await trio.to_thread.run_sync(load_identity_now, identity, home)
    opened = await trio.to_thread.run_sync(open_store_now, store, home)
    if store is None:
        stack.callback(opened.close)
    age = StoreAge(opened, home)
    await trio.to_thread.run_sync(lambda: age.open_now(restored=restored))
    return opened_identity, opened, age


def load_identity_now(given: Identity | None, home: Path | None) -> Identity:
    """Return the identity that was given, that of the home, or a new one.

    Raises:
        StoreError, CodecError: the key file cannot be read.
    """
    if home is not None:
        # the home is held by this node: what a killed one left half written belongs to nobody
        remove_left_overs(home / KEY_FILE)
    if given is not None:
        return given
    return Identity.generate() if home is None else load_or_create_identity(home / KEY_FILE)


def open_store_now(given: NodeStore | None, home: Path | None) -> NodeStore:
    """Return the store that was given, that of the home, or one in memory.

    Raises:
        StoreError: the database cannot be opened.
    """
    if given is not None:
        return given
    return MemoryStore() if home is None else SqliteStore(home / DATABASE_FILE)


def blob_folder(home: Path | None) -> Path | None:
    """Return where the blobs of a home lie; None is in memory."""
    return None if home is None else home / BLOB_FOLDER


def network_config(
    config: NodeConfig, listen: Sequence[str], bootstrap: Sequence[str], announce: Sequence[str]
) -> NetworkConfig:
    """Return the settings of the network: what the constructor was given, then what the settings say."""
    base = config.network or NetworkConfig(listen=())
    return replace(
        base,
        listen=tuple(listen) or base.listen,
        bootstrap=tuple(bootstrap) or base.bootstrap,
        announce=tuple(announce) or base.announce,
        network_key=config.network_key or base.network_key,
        validators={NAMESPACE: DescriptorRecords(), **base.validators},
    )
