"""What stands behind the question mark: the queries of requests that have no body.

Knows: their shape. Must not know: HTTP, or the node.
Source: docs/control.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from converge_p2p.client.schema import TASK_LIST_MAX, Positive
from converge_p2p.core import limits

State = Literal["pending", "assigned", "completed", "failed", "cancelled"]


class _Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A query. An unknown name is an error: it would be ignored silently otherwise."""


class TaskQuery(_Query, frozen=True):
    """Which tasks of a pool: of a state, of an objective, how many, and after how many others."""

    state: State | None = None
    objective: str | None = None
    limit: Annotated[int, Meta(ge=1, le=TASK_LIST_MAX)] = 100
    offset: Annotated[int, Meta(ge=0, le=2**53)] = 0


class JoinQuery(_Query, frozen=True):
    """Of which pool; null is of all."""

    pool: str | None = None


class WatchQuery(_Query, frozen=True):
    """How many seconds to watch; null is without end."""

    timeout_s: Positive | None = None


class TopicQuery(_Query, frozen=True):
    """Which topic to listen to, and for how many seconds; null is without end."""

    topic: str
    timeout_s: Positive | None = None


class AgentQuery(_Query, frozen=True):
    """How many agents at most."""

    limit: Annotated[int, Meta(ge=1, le=limits.QUERY_RESULTS_MAX)] = 100


class RecordQuery(_Query, frozen=True):
    """From which entry of a replay log on."""

    first: Annotated[int, Meta(ge=0, le=limits.SEQ_MAX)] = 0


class EventQuery(_Query, frozen=True):
    """Which events of the node to watch, and for how many seconds; an empty kind is every kind, null without end."""

    kind: str = ""
    timeout_s: Positive | None = None


class LogQuery(_Query, frozen=True):
    """With how many of the newest lines to begin."""

    lines: Annotated[int, Meta(ge=0, le=limits.LOG_LINES_KEPT_MAX)] = 100


class PutQuery(_Query, frozen=True):
    """How a content is kept: encrypted under a key of its own or not, as what it is read, and until when."""

    sealed: bool = False
    form: Literal["handle", "bytes", "value"] = "handle"
    hold: Literal["pinned", "kept"] = "pinned"


class ContentQuery(_Query, frozen=True):
    """Which content, and the pool whose connected members are asked for it, too."""

    reference: str
    pool: str | None = None
