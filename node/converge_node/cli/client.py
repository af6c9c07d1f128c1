"""Talks to a running node over its control socket.

Knows: the schema, HTTP and server-sent events. Must not know: libp2p, trio, or how an answer is shown.
Source: docs/control.md. It uses the standard library's HTTP client, so that a command is done in
a fifth of a second; larger clients import an event loop, HTTP/2 and a terminal library first, which takes three times
as long.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from converge_node.cli.tree import Invocation
from converge_node.errors import NodeUnreachable, Refused, TimedOut
from converge_node.schema import VERSION

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
SILENCE_TIMEOUT_S: Final = 35.0
"""A stream that says nothing for this long is dead: the node sends a sign of life every ten seconds."""
TRANSFER_TIMEOUT_S: Final = 600.0
"""Contents are fetched from other nodes before the first byte comes."""
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
EVENT_LINE_BYTES_MAX: Final = 1024 * 1024
_PIECE_BYTES: Final = 256 * 1024

_T = TypeVar("_T")


class ControlClient:
    """Asks a node's control interface; each question has a connection of its own."""

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def get(self, kind: type[_T], *path: str, query: Mapping[str, Any] | None = None, wait_s: float = 0.0) -> _T:
        """Ask for something, which the node may take `wait_s` to find.

        Raises:
            NodeUnreachable: no node answers.
            TimedOut: the node does not answer in time.
            Refused: the node answered with an error.
        """
        with self._request("GET", path, query=query, timeout_s=ANSWER_TIMEOUT_S + wait_s) as response:
            return _data(_whole(response), kind)

    def text(self, *path: str) -> str:
        """Ask for something that is answered in plain text. Raises as `get`."""
        with self._request("GET", path) as response:
            content = _whole(response)
            if response.status != 200:
                _data(content, object)
            return content.decode("utf-8", "replace")

    def post(self, kind: type[_T], *path: str, body: msgspec.Struct | None = None, wait_s: float = 0.0) -> _T:
        """Ask for a change, which the node may take `wait_s` to make. Raises as `get`."""
        content = b"{}" if body is None else msgspec.json.encode(body)
        with self._request("POST", path, body=content, timeout_s=ANSWER_TIMEOUT_S + wait_s) as response:
            return _data(_whole(response), kind)

    def stream(self, kind: type[_T], *path: str, query: Mapping[str, Any] | None = None) -> Iterator[_T]:
        """Yield what a stream says until it ends. Raises as `get`."""
        with self._request("GET", path, query=query, timeout_s=SILENCE_TIMEOUT_S) as response:
            if response.status != 200:
                _data(_whole(response), kind)
            for event in _events(response):
                yield _data(event, kind)

    def upload(self, kind: type[_T], *path: str, content: IO[bytes], size: int, query: Mapping[str, Any]) -> _T:
        """Send the content of a file that is `size` bytes long. Raises as `get`."""
        with self._request(
            "POST", path, query=query, body=content, size=size, timeout_s=TRANSFER_TIMEOUT_S
        ) as response:
            return _data(_whole(response), kind)

    def download(self, *path: str, query: Mapping[str, Any], to: IO[bytes]) -> None:
        """Write a content to a file. Raises as `get`, and `NodeUnreachable` if it ends too early."""
        with self._request("GET", path, query=query, timeout_s=TRANSFER_TIMEOUT_S) as response:
            if response.status != 200:
                _data(_whole(response), object)
            left = int(response.headers["content-length"])
            while piece := response.read(_PIECE_BYTES):
                to.write(piece)
                left -= len(piece)
            if left:
                raise NodeUnreachable("the content ended too early", hint="the log of the node may say why")

    @contextmanager
    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | IO[bytes] | None = None,
        size: int | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self._path, timeout_s)
        headers = {} if body is None else {"content-type": "application/json"}
        if size is not None:
            headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        url = "/" + "/".join(quote(part, safe="") for part in path)
        try:
            connection.connect()
            connection.request(method, url + (f"?{urlencode(query)}" if query else ""), body, headers)
            yield connection.getresponse()
        except TimeoutError as error:
            raise TimedOut("the node did not answer in time", hint="see `converge-node health` and its log") from error
        except (OSError, http.client.HTTPException) as error:
            if connection.opened:
                raise NodeUnreachable("the node ended the connection", hint="its log may say why") from error
            raise NodeUnreachable(
                f"no node answers on {self._path}",
                hint="start one with `converge-node`, or name its folder with --home DIR",
            ) from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection through a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("node")
        self._path = path
        self._timeout_s = timeout_s
        self.opened = False

    def connect(self) -> None:
        """Open the socket. Raises OSError."""
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            opened.settimeout(CONNECT_TIMEOUT_S)
            opened.connect(str(self._path))
            opened.settimeout(self._timeout_s)
        except OSError:
            opened.close()
            raise
        self.sock = opened
        self.opened = True


def connect(invocation: Invocation) -> ControlClient:
    """Return a client for the node that the command line means. Nothing is opened yet.

    Raises:
        ConfigError: the settings are wrong, which also say where the socket is.
    """
    from converge_node.config import load_settings
    from converge_node.paths import checked_socket

    paths = invocation.paths()
    chosen = load_settings(paths.config_file).config.api.socket
    return ControlClient(checked_socket(chosen) if chosen else paths.socket)


def _whole(response: http.client.HTTPResponse) -> bytes:
    content = response.read(ANSWER_BYTES_MAX + 1)
    if len(content) > ANSWER_BYTES_MAX:
        raise NodeUnreachable(f"the answer has more than {ANSWER_BYTES_MAX} bytes", hint="ask for less, with --limit")
    return content


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    data: list[bytes] = []
    while line := response.readline(EVENT_LINE_BYTES_MAX):
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []


def _data(content: bytes, kind: type[_T]) -> _T:
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
            f"what answers on the control socket does not speak this protocol: {problem}",
            hint="is the node of another version?",
        ) from problem
    raise refused
