"""What is said on the local link: "who of this service is here?", and "I am, at these addresses".

Knows: DNS packets, and how a private network seals what it says. Must not know: sockets.
Source: RFC 6762 (multicast DNS), RFC 6763 (services), libp2p specifications, discovery/mdns.md.

Public nodes speak as the specification says, under a service name of their own: other libp2p programs on the link are
no use to them. A private network has a service name that follows from its key, and seals the addresses with it: to
everybody else it is a random name and random bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.model.network_key import NetworkKey

ADDRESS: Final = b"dnsaddr="
SEALED: Final = b"sealed="
TTL_S: Final = 120

_TEXT_BYTES_MAX: Final = 255
"""Of one string in a TXT record, by RFC 1035."""


@dataclass(frozen=True, slots=True)
class Here:
    """Somebody says who and where he is.

    Attributes:
        addresses: texts that ought to be full multiaddrs; nothing about them is checked.
    """

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """Somebody asks who is here."""


class Service:
    """What the nodes of one network say to each other."""

    def __init__(self, key: NetworkKey | None) -> None:
        """Args:
        key: of the private network, or None for the public one.
        """
        tag = "" if key is None else "-" + tagged_hash("mdns-name", key.secret)[:8].hex()
        self.name = dns.name.from_text(f"_converge-p2p{tag}._udp.local.")
        self._box = None if key is None else SecretBox(tagged_hash("mdns-seal", key.secret))
        # says nothing about the node, and is another one after each start
        self._instance = dns.name.from_text(f"{os.urandom(16).hex()}.{self.name}")

    def question(self) -> bytes:
        """Return a packet that asks who is here."""
        message = dns.message.Message(id=0)
        message.question.append(dns.rrset.RRset(self.name, dns.rdataclass.IN, dns.rdatatype.PTR))
        return message.to_wire()

    def here(self, addresses: list[str]) -> bytes:
        """Return a packet that says where this node is.

        Args:
            addresses: full multiaddrs; what does not fit is left out.
        """
        texts = [self._sealed(address) for address in addresses[: limits.ADDRESSES_PER_PEER_MAX]]
        fitting = [text for text in texts if len(text) <= _TEXT_BYTES_MAX]
        message = dns.message.Message(id=0)
        message.flags |= dns.flags.QR | dns.flags.AA
        pointer = dns.rrset.from_text(self.name, TTL_S, "IN", "PTR", str(self._instance))
        quoted = (" ".join(_quoted(text) for text in fitting)) or '""'
        message.answer += [pointer, dns.rrset.from_text(self._instance, TTL_S, "IN", "TXT", quoted)]
        return message.to_wire()

    def read(self, packet: bytes) -> Here | Question | None:
        """Return what a packet says to this service, or None if it is for somebody else, garbage, or the own one."""
        if len(packet) > limits.MDNS_PACKET_BYTES_MAX:
            return None
        try:
            message = dns.message.from_wire(packet, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError, IndexError):
            return None
        if not message.flags & dns.flags.QR:
            asked = any(question.name == self.name for question in message.question)
            return Question() if asked else None
        found: list[str] = []
        for rrset in (*message.answer, *message.additional):
            if rrset.rdtype != dns.rdatatype.TXT or not rrset.name.is_subdomain(self.name):
                continue
            if rrset.name == self._instance:
                return None
            found += [text for record in rrset for text in map(self._opened, record.strings) if text is not None]
        return Here(tuple(found[: limits.ADDRESSES_PER_PEER_MAX])) if found else None

    def _sealed(self, address: str) -> bytes:
        if self._box is None:
            return ADDRESS + address.encode()
        return SEALED + bytes(self._box.encrypt(address.encode()))

    def _opened(self, text: bytes) -> str | None:
        try:
            if self._box is None:
                return text.removeprefix(ADDRESS).decode() if text.startswith(ADDRESS) else None
            return self._box.decrypt(text.removeprefix(SEALED)).decode() if text.startswith(SEALED) else None
        except (CryptoError, ValueError):
            return None


def _quoted(text: bytes) -> str:
    """Return bytes as a string of DNS's text form."""
    return '"' + "".join(f"\\{byte:03d}" for byte in text) + '"'
