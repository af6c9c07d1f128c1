"""What both clients share: bounds, envelopes, events, and where a node is.

Knows: the envelope and server-sent events. Must not know: sockets or event loops.
Source: docs/control.md; WHATWG HTML, server-sent events.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

import msgspec

from converge_p2p.client.errors import NodeUnreachable, Refused, SocketForbidden, TimedOut
from converge_p2p.client.schema import VERSION
from converge_p2p.core.errors import ConvergeError, LocalError

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
SILENCE_TIMEOUT_S: Final = 35.0
"""A stream that says nothing for this long is dead: the node sends a sign of life every ten seconds."""
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
EVENT_LINE_BYTES_MAX: Final = 1024 * 1024
PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where the control interface of a node is: a Unix socket, or an address with a token.

    Attributes:
        socket: path, or empty.
        url: `http://host:port` or `https://…`, or empty.
        token: what `converge-node api token new` printed, or empty.
    """

    socket: str = ""
    url: str = ""
    token: str = ""

    def __str__(self) -> str:
        return self.url or self.socket

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


def place_of(socket: str | os.PathLike[str] | None, url: str | None, token: str | None) -> Place:
    """Return where a client was told to look.

    Raises:
        LocalError: not exactly one of socket and url, or a URL or token of another form.
    """
    if (socket is None) == (url is None):
        raise LocalError("give the path of a control socket, or the URL of a node", hint="not both, and not neither")
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise LocalError("the token is of another form", hint="pass what `converge-node api token new` printed")
    if url is None:
        return Place(socket=str(Path(os.fspath(socket or ""))), token=token or "")
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        fits = fits and parts.path in ("", "/") and not parts.query and not parts.username
    except ValueError:
        fits = False
    if not fits:
        raise LocalError(f"{url!r} is not the URL of a node", hint="write for example http://127.0.0.1:4080")
    return Place(url=url.rstrip("/"), token=token or "")


def data_of(content: bytes, kind: Any) -> Any:
    """Return what an envelope holds.

    Raises:
        Refused: it holds an error.
        NodeUnreachable: it is no envelope of this protocol.
    """
    try:
        envelope = msgspec.json.decode(content)
        if envelope["v"] != VERSION:
            raise TypeError(f"version {envelope['v']!r}, expected {VERSION}")
        if envelope["ok"]:
            return msgspec.convert(envelope["data"], kind)
        error = envelope["error"]
        refused = Refused(error["code"], error["message"], hint=error.get("hint", ""))
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError) as problem:
        raise NodeUnreachable(
            f"what answers at the control interface does not speak this protocol: {problem}",
            hint="is the node of another version?",
        ) from problem
    raise refused


class Events:
    """Takes lines apart into the data of events."""

    def __init__(self) -> None:
        self._data: list[bytes] = []

    def take(self, line: bytes) -> Iterator[bytes]:
        """Take a line without its end; yield what it completes."""
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            yield b"\n".join(self._data)
            self._data = []


def size_of(content: IO[bytes]) -> int:
    """Return how many bytes are left in an open file. Raises OSError if it cannot be moved in."""
    here = content.tell()
    size = content.seek(0, os.SEEK_END) - here
    content.seek(here)
    return size


def pieces_of(content: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield exactly so many bytes of an open file, as many as the node was told; more would be taken for a question.

    Raises:
        LocalError: there are fewer.
    """
    while size:
        piece = content.read(min(size, PIECE_BYTES))
        if not piece:
            raise LocalError("the file became shorter while it was sent", hint="try again when it is finished")
        size -= len(piece)
        yield piece


def announced(length: str | None) -> int:
    """Return how long a content is, as its header says. Raises `NodeUnreachable` if it does not say so."""
    if length is None or not (length.isascii() and length.isdigit()):
        raise NodeUnreachable("the answer does not say how long it is", hint="is that a node?")
    return int(length)


def too_short() -> ConvergeError:
    """Return the error for a content that ended before its end."""
    return NodeUnreachable("the content ended too early", hint="the log of the node may say why")


def too_large() -> ConvergeError:
    """Return the error for an answer over the bound."""
    return NodeUnreachable(f"the answer has more than {ANSWER_BYTES_MAX} bytes", hint="ask for less, with --limit")


def too_slow() -> ConvergeError:
    """Return the error for a node that did not answer in time."""
    return TimedOut("the node did not answer in time", hint="see `converge-node health` and its log")


def not_there(place: Place, *, opened: bool, forbidden: bool = False) -> ConvergeError:
    """Return the error for a connection that failed.

    Args:
        opened: it had been open before.
        forbidden: the operating system did not let this user open it.
    """
    if forbidden:
        return SocketForbidden(
            f"this user may not open the control socket {place}", hint="run as the user of the node, or use a token"
        )
    if opened:
        return NodeUnreachable("the node ended the connection", hint="its log may say why")
    what = "" if place.url else " with `converge-node`, or name its folder with --home DIR"
    return NodeUnreachable(f"no node answers on {place}", hint=f"start one{what}")
