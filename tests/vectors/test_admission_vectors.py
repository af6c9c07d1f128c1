"""Proofs of admission are those in the file, and admit by the words of the protocol."""

from __future__ import annotations

from typing import Any

import pytest
from admission_story import PEOPLE, POOL
from generate import from_json
from nacl.signing import VerifyKey
from test_golden_vectors import read

from converge_p2p.core.codec import encode
from converge_p2p.core.governance.admission import AdmissionContext, admits
from converge_p2p.core.governance.proofs import Invitation, Vouch
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, PoolSpec
from converge_p2p.core.types import PublicKey

WRITTEN = read("admission.json")
PROOFS: dict[str, dict[str, Any]] = WRITTEN["proofs"]
ELECTORS = tuple(PublicKey(bytes.fromhex(key)) for key in WRITTEN["electors"])
JOINER = PublicKey(bytes.fromhex(WRITTEN["joiner"]))


def over(tag: str, data: bytes) -> bytes:
    return b"converge-p2p/1/" + tag.encode() + b"\0" + data


def signed(tag: str) -> bytes:
    return over(tag, bytes.fromhex(WRITTEN["signed"][tag]))


@pytest.mark.parametrize("case", [*PROOFS.values(), *WRITTEN["invitations"], WRITTEN["vouch"]], ids=lambda x: x["name"])
def test_a_proof_is_its_fields_in_canonical_bytes(case: dict[str, Any]) -> None:
    assert encode(from_json(case["fields"])) == bytes.fromhex(case["hex"])


def test_signatures_are_over_what_the_protocol_says() -> None:
    issuer, key, _, _, _, signature, use = from_json(PROOFS["invitation"]["fields"])
    VerifyKey(issuer).verify(signed("invitation"), signature)
    VerifyKey(key).verify(signed("invitation-use"), use)
    for elector, _, signature in from_json(PROOFS["vouches"]["fields"]):
        VerifyKey(elector).verify(signed("vouch"), signature)
    assert from_json(PROOFS["named invitation"]["fields"])[1] == JOINER
    assert from_json(PROOFS["named invitation"]["fields"])[6] == b""


@pytest.mark.parametrize(
    ("name", "kind", "epochs"),
    [
        ("invitation", AdmissionKind.TOKEN, range(8)),
        ("named invitation", AdmissionKind.TOKEN, range(1)),
        ("vouches", AdmissionKind.VOUCHED, range(8)),
    ],
)
def test_a_proof_admits_its_joiner_as_long_as_it_lasts(name: str, kind: AdmissionKind, epochs: range) -> None:
    proof = bytes.fromhex(PROOFS[name]["hex"])
    need = 2 if kind is AdmissionKind.VOUCHED else 0
    spec = PoolSpec("p", bytes(16), GovernanceKind.DEMOCRATIC, ELECTORS, admission=kind, admission_need=need)
    for joiner in (JOINER, PEOPLE["holder"].public_key):
        admitted = [
            epoch
            for epoch in range(10)
            if admits(spec, joiner, AdmissionContext(POOL, epoch, frozenset(ELECTORS), None, joiner, proof))
        ]
        assert admitted == (list(epochs) if joiner == JOINER else [])


def test_invitations_and_vouches_are_read_back() -> None:
    for case in WRITTEN["invitations"]:
        data = bytes.fromhex(case["hex"])
        assert Invitation.from_bytes(data).to_bytes() == data
    data = bytes.fromhex(WRITTEN["vouch"]["hex"])
    assert Vouch.from_bytes(data).to_bytes() == data
