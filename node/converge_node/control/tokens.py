"""Who may do what at the control interface over TCP: tokens, of which the node keeps only hashes.

Knows: the token file, and constant-time comparison. Must not know: HTTP, or what the requests do.
Source: docs/control.md, tokens; RFC 6750 for how a token is sent.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converge_p2p.client.routes import Scope
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, Conflict, LimitExceeded, NotFound

TOKEN_BYTES: Final = 32
NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the file holds it: `name scope sha256`, one a line."""

    name: str
    scope: Scope
    digest: bytes

    def line(self) -> str:
        """Return its line."""
        return f"{self.name} {self.scope.name.lower()} {self.digest.hex()}"


class Tokens:
    """The tokens of a file. It is read again when it changed, so that a token that was taken out opens nothing more."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()

    def scope_of(self, token: str) -> Scope | None:
        """Return what a token allows, or None if there is no such token. Takes as long whichever token matches.

        Raises:
            ConfigError: the file cannot be read, or is no token file.
        """
        self._refresh()
        digest, found = digest_of(token), None
        for each in self._tokens:
            if hmac.compare_digest(each.digest, digest):
                found = each.scope
        return found

    def _refresh(self) -> None:
        try:
            known = os.stat(self._file)
        except OSError:
            self._stamp, self._tokens = None, ()
            return
        stamp = (known.st_mtime_ns, known.st_size, known.st_ino)
        if stamp != self._stamp:
            self._tokens = read_tokens(self._file)
            self._stamp = stamp


def digest_of(token: str) -> bytes:
    """Return what is kept of a token. It has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def read_tokens(file: Path) -> tuple[Token, ...]:
    """Read a token file; a missing one holds none.

    Raises:
        ConfigError: it cannot be read, others may read it, or a line is of another form.
    """
    try:
        with open(file, "rb") as handle:
            mode, data = os.fstat(handle.fileno()).st_mode, handle.read(limits.API_TOKEN_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"cannot read the token file {file}: {error.strerror}") from error
    if mode & 0o022:
        raise ConfigError(f"the token file {file} can be written by others", hint=f"chmod 600 {file}")
    tokens: dict[str, Token] = {}
    if len(data) > limits.API_TOKEN_FILE_BYTES_MAX:
        raise ConfigError(f"the token file {file} has more than {limits.API_TOKEN_FILE_BYTES_MAX} bytes")
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, scope, digest = line.split()
            token = Token(name, Scope[scope.upper()], bytes.fromhex(digest))
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{file}, line {number}: expected NAME read|write|admin SHA256") from error
        if len(token.digest) != hashlib.sha256().digest_size or token.name in tokens:
            raise ConfigError(f"{file}, line {number}: not a SHA-256, or a name that was used before")
        tokens[token.name] = token
    return tuple(tokens.values())


def add_token(file: Path, name: str, scope: Scope) -> str:
    """Make a token, add it to the file, and return it; nobody can read it there later.

    Raises:
        Conflict: there is one of that name.
        ConfigError: the name is of another form, or the file cannot be read or written.
        LimitExceeded: there are too many.
    """
    if not name or len(name) > 64 or set(name) - NAME_CHARACTERS:
        raise ConfigError(f"{name!r} is no name for a token", hint="use letters, digits, dots, hyphens, underscores")
    with _held(file):
        tokens = read_tokens(file)
        if any(token.name == name for token in tokens):
            raise Conflict(f"there is a token named {name}", hint=f"converge-node api token rm {name}")
        return _add(file, tokens, name, scope)


def replace_token(file: Path, name: str, scope: Scope) -> str:
    """Make a token in place of the one of that name, if there is one, and return it. Raises as `add_token`."""
    with _held(file):
        kept = tuple(token for token in read_tokens(file) if token.name != name)
        return _add(file, kept, name, scope)


def remove_token(file: Path, name: str) -> None:
    """Take a token out of the file; a running node refuses it from then on.

    Raises:
        NotFound: there is none of that name.
        ConfigError: the file cannot be read or written.
    """
    with _held(file):
        tokens = read_tokens(file)
        kept = tuple(token for token in tokens if token.name != name)
        if len(kept) == len(tokens):
            raise NotFound(f"there is no token named {name}", hint="`converge-node api token ls` lists them")
        _write(file, kept)


def new_token() -> str:
    """Return a new token."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def _add(file: Path, tokens: tuple[Token, ...], name: str, scope: Scope) -> str:
    if len(tokens) >= limits.API_TOKENS_MAX:
        raise LimitExceeded("API_TOKENS_MAX", f"there are {limits.API_TOKENS_MAX} tokens already")
    token = new_token()
    _write(file, (*tokens, Token(name, scope, digest_of(token))))
    return token


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Hold the token file, made if it is missing, from before it is read until it is written: of two commands at once,
    the second takes up what the first wrote. The kernel frees it however the process ends.
    """
    handle = -1
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        while handle < 0:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not (file.exists() and os.path.samestat(os.fstat(handle), os.stat(file))):
                # whoever held it put another file in its place
                os.close(handle)
                handle = -1
    except OSError as error:
        if handle >= 0:
            os.close(handle)
        raise ConfigError(f"cannot write the token file {file}: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(handle)


def _write(file: Path, tokens: tuple[Token, ...]) -> None:
    text = "".join(f"{token.line()}\n" for token in tokens)
    partial = file.with_name(f"{file.name}.new")
    try:
        with open(partial, "w", encoding="utf-8", opener=_private) as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, file)
    except OSError as error:
        raise ConfigError(f"cannot write the token file {file}: {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
