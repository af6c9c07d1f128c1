"""What the control interface says about watching a node: events, log lines, the level of the log, checkpoints.

Knows: shapes. Must not know: HTTP.
Source: docs/observability.md.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from converge_p2p.client.schema import Count

LogLevel = Literal["debug", "info", "warning", "error"]


class EventItem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened in the node.

    Attributes:
        at: RFC 3339, UTC.
        kind: as `task`, `claim_won`, `fork`, `epoch`, `peer_up`.
        about: ids and states, as text.
    """

    at: str
    kind: str
    about: dict[str, str]


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the log: one JSON object as text."""

    line: str


class LogLevelItem(msgspec.Struct, frozen=True, kw_only=True):
    """The least severity that is written."""

    level: str


class SetLogLevel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Write records of this severity and above from now on, until the node ends."""

    level: LogLevel


class AgentCheckpointItem(msgspec.Struct, frozen=True, kw_only=True):
    """The newest note of an agent that ran here.

    Attributes:
        at: RFC 3339, UTC.
        state: what the agent wanted to have noted.
        running: whether an agent of this name runs now.
    """

    agent: str
    turns: Count
    failures: Count
    at: str
    running: bool
    state: Any = None
