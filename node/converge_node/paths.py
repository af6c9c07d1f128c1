"""Where a node keeps its files, and the lock that makes it the only one there.

Knows: the XDG base directories, `--home`, file modes. Must not know: what is inside the files.
Source: XDG Base Directory Specification 0.8; unix(7) for the length of a socket path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from converge_node.errors import AlreadyRunning
from converge_p2p.core.errors import ConfigError, StoreError

HOME_VARIABLE: Final = "CONVERGE_NODE_HOME"
SOCKET_PATH_BYTES_MAX: Final = 100
"""Linux allows 107 bytes, other systems 103; the rest is reserve."""

_NAME: Final = "converge-node"
_Default = TypeVar("_Default", Path, None)


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The places of one node.

    Attributes:
        config_file: TOML file with the settings.
        state_dir: key, database, known peers, lock.
        socket: Unix socket of the control interface.
    """

    config_file: Path
    state_dir: Path
    socket: Path

    @property
    def key_file(self) -> Path:
        """The key file, unless the settings name another."""
        return self.state_dir / "node.key"

    def chosen_key(self, chosen: str) -> Path:
        """Return the key file: that of the settings, or the usual one."""
        return Path(chosen).expanduser() if chosen else self.key_file

    @property
    def token_file(self) -> Path:
        """The file of the tokens for the control interface over TCP, unless the settings name another."""
        return self.state_dir / "api-tokens"

    @property
    def lock_file(self) -> Path:
        """The file whose lock says that a node runs here."""
        return self.state_dir / "node.lock"

    def create(self) -> None:
        """Make the folders that are missing, with mode 0700.

        Raises:
            ConfigError: a folder cannot be made, or stands where others may replace the socket.
        """
        for folder in (self.state_dir, self.config_file.parent, self.socket.parent):
            try:
                _make_private(folder)
            except OSError as error:
                raise ConfigError(
                    f"cannot make the folder {folder}: {error.strerror}",
                    hint="choose a folder that you may write to with --home DIR",
                ) from error
        held = os.stat(self.socket.parent)
        if held.st_uid != os.getuid() or (held.st_mode & 0o022 and not held.st_mode & stat.S_ISVTX):
            raise ConfigError(
                f"the folder {self.socket.parent} of the control socket can be written by others",
                hint=f"chmod 700 {self.socket.parent}, or choose another with --home DIR",
            )


def resolve_paths(home: str | Path | None = None, environment: Mapping[str, str] | None = None) -> NodePaths:
    """Find the places of a node without touching the disk.

    Args:
        home: one folder for everything; overrides `CONVERGE_NODE_HOME`, which overrides the XDG folders.
        environment: variables to read; None is those of the process.
    """
    variables = os.environ if environment is None else environment
    chosen = home if home is not None else variables.get(HOME_VARIABLE) or None
    if chosen is not None:
        base = Path(os.path.abspath(os.path.expanduser(chosen)))
        return NodePaths(base / "config.toml", base, _short_socket(base / "control.sock"))
    user = Path(variables.get("HOME") or os.path.expanduser("~"))
    config = _xdg(variables, "XDG_CONFIG_HOME", user / ".config") / _NAME
    state = _xdg(variables, "XDG_STATE_HOME", user / ".local" / "state") / _NAME
    runtime = _xdg(variables, "XDG_RUNTIME_DIR", None)
    socket = state / "run" / "control.sock" if runtime is None else runtime / _NAME / "control.sock"
    return NodePaths(config / "config.toml", state, _short_socket(socket))


def checked_socket(path: str | Path) -> Path:
    """Return an explicitly chosen socket path.

    Raises:
        ConfigError: too long for the operating system.
    """
    chosen = Path(os.path.abspath(os.path.expanduser(path)))
    if len(os.fsencode(chosen)) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"the socket path {chosen} is longer than {SOCKET_PATH_BYTES_MAX} bytes",
            hint="choose a shorter one for api.socket",
        )
    return chosen


def token_file_of(chosen: str, paths: NodePaths) -> Path:
    """Return the token file: that of the settings, or the usual one."""
    return Path(chosen).expanduser() if chosen else paths.token_file


@contextmanager
def single_instance(lock_file: Path) -> Iterator[None]:
    """Hold the lock of a home while the block runs. The kernel frees it however the process ends.

    Raises:
        AlreadyRunning: another process holds it.
        StoreError: the lock file cannot be opened.
    """
    try:
        handle = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot open the lock file {lock_file}: {error.strerror}",
            hint="check the owner of the folder, its room, and that the disk is not mounted read-only",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(handle, 32).decode("ascii", "replace").strip()
            raise AlreadyRunning(
                f"a node already runs in {lock_file.parent}" + (f" (process {owner})" if owner else ""),
                hint="use that one, stop it with `converge-node shutdown`, or give this one another --home DIR",
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _xdg(variables: Mapping[str, str], name: str, default: _Default) -> Path | _Default:
    value = variables.get(name, "")
    # the specification says that a relative path is invalid and must be ignored
    return Path(value) if os.path.isabs(value) else default


def _make_private(folder: Path) -> None:
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(mode=0o700, exist_ok=True)


def _short_socket(wanted: Path) -> Path:
    if len(os.fsencode(wanted)) <= SOCKET_PATH_BYTES_MAX:
        return wanted
    # server and client derive the same short name from the long one, in a folder that is only the user's
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}" / f"{digest}.sock"
