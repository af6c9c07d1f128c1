"""Frames and records of the fast transport: whatever the cuts, the same; and nothing but a violation for garbage."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st
from noise.connection import NoiseConnection

from converge_p2p.core import limits
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.net.fast import frames
from converge_p2p.net.fast.records import PLAINTEXT_BYTES_MAX, Opener, Sealer

KEY = bytes(range(32))

headers = st.one_of(
    st.tuples(st.sampled_from([1]), st.integers(0, 15), st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.tuples(st.sampled_from([2, 3]), st.integers(0, 15), st.just(0), st.integers(0, 2**32 - 1)),
)
data_frames = st.tuples(st.integers(0, 15), st.integers(1, 2**32 - 1), st.binary(max_size=100))


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def joined(items: list) -> list:
    """Headers as they are, and the pieces between them as one."""
    out: list = []
    for item in items:
        if isinstance(item, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += item
        else:
            out.append(item)
    return out


@given(st.lists(st.one_of(headers, data_frames), max_size=12), st.lists(st.integers(0, 10_000), max_size=30))
def test_frames_survive_any_cutting(sent: list, cuts: list[int]) -> None:
    wire, expected = b"", []
    for frame in sent:
        if isinstance(frame[-1], bytes):
            flags, stream, payload = frame
            wire += frames.encode_header(frames.DATA, flags, stream, len(payload)) + payload
            expected.append((0, frames.DATA, flags, stream, len(payload)))
            expected += [payload] if payload else []
        else:
            wire += frames.encode_header(*frame)
            expected.append((0, *frame))
    decoder = frames.FrameDecoder()
    assert joined([item for part in cut(wire, cuts) for item in decoder.feed(part)]) == expected
    assert not decoder.in_frame


@given(st.binary(max_size=400), st.lists(st.integers(0, 1000), max_size=10))
def test_garbage_is_refused_or_bounded(garbage: bytes, cuts: list[int]) -> None:
    whole, parts = frames.FrameDecoder(), frames.FrameDecoder()

    def outcome(decoder: frames.FrameDecoder, pieces: list[bytes]) -> str:
        try:
            for piece in pieces:
                decoder.feed(piece)
        except RemoteViolation as violation:
            return violation.reason
        return "fine"

    assert outcome(whole, [garbage]) == outcome(parts, cut(garbage, cuts))


@given(st.integers(1, 11))
def test_half_a_header_is_held_and_nothing_else(size: int) -> None:
    decoder = frames.FrameDecoder()
    assert decoder.feed(frames.encode_header(frames.PING, 1, 0, 7)[:size]) == []
    assert decoder.in_frame


def test_data_is_passed_on_before_its_frame_is_whole() -> None:
    decoder = frames.FrameDecoder()
    assert decoder.feed(frames.encode_header(frames.DATA, 0, 1, 1000) + b"abc") == [(0, 0, 0, 1, 1000), b"abc"]
    assert (decoder.body_left, decoder.in_frame) == (997, True)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\x01" + frames.encode_header(frames.DATA, 0, 1, 0)[1:], "yamux_bad_header"),
        (frames.encode_header(4, 0, 0, 0), "yamux_bad_header"),
        (frames.encode_header(255, 0, 1, 0), "yamux_bad_header"),
        (frames.encode_header(frames.DATA, 0, 0, 0), "yamux_bad_header"),
        (frames.encode_header(frames.WINDOW_UPDATE, 1, 0, 0), "yamux_bad_header"),
        (frames.encode_header(frames.PING, 1, 3, 0), "yamux_bad_header"),
        (frames.encode_header(frames.GO_AWAY, 0, 3, 0), "yamux_bad_header"),
        (frames.encode_header(frames.DATA, 0, 1, limits.STREAM_FRAME_BYTES_MAX + 1), "yamux_frame_too_long"),
        (frames.encode_header(frames.DATA, 0, 1, 2**32 - 1), "yamux_frame_too_long"),
    ],
)
def test_header_that_nobody_sends_is_refused_before_its_data(header: bytes, reason: str) -> None:
    with pytest.raises(RemoteViolation) as caught:
        frames.FrameDecoder().feed(header)
    assert caught.value.reason == reason


@given(st.lists(st.binary(max_size=200), max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_records_survive_any_cutting(written: list[bytes], cuts: list[int]) -> None:
    sealer, opener = Sealer(KEY, 0), Opener(KEY, 0)
    wire = b"".join(map(sealer.seal, written))
    assert b"".join(opener.feed(part) for part in cut(wire, cuts)) == b"".join(written)
    assert opener.pending_bytes == 0


def test_more_than_a_record_holds_is_spread_over_several() -> None:
    sealer, opener = Sealer(KEY, 5), Opener(KEY, 5)
    data = bytes(2 * PLAINTEXT_BYTES_MAX + 1)
    wire = sealer.seal(data)
    assert len(wire) == len(data) + 3 * 18
    assert opener.feed(wire) == data


@given(st.binary(min_size=1, max_size=60), st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_record_is_never_opened(data: bytes, place: int, change: int) -> None:
    wire = bytearray(Sealer(KEY, 0).seal(data))
    wire[2 + place % (len(wire) - 2)] ^= change
    with pytest.raises(RemoteViolation) as caught:
        Opener(KEY, 0).feed(bytes(wire))
    assert caught.value.reason == "noise_bad_record"


def test_records_out_of_order_repeated_or_too_short_are_refused() -> None:
    sealer = Sealer(KEY, 0)
    first, second = sealer.seal(b"1"), sealer.seal(b"2")
    for wire in (second, first + first, b"\x00\x0f" + bytes(15), b"\x00\x00"):
        with pytest.raises(RemoteViolation):
            Opener(KEY, 0).feed(wire)


@given(st.binary(max_size=300))
def test_garbage_is_no_record(garbage: bytes) -> None:
    opener = Opener(KEY, 0)
    try:
        assert opener.feed(garbage) == b""
    except RemoteViolation:
        return
    assert opener.pending_bytes == len(garbage)


def test_records_are_those_of_the_noise_library() -> None:
    """The same bytes as the library that does the handshake would send."""
    sides = []
    for initiator in (True, False):
        side = NoiseConnection.from_name(b"Noise_NN_25519_ChaChaPoly_SHA256")
        side.set_as_initiator() if initiator else side.set_as_responder()
        side.start_handshake()
        sides.append(side)
    sides[1].read_message(sides[0].write_message())
    sides[0].read_message(sides[1].write_message())
    cipher = sides[0].noise_protocol.cipher_state_encrypt
    sealer = Sealer(bytes(cipher.k), cipher.n)
    for text in (b"", b"one", b"two" * 1000):
        assert sealer.seal(text)[2:] == sides[0].encrypt(text)
