"""A support bundle: what somebody who helps has to see, in one file, without secrets.

Knows: what goes in, and that everything passes the net for secrets. Must not know: how a file in it came about.
Source: docs/observability.md, support bundle. Keys, databases and contents of tasks are never read for it.
"""

from __future__ import annotations

import os
import platform
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from converge_node.config import load_settings
from converge_node.log_fields import clean, clean_value
from converge_node.paths import NodePaths, checked_socket
from converge_p2p import __version__
from converge_p2p.client.queries import LogQuery
from converge_p2p.client.reach_schema import DoctorItem
from converge_p2p.client.sync import Client
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, Conflict, ConvergeError

_PACKAGES: Final = ("libp2p", "trio", "pynacl", "cbor2", "msgspec", "starlette", "hypercorn", "structlog")


def write_bundle(paths: NodePaths, found: DoctorItem, file: Path) -> list[str]:
    """Write the bundle, readable for its owner alone; return the names of what is in it.

    Args:
        paths: whose node.
        found: what `doctor` found.
        file: a zip archive, made new.

    Raises:
        Conflict: the file is there already.
        ConfigError: it cannot be written.
    """
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise Conflict(f"{file} is there already", hint="choose another name") from error
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    names = []
    with os.fdopen(handle, "wb") as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _parts(paths, found):
            archive.writestr(name, clean(text))
            names.append(name)
    return names


def _parts(paths: NodePaths, found: DoctorItem) -> Iterator[tuple[str, str]]:
    yield "doctor.json", _json(found)
    yield "versions.json", _json(_versions())
    try:
        config = load_settings(paths.config_file).config
    except ConfigError as error:
        yield "settings.txt", str(error)
        return
    yield "settings.json", _json(config)
    chosen = config.api.socket
    client = Client(checked_socket(chosen) if chosen else paths.socket)
    asked: dict[str, Callable[[], str]] = {
        "health.json": lambda: _json(client.ready()),
        "status.json": lambda: _json(client.status()),
        "peers.json": lambda: _json(client.peers()),
        "reach.json": lambda: _json(client.reach()),
        "metrics.txt": client.metrics,
        "log.jsonl": lambda: "\n".join(line.line for line in client.logs(LogQuery(lines=limits.LOG_LINES_KEPT_MAX))),
    }
    for name, ask in asked.items():
        try:
            yield name, ask()
        except ConvergeError as error:
            yield f"{name}.missing", f"{error}\n"


def _versions() -> dict[str, str]:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    own = {"converge-p2p": __version__, "python": sys.version.split()[0], "system": platform.platform()}
    return own | {name: version(name) for name in _PACKAGES}


def _json(value: Any) -> str:
    plain = clean_value("", msgspec.to_builtins(value))
    return msgspec.json.format(msgspec.json.encode(plain), indent=1).decode() + "\n"
