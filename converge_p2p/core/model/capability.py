"""A capability: something an agent says it can do, in which version and at what cost.

Knows: a capability's fields and when it satisfies a need. Must not know: how agents are found or ranked.
Source: the concepts page (skills and constraints an agent declares for discovery).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError
from converge_p2p.core.model.attributes import (
    AttributeValue,
    attributes_match,
    check_integer,
    check_name,
    freeze_attributes,
)

_FIELDS = ("name", "version", "cost", "latency_ms", "concurrency", "attributes")


@dataclass(frozen=True, slots=True, eq=False)
class Capability:
    """A declared skill. Two capabilities are equal if and only if their canonical bytes are.

    Attributes:
        name: what a task's `required_capabilities` name, such as `translate` or `acme/translate`.
        version: (major, minor). A higher minor version does all that a lower one does; majors promise nothing.
        cost: price of one unit of work, in whatever unit the pool agrees on, 0 or more.
        latency_ms: usual time for one unit of work; 0 is unknown.
        concurrency: how many units at once; 0 is unknown.
        attributes: constraints by name, such as `{"lang": "en"}`. Read-only.

    Raises:
        LocalError: a field of another form.
        LimitExceeded: too many attributes, or a text too long.
    """

    name: str
    version: tuple[int, int] = (1, 0)
    cost: int = 0
    latency_ms: int = 0
    concurrency: int = 0
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("capability name", self.name, segments=True)
        if not isinstance(self.version, tuple) or len(self.version) != 2:
            raise LocalError(f"capability version is {self.version!r}; expected (major, minor)")
        for part in self.version:
            check_integer("capability version", part, limits.SEQ_MAX)
        for number in ("cost", "latency_ms", "concurrency"):
            check_integer(f"capability {number}", getattr(self, number), limits.SEQ_MAX)
        object.__setattr__(self, "attributes", freeze_attributes("a capability", self.attributes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Capability) and other.to_bytes() == self.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def satisfies(
        self,
        name: str,
        *,
        version: tuple[int, int] | None = None,
        cost_max: int | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> bool:
        """Say whether this capability meets a need.

        Args:
            name: must be equal.
            version: same major, at least this minor; None is any.
            cost_max: at most this cost; None is any.
            attributes: each must be declared with this value.
        """
        if name != self.name or (cost_max is not None and self.cost > cost_max):
            return False
        if version is not None and (version[0] != self.version[0] or version[1] > self.version[1]):
            return False
        return attributes is None or attributes_match(attributes, self.attributes)

    def to_fields(self) -> list[Any]:
        """Return the array that stands in a descriptor."""
        return [self.name, list(self.version), self.cost, self.latency_ms, self.concurrency, dict(self.attributes)]

    @classmethod
    def from_fields(cls, fields: Any) -> Capability:
        """Read the array of a descriptor.

        Raises:
            CodecError: not of that shape, or out of bounds.
        """
        if not isinstance(fields, list) or len(fields) != len(_FIELDS) or not isinstance(fields[1], list):
            raise CodecError(f"a capability is an array of {', '.join(_FIELDS)}")
        try:
            return cls(fields[0], tuple(fields[1]), *fields[2:])
        except (LocalError, LimitExceeded) as error:
            raise CodecError(f"not a capability: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, by which capabilities are sorted and compared."""
        return encode(self.to_fields())

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict for JSON and configuration files."""
        return dict(zip(_FIELDS, self.to_fields(), strict=True))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Capability:
        """Read what `to_dict` made; everything but `name` may be missing.

        Raises:
            CodecError: an unknown key, or a field of another form.
        """
        unknown = set(data) - set(_FIELDS)
        if unknown or "name" not in data:
            wrong = f"unknown key {min(map(str, unknown))!r}" if unknown else "no name"
            raise CodecError(f"{wrong} in a capability; known keys are {', '.join(_FIELDS)}")
        version = data.get("version", [1, 0])
        rest = [data.get(name, 0) for name in _FIELDS[2:5]]
        return cls.from_fields([data["name"], list(version), *rest, data.get("attributes", {})])
