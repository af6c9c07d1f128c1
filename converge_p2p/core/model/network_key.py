"""The key of a private network, and the file it is kept in.

Knows: the three encodings of a `swarm.key` file. Must not know: ciphers, connections, or where the file lies.
Source: libp2p specifications, pnet/Private-Networks-PSK-V1-Spec.md. go-libp2p writes base16 and reads all three;
js-libp2p knows base16 alone, so base16 is what is written here.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import CodecError, LocalError

NETWORK_KEY_BYTES: Final = 32
NETWORK_ID_BYTES: Final = 8

_HEADER: Final = b"/key/swarm/psk/1.0.0/"
_HINT: Final = "`converge-node mesh new FILE` writes a good one"


@dataclass(frozen=True, slots=True)
class NetworkKey:
    """The secret that all hosts of a private network share.

    Attributes:
        secret: 32 bytes from a source of randomness, as `secrets.token_bytes`; never shown.
        network: 8 bytes that name the network and tell nothing about the secret.

    Raises:
        LocalError: not 32 bytes.
    """

    secret: bytes = field(repr=False)
    network: bytes = field(init=False)

    def __post_init__(self) -> None:
        if type(self.secret) is not bytes or len(self.secret) != NETWORK_KEY_BYTES:
            raise LocalError(f"the key of a private network has {NETWORK_KEY_BYTES} bytes", hint=_HINT)
        object.__setattr__(self, "network", tagged_hash("network", self.secret)[:NETWORK_ID_BYTES])

    def to_file(self) -> bytes:
        """Return the bytes of a `swarm.key` file that go-libp2p and js-libp2p read too."""
        return _HEADER + b"\n/base16/\n" + self.secret.hex().encode() + b"\n"

    @classmethod
    def from_file(cls, data: bytes) -> NetworkKey:
        """Read the bytes of a `swarm.key` file.

        Raises:
            CodecError: another kind of file, or a key that is cut off, too long, or not in the encoding that is named.
        """
        if len(data) > limits.KEY_FILE_BYTES_MAX:
            raise CodecError(f"a network key file has at most {limits.KEY_FILE_BYTES_MAX} bytes", hint=_HINT)
        header, _, rest = data.partition(b"\n")
        if header.rstrip() != _HEADER:
            raise CodecError(f"not a network key file: its first line is not {_HEADER.decode()}", hint=_HINT)
        encoding, separator, body = rest.partition(b"\n")
        if not separator:
            raise CodecError("the network key file is cut off: expected its encoding, then the key", hint=_HINT)
        secret = _decoded(encoding.rstrip(), body)
        if len(secret) != NETWORK_KEY_BYTES:
            raise CodecError(
                f"the key in the network key file has {len(secret)} bytes; expected {NETWORK_KEY_BYTES}", hint=_HINT
            )
        return cls(secret)


def _decoded(encoding: bytes, body: bytes) -> bytes:
    match encoding:
        case b"/base16/":
            try:
                return bytes.fromhex(body.strip().decode("ascii"))
            except ValueError as error:
                raise CodecError("the key in the network key file is not hexadecimal", hint=_HINT) from error
        case b"/base64/":
            try:
                return base64.b64decode(body.strip(), validate=True)
            except (ValueError, binascii.Error) as error:
                raise CodecError("the key in the network key file is not base64", hint=_HINT) from error
        case b"/bin/":
            # raw bytes may end in what looks like white space; a line feed behind them is a text editor's
            return body[:-1] if len(body) == NETWORK_KEY_BYTES + 1 and body.endswith(b"\n") else body
        case _:
            known = "/base16/, /base64/ or /bin/"
            raise CodecError(f"the network key file names encoding {encoding[:32]!r}; expected {known}", hint=_HINT)
