"""Tools: functions an agent may run, by name, under an allowlist, a schema and a time limit.

Knows: how a tool is found, run and stopped. Must not know: who asked for it, or what the result is for.
Source: the concepts page (Tool, ToolRegistry); `docs/tools.md`.

A tool in a process of its own (`tool_process.ProcessTool`) is ended with its process when its time is up, and an async
one is cancelled. A plain one runs in a thread, which cannot be stopped: it is abandoned, counted, and its place is not
given to another before it ends. So a plain tool is one that its author trusts to end.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import ClaimLost, Conflict, LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.runtime.fencing import Fence
from converge_p2p.runtime.threads import BoundedThreads
from converge_p2p.runtime.tool_errors import (
    BadArguments as BadArguments,
    ToolFailed as ToolFailed,
    ToolIsolation as ToolIsolation,
    ToolTimeout as ToolTimeout,
)
from converge_p2p.runtime.tool_schema import Parameters, checked_params

TIMEOUT_S = 30.0
"""How long a tool may run if nothing else was said, seconds."""


class Tool(Protocol):
    """What can be registered: a name, and `run`, which may be a plain or an async method.

    It may have more attributes: `description`, text; `parameters`, the JSON schema of its arguments; `network`, true if
    each call counts against the budget of requests; and `side_effects`, see `EffectTool`.
    """

    @property
    def name(self) -> str:
        """The name agents call it by."""

    def run(self, params: Mapping[str, Any]) -> Any:
        """Do the work and return a value, or an awaitable of it."""


class EffectTool(Protocol):
    """A tool that changes something outside: `side_effects` is true, and it is given the fence of the task."""

    @property
    def name(self) -> str:
        """The name agents call it by."""

    @property
    def side_effects(self) -> bool:
        """True: it runs only for a task whose claim is certified."""

    def run(self, params: Mapping[str, Any], fence: Fence) -> Any:
        """Do the work, and hand `fence` to whatever stores its effect."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What is known of a registered tool.

    Attributes:
        name, description: for a model, or a person.
        parameters: JSON schema of its arguments; None takes any map.
        side_effects: it runs only for a task whose claim is certified.
        network: each call counts as a request to the network.
        timeout_s: its time limit.
    """

    name: str
    description: str
    parameters: Mapping[str, Any] | None
    side_effects: bool
    network: bool
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Registered:
    tool: Any
    spec: ToolSpec
    parameters: Parameters | None


class FunctionTool:
    """A function as a tool. An async one is cancelled when its time is up; a plain one has to end by itself."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str = "",
        description: str = "",
        parameters: Mapping[str, Any] | None = None,
        side_effects: bool = False,
        network: bool = False,
    ) -> None:
        """Wrap a function.

        Args:
            function: `(params)`, or `(params, fence)` with side effects; plain or async.
            name: None takes the function's.
            description: None takes the first line of its docstring.
            parameters, side_effects, network: see `Tool`.
        """
        self.name = name or function.__name__
        self.description = description or (inspect.getdoc(function) or "").partition("\n")[0]
        self.parameters = parameters
        self.side_effects = side_effects
        self.network = network
        self.run = function


class ToolRegistry:
    """The tools of a runtime.

    Attributes:
        calls, failures, timeouts: counts since the start.
    """

    def __init__(
        self,
        *,
        allowlist: Collection[str] | None = None,
        timeout_s: float = TIMEOUT_S,
        threads_max: int = limits.TOOL_THREADS_MAX,
    ) -> None:
        """Make an empty registry.

        Args:
            allowlist: names that may be called. None: every registered tool. Empty: none at all.
            timeout_s: time limit of tools that are registered without one, seconds.
            threads_max: how many plain tools run at once, 1 to `limits.TOOL_THREADS_MAX`.

        Raises:
            LocalError: an argument out of its range.
        """
        if not 1 <= threads_max <= limits.TOOL_THREADS_MAX:
            raise LocalError(f"threads_max is {threads_max}; expected 1 to {limits.TOOL_THREADS_MAX}")
        if isinstance(allowlist, str):
            # a bare text is a collection of letters, and would allow tools that are named by one
            raise LocalError("allowlist is one text; expected a collection of names")
        self._allowed = None if allowlist is None else frozenset(allowlist)
        self._timeout_s = _checked_timeout(timeout_s)
        self._tools: dict[str, _Registered] = {}
        self._threads = BoundedThreads(threads_max)
        self._processes = trio.CapacityLimiter(limits.TOOL_PROCESSES_MAX)
        self.calls = 0
        self.failures = 0
        self.timeouts = 0

    @property
    def abandoned(self) -> int:
        """Threads of timed-out tools that still run."""
        return self._threads.abandoned

    def names(self) -> tuple[str, ...]:
        """Return the names that can be called, sorted."""
        return tuple(sorted(name for name in self._tools if self._allowed is None or name in self._allowed))

    def specs(self) -> tuple[ToolSpec, ...]:
        """Return what is known of the tools that can be called, sorted by name."""
        return tuple(self._tools[name].spec for name in self.names())

    def spec(self, name: str) -> ToolSpec:
        """Return what is known of a tool.

        Raises:
            NotAuthorised: the allowlist does not name it.
            NotFound: no such tool.
        """
        return self._find(name).spec

    def register(self, tool: Tool | EffectTool, *, timeout_s: float | None = None) -> None:
        """Add a tool under its name.

        Args:
            tool: see `Tool`.
            timeout_s: its own time limit, seconds.

        Raises:
            Conflict: the name is taken.
            LimitExceeded: more than `limits.TOOLS_MAX` tools.
            LocalError: no name, no JSON schema, or a time limit that is not positive.
        """
        name = tool.name
        if not isinstance(name, str) or not 1 <= len(name.encode()) <= limits.NAME_BYTES_MAX:
            raise LocalError(f"tool name is {name!r}; expected a text of 1 to {limits.NAME_BYTES_MAX} bytes")
        if name in self._tools:
            raise Conflict(f"a tool named {name!r} is registered already")
        if len(self._tools) >= limits.TOOLS_MAX:
            raise LimitExceeded("TOOLS_MAX", f"{limits.TOOLS_MAX} tools are registered; no more are taken")
        schema = getattr(tool, "parameters", None)
        spec = ToolSpec(
            name,
            str(getattr(tool, "description", "")),
            schema,
            bool(getattr(tool, "side_effects", False)),
            bool(getattr(tool, "network", False)),
            self._timeout_s if timeout_s is None else _checked_timeout(timeout_s),
        )
        self._tools[name] = _Registered(tool, spec, None if schema is None else Parameters(schema))

    def unregister(self, name: str) -> None:
        """Take a tool away; calls that run go on. Raises `NotFound` if there is none of that name."""
        if self._tools.pop(name, None) is None:
            raise NotFound(f"no tool is named {name!r}")

    async def call(self, name: str, params: Mapping[str, Any], *, fence: Fence | None = None) -> Any:
        """Run a tool and return its result. There is no other way to run one.

        Args:
            name: of the tool.
            params: its arguments, checked against its schema.
            fence: of the task it is run for; a tool with side effects is not run without.

        Raises:
            NotAuthorised: the allowlist does not name it.
            NotFound: no such tool.
            BadArguments, LimitExceeded: the arguments do not fit.
            ClaimLost: it has side effects, and no task is held for which it may have them.
            ToolIsolation: it is untrusted, and this system cannot lock it in.
            ToolTimeout: it did not finish in time, or every place is held by tools that do not end.
            ToolFailed: it raised, or was ended by a limit.

        Cancellation: an async tool is cancelled, the process of a tool killed, a plain one abandoned.
        """
        found = self._find(name)
        if found.spec.side_effects and fence is None:
            raise ClaimLost(
                f"tool {name!r} has effects outside, and runs only for a task that is held",
                hint="name the task: InvokeTool(..., pool_id=…, task_id=…), or call it with the fence of the context",
            )
        given = checked_params(params, found.parameters)
        timeout_s = found.spec.timeout_s
        self.calls += 1
        busy = [""]
        try:
            with trio.fail_after(timeout_s) as scope:
                return await self._run(found, (given, fence) if found.spec.side_effects else (given,), busy)
        except trio.TooSlowError as error:
            if not scope.cancelled_caught:
                # a time limit of the tool's own
                raise self._failed(name, error) from error
            self.timeouts += 1
            raise ToolTimeout(f"tool {name!r} did not finish within {timeout_s:g} s{busy[0]}") from error
        except (ToolFailed, ToolIsolation):
            self.failures += 1
            raise
        except Exception as error:
            # a tool is foreign code: whatever it raises is its failure, and not the executor's
            raise self._failed(name, error) from error

    def _find(self, name: str) -> _Registered:
        # the allowlist comes first, so that a refusal does not tell which tools exist
        if self._allowed is not None and name not in self._allowed:
            raise NotAuthorised(f"tool {name!r} is not on the allowlist", hint="add its name to the allowlist")
        if name not in self._tools:
            raise NotFound(f"no tool is named {name!r}; there are {', '.join(self.names()) or 'none'}")
        return self._tools[name]

    async def _run(self, found: _Registered, arguments: tuple[Any, ...], busy: list[str]) -> Any:
        function = found.tool.run
        if getattr(found.tool, "isolated", False):
            busy[0] = f" ({limits.TOOL_PROCESSES_MAX} processes of tools run already)"
            async with self._processes:
                busy[0] = ""
                return await function(*arguments)
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        if self._threads.free <= 0:
            busy[0] = f" ({self.abandoned} threads are held by tools that did not end)"
        result = await self._threads.run(function, *arguments)
        busy[0] = ""
        return await result if inspect.isawaitable(result) else result

    def _failed(self, name: str, error: Exception) -> ToolFailed:
        self.failures += 1
        return ToolFailed(f"tool {name!r} raised {type(error).__name__}: {error}")


def _checked_timeout(timeout_s: float) -> float:
    if not isinstance(timeout_s, int | float) or not math.isfinite(timeout_s) or timeout_s <= 0:
        raise LocalError(f"timeout_s is {timeout_s!r}; expected a finite number above 0")
    return float(timeout_s)
