"""What the control interface says and hears about who may join a pool, and its terms; the rest is in `schema`.

Knows: the shape of requests and answers in JSON. Must not know: HTTP, the node, or how a terminal shows it.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from converge_p2p.client.schema import Count, Positive
from converge_p2p.core import limits

Note = Annotated[str, Meta(max_length=limits.JOIN_NOTE_BYTES_MAX)]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer. Unknown fields are ignored, so that a newer node can say more."""


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request. An unknown field is an error: it would be ignored silently otherwise."""


class JoinItem(_Answer, frozen=True):
    """Somebody asks to be let into a pool.

    Attributes:
        agent_id, public_key: who.
        own: whether it is this node that asks; otherwise the request waits here for a decision.
        state: pending, admitted, refused or expired; of a request that waits here, what this node said. By vouches and
            on whitelists an agent is in once enough electors said so.
        note: what whoever asks says.
        reason: why it was refused.
        motion: id of the motion that would put it on the whitelist; empty if there is none.
        silent: of an own request, why nobody could be asked lately.
        yes: of an own request, how many electors gave what lets it in.
    """

    pool: str
    agent_id: str
    public_key: str
    own: bool
    state: Literal["pending", "admitted", "refused", "expired"]
    asked_at: str
    expires_at: str
    note: str = ""
    reason: str = ""
    motion: str = ""
    silent: str = ""
    yes: Count = 0


class AskToJoin(_Request, frozen=True):
    """Ask the electors of a pool to let this node in. `note` is for them."""

    note: Note = ""
    capabilities: list[str] = []
    timeout_s: Positive = 30.0


class AdmitJoin(_Request, frozen=True):
    """Let somebody in; `reason` is for the electors if there is a motion.

    Attributes:
        vote: where an invitation is needed, let the electors vote first.
    """

    reason: Note = ""
    vote: bool = False


class DecideJoin(_Request, frozen=True):
    """Refuse somebody; `reason` is for whoever asked."""

    reason: Note = ""


class TermsItem(_Answer, frozen=True):
    """The terms of a pool that are in force.

    Attributes:
        electors, whitelist: agent ids.
        whitelist_keys: their public keys, in the same order.
        admission_need: how many electors have to vouch.
        policy: timers and defaults, by name.
    """

    pool: str
    name: str
    epoch: Count
    governance: str
    electors: list[str]
    quorum: Count
    faults: Count
    admission: str
    admission_need: Count
    admission_rule: str
    whitelist: list[str]
    whitelist_keys: list[str]
    task_types: list[str]
    topics: list[str]
    private: bool
    policy: dict[str, int | bool | str]
