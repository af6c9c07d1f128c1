"""An invitation as one line of text: everything a newcomer needs, signed by who invites.

Knows: the line's fields, its signature and checksum, and what is wrong with a line that is no good. Must not know: who
may invite whom (see `admission`), or how a node obeys a line.
Source: `docs/protocol.md`, invitations.

A line holds secrets: of a network, of topics, and of who may join a pool. Whoever holds it is let in, so it is handed
over in private.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Final

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, NotAuthorised, SignatureError
from converge_p2p.core.identity import PUBLIC_KEY_BYTES, SEED_BYTES, SIGNATURE_BYTES, Identity, verify
from converge_p2p.core.model.network_key import NETWORK_KEY_BYTES, NetworkKey
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import TOPIC_KEY_BYTES, TopicKey
from converge_p2p.core.types import PoolId, PublicKey

LINE_TAG: Final = "invitation-line"
VERSION: Final = 1

_FORM: Final = re.compile(r"converge(?P<version>[0-9]{1,4}):(?P<body>[A-Za-z0-9_-]*)(:(?P<check>[0-9a-f]{0,8}))?")
_CHECK_DIGITS: Final = 8
_COPY: Final = "copy the whole line, as it was given out"


@dataclass(frozen=True, slots=True)
class PoolInvitation:
    """How the newcomer gets into a pool.

    Attributes:
        pool: its id.
        invitation: bytes of a `proofs.Invitation` that the join shows; or empty.
        ticket: seed of a key that the issuer's node exchanges for an invitation of the newcomer's own, as often as it
            said; or empty.
    """

    pool: PoolId
    invitation: bytes = field(default=b"", repr=False)
    ticket: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class InvitationLine:
    """An invitation.

    Attributes:
        issuer: who invites, and answers for what is in it.
        expires_ms: Unix time after which honest nodes do not use it any more; 0 is never.
        role: what the newcomer is meant to be, for people and applications.
        bootstrap: addresses with `/p2p/…` to find the network through.
        network_key: of a private network; None: a public one.
        topics: to take part in, with the keys of private ones.
        pool: to become a member of.
        signature: the issuer's.
    """

    issuer: PublicKey
    expires_ms: int = 0
    role: str = ""
    bootstrap: tuple[str, ...] = ()
    network_key: NetworkKey | None = None
    topics: tuple[tuple[Topic, TopicKey | None], ...] = ()
    pool: PoolInvitation | None = None
    signature: bytes = b""

    def check_for(self, network_key: NetworkKey | None, now_ms: int) -> None:
        """Check that a node may use it.

        Args:
            network_key: of the node's network.
            now_ms: Unix time.

        Raises:
            NotAuthorised: it expired.
            LocalError: it is for another network.
        """
        if self.expires_ms and now_ms >= self.expires_ms:
            hours = (now_ms - self.expires_ms) // 3_600_000
            raise NotAuthorised(f"the invitation expired {hours} hours ago", hint="ask for a new one")
        if self.network_key == network_key:
            return
        if self.network_key is None:
            raise LocalError(
                "the invitation is not for this network: it is for the public one, and this node is in a private one",
                hint="use it with a node that has a --home of its own and no network key",
            )
        raise LocalError(
            "the invitation is not for this network: it is for a private one, whose key this node does not use",
            hint="a node is in one network: use it with a new --home DIR, before the node's first start",
        )

    def _fields(self) -> list[Any]:
        pool = None if self.pool is None else [self.pool.pool, self.pool.invitation, self.pool.ticket]
        topics = [[topic.to_bytes(), b"" if key is None else key.secret] for topic, key in self.topics]
        network = b"" if self.network_key is None else self.network_key.secret
        return [self.issuer, self.expires_ms, self.role, list(self.bootstrap), network, topics, pool]

    def sign(self, issuer: Identity) -> InvitationLine:
        """Return it signed.

        Raises:
            LocalError: the identity is not the issuer.
            LimitExceeded: too much is in it.
        """
        if issuer.public_key != self.issuer:
            raise LocalError("an invitation is signed by its issuer")
        fields = self._fields()
        signature = issuer.sign(LINE_TAG, encode(fields))
        if len(encode([*fields, signature])) > limits.INVITATION_LINE_BYTES_MAX:
            raise LimitExceeded("INVITATION_LINE_BYTES_MAX", "too much is in the invitation", hint="name fewer topics")
        signed = _read([*fields, signature])
        assert signed.signature == signature
        return signed

    def to_text(self) -> str:
        """Return the line.

        Raises:
            LocalError: it is not signed.
        """
        if not self.signature:
            raise LocalError("an invitation is signed before it is handed out")
        body = base64.urlsafe_b64encode(encode([*self._fields(), self.signature])).rstrip(b"=").decode()
        return f"converge{VERSION}:{body}:{_checksum(VERSION, body)}"

    @classmethod
    def from_text(cls, text: str) -> InvitationLine:
        """Read a line. White space in it, as mail programs put there, does not matter.

        Raises:
            CodecError: no invitation, of another version, cut off, mistyped, or damaged.
            SignatureError: what is in it is not signed by its issuer.
        """
        plain = "".join(text.split())
        if len(plain) > 2 * limits.INVITATION_LINE_BYTES_MAX:
            raise CodecError("this is too long for an invitation", hint=_COPY)
        found = _FORM.fullmatch(plain)
        if found is None:
            raise CodecError(f"this is no invitation: expected a line that begins with converge{VERSION}:", hint=_COPY)
        if int(found["version"]) != VERSION:
            raise CodecError(
                f"the invitation has version {int(found['version'])}; this program reads version {VERSION}",
                hint="use a newer program, or ask for an invitation of this version",
            )
        body, check = found["body"], found["check"] or ""
        if len(check) < _CHECK_DIGITS:
            raise CodecError("the invitation is cut off: its end is missing", hint=_COPY)
        if check != _checksum(VERSION, body):
            raise CodecError("the invitation is damaged: its checksum is another one", hint=_COPY)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error) as error:
            raise CodecError("the invitation is damaged: it is not base64", hint=_COPY) from error
        if len(data) > limits.INVITATION_LINE_BYTES_MAX:
            raise CodecError(f"an invitation has at most {limits.INVITATION_LINE_BYTES_MAX} bytes")
        line = _read(decode(data))
        if not verify(line.issuer, LINE_TAG, encode(line._fields()), line.signature):
            raise SignatureError("the invitation is not signed by who it says issued it")
        return line


def _checksum(version: int, body: str) -> str:
    return hashlib.sha256(f"converge{version}:{body}".encode()).hexdigest()[:_CHECK_DIGITS]


def _read(plain: Any) -> InvitationLine:
    if type(plain) is not list or [type(item) for item in plain[:6]] != [bytes, int, str, list, bytes, list]:
        raise CodecError("a field of the invitation has the wrong type")
    if len(plain) != 8 or type(plain[7]) is not bytes:
        raise CodecError("an invitation is an array of eight")
    issuer, expires_ms, role, bootstrap, network, topics, pool, signature = plain
    if len(issuer) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise CodecError("issuer or signature of the invitation has the wrong length")
    if not 0 <= expires_ms <= limits.SEQ_MAX or len(role.encode()) > limits.NAME_BYTES_MAX:
        raise CodecError("time or role of the invitation is out of bounds")
    if len(network) not in (0, NETWORK_KEY_BYTES):
        raise CodecError(f"a network key has {NETWORK_KEY_BYTES} bytes")
    if len(bootstrap) > limits.ADDRESSES_PER_PEER_MAX or not all(
        type(item) is str and len(item.encode()) <= limits.ADDRESS_BYTES_MAX for item in bootstrap
    ):
        raise CodecError(f"an invitation has at most {limits.ADDRESSES_PER_PEER_MAX} addresses")
    if len(topics) > limits.INVITATION_TOPICS_MAX:
        raise CodecError(f"an invitation has at most {limits.INVITATION_TOPICS_MAX} topics")
    return InvitationLine(
        PublicKey(issuer),
        expires_ms,
        role,
        tuple(bootstrap),
        NetworkKey(network) if network else None,
        tuple(map(_topic, topics)),
        _pool(pool),
        signature,
    )


def _topic(plain: Any) -> tuple[Topic, TopicKey | None]:
    match plain:
        case [bytes(topic), bytes(key)] if len(key) in (0, TOPIC_KEY_BYTES):
            return Topic.from_bytes(topic), TopicKey(key) if key else None
    raise CodecError("a topic of the invitation is damaged")


def _pool(plain: Any) -> PoolInvitation | None:
    match plain:
        case None:
            return None
        case [bytes(pool), bytes(invitation), bytes(ticket)] if len(pool) == 32:
            if len(ticket) in (0, SEED_BYTES) and not (ticket and invitation):
                return PoolInvitation(PoolId(pool), invitation, ticket)
    raise CodecError("the pool of the invitation is damaged")
