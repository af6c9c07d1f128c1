"""Identities: keys that sign, keys that only verify, and nothing that can be changed afterwards."""

from __future__ import annotations

import dataclasses

import pytest

from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import Identity, fingerprint


def test_an_identity_of_a_public_key_verifies_and_cannot_sign() -> None:
    whole = Identity.generate()
    public = Identity.from_public_key(whole.public_key)
    signature = whole.sign("message", b"data")
    assert public.verify("message", b"data", signature)
    assert not public.verify("message", b"other", signature)
    assert not public.can_sign
    with pytest.raises(LocalError):
        public.sign("message", b"data")
    assert public.id == whole.id == fingerprint(whole.public_key)


def test_no_two_identities_are_alike_and_none_can_be_changed() -> None:
    one, other = Identity.generate(), Identity.generate()
    assert one.id != other.id
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        one.public_key = other.public_key  # type: ignore[misc]
