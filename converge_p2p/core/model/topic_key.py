"""The key of a private topic: the topic's name on the wire, who is a member, and what members say to each other.

Knows: a key, what is derived from it, and the one encoding of a sealed message. Must not know: who holds the key, or
how a message travels.
Source: `docs/protocol.md`, private topics. HMAC-SHA256 (RFC 2104), XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) with a
synthetic nonce after SIV (RFC 5297).

Whoever has the key reads everything, also what was said before, for as long as the key is used; so a member that is to
be shut out means a new key for all others.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any, Final

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt, crypto_aead_xchacha20poly1305_ietf_encrypt
from nacl.exceptions import CryptoError

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, domain_bytes, encode
from converge_p2p.core.errors import CodecError, LocalError, SignatureError
from converge_p2p.core.identity import PUBLIC_KEY_BYTES
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import PublicKey

TOPIC_KEY_BYTES: Final = 32

_HEADER: Final = b"converge-topic-key-1\n"
_NONCE_BYTES: Final = 24
_TAG_BYTES: Final = 16
_HINT: Final = "`converge-node topic new-key FILE` writes a good one"


@dataclass(frozen=True, slots=True)
class TopicKey:
    """The secret that the members of a private topic share.

    Attributes:
        secret: 32 bytes from a source of randomness, as `secrets.token_bytes`; never shown.

    Raises:
        LocalError: not 32 bytes.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if type(self.secret) is not bytes or len(self.secret) != TOPIC_KEY_BYTES:
            raise LocalError(f"the key of a private topic has {TOPIC_KEY_BYTES} bytes", hint=_HINT)

    def to_file(self) -> bytes:
        """Return the bytes of a key file."""
        return _HEADER + self.secret.hex().encode() + b"\n"

    @classmethod
    def from_file(cls, data: bytes) -> TopicKey:
        """Read the bytes of a key file.

        Raises:
            CodecError: another kind of file, or damaged.
        """
        if not data.startswith(_HEADER):
            raise CodecError("not a topic key file: its first line is not converge-topic-key-1", hint=_HINT)
        try:
            return cls(bytes.fromhex(data[len(_HEADER) :].decode("ascii").strip()))
        except (ValueError, LocalError) as error:
            raise CodecError(f"damaged topic key file: expected {2 * TOPIC_KEY_BYTES} hexadecimal digits") from error


@dataclass(frozen=True, slots=True)
class SealedTopicMessage:
    """A message as members of a private topic pass it on.

    Attributes:
        sender: public key of whoever signed what is inside.
        seq: a number that the sender never uses twice with one key.
        nonce, box: the ciphertext.
    """

    sender: PublicKey
    seq: int
    nonce: bytes
    box: bytes

    def to_bytes(self) -> bytes:
        """Return canonical bytes."""
        return encode([self.sender, self.seq, self.nonce, self.box])

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedTopicMessage:
        """Read one. Nothing is opened yet.

        Raises:
            CodecError: not canonical, another shape, or out of bounds.
        """
        if len(data) > limits.GOSSIP_DATA_BYTES_MAX:
            raise CodecError(f"a message on a private topic has at most {limits.GOSSIP_DATA_BYTES_MAX} bytes")
        fields: Any = decode(data)
        if type(fields) is not list or [type(item) for item in fields] != [bytes, int, bytes, bytes]:
            raise CodecError("a message on a private topic is an array of sender, number, nonce and ciphertext")
        sender, seq, nonce, box = fields
        if len(sender) != PUBLIC_KEY_BYTES or len(nonce) != _NONCE_BYTES or len(box) < _TAG_BYTES:
            raise CodecError("sender, nonce or ciphertext of a message on a private topic has the wrong length")
        if not 0 <= seq <= limits.SEQ_MAX:
            raise CodecError(f"the number of a message on a private topic is 0 to {limits.SEQ_MAX}")
        return cls(PublicKey(sender), seq, nonce, box)


class PrivateTopic:
    """A topic and a key: everything that is derived from the two.

    Attributes:
        topic: the topic; its own name never goes over the wire.
        name: what the topic is called there, 64 hexadecimal digits that tell nothing to who lacks the key.
        member_key: 32 bytes that only members have, for proving that one is a member.
    """

    __slots__ = ("_nonce_key", "_seal_key", "member_key", "name", "topic")

    def __init__(self, topic: Topic, key: TopicKey) -> None:
        """Derive everything."""
        self.topic = topic
        self.name = _derived(key, "topic-name", topic).hex()
        self.member_key = _derived(key, "topic-member", topic)
        self._seal_key = _derived(key, "topic-seal", topic)
        self._nonce_key = _derived(key, "topic-nonce", topic)

    def seal(self, sender: PublicKey, seq: int, plain: bytes) -> SealedTopicMessage:
        """Seal the bytes of a signed message. The same arguments always give the same bytes."""
        header = self._header(sender, seq)
        nonce = self._nonce(header, plain)
        box: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(plain, header, nonce, self._seal_key)
        return SealedTopicMessage(sender, seq, nonce, box)

    def open(self, sealed: SealedTopicMessage) -> bytes:
        """Open what a member sealed.

        Raises:
            SignatureError: another key or topic, or sender, number or ciphertext was changed.
        """
        header = self._header(sealed.sender, sealed.seq)
        try:
            plain: bytes = crypto_aead_xchacha20poly1305_ietf_decrypt(sealed.box, header, sealed.nonce, self._seal_key)
        except (CryptoError, ValueError, TypeError) as error:
            raise SignatureError("the message is not sealed with this topic's key, or was changed") from error
        # Poly1305 alone would let one ciphertext open under two keys to two texts; a nonce that is a hash does not
        if not hmac.compare_digest(sealed.nonce, self._nonce(header, plain)):
            raise SignatureError("the nonce of the message is not the one that belongs to it")
        return plain

    def _header(self, sender: PublicKey, seq: int) -> bytes:
        return domain_bytes("topic-sealed", encode([bytes.fromhex(self.name), sender, seq]))

    def _nonce(self, header: bytes, plain: bytes) -> bytes:
        material = len(header).to_bytes(8, "big") + header + plain
        return hmac.digest(self._nonce_key, material, hashlib.sha256)[:_NONCE_BYTES]


def _derived(key: TopicKey, purpose: str, topic: Topic) -> bytes:
    return hmac.digest(key.secret, domain_bytes(purpose, topic.to_bytes()), hashlib.sha256)
