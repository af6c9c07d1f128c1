"""Sealed messages, private topics and invitations, written out once more from the words of the protocol."""

from __future__ import annotations

import base64
import hashlib
import hmac

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from test_golden_vectors import read

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.model.envelope import unpack_envelope

MAIL = read("mail.json")
PREFIX = b"converge-p2p/1/"


def raw(section: str, name: str) -> bytes:
    return bytes.fromhex(MAIL[section][name])


def hashed(tag: str, *parts: bytes) -> bytes:
    whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hashlib.sha256(PREFIX + tag.encode() + b"\0" + whole).digest()


def test_a_network_is_named_by_a_hash_of_its_key():
    lines = MAIL["network"]["file"].splitlines()
    assert lines == ["/key/swarm/psk/1.0.0/", "/base16/", MAIL["network"]["key"]]
    assert hashed("network", raw("network", "key"))[:8] == raw("network", "name")


def test_a_sealed_message_opens_with_the_recipients_key():
    public, secret = crypto_sign_seed_keypair(raw("sealed_message", "recipient_seed"))
    signed, _ = unpack_envelope("message", raw("sealed_message", "envelope"), 10_000)
    message_id, key, recipient, topics, body, sealed, task, timestamp_ms, expires_ms = decode(signed)
    assert sealed is True
    assert body == raw("sealed_message", "body")
    sender = hashlib.sha256(key).digest()
    header = encode([message_id, sender, recipient, topics, task, timestamp_ms, expires_ms])
    bound = PREFIX + b"message-sealed\0" + header
    reader = crypto_sign_ed25519_pk_to_curve25519(public)
    ephemeral = hashed(
        "seal-ephemeral", raw("sealed_message", "entropy"), reader, bound, raw("sealed_message", "payload")
    )
    assert crypto_scalarmult_base(ephemeral) == body[:32]
    shared = crypto_scalarmult(crypto_sign_ed25519_sk_to_curve25519(secret), body[:32])
    wrap = hashed("seal-wrap", shared, body[:32], reader)
    plain = crypto_aead_xchacha20poly1305_ietf_decrypt(body[32:], bound, bytes(24), wrap)
    assert plain == raw("sealed_message", "payload")


def test_a_receipt_is_signed_over_the_hash_of_the_message():
    signed, _ = unpack_envelope("message", raw("sealed_message", "envelope"), 10_000)
    message, recipient, taken_ms, signature = decode(raw("receipt", "bytes"))
    assert message == hashed("message-hash", signed) == raw("receipt", "hash")
    assert taken_ms == MAIL["receipt"]["taken_ms"]
    crypto_sign_open(signature + PREFIX + b"delivery\0" + encode([message, recipient, taken_ms]), recipient)


def derived(purpose: str) -> bytes:
    topic = PREFIX + purpose.encode() + b"\0" + raw("private_topic", "topic")
    return hmac.digest(raw("private_topic", "key"), topic, hashlib.sha256)


def test_a_private_topic_follows_from_its_key():
    name = raw("private_topic", "name")
    assert derived("topic-name") == name
    assert derived("topic-member") == raw("private_topic", "member_key")
    sender, seq, nonce, box = decode(raw("private_topic", "sealed"))
    bound = PREFIX + b"topic-sealed\0" + encode([name, sender, seq])
    plain = crypto_aead_xchacha20poly1305_ietf_decrypt(box, bound, nonce, derived("topic-seal"))
    assert plain == raw("private_topic", "envelope")
    material = len(bound).to_bytes(8, "big") + bound + plain
    assert hmac.digest(derived("topic-nonce"), material, hashlib.sha256)[:24] == nonce


def test_a_proof_is_an_hmac_among_filling():
    names = b"".join(len(part).to_bytes(2, "big") + part for part in (raw("proof", "asker"), raw("proof", "asked")))
    nonces = raw("proof", "asker_nonce") + raw("proof", "asked_nonce")
    filling = [raw("proof", "filling")[start : start + 32] for start in (0, 32, 64)]
    for role in ("asker", "asked"):
        context = PREFIX + b"topic-proof\0" + role.encode() + b"\0" + names + nonces
        tag = hmac.digest(raw("private_topic", "member_key"), context, hashlib.sha256)
        assert raw("proof", f"tags_of_{role}") == b"".join(sorted([tag, *filling]))


def test_an_invitation_is_a_line_with_a_checksum_and_a_signature():
    version, body, check = MAIL["invitation"]["text"].split(":")
    assert version == "converge1"
    assert hashlib.sha256(f"{version}:{body}".encode()).hexdigest()[:8] == check
    fields = decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    *terms, signature = fields
    issuer, expires_ms, _role, _addresses, network, topics, pool = terms
    crypto_sign_open(signature + PREFIX + b"invitation-line\0" + encode(terms), issuer)
    assert (expires_ms, network) == (MAIL["invitation"]["expires_ms"], raw("network", "key"))
    assert topics == [[raw("private_topic", "topic"), raw("private_topic", "key")]]
    assert pool == [raw("invitation", "pool"), b"", raw("invitation", "ticket")]
