"""Frames: whatever the cuts, the same frames; no length makes the reader hold more than it must."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st

from converge_p2p.core.errors import LimitExceeded, RemoteViolation
from converge_p2p.net.framing import FrameDecoder, TokenBucket, VarintFrameDecoder, encode_frame, encode_varint


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_survive_any_cutting(payloads: list[bytes], cuts: list[int]) -> None:
    decoder = FrameDecoder(50)
    data = b"".join(encode_frame(payload, 50) for payload in payloads)
    assert [frame for part in cut(data, cuts) for frame in decoder.feed(part)] == payloads
    assert decoder.pending_bytes == 0


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_varint_frames_survive_any_cutting(payloads: list[bytes], cuts: list[int]) -> None:
    decoder = VarintFrameDecoder(300)
    data = b"".join(encode_varint(len(payload)) + payload for payload in payloads)
    assert [frame for part in cut(data, cuts) for frame in decoder.feed(part)] == payloads


def test_length_over_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(RemoteViolation, match="51 bytes; at most 50"):
        FrameDecoder(50).feed((51).to_bytes(4, "big"))
    with pytest.raises(RemoteViolation):
        VarintFrameDecoder(300).feed(encode_varint(301))
    with pytest.raises(RemoteViolation):
        VarintFrameDecoder(300).feed(b"\x80" * 6)


def test_payload_over_the_limit_is_not_sent() -> None:
    with pytest.raises(LimitExceeded):
        encode_frame(b"x" * 51, 50)


@pytest.mark.parametrize(("number", "encoded"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")])
def test_varint_is_that_of_protobuf(number: int, encoded: bytes) -> None:
    assert encode_varint(number) == encoded


def test_bucket_lets_a_burst_of_one_second_through_and_then_the_rate() -> None:
    bucket = TokenBucket(10)
    assert bucket.take(10, now=100.0) == 0
    assert bucket.take(5, now=100.0) == pytest.approx(0.5)
    assert bucket.take(0, now=100.5) == pytest.approx(0)
    # idle time beyond a second earns nothing more
    assert bucket.take(10, now=1000.0) == 0
    assert bucket.take(1, now=1000.0) > 0


def test_bucket_that_refuses_does_not_go_into_debt() -> None:
    bucket = TokenBucket(2)
    assert [bucket.try_take(1, now=5.0) for _ in range(4)] == [True, True, False, False]
    assert bucket.try_take(1, now=5.5)
