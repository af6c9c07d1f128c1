"""One change of the settings file, which leaves everything else in it as it is.

Knows: TOML with its comments. Must not know: what a setting does.
Source: docs/operations.md, configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converge_node.config import all_keys, checked_value, load_settings, nearest, value_from_text
from converge_p2p.core.errors import ConfigError, StoreError
from converge_p2p.store.private_files import remove_left_overs, write_private_file


def check_key(path: str) -> None:
    """Raises `ConfigError` with the nearest one if there is no such key."""
    keys = all_keys()
    if path not in keys:
        raise ConfigError(f"unknown key {path}{nearest(path, keys)}", hint="`converge-node config schema` lists all")


def changed_file(file: Path, path: str, text: str) -> str:
    """Return the content of a settings file with one value changed; the file itself is not touched.

    Args:
        file: may be missing.
        path: "section.key".
        text: as an environment variable would give it.

    Raises:
        ConfigError: there is no such key, the value is wrong, or the file was wrong before.
    """
    check_key(path)
    key = all_keys()[path]
    try:
        value = checked_value(key, value_from_text(key, text))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", hint=error.hint) from error
    load_settings(file, environment={})
    return with_values(file.read_text(encoding="utf-8") if file.exists() else "", {path: value})


def with_values(content: str, values: Mapping[str, Any]) -> str:
    """Return the content of a settings file with values set, by key path; the rest stays as it is, comments included.

    The content is one that was read without an error, and so are the values.
    """
    import tomlkit

    document = tomlkit.parse(content)
    for path, value in values.items():
        section, name = path.split(".")
        if section not in document:
            document[section] = tomlkit.table()
        document[section][name] = list(value) if isinstance(value, tuple) else value
    return tomlkit.dumps(document)


def write_settings(file: Path, content: str) -> None:
    """Replace a settings file in one step, with mode 0600.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_private_file(file, content.encode(), replace=True)
        # of this or another change that was killed
        remove_left_overs(file)
    except StoreError as error:
        raise ConfigError(str(error), hint=error.hint) from error
