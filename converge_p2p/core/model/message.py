"""A message: what agents say to each other, signed by its sender.

Knows: a message's fields, its signed bytes, its envelope, and the encryption of its payload. Must not know: how it is
carried, who may send it, or which ids were seen (see `replay`).
Source: the concepts page; `docs/protocol.md`, messages. Signature: Ed25519 over canonical CBOR. Encryption:
XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) with the header as associated data.

A message is made in steps, and each step returns a new one: `create` → `stamp` → optionally `seal` or `encrypt_payload`
→ `sign`. What is sealed opens with the recipient's private key alone; what is encrypted, with a key that readers share.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt, crypto_aead_xchacha20poly1305_ietf_encrypt
from nacl.exceptions import CryptoError
from nacl.utils import random as random_bytes

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, decode_value, domain_bytes, encode, encode_value
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, NotFound, RemoteViolation, SignatureError
from converge_p2p.core.identity import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    Identity,
    fingerprint,
    verify as verify_signature,
)
from converge_p2p.core.model.attributes import check_bytes, check_integer
from converge_p2p.core.model.envelope import pack_envelope, unpack_envelope
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.model.secrecy import SEAL_BYTES, exchange_key_of, open_bytes, seal_bytes
from converge_p2p.core.model.topic import Topic, check_topics, sorted_topics
from converge_p2p.core.model.trace import TraceContext
from converge_p2p.core.types import AgentId, PublicKey, TaskId

MESSAGE_TAG = "message"
PAYLOAD_TAG = "message-payload"
SEALED_TAG = "message-sealed"
MESSAGE_ID_BYTES = 16
PAYLOAD_KEY_BYTES = 32

_NONCE_BYTES = 24
_TASK_ID_BYTES = 32
_AGENT_ID = re.compile(r"[0-9a-f]{64}")
_FIELD_COUNT = 9
_NO_KEY = PublicKey(b"")


@dataclass(frozen=True, slots=True)
class Message:
    """A message. Immutable: the payload is kept as bytes, and `payload` decodes them afresh.

    Attributes:
        sender: agent id of whoever signs it.
        body: the encoded payload, or its ciphertext if `sealed`.
        recipient: agent id it is for; None is everybody, or everybody on the topics.
        topics: sorted by their bytes, without repeats, at most `limits.MESSAGE_TOPICS_MAX`.
        task_id: the task it is about, or None.
        sealed: whether `body` is encrypted, to the recipient or with a shared key.
        id: 16 bytes that the sender never uses twice; empty before `stamp`.
        timestamp_ms: Unix time of the sender, milliseconds; 0 before `stamp`.
        expires_ms: Unix time after which nobody takes it; 0 before `stamp`.
        public_key: the sender's key; empty before `sign`.
        signature: 64 bytes; empty before `sign`.
        trace: the trace that it was sent in (`TraceContext`, 25 bytes), or empty. Its sender says so; nobody checks it.

    Raises:
        LocalError: a field of another form.
        LimitExceeded: a field larger than its bound.
    """

    sender: AgentId
    body: bytes
    recipient: AgentId | None = None
    topics: tuple[Topic, ...] = ()
    task_id: TaskId | None = None
    sealed: bool = False
    id: bytes = b""
    timestamp_ms: int = 0
    expires_ms: int = 0
    public_key: PublicKey = _NO_KEY
    signature: bytes = b""
    trace: bytes = b""
    # the bytes that came in; `replace` drops them, so they can never belong to other fields
    _received: bytes = field(default=b"", init=False, repr=False, compare=False)
    _opened: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what, agent in (("sender", self.sender), ("recipient", self.recipient)):
            if not (agent is None and what == "recipient") and not _is_agent_id(agent):
                raise LocalError(f"{what} is {agent!r}; expected an agent id: 64 lowercase hexadecimal digits")
        _check_length("body", self.body, None)
        check_bytes("MESSAGE_BYTES_MAX", "body", len(self.body))
        check_topics("a message", self.topics)
        check_bytes("MESSAGE_TOPICS_MAX", "topics", len(self.topics))
        if self.task_id is not None:
            _check_length("task_id", self.task_id, _TASK_ID_BYTES)
        _check_length("id", self.id, MESSAGE_ID_BYTES if self.stamped else 0)
        for name in ("timestamp_ms", "expires_ms"):
            check_integer(name, getattr(self, name), limits.SEQ_MAX)
        if self.stamped and not 0 < self.expires_ms - self.timestamp_ms <= limits.MESSAGE_TTL_MS_MAX:
            raise LocalError(
                f"the message lives {self.expires_ms - self.timestamp_ms} ms; expected 1 to {limits.MESSAGE_TTL_MS_MAX}"
            )
        _check_trace(self.trace)
        if self.signature or self.public_key:
            _check_length("public_key", self.public_key, PUBLIC_KEY_BYTES)
            _check_length("signature", self.signature, SIGNATURE_BYTES)
            if fingerprint(self.public_key) != self.sender:
                raise LocalError(f"the public key is not the key of the sender {self.sender}")

    @classmethod
    def create(
        cls,
        sender: AgentId,
        payload: Any = None,
        *,
        recipient: AgentId | None = None,
        topics: Collection[Topic] = (),
        task_id: TaskId | None = None,
    ) -> Message:
        """Make a message that is neither stamped nor signed: what an agent hands to its node.

        Args:
            sender: agent id of whoever will sign it.
            payload: numbers, text, bytes, lists, and maps with text keys, in any order.
            recipient: agent id it is for, or None.
            topics: in any order; repeats are dropped.
            task_id: the task it is about, or None.

        Raises:
            CodecError: a payload that cannot be encoded.
            LocalError, LimitExceeded: see the class.
        """
        return cls(sender, encode_value(payload), recipient, sorted_topics(topics), task_id)

    def reply(self, payload: Any = None) -> Message:
        """Make an answer to whoever sent this message to one agent, from that agent. See `create`.

        Raises:
            LocalError: the message was for topics or for everybody, so that it does not say who answers.
        """
        if self.recipient is None:
            raise LocalError(
                "a message that has no recipient does not say who answers it", hint="use create, with the own agent id"
            )
        return Message.create(self.recipient, payload, recipient=self.sender, task_id=self.task_id)

    @property
    def payload(self) -> Any:
        """The decoded payload, a new value each time.

        Raises:
            LocalError: it is encrypted, and was not opened.
            CodecError: the sender wrote something that is not a msgpack value.
        """
        if self._opened is not None:
            return decode_value(self._opened)
        if self.sealed:
            raise LocalError("the payload is encrypted", hint="use decrypt_payload(key)")
        return decode_value(self.body)

    @property
    def stamped(self) -> bool:
        """Whether it has an id and its times."""
        return bool(self.id)

    @property
    def signed(self) -> bool:
        """Whether it carries a signature. `verify` says whether it is a good one."""
        return bool(self.signature)

    def stamp(self, now_ms: int, *, ttl_ms: int = limits.MESSAGE_TTL_MS, message_id: bytes | None = None) -> Message:
        """Return it with an id and its times, without a signature.

        Args:
            now_ms: Unix time, milliseconds.
            ttl_ms: how long it may be taken, 1 to `limits.MESSAGE_TTL_MS_MAX`.
            message_id: 16 bytes never used before; None draws them at random.

        Raises:
            LocalError: the payload is already encrypted under another header, or a value is out of its range.
        """
        if self.sealed:
            raise LocalError("an encrypted payload is bound to its header", hint="stamp first, then encrypt")
        return replace(
            self,
            id=random_bytes(MESSAGE_ID_BYTES) if message_id is None else message_id,
            timestamp_ms=now_ms,
            expires_ms=now_ms + ttl_ms,
            public_key=_NO_KEY,
            signature=b"",
        )

    def sign(self, identity: Identity) -> Message:
        """Return it signed.

        Raises:
            LocalError: the identity is not the sender or cannot sign, or the message is not stamped.
            LimitExceeded: larger than `limits.MESSAGE_BYTES_MAX`.
        """
        if identity.id != self.sender:
            raise LocalError(
                f"agent {identity.id} cannot sign a message of sender {self.sender}", hint="make it with sender=own id"
            )
        if not self.stamped:
            raise LocalError("a message needs an id and its times before it is signed", hint="use stamp(now_ms)")
        signature = identity.sign(MESSAGE_TAG, self._encode(identity.public_key))
        signed = replace(self, public_key=identity.public_key, signature=signature)
        check_bytes("MESSAGE_BYTES_MAX", "message", len(signed.to_bytes()))
        return signed

    def verify(self, keys: PublicKey | IdentityRegistry | None = None) -> bool:
        """Say whether the signature is the sender's over exactly these bytes.

        Args:
            keys: None: the key inside, which hashes to the sender's id, is enough. A key: it must be this one. A
                registry: the sender must be known there.
        """
        if not self.signed:
            return False
        if isinstance(keys, IdentityRegistry):
            try:
                keys = keys.public_key(self.sender)
            except NotFound:
                return False
        if keys is not None and keys != self.public_key:
            return False
        return verify_signature(self.public_key, MESSAGE_TAG, self.signed_bytes(), self.signature)

    def check(self, now_ms: int, keys: PublicKey | IdentityRegistry | None = None) -> None:
        """Check everything that can be said of one message alone; repeats are for `ReplayWindow.check`.

        Args:
            now_ms: Unix time, milliseconds.
            keys: as in `verify`.

        Raises:
            RemoteViolation: reason `message_expired`, `message_from_future` (more than `limits.MESSAGE_CLOCK_SKEW_MS`
                ahead of this clock) or `message_signature`.
        """
        # the cheap checks come first: a signature costs a hundred times as much
        if now_ms >= self.expires_ms:
            raise RemoteViolation("message_expired", f"the message expired at {self.expires_ms}, it is {now_ms} now")
        if self.timestamp_ms > now_ms + limits.MESSAGE_CLOCK_SKEW_MS:
            raise RemoteViolation(
                "message_from_future", f"the message is from {self.timestamp_ms}, it is only {now_ms} now"
            )
        if not self.verify(keys):
            raise RemoteViolation("message_signature", f"no valid signature of sender {self.sender}")

    def seal(self, key: PublicKey, *, entropy: bytes | None = None) -> Message:
        """Return it with the payload sealed to its recipient, and bound to everything else in the message.

        Args:
            key: the recipient's public key.
            entropy: 32 fresh random bytes; None draws them.

        Raises:
            LocalError: the key is not the recipient's, or the message is not stamped, already encrypted, or signed.
            SignatureError: nothing can be sealed to this key.
        """
        if self.recipient is None or fingerprint(key) != self.recipient:
            raise LocalError("a message is sealed to its recipient's key", hint="create it with recipient=agent id")
        self._check_sealable()
        check_bytes("MESSAGE_BYTES_MAX", "body", len(self.body) + SEAL_BYTES)
        sealed = seal_bytes(self.body, exchange_key_of(key), self._header(SEALED_TAG), entropy or random_bytes(32))
        return replace(self, body=sealed, sealed=True)

    def unseal(self, identity: Identity) -> Message:
        """Return it with a payload that can be read; signature and bytes stay as they came.

        Raises:
            LocalError: it is not sealed, or the identity is not its recipient or cannot sign.
            SignatureError: it is not sealed to this key (perhaps encrypted with a shared one), or was changed.
        """
        if not self.sealed or self.recipient != identity.id:
            raise LocalError("only the recipient of a sealed message can open it")
        plain = open_bytes(self.body, identity.exchange_secret, self._header(SEALED_TAG))
        opened = replace(self)
        object.__setattr__(opened, "_received", self._received)
        object.__setattr__(opened, "_opened", plain)
        return opened

    @property
    def opened(self) -> bytes | None:
        """The encoded payload of a sealed message that was opened; None of any other."""
        return self._opened

    def opened_as(self, plain: bytes | None) -> Message:
        """Return it with a payload that was opened before: for records that its reader keeps for itself."""
        if plain is not None:
            object.__setattr__(self, "_opened", plain)
        return self

    def encrypt_payload(self, key: bytes) -> Message:
        """Return it with the payload encrypted and bound to everything else in the message.

        Args:
            key: 32 bytes that the readers share.

        Raises:
            LocalError: a key of another length, or a message that is not stamped, already encrypted, or signed.
        """
        return self._seal(key, random_bytes(_NONCE_BYTES))

    def decrypt_payload(self, key: bytes) -> Any:
        """Return the payload of an encrypted message.

        Raises:
            LocalError: a key of another length, or a message that is not encrypted.
            SignatureError: another key, or the ciphertext or the header was changed.
            CodecError: what was encrypted is not a msgpack value.
        """
        _check_length("key", key, PAYLOAD_KEY_BYTES)
        if not self.sealed:
            raise LocalError("the payload is not encrypted", hint="read it with payload")
        nonce, sealed = self.body[:_NONCE_BYTES], self.body[_NONCE_BYTES:]
        try:
            plain = crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, self._header(), nonce, key)
        except (CryptoError, ValueError, TypeError) as error:
            raise SignatureError("the payload does not decrypt: another key, or the message was changed") from error
        return decode_value(plain)

    @property
    def trace_context(self) -> TraceContext | None:
        """The trace that it was sent in, if its sender says so."""
        return TraceContext.from_bytes(self.trace) if self.trace else None

    def signed_bytes(self) -> bytes:
        """Return the canonical bytes that the signature covers (under the domain tag `message`).

        Raises:
            LocalError: the message is not signed.
        """
        if not self.signed:
            raise LocalError("an unsigned message has no wire form", hint="use stamp(now_ms) and sign(identity)")
        return self._received or self._encode(self.public_key)

    def to_bytes(self) -> bytes:
        """Return the msgpack envelope.

        Raises:
            LocalError: the message is not signed.
        """
        return pack_envelope(self.signed_bytes(), self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """Read an envelope. The signature is not verified: use `check` or `verify` before believing it.

        Raises:
            CodecError: too large, not canonical, or out of bounds.
        """
        signed, signature = unpack_envelope("message", data, limits.MESSAGE_BYTES_MAX)
        fields = decode(signed)
        if not isinstance(fields, list) or not _FIELD_COUNT <= len(fields) <= _FIELD_COUNT + 1:
            raise CodecError(f"a message is an array of {_FIELD_COUNT}, or one more with its trace")
        message_id, key, recipient, topics, body, sealed, task_id, timestamp_ms, expires_ms, *trace = fields
        if trace and not trace[0]:
            raise CodecError("a message without a trace has no field for it")
        if type(key) is not bytes or type(sealed) is not bool or not isinstance(topics, list):
            raise CodecError("a message needs a key, a list of topics, and a truth value for its encryption")
        if not message_id or not (recipient is None or type(recipient) is bytes):
            raise CodecError("a message needs an id, and a recipient of 32 bytes or none")
        if len(topics) > limits.MESSAGE_TOPICS_MAX or any(type(topic) is not bytes for topic in topics):
            raise CodecError(f"topics of a message are at most {limits.MESSAGE_TOPICS_MAX} byte strings")
        try:
            message = cls(
                fingerprint(PublicKey(key)), body, None if recipient is None else AgentId(recipient.hex()),
                tuple(Topic.from_bytes(topic) for topic in topics), task_id, sealed, message_id, timestamp_ms,
                expires_ms, PublicKey(key), signature, *trace,
            )  # fmt: skip
        except (LocalError, LimitExceeded) as error:
            raise CodecError(f"not a message: {error}") from error
        object.__setattr__(message, "_received", signed)
        return message

    def _encode(self, public_key: PublicKey) -> bytes:
        return encode([
            self.id, public_key, _raw_id(self.recipient), [topic.to_bytes() for topic in self.topics], self.body,
            self.sealed, self.task_id, self.timestamp_ms, self.expires_ms, *([self.trace] if self.trace else ()),
        ])  # fmt: skip

    def _header(self, tag: str = PAYLOAD_TAG) -> bytes:
        # everything but the payload: a ciphertext moved under another header must not decrypt
        header = [
            self.id, _raw_id(self.sender), _raw_id(self.recipient), [topic.to_bytes() for topic in self.topics],
            self.task_id, self.timestamp_ms, self.expires_ms,
        ]  # fmt: skip
        return domain_bytes(tag, encode(header))

    def _seal(self, key: bytes, nonce: bytes) -> Message:
        _check_length("key", key, PAYLOAD_KEY_BYTES)
        self._check_sealable()
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(self.body, self._header(), nonce, key)
        return replace(self, body=nonce + sealed, sealed=True)

    def _check_sealable(self) -> None:
        if self.sealed or self.signed or not self.stamped:
            raise LocalError(
                "only a stamped, unsigned message with a clear payload can be encrypted",
                hint="create → stamp → seal or encrypt_payload → sign",
            )


def _is_agent_id(agent: object) -> bool:
    return isinstance(agent, str) and _AGENT_ID.fullmatch(agent) is not None


def _raw_id(agent: AgentId | None) -> bytes | None:
    return None if agent is None else bytes.fromhex(agent)


def _check_trace(trace: bytes) -> None:
    _check_length("trace", trace, None)
    try:
        if trace:
            TraceContext.from_bytes(trace)
    except CodecError as error:
        raise LocalError(str(error)) from error


def _check_length(what: str, value: object, size: int | None) -> None:
    if type(value) is not bytes:
        raise LocalError(f"{what} is of type {type(value).__name__}; expected bytes")
    if size is not None and len(value) != size:
        raise LocalError(f"{what} has {len(value)} bytes; expected {size}")
