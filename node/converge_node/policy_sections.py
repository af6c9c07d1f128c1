"""The settings about what a node lets happen.

Knows: their keys, types, defaults and meanings. Must not know: how they are enforced, or the other settings.
Source: docs/policy.md. A key stands here only if it has an effect.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from converge_p2p.core import limits

ANY: Final = "*"
"""In place of the names of kinds: all of them."""

AdmissionName = Literal["open", "whitelist", "token", "vouched", "custom"]
LearnName = Literal["own", "all", "off"]


class GovernanceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who decides in new pools, and what this node says where it is an elector."""

    default: Annotated[
        Literal["democratic", "dictatorial"], Meta(description="Model of `pool create` without --governance.")
    ] = "democratic"
    models: Annotated[
        tuple[str, ...], Meta(description="Own governance models to register at start: NAME=module:object.")
    ] = ()
    evaluators: Annotated[
        tuple[str, ...], Meta(description="Rules that judge results, to register at start: NAME=module:function.")
    ] = ()
    opinion: Annotated[
        str, Meta(description="Who answers motions for this elector: module:function; empty is people, by command.")
    ] = ""


class AdmissionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may join new pools."""

    default: Annotated[AdmissionName, Meta(description="Admission of `pool create` without --admission.")] = "open"
    rules: Annotated[
        tuple[str, ...], Meta(description="Own admission rules to register at start: NAME=module:function.")
    ] = ()


class TrustSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this node thinks of other agents, from 0 to 1."""

    default: Annotated[float, Meta(ge=0, le=1, description="Trust in somebody of whom nothing is known.")] = 0.5
    rate: Annotated[float, Meta(gt=0, le=1, description="How far one outcome moves trust towards 0 or 1.")] = 0.1
    half_life_s: Annotated[
        float, Meta(ge=0, le=1e10, description="Seconds without news in which trust fades by half; 0 is never.")
    ] = 0.0
    learn: Annotated[
        LearnName, Meta(description="Whose finished tasks move it: those of this node, of everybody, or none.")
    ] = "own"
    discovery_threshold: Annotated[
        float, Meta(ge=0, le=1, description="Least trust in agents that a search without a threshold finds.")
    ] = 0.0
    join_threshold: Annotated[
        float, Meta(ge=0, le=1, description="Least trust in agents that this node vouches for or invites by name.")
    ] = 0.0


class SafetySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What tasks may ask of this node, and agents on it may do."""

    cpu: Annotated[
        float,
        Meta(ge=0, le=limits.TASK_CPU_CORES_MAX, description="Cores a task may ask for; 0 is any number."),
    ] = 0.0
    memory_mb: Annotated[
        float,
        Meta(ge=0, le=limits.TASK_MEMORY_MB_MAX, description="MiB of memory a task may ask for; 0 is any number."),
    ] = 0.0
    network_requests: Annotated[
        int,
        Meta(ge=-1, le=10**9, description="Requests to the network of an agent in a period; -1 is any number."),
    ] = -1
    network_period_s: Annotated[
        float, Meta(gt=0, le=1e9, description="The period of network_requests, in seconds.")
    ] = 60.0
    allow: Annotated[
        tuple[str, ...],
        Meta(description="Kinds of decisions that agents may take, as SendMessage; '*' is all, an empty list is none."),
    ] = (ANY,)
    deny: Annotated[
        tuple[str, ...], Meta(description="Kinds of decisions that agents may not take, whatever `allow` says.")
    ] = ()
