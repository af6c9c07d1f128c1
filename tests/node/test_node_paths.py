"""Where files go, and that one home has one node."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from converge_node.errors import AlreadyRunning
from converge_node.paths import SOCKET_PATH_BYTES_MAX, checked_socket, resolve_paths, single_instance
from converge_p2p.core.errors import ConfigError


def test_one_home_holds_everything_and_overrides_the_variable() -> None:
    paths = resolve_paths("/srv/n1", {"CONVERGE_NODE_HOME": "/srv/other", "XDG_CONFIG_HOME": "/x"})
    assert paths.config_file == Path("/srv/n1/config.toml")
    assert paths.key_file.parent == paths.lock_file.parent == paths.state_dir == Path("/srv/n1")
    assert paths.socket == Path("/srv/n1/control.sock")
    assert resolve_paths(None, {"CONVERGE_NODE_HOME": "/srv/other"}).state_dir == Path("/srv/other")


def test_without_a_home_the_xdg_folders_are_used_and_relative_ones_ignored() -> None:
    variables = {
        "HOME": "/home/a",
        "XDG_CONFIG_HOME": "/cfg",
        "XDG_STATE_HOME": "state",
        "XDG_RUNTIME_DIR": "/run/user/7",
    }
    paths = resolve_paths(None, variables)
    assert paths.config_file == Path("/cfg/converge-node/config.toml")
    assert paths.state_dir == Path("/home/a/.local/state/converge-node")
    assert paths.socket == Path("/run/user/7/converge-node/control.sock")
    assert resolve_paths(None, {"HOME": "/home/a"}).socket == Path(
        "/home/a/.local/state/converge-node/run/control.sock"
    )


def test_a_home_too_deep_for_a_socket_gets_a_short_one_of_its_own() -> None:
    deep = "/srv/" + "x" * 120
    first, again, other = (resolve_paths(home, {}).socket for home in (deep, deep, deep + "y"))
    assert first == again != other
    assert len(os.fsencode(first)) <= SOCKET_PATH_BYTES_MAX
    with pytest.raises(ConfigError, match="longer than"):
        checked_socket(deep)


def test_folders_are_private(tmp_path: Path) -> None:
    paths = resolve_paths(tmp_path / "a" / "b", {})
    paths.create()
    assert stat.S_IMODE(paths.state_dir.stat().st_mode) == 0o700
    paths.create()


def test_a_socket_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "open"
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by others"):
        resolve_paths(home, {}).create()


def test_one_home_has_one_node_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "node.lock"
    with single_instance(lock):
        with pytest.raises(AlreadyRunning, match=str(os.getpid())), single_instance(lock):
            pass
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    with pytest.raises(RuntimeError), single_instance(lock):
        raise RuntimeError
    with single_instance(lock):
        pass
