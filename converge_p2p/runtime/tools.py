"""Tools: functions an agent may run, by name, under an allowlist and a time limit.

Knows: how a tool is found, run and stopped. Must not know: who asked for it, or what the result is for.
Source: the concepts page (Tool, ToolRegistry).

A tool that is async is cancelled when its time is up. A plain one runs in a thread, which cannot be stopped: it is
abandoned, counted, and its place is not given to another before it ends.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, ConvergeError, LimitExceeded, LocalError, NotAuthorised, NotFound
from converge_p2p.runtime.threads import BoundedThreads

TIMEOUT_S = 30.0
"""How long a tool may run if nothing else was said, seconds."""


class ToolFailed(ConvergeError):
    """The tool raised; the cause is chained."""

    code = "tool_failed"


class ToolTimeout(ToolFailed):
    """The tool did not finish in its time."""

    code = "tool_timeout"


class Tool(Protocol):
    """What can be registered: a name, and `run`, which may be a plain or an async method."""

    @property
    def name(self) -> str:
        """The name agents call it by."""

    def run(self, params: Mapping[str, Any]) -> Any:
        """Do the work and return a value, or an awaitable of it."""


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
        self._tools: dict[str, tuple[Tool, float]] = {}
        self._threads = BoundedThreads(threads_max)
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

    def register(self, tool: Tool, *, timeout_s: float | None = None) -> None:
        """Add a tool under its name.

        Args:
            tool: see `Tool`.
            timeout_s: its own time limit, seconds.

        Raises:
            Conflict: the name is taken.
            LimitExceeded: more than `limits.TOOLS_MAX` tools.
            LocalError: no name, or a time limit that is not positive.
        """
        name = tool.name
        if not isinstance(name, str) or not name:
            raise LocalError(f"tool name is {name!r}; expected a text that is not empty")
        if name in self._tools:
            raise Conflict(f"a tool named {name!r} is registered already")
        if len(self._tools) >= limits.TOOLS_MAX:
            raise LimitExceeded("TOOLS_MAX", f"{limits.TOOLS_MAX} tools are registered; no more are taken")
        self._tools[name] = (tool, self._timeout_s if timeout_s is None else _checked_timeout(timeout_s))

    async def call(self, name: str, params: Mapping[str, Any]) -> Any:
        """Run a tool and return its result.

        Raises:
            NotAuthorised: the allowlist does not name it.
            NotFound: no such tool.
            ToolTimeout: it did not finish in time, or every thread is held by tools that do not end.
            ToolFailed: it raised.

        Cancellation: an async tool is cancelled, a plain one abandoned.
        """
        # the allowlist comes first, so that a refusal does not tell which tools exist
        if self._allowed is not None and name not in self._allowed:
            raise NotAuthorised(f"tool {name!r} is not on the allowlist", hint="add its name to the allowlist")
        if name not in self._tools:
            raise NotFound(f"no tool is named {name!r}; there are {', '.join(self.names()) or 'none'}")
        tool, timeout_s = self._tools[name]
        self.calls += 1
        busy = False
        try:
            with trio.fail_after(timeout_s):
                if inspect.iscoroutinefunction(tool.run):
                    return await tool.run(params)
                busy = self._threads.free <= 0
                result = await self._threads.run(tool.run, params)
                busy = False
                return await result if inspect.isawaitable(result) else result
        except trio.TooSlowError as error:
            self.timeouts += 1
            held = f" ({self.abandoned} threads are held by tools that did not end)" if busy else ""
            raise ToolTimeout(f"tool {name!r} did not finish within {timeout_s:g} s{held}") from error
        except Exception as error:
            # a tool is foreign code: whatever it raises is its failure, and not the executor's
            self.failures += 1
            raise ToolFailed(f"tool {name!r} raised {type(error).__name__}: {error}") from error


def _checked_timeout(timeout_s: float) -> float:
    if not isinstance(timeout_s, int | float) or not math.isfinite(timeout_s) or timeout_s <= 0:
        raise LocalError(f"timeout_s is {timeout_s!r}; expected a finite number above 0")
    return float(timeout_s)
