"""Records of an encrypted connection after the noise handshake: sealing and opening, without input and output.

Knows: two bytes of length, ChaCha20-Poly1305, a nonce that counts. Must not know: the handshake, sockets,
what is inside.
Source: noise protocol framework, revision 34, "The CipherState object"; libp2p noise specification, "Wire format".
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from converge_p2p.core.errors import LocalError, RemoteViolation

LENGTH_BYTES: Final = 2
TAG_BYTES: Final = 16
RECORD_BYTES_MAX: Final = 65_535
PLAINTEXT_BYTES_MAX: Final = RECORD_BYTES_MAX - TAG_BYTES

_NONCES: Final = 2**64 - 1
_PAD: Final = bytes(4)


class Sealer:
    """Encrypts one direction. What it returns must be sent, whole and in this order: the nonces count."""

    __slots__ = ("_cipher", "_nonce")

    def __init__(self, key: bytes, nonce: int) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = nonce

    def seal(self, data: bytes) -> bytes:
        """Return data as records, each behind its length.

        Raises:
            LocalError: the nonces are used up, after 2**64 - 1 records.
        """
        if len(data) <= PLAINTEXT_BYTES_MAX:
            return b"".join(self._record(data))
        parts: list[bytes] = []
        for start in range(0, len(data), PLAINTEXT_BYTES_MAX):
            parts.extend(self._record(data[start : start + PLAINTEXT_BYTES_MAX]))
        return b"".join(parts)

    def _record(self, data: bytes) -> tuple[bytes, bytes]:
        nonce = self._nonce
        if nonce >= _NONCES:
            raise LocalError("the connection has used up its nonces", hint="connect anew")
        self._nonce = nonce + 1
        sealed = self._cipher.encrypt(_PAD + nonce.to_bytes(8, "little"), data, None)
        return len(sealed).to_bytes(LENGTH_BYTES, "big"), sealed


class Opener:
    """Decrypts the other direction. Holds at most one incomplete record."""

    __slots__ = ("_cipher", "_nonce", "_pending")

    def __init__(self, key: bytes, nonce: int) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = nonce
        self._pending = b""

    @property
    def pending_bytes(self) -> int:
        """Bytes of the incomplete record that are held."""
        return len(self._pending)

    def feed(self, data: bytes) -> bytes:
        """Take received bytes and return what the records that they complete hold.

        Raises:
            RemoteViolation: a record is shorter than its tag, or was not sealed with this key and nonce. Nothing that
                comes after it can be opened.
        """
        if self._pending:
            data = self._pending + data
        view = memoryview(data)
        parts: list[bytes] = []
        position, end = 0, len(data)
        while end - position >= LENGTH_BYTES:
            length = data[position] << 8 | data[position + 1]
            if length < TAG_BYTES:
                raise RemoteViolation("noise_bad_record", f"record of {length} bytes; at least {TAG_BYTES} expected")
            start = position + LENGTH_BYTES
            if end - start < length:
                break
            nonce = self._nonce
            if nonce >= _NONCES:
                raise RemoteViolation("noise_bad_record", "more records than there are nonces")
            self._nonce = nonce + 1
            try:
                parts.append(
                    self._cipher.decrypt(_PAD + nonce.to_bytes(8, "little"), view[start : start + length], None)
                )
            except InvalidTag:
                raise RemoteViolation("noise_bad_record", "a record was not sealed by the peer") from None
            position = start + length
        self._pending = data[position:]
        return parts[0] if len(parts) == 1 else b"".join(parts)
