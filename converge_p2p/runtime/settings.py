"""The times and sizes of an agent's loop, and how the loop is doing.

Knows: which settings make sense. Must not know: the loop.
Source: the concepts page (execution loop, customisation).
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The times and sizes of a loop.

    Attributes:
        receive_timeout_s: the longest idle wait before `on_tick` is called again; None waits without end.
        batch_messages: how many messages one turn gets at most.
        decide_timeout_s: `decide` is cancelled after this time and counts as failed; None lets it take its time.
        stall_after_s: `health` reports a turn that takes longer.
        backoff_s, backoff_max_s: pause after the first failure in a row, doubled by each further one, and its bound.
        restart_after: after so many failures in a row the agent is started again: its claims are handed back, and
            `on_stop` and `on_start` are called. 0: never.
        stop_timeout_s: time for `on_stop`, and as much again for handing claims back.
        claim_ttl_s: a task that the agent holds so long without reporting is handed back; None leaves it to the pool,
            whose own time to live is bought anew by each renewal.
        resume_claims: after a restart of the node the agent is shown tasks that this node held; False hands them back.
        checkpoint_interval_s: a checkpoint is written this often, if there is a store for it.
    """

    receive_timeout_s: float | None = 30.0
    batch_messages: int = 256
    decide_timeout_s: float | None = None
    stall_after_s: float = 60.0
    backoff_s: float = 0.1
    backoff_max_s: float = 30.0
    restart_after: int = 5
    stop_timeout_s: float = 5.0
    claim_ttl_s: float | None = None
    resume_claims: bool = True
    checkpoint_interval_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_messages <= limits.INBOX_MESSAGES_MAX:
            raise LocalError(f"batch_messages is {self.batch_messages}; expected 1 to {limits.INBOX_MESSAGES_MAX}")
        if type(self.restart_after) is not int or self.restart_after < 0:
            raise LocalError(f"restart_after is {self.restart_after!r}; expected a number of failures, 0 or more")
        for name in (
            "receive_timeout_s", "decide_timeout_s", "stall_after_s", "backoff_s", "backoff_max_s", "stop_timeout_s",
            "claim_ttl_s", "checkpoint_interval_s",
        ):  # fmt: skip
            seconds = getattr(self, name)
            # written so that NaN, which compares false with everything, is refused too
            if seconds is not None and not seconds > 0:
                raise LocalError(f"{name} is {seconds}; expected a number of seconds above 0")


@dataclass(frozen=True, slots=True)
class Health:
    """How an agent's loop is doing.

    Attributes:
        ok: it runs, the last turn succeeded, and no turn hangs.
        running: the loop was started and has not ended.
        stalled: the present turn takes longer than `RuntimeConfig.stall_after_s`.
        turns: calls of `decide` that returned.
        failures: errors of the agent in all; `failures_in_row` since the last turn that succeeded.
        restarts: how often it was started again because it failed too often.
        last_error: the last one, for people; empty if there was none.
        inbox: messages that wait; `dropped`: messages lost for want of room; `blocked`: messages that had to wait
            elsewhere; `held_back`: messages that a hook kept from the agent.
        decisions_dropped: decisions beyond `limits.DECISIONS_PER_TURN_MAX`.
        events_dropped: events that the agent was not told of, for want of room.
        claims: tasks it stands for, and `followed`: decisions that wait for an answer.
    """

    ok: bool
    running: bool
    stalled: bool
    turns: int
    failures: int
    failures_in_row: int
    last_error: str
    inbox: int
    dropped: int
    decisions_dropped: int
    restarts: int = 0
    blocked: int = 0
    held_back: int = 0
    events_dropped: int = 0
    claims: int = 0
    followed: int = 0
