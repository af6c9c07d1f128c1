"""A client for programs without an event loop.

Knows: HTTP over a Unix socket or TCP. Must not know: what is asked, or libp2p.
Source: docs/decisions/0025-control-schema.md. It uses the standard library's HTTP client, so that a command is done in
a fifth of a second: larger clients import an event loop, HTTP/2 and a terminal library first.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urlsplit

from converge_p2p.client import wire
from converge_p2p.client.api import Api
from converge_p2p.client.routes import Form, Question


class Client(Api):
    """Asks a node's control interface; each question has a connection of its own. Any thread may use it."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        timeout_s: float = wire.ANSWER_TIMEOUT_S,
    ) -> None:
        """Say where the node is. Nothing is opened yet.

        Args:
            socket: path of its control socket (`converge-node config paths` prints it).
            url: instead of a socket, `http://host:port`.
            token: for a URL.
            timeout_s: how long an answer may take.

        Raises:
            LocalError: not exactly one of socket and url, or one of another form.
        """
        self.place = wire.place_of(socket, url, token)
        self._timeout_s = timeout_s

    def ask(self, question: Question) -> Any:
        """Ask, and return the data of the answer.

        Raises:
            NodeUnreachable: no node answers.
            SocketForbidden: this user may not open the socket.
            TimedOut: the node does not answer in time.
            Refused: the node answered with an error, whose code it carries.
        """
        with self._request(question, self._timeout_s + question.wait_s) as response:
            if question.to is not None and response.status == 200:
                return _download(response, question.to)
            content = _whole(response)
            if question.route.form is Form.TEXT and response.status == 200:
                return content.decode("utf-8", "replace")
            return wire.data_of(content, question.route.answer)

    def listen(self, question: Question) -> Iterator[Any]:
        """Yield what a stream says until it ends. Raises as `ask`; closing the iterator ends the stream."""
        with self._request(question, wire.SILENCE_TIMEOUT_S) as response:
            if response.status != 200:
                wire.data_of(_whole(response), question.route.answer)
            events = wire.Events()
            while line := response.readline(wire.EVENT_LINE_BYTES_MAX):
                for event in events.take(line.rstrip(b"\r\n")):
                    yield wire.data_of(event, question.route.answer)

    @contextmanager
    def _request(self, question: Question, timeout_s: float) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection(timeout_s)
        headers = dict(self.place.headers)
        body: bytes | Iterator[bytes] | None = question.body
        if question.content is not None:
            size = wire.size_of(question.content)
            body = wire.pieces_of(question.content, size)
            headers |= {"content-type": Form.BYTES.value, "content-length": str(size)}
        elif body is not None:
            headers["content-type"] = Form.ENVELOPE.value
        try:
            connection.connect()
            connection.request(question.route.method, question.target, body, headers)
            # the connection does not close an answer that ends with it
            with connection.getresponse() as response:
                yield response
        except TimeoutError as error:
            raise wire.too_slow() from error
        except (OSError, http.client.HTTPException) as error:
            opened, forbidden = connection.sock is not None, isinstance(error, PermissionError)
            raise wire.not_there(self.place, opened=opened, forbidden=forbidden) from error
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.place.socket:
            return _UnixConnection(self.place.socket, timeout_s)
        parts = urlsplit(self.place.url)
        assert parts.hostname is not None
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname, parts.port, timeout=timeout_s)


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection through a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("node")
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Open the socket. Raises OSError."""
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            opened.settimeout(wire.CONNECT_TIMEOUT_S)
            opened.connect(self._path)
            opened.settimeout(self._timeout_s)
        except OSError:
            opened.close()
            raise
        self.sock = opened


def _download(response: http.client.HTTPResponse, to: IO[bytes]) -> None:
    left = wire.announced(response.headers["content-length"])
    while piece := response.read(wire.PIECE_BYTES):
        to.write(piece)
        left -= len(piece)
    if left:
        raise wire.too_short()


def _whole(response: http.client.HTTPResponse) -> bytes:
    content = response.read(wire.ANSWER_BYTES_MAX + 1)
    if len(content) > wire.ANSWER_BYTES_MAX:
        raise wire.too_large()
    return content
