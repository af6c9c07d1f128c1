"""What can go wrong in the program itself, and how every error becomes an exit code and an HTTP status.

Knows: the stable error codes. Must not know: how an error is printed (see `cli.output`).
Source: the exit codes listed in `docs/operations.md`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from converge_p2p.core.errors import Conflict, ConvergeError


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


class NodeUnreachable(ConvergeError):
    """No node answers on the control socket."""

    code = "node_unreachable"


class NotReady(ConvergeError):
    """The node runs, but is still starting or already stopping."""

    code = "not_ready"


class AlreadyRunning(Conflict):
    """Another process holds the lock of this home."""

    code = "already_running"


class TimedOut(ConvergeError):
    """What was waited for did not happen in time."""

    code = "timeout"


class Busy(ConvergeError):
    """The control interface serves as many requests or streams as it may."""

    code = "busy"


class UsageError(ConvergeError):
    """The request or command line makes no sense as written."""

    code = "usage"


class Refused(ConvergeError):
    """The node answered with an error; its code is carried over."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


_EXIT_CODES: Final = {
    "usage": ExitCode.USAGE,
    "invalid_request": ExitCode.USAGE,
    "bad_configuration": ExitCode.BAD_CONFIGURATION,
    "node_unreachable": ExitCode.UNREACHABLE,
    "not_ready": ExitCode.UNREACHABLE,
    "not_authorised": ExitCode.NOT_AUTHORISED,
    "not_found": ExitCode.NOT_FOUND,
    "conflict": ExitCode.CONFLICT,
    "already_running": ExitCode.CONFLICT,
    "timeout": ExitCode.TIMEOUT,
    "network_error": ExitCode.NO_PEER,
    "store_error": ExitCode.STORE,
    "task_failed": ExitCode.TASK_NOT_COMPLETED,
    "task_cancelled": ExitCode.TASK_NOT_COMPLETED,
}

_HTTP_STATUSES: Final = {
    "usage": 400,
    "invalid_request": 400,
    "bad_encoding": 400,
    "not_authorised": 403,
    "not_found": 404,
    "conflict": 409,
    "limit_exceeded": 413,
    "busy": 429,
    "not_ready": 503,
    "network_error": 502,
    "timeout": 504,
}


def exit_code_of(code: str) -> ExitCode:
    """Return the exit code for a stable error code; an unknown one is a plain failure."""
    return _EXIT_CODES.get(code, ExitCode.FAILURE)


def http_status_of(code: str) -> int:
    """Return the HTTP status for a stable error code; an unknown one is the server's own failure."""
    return _HTTP_STATUSES.get(code, 500)


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
