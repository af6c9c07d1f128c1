"""The bytes of the protocol are those in the files, in both directions."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode
from typing import Any

import msgpack
import pytest
from converge_p2p.core.model.blob_text import parse_reference
from generate import FILES, FOLDER, from_json
from nacl.signing import VerifyKey

from converge_p2p.core.codec import decode, decode_value, encode, tagged_hash
from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.formula import decode_formula
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.identity import Identity, fingerprint
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.pool import PoolSpec, pool_id
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.oplog.bodies import Token
from converge_p2p.core.replica.renewal import Renewal, check_signature, decode_renewal
from converge_p2p.core.types import AgentId, PoolId, PublicKey, TaskId


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_code_still_writes_what_is_in_the_file(name: str) -> None:
    assert FILES[name]() == read(name), "the protocol's bytes changed: is that meant? See tests/vectors/generate.py"


@pytest.mark.parametrize("case", read("cbor.json")["accepted"], ids=lambda case: case["name"])
def test_a_value_has_its_one_encoding(case: dict[str, Any]) -> None:
    value, data = from_json(case["value"]), bytes.fromhex(case["hex"])
    assert encode(value) == data
    assert decode(data) == value


@pytest.mark.parametrize("case", read("cbor.json")["rejected"], ids=lambda case: case["name"])
def test_every_other_encoding_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        decode(bytes.fromhex(case["hex"]))


@pytest.mark.parametrize("case", read("hashes.json"))
def test_a_hash_is_over_the_tag_and_each_part_with_its_length(case: dict[str, Any]) -> None:
    parts = [bytes.fromhex(part) for part in case["parts"]]
    assert tagged_hash(case["tag"], *parts).hex() == case["hash"]
    # written out once more from the words of the protocol
    whole = (
        b"converge-p2p/1/"
        + case["tag"].encode()
        + b"\0"
        + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    )
    assert hashlib.sha256(whole).hexdigest() == case["hash"]


@pytest.mark.parametrize("case", read("identities.json"), ids=lambda case: case["name"])
def test_a_seed_determines_key_fingerprint_and_signatures(case: dict[str, Any]) -> None:
    identity = Identity.from_seed(bytes.fromhex(case["seed"]))
    assert identity.public_key.hex() == case["public_key"]
    assert identity.id == case["agent_id"] == hashlib.sha256(bytes.fromhex(case["public_key"])).hexdigest()
    for signed in case["signatures"]:
        data, signature = bytes.fromhex(signed["data"]), bytes.fromhex(signed["signature"])
        assert identity.sign(signed["tag"], data) == signature
        whole = b"converge-p2p/1/" + signed["tag"].encode() + b"\0" + data
        assert VerifyKey(identity.public_key).verify(whole, signature) == whole


@pytest.mark.parametrize("case", read("topics.json"))
def test_a_topic_has_its_bytes_and_name(case: dict[str, Any]) -> None:
    topic = Topic.from_bytes(bytes.fromhex(case["hex"]))
    assert topic == Topic.from_dict(case["topic"])
    assert topic.name == case["name"]


@pytest.mark.parametrize("case", read("messages.json"), ids=lambda case: case["name"])
def test_a_message_is_read_as_it_was_written(case: dict[str, Any]) -> None:
    envelope = bytes.fromhex(case["envelope"])
    message = Message.from_bytes(envelope)
    message.check(case["timestamp_ms"])
    assert msgpack.unpackb(envelope) == [1, bytes.fromhex(case["signed"]), bytes.fromhex(case["signature"])]
    assert message.id.hex() == case["id"]
    assert message.sender == AgentId(case["sender"])
    assert message.recipient == case["recipient"]
    assert [topic.to_dict() for topic in message.topics] == case["topics"]
    assert message.task_id == (None if case["task_id"] is None else TaskId(bytes.fromhex(case["task_id"])))
    assert message.expires_ms == case["expires_ms"]
    assert message.trace.hex() == case.get("trace", "")
    key = case["payload_key"]
    payload = message.payload if key is None else message.decrypt_payload(bytes.fromhex(key))
    assert payload == decode_value(bytes.fromhex(case["payload"]))


@pytest.mark.parametrize("case", read("descriptors.json"))
def test_a_descriptor_is_read_as_it_was_written(case: dict[str, Any]) -> None:
    descriptor = AgentDescriptor.from_bytes(bytes.fromhex(case["envelope"]))
    descriptor.check(case["issued_ms"])
    assert descriptor.agent_id == case["agent_id"]
    assert fingerprint(PublicKey(descriptor.public_key)) == case["agent_id"]
    assert descriptor.signed_bytes().hex() == case["signed"]
    assert (descriptor.sequence, descriptor.name) == (case["sequence"], case["name"])
    assert (descriptor.left, descriptor.digest.hex()) == (case["left"], case["digest"])
    assert list(descriptor.addresses) == case["addresses"]
    assert [topic.to_dict() for topic in descriptor.topics] == case["topics"]
    assert list(descriptor.capabilities) == [Capability.from_dict(one) for one in case["capabilities"]]


@pytest.mark.parametrize("case", read("governance.json")["accepted"], ids=lambda case: case["name"])
def test_founding_terms_compile_to_the_formula_of_the_file(case: dict[str, Any]) -> None:
    spec = PoolSpec.from_body(decode(bytes.fromhex(case["body"])))
    assert encode(spec.to_body()).hex() == case["body"]
    assert pool_id(PublicKey(bytes.fromhex(case["creator"])), spec).hex() == case["pool"]
    rules, formula = compile_rules(spec), decode_formula(bytes.fromhex(case["formula"]))
    assert rules.grant == rules.accept == rules.epoch == formula
    assert rules.endorse == (formula if case["endorse_phase"] else None)
    assert [key.hex() for key in rules.deciders] == case["deciders"]
    assert rules.provisional == case["provisional"]


@pytest.mark.parametrize("case", read("governance.json")["refused"], ids=lambda case: case["name"])
def test_founding_terms_that_could_decide_twice_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        compile_rules(PoolSpec.from_body(decode(bytes.fromhex(case["body"]))))


@pytest.mark.parametrize("case", read("blobs.json"))
def test_a_blob_is_named_by_its_manifest_and_a_reference_is_an_extension(case: dict[str, Any]) -> None:
    manifest, key, size = bytes.fromhex(case["manifest"]), bytes.fromhex(case["key"]), case["size"]
    names = decode(manifest)[2]
    assert decode(manifest) == [size + 16 * (len(names) // 32 if key else 0), 262_144, names]
    whole = b"converge-p2p/1/blob\0" + len(manifest).to_bytes(8, "big") + manifest
    assert hashlib.sha256(whole).hexdigest() == case["id"]
    if case["last_chunk"]:
        chunk = bytes.fromhex(case["last_chunk"])
        whole = b"converge-p2p/1/blob-chunk\0" + len(chunk).to_bytes(8, "big") + chunk
        assert hashlib.sha256(whole).digest() == names[-32:]
    author = Identity.from_seed(bytes.fromhex(case["seed"])).public_key
    extension = msgpack.unpackb(bytes.fromhex(case["value"]))
    assert extension.code == case["form"]
    assert decode(extension.data) == [bytes.fromhex(case["id"]), size, author, key]
    coded = case["text"].removeprefix("blob:")
    assert urlsafe_b64decode(coded + "=" * (-len(coded) % 4)) == bytes([case["form"]]) + extension.data
    assert parse_reference(case["text"]) == decode_value(bytes.fromhex(case["value"]))


@pytest.mark.parametrize("case", read("renewals.json"))
def test_a_renewal_is_a_signature_and_its_fields(case: dict[str, Any]) -> None:
    signed, pool, task = bytes.fromhex(case["signed"]), bytes.fromhex(case["pool"]), bytes.fromhex(case["task"])
    author = Identity.from_seed(bytes.fromhex(case["seed"])).public_key
    told = (case["fraction"], case["note"], case["counter"])
    assert decode(signed[64:]) == [1, pool, task, author, case["epoch"], case["round"], *told]
    whole = b"converge-p2p/1/renewal\0" + signed[64:]
    assert VerifyKey(author).verify(whole, signed[:64]) == whole
    renewal = decode_renewal(signed, PoolId(pool))
    assert renewal == Renewal(TaskId(task), author, Token(case["epoch"], case["round"]), *told)
    check_signature(signed, renewal)
