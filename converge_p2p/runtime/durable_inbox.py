"""A durable inbox: messages are on disk before their sender is told that they were taken, until the agent saw them.

Knows: one agent's messages and where they are kept. Must not know: the queue in memory, or the network.
Source: the concepts page (recovery: message replay is best effort, unless it is asked for).

A message is kept under its sender and id, so one that comes twice is kept once. The agent sees each at least once: a
crash after `decide` and before the deletion hands it over again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, ConvergeError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.message import Message
from converge_p2p.runtime.ports import ReplayStore

_logger = logging.getLogger(__name__)


class DurableInbox:
    """What is kept of the messages of one agent."""

    def __init__(self, store: ReplayStore, prefix: str, identity: Identity) -> None:
        """Make it; `load` reads what is there.

        Args:
            store: where messages are kept, as they came: what was sealed stays sealed.
            prefix: begins their keys.
            identity: opens what is sealed.
        """
        self._store = store
        self._prefix = prefix
        self._identity = identity
        self._kept: dict[str, None] = {}

    def __len__(self) -> int:
        """Return how many messages the agent has not seen."""
        return len(self._kept)

    @property
    def full(self) -> bool:
        """Whether no more are taken for now: as many wait as an inbox that blocks can hold at most.

        Before that, the inbox in memory says whose messages have to wait.
        """
        return len(self._kept) >= 2 * limits.INBOX_MESSAGES_MAX + limits.MAIL_WAITING_MAX

    async def load(self) -> list[Message]:
        """Read what the agent had not seen when the node ended, the oldest first.

        Raises:
            StoreError: the store cannot be read.
        """
        return await trio.to_thread.run_sync(self._load_now)

    async def keep(self, messages: Sequence[Message]) -> None:
        """Write messages down.

        Raises:
            StoreError: they cannot be written; nobody may be told that they were taken.
        """
        new = {self._key(message): message for message in messages if self._key(message) not in self._kept}
        if new:
            self._kept.update(dict.fromkeys(new))
            await trio.to_thread.run_sync(self._keep_now, new)

    async def done(self, messages: Sequence[Message]) -> None:
        """See `Mailbox`."""
        keys = [key for key in map(self._key, messages) if key in self._kept]
        for key in keys:
            del self._kept[key]
        if keys:
            await trio.to_thread.run_sync(self._delete_now, keys)

    def _key(self, message: Message) -> str:
        return f"{self._prefix}{message.timestamp_ms:016d}/{message.sender}/{message.id.hex()}"

    def _load_now(self) -> list[Message]:
        found = []
        for key in self._store.list(self._prefix):
            try:
                message = Message.from_bytes(self._store.get(key) or b"")
                if message.sealed and message.recipient == self._identity.id:
                    message = message.unseal(self._identity)
            except (CodecError, ConvergeError) as error:
                _logger.warning("a message in a durable inbox cannot be read: %s", error)
                self._store.delete(key)
                continue
            self._kept[key] = None
            found.append(message)
        return found

    def _keep_now(self, messages: dict[str, Message]) -> None:
        for key, message in messages.items():
            self._store.put(key, message.to_bytes())

    def _delete_now(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._store.delete(key)
