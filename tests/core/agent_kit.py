"""What the tests of discovery share: identities, descriptors, and strategies for them."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from hypothesis import strategies as st

from converge_p2p.core.identity import Identity
from converge_p2p.core.model.capability import Capability
from converge_p2p.core.model.descriptor import AgentDescriptor
from converge_p2p.core.model.query import CapabilityNeed, DiscoveryQuery
from converge_p2p.core.model.topic import Topic

NOW = 1_700_000_000_000


@functools.cache
def who(number: int) -> Identity:
    return Identity.from_seed(hashlib.sha256(b"discovery-%d" % number).digest())


def descriptor(number: int = 1, sequence: int = 1, *skills: Capability | str, **fields: Any) -> AgentDescriptor:
    """A signed descriptor; text is the name of a capability."""
    capabilities = [Capability(skill) if isinstance(skill, str) else skill for skill in skills]
    settings = {"sequence": sequence, "now_ms": NOW, "capabilities": capabilities, **fields}
    return AgentDescriptor.create(who(number), **settings)


def gone(number: int = 1, sequence: int = 2, now_ms: int = NOW) -> AgentDescriptor:
    return AgentDescriptor.tombstone(who(number), sequence=sequence, now_ms=now_ms)


VERSIONS = st.tuples(st.integers(0, 2), st.integers(0, 2))
NAMES = st.sampled_from(["a", "b", "c"])
ATTRIBUTES = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from([1, True, "1"]), max_size=2)
CAPABILITIES = st.builds(
    lambda name, version, cost, attributes: Capability(name, version, cost, attributes=attributes),
    NAMES, VERSIONS, st.integers(0, 3), ATTRIBUTES,
)  # fmt: skip
TOPICS = st.builds(Topic, NAMES, ATTRIBUTES, st.sampled_from([None, "1"]))


def _need(name: str, version: Any, width: Any, cost_max: Any, attributes: Any) -> CapabilityNeed:
    below = None if width is None else ((version or (0, 0))[0] + width, 1)
    return CapabilityNeed(name, version, below, cost_max, attributes)


NEEDS = st.builds(
    _need, NAMES, st.none() | VERSIONS, st.none() | st.integers(1, 2), st.none() | st.integers(0, 3), ATTRIBUTES
)
QUERIES = st.builds(
    lambda needs, topics, limit: DiscoveryQuery(tuple(needs), tuple(topics), limit=limit),
    st.lists(NEEDS, max_size=2), st.lists(TOPICS, max_size=2), st.integers(1, 5),
)  # fmt: skip


@st.composite
def said(draw: Any, agents: int = 6) -> AgentDescriptor:
    """What somebody says, now and then that it is gone."""
    number, sequence = draw(st.integers(0, agents - 1)), draw(st.integers(0, 4))
    if draw(st.integers(0, 4)) == 0:
        return gone(number, sequence)
    return descriptor(
        number, sequence, *draw(st.lists(CAPABILITIES, max_size=3)),
        topics=draw(st.lists(TOPICS, max_size=2)), ttl_ms=draw(st.sampled_from([1000, 5000])),
    )  # fmt: skip
