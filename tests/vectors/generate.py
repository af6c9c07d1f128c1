"""Write the golden vectors: `python tests/vectors/generate.py`.

The files are the protocol's bytes as a table, for other implementations and against accidents: a change of them is a
change of the protocol, and belongs into `docs/protocol.md` in the same commit. `test_golden_vectors.py` compares.

JSON has no byte strings, no integers beyond 2**53 and no maps with other keys than text; a value is written as one of
{"int": "…"}, {"bytes": "hex"}, {"text": "…"}, {"bool": …}, {"null": true}, {"array": […]}, {"map": [[key, value], …]}.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import admission_story
import governance_story
import join_story
import mail_story
import pool_story
import receipt_story
import secrecy_story

from converge_p2p.core.codec import encode, encode_value, tagged_hash
from converge_p2p.core.identity import Identity
from converge_p2p.core.limits import BLOB_CHUNK_BYTES
from converge_p2p.core.model import blob
from converge_p2p.core.model.blob_text import reference_text
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.oplog.bodies import Token
from converge_p2p.core.replica.renewal import Renewal, sign_renewal
from converge_p2p.core.types import BlobForm, BlobRef, PoolId, TaskId

FOLDER = Path(__file__).parent
NOW_MS = 1_700_000_000_000
PAYLOAD_KEY = bytes(range(32))

# name, bytes, and why a reader must refuse them
REJECTED_CBOR = (
    ("empty", "", "no data item"),
    ("truncated array", "82", "two items are announced, none follows"),
    ("trailing byte", "0101", "a second data item"),
    ("integer longer than needed, 8 bits", "1801", "1 is 01"),
    ("integer longer than needed, 16 bits", "1900ff", "255 is 18ff"),
    ("integer longer than needed, 64 bits", "1b00000000ffffffff", "it fits 32 bits"),
    ("negative integer longer than needed", "3800", "-1 is 20"),
    ("integer below 64 bits", "3bffffffffffffffff", "below -2**63"),
    ("big number", "c249010000000000000000", "tags are not used"),
    ("big number of a small integer", "c24101", "tags are not used"),
    ("length of bytes longer than needed", "580161", "the length 1 is 41"),
    ("length of text longer than needed", "780161", "the length 1 is 61"),
    ("bytes of indefinite length", "5f4161ff", "lengths are definite"),
    ("text of indefinite length", "7f6161ff", "lengths are definite"),
    ("array of indefinite length", "9fff", "lengths are definite"),
    ("map of indefinite length", "bfff", "lengths are definite"),
    ("text that is not UTF-8", "61ff", "text is UTF-8"),
    ("repeated key", "a201010102", "keys are unique"),
    ("keys out of order", "a202010101", "shorter keys first, then bytewise"),
    ("longer key first", "a2626161016162" + "02", "shorter keys first, then bytewise"),
    ("truth value as key", "a1f501", "keys are integers, text or bytes"),
    ("array as key", "a18001", "keys are integers, text or bytes"),
    ("float", "fb3ff0000000000000", "floats are not used"),
    ("half float", "f93c00", "floats are not used"),
    ("not a number", "f97e00", "floats are not used"),
    ("undefined", "f7", "only true, false and null"),
    ("simple value", "e0", "only true, false and null"),
    ("date", "c11a65537f80", "tags are not used"),
    ("self-described CBOR", "d9d9f701", "tags are not used"),
    ("array that contains itself", "d81c81d81d00", "tags are not used"),
    ("nested too deeply", "81" * 17 + "01", "at most 16 levels"),
)

ACCEPTED_CBOR: tuple[tuple[str, Any], ...] = (
    ("integers", [0, 1, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**53, 2**63, 2**64 - 1]),
    ("negative integers", [-1, -24, -25, -256, -257, -(2**32), -(2**63)]),
    ("bytes", [b"", b"\x00", bytes(23), bytes(24)]),
    ("text", ["", "a", "ä", "水", "\U0001f600", "a" * 24]),
    ("simple", [False, True, None]),
    ("empty", [[], {}]),
    ("map with text keys", {"b": 1, "a": 2, "aa": 3, "": 4}),
    ("map with mixed keys: shorter encodings first, then bytewise", {100: 1, -1: 2, 10: 3, "z": 4, "aa": 5, b"": 6}),
    ("nested to the last level", [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]),
)


def to_json(value: Any) -> dict[str, Any]:
    """Write a value in the form that the header explains."""
    if value is None:
        return {"null": True}
    if isinstance(value, bool):
        return {"bool": value}
    if isinstance(value, int):
        return {"int": str(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list):
        return {"array": [to_json(item) for item in value]}
    return {"map": [[to_json(key), to_json(item)] for key, item in value.items()]}


def from_json(written: dict[str, Any]) -> Any:
    """Read what `to_json` wrote."""
    ((kind, content),) = written.items()
    if kind == "int":
        return int(content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "array":
        return [from_json(item) for item in content]
    if kind == "map":
        return {from_json(key): from_json(item) for key, item in content}
    return None if kind == "null" else content


def cbor() -> dict[str, Any]:
    """Values and their one encoding; encodings that a reader must refuse."""
    return {
        "accepted": [
            {"name": name, "value": to_json(value), "hex": encode(value).hex()} for name, value in ACCEPTED_CBOR
        ],
        "rejected": [{"name": name, "hex": data, "why": why} for name, data, why in REJECTED_CBOR],
    }


def hashes() -> list[dict[str, Any]]:
    """Hashes under a domain tag."""
    cases: list[tuple[str, list[bytes]]] = [
        ("task", []),
        ("task", [b""]),
        ("task", [b"ab", b"c"]),
        ("task", [b"a", b"bc"]),
        ("topic", [b"ab", b"c"]),
    ]
    return [
        {"tag": tag, "parts": [part.hex() for part in parts], "hash": tagged_hash(tag, *parts).hex()}
        for tag, parts in cases
    ]


def seed(name: str) -> bytes:
    """Return the seed of a named identity in the vectors."""
    return hashlib.sha256(name.encode()).digest()


def identities() -> list[dict[str, Any]]:
    """Keys, fingerprints and signatures from seeds."""
    written = []
    for name, raw in (("zero", bytes(32)), ("alice", seed("alice")), ("bob", seed("bob"))):
        identity = Identity.from_seed(raw)
        written.append(
            {
                "name": name,
                "seed": raw.hex(),
                "public_key": identity.public_key.hex(),
                "agent_id": identity.id,
                "signatures": [
                    {"tag": tag, "data": data.hex(), "signature": identity.sign(tag, data).hex()}
                    for tag, data in (("message", b""), ("message", b"data"), ("operation", b"data"))
                ],
            }
        )
    return written


def topics() -> list[dict[str, Any]]:
    """Topics, their bytes and their names on the wire."""
    cases = (
        Topic("acme"),
        Topic("acme/translate", {"lang": "en", "pairs": 12, "beta": True}, "2.1"),
        Topic("a", {"n": -5, "t": "ä", "f": False}),
    )
    return [{"topic": topic.to_dict(), "hex": topic.to_bytes().hex(), "name": topic.name} for topic in cases]


def messages() -> list[dict[str, Any]]:
    """Messages with all their steps."""
    alice, bob = Identity.from_seed(seed("alice")), Identity.from_seed(seed("bob"))
    plain = Message.create(alice.id, {"b": b"\0\1", "a": [1, 2.5, "ä", None, True]})
    full = Message.create(
        alice.id,
        "hello",
        recipient=bob.id,
        topics=[Topic("b"), Topic("a", {"x": 1})],
        task_id=TaskId(bytes(range(32))),
    )
    traced = replace(plain, trace=bytes(range(1, 25)) + b"\x01")
    written = []
    for name, draft, seal in (
        ("broadcast", plain, False),
        ("all fields", full, False),
        ("encrypted", full, True),
        ("traced", traced, False),
    ):
        message = draft.stamp(NOW_MS, ttl_ms=60_000, message_id=hashlib.sha256(name.encode()).digest()[:16])
        payload = message.body
        if seal:
            # the nonce is fixed here only, so that the vector can be written again
            message = message._seal(PAYLOAD_KEY, bytes(range(24)))
        message = message.sign(alice)
        written.append(
            {
                "name": name,
                "seed": alice.seed.hex(),
                "id": message.id.hex(),
                "sender": message.sender,
                "recipient": message.recipient,
                "topics": [topic.to_dict() for topic in message.topics],
                "task_id": None if message.task_id is None else message.task_id.hex(),
                "timestamp_ms": message.timestamp_ms,
                "expires_ms": message.expires_ms,
                **({"trace": message.trace.hex()} if message.trace else {}),
                "payload": payload.hex(),
                "payload_key": PAYLOAD_KEY.hex() if seal else None,
                "signed": message.signed_bytes().hex(),
                "signature": message.signature.hex(),
                "envelope": message.to_bytes().hex(),
            }
        )
    return written


def descriptors() -> list[dict[str, Any]]:
    """Agent descriptors."""
    alice = Identity.from_seed(seed("alice"))
    cases = (
        AgentDescriptor.create(alice, sequence=0, now_ms=NOW_MS, ttl_ms=1),
        AgentDescriptor.create(
            alice,
            sequence=7,
            now_ms=NOW_MS,
            name="Alice",
            addresses=["/ip4/192.0.2.1/tcp/4001", "/dns4/alice.example/tcp/4001"],
            topics=[Topic("b"), Topic("a", {"x": 1})],
            capabilities=[
                Capability("translate", (2, 1), cost=5, latency_ms=300, concurrency=4, attributes={"lang": "en"}),
                Capability("index"),
            ],
        ),
        AgentDescriptor.tombstone(alice, sequence=8, now_ms=NOW_MS),
    )
    return [
        {
            "seed": alice.seed.hex(),
            "agent_id": one.agent_id,
            "sequence": one.sequence,
            "issued_ms": one.issued_ms,
            "expires_ms": one.expires_ms,
            "left": one.left,
            "name": one.name,
            "addresses": list(one.addresses),
            "topics": [topic.to_dict() for topic in one.topics],
            "capabilities": [capability.to_dict() for capability in one.capabilities],
            "digest": one.digest.hex(),
            "signed": one.signed_bytes().hex(),
            "signature": one.signature.hex(),
            "envelope": one.to_bytes().hex(),
        }
        for one in cases
    ]


def renewals() -> list[dict[str, Any]]:
    """Renewals of claims."""
    alice, pool = Identity.from_seed(seed("alice")), PoolId(hashlib.sha256(b"pool").digest())
    task = TaskId(hashlib.sha256(b"task").digest())
    cases = (
        Renewal(task, alice.public_key, Token(0, 0), 0, "", 0),
        Renewal(task, alice.public_key, Token(3, 2), 1000, "zweite Hälfte", NOW_MS),
    )
    return [
        {
            "seed": alice.seed.hex(),
            "pool": pool.hex(),
            "task": one.task.hex(),
            "epoch": one.token.epoch,
            "round": one.token.round,
            "fraction": one.fraction,
            "note": one.note,
            "counter": one.counter,
            "signed": sign_renewal(alice, pool, one).hex(),
        }
        for one in cases
    ]


def blobs() -> list[dict[str, Any]]:
    """Manifests, a sealed one too, and references to them."""
    alice = Identity.from_seed(seed("alice"))
    secret = tagged_hash("blob-secret", alice.seed)
    found = []
    for size, sealed, form in ((0, False, 1), (11, False, 2), (11, True, 3), (BLOB_CHUNK_BYTES + 1, True, 1)):
        content = (b"the harbour" * (size // 11 + 1))[:size]
        key = blob.sealing_key(secret, hashlib.sha256(content).digest()) if sealed else b""
        piece_bytes = blob.SEALED_PIECE_BYTES if sealed else BLOB_CHUNK_BYTES
        pieces = [content[at : at + piece_bytes] for at in range(0, size, piece_bytes)]
        chunks = [blob.seal_piece(key, index, piece) if sealed else piece for index, piece in enumerate(pieces)]
        manifest = blob.Manifest.of(chunks)
        reference = BlobRef(manifest.id, size, alice.public_key, key, BlobForm(form))
        found.append(
            {
                "seed": alice.seed.hex(),
                "size": size,
                "form": form,
                "key": key.hex(),
                "last_chunk": chunks[-1].hex() if chunks and len(chunks[-1]) < 64 else "",
                "manifest": manifest.to_bytes().hex(),
                "id": manifest.id.hex(),
                "value": encode_value(reference).hex(),
                "text": reference_text(reference),
            }
        )
    return found


FILES = {
    "blobs.json": blobs,
    "cbor.json": cbor,
    "hashes.json": hashes,
    "identities.json": identities,
    "topics.json": topics,
    "messages.json": messages,
    "descriptors.json": descriptors,
    "governance.json": governance_story.governance,
    "renewals.json": renewals,
    "operations.json": lambda: pool_story.operations(to_json),
    "secrecy.json": lambda: secrecy_story.secrecy(to_json),
    "sync.json": lambda: pool_story.sync(to_json),
    "admission.json": lambda: admission_story.admission(to_json),
    "mail.json": mail_story.mail,
    "joins.json": join_story.joins,
    "receipts.json": lambda: receipt_story.receipts(to_json),
}


def main() -> None:
    """Write all files."""
    for name, make in FILES.items():
        (FOLDER / name).write_text(json.dumps(make(), indent=1, ensure_ascii=False) + "\n")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
