"""What somebody looks for: agents by capability, version, cost, topic and trust.

Knows: which descriptors answer a question, and in which order. Must not know: how they are found quickly (see
`agent_index`), or where trust comes from.
Source: the concepts page (discovery queries by topics and capabilities, with a trust threshold); `docs/protocol.md`,
discovery.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError
from converge_p2p.core.model.attributes import (
    AttributeValue,
    attributes_match,
    check_bytes,
    check_integer,
    check_name,
    check_text,
    freeze_attributes,
)
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.topic import Topic

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CapabilityNeed:
    """A capability that is asked for.

    Attributes:
        name: must be equal.
        version: the least version that will do, or None for any. Without `below`, only of the same major version:
            majors promise nothing.
        below: the first version that will not do any more, or None.
        cost_max: the highest cost that will do, or None.
        attributes: each must be declared with this value. Read-only.

    Raises:
        LocalError: a field of another form, or a range of versions with nothing in it.
        LimitExceeded: too many attributes, or a text too long.
    """

    name: str
    version: Version | None = None
    below: Version | None = None
    cost_max: int | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("capability name", self.name, segments=True)
        for version in (self.version, self.below):
            if version is None:
                continue
            if not isinstance(version, tuple) or len(version) != 2:
                raise LocalError(f"capability version is {version!r}; expected (major, minor)")
            for part in version:
                check_integer("capability version", part, limits.SEQ_MAX)
        if self.below is not None and self.below <= (self.version or (0, 0)):
            raise LocalError(f"no version is at least {self.version or (0, 0)} and below {self.below}")
        if self.cost_max is not None:
            check_integer("cost_max", self.cost_max, limits.SEQ_MAX)
        object.__setattr__(self, "attributes", freeze_attributes("a need", self.attributes))

    def met_by(self, capability: Capability) -> bool:
        """Say whether a capability meets the need."""
        if capability.name != self.name or (self.cost_max is not None and capability.cost > self.cost_max):
            return False
        if self.version is not None and capability.version < self.version:
            return False
        if self.below is not None:
            if capability.version >= self.below:
                return False
        elif self.version is not None and capability.version[0] != self.version[0]:
            return False
        return attributes_match(self.attributes, capability.attributes)

    def cost(self, descriptor: AgentDescriptor) -> int | None:
        """Return the least cost at which an agent meets the need, or None if it does not."""
        costs = [capability.cost for capability in descriptor.capabilities if self.met_by(capability)]
        return min(costs) if costs else None


@dataclass(frozen=True, slots=True)
class DiscoveryQuery:
    """A question for agents. All that is asked must hold; nothing asked is any agent.

    Attributes:
        capabilities: what they can do, at most `limits.QUERY_NEEDS_MAX`.
        topics: what they are about, at most `limits.QUERY_NEEDS_MAX`: each matches one that the agent names.
        trust_threshold: the least trust that the asking node has in them, 0 to 1; 0 asks for none.
        trust_context: what the trust is for; empty is overall.
        limit: how many are wanted, 1 to `limits.QUERY_RESULTS_MAX`.

    Raises:
        LocalError: a field of another form.
        LimitExceeded: too many needs or topics.
    """

    capabilities: tuple[CapabilityNeed, ...] = ()
    topics: tuple[Topic, ...] = ()
    trust_threshold: float = 0.0
    trust_context: str = ""
    limit: int = 100

    def __post_init__(self) -> None:
        needs = self.capabilities
        if not isinstance(needs, tuple) or not all(isinstance(need, CapabilityNeed) for need in needs):
            raise LocalError("capabilities of a query must be a tuple of CapabilityNeed")
        if not isinstance(self.topics, tuple) or not all(isinstance(topic, Topic) for topic in self.topics):
            raise LocalError("topics of a query must be a tuple of Topic")
        check_bytes("QUERY_NEEDS_MAX", "capabilities of a query", len(needs))
        check_bytes("QUERY_NEEDS_MAX", "topics of a query", len(self.topics))
        threshold = self.trust_threshold
        # asked this way round a NaN is refused as well
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise LocalError(f"trust_threshold is {threshold!r:.40}; expected a number from 0 to 1")
        check_text("trust_context", self.trust_context)
        if type(self.limit) is not int or self.limit < 1:
            raise LocalError(f"limit is {self.limit!r:.40}; expected 1 to {limits.QUERY_RESULTS_MAX}")
        if self.limit > limits.QUERY_RESULTS_MAX:
            raise LimitExceeded("QUERY_RESULTS_MAX", f"limit is {self.limit}; at most {limits.QUERY_RESULTS_MAX}")

    @classmethod
    def of(
        cls,
        capabilities: Iterable[CapabilityNeed | str] = (),
        topics: Iterable[Topic | str] = (),
        *,
        trust_threshold: float = 0.0,
        trust_context: str = "",
        limit: int = 100,
    ) -> DiscoveryQuery:
        """Make a question, where text stands for a capability of any version and cost, and for a topic's namespace.

        Raises:
            LocalError, LimitExceeded: see the class.
        """
        return cls(
            tuple(CapabilityNeed(need) if isinstance(need, str) else need for need in capabilities),
            tuple(Topic(topic) if isinstance(topic, str) else topic for topic in topics),
            trust_threshold,
            trust_context,
            limit,
        )

    def matches(self, descriptor: AgentDescriptor) -> bool:
        """Say whether a descriptor answers the question, trust and expiry apart. A tombstone answers none."""
        return (
            not descriptor.left
            and all(any(need.met_by(each) for each in descriptor.capabilities) for need in self.capabilities)
            and all(any(topic.matches(each) for each in descriptor.topics) for topic in self.topics)
        )

    def order(self, descriptor: AgentDescriptor) -> tuple[int, str]:
        """Return what answers are sorted by: the cost of the first capability that is asked for, then the agent id."""
        cost = self.capabilities[0].cost(descriptor) if self.capabilities else None
        return (0 if cost is None else cost, descriptor.agent_id)
