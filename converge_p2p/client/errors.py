"""What can go wrong between a program and a node's control interface.

Knows: the stable error codes of a client. Must not know: the answers.
Source: docs/control.md, errors.
"""

from __future__ import annotations

from converge_p2p.core.errors import ConvergeError, NotAuthorised


class NodeUnreachable(ConvergeError):
    """No node answers at the control interface."""

    code = "node_unreachable"


class TimedOut(ConvergeError):
    """What was waited for did not happen in time."""

    code = "timeout"


class SocketForbidden(NotAuthorised):
    """The control socket is there, and this user may not open it."""

    code = "socket_forbidden"


class Refused(ConvergeError):
    """The node answered with an error; its code is carried over."""

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
