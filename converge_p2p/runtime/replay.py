"""An agent once more, offline: shown what it saw in recorded turns, and compared by what it decides.

Knows: turns and agents. Must not know: networks, stores, or how a decision is carried out: nothing is.
Source: `docs/concepts.md`, replay log.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import trio

from converge_p2p.core.codec import encode_value
from converge_p2p.core.model.decision import Decision, SendMessage
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.recording import pack
from converge_p2p.runtime.replay_log import Turn


@dataclass(frozen=True, slots=True)
class ReplayedTurn:
    """A turn that was taken again.

    Attributes:
        turn: as it was recorded.
        decisions: what the agent decides now.
        error: what it raised, for people; empty if it did not.
    """

    turn: Turn
    decisions: tuple[Decision, ...] = ()
    error: str = ""

    @property
    def same(self) -> bool:
        """Whether the agent decides what it decided then. Ids and times of messages do not matter."""
        return not self.error and _comparable(self.decisions) == _comparable(self.turn.decisions)


async def replay(turns: Iterable[Turn], agent: Agent) -> list[ReplayedTurn]:
    """Show recorded turns to an agent, one after the other; its decisions are compared and not carried out.

    Turns that could not be recorded are passed over.
    """
    replayed = []
    for turn in turns:
        if turn.omitted:
            continue
        agent.events, agent.tool_results = turn.events, turn.tool_results
        try:
            decided: Any = agent.decide(turn.messages, turn.tasks)
            decided = await decided if inspect.isawaitable(decided) else decided
            replayed.append(ReplayedTurn(turn, tuple(decided)))
        except Exception as error:  # noqa: BLE001 - an agent is foreign code; what it raises is what is looked for
            replayed.append(ReplayedTurn(turn, error=f"{type(error).__name__}: {error}"))
        finally:
            agent.events, agent.tool_results = (), ()
        await trio.lowlevel.checkpoint()
    return replayed


def _comparable(decisions: Sequence[Decision]) -> bytes:
    plain = []
    for decision in decisions:
        if isinstance(decision, SendMessage) and not decision.message.signed:
            message = replace(decision.message, id=b"", timestamp_ms=0, expires_ms=0)
            decision = SendMessage(message)
        plain.append(pack(decision))
    return encode_value(plain)
