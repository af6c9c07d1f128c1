"""A written replay log: read, checked, and taken again by an agent.

Knows: the lines of the file. Must not know: nodes, or the control interface.
Source: docs/operations.md, recording agents.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from converge_node.hosted import make_agent
from converge_p2p.client.agent_schema import RecordItem
from converge_p2p.core.errors import CodecError, ConfigError
from converge_p2p.runtime.replay import replay
from converge_p2p.runtime.replay_log import LogEntry, Turn, read_turns


class ReplayReport(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        turns: how many there are; their chain is whole.
        different: numbers of those in which the agent decides otherwise now, and why, in `details`.
    """

    turns: int
    different: list[int]
    details: list[str]

    def text(self) -> str:
        """Return it for people."""
        lines = [f"{self.turns} turns, and their chain is whole"]
        lines += [f"turn {number}: {detail}" for number, detail in zip(self.different, self.details, strict=True)]
        return "\n".join(lines)


def read_record_file(file: Path) -> list[Turn]:
    """Read what `converge-node agent record` wrote.

    Raises:
        CodecError: it was changed, or is something else.
    """
    entries = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            item = msgspec.json.decode(line, type=RecordItem)
            entries.append(LogEntry(item.number, base64.b64decode(item.data, validate=True)))
        except (msgspec.MsgspecError, binascii.Error) as error:
            raise CodecError(f"line {number} of {file} is no entry of a record: {error}") from error
    return read_turns(entries)


def take_again(turns: Sequence[Turn], place: str) -> ReplayReport:
    """Let an agent take recorded turns once more, offline.

    Raises:
        ConfigError: the agent cannot be made.
    """
    module, separator, kind = place.partition(":")
    if not separator:
        raise ConfigError(f"{place!r} is no agent; expected MODULE:CLASS")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    again = trio.run(replay, turns, make_agent(module, kind))
    different = [each for each in again if not each.same]
    details = [each.error or f"decided {list(each.decisions)}, not {list(each.turn.decisions)}" for each in different]
    return ReplayReport(len(turns), [each.turn.number for each in different], details)
