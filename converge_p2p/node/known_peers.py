"""Addresses of good peers, kept for the next start.

Knows: one key of the store. Must not know: how peers are dialled.
Source: `docs/operations.md`, files: a node that lost its bootstrap peer finds the network again through these.
"""

from __future__ import annotations

import logging

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, StoreError
from converge_p2p.net import Network
from converge_p2p.store.api import Store

_logger = logging.getLogger(__name__)

PEERS_KEY = "peers/known"
SAVE_FIRST_S = 1.0
SAVE_INTERVAL_S = 30.0


class KnownPeers:
    """Reads and writes the addresses."""

    def __init__(self, store: Store) -> None:
        """Use a store; nothing is read yet."""
        self._store = store

    async def read(self) -> tuple[str, ...]:
        """Return the addresses of the last run. A damaged list counts as none: it is only a help."""
        data = await trio.to_thread.run_sync(self._store.get, PEERS_KEY)
        try:
            addresses = [] if data is None else decode(data)
        except CodecError:
            return ()
        if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
            return ()
        return tuple(addresses[: limits.KNOWN_PEERS_MAX])

    async def save(self, network: Network) -> None:
        """Write the addresses of peers that were reached. None reached: what was written before stays.

        A store that cannot write is only logged: the list is a help, and what must be written ends the node by itself.
        """
        good = list(network.good_addresses())[: limits.KNOWN_PEERS_MAX]
        if not good:
            return
        try:
            await trio.to_thread.run_sync(self._store.put, PEERS_KEY, encode(good))
        except StoreError as error:
            _logger.warning("the addresses of good peers were not kept: %s", error)

    async def run(self, network: Network) -> None:
        """Save from time to time, often in the beginning, until cancelled: a killed node remembers them too."""
        pause = SAVE_FIRST_S
        while True:
            await trio.sleep(pause)
            await self.save(network)
            pause = min(2 * pause, SAVE_INTERVAL_S)
