"""A user's value survives JSON, whatever it holds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from converge_p2p.client.schema import from_json_value, to_json_value, utc_time
from converge_p2p.core.errors import CodecError, LocalError
from converge_p2p.core.types import BlobForm, BlobId, BlobRef, PublicKey

REFERENCE = BlobRef(BlobId(b"i" * 32), 70_000, PublicKey(b"s" * 32), b"k" * 32, BlobForm.BYTES)
KEYS = st.sampled_from(["$bytes", "$blob", "$escape", "a", ""]) | st.text(max_size=5)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10) | st.binary(max_size=10) | st.just(REFERENCE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_a_value_comes_back_from_json_unchanged(value: Any) -> None:
    back = from_json_value(msgspec.json.decode(msgspec.json.encode(to_json_value(value))))
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("wrong", [{"$bytes": "???"}, {"$bytes": 5}, {"$bytes": None}, {"$bytes": "YQ"}])
def test_a_byte_string_that_is_not_base64_is_refused(wrong: Any) -> None:
    with pytest.raises(CodecError, match="base64"):
        from_json_value({"x": [wrong]})


@pytest.mark.parametrize("wrong", [{"$blob": "blob:AAAA"}, {"$blob": 5}, {"$blob": None}])
def test_a_reference_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(LocalError, match="no reference"):
        from_json_value({"x": [wrong]})


def test_a_value_nested_without_end_is_refused() -> None:
    value: Any = 1
    for _ in range(500):
        value = [value]
    with pytest.raises(CodecError, match="nested"):
        from_json_value(value)


def test_times_are_utc() -> None:
    assert utc_time(1_000_000_000.9) == "2001-09-09T01:46:40Z"
