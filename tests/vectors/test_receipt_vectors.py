"""Receipts are those in the file, and hold or not by the words of the protocol."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from generate import from_json
from test_golden_vectors import read

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.view.receipt import Receipt

RECEIPTS = read("receipts.json")


def hashed(tag: str, *parts: bytes) -> bytes:
    whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hashlib.sha256(b"converge-p2p/1/" + tag.encode() + b"\0" + whole).digest()


@pytest.mark.parametrize("case", RECEIPTS["holds"], ids=lambda case: case["name"])
def test_a_receipt_holds_and_has_its_bytes(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    receipt = Receipt.from_bytes(data)
    receipt.check()
    assert receipt.to_bytes() == data == encode(from_json(case["fields"]))
    assert receipt.pool.hex() == case["pool"]


@pytest.mark.parametrize("case", RECEIPTS["fails"], ids=lambda case: case["name"])
def test_a_proof_that_lacks_something_does_not_hold(case: dict[str, Any]) -> None:
    assert not Receipt.from_bytes(bytes.fromhex(case["hex"])).verify()


@pytest.mark.parametrize("case", RECEIPTS["holds"], ids=lambda case: case["name"])
def test_each_epoch_names_the_one_before_and_is_accepted_in_it(case: dict[str, Any]) -> None:
    version, pool, _, _, _, epochs, _, *_ = from_json(case["fields"])
    before = pool
    assert version == 2
    for number, (value, votes) in enumerate(epochs, 1):
        content = decode(value[2])
        assert content[:2] == [number, before]
        before = hashed("value", encode(value))
        accept = [2, hashed("epoch", pool, number.to_bytes(8, "big")), 0, before, None, None, []]
        for vote in votes:
            fields = decode(vote[64:])
            assert (fields[1], fields[6], fields[8], fields[9]) == (pool, number - 1, 7, [accept])
