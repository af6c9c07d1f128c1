"""Rules of messages: who may sign, what a signature covers, and what encryption is bound to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, RemoteViolation, SignatureError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.envelope import pack_envelope
from converge_p2p.core.model.message import MESSAGE_TAG, Message
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.model.trace import TraceContext
from converge_p2p.core.types import AgentId, PublicKey, TaskId

ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
KEY = b"k" * 32
NOW = 1_700_000_000_000

payloads = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10) | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
topic_sets = st.frozensets(st.sampled_from([Topic("a"), Topic("a", {"x": 1}), Topic("b/c", {}, "2")]))


@st.composite
def stamped(draw: st.DrawFn) -> Message:
    """A stamped message of ALICE with any payload and header."""
    message = Message.create(
        ALICE.id,
        draw(payloads),
        recipient=draw(st.none() | st.just(BOB.id)),
        topics=draw(topic_sets),
        task_id=draw(st.none() | st.binary(min_size=32, max_size=32).map(TaskId)),
    )
    return message.stamp(draw(st.integers(0, 2**45)), message_id=draw(st.binary(min_size=16, max_size=16)))


def signed(payload: Any = "hello", **header: Any) -> Message:
    return Message.create(ALICE.id, payload, **header).stamp(NOW, message_id=b"i" * 16).sign(ALICE)


@given(stamped(), st.booleans())
def test_a_signed_message_survives_its_envelope(draft: Message, seal: bool) -> None:
    message = (draft.encrypt_payload(KEY) if seal else draft).sign(ALICE)
    read = Message.from_bytes(message.to_bytes())
    assert read == message
    assert hash(read) == hash(message)
    assert read.verify()
    assert read.to_bytes() == message.to_bytes()
    assert (read.decrypt_payload(KEY) if seal else read.payload) == draft.payload


def test_no_byte_of_an_envelope_can_be_changed() -> None:
    whole = signed({"n": 1}, topics=[Topic("a")], recipient=BOB.id, task_id=TaskId(b"t" * 32)).to_bytes()
    Message.from_bytes(whole).check(NOW)
    for index in range(len(whole)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[index] ^= flip
            with pytest.raises((CodecError, RemoteViolation)):
                Message.from_bytes(bytes(changed)).check(NOW)


@given(st.binary(max_size=200))
def test_garbage_is_refused_with_the_one_error(data: bytes) -> None:
    with pytest.raises(CodecError):
        Message.from_bytes(data)


@given(st.lists(payloads, min_size=9, max_size=9))
def test_garbage_in_the_signed_array_is_refused_with_the_one_error(fields: list[Any]) -> None:
    try:
        data = pack_envelope(encode(fields), b"s" * 64)
    except CodecError:
        return
    with pytest.raises(CodecError):
        Message.from_bytes(data)


def test_the_signature_does_not_depend_on_the_order_of_keys() -> None:
    one = signed({"a": 1, "b": {"c": 2, "d": 3}})
    other = signed({"b": {"d": 3, "c": 2}, "a": 1})
    assert one == other
    assert one.to_bytes() == other.to_bytes()


def test_topics_are_a_set_and_different_sets_have_different_signatures() -> None:
    a, b = Topic("a"), Topic("b")
    assert signed(topics=[a, b]).to_bytes() == signed(topics=[b, a, b]).to_bytes()
    assert signed(topics=[a, b]).signature != signed(topics=[Topic("a/b")]).signature
    assert signed(topics=[a]).signature != signed(topics=[]).signature


def test_only_the_sender_can_sign() -> None:
    draft = Message.create(ALICE.id, 1).stamp(NOW)
    with pytest.raises(LocalError, match="cannot sign a message of sender"):
        draft.sign(BOB)
    with pytest.raises(LocalError, match="verify-only"):
        draft.sign(Identity.from_public_key(ALICE.public_key))


@pytest.mark.parametrize("sender", ["", "alice", ALICE.id.upper(), ALICE.id[:-1], None, b"a" * 32])
def test_a_sender_is_an_agent_id(sender: Any) -> None:
    with pytest.raises(LocalError, match="expected an agent id"):
        Message.create(sender)


def test_an_unsigned_message_has_no_wire_form_and_does_not_verify() -> None:
    draft = Message.create(ALICE.id, 1)
    with pytest.raises(LocalError, match="id and its times"):
        draft.sign(ALICE)
    with pytest.raises(LocalError, match="no wire form"):
        draft.stamp(NOW).to_bytes()
    assert not draft.verify()
    with pytest.raises(RemoteViolation):
        draft.stamp(NOW).check(NOW)


def test_a_changed_copy_of_a_received_message_does_not_verify() -> None:
    message = Message.from_bytes(signed("pay 1").to_bytes())
    other = replace(message, body=signed("pay 2").body)
    assert not other.verify()
    assert other.payload == "pay 2"
    assert message.verify()


def test_a_key_of_somebody_else_cannot_stand_under_a_sender() -> None:
    with pytest.raises(LocalError, match="not the key of the sender"):
        replace(signed(), public_key=BOB.public_key)


def test_a_message_signed_for_another_purpose_does_not_verify() -> None:
    message = signed()
    foreign = replace(message, signature=ALICE.sign("operation", message.signed_bytes()))
    assert not foreign.verify()
    assert replace(message, signature=ALICE.sign(MESSAGE_TAG, message.signed_bytes())).verify()


def test_verification_can_ask_for_a_key_or_a_known_sender() -> None:
    message = signed()
    registry = IdentityRegistry()
    assert message.verify(ALICE.public_key)
    assert not message.verify(BOB.public_key)
    assert not message.verify(registry)
    registry.register(ALICE.id, ALICE.public_key)
    assert message.verify(registry)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (NOW - limits.MESSAGE_CLOCK_SKEW_MS, None),
        (NOW - limits.MESSAGE_CLOCK_SKEW_MS - 1, "message_from_future"),
        (NOW + limits.MESSAGE_TTL_MS - 1, None),
        (NOW + limits.MESSAGE_TTL_MS, "message_expired"),
    ],
)
def test_a_message_counts_from_its_time_to_its_expiry(now: int, reason: str | None) -> None:
    if reason is None:
        signed().check(now)
        return
    with pytest.raises(RemoteViolation) as raised:
        signed().check(now)
    assert raised.value.reason == reason


@pytest.mark.parametrize("ttl", [0, -1, limits.MESSAGE_TTL_MS_MAX + 1])
def test_a_lifetime_has_bounds(ttl: int) -> None:
    with pytest.raises(LocalError):
        Message.create(ALICE.id).stamp(NOW, ttl_ms=ttl)


def test_sizes_are_bounded_when_signing_and_when_reading() -> None:
    with pytest.raises(LimitExceeded):
        signed(b"x" * (limits.MESSAGE_BYTES_MAX - 50))
    with pytest.raises(LimitExceeded):
        signed(topics=[Topic(f"t{n}") for n in range(limits.MESSAGE_TOPICS_MAX + 1)])
    with pytest.raises(CodecError, match="at most"):
        Message.from_bytes(bytes(limits.MESSAGE_BYTES_MAX + 1))


def test_random_ids_do_not_repeat() -> None:
    draft = Message.create(ALICE.id)
    assert len({draft.stamp(NOW).id for _ in range(100)}) == 100


# ------------------------------------------------------------- encryption


@given(stamped(), st.data())
def test_a_ciphertext_does_not_decrypt_under_any_other_header(draft: Message, data: st.DataObject) -> None:
    sealed = draft.encrypt_payload(KEY)
    header: dict[str, Any] = {
        "id": bytes(16) if sealed.id != bytes(16) else b"1" * 16,
        "sender": BOB.id,
        "recipient": None if sealed.recipient else ALICE.id,
        "topics": () if sealed.topics else (Topic("a"),),
        "task_id": None if sealed.task_id else TaskId(b"t" * 32),
        "timestamp_ms": sealed.timestamp_ms + 1,
        "expires_ms": sealed.expires_ms + 1,
    }
    name = data.draw(st.sampled_from(sorted(header)))
    with pytest.raises(SignatureError):
        replace(sealed, **{name: header[name]}).decrypt_payload(KEY)
    assert sealed.decrypt_payload(KEY) == draft.payload


def test_another_key_or_a_changed_ciphertext_does_not_decrypt() -> None:
    sealed = Message.create(ALICE.id, {"secret": b"\0\1"}).stamp(NOW).encrypt_payload(KEY)
    with pytest.raises(SignatureError):
        sealed.decrypt_payload(b"K" * 32)
    for index in range(len(sealed.body)):
        body = bytearray(sealed.body)
        body[index] ^= 1
        with pytest.raises(SignatureError):
            replace(sealed, body=bytes(body)).decrypt_payload(KEY)
    for length in (0, 23, 24, 39):
        with pytest.raises(SignatureError):
            replace(sealed, body=sealed.body[:length]).decrypt_payload(KEY)


def test_an_encrypted_payload_is_hidden_and_never_the_same_twice() -> None:
    draft = Message.create(ALICE.id, b"secret words").stamp(NOW)
    one, other = draft.encrypt_payload(KEY), draft.encrypt_payload(KEY)
    assert b"secret words" not in one.sign(ALICE).to_bytes()
    assert one.body != other.body
    with pytest.raises(LocalError, match="encrypted"):
        _ = one.payload


def test_encryption_comes_after_the_stamp_and_before_the_signature() -> None:
    draft = Message.create(ALICE.id, 1)
    with pytest.raises(LocalError):
        draft.encrypt_payload(KEY)
    with pytest.raises(LocalError):
        draft.stamp(NOW).sign(ALICE).encrypt_payload(KEY)
    with pytest.raises(LocalError):
        draft.stamp(NOW).encrypt_payload(KEY).encrypt_payload(KEY)
    with pytest.raises(LocalError, match="bound to its header"):
        draft.stamp(NOW).encrypt_payload(KEY).stamp(NOW)


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 33, "k" * 32])
def test_a_payload_key_has_32_bytes(key: Any) -> None:
    with pytest.raises(LocalError):
        Message.create(ALICE.id, 1).stamp(NOW).encrypt_payload(key)


# ------------------------------------------------------------- one encoding only


def test_a_longer_msgpack_encoding_of_the_same_envelope_is_refused() -> None:
    message = signed()
    body = message.signed_bytes()
    longer = b"\x93\x01\xc6" + len(body).to_bytes(4, "big") + body + b"\xc4\x40" + message.signature
    assert msgpack.unpackb(longer) == msgpack.unpackb(message.to_bytes())
    with pytest.raises(CodecError, match="shortest"):
        Message.from_bytes(longer)


def test_an_envelope_of_another_version_is_refused_by_name() -> None:
    message = signed()
    data = msgpack.packb([2, message.signed_bytes(), message.signature])
    with pytest.raises(CodecError, match="version 2"):
        Message.from_bytes(data)


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, b""), (0, None), (0, b"i" * 15), (1, b"k" * 31), (1, None), (2, b"r" * 31), (2, "r"), (3, None), (3, ["a"]),
     (3, [b"a"]), (3, [Topic("b").to_bytes(), Topic("a").to_bytes()]), (3, [Topic("a").to_bytes()] * 2), (4, "text"),
     (5, 1), (6, b"t"), (7, -1), (7, True), (8, NOW - 1), (8, None)],
)  # fmt: skip
def test_a_correctly_signed_message_of_another_shape_is_refused(index: int, value: Any) -> None:
    fields = decode(signed().signed_bytes())
    fields[index] = value
    data = encode(fields)
    with pytest.raises(CodecError):
        Message.from_bytes(pack_envelope(data, ALICE.sign(MESSAGE_TAG, data)))


def test_the_signed_bytes_of_a_field_less_or_more_are_refused() -> None:
    fields = decode(signed().signed_bytes())
    trace = b"t" * 16 + b"s" * 8 + b"\x01"
    for other in (
        fields[:-1], [*fields, 0], [*fields, b""], [*fields, trace[:-1]], [*fields, bytes(16) + trace[16:]],
        [*fields, str(trace)], [*fields, trace, 0],
    ):  # fmt: skip
        data = encode(other)
        with pytest.raises(CodecError):
            Message.from_bytes(pack_envelope(data, ALICE.sign(MESSAGE_TAG, data)))


def test_a_message_says_in_which_trace_it_was_sent_and_nobody_on_the_way_can_change_that() -> None:
    trace = TraceContext(b"t" * 16, b"s" * 8)
    message = replace(Message.create(ALICE.id, 1), trace=trace.to_bytes()).stamp(NOW).sign(ALICE)
    read = Message.from_bytes(message.to_bytes())
    assert read.trace_context == trace
    assert read.verify()
    assert signed().trace_context is None
    fields = decode(message.signed_bytes())
    for other in (fields[:-1], [*fields[:-1], replace(trace, span_id=b"x" * 8).to_bytes()]):
        assert not Message.from_bytes(pack_envelope(encode(other), message.signature)).verify()


def test_types_of_ids_are_what_they_seem() -> None:
    message = Message.from_bytes(signed(recipient=BOB.id).to_bytes())
    assert message.sender == AgentId(ALICE.id)
    assert message.recipient == BOB.id
    assert message.public_key == PublicKey(ALICE.public_key)


def test_a_reply_goes_from_whoever_got_the_message_to_its_sender_about_the_same_task() -> None:
    asker, helper = Identity.generate(), Identity.generate()
    asked = Message.create(asker.id, "how?", recipient=helper.id, task_id=TaskId(bytes(32)))
    reply = asked.reply({"like": "this"})
    assert (reply.sender, reply.recipient, reply.payload) == (helper.id, asker.id, {"like": "this"})
    assert (reply.task_id, reply.topics, reply.stamped) == (asked.task_id, (), False)
    with pytest.raises(LocalError, match="does not say who answers"):
        Message.create(asker.id, "anybody?").reply("me")
