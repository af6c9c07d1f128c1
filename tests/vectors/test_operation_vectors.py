"""Operations, sync messages and frontiers are those in the files, both ways and by the words of the protocol."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from generate import from_json
from nacl.signing import VerifyKey
from pool_story import story, sync_messages
from test_golden_vectors import read

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.oplog.operation import decode_operation, operation_id
from converge_p2p.core.replica.wire import decode_message
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.polls import PollPhase
from converge_p2p.core.view.snapshot import Snapshot
from converge_p2p.core.view.summary import Summary

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
    assert {from_json(case["fields"])[8] for case in OPERATIONS["operations"]} == {
        *range(15),
        *range(11),
        12,
        13,
        15,
        *range(16, 19),
        *range(20, 30),
    }
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
    register = view.registers[TaskId(bytes.fromhex(OPERATIONS["task_id"]))]
    assert register.settled is None
    assert register.failures() == 1
    # to work, to cancel, to fail; the delegate's claim to cancel is not covered: it may only for tasks of a topic
    assert len(register.claims) == 3


def test_the_coordination_of_the_vectors_has_its_effects() -> None:
    view = View(POOL)
    for _, operation in story()[1]:
        view.apply(operation)
    coordination = view.coordination
    (auction,) = coordination.auctions.views()
    assert auction.winner is not None
    assert (auction.price, auction.reveals[auction.winner]) == (300, 4)
    (poll_id,) = coordination.polls.ids
    poll = coordination.polls.view(poll_id)
    assert poll is not None
    assert (poll.counts, poll.phase) == ((1, 1), PollPhase.CLOSED_BY_OPENER)
    (session_id,) = coordination.negotiations.ids
    session = coordination.negotiations.view(session_id)
    assert session is not None
    assert session.agreement == session.head != session_id
    submitted = [task.submitted for task in view.registers.values() if task.submitted is not None]
    assert sum(one.delegate is not None for one in submitted) == 1


def test_a_commitment_is_over_auction_bidder_amount_and_nonce() -> None:
    fields = [from_json(case["fields"]) for case in OPERATIONS["operations"] if case["name"].startswith("bid")]
    commits = {field[2]: field[9] for field in fields if field[9][0] == 0}
    for bidder, (_, auction, _, amount, nonce) in ((field[2], field[9]) for field in fields if field[9][0] == 1):
        assert hashed("bid", auction, bidder, amount.to_bytes(8, "big"), nonce) == commits[bidder][2].hex()


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
    assert hashed("frontier-range", (total % 2**256).to_bytes(32, "big"), count)[:32] == frontier["fingerprint"]
    assert hashed("frontier-range", bytes(32), bytes(8))[:32] == frontier["fingerprint_of_nothing"]


def split(authors: list[bytes], low: bytes, high: bytes) -> list[list[bytes]]:
    """The parts of a range, by the words of the protocol."""
    inside = [key for key in authors if key >= low and (not high or key < high)]
    ranks = [len(inside) * number // 16 for number in range(17)]
    parts = []
    for start, stop in itertools.pairwise(ranks):
        hashes = [int(hashed("frontier-entry", encode([key, 1, key, None])), 16) for key in inside[start:stop]]
        total, count = (sum(hashes) % 2**256).to_bytes(32, "big"), len(hashes).to_bytes(8, "big")
        bound = high
        if stop < len(inside):
            bound = next(inside[stop][:size] for size in range(1, 33) if inside[stop][:size] > inside[stop - 1])
        parts.append([bound, bytes.fromhex(hashed("frontier-range", total, count))[:16]])
    return parts


def test_what_differs_is_split_into_sixteen_of_equal_count_or_told_in_entries() -> None:
    vector = SYNC["split"]
    authors = [bytes.fromhex(key) for key in vector["authors, each with a chain of one whose id is the key"]]
    assert authors == sorted(authors)
    assert bytes.fromhex(vector["opening"]) == encode([1, b"", split(authors, b"", b"")])
    (few, _), (same, _), (three, _), (end, _) = decode(bytes.fromhex(vector["received"]))[2]
    first = [[key, 1, key, None] for key in authors if key < few]
    fortieth = [[key, 1, key, None] for key in authors[40:43]]
    assert (len(first) <= 3, same, three, end) == (True, authors[40], authors[43], b"")
    parts = [[few, first], [same, None], [three, fortieth], *split(authors, three, b"")]
    assert vector["answered"] == [encode([1, b"", parts]).hex()]


def test_a_snapshot_is_its_bytes_and_its_root_names_their_chunks() -> None:
    live, ended = SYNC["snapshots"]
    for vector in (live, ended):
        data = bytes.fromhex(vector["data"])
        (chunk,) = vector["chunks"]
        assert chunk == hashed("snapshot-chunk", data)
        assert vector["root"] == hashed("snapshot", len(data).to_bytes(8, "big"), bytes.fromhex(chunk))
        version, pool, authors, (keys, contexts, records, extras, sums), epochs, retained, last = decode(data)
        assert (version, pool, epochs) == (1, POOL, [])
        assert [len(author) for author in authors] == [5] * 5
        assert (len(records), extras) == (90 * vector["settled"], [])
        assert (len(keys), len(contexts)) == (64 * vector["settled"], vector["settled"])
        assert bool(sums) is bool(vector["settled"])
        # the last operation of each chain is there, once
        assert {author[2] for author in authors} <= {operation_id(signed) for signed in (*retained, *last)}
        assert Snapshot.read(data, POOL).root.hex() == vector["root"]
        assert Summary.restore(Snapshot.read(data, POOL)).snapshot().data == data
    assert (live["settled"], ended["settled"]) == (0, 1)
    keys, contexts, record, *_ = decode(bytes.fromhex(ended["data"]))[3]
    assert (record[:32].hex(), record[32:64].hex()) == (OPERATIONS["task_id"], OPERATIONS["value_hash"])
    # completed; by carol, for alice, by the places of their keys; its only contexts;
    # epoch, round, two electors, no flags
    worker, submitter = (int.from_bytes(record[at : at + 4], "big") for at in (65, 69))
    signers = {case["name"]: from_json(case["fields"])[2] for case in OPERATIONS["operations"]}
    assert record[64] == 0
    assert keys[32 * worker :][:32] == signers["report"]
    assert keys[32 * submitter :][:32] == signers["submit"]
    assert contexts == [[b"objective\0index", b"capability\0gpu"]]
    assert record[73:] == bytes(12) + (3).to_bytes(4, "big") + b"\0"
