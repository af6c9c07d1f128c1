"""What the nodes of `soak.py` do: answer tasks, talk on a topic, and write to each other.

Knows: agents and handlers, and where a node that was started with `--home` has its key. Must not know: who kills them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from converge_p2p import Agent, Message, TaskView, Topic
from converge_p2p.core.model.decision import Decision, SendMessage
from converge_p2p.store.keyfile import load_identity

TOPIC = "soak"


def echo(task: Any, _context: Any) -> Any:
    """Handler of all tasks."""
    return task.inputs


class Correspondent(Agent):
    """Writes a letter to whoever said something on the topic; a letter is acknowledged, and not answered."""

    def __init__(self) -> None:
        home = Path(sys.argv[sys.argv.index("--home") + 1])
        super().__init__(load_identity(home / "node.key"), topics=(Topic(TOPIC),))

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> Iterable[Decision]:
        assert self.id is not None
        return [
            SendMessage(Message.create(self.id, {"heard": message.payload}, recipient=message.sender))
            for message in messages
            if message.recipient is None and message.sender != self.id
        ]
