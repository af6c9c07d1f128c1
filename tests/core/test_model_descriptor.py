"""Rules of agent descriptors: signed by whom they describe, and the same winner everywhere."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, RemoteViolation
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import DESCRIPTOR_TAG, AgentDescriptor
from converge_p2p.core.model.envelope import pack_envelope
from converge_p2p.core.model.topic import Topic

ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
NOW = 1_700_000_000_000


def descriptor(identity: Identity = ALICE, **fields: Any) -> AgentDescriptor:
    return AgentDescriptor.create(identity, **{"sequence": 1, "now_ms": NOW, **fields})


@settings(max_examples=50)
@given(
    st.integers(0, limits.SEQ_MAX),
    st.text(max_size=20),
    st.lists(st.sampled_from([Topic("a"), Topic("b", {"x": True}), Topic("c", {}, "1")])),
    st.lists(st.sampled_from([Capability("x"), Capability("y", (2, 1), cost=3), Capability("z", attributes={"l": 1})])),
    st.lists(st.from_regex(r"/ip4/1\.2\.3\.[0-9]/tcp/1", fullmatch=True), max_size=5),
)
def test_a_descriptor_survives_its_envelope(
    sequence: int, name: str, topics: list[Topic], skills: list[Capability], addresses: list[str]
) -> None:
    one = descriptor(sequence=sequence, name=name, topics=topics, capabilities=skills, addresses=addresses)
    read = AgentDescriptor.from_bytes(one.to_bytes())
    assert read == one
    assert read.verify()
    assert read.agent_id == ALICE.id
    assert read.addresses == tuple(dict.fromkeys(addresses))
    assert set(read.topics) == set(topics)
    assert set(read.capabilities) == set(skills)


def test_no_byte_of_a_descriptor_can_be_changed() -> None:
    whole = descriptor(name="alice", topics=[Topic("a")], capabilities=[Capability("x")], addresses=["/ip4/1"])
    data = whole.to_bytes()
    for index in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[index] ^= flip
            with pytest.raises((CodecError, RemoteViolation)):
                AgentDescriptor.from_bytes(bytes(changed)).check(NOW)


def test_only_its_agent_can_sign_it() -> None:
    with pytest.raises(LocalError, match="cannot sign"):
        descriptor().sign(BOB)
    with pytest.raises(LocalError):
        descriptor(Identity.from_public_key(ALICE.public_key))
    assert not replace(descriptor(), public_key=BOB.public_key).verify()


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (NOW - limits.MESSAGE_CLOCK_SKEW_MS, None),
        (NOW - limits.MESSAGE_CLOCK_SKEW_MS - 1, "descriptor_from_future"),
        (NOW + 999, None),
        (NOW + 1000, "descriptor_expired"),
    ],
)
def test_a_descriptor_counts_until_it_expires(now: int, reason: str | None) -> None:
    one = descriptor(ttl_ms=1000)
    if reason is None:
        one.check(now)
        return
    with pytest.raises(RemoteViolation) as raised:
        one.check(now)
    assert raised.value.reason == reason


def test_the_higher_sequence_number_wins_and_a_tie_has_one_winner() -> None:
    old, new = descriptor(sequence=1, name="z"), descriptor(sequence=2, name="a")
    assert new.supersedes(old)
    assert not old.supersedes(new)
    assert not old.supersedes(old)
    twin = descriptor(sequence=1, name="y")
    assert old.supersedes(twin) != twin.supersedes(old)
    with pytest.raises(LocalError):
        new.supersedes(descriptor(BOB))


@pytest.mark.parametrize(
    "wrong",
    [{"sequence": -1}, {"sequence": 1.0}, {"ttl_ms": 0}, {"ttl_ms": limits.DESCRIPTOR_TTL_MS_MAX + 1},
     {"addresses": ["ip4/1"]}, {"name": "\ud800"}],
)  # fmt: skip
def test_fields_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalError):
        descriptor(**wrong)


def test_a_descriptor_is_bounded() -> None:
    for wrong in (
        {"addresses": [f"/ip4/{n}" for n in range(limits.DESCRIPTOR_ADDRESSES_MAX + 1)]},
        {"topics": [Topic(f"t{n}") for n in range(limits.DESCRIPTOR_TOPICS_MAX + 1)]},
        {"capabilities": [Capability(f"c{n}") for n in range(limits.DESCRIPTOR_CAPABILITIES_MAX + 1)]},
        {"capabilities": [Capability("c", attributes={"x": "t" * 1000, "n": n, "y": "u" * 1000}) for n in range(40)]},
    ):
        with pytest.raises(LimitExceeded):
            descriptor(**wrong)


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, b"k"), (0, None), (1, -1), (2, None), (3, NOW), (4, 1), (4, None), (5, b"name"), (6, ["ip4"]),
     (6, ["/a", "/a"]), (6, [1]), (7, [b"x"]), (7, [Topic("b").to_bytes(), Topic("a").to_bytes()]), (8, [["x"]]),
     (8, [1]), (8, [Capability("y").to_fields(), Capability("x").to_fields()]),
     (8, [["x", [1, 0, 0], 0, 0, 0, {}]]), (8, {})],
)  # fmt: skip
def test_a_correctly_signed_descriptor_of_another_shape_is_refused(index: int, value: Any) -> None:
    fields = decode(descriptor().signed_bytes())
    fields[index] = value
    data = encode(fields)
    with pytest.raises(CodecError):
        AgentDescriptor.from_bytes(pack_envelope(data, ALICE.sign(DESCRIPTOR_TAG, data)))


def test_a_tombstone_says_nothing_but_that_its_agent_is_gone_and_replaces_what_was_said() -> None:
    said = descriptor(name="alice", topics=[Topic("a")])
    gone = AgentDescriptor.tombstone(ALICE, sequence=2, now_ms=NOW)
    read = AgentDescriptor.from_bytes(gone.to_bytes())
    read.check(NOW)
    assert read.left
    assert read.supersedes(said)
    assert gone.expires_ms >= said.expires_ms
    for wrong in ({"name": "a"}, {"addresses": ("/ip4/1",)}, {"topics": (Topic("a"),)}, {"left": 1}):
        with pytest.raises(LocalError):
            replace(gone, **wrong)


def test_the_rank_is_the_sequence_and_then_the_digest() -> None:
    twins = [descriptor(name=name) for name in "xyz"]
    by_rank = sorted(twins, key=lambda one: one.rank)
    assert by_rank == sorted(twins, key=lambda one: one.digest)
    assert all(higher.supersedes(lower) for lower, higher in pairwise(by_rank))
    assert descriptor(sequence=2).rank > by_rank[-1].rank


@given(st.binary(max_size=100))
def test_garbage_is_not_a_descriptor(data: bytes) -> None:
    with pytest.raises(CodecError):
        AgentDescriptor.from_bytes(data)
