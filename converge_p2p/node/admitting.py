"""Letting others into a pool, and showing a pool why it should let this node in.

Knows: invitations and vouches as texts that people pass on. Must not know: what a pool makes of them (see
`core.governance.admission`), or HTTP.
Source: `docs/protocol.md`, admission.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Sequence

from nacl.utils import random as random_bytes

from converge_p2p.core.errors import CodecError, LocalError, NotAuthorised
from converge_p2p.core.governance.proofs import (
    Invitation,
    Vouch,
    make_invitation,
    make_vouch,
    prove_invitation as _prove_invitation,
    prove_vouches as _prove_vouches,
)
from converge_p2p.core.identity import SEED_BYTES, Identity, fingerprint
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.types import PoolId, PublicKey
from converge_p2p.core.view.fold import View
from converge_p2p.runtime.trust import TrustModel

EPOCHS_AHEAD = 16
"""A newcomer may hear of later epochs than this node knows of; what names it is good for them, and costs nothing."""


def invite(
    identity: Identity,
    view: View,
    *,
    joiner: PublicKey | None,
    until_epoch: int | None,
    role: str,
    valid_s: float | None,
) -> str:
    """Return an invitation as text. See `PoolHandle.invite`.

    Raises:
        LocalError: the pool asks for no invitations, or a bound is exceeded.
        NotAuthorised: this node is neither an elector nor the creator.
    """
    _check_admission(view, AdmissionKind.TOKEN, "invitations")
    if identity.public_key not in view.electors and identity.public_key != view.creator:
        raise NotAuthorised("only an elector or the creator of the pool invites", hint="ask one of them")
    invitation = make_invitation(
        identity,
        view.pool,
        secret=random_bytes(SEED_BYTES) if joiner is None else b"",
        joiner=joiner,
        until_epoch=view.epochs.number if until_epoch is None else until_epoch,
        role=role,
        expires_ms=0 if valid_s is None else now_ms() + round(valid_s * 1000),
    )
    return _to_text(invitation.to_bytes())


def vouch(identity: Identity, view: View, joiner: PublicKey, *, until_epoch: int | None) -> str:
    """Return a vouch as text. See `PoolHandle.vouch`.

    Raises:
        LocalError: the pool asks for no vouches, or a bound is exceeded.
        NotAuthorised: this node is no elector.
    """
    _check_admission(view, AdmissionKind.VOUCHED, "vouches")
    if identity.public_key not in view.electors:
        raise NotAuthorised("only electors of the pool vouch for somebody", hint="ask one of them")
    until = view.epochs.number if until_epoch is None else until_epoch
    return _to_text(make_vouch(identity, view.pool, joiner, until_epoch=until).to_bytes())


def admission_proof(
    pool: PoolId, joiner: PublicKey, *, proof: bytes, invitation: str | bytes | None, vouches: Sequence[str | bytes]
) -> bytes:
    """Return what a join shows, of whichever was given.

    Raises:
        LocalError: more than one of them, or an invitation or vouch that is not genuine, or not for this pool and node.
        LimitExceeded: too many vouches.
    """
    if bool(proof) + (invitation is not None) + bool(vouches) > 1:
        raise LocalError("a join shows a proof, an invitation or vouches, not several of them")
    try:
        if invitation is not None:
            read = Invitation.from_bytes(from_text("invitation", invitation))
            if read.pool != pool:
                raise LocalError(f"the invitation is for pool {read.pool.hex()[:12]}, not for {pool.hex()[:12]}")
            return _prove_invitation(read, joiner, now_ms=now_ms())
        given = [Vouch.from_bytes(from_text("vouch", item)) for item in vouches]
    except CodecError as error:
        raise LocalError(str(error), hint="copy it whole, as it was given out") from error
    if not all(item.genuine(pool, joiner) for item in given):
        raise LocalError("a vouch is not for this agent in this pool", hint="ask its elector for another one")
    return _prove_vouches(given) if given else proof


def check_trusted(trust: TrustModel, joiner: PublicKey, threshold: float) -> None:
    """Check that this node trusts a newcomer enough to speak for it. See `policy.TrustPolicy.join_threshold`.

    Raises:
        NotAuthorised: it does not.
    """
    agent = fingerprint(joiner)
    if not trust.meets(agent, threshold):
        raise NotAuthorised(
            f"this node's trust in {agent[:12]} is {trust.score(agent):.2f}; it speaks for agents from {threshold:g}",
            hint="the threshold is join_threshold of the trust policy",
        )


def _check_admission(view: View, kind: AdmissionKind, what: str) -> None:
    if view.spec is None:
        raise LocalError("the pool's founding terms are not known here yet", hint="wait until a member is connected")
    if view.spec.admission is not kind:
        raise LocalError(f"the pool asks for no {what}: its admission is {view.spec.admission.name.lower()}")


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_text(what: str, text: str | bytes) -> bytes:
    """Return the bytes of what was handed over as a text.

    Raises:
        LocalError: it is no such text.
    """
    if isinstance(text, bytes):
        return text
    plain = "".join(text.split())
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise LocalError(f"this is no {what}", hint="copy it whole, as it was given out") from None


def now_ms() -> int:
    """Return Unix time in milliseconds."""
    return int(time.time() * 1000)
