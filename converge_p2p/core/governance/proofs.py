"""Proofs of admission: invitations, and vouches, both bound to the key that joins.

Knows: how they are made, encoded and verified. Must not know: which pools ask for one (see `admission`).
Source: `docs/protocol.md`, admission. A secret that is shown in clear is no secret after its first use, and a log is
read by everybody; so an invitation carries a key, and what is shown is that key's signature over the joiner's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, SignatureError
from converge_p2p.core.identity import PUBLIC_KEY_BYTES, SEED_BYTES, SIGNATURE_BYTES, Identity, verify
from converge_p2p.core.types import PoolId, PublicKey

INVITATION_TAG = "invitation"
INVITED_TAG = "invitation-use"
VOUCH_TAG = "vouch"

WORKER = "worker"
"""The role of an invitation that names no other."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """An elector or the creator lets somebody into a pool.

    Attributes:
        pool: the pool.
        issuer: who invites.
        key: the invitation's own public key; or that of the only agent that may use it.
        until_epoch: the last epoch in which a join may use it.
        role: what the newcomer is meant to be, for people and applications, at most 256 bytes.
        expires_ms: Unix time after which honest nodes do not use it any more; 0 is never. Decides nothing in the log.
        signature: the issuer's.
        secret: the seed of `key`, for whoever holds the invitation; empty if the invitation is for a named agent.
    """

    pool: PoolId
    issuer: PublicKey
    key: PublicKey
    until_epoch: int
    role: str
    expires_ms: int
    signature: bytes
    secret: bytes = field(default=b"", repr=False)

    @property
    def named(self) -> bool:
        """Whether only the agent with `key` can use it."""
        return not self.secret

    def expired(self, now_ms: int) -> bool:
        """Whether an honest node should not use it any more."""
        return self.expires_ms != 0 and now_ms >= self.expires_ms

    @property
    def genuine(self) -> bool:
        """Whether the issuer signed it. Whether the issuer may invite is the pool's to say."""
        return verify(self.issuer, INVITATION_TAG, self._signed(), self.signature)

    def _signed(self) -> bytes:
        return encode([self.pool, self.key, self.until_epoch, self.role, self.expires_ms])

    def to_bytes(self) -> bytes:
        """Return canonical bytes. With a secret they are as good as membership: hand them over in private."""
        return encode(
            [
                self.pool,
                self.issuer,
                self.key,
                self.until_epoch,
                self.role,
                self.expires_ms,
                self.signature,
                self.secret,
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Invitation:
        """Read an invitation, and check that it is signed and that its secret fits.

        Raises:
            CodecError: not canonical, another shape, or out of bounds.
            SignatureError: the signature is not the issuer's, or the secret not that of its key.
        """
        if len(data) > limits.INVITATION_BYTES_MAX:
            raise CodecError(f"an invitation has at most {limits.INVITATION_BYTES_MAX} bytes")
        fields = decode(data)
        if type(fields) is not list or len(fields) != 8:
            raise CodecError("an invitation is an array of eight")
        pool, *terms, secret = fields
        _check_bytes("the pool", pool, 32)
        if type(secret) is not bytes or len(secret) not in (0, SEED_BYTES):
            raise CodecError(f"the secret of an invitation has {SEED_BYTES} bytes, or none")
        invitation = _invitation(PoolId(pool), terms, secret)
        if secret and Identity.from_seed(secret).public_key != invitation.key:
            raise SignatureError("the secret is not that of the invitation's key")
        if not invitation.genuine:
            raise SignatureError("the invitation is not signed by who it says issued it")
        return invitation


@dataclass(frozen=True, slots=True)
class Vouch:
    """An elector answers for somebody who wants to join.

    Attributes:
        elector: who answers.
        until_epoch: the last epoch in which a join may show it.
        signature: of the elector, over the pool, the joiner and `until_epoch`.
    """

    elector: PublicKey
    until_epoch: int
    signature: bytes

    def genuine(self, pool: PoolId, joiner: PublicKey) -> bool:
        """Whether the elector vouched for this joiner in this pool."""
        return verify(self.elector, VOUCH_TAG, _vouched(pool, joiner, self.until_epoch), self.signature)

    def to_bytes(self) -> bytes:
        """Return canonical bytes, as an elector hands them to a newcomer."""
        return encode([self.elector, self.until_epoch, self.signature])

    @classmethod
    def from_bytes(cls, data: bytes) -> Vouch:
        """Read a vouch. Its signature is verified when it is used.

        Raises:
            CodecError: not canonical, another shape, or out of bounds.
        """
        return _vouch(decode(data))


@dataclass(frozen=True, slots=True)
class InvitationUse:
    """What a join shows: the invitation without its secret, and the signature of the invitation's key over the joiner.

    Attributes:
        invitation: which has no secret.
        use: the signature; empty if the invitation names the joiner, whose signature is under the join itself.
    """

    invitation: Invitation
    use: bytes

    def admits(self, joiner: PublicKey) -> bool:
        """Whether this was made for the joiner, from a genuine invitation."""
        invitation = self.invitation
        if not self.use:
            return invitation.key == joiner and invitation.genuine
        return invitation.genuine and verify(invitation.key, INVITED_TAG, encode([invitation.pool, joiner]), self.use)


def make_invitation(
    issuer: Identity,
    pool: PoolId,
    *,
    secret: bytes = b"",
    joiner: PublicKey | None = None,
    until_epoch: int,
    role: str = WORKER,
    expires_ms: int = 0,
) -> Invitation:
    """Invite whoever holds the invitation, or one agent.

    Args:
        issuer: an elector of the pool, or its creator.
        pool: the pool.
        secret: 32 fresh random bytes, for an invitation that its holder can use, also more than once.
        joiner: the only agent that may use it, in place of a secret.
        until_epoch: the last epoch in which a join may use it.
        role: what the newcomer is meant to be.
        expires_ms: Unix time after which honest nodes do not use it any more; 0 is never.

    Raises:
        LocalError: not exactly one of secret and joiner, or a bound is exceeded.
    """
    if (joiner is None) != bool(secret):
        raise LocalError("an invitation is either for one agent, or has a fresh secret")
    if joiner is None and len(secret) != SEED_BYTES:
        raise LocalError(f"the secret of an invitation has {SEED_BYTES} bytes, not {len(secret)}")
    key = Identity.from_seed(secret).public_key if joiner is None else joiner
    unsigned = [issuer.public_key, key, until_epoch, role, expires_ms, bytes(SIGNATURE_BYTES)]
    try:
        checked = _invitation(pool, unsigned, secret)
    except CodecError as error:
        raise LocalError(str(error)) from error
    signature = issuer.sign(INVITATION_TAG, checked._signed())
    return Invitation(pool, issuer.public_key, key, until_epoch, role, expires_ms, signature, secret)


def prove_invitation(invitation: Invitation, joiner: PublicKey, *, now_ms: int = 0) -> bytes:
    """Return the proof that `joiner` puts into its join. It is worth nothing to anybody else.

    Args:
        invitation: as it was handed over, with its secret.
        joiner: who joins.
        now_ms: Unix time.

    Raises:
        LocalError: it is for another agent, or expired.
    """
    if invitation.expired(now_ms):
        raise LocalError("the invitation has expired", hint="ask for a new one")
    if invitation.named:
        if invitation.key != joiner:
            raise LocalError("the invitation is for another agent", hint="ask for one of your own")
        use = b""
    else:
        use = Identity.from_seed(invitation.secret).sign(INVITED_TAG, encode([invitation.pool, joiner]))
    return encode(
        [
            invitation.issuer, invitation.key, invitation.until_epoch, invitation.role, invitation.expires_ms,
            invitation.signature, use,
        ]
    )  # fmt: skip


def read_invitation_use(proof: bytes, pool: PoolId) -> InvitationUse:
    """Read the proof of a join to a pool that asks for invitations. Signatures are not verified yet.

    Raises:
        CodecError: not canonical, another shape, or out of bounds.
    """
    if len(proof) > limits.INVITATION_BYTES_MAX:
        raise CodecError(f"a proof by invitation has at most {limits.INVITATION_BYTES_MAX} bytes")
    fields = decode(proof)
    if type(fields) is not list or len(fields) != 7:
        raise CodecError("a proof by invitation is an array of seven")
    *terms, use = fields
    if type(use) is not bytes or len(use) not in (0, SIGNATURE_BYTES):
        raise CodecError(f"the use of an invitation is a signature of {SIGNATURE_BYTES} bytes, or empty")
    return InvitationUse(_invitation(pool, terms, b""), use)


def make_vouch(elector: Identity, pool: PoolId, joiner: PublicKey, *, until_epoch: int) -> Vouch:
    """Answer for somebody. A node does so only for whom its own trust is at or above the pool's threshold.

    Raises:
        LocalError: `until_epoch` is out of bounds.
    """
    if not 0 <= until_epoch <= limits.SEQ_MAX:
        raise LocalError(f"until_epoch is 0 to {limits.SEQ_MAX}")
    return Vouch(elector.public_key, until_epoch, elector.sign(VOUCH_TAG, _vouched(pool, joiner, until_epoch)))


def prove_vouches(vouches: Iterable[Vouch]) -> bytes:
    """Return the proof that a newcomer puts into its join. Of one elector's vouches the longest counts.

    Raises:
        LimitExceeded: more than `limits.ADMISSION_NEED_MAX` electors.
    """
    best: dict[PublicKey, Vouch] = {}
    for vouch in vouches:
        known = best.get(vouch.elector)
        if known is None or vouch.until_epoch > known.until_epoch:
            best[vouch.elector] = vouch
    if len(best) > limits.ADMISSION_NEED_MAX:
        raise LimitExceeded("ADMISSION_NEED_MAX", f"a proof shows at most {limits.ADMISSION_NEED_MAX} vouches")
    return encode([[best[key].elector, best[key].until_epoch, best[key].signature] for key in sorted(best)])


def read_vouches(proof: bytes) -> tuple[Vouch, ...]:
    """Read the proof of a join to a pool that asks for vouches. Signatures are not verified yet.

    Raises:
        CodecError: not canonical, another shape, out of bounds, unsorted, or two of one elector.
    """
    if len(proof) > limits.ADMISSION_PROOF_BYTES_MAX:
        raise CodecError(f"a proof of admission has at most {limits.ADMISSION_PROOF_BYTES_MAX} bytes")
    fields = decode(proof)
    if type(fields) is not list or not 1 <= len(fields) <= limits.ADMISSION_NEED_MAX:
        raise CodecError(f"a proof by vouches is an array of 1 to {limits.ADMISSION_NEED_MAX}")
    vouches = tuple(_vouch(item) for item in fields)
    electors = [vouch.elector for vouch in vouches]
    if electors != sorted(set(electors)):
        raise CodecError("vouches are sorted by elector, one of each")
    return vouches


def _vouched(pool: PoolId, joiner: PublicKey, until_epoch: int) -> bytes:
    return encode([pool, joiner, until_epoch])


def _invitation(pool: PoolId, terms: list[Any], secret: bytes) -> Invitation:
    if [type(item) for item in terms] != [bytes, bytes, int, str, int, bytes]:
        raise CodecError("a field of an invitation has the wrong type")
    issuer, key, until_epoch, role, expires_ms, signature = terms
    _check_bytes("the issuer", issuer, PUBLIC_KEY_BYTES)
    _check_bytes("the key", key, PUBLIC_KEY_BYTES)
    _check_bytes("the signature", signature, SIGNATURE_BYTES)
    if not 0 <= until_epoch <= limits.SEQ_MAX or not 0 <= expires_ms <= limits.SEQ_MAX:
        raise CodecError(f"the epoch and the end of an invitation are 0 to {limits.SEQ_MAX}")
    if len(role.encode()) > limits.NAME_BYTES_MAX:
        raise CodecError(f"the role of an invitation has at most {limits.NAME_BYTES_MAX} bytes")
    return Invitation(pool, PublicKey(issuer), PublicKey(key), until_epoch, role, expires_ms, signature, secret)


def _vouch(plain: Any) -> Vouch:
    if type(plain) is not list or [type(item) for item in plain] != [bytes, int, bytes]:
        raise CodecError("a vouch is an array of bytes, int, bytes")
    elector, until_epoch, signature = plain
    _check_bytes("the elector", elector, PUBLIC_KEY_BYTES)
    _check_bytes("the signature", signature, SIGNATURE_BYTES)
    if not 0 <= until_epoch <= limits.SEQ_MAX:
        raise CodecError(f"the epoch of a vouch is 0 to {limits.SEQ_MAX}")
    return Vouch(PublicKey(elector), until_epoch, signature)


def _check_bytes(what: str, value: Any, length: int) -> None:
    if type(value) is not bytes or len(value) != length:
        raise CodecError(f"{what} is a byte string of {length}")
