"""Backups carry blobs, settings and keys: verified, put back whole, and nothing that a backup names escapes a home."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from node_library_kit import founding, who

from converge_p2p.core import limits
from converge_p2p.core.errors import StoreError
from converge_p2p.core.model.blob import Manifest
from converge_p2p.store.archive import (
    FORMAT,
    FORMAT_PLAIN,
    MANIFEST_FILE,
    SETTINGS_FILE,
    backup_home,
    examine_backup,
    read_manifest,
    restore_home,
    topic_key_file,
)
from converge_p2p.store.blob_copies import BLOB_LIST_FILE
from converge_p2p.store.blob_files import DiskFiles
from converge_p2p.store.blobs import BlobStore, Hold
from converge_p2p.store.home import BLOB_FOLDER, DATABASE_FILE
from converge_p2p.store.sqlite import SqliteStore

CHUNK = limits.BLOB_CHUNK_BYTES


def opened(home: Path) -> BlobStore:
    store = BlobStore(DiskFiles(home / BLOB_FOLDER))
    store.open_now()
    return store


def put(store: BlobStore, name: str, hold: Hold, *, held: int = 2) -> Manifest:
    chunks = [name.encode().ljust(CHUNK, b"."), name.encode() + b" ends"]
    manifest = Manifest.of(chunks)
    store.begin(manifest)
    for index, chunk in enumerate(chunks[:held]):
        store.add(manifest.id, index, chunk)
    store.finish(manifest.id, hold)
    return manifest


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    pool, operation = founding(who(1))
    store = SqliteStore(folder / DATABASE_FILE)
    store.append(pool, [(operation.id, operation.signed)], durable=True)
    store.close()
    return folder


@pytest.fixture
def kept(home: Path) -> dict[str, Manifest]:
    store = opened(home)
    return {
        "pinned": put(store, "pinned", Hold.PINNED),
        "kept": put(store, "kept", Hold.KEPT),
        "cached": put(store, "cached", Hold.CACHED),
        "begun": put(store, "begun", Hold.CACHED, held=1),
        "torn": put(store, "torn", Hold.PINNED, held=1),
    }


def rewrite(backup: Path, change: Any) -> None:
    """Change the list of blobs, and let the manifest agree: what somebody does who wants to be believed."""
    items = json.loads((backup / BLOB_LIST_FILE).read_text())
    change(items)
    (backup / BLOB_LIST_FILE).write_text(json.dumps(items))
    fit(backup, BLOB_LIST_FILE)


def fit(backup: Path, name: str) -> None:
    manifest = json.loads((backup / MANIFEST_FILE).read_text())
    data = (backup / name).read_bytes()
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (backup / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_blobs_come_back_as_they_were_and_half_fetched_ones_stay_away(
    home: Path, tmp_path: Path, kept: dict[str, Manifest]
) -> None:
    os.utime(home / BLOB_FOLDER / kept["kept"].id.hex(), (1_000, 1_000))
    made = backup_home(home, tmp_path / "backup")
    size = kept["pinned"].size + kept["kept"].size + kept["cached"].size + CHUNK
    assert (made.format, made.blobs, made.blob_bytes) == (FORMAT, 4, size)
    manifest, found = examine_backup(tmp_path / "backup")
    assert (manifest.blobs, found.blobs, found.findings) == (4, 4, [])
    modes = {each.stat().st_mode & 0o077 for each in (tmp_path / "backup").rglob("*")}
    assert modes == {0}
    restore_home(tmp_path / "backup", tmp_path / "new")
    back = {info.id: info for info in opened(tmp_path / "new").list()}
    assert back.keys() == {kept[name].id for name in ("pinned", "kept", "cached", "torn")}
    holds = {name: back[kept[name].id].hold for name in ("pinned", "kept", "cached", "torn")}
    assert holds == {"pinned": Hold.PINNED, "kept": Hold.KEPT, "cached": Hold.CACHED, "torn": Hold.PINNED}
    assert back[kept["kept"].id].used_s == 1_000
    assert [name for name in holds if not back[kept[name].id].complete] == ["torn"]
    assert opened(tmp_path / "new").chunk(kept["kept"].id, 1) == b"kept ends"


def test_without_anything_new_a_backup_is_of_the_format_that_earlier_versions_know(home: Path, tmp_path: Path) -> None:
    made = backup_home(home, tmp_path / "backup")
    assert made.format == FORMAT_PLAIN
    manifest = json.loads((tmp_path / "backup" / MANIFEST_FILE).read_text())
    del manifest["blobs"], manifest["blob_bytes"]
    # as an earlier version wrote it
    (tmp_path / "backup" / MANIFEST_FILE).write_text(json.dumps(manifest))
    restore_home(tmp_path / "backup", tmp_path / "new")
    assert (tmp_path / "new" / DATABASE_FILE).exists()
    put(opened(home), "left out", Hold.PINNED)
    assert backup_home(home, tmp_path / "no blobs", blobs=False).format == FORMAT_PLAIN


def test_settings_and_topic_keys_are_in_it_and_go_where_they_are_told(home: Path, tmp_path: Path) -> None:
    (tmp_path / "topic").write_bytes(b"a key")
    (tmp_path / "settings").write_bytes(b"[node]\n")
    name = topic_key_file("acme/secret")
    made = backup_home(
        home,
        tmp_path / "backup",
        secret_files={name: tmp_path / "topic", topic_key_file("gone"): tmp_path / "no"},
        settings=tmp_path / "settings",
    )
    assert sorted(made.files) == [SETTINGS_FILE, DATABASE_FILE, name]
    new = tmp_path / "new"
    restore_home(tmp_path / "backup", new, settings=(tmp_path / "etc" / "config.toml", b"[log]\n"))
    assert ((new / name).read_bytes(), (tmp_path / "etc" / "config.toml").read_bytes()) == (b"a key", b"[log]\n")
    restore_home(tmp_path / "backup", tmp_path / "other")
    assert not (tmp_path / "other" / SETTINGS_FILE).exists()


@pytest.mark.parametrize(
    "what", ["chunk changed", "chunk missing", "manifest changed", "folder missing", "folder linked"]
)
def test_damage_of_a_blob_is_found_and_nothing_is_put_back(
    home: Path, tmp_path: Path, kept: dict[str, Manifest], what: str
) -> None:
    backup = tmp_path / "backup"
    backup_home(home, backup)
    folder = backup / BLOB_FOLDER / kept["kept"].id.hex()
    chunk = folder / kept["kept"].hashes[0].hex()
    match what:
        case "chunk changed":
            chunk.write_bytes(b"x" * CHUNK)
        case "chunk missing":
            chunk.unlink()
        case "manifest changed":
            (folder / "manifest").write_bytes(
                (backup / BLOB_FOLDER / kept["cached"].id.hex() / "manifest").read_bytes()
            )
        case "folder missing":
            shutil.rmtree(folder)
        case "folder linked":
            folder.rename(tmp_path / "elsewhere")
            folder.symlink_to(tmp_path / "elsewhere")
    _, found = examine_backup(backup)
    assert found.wrong == 1
    assert kept["kept"].id.hex()[:12] in found.findings[0]
    with pytest.raises(StoreError, match="is damaged"):
        restore_home(backup, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_links_and_pipes_in_place_of_chunks_are_not_followed(
    home: Path, tmp_path: Path, kept: dict[str, Manifest]
) -> None:
    folder = home / BLOB_FOLDER / kept["kept"].id.hex()
    secret = tmp_path / "secret"
    chunk = folder / kept["kept"].hashes[0].hex()
    chunk.rename(secret)
    chunk.symlink_to(secret)
    other = folder / kept["kept"].hashes[1].hex()
    other.unlink()
    os.mkfifo(other)
    assert backup_home(home, tmp_path / "backup").blob_bytes == kept["pinned"].size + kept["cached"].size + CHUNK


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items[0].update(id="../../../escape"),
        lambda items: items[0].update(id=items[0]["id"].upper()),
        lambda items: items[0].update(hold=7),
        lambda items: items.append(items[0]),
        lambda items: items[0].update(id=5),
        lambda items: items.extend({**items[0], "id": f"{n:064x}"} for n in range(limits.BLOBS_KEPT_MAX)),
    ],
)
def test_a_list_that_names_what_no_backup_has_is_refused(
    home: Path, tmp_path: Path, kept: dict[str, Manifest], change: Any
) -> None:
    backup_home(home, tmp_path / "backup")
    rewrite(tmp_path / "backup", change)
    with pytest.raises(StoreError, match=r"blobs\.json"):
        restore_home(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert kept


def test_huge_numbers_in_a_list_do_no_harm(home: Path, tmp_path: Path, kept: dict[str, Manifest]) -> None:
    backup_home(home, tmp_path / "backup")
    rewrite(tmp_path / "backup", lambda items: [item.update(used_s=2**62) for item in items])
    restore_home(tmp_path / "backup", tmp_path / "new")
    assert len(opened(tmp_path / "new").list()) == len(kept) - 1
    rewrite(tmp_path / "backup", lambda items: items[0].update(held_bytes=2**62))
    assert examine_backup(tmp_path / "backup")[1].wrong == 2


def test_a_file_that_a_backup_does_not_list_is_not_put_back(
    home: Path, tmp_path: Path, kept: dict[str, Manifest]
) -> None:
    backup_home(home, tmp_path / "backup")
    folder = tmp_path / "backup" / BLOB_FOLDER
    (folder / kept["kept"].id.hex() / "planted").write_bytes(b"x")
    (folder / ("ab" * 32)).mkdir()
    restore_home(tmp_path / "backup", tmp_path / "new")
    names = {each.name for each in (tmp_path / "new" / BLOB_FOLDER).rglob("*")}
    assert not names & {"planted", "ab" * 32}


def test_a_restore_that_was_killed_among_the_blobs_can_be_done_again(
    home: Path, tmp_path: Path, kept: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, new = tmp_path / "backup", tmp_path / "new"
    backup_home(home, backup)
    write, left = DiskFiles.write, 0

    def dying(self: DiskFiles, folder: str, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(self, folder, name, data)

    for writes in range(5):
        left = writes
        with monkeypatch.context() as patch:
            patch.setattr(DiskFiles, "write", dying)
            with pytest.raises(KeyboardInterrupt):
                restore_home(backup, new)
        assert not (new / DATABASE_FILE).exists()
    restore_home(backup, new)
    assert {info.id for info in opened(new).list() if info.complete} == {
        kept[name].id for name in ("pinned", "kept", "cached")
    }


def test_a_chunk_that_cannot_be_read_any_more_after_the_check_is_said(
    home: Path, tmp_path: Path, kept: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, new, pinned = tmp_path / "backup", tmp_path / "new", kept["pinned"]
    backup_home(home, backup)
    chunk = backup / BLOB_FOLDER / pinned.id.hex() / pinned.hashes[1].hex()
    whole = chunk.read_bytes()

    def damaged_since(folder: Path) -> Any:
        found = examine_backup(folder)
        chunk.write_bytes(b"damaged")
        return found

    with monkeypatch.context() as patch:
        patch.setattr("converge_p2p.store.archive.examine_backup", damaged_since)
        with pytest.raises(StoreError, match=pinned.id.hex()[:12]):
            restore_home(backup, new)
    assert not (new / DATABASE_FILE).exists()
    chunk.write_bytes(whole)
    restore_home(backup, new)
    assert opened(new).chunk(pinned.id, 1) == b"pinned ends"


def test_a_full_disk_is_said_before_anything_is_copied(
    home: Path, tmp_path: Path, kept: dict[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    backup_home(home, tmp_path / "backup")
    monkeypatch.setattr(
        "converge_p2p.store.blob_copies.shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1000))
    )
    with pytest.raises(StoreError, match="blobs need") as refused:
        backup_home(home, tmp_path / "another")
    assert "--no-blobs" in refused.value.hint
    with pytest.raises(StoreError, match="blobs need"):
        restore_home(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "another").exists()
    assert not (tmp_path / "new" / DATABASE_FILE).exists()
    assert not opened(tmp_path / "new").list()
    assert kept


@pytest.mark.parametrize("name", ["../evil.key", "topic-zz.key", "topic-0123456789abcdef.key/../x", "node.key2"])
def test_names_that_are_no_key_files_are_refused(home: Path, tmp_path: Path, name: str) -> None:
    backup_home(home, tmp_path / "backup")
    path = tmp_path / "backup" / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"size": 1, "sha256": "00"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="names files that no backup has"):
        read_manifest(tmp_path / "backup")
