"""What msgspec says is put in words, whatever it is."""

from __future__ import annotations

import msgspec
import pytest

from converge_node.complaints import in_words


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    rest: list[dict[str, int | None]] = []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"name": 1}', "name: expected text, got a whole number"),
        ('{"rest": [{"a": "b"}]}', "rest[0][...]: expected a whole number or null, got text"),
        ('{"nam": 1}', "object contains unknown field `nam`"),
        ("[]", "expected a map, got a list"),
        ("{", "Input data was truncated"),
    ],
)
def test_a_complaint_begins_with_its_place_and_names_kinds_in_words(given: str, said: str) -> None:
    with pytest.raises(msgspec.DecodeError) as failed:
        msgspec.json.decode(given, type=Shape)
    assert in_words(str(failed.value)) == said
