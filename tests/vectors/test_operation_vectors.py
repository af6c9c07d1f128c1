"""Operations, sync messages and frontiers are those in the files, both ways and by the words of the protocol."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from generate import from_json
from nacl.signing import VerifyKey
from pool_story import story, sync_messages
from test_golden_vectors import read

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.oplog.operation import decode_operation, operation_id
from converge_p2p.core.replica.wire import decode_message
from converge_p2p.core.types import PoolId
from converge_p2p.core.view.fold import View

OPERATIONS, SYNC = read("operations.json"), read("sync.json")
POOL = PoolId(bytes.fromhex(OPERATIONS["pool_id"]))


def hashed(tag: str, *parts: bytes) -> str:
    whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hashlib.sha256(b"converge-p2p/1/" + tag.encode() + b"\0" + whole).hexdigest()


@pytest.mark.parametrize("case", OPERATIONS["operations"], ids=lambda case: case["name"])
def test_an_operation_is_a_signature_and_its_fields(case: dict[str, Any]) -> None:
    signed = bytes.fromhex(case["signed"])
    signature, payload = signed[:64], signed[64:]
    fields = from_json(case["fields"])
    assert encode(fields) == payload
    assert hashed("operation", payload) == case["id"] == operation_id(signed).hex()
    whole = b"converge-p2p/1/operation\0" + payload
    assert VerifyKey(fields[2]).verify(whole, signature) == whole
    operation = decode_operation(signed, POOL)
    assert operation.id.hex() == case["id"]
    assert (operation.seq, operation.hlc, int(operation.kind)) == (fields[3], fields[7], fields[8])


def test_every_kind_of_operation_is_there() -> None:
    assert {from_json(case["fields"])[8] for case in OPERATIONS["operations"]} == {*range(8), 12, 13}
    assert [operation for _, operation in story()[1]] == [
        decode_operation(bytes.fromhex(case["signed"]), POOL) for case in OPERATIONS["operations"]
    ]


def test_ids_of_pool_task_and_value_commit_to_their_parts() -> None:
    fields = {case["name"]: from_json(case["fields"]) for case in OPERATIONS["operations"]}
    genesis, submit, report = fields["genesis"], fields["submit"], fields["report"]
    assert hashed("pool", genesis[2], encode(genesis[9])) == OPERATIONS["pool_id"]
    assert hashed("task", POOL, submit[2], submit[9][0]) == OPERATIONS["task_id"]
    assert hashed("value", encode(report[9][2:5])) == OPERATIONS["value_hash"]


def test_the_story_of_the_vectors_has_its_effects() -> None:
    view = View(POOL)
    for _, operation in story()[1]:
        view.apply(operation)
    (register,) = view.registers.values()
    assert register.id.hex() == OPERATIONS["task_id"]
    assert register.settled is None
    assert register.failures() == 1
    assert len(register.claims) == 3


@pytest.mark.parametrize("case", SYNC["messages"], ids=lambda case: case["name"])
def test_a_sync_message_has_its_bytes(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    assert decode(data) == from_json(case["value"])
    assert decode_message(data) == dict(sync_messages())[case["name"]]


def test_the_digest_of_a_frontier_is_over_the_sum_of_its_entries_and_their_count() -> None:
    frontier, total = SYNC["frontier"], 0
    for entry in frontier["entries"]:
        assert hashed("frontier-entry", bytes.fromhex(entry["hex"])) == entry["hash"]
        total += int(entry["hash"], 16)
    count = len(frontier["entries"]).to_bytes(8, "big")
    assert hashed("frontier", (total % 2**256).to_bytes(32, "big"), count) == frontier["digest"]
    assert hashed("frontier", bytes(32), bytes(8)) == frontier["digest_of_nothing"]
