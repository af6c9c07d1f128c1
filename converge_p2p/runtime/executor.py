"""The executor: carries decisions out through the ports, after the safety policy agreed.

Knows: which port a decision goes to. Must not know: what is behind a port.
Source: the concepts page (StandardExecutor); results as values, so that one bad decision does not stop the next.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import ConvergeError, LimitExceeded, LocalError
from converge_p2p.core.limits import BLOB_VALUE_BYTES_MAX, RESULT_BYTES_MAX
from converge_p2p.core.model.coordination_decision import ActFor
from converge_p2p.core.model.decision import (
    CancelTask,
    ClaimTask,
    CreatePool,
    Decision,
    InvokeTool,
    JoinPool,
    LeavePool,
    ReleaseTask,
    ReportTask,
    SendMessage,
    SubmitTask,
)
from converge_p2p.core.model.task import Outcome
from converge_p2p.core.types import PoolId, TaskId
from converge_p2p.runtime.budget import charged
from converge_p2p.runtime.coordination import DECISIONS as COORDINATION, coordinate
from converge_p2p.runtime.fencing import FencePort
from converge_p2p.runtime.ports import CoordinationPort, MessagePort, PoolPort, TaskPort
from converge_p2p.runtime.safety import SafetyPolicy
from converge_p2p.runtime.tool_outputs import ToolOutputs
from converge_p2p.runtime.tools import ToolFailed, ToolRegistry

_logger = logging.getLogger(__name__)
_Port = TypeVar("_Port")


@dataclass(frozen=True, slots=True)
class Executed:
    """The decision was carried out.

    Attributes:
        decision: which.
        value: what it gave: the id of a new pool or task, the result of a tool, or None.
    """

    decision: Decision
    value: Any = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The decision was not carried out, and nothing was changed: not allowed, not possible, or not supported."""

    decision: Decision
    error: ConvergeError


@dataclass(frozen=True, slots=True)
class Failed:
    """The decision was tried and something broke on the way; what was changed is unknown."""

    decision: Decision
    error: Exception


Result = Executed | Refused | Failed
CustomHandler = Callable[[Any], Any]
"""Takes the decision; plain or async; what it returns is the value of `Executed`."""


class Executor(Protocol):
    """What a runtime needs of an executor."""

    async def execute(self, decision: Decision) -> Result:
        """Carry one decision out. Never raises for a decision that cannot be."""


class StandardExecutor:
    """Maps each kind of decision to a port.

    Attributes:
        executed, refused, failed: counts since the start.
    """

    def __init__(
        self,
        *,
        messages: MessagePort | None = None,
        tasks: TaskPort | None = None,
        pools: PoolPort | None = None,
        coordination: CoordinationPort | None = None,
        tools: ToolRegistry | None = None,
        fences: FencePort | None = None,
        safety: SafetyPolicy | None = None,
        custom_handlers: Mapping[type[Decision], CustomHandler] | None = None,
    ) -> None:
        """Make an executor. A decision whose port is missing is refused.

        Args:
            messages: takes `SendMessage`.
            tasks: takes the decisions about tasks.
            pools: takes the decisions about pools.
            coordination: takes the decisions about auctions, polls, negotiations and delegations.
            tools: takes `InvokeTool`.
            fences: gives the fencing tokens of tools that have side effects.
            safety: checked before everything, custom handlers included. None: everything is allowed.
            custom_handlers: by exact kind of decision; they go before the built-in way.
        """
        self._messages = messages
        self._tasks = tasks
        self._pools = pools
        self._coordination = coordination
        self._tools = tools
        self._fences = fences
        self._outputs = ToolOutputs()
        self._safety = SafetyPolicy() if safety is None else safety
        self._budget = self._safety.resources.budget()
        self._custom = dict(custom_handlers or {})
        self._ways: dict[type[Decision], Callable[[Any], Awaitable[Any]]] = {
            SendMessage: self._send,
            CreatePool: self._create_pool,
            JoinPool: self._join_pool,
            LeavePool: self._leave_pool,
            SubmitTask: self._submit,
            ClaimTask: self._claim,
            ReportTask: self._report,
            ReleaseTask: self._release,
            CancelTask: self._cancel,
            InvokeTool: self._invoke,
        }
        self.executed = 0
        self.refused = 0
        self.failed = 0

    async def execute(self, decision: Decision) -> Result:
        """Carry one decision out.

        Returns:
            `Executed`, `Refused` (nothing was changed) or `Failed`. Errors come back as values, so that the decisions
            after this one still run.
        """
        try:
            self._check(decision)
            if charged(decision):
                self._budget.spend()
            value = await self._carry_out(self._outputs.attach(decision))
        except ToolFailed as error:
            self.failed += 1
            return Failed(decision, error)
        except ConvergeError as error:
            self.refused += 1
            _logger.debug("%s refused: %s", type(decision).__name__, error)
            return Refused(decision, error)
        except Exception as error:
            self.failed += 1
            _logger.exception("%s failed", type(decision).__name__)
            return Failed(decision, error)
        self.executed += 1
        return Executed(decision, value)

    def _check(self, decision: Decision) -> None:
        self._safety.check_decision(decision)
        if isinstance(decision, ActFor):
            # what may not be done in the own name may not be done in another's either
            self._check(decision.action)
        elif isinstance(decision, SubmitTask):
            self._safety.check_submit(decision.task)
        elif isinstance(decision, ClaimTask) and self._tasks is not None:
            self._safety.check_claim(self._tasks.task(decision.pool_id, decision.task_id).spec)

    async def _carry_out(self, decision: Decision) -> Any:
        kind = type(decision)
        if kind in self._custom:
            value = self._custom[kind](decision)
            return await value if inspect.isawaitable(value) else value
        if kind in self._ways:
            return await self._ways[kind](decision)
        if kind in COORDINATION:
            return await coordinate(_needed(self._coordination, decision, "coordination"), decision)
        raise LocalError(
            f"no handler for decisions of kind {kind.__name__}",
            hint="pass custom_handlers={YourDecision: handler} to the executor",
        )

    async def _send(self, decision: SendMessage) -> None:
        await _needed(self._messages, decision, "message").send(decision.message)

    async def _create_pool(self, decision: CreatePool) -> PoolId:
        return await _needed(self._pools, decision, "pool").create(decision)

    async def _join_pool(self, decision: JoinPool) -> None:
        port = _needed(self._pools, decision, "pool")
        await port.join(decision.pool_id, decision.capabilities, decision.proof)

    async def _leave_pool(self, decision: LeavePool) -> None:
        await _needed(self._pools, decision, "pool").leave(decision.pool_id)

    async def _submit(self, decision: SubmitTask) -> TaskId:
        return await _needed(self._tasks, decision, "task").submit(decision.pool_id, decision.task)

    async def _claim(self, decision: ClaimTask) -> None:
        await _needed(self._tasks, decision, "task").claim(decision.pool_id, decision.task_id, decision.bid)

    async def _report(self, decision: ReportTask) -> None:
        port = _needed(self._tasks, decision, "task")
        outcome = Outcome.FAILED if decision.failed else Outcome.COMPLETED
        result = encode_result(decision.result, BLOB_VALUE_BYTES_MAX)
        await port.report(decision.pool_id, decision.task_id, outcome, result)

    async def _release(self, decision: ReleaseTask) -> None:
        port = _needed(self._tasks, decision, "task")
        await port.release(decision.pool_id, decision.task_id, decision.failed, decision.reason)

    async def _cancel(self, decision: CancelTask) -> None:
        await _needed(self._tasks, decision, "task").cancel(decision.pool_id, decision.task_id, decision.reason)

    async def _invoke(self, decision: InvokeTool) -> Any:
        tools = _needed(self._tools, decision, "tool")
        self._outputs.begin(decision)
        name, params = decision.tool_name, decision.params
        spec = tools.spec(name)
        if spec.network:
            self._budget.spend()
        if decision.pool_id is not None and decision.task_id is not None and spec.side_effects:
            port = _needed(self._fences, decision, "fence")
            value = await port.run_fenced(
                decision.pool_id, decision.task_id, lambda fence: tools.call(name, params, fence=fence)
            )
        else:
            value = await tools.call(name, params)
        self._outputs.note(decision, value)
        return value


def encode_result(value: Any, bytes_max: int = RESULT_BYTES_MAX) -> bytes:
    """Encode the result of a task.

    Args:
        value: the result.
        bytes_max: what fits into an operation, or what a port takes that moves the rest elsewhere.

    Raises:
        CodecError: a type that cannot be encoded.
        LimitExceeded: more than `bytes_max` bytes.
    """
    encoded = encode_value(value)
    if len(encoded) > bytes_max:
        raise LimitExceeded(
            "RESULT_BYTES_MAX",
            f"the result has {len(encoded)} bytes encoded; at most {bytes_max} are allowed",
            hint="put it as a blob, and report the reference",
        )
    return encoded


def _needed(port: _Port | None, decision: Decision, what: str) -> _Port:
    if port is None:
        raise LocalError(
            f"{type(decision).__name__} needs a {what} port, and this executor has none",
            hint=f"run the agent in a node, or give the executor a {what} port",
        )
    return port
