"""Vectors of private pools: the steps of the cryptography, one by one.

Knows: the content key of `pool_story`, and contents sealed with it. `generate.py` writes what is made here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pool_story import CONTENT_SECRET, OFFER_ENTROPY, PREKEY_SECRET, Signer, content_key, story

from converge_p2p.core.model.keyring import Keyring
from converge_p2p.core.model.secrecy import exchange_key_of, exchange_public
from converge_p2p.core.oplog.bodies import ClaimBody, ReportBody, SubmitBody, encode_body
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.key_bodies import ContentKeyBody
from converge_p2p.core.oplog.sealing import ContentSealer


def secrecy(to_json: Any) -> dict[str, Any]:
    """Keys, an offer, and sealed bodies with what is in them."""
    pool, told = story()
    alice = Signer("alice").identity
    ring = Keyring(alice, pool)
    key = content_key(pool)
    ring.add(key)
    seals = ContentSealer(ring)
    bodies = []
    for name, operation in told:
        if name not in ("submit", "report", "claim to cancel", "evidence: for a result"):
            continue
        body = operation.body
        if isinstance(body, SubmitBody):
            body = SubmitBody(replace(body.spec, key=ring.blind(body.spec.key), topic=b"t"))
        assert isinstance(body, SubmitBody | ReportBody | ClaimBody | EvidenceBody)
        sealed = seals.seal_body(body, operation.author, operation.seq, key)
        assert seals.open_body(sealed, operation.author, operation.seq) == body
        bodies.append(
            {
                "name": name,
                "author": operation.author.hex(),
                "seq": operation.seq,
                "clear": to_json(encode_body(body)),
                "sealed": to_json(encode_body(sealed)),
            }
        )
    offer = next(operation for _, operation in told if isinstance(operation.body, ContentKeyBody))
    assert isinstance(offer.body, ContentKeyBody)
    return {
        "pool_id": pool.hex(),
        "content_key": {
            "epoch": key.epoch,
            "generation": key.generation,
            "secret": CONTENT_SECRET.hex(),
            "commitment": key.commitment.hex(),
            "name": key.name.hex(),
        },
        "exchange": {
            "seed": alice.seed.hex(),
            "public_key": alice.public_key.hex(),
            "exchange_secret": alice.exchange_secret.hex(),
            "exchange_key": exchange_key_of(alice.public_key).hex(),
            "prekey_secret": PREKEY_SECRET.hex(),
            "prekey": exchange_public(PREKEY_SECRET).hex(),
        },
        "offer": {
            "author": offer.author.hex(),
            "entropy": OFFER_ENTROPY.hex(),
            "entries": [{"member": entry.member.hex(), "sealed": entry.sealed.hex()} for entry in offer.body.entries],
        },
        "blinded": {"key": b"key".hex(), "blinded": ring.blind(b"key").hex()},
        "bodies": bodies,
    }
