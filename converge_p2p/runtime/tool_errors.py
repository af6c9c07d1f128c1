"""How a call of a tool can fail.

Knows: nothing but the error tree. Must not know: tools.
Source: `docs/tools.md`.
"""

from __future__ import annotations

from converge_p2p.core.errors import ConvergeError, LocalError


class ToolFailed(ConvergeError):
    """The tool raised, or was ended; the cause is chained if there is one."""

    code = "tool_failed"


class ToolTimeout(ToolFailed):
    """The tool did not finish in its time."""

    code = "tool_timeout"


class ToolIsolation(LocalError):
    """This system lacks what an untrusted tool is locked in with, so it was not run."""

    code = "tool_isolation"


class BadArguments(LocalError):
    """The arguments do not fit the tool's JSON schema; the tool was not run."""

    code = "bad_arguments"
