"""Vectors of the replicated part of the protocol: pools, tasks, operations of every kind, sync messages, frontiers.

Knows: one small pool in which everything happens once. `generate.py` writes what is made here.
"""

from __future__ import annotations

import hashlib
from typing import Any

from converge_p2p.core.codec import decode, encode, encode_value
from converge_p2p.core.identity import SIGNATURE_BYTES, Identity
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, PoolPolicy, PoolSpec, pool_id
from converge_p2p.core.model.secrecy import ContentKey, exchange_key_of, exchange_public
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue, task_id
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    Genesis,
    JoinBody,
    LeaveBody,
    Lock,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    Token,
    VoteBody,
)
from converge_p2p.core.oplog.frontier import FrontierEntry, FrontierSum
from converge_p2p.core.oplog.key_bodies import PrekeyBody, offer_bodies
from converge_p2p.core.oplog.log import Missing
from converge_p2p.core.oplog.operation import Operation, sign_operation
from converge_p2p.core.replica.wire import (
    Digest,
    FrontierPage,
    GenesisWanted,
    LooseWanted,
    Operations,
    SyncMessage,
    Want,
    encode_message,
)
from converge_p2p.core.types import PoolId

HLC_START = 1_700_000_000_000 << 16


CONTENT_SECRET, PREKEY_SECRET, OFFER_ENTROPY = (
    hashlib.sha256(name.encode()).digest() for name in ("content key", "prekey", "entropy of an offer")
)


def content_key(pool: PoolId) -> ContentKey:
    """The content key that is offered in the story."""
    return ContentKey(pool, 0, 0, CONTENT_SECRET)


class Signer:
    """Somebody's chain in the pool of the vectors."""

    def __init__(self, name: str) -> None:
        self.identity = Identity.from_seed(hashlib.sha256(name.encode()).digest())
        self.chain: list[Operation] = []

    def sign(self, pool: PoolId, body: Body, **changed: Any) -> Operation:
        """Sign the next operation of the chain."""
        last = self.chain[-1] if self.chain else None
        operation = sign_operation(
            self.identity, pool, body, seq=len(self.chain), prev=None if last is None else last.id,
            epoch=0, hlc=HLC_START + len(self.chain), **changed,
        )  # fmt: skip
        self.chain.append(operation)
        return operation


def _spec(alice: Signer, bob: Signer, carol: Signer) -> PoolSpec:
    return PoolSpec(
        name="vectors",
        nonce=bytes(range(16)),
        governance=GovernanceKind.DEMOCRATIC,
        electors=tuple(sorted((alice.identity.public_key, bob.identity.public_key))),
        quorum=2,
        admission=AdmissionKind.WHITELIST,
        whitelist=(carol.identity.public_key,),
        topics=(Topic("acme").to_bytes(),),
        task_types=("index",),
        policy=PoolPolicy(hold_off_ms=10, grant_timer_ms=200, claim_ttl_ms=5000, max_retries=2),
    )


def story() -> tuple[PoolId, list[tuple[str, Operation]]]:
    """Every kind of operation, in an order in which each has an effect."""
    alice, bob, carol = Signer("alice"), Signer("bob"), Signer("carol")
    spec = _spec(alice, bob, carol)
    pool = pool_id(alice.identity.public_key, spec)
    told: list[tuple[str, Operation]] = []

    def tell(name: str, who: Signer, body: Body, **changed: Any) -> Operation:
        told.append((name, who.sign(pool, body, **changed)))
        return told[-1][1]

    tell("genesis", alice, Genesis(spec))
    tell("join", carol, JoinBody(("gpu",), b"invited"))
    work = TaskSpec(
        b"key", "index", encode_value({"file": "a.py"}), required_capabilities=("gpu",), priority=-5,
        claim_ttl_ms=1000, max_retries=None, timeout_ms=60_000,
    )  # fmt: skip
    task = task_id(pool, alice.identity.public_key, work.key)
    submit = tell("submit", alice, SubmitBody(work))
    claim = tell("claim that names the submit in deps", carol, ClaimBody(task, Purpose.WORK, 7), deps=(submit.id,))
    first = tell("vote: a grant", alice, VoteBody((Ballot(Phase.GRANT, task, 0, claim.id),)))
    second = tell("vote: another elector's grant", bob, VoteBody((Ballot(Phase.GRANT, task, 0, claim.id),)))
    value = TaskValue(Outcome.COMPLETED, carol.identity.public_key, encode_value({"tokens": 12}))
    tell("report", carol, ReportBody(task, 0, value, tuple(sorted((first.id, second.id)))))
    tell("vote: endorse", alice, VoteBody((Ballot(Phase.ENDORSE, task, 0, value.hash),)))
    tell(
        "vote: accept, and a grant that carries a lock and tells of an expiry",
        bob,
        VoteBody(
            (
                Ballot(Phase.ACCEPT, task, 0, value.hash),
                Ballot(Phase.GRANT, task, 1, claim.id, Lock(Token(0, 0), value.hash), 0),
            )
        ),
    )
    tell("release after a failure", carol, ReleaseBody(task, 0, True, "no memory"))
    tell("release of a claim that holds nothing", carol, ReleaseBody(task, -1))
    tell("claim to cancel", alice, ClaimBody(task, Purpose.CANCEL, 0, "not needed"))
    tell("claim to settle a failure", bob, ClaimBody(task, Purpose.FAIL, 0, "every attempt failed"))
    prekey = tell("prekey", alice, PrekeyBody(exchange_public(PREKEY_SECRET))).body
    assert isinstance(prekey, PrekeyBody)
    recipients = {
        alice.identity.public_key: prekey.exchange_key,
        carol.identity.public_key: exchange_key_of(carol.identity.public_key),
    }
    content = content_key(pool)
    (offer,) = offer_bodies(content, bob.identity.public_key, recipients, OFFER_ENTROPY)
    tell("content key, sealed to a prekey and to the key of an identity", bob, offer)
    tell("leave", carol, LeaveBody())
    return pool, told


def operations(to_json: Any) -> dict[str, Any]:
    """The pool, its task, its value, and every kind of operation."""
    pool, told = story()
    submitted = next(operation for _, operation in told if isinstance(operation.body, SubmitBody))
    report = next(operation.body for _, operation in told if isinstance(operation.body, ReportBody))
    assert isinstance(submitted.body, SubmitBody)
    return {
        "pool_id": pool.hex(),
        "task_id": task_id(pool, submitted.author, submitted.body.spec.key).hex(),
        "value_hash": report.value.hash.hex(),
        "operations": [
            {
                "name": name,
                "id": operation.id.hex(),
                "signed": operation.signed.hex(),
                "fields": to_json(decode(operation.signed[SIGNATURE_BYTES:])),
            }
            for name, operation in told
        ],
    }


def sync_messages() -> list[tuple[str, SyncMessage]]:
    """Each kind of sync message."""
    _, told = story()
    one, other = told[0][1], told[1][1]
    entry = FrontierEntry(one.author, 1, one.id)
    frozen = FrontierEntry(other.author, 0, None, bytes(32))
    return [
        ("digest", Digest(bytes(range(32)))),
        ("frontier, an answer is asked for", FrontierPage((entry, frozen), b"", b"", True)),
        ("frontier of a range", FrontierPage((), bytes(32), b"\xff" * 32, False)),
        ("want", Want((Missing(one.author, 0, 5),), (LooseWanted(other.author, bytes(range(32))),))),
        ("operations, last of an answer", Operations((one.signed, other.signed), True)),
        ("no operations", Operations((), False)),
        ("genesis wanted", GenesisWanted()),
    ]


def sync(to_json: Any) -> dict[str, Any]:
    """Sync messages, and the digest of a frontier."""
    _, told = story()
    entries = [FrontierEntry(operation.author, 1, operation.id) for _, operation in told[:2]]
    total = FrontierSum()
    empty = total.digest()
    for entry in entries:
        total.replace(None, entry.hash)
    return {
        "messages": [
            {"name": name, "hex": encode_message(message).hex(), "value": to_json(decode(encode_message(message)))}
            for name, message in sync_messages()
        ],
        "frontier": {
            "entries": [{"hex": encode(entry.to_plain()).hex(), "hash": entry.hash.hex()} for entry in entries],
            "digest": total.digest().hex(),
            "digest_of_nothing": empty.hex(),
        },
    }
