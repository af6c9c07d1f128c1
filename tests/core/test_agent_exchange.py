"""Rules of comparing: after a few rounds two nodes hold the same, and no message can cost more than its bound."""

from __future__ import annotations

from typing import Any

import pytest
from agent_kit import NOW, descriptor, gone, said, who
from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model import agent_exchange as exchange
from converge_p2p.core.model.agent_index import AgentIndex
from converge_p2p.core.model.descriptor import AgentDescriptor


def wire(message: Any) -> Any:
    """Through the encoding."""
    return exchange.decode_agent_message(exchange.encode_agent_message(message))


def take(index: AgentIndex, descriptors: Any) -> None:
    for frame in exchange.in_frames(descriptors):
        for data in wire(frame).envelopes:
            index.put(AgentDescriptor.from_bytes(data), "peer", NOW)


def compare(one: AgentIndex, other: AgentIndex, start: int = 0) -> bool:
    """One round, begun by `one`; says whether anything differed."""
    holdings = exchange.holdings_against(other, wire(exchange.digests_of(one)), start)
    if holdings is None:
        return False
    send, wants = exchange.compare(one, wire(holdings), NOW)
    take(other, send)
    take(one, exchange.wanted_from(other, wire(wants), NOW))
    return True


@pytest.mark.no_cover
@settings(max_examples=100, deadline=None)
@given(st.lists(said(20), max_size=30), st.lists(said(20), max_size=30), st.integers(0, 255))
def test_a_round_leaves_both_with_the_newest_of_both(
    mine: list[AgentDescriptor], theirs: list[AgentDescriptor], start: int
) -> None:
    one, other, both = AgentIndex(), AgentIndex(), AgentIndex()
    for index, heard in ((one, mine), (other, theirs), (both, [*mine, *theirs])):
        for each in heard:
            index.put(each, "x", NOW)
    compare(one, other, start)
    assert one.digests() == other.digests() == both.digests()
    assert not compare(one, other)


def test_a_newcomer_gets_everything_in_rounds_of_bounded_size() -> None:
    full, empty = AgentIndex(), AgentIndex()
    for number in range(300):
        full.put(descriptor(number, 1, "x"), "x", NOW)
    rounds = 0
    while compare(empty, full, start=rounds * 31 % 256):
        rounds += 1
    assert len(empty) == 300
    assert rounds >= len({who(number).id[:2] for number in range(300)}) // limits.AGENT_BUCKETS_PER_ANSWER_MAX


def test_a_bucket_that_somebody_made_too_large_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "AGENT_ENTRIES_PER_ANSWER_MAX", 3)
    full, empty = AgentIndex(), AgentIndex()
    by_bucket: dict[str, list[int]] = {}
    for number in range(1000):
        by_bucket.setdefault(who(number).id[:2], []).append(number)
    crowded = max(by_bucket.values(), key=len)
    (other,) = next(numbers[:1] for numbers in by_bucket.values() if numbers != crowded)
    for number in (*crowded, other):
        full.put(descriptor(number, 1, "x"), "x", NOW)
    assert compare(empty, full, start=int(who(crowded[0]).id[:2], 16))
    assert [one.agent_id for one in empty] == [who(other).id]


def test_expired_descriptors_are_not_sent_and_tombstones_are() -> None:
    one, other = AgentIndex(), AgentIndex()
    one.put(descriptor(1, 1, "x", ttl_ms=1000), "x", NOW)
    one.put(gone(2, 5), "x", NOW)
    later = NOW + 2000
    holdings = exchange.holdings_against(other, exchange.digests_of(one), 0)
    assert holdings is not None
    send, wants = exchange.compare(one, holdings, later)
    assert [each.left for each in send] == [True]
    assert wants.agents == ()
    assert exchange.wanted_from(one, exchange.Wants((who(1).id, who(2).id, who(3).id)), later) == send


def held(number: int = 1, sequence: Any = 1, prefix: Any = bytes(8)) -> list[Any]:
    return [bytes.fromhex(who(number).id), sequence, prefix]


BUCKET = int(who(1).id[:2], 16)


@pytest.mark.parametrize(
    "plain",
    [[], {}, [0], [0, b"short"], [0, bytes(2048), 1], [4, []], [1, [[BUCKET]]], [1, [[256, []]]], [1, [[True, []]]],
     [1, [[-1, []]]], [1, [[BUCKET, []]] * 2], [1, [[(BUCKET + 1) % 256, [held()]]]], [1, [[BUCKET, [held()[:2]]]]],
     [1, [[BUCKET, [held(sequence=-1)]]]], [1, [[BUCKET, [held(sequence=True)]]]],
     [1, [[BUCKET, [held(sequence=limits.SEQ_MAX + 1)]]]], [1, [[BUCKET, [held(prefix=b"")]]]],
     [1, [[n, []] for n in range(limits.AGENT_BUCKETS_PER_ANSWER_MAX + 1)]],
     [1, [[BUCKET, [held()] * (limits.AGENT_ENTRIES_PER_ANSWER_MAX + 1)]]],
     [2, [1]], [2, [b""] * (limits.DESCRIPTORS_PER_FRAME_MAX + 1)], [3, [b"short"]], [3, ["x" * 32]],
     [3, [bytes(32)] * (limits.AGENT_ENTRIES_PER_ANSWER_MAX + 1)]],
)  # fmt: skip
def test_a_message_of_another_form_is_refused(plain: Any) -> None:
    with pytest.raises(CodecError):
        exchange.decode_agent_message(encode(plain))


@given(st.binary(max_size=200))
def test_garbage_is_not_a_message(data: bytes) -> None:
    with pytest.raises(CodecError):
        exchange.decode_agent_message(data)


def test_frames_are_bounded_in_number_and_size() -> None:
    large = descriptor(1, 1, *(f"c{n}{'x' * 200}" for n in range(60)))
    frames = list(exchange.in_frames([large] * 100))
    assert sum(len(frame.envelopes) for frame in frames) == 100
    assert all(sum(map(len, frame.envelopes)) <= limits.BATCH_BYTES_MAX for frame in frames)
    assert len(frames) > 100 // limits.DESCRIPTORS_PER_FRAME_MAX + 1
