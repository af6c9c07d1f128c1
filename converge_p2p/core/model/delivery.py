"""The receipt of a direct message: its recipient says that it took it.

Knows: a receipt's fields and its one encoding. Must not know: how it travels, or what became of the message afterwards.
Source: `docs/protocol.md`, direct requests. Signature: Ed25519 over canonical CBOR.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode, tagged_hash
from converge_p2p.core.errors import CodecError, LocalError
from converge_p2p.core.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from converge_p2p.core.model.message import Message
from converge_p2p.core.types import PublicKey

DELIVERY_TAG = "delivery"
MESSAGE_HASH_TAG = "message-hash"
_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class DeliveryReceipt:
    """What a recipient signs about a message it took. A message that is sent again gets another receipt.

    Attributes:
        message: hash of the signed message.
        recipient: who took it.
        taken_ms: Unix time of the recipient when it signed, milliseconds.
        signature: the recipient's.
    """

    message: bytes
    recipient: PublicKey
    taken_ms: int
    signature: bytes

    def proves(self, message: Message) -> bool:
        """Whether the recipient of exactly this message signed that it took it."""
        return (
            Identity.from_public_key(self.recipient).id == message.recipient
            and self.message == message_hash(message)
            and verify(self.recipient, DELIVERY_TAG, self._signed(), self.signature)
        )

    def _signed(self) -> bytes:
        return encode([self.message, self.recipient, self.taken_ms])

    def to_bytes(self) -> bytes:
        """Return canonical bytes."""
        return encode([self.message, self.recipient, self.taken_ms, self.signature])

    @classmethod
    def from_bytes(cls, data: bytes) -> DeliveryReceipt:
        """Read a receipt; `proves` says whether it is one for a message.

        Raises:
            CodecError: not canonical, another shape, or out of bounds.
        """
        fields = decode(data)
        if type(fields) is not list or [type(item) for item in fields] != [bytes, bytes, int, bytes]:
            raise CodecError("a delivery receipt is an array of hash, key, time and signature")
        message, recipient, taken_ms, signature = fields
        if (len(message), len(recipient), len(signature)) != (_HASH_BYTES, PUBLIC_KEY_BYTES, SIGNATURE_BYTES):
            raise CodecError("a hash, key or signature of a delivery receipt has the wrong length")
        if not 0 <= taken_ms <= limits.SEQ_MAX:
            raise CodecError(f"the time of a delivery receipt is 0 to {limits.SEQ_MAX}")
        return cls(message, PublicKey(recipient), taken_ms, signature)


def message_hash(message: Message) -> bytes:
    """Return what names a signed message, with everything that was signed.

    Raises:
        LocalError: it is not signed.
    """
    return tagged_hash(MESSAGE_HASH_TAG, message.signed_bytes())


def sign_delivery(recipient: Identity, message: Message, now_ms: int) -> DeliveryReceipt:
    """Say that a message was taken.

    Raises:
        LocalError: it is for another agent, or the identity cannot sign.
    """
    if message.recipient != recipient.id:
        raise LocalError("only the recipient of a message gives a receipt for it")
    unsigned = DeliveryReceipt(message_hash(message), recipient.public_key, now_ms, b"")
    signature = recipient.sign(DELIVERY_TAG, unsigned._signed())
    return DeliveryReceipt(unsigned.message, unsigned.recipient, now_ms, signature)
