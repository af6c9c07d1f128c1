"""An agent's descriptor: what it says of itself, signed, so that others can find and reach it.

Knows: a descriptor's fields, its signed bytes, and which of two is newer. Must not know: where descriptors are kept or
how they are searched.
Source: the concepts page (discovery and registration); `docs/protocol.md`, descriptors. The agent id is the hash of the
key inside, so a descriptor proves by itself whose it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode, tagged_hash
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, RemoteViolation
from converge_p2p.core.identity import SIGNATURE_BYTES, Identity, fingerprint, verify
from converge_p2p.core.model.attributes import check_bytes, check_integer, check_text
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.envelope import pack_envelope, unpack_envelope
from converge_p2p.core.model.topic import Topic, check_topics, sorted_topics
from converge_p2p.core.types import AgentId, PublicKey

DESCRIPTOR_TAG = "descriptor"
DIGEST_TAG = "descriptor-digest"

_FIELD_COUNT = 9
_NOTHING: tuple[str, tuple[str, ...], tuple[Topic, ...], tuple[Capability, ...]] = ("", (), (), ())


@dataclass(frozen=True, slots=True)
class AgentDescriptor:
    """What an agent says of itself.

    Attributes:
        public_key: the agent's key; its hash is the agent's id.
        sequence: higher replaces lower, 0 to `limits.SEQ_MAX`. The Unix time in milliseconds will do.
        issued_ms: Unix time of its making, milliseconds.
        expires_ms: Unix time after which nobody uses it; at most `limits.DESCRIPTOR_TTL_MS_MAX` later.
        left: the agent is gone: a *tombstone*, which says nothing else, and replaces what was said before.
        name: for people, or empty. Anybody can take any name: never decide by it.
        addresses: multiaddresses, the preferred first, at most `limits.DESCRIPTOR_ADDRESSES_MAX`.
        topics: sorted by their bytes, without repeats, at most `limits.DESCRIPTOR_TOPICS_MAX`.
        capabilities: sorted by their bytes, without repeats, at most `limits.DESCRIPTOR_CAPABILITIES_MAX`.
        signature: 64 bytes; empty before `sign`.

    Raises:
        LocalError: a field of another form.
        LimitExceeded: a field larger than its bound.
        CodecError: a key of another length.
    """

    public_key: PublicKey
    sequence: int
    issued_ms: int
    expires_ms: int
    left: bool = False
    name: str = ""
    addresses: tuple[str, ...] = ()
    topics: tuple[Topic, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    signature: bytes = b""
    # the bytes that came in; `replace` drops them, so they can never belong to other fields
    _received: bytes = field(default=b"", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fingerprint(self.public_key)
        for number in ("sequence", "issued_ms", "expires_ms"):
            check_integer(number, getattr(self, number), limits.SEQ_MAX)
        lifetime_ms = self.expires_ms - self.issued_ms
        if not 0 < lifetime_ms <= limits.DESCRIPTOR_TTL_MS_MAX:
            raise LocalError(f"the descriptor lives {lifetime_ms} ms; expected 1 to {limits.DESCRIPTOR_TTL_MS_MAX}")
        if type(self.left) is not bool or (
            self.left and (self.name, self.addresses, self.topics, self.capabilities) != _NOTHING
        ):
            raise LocalError("left is true or false, and an agent that left says nothing else")
        check_text("name", self.name)
        if not isinstance(self.addresses, tuple) or len(set(self.addresses)) != len(self.addresses):
            raise LocalError("addresses must be a tuple without repeats")
        check_bytes("DESCRIPTOR_ADDRESSES_MAX", "addresses", len(self.addresses))
        for address in self.addresses:
            check_text("address", address)
            if not address.startswith("/"):
                raise LocalError(f"address {address!r} is not a multiaddress; expected something like /ip4/…/tcp/…")
        check_topics("a descriptor", self.topics)
        check_bytes("DESCRIPTOR_TOPICS_MAX", "topics", len(self.topics))
        check_bytes("DESCRIPTOR_CAPABILITIES_MAX", "capabilities", len(self.capabilities))
        encoded = [capability.to_bytes() for capability in self.capabilities]
        if not isinstance(self.capabilities, tuple) or encoded != sorted(set(encoded)):
            raise LocalError("capabilities must be a tuple, sorted by their bytes and without repeats")
        if self.signature and len(self.signature) != SIGNATURE_BYTES:
            raise LocalError(f"signature has {len(self.signature)} bytes; expected {SIGNATURE_BYTES}")

    @classmethod
    def create(
        cls,
        identity: Identity,
        *,
        sequence: int,
        now_ms: int,
        ttl_ms: int = limits.DESCRIPTOR_TTL_MS_MAX,
        name: str = "",
        addresses: Sequence[str] = (),
        topics: Collection[Topic] = (),
        capabilities: Collection[Capability] = (),
    ) -> AgentDescriptor:
        """Make and sign a descriptor.

        Args:
            identity: whose it is; must be able to sign.
            sequence: higher than in every earlier descriptor of this identity.
            now_ms: Unix time, milliseconds.
            ttl_ms: how long it is good for.
            name: for people.
            addresses: the preferred first; repeats are dropped.
            topics: in any order.
            capabilities: in any order.

        Raises:
            LocalError, LimitExceeded: see the class and `sign`.
        """
        skills = tuple(sorted(set(capabilities), key=Capability.to_bytes))
        return cls(
            identity.public_key, sequence, now_ms, now_ms + ttl_ms, False, name, tuple(dict.fromkeys(addresses)),
            sorted_topics(topics), skills,
        ).sign(identity)  # fmt: skip

    @classmethod
    def tombstone(
        cls, identity: Identity, *, sequence: int, now_ms: int, ttl_ms: int = limits.DESCRIPTOR_TTL_MS_MAX
    ) -> AgentDescriptor:
        """Make and sign what says that the agent is gone.

        Args:
            identity, sequence, now_ms: see `create`.
            ttl_ms: how long it is remembered. Anything less than the default could expire before an older descriptor
                does, which would then count again.

        Raises:
            LocalError, LimitExceeded: see the class and `sign`.
        """
        return cls(identity.public_key, sequence, now_ms, now_ms + ttl_ms, left=True).sign(identity)

    @property
    def agent_id(self) -> AgentId:
        """The id of the agent, derived from its key."""
        return fingerprint(self.public_key)

    def sign(self, identity: Identity) -> AgentDescriptor:
        """Return it signed.

        Raises:
            LocalError: the identity is another one or cannot sign.
            LimitExceeded: larger than `limits.DESCRIPTOR_BYTES_MAX`.
        """
        if identity.public_key != self.public_key:
            raise LocalError(f"agent {identity.id} cannot sign a descriptor of agent {self.agent_id}")
        signed = replace(self, signature=identity.sign(DESCRIPTOR_TAG, self._encode()))
        check_bytes("DESCRIPTOR_BYTES_MAX", "descriptor", len(signed.to_bytes()))
        return signed

    def verify(self) -> bool:
        """Say whether the signature is the agent's over exactly these bytes."""
        return bool(self.signature) and verify(self.public_key, DESCRIPTOR_TAG, self.signed_bytes(), self.signature)

    def check(self, now_ms: int) -> None:
        """Check everything that can be said of one descriptor alone.

        Args:
            now_ms: Unix time, milliseconds.

        Raises:
            RemoteViolation: reason `descriptor_expired`, `descriptor_from_future` or `descriptor_signature`.
        """
        self.check_times(now_ms)
        if not self.verify():
            raise RemoteViolation("descriptor_signature", f"no valid signature of agent {self.agent_id}")

    def check_times(self, now_ms: int) -> None:
        """Check whether it counts now, if it is genuine.

        Raises:
            RemoteViolation: reason `descriptor_expired` or `descriptor_from_future`.
        """
        if now_ms >= self.expires_ms:
            raise RemoteViolation(
                "descriptor_expired", f"the descriptor expired at {self.expires_ms}, it is {now_ms} now"
            )
        if self.issued_ms > now_ms + limits.MESSAGE_CLOCK_SKEW_MS:
            raise RemoteViolation(
                "descriptor_from_future", f"the descriptor is from {self.issued_ms}, it is only {now_ms} now"
            )

    def supersedes(self, other: AgentDescriptor) -> bool:
        """Say whether this one replaces the other, which every node answers alike.

        Of two with one sequence number (the agent signed both) the greater digest wins, so that all keep the same.

        Raises:
            LocalError: they are not of the same agent, or one is not signed.
        """
        if other.public_key != self.public_key:
            raise LocalError("descriptors of different agents do not replace each other")
        return self.rank > other.rank

    @property
    def digest(self) -> bytes:
        """32-byte hash of the signed bytes.

        Raises:
            LocalError: the descriptor is not signed.
        """
        return tagged_hash(DIGEST_TAG, self.signed_bytes())

    @property
    def rank(self) -> int:
        """A number that is higher for what replaces the other: the sequence, then the digest.

        Raises:
            LocalError: the descriptor is not signed.
        """
        return (self.sequence << 256) | int.from_bytes(self.digest, "big")

    def signed_bytes(self) -> bytes:
        """Return the canonical bytes that the signature covers (under the domain tag `descriptor`).

        Raises:
            LocalError: the descriptor is not signed.
        """
        if not self.signature:
            raise LocalError("an unsigned descriptor has no wire form", hint="use sign(identity)")
        return self._received or self._encode()

    def to_bytes(self) -> bytes:
        """Return the msgpack envelope.

        Raises:
            LocalError: the descriptor is not signed.
        """
        return pack_envelope(self.signed_bytes(), self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> AgentDescriptor:
        """Read an envelope. The signature is not verified: use `check` or `verify` before believing it.

        Raises:
            CodecError: too large, not canonical, or out of bounds.
        """
        signed, signature = unpack_envelope("descriptor", data, limits.DESCRIPTOR_BYTES_MAX)
        fields = decode(signed)
        if not isinstance(fields, list) or len(fields) != _FIELD_COUNT:
            raise CodecError(f"a descriptor is an array of {_FIELD_COUNT}")
        key, sequence, issued_ms, expires_ms, left, name, addresses, topics, capabilities = fields
        if type(key) is not bytes or not all(isinstance(part, list) for part in (addresses, topics, capabilities)):
            raise CodecError("a descriptor needs a key, and lists of addresses, topics and capabilities")
        # counted before they are built: building is what costs
        if len(topics) > limits.DESCRIPTOR_TOPICS_MAX or any(type(topic) is not bytes for topic in topics):
            raise CodecError(f"topics of a descriptor are at most {limits.DESCRIPTOR_TOPICS_MAX} byte strings")
        if len(capabilities) > limits.DESCRIPTOR_CAPABILITIES_MAX or any(type(text) is not str for text in addresses):
            raise CodecError("a descriptor has too many capabilities, or an address that is not text")
        try:
            descriptor = cls(
                PublicKey(key), sequence, issued_ms, expires_ms, left, name, tuple(addresses),
                tuple(Topic.from_bytes(topic) for topic in topics),
                tuple(Capability.from_fields(part) for part in capabilities), signature,
            )  # fmt: skip
        except (LocalError, LimitExceeded) as error:
            raise CodecError(f"not a descriptor: {error}") from error
        object.__setattr__(descriptor, "_received", signed)
        return descriptor

    def _encode(self) -> bytes:
        return encode([
            self.public_key, self.sequence, self.issued_ms, self.expires_ms, self.left, self.name, list(self.addresses),
            [topic.to_bytes() for topic in self.topics],
            [capability.to_fields() for capability in self.capabilities],
        ])  # fmt: skip
