"""Serves the control application on a Unix socket, and over TCP.

Knows: hypercorn and the socket file. Must not know: the endpoints.
Source: hypercorn's trio worker. The socket has mode 0600 from the moment it exists: who may open it is its owner.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio import run as hypercorn_run, serve
from hypercorn.trio.tcp_server import TCPServer
from starlette.types import ASGIApp

from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError

CLOSE_GRACE_S: Final = 1.0
IDLE_S: Final = 30.0
SEND_BYTES: Final = 64 * 1024

_log = logging.getLogger("converge_node.control")


class _ContainedServer(TCPServer):
    """Serves one connection. Its failure ends the connection; stock it ends the server, and with it the node.

    A client that dies in the middle of a request is enough for that. The number of connections is bounded here too,
    because a request is only counted once its headers are there.
    """

    _open = 0
    _open_tcp = 0
    _client_gone = False

    async def run(self) -> None:
        """Serve until the connection ends."""
        if self.stream.socket.family != socket.AF_UNIX:
            await self._run_tcp()
            return
        if _ContainedServer._open >= limits.CONTROL_CONNECTIONS_MAX:
            await trio.aclose_forcefully(self.stream)
            return
        _ContainedServer._open += 1
        try:
            await self._contained()
        finally:
            _ContainedServer._open -= 1

    async def _run_tcp(self) -> None:
        if _ContainedServer._open_tcp >= limits.CONTROL_TCP_CONNECTIONS_MAX:
            await trio.aclose_forcefully(self.stream)
            return
        _ContainedServer._open_tcp += 1
        try:
            await self._contained()
        finally:
            _ContainedServer._open_tcp -= 1

    async def _contained(self) -> None:
        try:
            await super().run()
        except Exception as error:  # noqa: BLE001 - the edge: whatever a client provokes ends with its connection
            _log.info("a control connection failed: %r", error)

    async def _read_data(self) -> None:
        """Read until the client is gone. Stock, its connection then often waits for the next request until it is idle
        for too long, so that every command holds a descriptor for half a minute.
        """
        await super()._read_data()
        self._client_gone = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Send, but begin to wait for the next request only while somebody could send one."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif not (self._client_gone and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        """Send bytes. Stock, a client that reads nothing holds its connection, and what it asked for, for ever."""
        async with self.send_lock:
            try:
                for at in range(0, len(data), SEND_BYTES):
                    # shielded, as it is stock: half of a frame must not be sent
                    with trio.fail_after(limits.CONTROL_SEND_STALL_S, shield=True):
                        await self.stream.send_all(data[at : at + SEND_BYTES])
            except trio.TooSlowError:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())


@asynccontextmanager
async def open_control_server(app: ASGIApp, path: Path) -> AsyncIterator[None]:
    """Answer on the socket while the block runs. The caller holds the home's lock, so a socket found is a dead one.

    Raises:
        ConfigError: the socket cannot be made.
    """
    hint = "choose another with --home DIR or [api] socket"
    async with serving(app, [f"unix:{path}"], f"the control socket {path}", hint):
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


@asynccontextmanager
async def open_tcp_server(app: ASGIApp, listen: Sequence[str]) -> AsyncIterator[list[str]]:
    """Answer on addresses of the form `host:port` while the block runs; yields where it really listens, as URLs.

    Args:
        app: it has to ask for tokens.

    Raises:
        ConfigError: an address cannot be listened on.
    """
    if not listen:
        yield []
        return
    hint = "choose another with [api] listen"
    async with serving(app, list(listen), f"the control addresses {', '.join(listen)}", hint) as places:
        yield places


@asynccontextmanager
async def serving(app: ASGIApp, binds: list[str], what: str, hint: str) -> AsyncIterator[list[str]]:
    """Serve on Unix sockets or addresses while the block runs; yields where it really listens.

    Args:
        what, hint: for the error.

    Raises:
        ConfigError: it cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        try:
            opened = [stack.enter_context(_listening(bind)) for bind in binds]
        except OSError as error:
            raise ConfigError(f"cannot listen on {what}: {error.strerror}", hint=hint) from error
        config = _OnSockets(opened)
        config.accesslog = None
        config.errorlog = logging.getLogger("hypercorn.error")
        config.loglevel = "WARNING"
        config.graceful_timeout = CLOSE_GRACE_S
        config.keep_alive_timeout = IDLE_S
        config.include_server_header = False
        hypercorn_run.TCPServer = _ContainedServer  # type: ignore[attr-defined]
        closing = trio.Event()
        nursery = await stack.enter_async_context(trio.open_nursery())
        places: list[str] = await nursery.start(
            partial(serve, app, config, shutdown_trigger=closing.wait, mode="asgi")  # type: ignore[arg-type]
        )
        try:
            yield places
        finally:
            closing.set()


class _OnSockets(Config):
    """Serves on sockets that are open. Stock, one that cannot be bound stays open, and so do those before it."""

    def __init__(self, opened: list[socket.socket]) -> None:
        self._opened = opened

    def create_sockets(self) -> Sockets:
        """Return the sockets."""
        return Sockets([], self._opened, [])


def _listening(bind: str) -> socket.socket:
    """Return a socket that listens on `unix:PATH`, `HOST:PORT` or `[HOST]:PORT`. Raises OSError: it cannot."""
    path = Path(bind.removeprefix("unix:")) if bind.startswith("unix:") else None
    host, _, port = bind.rpartition(":")
    family = socket.AF_UNIX if path else socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family)
    try:
        opened.setblocking(False)
        if path:
            if path.is_socket():
                path.unlink()
            before = os.umask(0o177)
            try:
                opened.bind(str(path))
            finally:
                os.umask(before)
        else:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.bind((host.strip("[]"), int(port)))
        opened.listen(Config.backlog)
    except BaseException:
        opened.close()
        raise
    return opened
