"""The founding terms of a pool, from what an application says.

Knows: how names become keys and options become a `PoolSpec`. Must not know: replicas.
Source: `docs/embedding.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.utils import random as random_bytes

from converge_p2p.core.errors import CodecError, LocalError, NotFound
from converge_p2p.core.governance.custom import GovernanceModel, KeyOf
from converge_p2p.core.identity import PUBLIC_KEY_BYTES, fingerprint
from converge_p2p.core.model.pool import NONCE_BYTES, AdmissionKind, PoolPolicy, PoolSpec
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import AgentId, PublicKey

KEY_MARK = "key:"


def founding_terms(
    name: str,
    model: GovernanceModel,
    *,
    founder: PublicKey,
    key_of: KeyOf,
    electors: Iterable[PublicKey],
    whitelist: Iterable[PublicKey],
    topics: Iterable[Topic],
    task_types: Sequence[str],
    admission: AdmissionKind,
    policy: PoolPolicy | None,
    admission_need: int = 0,
    admission_custom: str = "",
    private: bool = False,
) -> PoolSpec:
    """Return the terms of a new pool, in canonical order and with a new nonce.

    Args:
        name, topics, task_types, admission, policy, admission_need, admission_custom, private: see
            `Node.create_pool`.
        model: who decides. It may name agents itself.
        founder: who decides where neither the model nor `electors` name anybody.
        key_of: finds the key of an agent that the model names.
        electors: who votes, beside those that the model names.
        whitelist: who may join.

    Raises:
        NotFound: the model names an agent that is not known.
        LocalError: the model does not fit the electors, or a whitelist is not used.
    """
    try:
        founding = model.founding(tuple(sorted(set(electors))), founder, key_of)
    except CodecError as error:
        raise LocalError(str(error), hint=error.hint) from error
    allowed = tuple(sorted(set(whitelist)))
    if allowed and admission is not AdmissionKind.WHITELIST:
        raise LocalError(
            f"a whitelist was given, but the admission is {admission.name.lower()}",
            hint="choose AdmissionKind.WHITELIST",
        )
    return PoolSpec(
        name=name,
        nonce=random_bytes(NONCE_BYTES),
        governance=founding.governance,
        electors=founding.electors,
        quorum=founding.quorum,
        faults=founding.faults,
        admission=admission,
        whitelist=allowed,
        admission_need=admission_need,
        admission_custom=admission_custom,
        topics=tuple(sorted({topic.to_bytes() for topic in topics})),
        task_types=tuple(sorted(set(task_types))),
        policy=policy or PoolPolicy(),
        model=founding.model,
        private=private,
    )


def find_key(text: str, known: Iterable[PublicKey], registry: IdentityRegistry) -> PublicKey:
    """Return the public key that a name means: an agent id, the digits of a known key, or `key:` and any key's digits.

    Agent ids and keys both are 64 digits. An unknown agent id that was taken for a key would make a member or elector
    that never speaks, so a key that is not known has to be marked as one.

    Args:
        text: the name.
        known: keys that are known beside those of the registry.
        registry: agents heard of.

    Raises:
        LocalError: marked as a key, and none.
        NotFound: not marked, and not known.
    """
    name = text.lower()
    if name.startswith(KEY_MARK):
        return _marked_key(name.removeprefix(KEY_MARK))
    for key in known:
        if name in (fingerprint(key), key.hex()):
            return key
    try:
        return registry.public_key(AgentId(name))
    except NotFound:
        raise NotFound(
            f"no agent {text[:16]} is known here",
            hint=f"connect to its node first, or give its public key as {KEY_MARK}<64 digits>",
        ) from None


def _marked_key(digits: str) -> PublicKey:
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        raw = b""
    if len(raw) != PUBLIC_KEY_BYTES or not crypto_core_ed25519_is_valid_point(raw):
        raise LocalError(f"{KEY_MARK}{digits[:16]} is no public key; expected the 64 digits of an Ed25519 key")
    return PublicKey(raw)
