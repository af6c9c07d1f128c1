"""The store commands over real files: what they print, how they end, and what they leave alone."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from converge_node.cli.main import invoke
from converge_node.config import load_settings
from converge_node.errors import ExitCode
from converge_node.inheritance import Inheritance, write_inheritance
from converge_node.paths import resolve_paths, single_instance
from converge_p2p.core.codec import encode
from converge_p2p.core.model.blob import Manifest
from converge_p2p.core.model.pool import GovernanceKind, PoolSpec, pool_id
from converge_p2p.core.oplog.bodies import Genesis
from converge_p2p.core.oplog.operation import sign_operation
from converge_p2p.node.restored import StoreAge
from converge_p2p.store.archive import SETTINGS_FILE, topic_key_file
from converge_p2p.store.blob_files import DiskFiles
from converge_p2p.store.blobs import BlobStore, Hold
from converge_p2p.store.home import DATABASE_FILE, KEY_FILE, POOL_KEY, only_node_in
from converge_p2p.store.keyfile import load_identity
from converge_p2p.store.schema import SCHEMA_VERSION
from converge_p2p.store.sqlite import SqliteStore


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A home that a node ran in, with one pool."""
    folder = tmp_path / "home"
    assert invoke(["--home", str(folder), "init", "-q"]) == 0
    capsys.readouterr()
    own = load_identity(folder / KEY_FILE)
    spec = PoolSpec("demo", bytes(16), GovernanceKind.DICTATORIAL, electors=(own.public_key,))
    pool = pool_id(own.public_key, spec)
    signed = sign_operation(own, pool, Genesis(spec), seq=0, prev=None, epoch=0, hlc=1)
    store = SqliteStore(folder / DATABASE_FILE)
    StoreAge(store, folder).open_now(restored=False)
    store.append(pool, [(signed.id, signed.signed)], durable=True)
    store.put(POOL_KEY + pool.hex(), encode([1]))
    store.close()
    with only_node_in(folder):
        return folder


def asked(capsys: pytest.CaptureFixture[str], home: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = invoke(["--home", str(home), "store", *words, "--json"])
    envelope = json.loads(capsys.readouterr().out)
    return code, envelope["data"] if envelope["ok"] else envelope["error"]


def test_a_backup_goes_to_another_home_with_its_key_and_is_in_doubt_there(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup, new = tmp_path / "backup", tmp_path / "new"
    code, made = asked(capsys, home, "backup", str(backup), "--identity")
    assert (code, made["operations"], made["stopped"]) == (0, 1, True)
    assert made["files"] == [SETTINGS_FILE, KEY_FILE, DATABASE_FILE]
    assert json.loads((backup / "manifest.json").read_text())["agent"] == load_identity(home / KEY_FILE).id
    code, checked = asked(capsys, new, "verify", str(backup))
    assert (code, checked["whole"], checked["operations"]) == (0, True, 1)
    # what else a home may hold: its node has another key's places to take
    new.mkdir()
    write_inheritance(
        resolve_paths(new), Inheritance(old="00" * 32, new=load_identity(home / KEY_FILE).public_key.hex())
    )
    code, put_back = asked(capsys, new, "restore", str(backup))
    assert (code, put_back["in_doubt"]) == (0, True)
    code, found = asked(capsys, new, "info")
    assert (code, found["schema"], found["restored"], found["running"]) == (0, SCHEMA_VERSION, True, False)
    assert [(each["operations"], each["member"], each["in_doubt"]) for each in found["pools"]] == [(1, True, True)]
    assert load_identity(new / KEY_FILE) == load_identity(home / KEY_FILE)
    assert asked(capsys, new, "restore", str(backup))[0] == ExitCode.CONFLICT
    assert asked(capsys, home, "backup", str(backup))[0] == ExitCode.CONFLICT


def test_a_backup_without_the_key_says_that_it_is_missing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup, new = str(tmp_path / "backup"), str(tmp_path / "new")
    assert invoke(["--home", str(home), "store", "backup", backup, "-q"]) == 0
    assert capsys.readouterr().out == f"{backup}\n"
    assert invoke(["--home", new, "store", "restore", backup, "--moved"]) == 0
    shown = capsys.readouterr().out
    assert "The key is not here: put it back with `converge-node identity import FILE`." in shown
    assert "signs nothing" not in shown
    # once another key lies there, the backup is not for this home
    third = str(tmp_path / "third")
    assert invoke(["--home", third, "init", "-q"]) == 0
    assert invoke(["--home", third, "store", "restore", backup]) == ExitCode.CONFLICT
    assert "the backup is of agent" in capsys.readouterr().err


def test_what_a_running_node_allows(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with single_instance(home / "node.lock"), only_node_in(home):
        assert asked(capsys, home, "info")[1]["running"] is True
        assert asked(capsys, home, "verify")[0] == 0
        code, made = asked(capsys, home, "backup", str(tmp_path / "backup"))
        assert (code, made["stopped"]) == (0, False)
        code, error = asked(capsys, home, "compact")
        assert (code, error["code"]) == (ExitCode.CONFLICT, "already_running")
        assert asked(capsys, home, "restore", str(tmp_path / "backup"))[0] == ExitCode.CONFLICT
    assert asked(capsys, home, "restore", str(tmp_path / "backup"), "--moved")[0] == ExitCode.CONFLICT


def test_damage_ends_with_10_and_says_what_to_do_and_a_rescue_can_be_put_back(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(home / DATABASE_FILE) as database:
        database.execute("UPDATE operations SET data = zeroblob(length(data))")
    database.close()
    assert invoke(["--home", str(home), "store", "verify"]) == ExitCode.STORE
    shown = capsys.readouterr().out
    assert "operation " in shown
    assert "-> stop the node, save what can be read with `store backup --salvage DIR`" in shown
    code, found = asked(capsys, home, "verify")
    assert (code, found["whole"], found["wrong"], len(found["findings"])) == (ExitCode.STORE, False, 1, 1)
    code, made = asked(capsys, home, "backup", str(tmp_path / "saved"), "--salvage", "--identity")
    assert (code, made["operations"], made["lost"]) == (0, 0, 1)
    assert asked(capsys, tmp_path / "new", "restore", str(tmp_path / "saved"))[0] == 0
    assert asked(capsys, tmp_path / "new", "verify")[0] == 0
    manifest = tmp_path / "saved" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "0'))
    code, found = asked(capsys, home, "verify", str(tmp_path / "saved"))
    assert (code, found["wrong"]) == (ExitCode.STORE, 3)
    assert asked(capsys, tmp_path / "more", "restore", str(tmp_path / "saved"))[0] == ExitCode.STORE


def test_a_newer_database_is_refused_by_every_command(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(home / DATABASE_FILE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    before = (home / DATABASE_FILE).read_bytes()
    for words in (["info"], ["verify"], ["backup", str(tmp_path / "b")], ["compact"], ["compact", "--left"]):
        code, error = asked(capsys, home, *words)
        assert code == ExitCode.STORE, words
        assert "schema version 99" in error["message"]
        assert "newer program" in error["hint"]
    assert (home / DATABASE_FILE).read_bytes() == before
    assert not (tmp_path / "b").exists()


def test_compact_prints_sizes_and_forgets_left_pools_only_with_left(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqliteStore(home / DATABASE_FILE)
    store.delete(store.list(POOL_KEY)[0])
    for number in range(100):
        store.put(f"ballast/{number}", bytes(10_000))
    for number in range(100):
        store.delete(f"ballast/{number}")
    store.close()
    code, done = asked(capsys, home, "compact")
    assert code == 0
    assert done["bytes_after"] < done["bytes_before"] / 4
    assert len(asked(capsys, home, "info")[1]["pools"]) == 1
    assert asked(capsys, home, "compact", "--left")[0] == 0
    assert asked(capsys, home, "info")[1]["pools"] == []


def test_without_a_database_or_with_a_url_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = tmp_path / "none"
    for words in (["info"], ["verify"], ["backup", str(tmp_path / "b")], ["compact"], ["restore", str(tmp_path / "b")]):
        assert asked(capsys, none, *words)[0] == ExitCode.NOT_FOUND, words
    assert list(tmp_path.iterdir()) == []
    assert invoke(["--url", "http://127.0.0.1:1", "store", "info"]) == ExitCode.USAGE
    assert "run this on its machine" in capsys.readouterr().err


# ------------------------------------------------------------- settings, keys and blobs


def elsewhere(home: Path, folder: Path) -> dict[str, Path]:
    """Move the keys of a home into another folder, and name them in its settings; return where they are."""
    folder.mkdir()
    files = {name: folder / name for name in ("agent.key", "swarm.key", "second.key", "topic.key")}
    (home / KEY_FILE).rename(files["agent.key"])
    for name in ("swarm.key", "second.key"):
        assert invoke(["mesh", "new", str(files[name]), "-q"]) == 0
    assert invoke(["topic", "new-key", str(files["topic.key"]), "-q"]) == 0
    (home / "config.toml").write_text(
        f"""# mine
[identity]
path = "{files["agent.key"]}"
[network]
psk_file = "{files["swarm.key"]}"
psk_accept_file = "{files["second.key"]}"
[node]
private_topics = ["acme/plans={files["topic.key"]}"]
"""
    )
    return files


def put_blob(home: Path) -> Manifest:
    store = BlobStore(DiskFiles(home / "blobs"))
    manifest = Manifest.of([b"content"])
    store.begin(manifest)
    store.add(manifest.id, 0, b"content")
    store.finish(manifest.id, Hold.PINNED)
    return manifest


def test_a_complete_backup_makes_a_node_anew_where_nothing_of_it_is_left(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, manifest = elsewhere(home, tmp_path / "etc"), put_blob(home)
    topic, backup, new = topic_key_file("acme/plans"), tmp_path / "backup", tmp_path / "new"
    capsys.readouterr()
    kept = {name: path.read_bytes() for name, path in files.items()}
    code, made = asked(capsys, home, "backup", str(backup), "--identity")
    names = ["blobs.json", "config.toml", "network-accept.key", "network.key", "node.key", "node.sqlite", topic]
    assert (code, made["files"], made["blobs"]) == (0, names, 1)
    for path in files.values():
        path.unlink()
    code, checked = asked(capsys, new, "verify", str(backup))
    assert (code, checked["whole"], checked["blobs"]) == (0, True, 1)
    code, put_back = asked(capsys, new, "restore", str(backup))
    changed = ["identity.path", "network.psk_accept_file", "network.psk_file", "node.private_topics"]
    assert (code, put_back["settings_changed"], put_back["settings_kept"]) == (0, changed, False)
    assert not any(path.exists() for path in files.values()), "a backup writes nothing outside of the home"
    settings = load_settings(new / "config.toml", environment={}).config
    assert (settings.identity.path, settings.network.psk_file) == ("", "")
    assert settings.node.private_topics == (f"acme/plans={new / topic}",)
    assert "# mine" in (new / "config.toml").read_text()
    found = {name: (new / name).read_bytes() for name in ("node.key", "network.key", "network-accept.key", topic)}
    assert list(found.values()) == list(kept.values())
    assert (new / "blobs" / manifest.id.hex()).is_dir()
    # after a kill before the database was there, the same again
    (new / DATABASE_FILE).unlink()
    assert asked(capsys, new, "restore", str(backup))[0] == 0


def test_on_the_same_machine_keys_that_are_where_they_were_stay_there(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, backup, new = elsewhere(home, tmp_path / "etc"), tmp_path / "backup", tmp_path / "new"
    capsys.readouterr()
    for given in ([], ["--identity"]):
        assert asked(capsys, home, "backup", f"{backup}{len(given)}", *given)[0] == 0
        target = tmp_path / f"new{len(given)}"
        code, put_back = asked(capsys, target, "restore", f"{backup}{len(given)}")
        assert (code, put_back["settings_changed"]) == (0, [])
        assert (target / "config.toml").read_bytes() == (home / "config.toml").read_bytes()
        assert not (target / KEY_FILE).exists()
    files["agent.key"].write_bytes(b"damaged since")
    assert asked(capsys, new, "restore", f"{backup}1")[1]["settings_changed"] == ["identity.path"]
    assert files["agent.key"].read_bytes() == b"damaged since"


def test_a_key_that_was_put_into_the_home_first_is_the_one_that_is_used(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, backup, new, other = elsewhere(home, tmp_path / "etc"), *(tmp_path / each for each in ("b", "new", "other"))
    capsys.readouterr()
    assert asked(capsys, home, "backup", str(backup))[0] == 0
    new.mkdir()
    files["agent.key"].rename(new / KEY_FILE)
    code, put_back = asked(capsys, new, "restore", str(backup))
    assert (code, put_back["settings_changed"]) == (0, ["identity.path"])
    assert invoke(["--home", str(other), "init", "-q"]) == 0
    capsys.readouterr()
    assert asked(capsys, other, "restore", str(backup))[0] == ExitCode.CONFLICT, "that is another agent's"


def test_settings_that_are_here_stay_and_those_that_cannot_be_used_are_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup, new = tmp_path / "backup", tmp_path / "new"
    put_blob(home)
    (home / "config.toml").write_text('[node]\nprofile = "lan"\n')
    code, made = asked(capsys, home, "backup", str(backup), "--no-blobs")
    assert (code, made["files"], made["blobs"]) == (0, ["config.toml", DATABASE_FILE], 0)
    new.mkdir()
    (new / "config.toml").write_text('[node]\nprofile = "server"\n')
    code, put_back = asked(capsys, new, "restore", str(backup))
    assert (code, put_back["settings_kept"]) == (0, True)
    assert "server" in (new / "config.toml").read_text()
    newer = (backup / "config.toml").read_bytes().replace(b"profile", b"colour")
    (backup / "config.toml").write_bytes(newer)
    code, error = asked(capsys, tmp_path / "third", "restore", str(backup))
    assert (code, "colour" in error["message"]) == (ExitCode.BAD_CONFIGURATION, True)
    assert "corrected" in error["hint"]
    (backup / "config.toml").unlink()
    os.mkfifo(backup / "config.toml")
    assert asked(capsys, tmp_path / "third", "restore", str(backup))[0] == ExitCode.STORE
    assert not (tmp_path / "third").exists()


def test_settings_of_a_backup_that_name_a_pipe_or_have_no_end_hold_nobody_up(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup, pipe = tmp_path / "backup", tmp_path / "pipe"
    os.mkfifo(pipe)
    (home / "config.toml").write_text(f'[network]\npsk_file = "{pipe}"\n')
    assert asked(capsys, home, "backup", str(backup))[0] == 0
    assert invoke(["mesh", "new", str(home / "network.key"), "-q"]) == 0
    capsys.readouterr()
    manifest = json.loads((backup / "manifest.json").read_text())
    key = (home / "network.key").read_bytes()
    (backup / "network.key").write_bytes(key)
    manifest["files"]["network.key"] = {"size": len(key), "sha256": hashlib.sha256(key).hexdigest()}
    (backup / "manifest.json").write_text(json.dumps(manifest))
    code, put_back = asked(capsys, tmp_path / "new", "restore", str(backup))
    assert (code, put_back["settings_changed"]) == (0, ["network.psk_file"])
    with (backup / "config.toml").open("r+b") as file:
        file.truncate(2**40)
    assert asked(capsys, tmp_path / "third", "restore", str(backup))[0] == ExitCode.STORE
