"""A task: what is asked for, the states it can be in, and what settles it.

Knows: the task's fields, their bounds, and the one transition table. Must not know: who decides a transition (the
register in `view` derives it from votes).
Source: the concepts page (PENDING, ASSIGNED, COMPLETED, FAILED, CANCELLED); `docs/protocol.md`, task register.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value, encode, encode_value, tagged_hash
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError
from converge_p2p.core.model.evaluator import parse_evaluator
from converge_p2p.core.types import PoolId, PublicKey, TaskId, ValueHash


class TaskState(Enum):
    """The state of a task, as derived from the votes a replica holds."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the task is settled. A settled task never changes again."""
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})

TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    # a replica that catches up may see only the last of several steps, hence the direct ways to a settled state
    TaskState.PENDING: frozenset({TaskState.ASSIGNED}) | TERMINAL_STATES,
    TaskState.ASSIGNED: frozenset({TaskState.PENDING}) | TERMINAL_STATES,
    TaskState.COMPLETED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
}


class Outcome(IntEnum):
    """The kinds of value a task's register can settle on."""

    COMPLETED = 0
    FAILED = 1
    CANCELLED = 2

    @property
    def state(self) -> TaskState:
        """The terminal state this outcome leads to."""
        return _OUTCOME_STATES[self]


_OUTCOME_STATES = {
    Outcome.COMPLETED: TaskState.COMPLETED,
    Outcome.FAILED: TaskState.FAILED,
    Outcome.CANCELLED: TaskState.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class TaskValue:
    """A value of the register: how a task ended, who did the work, and the result.

    Attributes:
        outcome: how it ended.
        worker: public key of whoever the result is credited to.
        result: an encoded user value (`codec.encode_value`), at most `limits.RESULT_BYTES_MAX` bytes.
        voted: of a value that was opened in a private pool, the hash of its sealed form; else None.
    """

    outcome: Outcome
    worker: PublicKey
    result: bytes
    voted: ValueHash | None = field(default=None, compare=False)
    _hash: ValueHash | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def hash(self) -> ValueHash:
        """What electors vote on. Computed once: a result may be large, and every part of the fold asks for it."""
        if self.voted is not None:
            return self.voted
        if self._hash is None:
            computed = ValueHash(tagged_hash("value", encode([int(self.outcome), self.worker, self.result])))
            object.__setattr__(self, "_hash", computed)
            return computed
        return self._hash


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task as it stands in the log: integers, bytes and text only.

    Attributes:
        key: idempotency key, 1 to `limits.IDEMPOTENCY_KEY_BYTES_MAX` bytes. The same author and key are the same task.
        objective: what is to be done; handlers are chosen by it.
        inputs: an encoded user value, at most `limits.TASK_INPUT_BYTES_MAX` bytes.
        topic: canonical bytes of a topic, or empty.
        required_capabilities: sorted, without repeats.
        priority: higher is claimed first, -2**31 to 2**31-1.
        claim_ttl_ms: how long a certified claim stands without a settlement; 0 is the pool's default.
        max_retries: failures and expiries after which only a failure can be settled; None is the pool's default.
        timeout_ms: how long one attempt may work before its node stops it; 0 is no limit.
        deadline_ms: Unix time after which workers no longer take it; 0 is none.
        cpu_milli: processor need in thousandths of a core.
        memory_mb: memory need in MiB.
        evaluator: who judges results: `agent:<agent id or public key>`, `rule:<name>`, or empty.
    """

    key: bytes
    objective: str
    inputs: bytes
    topic: bytes = b""
    required_capabilities: tuple[str, ...] = ()
    priority: int = 0
    claim_ttl_ms: int = 0
    max_retries: int | None = None
    timeout_ms: int = 0
    deadline_ms: int = 0
    cpu_milli: int = 0
    memory_mb: int = 0
    evaluator: str = ""

    def check(self) -> None:
        """Check every bound.

        Raises:
            LimitExceeded: a field is larger than its bound.
            LocalError: a field has no meaning (empty key, negative time, unsorted capabilities).
        """
        _bounded("IDEMPOTENCY_KEY_BYTES_MAX", "idempotency key", len(self.key), limits.IDEMPOTENCY_KEY_BYTES_MAX)
        _bounded("TEXT_BYTES_MAX", "objective", len(self.objective.encode()), limits.TEXT_BYTES_MAX)
        _bounded("TASK_INPUT_BYTES_MAX", "inputs", len(self.inputs), limits.TASK_INPUT_BYTES_MAX)
        _bounded("TEXT_BYTES_MAX", "topic", len(self.topic), limits.TEXT_BYTES_MAX)
        _bounded("TEXT_BYTES_MAX", "evaluator", len(self.evaluator.encode()), limits.TEXT_BYTES_MAX)
        count = len(self.required_capabilities)
        _bounded("CAPABILITIES_PER_TASK_MAX", "capability count", count, limits.CAPABILITIES_PER_TASK_MAX)
        total = sum(len(name.encode()) for name in self.required_capabilities)
        _bounded("TEXT_BYTES_MAX", "capabilities", total, limits.TEXT_BYTES_MAX)
        if not self.key or not self.objective:
            raise LocalError("a task needs an objective and a key that is not empty")
        if list(self.required_capabilities) != sorted(set(self.required_capabilities)):
            raise LocalError("required capabilities must be sorted and without repeats")
        parse_evaluator(self.evaluator)
        ttl = self.claim_ttl_ms
        if ttl and not limits.CLAIM_TTL_MS_MIN <= ttl <= limits.CLAIM_TTL_MS_MAX:
            raise LocalError(
                f"claim_ttl is {ttl} ms; expected {limits.CLAIM_TTL_MS_MIN} to {limits.CLAIM_TTL_MS_MAX}, or 0"
            )
        if self.max_retries is not None and not 0 <= self.max_retries <= limits.RETRIES_MAX:
            raise LocalError(f"max_retries is {self.max_retries}; expected 0 to {limits.RETRIES_MAX}")
        if not -(2**31) <= self.priority < 2**31:
            raise LocalError(f"priority is {self.priority}; expected a 32-bit integer")
        for name in ("timeout_ms", "deadline_ms", "cpu_milli", "memory_mb"):
            if not 0 <= getattr(self, name) < 2**53:
                raise LocalError(f"{name} is {getattr(self, name)}; expected 0 to 2**53")

    def to_body(self) -> list[Any]:
        """Return the array that stands in a submit operation."""
        return [
            self.key, self.objective, self.inputs, self.topic, list(self.required_capabilities), self.priority,
            self.claim_ttl_ms, self.max_retries, self.timeout_ms, self.deadline_ms, self.cpu_milli, self.memory_mb,
            self.evaluator,
        ]  # fmt: skip

    @classmethod
    def from_body(cls, body: Any) -> TaskSpec:
        """Read the array of a submit operation.

        Raises:
            CodecError: not of that shape, or out of bounds.
        """
        kinds = (bytes, str, bytes, bytes, list, int, int, int, int, int, int, int, str)
        if not isinstance(body, list) or len(body) != len(kinds):
            raise CodecError(f"a submit body is an array of {len(kinds)}")
        for index, (item, kind) in enumerate(zip(body, kinds, strict=True)):
            if type(item) is not kind and not (index == 7 and item is None):
                raise CodecError(f"field {index} of a submit body is of type {type(item).__name__}")
        if any(not isinstance(name, str) for name in body[4]):
            raise CodecError("a required capability must be text")
        key, objective, inputs, topic, capabilities, *numbers = body
        spec = cls(key, objective, inputs, topic, tuple(capabilities), *numbers)
        try:
            spec.check()
        except (LocalError, LimitExceeded) as error:
            raise CodecError(f"submit body out of bounds: {error}") from error
        return spec


def _bounded(limit: str, what: str, size: int, bound: int) -> None:
    if size > bound:
        raise LimitExceeded(limit, f"{what} has {size}, at most {bound} allowed")


def task_id(pool: PoolId, author: PublicKey, key: bytes) -> TaskId:
    """Return the id of a task: nobody can overwrite another's, and the same submit twice is one task."""
    return TaskId(tagged_hash("task", pool, author, key))


_CONSTRAINTS = ("timeout_sec", "deadline", "claim_ttl_sec", "max_retries", "cpu", "memory_mb")


@dataclass(frozen=True, slots=True)
class Task:
    """A task as an application writes it.

    Attributes:
        objective: what is to be done; handlers are chosen by it.
        inputs: any value of numbers, text, bytes, lists and maps with text keys.
        key: idempotency key. Submitting twice with one key is submitting once. None: every submit is a new task.
        topic: canonical bytes of a topic (`Topic.to_bytes()`), or empty.
        required_capabilities: names a worker must have declared.
        priority: higher is claimed first.
        constraints: the conventional keys timeout_sec, deadline (Unix seconds), claim_ttl_sec, max_retries,
            cpu (cores), memory_mb.
        evaluator: who judges results: `agent:<agent id or public key>`, `rule:<name>` (see `register_evaluator`), or
            empty. Electors accept only a completed result that it approved.
    """

    objective: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    key: str | bytes | None = None
    topic: bytes = b""
    required_capabilities: tuple[str, ...] = ()
    priority: int = 0
    constraints: Mapping[str, float | int] = field(default_factory=dict)
    evaluator: str = ""

    def to_spec(self, *, key: bytes) -> TaskSpec:
        """Return the form that is signed.

        Args:
            key: used if the task has none of its own.

        Raises:
            CodecError: inputs that cannot be encoded.
            LimitExceeded, LocalError: out of bounds, or an unknown constraint.
        """
        for name, number in self.constraints.items():
            if name not in _CONSTRAINTS:
                raise LocalError(f"unknown constraint {name!r}; known are {', '.join(_CONSTRAINTS)}")
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise LocalError(f"constraint {name} is {number!r}; expected a finite number")
            if number < 0:
                raise LocalError(f"constraint {name} is {number}; expected 0 or more")
        own = self.key.encode() if isinstance(self.key, str) else self.key
        retries = self.constraints.get("max_retries")
        spec = TaskSpec(
            key=key if own is None else own,
            objective=self.objective,
            inputs=encode_value(dict(self.inputs)),
            topic=self.topic,
            required_capabilities=tuple(sorted(set(self.required_capabilities))),
            priority=self.priority,
            claim_ttl_ms=round(self.constraints.get("claim_ttl_sec", 0) * 1000),
            max_retries=None if retries is None else int(retries),
            timeout_ms=round(self.constraints.get("timeout_sec", 0) * 1000),
            deadline_ms=round(self.constraints.get("deadline", 0) * 1000),
            cpu_milli=round(self.constraints.get("cpu", 0) * 1000),
            memory_mb=round(self.constraints.get("memory_mb", 0)),
            evaluator=self.evaluator,
        )
        spec.check()
        return spec


@dataclass(frozen=True, slots=True)
class Progress:
    """What the holder of a task says about its work. Nobody has to believe it.

    Attributes:
        fraction: how much is done, in thousandths.
        note: for people.
    """

    fraction: int
    note: str


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as one replica sees it now.

    Attributes:
        id: task id.
        pool_id: pool it lives in.
        submitter: public key of its author.
        spec: what was asked for.
        state: derived state. Anything but a terminal state is tentative until certified.
        epoch, round: the fencing token of the current claim; round is -1 before any grant.
        assigned_to: public key of the certified claimant, if ASSIGNED.
        value: what it was settled on, if terminal.
        attempts: rounds in which work was certified so far.
        certified: whether `state` rests on a certificate of the pool's governance.
        expired: whether the time of whoever holds it is over on the local clock.
        progress: what the holder said last, if ASSIGNED and it said something.
        awaiting: the result it was settled on, while the pool's vetoers may still deny it.
        unjudged: results of whoever holds it that wait for a verdict of its evaluator.
        reported: completed results that were reported, by whomever, while none is settled.
        sealed: something of it is sealed with a content key that is not held here, or does not open: the objective is
            then "sealed", inputs and result are empty.
    """

    id: TaskId
    pool_id: PoolId
    submitter: PublicKey
    spec: TaskSpec
    state: TaskState
    epoch: int = 0
    round: int = -1
    assigned_to: PublicKey | None = None
    value: TaskValue | None = None
    attempts: int = 0
    certified: bool = False
    expired: bool = False
    progress: Progress | None = None
    awaiting: TaskValue | None = None
    unjudged: tuple[TaskValue, ...] = ()
    reported: tuple[TaskValue, ...] = ()
    sealed: bool = False

    @property
    def claimable(self) -> bool:
        """Whether it is worth claiming now: it can be read, and nobody holds it, or the holder's time is over."""
        over = self.expired and self.awaiting is None
        wanted = self.state is TaskState.PENDING or (self.state is TaskState.ASSIGNED and over)
        return wanted and not self.sealed

    @property
    def inputs(self) -> Any:
        """The decoded inputs."""
        return decode_value(self.spec.inputs)

    @property
    def objective(self) -> str:
        """What is to be done."""
        return self.spec.objective

    @property
    def result(self) -> Any:
        """The decoded result, or None if the task is not settled."""
        return None if self.value is None else decode_value(self.value.result)
