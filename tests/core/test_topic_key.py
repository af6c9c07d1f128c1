"""The key of a private topic: what it names, seals and opens, and what it hides."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError, LocalError, SignatureError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.topic_key import PrivateTopic, SealedTopicMessage, TopicKey

TOPIC = Topic("acme/secret")
ONE, OTHER = PrivateTopic(TOPIC, TopicKey(b"1" * 32)), PrivateTopic(TOPIC, TopicKey(b"2" * 32))
SENDER, STRANGER = (Identity.from_seed(bytes([number]) * 32).public_key for number in (1, 2))


@given(st.binary(max_size=500), st.integers(0, 2**53 - 1))
def test_members_open_what_members_seal(plain: bytes, seq: int) -> None:
    sealed = SealedTopicMessage.from_bytes(ONE.seal(SENDER, seq, plain).to_bytes())
    assert (sealed.sender, sealed.seq) == (SENDER, seq)
    assert ONE.open(sealed) == plain


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_does_not_open(place: int, change: int) -> None:
    data = bytearray(ONE.seal(SENDER, 5, b"some plain text").to_bytes())
    data[place % len(data)] ^= change
    with pytest.raises((SignatureError, CodecError)):
        ONE.open(SealedTopicMessage.from_bytes(bytes(data)))


def test_sender_number_topic_and_key_are_bound() -> None:
    sealed = ONE.seal(SENDER, 5, b"plain")
    for moved in (
        SealedTopicMessage(STRANGER, 5, sealed.nonce, sealed.box),
        SealedTopicMessage(SENDER, 6, sealed.nonce, sealed.box),
    ):
        with pytest.raises(SignatureError):
            ONE.open(moved)
    for elsewhere in (OTHER, PrivateTopic(Topic("acme/else"), TopicKey(b"1" * 32))):
        with pytest.raises(SignatureError):
            elsewhere.open(sealed)


def test_names_tell_nothing_and_differ_by_topic_and_by_key() -> None:
    names = {ONE.name, OTHER.name, PrivateTopic(Topic("acme/else"), TopicKey(b"1" * 32)).name, TOPIC.name}
    assert len(names) == 4
    assert len({ONE.name, ONE.member_key.hex(), TOPIC.name, (b"1" * 32).hex()}) == 4
    assert len(ONE.member_key) == 32


def test_the_same_text_twice_is_two_ciphertexts() -> None:
    assert ONE.seal(SENDER, 1, b"yes").box != ONE.seal(SENDER, 2, b"yes").box


@given(st.binary(min_size=32, max_size=32))
def test_a_key_file_is_read_again_and_never_shown(secret: bytes) -> None:
    key = TopicKey(secret)
    assert TopicKey.from_file(key.to_file()) == key
    assert secret.hex() not in repr(key)


@pytest.mark.parametrize(
    "file", [b"", b"/key/swarm/psk/1.0.0/\n", b"converge-topic-key-1\n", b"converge-topic-key-1\nxy"]
)
def test_a_wrong_key_file_is_told_so(file: bytes) -> None:
    with pytest.raises(CodecError):
        TopicKey.from_file(file)
    with pytest.raises(LocalError, match="32 bytes"):
        TopicKey(file[:5])


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with pytest.raises(CodecError):
        SealedTopicMessage.from_bytes(data)
    with pytest.raises(CodecError):
        SealedTopicMessage.from_bytes(encode([SENDER, 1, data[:23], bytes(16)]))
