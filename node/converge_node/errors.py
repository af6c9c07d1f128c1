"""What can go wrong in the program itself, and how every error becomes an exit code and an HTTP status.

Knows: the stable error codes. Must not know: how an error is printed (see `cli.output`).
Source: the exit codes listed in `docs/operations.md`.
"""

from __future__ import annotations

from enum import IntEnum

from converge_p2p.client.errors import NodeUnreachable as NodeUnreachable, Refused as Refused, TimedOut as TimedOut
from converge_p2p.core.errors import Conflict, ConvergeError, NotAuthorised


class ExitCode(IntEnum):
    """Exit codes of `converge-node`. They are part of its interface and keep their meaning."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    BAD_CONFIGURATION = 3
    UNREACHABLE = 4
    NOT_AUTHORISED = 5
    NOT_FOUND = 6
    CONFLICT = 7
    TIMEOUT = 8
    NO_PEER = 9
    STORE = 10
    TASK_NOT_COMPLETED = 11
    FORCED = 130


class NotReady(ConvergeError):
    """The node runs, but is still starting or already stopping."""

    code = "not_ready"


class AlreadyRunning(Conflict):
    """Another process holds the lock of this home."""

    code = "already_running"


class Busy(ConvergeError):
    """The control interface serves as many requests or streams as it may."""

    code = "busy"


class UsageError(ConvergeError):
    """The request or command line makes no sense as written."""

    code = "usage"


class NotAuthenticated(NotAuthorised):
    """The control interface was asked over TCP without a token that it knows."""

    code = "not_authenticated"


class ScopeTooSmall(NotAuthorised):
    """The token does not allow what was asked for."""

    code = "scope_too_small"


def exit_code_of(code: str) -> ExitCode:
    """Return the exit code for a stable error code; an unknown one is a plain failure."""
    from converge_node.error_catalogue import CATALOGUE

    known = CATALOGUE.get(code)
    return ExitCode.FAILURE if known is None else known.exit_code


def known_error(error: BaseException) -> ConvergeError | None:
    """Return the library's own error inside `error`, which may be wrapped in the groups that nurseries raise.

    None unless every leaf of the group is such an error: a group that also holds a defect is a defect.
    """
    if isinstance(error, ConvergeError):
        return error
    if isinstance(error, BaseExceptionGroup):
        leaves = [known_error(inner) for inner in error.exceptions]
        if all(leaf is not None for leaf in leaves):
            return leaves[0]
    return None
