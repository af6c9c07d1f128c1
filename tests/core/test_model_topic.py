"""Rules of topics, capabilities and the identity registry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, NotFound, SignatureError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.model.topic import Topic

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
attributes = st.dictionaries(names, st.text(max_size=20) | st.integers(-(2**63), 2**63 - 1) | st.booleans(), max_size=4)
topics = st.builds(Topic, st.lists(names, min_size=1, max_size=3).map("/".join), attributes, st.none() | names)
capabilities = st.builds(
    Capability,
    name=names,
    version=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    cost=st.integers(0, limits.SEQ_MAX),
    latency_ms=st.integers(0, 10_000),
    concurrency=st.integers(0, 64),
    attributes=attributes,
)


@given(topics)
def test_a_topic_survives_bytes_and_dict(topic: Topic) -> None:
    assert Topic.from_bytes(topic.to_bytes()) == topic
    assert Topic.from_dict(topic.to_dict()) == topic
    assert Topic.from_bytes(topic.to_bytes()).to_dict() == topic.to_dict()


@pytest.mark.no_cover
@given(topics, topics)
def test_topics_are_equal_exactly_if_their_names_are(one: Topic, other: Topic) -> None:
    assert (one == other) == (one.name == other.name) == (one.to_bytes() == other.to_bytes())


@given(topics, st.data())
def test_any_other_bytes_of_a_topic_are_another_topic_or_refused(topic: Topic, data: st.DataObject) -> None:
    encoded = bytearray(topic.to_bytes())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = Topic.from_bytes(bytes(encoded))
    except CodecError:
        return
    assert read != topic
    assert read.to_bytes() == bytes(encoded)


def test_the_order_of_attributes_says_nothing() -> None:
    assert Topic("a", {"x": 1, "y": "2"}) == Topic("a", {"y": "2", "x": 1})


def test_true_and_one_are_different_attributes() -> None:
    assert Topic("a", {"x": True}) != Topic("a", {"x": 1})
    assert not Topic("a", {"x": True}).matches(Topic("a", {"x": 1}))


def test_attributes_of_a_topic_cannot_be_changed_from_outside() -> None:
    given_attributes: dict[str, str | int | bool] = {"x": 1}
    topic = Topic("a", given_attributes)
    given_attributes["x"] = 2
    assert topic.attributes["x"] == 1
    with pytest.raises(TypeError):
        topic.attributes["x"] = 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        (Topic("a"), Topic("a"), True),
        (Topic("a"), Topic("a", {"lang": "en"}, "2"), True),
        (Topic("a", {"lang": "en"}), Topic("a", {"lang": "en", "n": 1}), True),
        (Topic("a", {"lang": "en"}), Topic("a", {"lang": "de"}), False),
        (Topic("a", {"lang": "en"}), Topic("a"), False),
        (Topic("a", {}, "2"), Topic("a", {}, "2"), True),
        (Topic("a", {}, "2"), Topic("a"), False),
        (Topic("a"), Topic("a/b"), False),
        (Topic("a/b"), Topic("a"), False),
        (Topic("a"), Topic("ab"), False),
    ],
)
def test_a_topic_matches_those_that_have_what_it_names(pattern: Topic, topic: Topic, matches: bool) -> None:
    assert pattern.matches(topic) is matches


@pytest.mark.parametrize("namespace", ["", "/", "a/", "/a", "a//b", " a", "a b", "ä", ".a", "a\n", "a\0", 3, None])
def test_a_namespace_is_made_of_ascii_names(namespace: Any) -> None:
    with pytest.raises(LocalError):
        Topic(namespace)


@pytest.mark.parametrize("value", [1.0, None, b"x", ["x"], 2**63, "\ud800"])
def test_an_attribute_is_text_integer_or_truth_value(value: Any) -> None:
    with pytest.raises(LocalError):
        Topic("a", {"x": value})


def test_a_topic_is_bounded() -> None:
    with pytest.raises(LimitExceeded):
        Topic("a", {f"x{i}": i for i in range(limits.ATTRIBUTES_MAX + 1)})
    with pytest.raises(LimitExceeded):
        Topic("a", {f"x{i}": "t" * 100 for i in range(limits.ATTRIBUTES_MAX)})
    with pytest.raises(LimitExceeded):
        Topic("a" * (limits.NAME_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "fields", [[], ["a", {}], ["a", {}, None, 1], ["a", [], None], [b"a", {}, None], ["a", {1: 1}, None], {}, "a", None]
)
def test_other_structures_are_not_a_topic(fields: Any) -> None:
    with pytest.raises(CodecError):
        Topic.from_bytes(encode(fields))


def test_a_dict_with_an_unknown_key_is_not_a_topic() -> None:
    with pytest.raises(CodecError, match="'versoin'"):
        Topic.from_dict({"namespace": "a", "versoin": "1"})
    with pytest.raises(CodecError):
        Topic.from_dict({})


@given(capabilities)
def test_a_capability_survives_fields_and_dict(capability: Capability) -> None:
    assert Capability.from_fields(capability.to_fields()) == capability
    assert Capability.from_dict(capability.to_dict()) == capability


@pytest.mark.parametrize(
    ("need", "met"),
    [
        ({"name": "translate"}, True),
        ({"name": "Translate"}, False),
        ({"name": "translate", "version": (2, 1)}, True),
        ({"name": "translate", "version": (2, 4)}, False),
        ({"name": "translate", "version": (1, 0)}, False),
        ({"name": "translate", "cost_max": 7}, True),
        ({"name": "translate", "cost_max": 6}, False),
        ({"name": "translate", "attributes": {"lang": "en"}}, True),
        ({"name": "translate", "attributes": {"lang": "de"}}, False),
    ],
)
def test_a_capability_meets_a_need_of_its_major_version_and_cost(need: dict[str, Any], met: bool) -> None:
    assert Capability("translate", (2, 3), cost=7, attributes={"lang": "en"}).satisfies(**need) is met


@pytest.mark.parametrize(
    "wrong", [{"version": (1,)}, {"version": (1, -1)}, {"cost": -1}, {"cost": 1.5}, {"cost": True}, {"latency_ms": "1"}]
)
def test_a_capability_has_integers_of_0_or_more(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalError):
        Capability("translate", **wrong)


def test_the_registry_refuses_a_foreign_key() -> None:
    mine, theirs = Identity.from_seed(b"1" * 32), Identity.from_seed(b"2" * 32)
    registry = IdentityRegistry()
    registry.register(mine.id, mine.public_key)
    for key in (theirs.public_key, b"", mine.public_key[:31]):
        with pytest.raises(SignatureError):
            registry.register(mine.id, key)
    assert registry.public_key(mine.id) == mine.public_key
    with pytest.raises(NotFound):
        registry.public_key(theirs.id)


def test_a_full_registry_forgets_who_was_not_used_for_longest() -> None:
    one, two, three = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
    registry = IdentityRegistry(entries_max=2)
    registry.register(one.id, one.public_key)
    registry.register(two.id, two.public_key)
    registry.public_key(one.id)
    registry.register(three.id, three.public_key)
    assert (one.id in registry, two.id in registry, three.id in registry, len(registry)) == (True, False, True, 2)
