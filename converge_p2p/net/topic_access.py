"""Who may know of a private topic: a policy, and nothing else.

Knows: names of private topics, the keys that members have, and which peers proved that they have them. Must not know:
streams, or gossip's messages (the hooks in `gossip` ask this object, and it answers yes or no).
Source: `docs/protocol.md`, private topics. The proof is an HMAC (RFC 2104) over both peers' names and fresh numbers of
both, so that it is worth nothing to anybody else and at no other time.

The rule: nothing about a private topic goes to, or is taken from, a peer that did not prove that it is a member. What
nobody here takes part in is private all the same if its name says so: a name that was left must not leak later.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from converge_p2p.core import limits
from converge_p2p.core.codec import domain_bytes
from converge_p2p.core.errors import LimitExceeded, LocalError

PRIVATE_PREFIX: Final = "converge/private/"
TAG_BYTES: Final = 32
NONCE_BYTES: Final = 32
MEMBER_KEY_BYTES: Final = 32

_BUCKETS: Final = (4, 16, 64, limits.PRIVATE_TOPICS_MAX)


def is_private(topic: str) -> bool:
    """Whether a gossip topic's name is that of a private topic."""
    return topic.startswith(PRIVATE_PREFIX)


class TopicAccess:
    """Private topics of this node, and their members among the connected peers. Peers are named by any hashable."""

    def __init__(self) -> None:
        """Begin without private topics."""
        self._keys: dict[str, bytes] = {}
        self._members: dict[str, set[object]] = {}

    def __len__(self) -> int:
        """Return how many private topics take members."""
        return len(self._keys)

    def guard(self, topic: str, member_key: bytes) -> None:
        """Take part in a private topic: nobody has proven anything about it yet.

        Raises:
            LocalError: not the name of a private topic, or a key of another length.
            LimitExceeded: `limits.PRIVATE_TOPICS_MAX` are guarded already.
        """
        if not is_private(topic) or len(member_key) != MEMBER_KEY_BYTES:
            raise LocalError(f"a private topic is called {PRIVATE_PREFIX}… and has a key of {MEMBER_KEY_BYTES} bytes")
        if topic not in self._members and len(self._members) >= limits.PRIVATE_TOPICS_MAX:
            raise LimitExceeded("PRIVATE_TOPICS_MAX", f"at most {limits.PRIVATE_TOPICS_MAX} private topics at once")
        self._keys[topic] = member_key
        self._members[topic] = set()

    def retire(self, topic: str) -> None:
        """Its key was replaced: whoever proved that it is a member stays one, and nobody becomes one any more."""
        self._keys.pop(topic, None)

    def unguard(self, topic: str) -> None:
        """Take part in a private topic no more. Its name stays private."""
        self._keys.pop(topic, None)
        self._members.pop(topic, None)

    def may_see(self, peer: object, topic: str) -> bool:
        """Whether anything about a topic may go to a peer, and is taken from it."""
        return not is_private(topic) or peer in self._members.get(topic, ())

    def topics_of(self, peer: object) -> list[str]:
        """Return the private topics that a peer is a member of."""
        return [topic for topic, members in self._members.items() if peer in members]

    def admit(self, peer: object, topics: Iterable[str]) -> list[str]:
        """A peer proved that it is a member; return the topics that still take members."""
        admitted = [topic for topic in topics if topic in self._keys]
        for topic in admitted:
            self._members[topic].add(peer)
        return admitted

    def forget(self, peer: object) -> None:
        """A peer is gone, and what it proved with it."""
        for members in self._members.values():
            members.discard(peer)

    # ------------------------------------------------------------ proofs

    def tags(self, context: bytes, noise: bytes) -> bytes:
        """Return what proves to a member, and to nobody else, which topics this node is a member of.

        Args:
            context: what `proof_context` returned, for this node's role.
            noise: random bytes that hide how many there are; at least `limits.PRIVATE_TOPICS_MAX` tags long.

        Returns:
            Tags, sorted; as many as the next bucket holds.
        """
        own = [_tag(key, context) for key in self._keys.values()]
        room = next(size for size in _BUCKETS if size >= len(own))
        filling = [noise[index * TAG_BYTES : (index + 1) * TAG_BYTES] for index in range(room - len(own))]
        return b"".join(sorted(own + filling))

    def recognised(self, context: bytes, tags: bytes) -> list[str]:
        """Return the topics that a peer's tags show it to be a member of.

        Args:
            context: what `proof_context` returned, for the peer's role.
            tags: any bytes.
        """
        shown = {tags[start : start + TAG_BYTES] for start in range(0, len(tags), TAG_BYTES)}
        return [topic for topic, key in self._keys.items() if _tag(key, context) in shown]


def proof_context(role: str, asker: bytes, asked: bytes, asker_nonce: bytes, asked_nonce: bytes) -> bytes:
    """Return what a proof is bound to.

    Args:
        role: `asker` or `asked`: whose proof it is, so that neither can hand the other's back.
        asker, asked: names of the two peers, as the handshake of their connection proved them.
        asker_nonce, asked_nonce: fresh random numbers of both.
    """
    names = b"".join(len(name).to_bytes(2, "big") + name for name in (asker, asked))
    return domain_bytes("topic-proof", role.encode() + b"\0" + names + asker_nonce + asked_nonce)


def _tag(member_key: bytes, context: bytes) -> bytes:
    return hmac.digest(member_key, context, hashlib.sha256)
