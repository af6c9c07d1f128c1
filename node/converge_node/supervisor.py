"""Tell the service manager that started the node how far it is.

Knows: the datagrams of `sd_notify`. Must not know: what a node does.
Source: systemd, sd_notify(3): one datagram of lines to the Unix socket that `NOTIFY_SOCKET` names; `@` begins a name in
the abstract namespace.
"""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger(__name__)

VARIABLE = "NOTIFY_SOCKET"
READY = "READY=1"
STOPPING = "STOPPING=1"


def tell_supervisor(*lines: str) -> None:
    """Send some lines, if there is somebody to tell. A supervisor that does not listen costs a line in the log."""
    place = os.environ.get(VARIABLE, "")
    if not place:
        return
    address = "\0" + place[1:] if place.startswith("@") else place
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            # a full queue must not stop the event loop
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        _log.warning("the service manager was not told", extra={"socket": place, "error": str(error)})
