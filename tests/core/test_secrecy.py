"""Content keys and sealed contents: they open for whom and where they were sealed, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt
from pool_kit import Pool
from secrecy_kit import seal_other, secret

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value, encode_value
from converge_p2p.core.errors import CodecError, LocalError, SignatureError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model import secrecy
from converge_p2p.core.model.keyring import Keyring, SealedKey, SplitKey
from converge_p2p.core.model.secrecy import (
    SEALED_KEY_BYTES,
    ContentKey,
    check_exchange_key,
    commitment_of,
    exchange,
    exchange_key_of,
    exchange_public,
    is_sealed,
    open_content,
    open_key,
    seal_content,
    seal_key,
)
from converge_p2p.core.types import PoolId, PublicKey

POOL = PoolId(b"p" * 32)
ALICE, BOB, EVE = (Identity.from_seed(secret(number)) for number in (1, 2, 3))
KEY = ContentKey(POOL, 3, 1, secret(7))

LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
]
"""The points of order 1, 2, 4 and 8 of curve25519 in their reduced form."""


def offer(key: ContentKey = KEY, *, author: Identity = ALICE, member: Identity = BOB, to: bytes = b"") -> SealedKey:
    sealed = seal_key(key, author.public_key, member.public_key, to or exchange_key_of(member.public_key), secret(9))
    return SealedKey(author.public_key, key.epoch, key.generation, key.commitment, sealed)


def opened(one: SealedKey, *, reader: Identity = BOB, **changed: Any) -> bytes:
    named = {
        "pool": POOL, "epoch": one.epoch, "generation": one.generation, "commitment": one.commitment,
        "author": one.author, "member": BOB.public_key,
    } | changed  # fmt: skip
    return open_key(one.sealed, reader.exchange_secret, **named)


# ---------------------------------------------------------------- keys


def test_a_sealed_key_has_80_bytes_and_opens_for_its_member_alone() -> None:
    sealed = offer()
    assert len(sealed.sealed) == SEALED_KEY_BYTES == 80
    assert opened(sealed) == KEY.secret
    for stranger in (EVE, ALICE):
        with pytest.raises(SignatureError):
            opened(sealed, reader=stranger)


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("pool", PoolId(b"q" * 32)), ("epoch", 4), ("generation", 0), ("commitment", bytes(32)),
        ("author", EVE.public_key), ("member", EVE.public_key),
    ],
)  # fmt: skip
def test_a_sealed_key_opens_in_no_other_offer(what: str, value: Any) -> None:
    with pytest.raises(SignatureError):
        opened(offer(), **{what: value})


def test_every_changed_byte_of_a_sealed_key_is_refused() -> None:
    whole = offer()
    for index in range(SEALED_KEY_BYTES):
        bad = whole.sealed[:index] + bytes([whole.sealed[index] ^ 1]) + whole.sealed[index + 1 :]
        with pytest.raises(SignatureError):
            opened(SealedKey(whole.author, whole.epoch, whole.generation, whole.commitment, bad))


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_an_all_zero_shared_secret_is_refused_on_both_sides(point: bytes) -> None:
    with pytest.raises(SignatureError):
        exchange(BOB.exchange_secret, point)
    with pytest.raises(SignatureError):
        seal_key(KEY, ALICE.public_key, BOB.public_key, point, secret(9))
    # anybody can compute the wrapping key of a secret that is zero
    wrap = secrecy._wrap_key(bytes(32), point, exchange_public(BOB.exchange_secret))
    header = secrecy._key_header(POOL, KEY.epoch, KEY.generation, KEY.commitment, ALICE.public_key, BOB.public_key)
    forged = point + crypto_aead_xchacha20poly1305_ietf_encrypt(KEY.secret, header, bytes(24), wrap)
    with pytest.raises(SignatureError):
        opened(SealedKey(ALICE.public_key, KEY.epoch, KEY.generation, KEY.commitment, forged))


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_a_point_of_low_order_is_no_exchange_key(point: bytes) -> None:
    with pytest.raises(CodecError, match="low order"):
        check_exchange_key(point)


@pytest.mark.parametrize(
    "key",
    [b"", bytes(31), bytes(33), "text", None, (2**255 - 19).to_bytes(32, "little"), b"\xff" * 32,
     exchange_public(secret(1))[:31] + bytes([exchange_public(secret(1))[31] | 0x80])],
)  # fmt: skip
def test_an_exchange_key_has_one_form(key: object) -> None:
    with pytest.raises(CodecError):
        check_exchange_key(key)


def test_the_exchange_key_of_an_identity_is_the_one_its_secret_belongs_to() -> None:
    assert exchange_public(BOB.exchange_secret) == check_exchange_key(exchange_key_of(BOB.public_key))
    with pytest.raises(SignatureError):
        exchange_key_of(PublicKey(bytes(32)))
    with pytest.raises(LocalError):
        _ = Identity.from_public_key(BOB.public_key).exchange_secret


def test_the_same_entropy_twice_gives_no_two_offers_one_ephemeral_key() -> None:
    other = ContentKey(POOL, 3, 1, secret(8))
    offers = [offer(), offer(other), offer(author=EVE), offer(member=EVE), offer(to=exchange_public(secret(5)))]
    assert len({one.sealed[:32] for one in offers}) == len(offers)
    assert offer() == offer()


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secrets_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(LocalError):
        ContentKey(POOL, 0, 0, bytes(size))
    with pytest.raises(LocalError):
        seal_key(KEY, ALICE.public_key, BOB.public_key, exchange_key_of(BOB.public_key), bytes(size))
    with pytest.raises(LocalError):
        exchange_public(bytes(size))


def test_no_text_shows_a_secret() -> None:
    ring = Keyring(ALICE, POOL)
    ring.add(KEY)
    ring.add_prekey(secret(5))
    for text in (repr(KEY), str(KEY), repr(ring), str(ring)):
        assert secret(7).hex() not in text
        assert repr(secret(7))[2:-1] not in text


@given(st.integers(0, 9), st.integers(0, limits.CONTENT_GENERATION_MAX), st.binary(min_size=32, max_size=32))
def test_a_commitment_fixes_epoch_generation_and_secret(epoch: int, generation: int, raw: bytes) -> None:
    key = ContentKey(POOL, epoch, generation, raw)
    assert key.commitment == commitment_of(POOL, epoch, generation, raw)
    same = (epoch, generation, raw) == (KEY.epoch, KEY.generation, KEY.secret)
    assert (key.commitment == KEY.commitment) is same


# ---------------------------------------------------------------- contents


@given(st.binary(max_size=300), st.integers(0, 2**53), st.binary(max_size=40))
def test_a_content_opens_where_it_was_sealed(plain: bytes, number: int, subject: bytes) -> None:
    sealed = seal_content(KEY, [number, subject], plain)
    assert is_sealed(sealed)
    assert len(sealed) == len(plain) + limits.SEALED_OVERHEAD_BYTES
    assert open_content(KEY, [number, subject], sealed) == plain
    for elsewhere in ([number + 1, subject], [number, subject + b"x"], [number], [subject, number]):
        with pytest.raises(SignatureError):
            open_content(KEY, elsewhere, sealed)


@given(st.binary(max_size=60), st.data())
@settings(max_examples=60, deadline=None)
def test_a_changed_content_is_refused(plain: bytes, data: st.DataObject) -> None:
    sealed = seal_content(KEY, [1], plain)
    index = data.draw(st.integers(0, len(sealed) - 1))
    bad = sealed[:index] + bytes([sealed[index] ^ data.draw(st.integers(1, 255))]) + sealed[index + 1 :]
    for changed in (bad, sealed[:index], sealed + b"x"):
        with pytest.raises(SignatureError):
            open_content(KEY, [1], changed)


@pytest.mark.parametrize(
    "other",
    [
        ContentKey(PoolId(b"q" * 32), 3, 1, secret(7)), ContentKey(POOL, 4, 1, secret(7)),
        ContentKey(POOL, 3, 0, secret(7)), ContentKey(POOL, 3, 1, secret(8)),
    ],
)  # fmt: skip
def test_a_content_opens_with_no_other_key_pool_epoch_or_generation(other: ContentKey) -> None:
    sealed = seal_content(KEY, [1], b"plain")
    renamed = sealed[:1] + other.name + sealed[9:]
    for attempt in (sealed, renamed):
        with pytest.raises(SignatureError):
            open_content(other, [1], attempt)


def test_a_nonce_belongs_to_its_text_so_nobody_chooses_one() -> None:
    # a well-formed ciphertext under a nonce of the sender's choice: what an attack with two keys would need
    nonce, header = bytes(24), secrecy._content_header(KEY, [1])
    box = crypto_aead_xchacha20poly1305_ietf_encrypt(b"plain", header, nonce, secrecy._subkey(KEY, b"encrypt"))
    with pytest.raises(SignatureError, match="nonce"):
        open_content(KEY, [1], secrecy.SEALED_MARK + KEY.name + nonce + box)


def test_sealing_is_repeatable_and_no_two_contents_share_a_nonce() -> None:
    pairs = [([1], b"a"), ([2], b"a"), ([1], b"b"), ([1], b"")]
    sealed = [seal_content(KEY, context, plain) for context, plain in pairs]
    assert sealed == [seal_content(KEY, context, plain) for context, plain in pairs]
    assert len({one[9:33] for one in sealed}) == len(pairs)


@pytest.mark.no_cover
@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text() | st.binary(), st.lists))
def test_no_encoded_value_is_taken_for_a_sealed_content(value: Any) -> None:
    assert not is_sealed(encode_value(value))


def test_a_sealed_content_is_no_value() -> None:
    with pytest.raises(CodecError):
        decode_value(seal_content(KEY, [1], encode_value({"a": 1})))


# ---------------------------------------------------------------- keyrings


def test_a_ring_takes_what_is_sealed_to_it() -> None:
    ring = Keyring(BOB, POOL)
    assert ring.take(offer()) == KEY
    assert ring.get(KEY.commitment) == KEY
    assert ring.take(offer()) == KEY
    assert len(ring) == 1
    for worthless in (offer(member=EVE), offer(to=exchange_public(secret(5)))):
        with pytest.raises(SignatureError):
            Keyring(BOB, POOL).take(worthless)


def test_a_split_key_is_found_and_its_author_named() -> None:
    ring = Keyring(BOB, POOL)
    other = ContentKey(POOL, 3, 1, secret(8))
    lie = seal_other(KEY, other, EVE.public_key, BOB.public_key, exchange_key_of(BOB.public_key))
    found = ring.take(SealedKey(EVE.public_key, 3, 1, KEY.commitment, lie))
    assert found == SplitKey(EVE.public_key, 3, 1, KEY.commitment, other.commitment)
    assert len(ring) == 0
    # the liar is found out also by somebody who has the right key already
    ring.take(offer())
    assert isinstance(ring.take(SealedKey(EVE.public_key, 3, 1, KEY.commitment, lie)), SplitKey)
    assert ring.get(KEY.commitment) == KEY


def test_a_prekey_opens_and_so_does_the_one_before_it_but_no_older_one() -> None:
    ring = Keyring(BOB, POOL)
    first = ring.add_prekey(secret(21))
    assert ring.prekeys() == (first,)
    late = offer(to=first)
    second = ring.add_prekey(secret(22))
    assert ring.take(late) == KEY
    ring.add_prekey(secret(23))
    assert ring.prekeys() == (second, exchange_public(secret(23)))
    thief = Keyring.restore(BOB, POOL, Keyring(BOB, POOL).export())
    with pytest.raises(SignatureError):
        thief.take(late)
    # what was opened in time is kept
    assert ring.take(late) == KEY
    assert secret(21) not in ring.export()


def test_whoever_holds_only_the_identity_opens_nothing_that_was_sealed_to_a_prekey() -> None:
    ring = Keyring(BOB, POOL)
    sealed = offer(to=ring.add_prekey(secret(21)))
    with pytest.raises(SignatureError):
        Keyring(BOB, POOL).take(sealed)


def test_a_ring_survives_its_bytes() -> None:
    ring = Keyring(BOB, POOL)
    ring.add_prekey(secret(21))
    for number in range(5):
        ring.add(ContentKey(POOL, number, 0, secret(40 + number)))
    again = Keyring.restore(BOB, POOL, ring.export())
    assert again.export() == ring.export()
    assert again.prekeys() == ring.prekeys()
    assert again.get(ContentKey(POOL, 4, 0, secret(44)).commitment) is not None
    assert BOB.seed not in ring.export()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x85\x01\x01\x01\x80\x80"])
def test_a_damaged_ring_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        Keyring.restore(BOB, POOL, data)


def test_the_ring_of_another_pool_or_identity_is_refused() -> None:
    data = Keyring(BOB, POOL).export()
    with pytest.raises(CodecError):
        Keyring.restore(EVE, POOL, data)
    with pytest.raises(CodecError):
        Keyring.restore(BOB, PoolId(b"q" * 32), data)
    with pytest.raises(LocalError):
        Keyring(BOB, POOL).add(ContentKey(PoolId(b"q" * 32), 0, 0, secret(1)))


def test_a_full_ring_forgets_the_oldest_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONTENT_KEYS_HELD_MAX", 3)
    ring = Keyring(BOB, POOL)
    keys = [ContentKey(POOL, epoch, generation, secret(1)) for epoch in (1, 0) for generation in (1, 0)]
    for key in keys:
        ring.add(key)
    assert [ring.get(key.commitment) is not None for key in keys] == [True, True, True, False]
    ring.add(keys[-1])
    assert ring.get(keys[-1].commitment) is None
    assert ring.get(keys[0].commitment) is not None


def test_a_blinded_key_is_stable_and_tells_nothing_across_identities_and_pools() -> None:
    other = Pool()
    names = {
        Keyring(BOB, POOL).blind(b"invoice"),
        Keyring(BOB, other.id).blind(b"invoice"),
        Keyring(EVE, POOL).blind(b"invoice"),
        Keyring(BOB, POOL).blind(b"invoice 2"),
    }
    assert len(names) == 4
    assert {len(name) for name in names} == {32}
    assert Keyring(BOB, POOL).blind(b"invoice") == Keyring.restore(BOB, POOL, Keyring(BOB, POOL).export()).blind(
        b"invoice"
    )
