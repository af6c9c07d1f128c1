"""Messages sealed to their recipient, and receipts of them: nothing opens elsewhere, otherwise, or for anybody else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, SignatureError
from converge_p2p.core.identity import Identity
from converge_p2p.core.limits import MESSAGE_BYTES_MAX
from converge_p2p.core.model.delivery import DeliveryReceipt, sign_delivery
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import TaskId

ME, YOU, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
NOW = 1_700_000_000_000

payloads = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def clear(payload: Any = "secret", **changes: Any) -> Message:
    fields = {"recipient": YOU.id, "topics": (Topic("acme/x"),), "task_id": TaskId(b"t" * 32), **changes}
    return Message.create(ME.id, payload, **fields).stamp(NOW, message_id=b"i" * 16)


def sealed(payload: Any = "secret", **changes: Any) -> Message:
    return clear(payload, **changes).seal(YOU.public_key, entropy=b"e" * 32)


@settings(deadline=None)
@given(payloads)
def test_the_recipient_reads_what_the_sender_wrote_and_the_signature_stays_good(payload: Any) -> None:
    came = Message.from_bytes(sealed(payload).sign(ME).to_bytes())
    with pytest.raises(LocalError, match="encrypted"):
        _ = came.payload
    opened = came.unseal(YOU)
    assert opened.payload == payload
    assert opened == came
    assert opened.verify()
    assert opened.to_bytes() == came.to_bytes()


def test_nobody_else_opens_it() -> None:
    message = sealed().sign(ME)
    assert b"secret" not in message.to_bytes()
    for stranger in (ME, OTHER):
        with pytest.raises(LocalError, match="only the recipient"):
            message.unseal(stranger)
    with pytest.raises(LocalError, match="recipient"):
        clear().seal(OTHER.public_key)
    with pytest.raises(LocalError, match="recipient"):
        clear(recipient=None).seal(YOU.public_key)
    # whoever holds the wrong key and pretends to be the recipient
    forged = Message(ME.id, message.body, OTHER.id, sealed=True, id=b"i" * 16, timestamp_ms=NOW, expires_ms=NOW + 1)
    with pytest.raises(SignatureError):
        forged.unseal(OTHER)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_does_not_open(place: int, change: int) -> None:
    message = sealed("a text of some length")
    body = bytearray(message.body)
    body[place % len(body)] ^= change
    changed = Message(
        ME.id, bytes(body), YOU.id, message.topics, message.task_id, True, message.id, NOW, message.expires_ms
    )
    with pytest.raises(SignatureError):
        changed.unseal(YOU)


@pytest.mark.parametrize("size", [0, 1, 31, 47, 48])
def test_a_body_that_is_cut_off_does_not_open(size: int) -> None:
    message = sealed()
    cut = Message(ME.id, message.body[:size], YOU.id, sealed=True, id=b"i" * 16, timestamp_ms=NOW, expires_ms=NOW + 1)
    with pytest.raises(SignatureError):
        cut.unseal(YOU)


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": OTHER.id},
        {"topics": ()},
        {"topics": (Topic("acme/y"),)},
        {"task_id": None},
        {"id": b"j" * 16},
        {"timestamp_ms": NOW - 1},
        {"expires_ms": NOW + 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_payload_moved_under_another_header_does_not_open(changes: dict[str, Any]) -> None:
    message = sealed()
    fields = {
        "sender": ME.id,
        "body": message.body,
        "recipient": YOU.id,
        "topics": message.topics,
        "task_id": message.task_id,
        "sealed": True,
        "id": message.id,
        "timestamp_ms": message.timestamp_ms,
        "expires_ms": message.expires_ms,
    }
    assert Message(**fields).unseal(YOU).payload == "secret"
    with pytest.raises(SignatureError):
        Message(**{**fields, **changes}).unseal(YOU)


def test_sealing_twice_gives_two_ciphertexts_and_one_entropy_never_one_key_for_two_texts() -> None:
    assert clear().seal(YOU.public_key).body != clear().seal(YOU.public_key).body
    one, other = sealed("one text"), sealed("another")
    assert one.body[:32] != other.body[:32]


def test_the_order_of_the_steps_is_kept() -> None:
    with pytest.raises(LocalError, match="stamped"):
        Message.create(ME.id, 1, recipient=YOU.id).seal(YOU.public_key)
    with pytest.raises(LocalError, match="stamped, unsigned"):
        clear().sign(ME).seal(YOU.public_key)
    with pytest.raises(LocalError, match="bound to its header"):
        sealed().stamp(NOW)
    with pytest.raises(LimitExceeded):
        clear(b"x" * (MESSAGE_BYTES_MAX - 20)).seal(YOU.public_key)


def test_a_receipt_is_for_one_message_and_one_recipient() -> None:
    message = sealed().sign(ME)
    receipt = DeliveryReceipt.from_bytes(sign_delivery(YOU, message, NOW).to_bytes())
    assert receipt.proves(message)
    assert not receipt.proves(clear("else", recipient=YOU.id).sign(ME))
    assert not receipt.proves(clear(recipient=OTHER.id).sign(ME))
    with pytest.raises(LocalError):
        sign_delivery(OTHER, message, NOW)
    for changes in (
        {"taken_ms": NOW + 1},
        {"message": bytes(32)},
        {"recipient": OTHER.public_key},
        {"signature": bytes(64)},
    ):
        fields = {name: getattr(receipt, name) for name in ("message", "recipient", "taken_ms", "signature")}
        assert not DeliveryReceipt(**{**fields, **changes}).proves(message)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader_of_receipts(data: bytes) -> None:
    with pytest.raises(CodecError):
        DeliveryReceipt.from_bytes(data)
