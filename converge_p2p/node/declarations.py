"""What this node says of itself to the network, and the number of the last time it did.

Knows: who in this node declares what, the one descriptor that follows, and what is kept of it in the store. Must not
know: how descriptors travel.
Source: `docs/protocol.md`, discovery.

The number must never go back, or nobody would listen: it is at least the time, higher than the last one that the
store remembers (written before it is used), and higher than any that comes back from the network under the own key. So
it goes on rightly after a restart, with an old copy of the store, and with a clock that was set back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, LimitExceeded
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.topic import Topic
from converge_p2p.store.api import Store

_logger = logging.getLogger(__name__)

SEQUENCE_KEY = "agents/own/sequence/"
DECLARED_KEY = "agents/own/declared/"
DESCRIPTOR_TTL_MS = 2 * 3600 * 1000
"""How long a descriptor is good for; it is renewed about every hour. So one renewal may be lost, which comparing makes
good within minutes, and who was killed is found for two hours at most."""
KEPT = "kept"
"""Who declares what was declared for good, and is declared again after a restart."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What somebody in this node declares.

    Attributes:
        name: for people; of several the first that is not empty counts.
        topics: what it is about.
        capabilities: what it can do.
    """

    name: str = ""
    topics: tuple[Topic, ...] = ()
    capabilities: tuple[Capability, ...] = ()

    @classmethod
    def of(
        cls, name: str = "", topics: Iterable[Topic | str] = (), capabilities: Iterable[Capability | str] = ()
    ) -> Declaration:
        """Make one; text is the namespace of a topic, or the name of a capability.

        Raises:
            LocalError, LimitExceeded: text that is none.
        """
        return cls(
            name,
            tuple(Topic(topic) if isinstance(topic, str) else topic for topic in topics),
            tuple(Capability(skill) if isinstance(skill, str) else skill for skill in capabilities),
        )


class Declarations:
    """All declarations of one node, and its descriptor. The methods that end in `_now` block."""

    def __init__(self, identity: Identity, store: Store, now_ms: Callable[[], int]) -> None:
        """Declare nothing yet.

        Args:
            identity: who signs.
            store: remembers the number.
            now_ms: Unix time, milliseconds.
        """
        self._identity = identity
        self._store = store
        self._now_ms = now_ms
        self._declared: dict[str, Declaration] = {}
        self._sequence = 0
        self.version = 0
        """Higher after each change."""
        self._signing = trio.Lock()

    @property
    def any(self) -> bool:
        """Whether something is declared."""
        return bool(self._declared)

    def declare(self, by: str, declaration: Declaration) -> None:
        """Declare something, in place of what the same one declared before.

        Raises:
            LimitExceeded: too many declare something, or together too much.
        """
        before = self._declared.get(by)
        if before is None and len(self._declared) >= limits.DECLARATIONS_MAX:
            raise LimitExceeded("DECLARATIONS_MAX", f"{limits.DECLARATIONS_MAX} declare something already")
        self._declared[by] = declaration
        try:
            # what cannot be signed must fail here, not in the background, when addresses have been added
            longest = "/" + "x" * (limits.ADDRESS_BYTES_MAX - 2)
            self._sign(0, self._now_ms(), [f"{longest}{n}" for n in range(limits.ADDRESSES_PER_PEER_MAX)])
        except BaseException:
            del self._declared[by]
            if before is not None:
                self._declared[by] = before
            raise
        self.version += 1

    def withdraw(self, by: str) -> bool:
        """Take back what somebody declared; say whether there was something."""
        self.version += 1
        return self._declared.pop(by, None) is not None

    def heard(self, sequence: int) -> bool:
        """A genuine descriptor of this key came from outside: the next one is higher. Say whether it is news."""
        if sequence <= self._sequence:
            return False
        self._sequence = sequence
        return True

    async def next(self, addresses: Sequence[str]) -> AgentDescriptor:
        """Sign the next descriptor, a tombstone if nothing is declared. Its number is durable before this returns.

        Raises:
            StoreError: the store cannot be written.
        """
        sequence, now_ms = await self._next_sequence()
        if self._declared:
            return self._sign(sequence, now_ms, addresses)
        return AgentDescriptor.tombstone(self._identity, sequence=sequence, now_ms=now_ms)

    async def farewell(self) -> AgentDescriptor:
        """Sign a tombstone, whatever is declared. Raises as `next`."""
        sequence, now_ms = await self._next_sequence()
        return AgentDescriptor.tombstone(self._identity, sequence=sequence, now_ms=now_ms)

    async def _next_sequence(self) -> tuple[int, int]:
        async with self._signing:
            now_ms = self._now_ms()
            sequence = self._sequence = max(now_ms, self._sequence + 1)
            await trio.to_thread.run_sync(self._store.put, self._key(SEQUENCE_KEY), encode(sequence))
        return sequence, now_ms

    def _sign(self, sequence: int, now_ms: int, addresses: Sequence[str]) -> AgentDescriptor:
        declared = self._declared.values()
        return AgentDescriptor.create(
            self._identity,
            sequence=sequence,
            now_ms=now_ms,
            ttl_ms=DESCRIPTOR_TTL_MS,
            name=next((each.name for each in declared if each.name), ""),
            addresses=[each for each in addresses if len(each) <= limits.ADDRESS_BYTES_MAX][
                : limits.ADDRESSES_PER_PEER_MAX
            ],
            topics={topic for each in declared for topic in each.topics},
            capabilities={skill for each in declared for skill in each.capabilities},
        )

    # ------------------------------------------------------------ what is kept

    def restore_now(self) -> None:
        """Go on from the number of the last run, and with what was declared for good.

        Raises:
            StoreError: the store cannot be read.
        """
        for key, read in ((SEQUENCE_KEY, self._read_sequence), (DECLARED_KEY, self._read_declared)):
            data = self._store.get(self._key(key))
            if data is None:
                continue
            try:
                read(decode(data))
            except (CodecError, LimitExceeded) as error:
                # the network remembers the number, and a person what was published
                _logger.warning("%s of the store is damaged: %s", key, error)

    def keep_now(self, declaration: Declaration | None) -> None:
        """Remember what is declared for good, or that nothing is.

        Raises:
            StoreError: the store cannot be written.
        """
        if declaration is None:
            self._store.delete(self._key(DECLARED_KEY))
            return
        topics = [topic.to_bytes() for topic in declaration.topics]
        skills = [skill.to_fields() for skill in declaration.capabilities]
        self._store.put(self._key(DECLARED_KEY), encode([declaration.name, topics, skills]))

    def _read_sequence(self, plain: object) -> None:
        if type(plain) is not int or not 0 <= plain <= limits.SEQ_MAX:
            raise CodecError("a sequence is a number")
        self._sequence = max(self._sequence, plain)

    def _read_declared(self, plain: object) -> None:
        match plain:
            case [str() as name, list() as topics, list() as skills]:
                read = Declaration(
                    name, tuple(map(Topic.from_bytes, topics)), tuple(map(Capability.from_fields, skills))
                )
                self.declare(KEPT, read)
            case _:
                raise CodecError("a declaration is a name, topics and capabilities")

    def _key(self, prefix: str) -> str:
        # one store may serve several keys, one after the other
        return prefix + self._identity.id
