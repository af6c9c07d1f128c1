"""Descriptors in the hash table: under which key they stand, which are taken, and under what they are claimed.

Knows: keys and the validator. Must not know: the table itself.
Source: `docs/protocol.md`, discovery.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.types import AgentId

NAMESPACE = "converge"
_CLAIM_TAG = "agent-claim"
_CHECKED_RECORDS = 256


def record_key(agent: AgentId) -> str:
    """Where the hash table keeps an agent's descriptor."""
    return f"/{NAMESPACE}/{agent}"


def capability_claim(name: str) -> bytes:
    """The key under which nodes claim to have a capability, 32 bytes."""
    return tagged_hash(_CLAIM_TAG, b"capability\0" + name.encode())


def topic_claim(namespace: str) -> bytes:
    """The key under which nodes claim to be about topics of a namespace, 32 bytes."""
    return tagged_hash(_CLAIM_TAG, b"topic\0" + namespace.encode())


def claims_of(descriptor: AgentDescriptor) -> Iterator[bytes]:
    """Yield the keys under which an agent is to be found, each once."""
    for name in dict.fromkeys(capability.name for capability in descriptor.capabilities):
        yield capability_claim(name)
    for namespace in dict.fromkeys(topic.namespace for topic in descriptor.topics):
        yield topic_claim(namespace)


class DescriptorRecords:
    """Which descriptors the hash table takes: genuine ones, under the id of their key, and tombstones likewise."""

    def rank(self, key: str, value: bytes) -> int | None:
        """See `net.RecordValidator`: the rank of the descriptor, or None to refuse."""
        found = _genuine(value)
        if found is None:
            return None
        descriptor, rank = found
        try:
            descriptor.check_times(int(time.time() * 1000))
        except ConvergeError:
            return None
        return rank if key == record_key(descriptor.agent_id) else None


@functools.lru_cache(maxsize=_CHECKED_RECORDS)
def _genuine(value: bytes) -> tuple[AgentDescriptor, int] | None:
    """Read a descriptor and verify it. The table asks several times for one record."""
    try:
        descriptor = AgentDescriptor.from_bytes(value)
    except ConvergeError:
        return None
    return (descriptor, descriptor.rank) if descriptor.verify() else None
