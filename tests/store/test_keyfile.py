"""Rules of the key file: whole or absent, never replaced by accident, never read if others could have."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from converge_p2p.core.errors import Conflict, LocalError, NotFound, SignatureError, StoreError
from converge_p2p.core.identity import Identity
from converge_p2p.store.keyfile import load_identity, load_or_create_identity, save_identity

ALICE, BOB = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)


def test_an_identity_survives_its_file(tmp_path: Path) -> None:
    save_identity(ALICE, tmp_path / "key")
    loaded = load_identity(tmp_path / "key")
    assert loaded.seed == ALICE.seed
    assert loaded.can_sign


def test_a_sealed_file_needs_its_passphrase(tmp_path: Path) -> None:
    save_identity(ALICE, tmp_path / "key", "correct horse")
    assert ALICE.seed.hex().encode() not in (tmp_path / "key").read_bytes()
    assert load_identity(tmp_path / "key", "correct horse").seed == ALICE.seed
    with pytest.raises(SignatureError):
        load_identity(tmp_path / "key", "wrong horse")
    with pytest.raises(LocalError, match="passphrase") as failed:
        load_identity(tmp_path / "key")
    assert str(tmp_path / "key") in str(failed.value)
    assert "--passphrase-file" in failed.value.hint


def test_an_existing_key_is_never_replaced_unless_asked(tmp_path: Path) -> None:
    save_identity(ALICE, tmp_path / "key")
    with pytest.raises(Conflict, match="exists already"):
        save_identity(BOB, tmp_path / "key")
    assert load_identity(tmp_path / "key") == ALICE
    save_identity(BOB, tmp_path / "key", replace=True)
    assert load_identity(tmp_path / "key") == BOB
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    for number, mask in enumerate((0, 0o777)):
        before = os.umask(mask)
        try:
            if mask:
                # such a mask would make folders that even their owner cannot enter
                save_identity(ALICE, tmp_path / f"key{number}")
            else:
                save_identity(ALICE, tmp_path / "deep" / "folder" / f"key{number}")
        finally:
            os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "folder").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "deep" / "folder" / "key0").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "key1").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    save_identity(ALICE, tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(StoreError, match=f"mode {mode:04o}") as raised:
        load_identity(tmp_path / "key")
    assert "chmod 600" in raised.value.hint
    with pytest.raises(StoreError):
        load_or_create_identity(tmp_path / "key")


def test_a_key_of_a_third_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_identity(ALICE, tmp_path / "key")
    owner = (tmp_path / "key").stat().st_uid
    if owner == 0:
        os.chown(tmp_path / "key", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(StoreError, match="belongs to user"):
        load_identity(tmp_path / "key")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"converge-key-1 plain\nzz\n", b"converge-key-1 plain\nabcd\n", b"\xff" * 100, bytes(5000)]
)
def test_a_damaged_key_file_is_reported_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(StoreError, match=str(tmp_path / "key")):
        load_or_create_identity(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == content


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(StoreError):
            load_identity(path)
    with pytest.raises(NotFound):
        load_identity(tmp_path / "nothing")


def test_load_or_create_makes_one_and_keeps_it(tmp_path: Path) -> None:
    first = load_or_create_identity(tmp_path / "home" / "key")
    assert load_or_create_identity(tmp_path / "home" / "key").seed == first.seed


def test_all_who_create_at_once_get_the_same_identity(tmp_path: Path) -> None:
    start, made = threading.Barrier(8), []

    def run() -> None:
        start.wait()
        made.append(load_or_create_identity(tmp_path / "home" / "key").id)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["key"]


def test_a_file_system_without_links_still_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "link", no_links)
    save_identity(ALICE, tmp_path / "key")
    with pytest.raises(Conflict):
        save_identity(BOB, tmp_path / "key")
    assert load_identity(tmp_path / "key") == ALICE


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_identity(ALICE, tmp_path / "key")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        save_identity(BOB, tmp_path / "key", replace=True)
    monkeypatch.undo()
    assert load_identity(tmp_path / "key") == ALICE
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_verify_only_identity_has_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(LocalError):
        save_identity(Identity.from_public_key(ALICE.public_key), tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_replaced_leaves_no_copy_that_a_killed_process_had_made(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    old = load_or_create_identity(path)
    copy, others = tmp_path / f".node.key.{'0a' * 8}.new", tmp_path / f".other.key.{'0a' * 8}.new"
    for each in (copy, others):
        each.write_bytes(path.read_bytes())
    save_identity(old, path, "secret", replace=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([others.name, path.name])
