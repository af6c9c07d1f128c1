"""A topic: a structured name for what messages, pools and agents are about.

Knows: a topic's fields, its one encoding, and matching. Must not know: how a network routes it.
Source: the concepts page (namespace, attributes, optional version); `docs/protocol.md`, topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converge_p2p.core.codec import decode, encode, tagged_hash
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError
from converge_p2p.core.model.attributes import (
    AttributeValue,
    attributes_match,
    check_bytes,
    check_name,
    freeze_attributes,
)


@dataclass(frozen=True, slots=True, eq=False)
class Topic:
    """A topic. Two topics are equal if and only if their canonical bytes are.

    Attributes:
        namespace: names joined by slashes, such as `acme/translate`.
        attributes: what narrows it down, by name: text, integers and truth values. Read-only.
        version: a name such as `2` or `1.4`, or None.

    Raises:
        LocalError: a field of another form.
        LimitExceeded: larger than `limits.TOPIC_BYTES_MAX`, or too many attributes.
    """

    namespace: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    version: str | None = None
    _encoded: bytes = field(default=b"", init=False, repr=False)

    def __post_init__(self) -> None:
        check_name("topic namespace", self.namespace, segments=True)
        if self.version is not None:
            check_name("topic version", self.version)
        object.__setattr__(self, "attributes", freeze_attributes("a topic", self.attributes))
        encoded = encode([self.namespace, dict(self.attributes), self.version])
        check_bytes("TOPIC_BYTES_MAX", "topic", len(encoded))
        object.__setattr__(self, "_encoded", encoded)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topic) and other._encoded == self._encoded

    def __hash__(self) -> int:
        return hash(self._encoded)

    @property
    def id(self) -> bytes:
        """32-byte hash of the canonical bytes."""
        return tagged_hash("topic", self._encoded)

    @property
    def name(self) -> str:
        """The topic's name on the wire: its id in hexadecimal. Equal exactly for equal topics."""
        return self.id.hex()

    def matches(self, topic: Topic) -> bool:
        """Say whether `topic` is one of those this one describes.

        The namespaces are equal, every attribute here stands there with the same value, and the version is equal if
        one is given here.
        """
        return (
            self.namespace == topic.namespace
            and (self.version is None or self.version == topic.version)
            and attributes_match(self.attributes, topic.attributes)
        )

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return self._encoded

    @classmethod
    def from_bytes(cls, data: bytes) -> Topic:
        """Read canonical bytes.

        Raises:
            CodecError: not the canonical bytes of a topic.
        """
        fields = decode(data)
        if not isinstance(fields, list) or len(fields) != 3:
            raise CodecError("a topic is an array of 3")
        return _built(*fields)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict for JSON and configuration files."""
        return {"namespace": self.namespace, "attributes": dict(self.attributes), "version": self.version}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Topic:
        """Read what `to_dict` made. `attributes` and `version` may be missing.

        Raises:
            CodecError: an unknown key, or a field of another form.
        """
        unknown = set(data) - {"namespace", "attributes", "version"}
        if unknown or "namespace" not in data:
            wrong = f"unknown key {min(map(str, unknown))!r}" if unknown else "no namespace"
            raise CodecError(f"{wrong} in a topic; expected namespace, and optionally attributes and version")
        return _built(data["namespace"], data.get("attributes", {}), data.get("version"))


def _built(namespace: Any, attributes: Any, version: Any) -> Topic:
    try:
        return Topic(namespace, attributes, version)
    except (LocalError, LimitExceeded) as error:
        raise CodecError(f"not a topic: {error}") from error


def check_topics(what: str, topics: object) -> None:
    """Check that topics are a tuple in the order of their bytes and without repeats.

    Raises:
        LocalError: they are not.
    """
    if not isinstance(topics, tuple) or not all(isinstance(topic, Topic) for topic in topics):
        raise LocalError(f"topics of {what} must be a tuple of Topic")
    encoded = [topic.to_bytes() for topic in topics]
    if encoded != sorted(set(encoded)):
        raise LocalError(f"topics of {what} must be sorted by their bytes and without repeats")


def sorted_topics(topics: object) -> tuple[Topic, ...]:
    """Return topics as a set is written: sorted by their bytes, without repeats.

    Raises:
        LocalError: not an iterable of Topic.
    """
    if not isinstance(topics, tuple | list | set | frozenset) or not all(isinstance(topic, Topic) for topic in topics):
        raise LocalError("topics must be a list, tuple or set of Topic")
    return tuple(sorted(set(topics), key=Topic.to_bytes))
