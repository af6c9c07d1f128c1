"""What the control interface hears of whoever works by hand; the rest of its schema is in `schema`.

Knows: the shape of requests in JSON. Must not know: HTTP, the node, or how a terminal shows it.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from converge_p2p.core import limits


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request. An unknown field is an error: it would be ignored silently otherwise."""


class ClaimTask(_Request, frozen=True):
    """Stand as a worker for a task. `bid`: less is better, where the pool assigns by bids."""

    bid: Annotated[int, Meta(ge=0, le=limits.SEQ_MAX)] = 0


class ReleaseTask(_Request, frozen=True):
    """Give a claim back. `failed`: the attempt counts as one that failed."""

    failed: bool = False
    reason: str = ""


class ReportTask(_Request, frozen=True):
    """Report what came of a claimed task: a result, or, if `failed` is not empty, why it cannot be done."""

    result: Any = None
    failed: str = ""
