"""A home is used by one node at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from converge_p2p.core.errors import StoreError
from converge_p2p.store.home import LOCK_FILE, only_node_in


def test_a_second_node_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    with only_node_in(home):
        with pytest.raises(StoreError, match="another node runs"), only_node_in(home):
            pass
        # the refused one must not have freed the lock
        with pytest.raises(StoreError, match="another node runs"), only_node_in(home):
            pass
    with only_node_in(home):
        pass
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / LOCK_FILE).stat().st_mode & 0o777 == 0o600


def test_a_home_that_cannot_be_a_folder_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError), only_node_in(file):
        pass
