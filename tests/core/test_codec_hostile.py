"""Hostile bytes at the decoder: everything is a `CodecError`, and soon.

Knows: the decoder. Must not know: operations.
"""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(0, 99) | st.text(max_size=4) | st.binary(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_a_rational_with_a_huge_exponent_is_refused_before_it_is_computed() -> None:
    # 30([ "1e999999999", null ]): a decoder that interprets it computes a power of ten with a thousand million digits
    hostile = bytes.fromhex("d81e826b3165393939393939393939f6")
    with pytest.raises(CodecError):
        decode(hostile)
    with pytest.raises(CodecError):
        decode(b"\x81" + hostile)


@pytest.mark.parametrize("tag", [*range(300), 1004, 43000, 55799, 2**32])
def test_every_tag_is_refused(tag: int) -> None:
    with pytest.raises(CodecError):
        decode(cbor2.dumps(cbor2.CBORTag(tag, [1, 2])))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("integer longer than needed", b"\x18\x01"),
        ("length longer than needed", b"\x58\x01a"),
        ("indefinite array", b"\x9f\x01\xff"),
        ("indefinite bytes", b"\x5f\x41a\xff"),
        ("repeated key", b"\xa2\x01\x02\x01\x03"),
        ("unsorted keys", b"\xa2\x02\x02\x01\x03"),
        ("float", b"\xf9\x3c\x00"),
        ("undefined", b"\xf7"),
        ("simple value", b"\xf8\x20"),
        ("trailing bytes", b"\x01\x01"),
        ("nothing", b""),
        ("text that is not UTF-8", b"\x61\xff"),
        ("array of two to the forty", b"\x9b\x00\x00\x01\x00\x00\x00\x00\x00"),
        ("bytes of two to the forty", b"\x5b\x00\x00\x01\x00\x00\x00\x00\x00"),
        ("deep nesting", b"\x81" * 60_000),
    ],
)
def test_only_the_canonical_encoding_is_accepted(name: str, data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(data)


@pytest.mark.parametrize("refused", [1.5, 2**64, -(2**63) - 1, cbor2.undefined, bytearray(b"x"), {1}])
def test_what_is_refused_alone_is_refused_inside_arrays_and_maps(refused: object) -> None:
    for value in (refused, [refused], (1, refused), [[1, [refused]]], {"key": refused}, [{1: [refused]}]):
        with pytest.raises(CodecError):
            encode(value)


def test_nesting_is_bounded_alike_in_both_directions() -> None:
    value: list[object] = []
    for _ in range(limits.CBOR_DEPTH_MAX - 1):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(CodecError):
        encode([[value]])
    with pytest.raises(CodecError):
        decode(cbor2.dumps([[value]]))


@given(plain)
@settings(max_examples=150, deadline=None)
def test_decode_inverts_encode(value: object) -> None:
    data = encode(value)
    assert encode(decode(data)) == data


@given(st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_any_bytes_decode_canonically_or_raise_codec_error(data: bytes) -> None:
    try:
        value = decode(data)
    except CodecError:
        return
    assert encode(value) == data
