"""The cryptography of private pools, written out once more from the words of the protocol."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import pytest
from generate import from_json
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
    crypto_sign_ed25519_pk_to_curve25519,
)
from test_golden_vectors import read

from converge_p2p.core.codec import decode, encode

SECRECY = read("secrecy.json")
POOL = bytes.fromhex(SECRECY["pool_id"])
KEY = SECRECY["content_key"]
SECRET, COMMITMENT = bytes.fromhex(KEY["secret"]), bytes.fromhex(KEY["commitment"])
PREFIX = b"converge-p2p/1/"


def hashed(tag: str, *parts: bytes) -> bytes:
    whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hashlib.sha256(PREFIX + tag.encode() + b"\0" + whole).digest()


def opened(sealed: bytes, context: list[Any]) -> bytes:
    assert sealed[:1] == b"\xc1"
    assert sealed[1:9] == COMMITMENT[:8]
    nonce, box = sealed[9:33], sealed[33:]
    header = PREFIX + b"content\0" + encode([POOL, KEY["epoch"], KEY["generation"], COMMITMENT, context])
    plain = crypto_aead_xchacha20poly1305_ietf_decrypt(box, header, nonce, hashed("content-subkey", SECRET, b"encrypt"))
    material = len(header).to_bytes(8, "big") + header + plain
    assert nonce == hmac.digest(hashed("content-subkey", SECRET, b"nonce"), material, "sha256")[:24]
    return bytes(plain)


def test_a_commitment_is_a_hash_of_pool_epoch_generation_and_secret() -> None:
    numbers = [KEY[name].to_bytes(8, "big") for name in ("epoch", "generation")]
    assert hashed("content-commitment", POOL, *numbers, SECRET) == COMMITMENT
    assert COMMITMENT[:8].hex() == KEY["name"]


def test_the_exchange_key_of_an_identity_is_that_of_its_edwards_key() -> None:
    exchange = {name: bytes.fromhex(value) for name, value in SECRECY["exchange"].items()}
    assert crypto_sign_ed25519_pk_to_curve25519(exchange["public_key"]) == exchange["exchange_key"]
    assert crypto_scalarmult_base(exchange["exchange_secret"]) == exchange["exchange_key"]
    digest = bytearray(hashlib.sha512(exchange["seed"]).digest()[:32])
    digest[0] &= 248
    digest[31] = (digest[31] & 127) | 64
    assert bytes(digest) == exchange["exchange_secret"]
    assert crypto_scalarmult_base(exchange["prekey_secret"]) == exchange["prekey"]


def test_a_key_is_sealed_to_the_prekey_of_a_member() -> None:
    exchange = {name: bytes.fromhex(value) for name, value in SECRECY["exchange"].items()}
    entries = {entry["member"]: bytes.fromhex(entry["sealed"]) for entry in SECRECY["offer"]["entries"]}
    author, entropy = (bytes.fromhex(SECRECY["offer"][name]) for name in ("author", "entropy"))
    member, recipient = exchange["public_key"], exchange["prekey"]
    sealed = entries[member.hex()]
    ephemeral = hashed("content-ephemeral", entropy, SECRET, author, member, recipient)
    assert crypto_scalarmult_base(ephemeral) == sealed[:32]
    shared = crypto_scalarmult(exchange["prekey_secret"], sealed[:32])
    header = PREFIX + b"content-key\0" + encode([POOL, KEY["epoch"], KEY["generation"], COMMITMENT, author, member])
    wrap = hashed("content-wrap", shared, sealed[:32], recipient)
    assert crypto_aead_xchacha20poly1305_ietf_decrypt(sealed[32:], header, bytes(24), wrap) == SECRET


def test_a_blinded_key_is_an_hmac_under_a_secret_of_the_identity() -> None:
    secret = hashed("idempotency-secret", bytes.fromhex(SECRECY["exchange"]["seed"]))
    plain = PREFIX + b"idempotency-key\0" + POOL + bytes.fromhex(SECRECY["blinded"]["key"])
    assert hmac.digest(secret, plain, "sha256").hex() == SECRECY["blinded"]["blinded"]


@pytest.mark.parametrize("case", SECRECY["bodies"], ids=lambda case: case["name"])
def test_a_sealed_body_holds_the_clear_one(case: dict[str, Any]) -> None:
    clear, sealed = from_json(case["clear"]), from_json(case["sealed"])
    author = bytes.fromhex(case["author"])
    if case["name"] == "submit":
        assert decode(opened(sealed[2], [3, author, sealed[0]])) == [clear[1], clear[2], clear[3]]
        assert (sealed[1], sealed[3]) == ("sealed", b"")
        assert [sealed[0], *sealed[4:]] == [clear[0], *clear[4:]]
    elif case["name"] == "report":
        assert opened(sealed[4], [6, sealed[0], sealed[2], sealed[3]]) == clear[4]
        assert sealed[:4] + sealed[5:] == clear[:4] + clear[5:]
    elif case["name"] == "evidence: for a result":
        for place, number in ((5, 0), (6, 1)):
            data = base64.urlsafe_b64decode(sealed[place] + "=" * (-len(sealed[place]) % 4))
            assert opened(data, [15, author, case["seq"], number]).decode() == clear[place]
        assert sealed[:5] == clear[:5]
    else:
        data = base64.urlsafe_b64decode(sealed[3] + "=" * (-len(sealed[3]) % 4))
        assert opened(data, [4, author, case["seq"]]).decode() == clear[3]
        assert sealed[:3] == clear[:3]
