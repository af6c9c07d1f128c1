"""What the control interface says about how a node is reached, and what `doctor` finds; the rest is in `schema`.

Knows: the shape of answers in JSON. Must not know: HTTP, the node, or how a terminal shows it.
Source: docs/control.md, docs/operations.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from converge_p2p.client.schema import Count

Verdict = Literal["pass", "warn", "fail", "skip"]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer. Unknown fields are ignored, so that a newer node can say more."""


class ReachItem(_Answer, frozen=True):
    """How others reach the node now.

    Attributes:
        reachable: whether they can dial it directly, as they say: `yes`, `no` or `unknown`.
        confirmed: addresses at which peers on two hosts dialled it.
        relays: peer ids of those it is reached through.
        wants_relays: whether it looks for some.
        relay_reservations: places it keeps for others as a relay; null if it serves as none.
        relay_circuits: connections it passes on as a relay.
        link_peers: nodes found on the same link; null if it does not look there.
        link_trouble: why it cannot, or empty.
    """

    reachable: str
    confirmed: list[str] = []
    relays: list[str] = []
    wants_relays: bool = False
    relay_reservations: Count | None = None
    relay_circuits: Count = 0
    link_peers: Count | None = None
    link_trouble: str = ""


class CheckItem(_Answer, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: of the path or file.
        verdict: `pass`, `warn` (works, or may work, but look at it), `fail`, or `skip` (not asked for, or not known).
        text: what was found.
        hint: what to do, or empty.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""


class DoctorItem(_Answer, frozen=True):
    """Everything that was looked at. `healthy`: nothing failed."""

    healthy: bool
    running: bool
    checks: list[CheckItem]
