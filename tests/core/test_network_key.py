"""The key of a private network: what is read, what is written, and what a wrong file is told."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, strategies as st

from converge_p2p.core.errors import CodecError, LocalError
from converge_p2p.core.model.network_key import NetworkKey

SECRET = bytes(range(32))
HEADER = b"/key/swarm/psk/1.0.0/\n"


def test_a_key_is_written_as_go_and_js_read_it() -> None:
    assert NetworkKey(SECRET).to_file() == HEADER + b"/base16/\n" + SECRET.hex().encode() + b"\n"


@given(st.binary(min_size=32, max_size=32))
def test_every_encoding_of_the_specification_is_read(secret: bytes) -> None:
    key = NetworkKey(secret)
    assert NetworkKey.from_file(key.to_file()) == key
    for body in (b"/base64/\n" + base64.b64encode(secret), b"/bin/\n" + secret, b"/bin/\n" + secret + b"\n"):
        assert NetworkKey.from_file(HEADER + body) == key
    assert NetworkKey.from_file(key.to_file().upper().replace(HEADER.upper(), HEADER).replace(b"/BASE16/", b"/base16/"))


@given(st.binary(max_size=200))
def test_no_file_breaks_the_reader(data: bytes) -> None:
    for file in (data, HEADER + data, HEADER + b"/base16/\n" + data, HEADER + b"/base64/\n" + data):
        try:
            assert len(NetworkKey.from_file(file).secret) == 32
        except CodecError:
            continue


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "first line"),
        (b"converge-key-1 plain\n00", "first line"),
        (HEADER, "cut off"),
        (HEADER + b"/base16/", "cut off"),
        (HEADER + b"/base16/\n" + SECRET.hex().encode()[:-2], "31 bytes; expected 32"),
        (HEADER + b"/base16/\n" + SECRET.hex().encode() + b"00", "33 bytes"),
        (HEADER + b"/base16/\nxyz", "not hexadecimal"),
        (HEADER + b"/base64/\n!", "not base64"),
        (HEADER + b"/base58/\nabc", "expected /base16/"),
        (HEADER + b"/bin/\n" + bytes(5000), "at most"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(file: bytes, reason: str) -> None:
    with pytest.raises(CodecError, match=reason) as caught:
        NetworkKey.from_file(file)
    assert "mesh new" in caught.value.hint


def test_a_network_is_named_by_its_key_which_is_never_shown() -> None:
    key = NetworkKey(SECRET)
    assert key.network == NetworkKey(SECRET).network != NetworkKey(bytes(32)).network
    assert SECRET.hex() not in repr(key)
    assert repr(SECRET) not in repr(key)
    with pytest.raises(LocalError, match="32 bytes"):
        NetworkKey(b"short")
