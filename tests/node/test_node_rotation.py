"""A new key for a node: who may ask for it, what is kept of it in the new home, and what a kill in between costs."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from control_kit import Ground, asking, ground, served, some_tokens
from node_fakes import FakeNode, FakePeer, FakePool
from peer_fakes import peer_of
from test_node_run import environment, finish, first_document, started

from converge_node.cli.client import TOKEN_VARIABLE
from converge_node.cli.main import invoke
from converge_node.control.ports import PoolLike
from converge_node.errors import ExitCode
from converge_node.inheritance import Inheritance, Place, inheritance_file, read_inheritance, write_inheritance
from converge_node.inheriting import Inheriting
from converge_node.paths import NodePaths, resolve_paths, single_instance
from converge_p2p.client.routes import Scope
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import ConfigError, Conflict, LocalError, NotAuthorised, Undecided
from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.succession import SucceedBody, is_signed, rotation
from converge_p2p.core.types import PoolId
from converge_p2p.store.home import DATABASE_FILE
from converge_p2p.store.keyfile import load_identity, save_identity

OWN, NEW, THIEF = (Identity.from_seed(bytes([number]) * 32) for number in (0, 1, 2))
"""The key of the node in memory, the one that shall take its place, and somebody else's."""


def body_for(
    pool: PoolId, *, old: Identity = OWN, new: Identity = NEW, signs: Identity | None = None, **changed: Any
) -> dict[str, Any]:
    """What is asked for, signed by `old` and by `signs`, which is the new key unless it is said."""
    consent, word = rotation(pool, old, new)
    if signs is not None:
        consent, _ = rotation(pool, old, signs)
    return {
        "pool": pool.hex(),
        "successor": new.public_key.hex(),
        "signature": consent.signature.hex(),
        "authorisation": word.signature.hex(),
        **changed,
    }


async def ask(known: Ground, body: dict[str, Any]) -> tuple[int, Any]:
    async with asking(known) as http:
        answer = await http.post("/v1/identity/rotate", json=body)
    document = answer.json()
    return answer.status_code, document["data"] if document["ok"] else document["error"]["code"]


async def test_a_place_is_handed_over_with_both_signatures_and_told_again_if_it_is_asked_again() -> None:
    known = await ground()
    for _ in range(2):
        status, item = await ask(known, body_for(known.pool.id, timeout_s=3))
        assert (status, item["pool"], item["name"]) == (200, known.pool.id.hex(), "demo")
        assert (item["successor"], item["content_keys"]) == (NEW.id, "c2VhbGVk")
    assert known.pool.keys.heir == NEW.public_key
    assert known.pool.keys.waited == [3, 3]
    assert (await ask(known, body_for(known.pool.id, new=THIEF))) == (409, "conflict")


async def test_whoever_has_only_the_interface_hands_nothing_over() -> None:
    known = await ground()
    other = await known.node.create_pool("other")
    for body in (
        # signed by another key than the node's
        body_for(known.pool.id, old=THIEF),
        body_for(known.pool.id, new=THIEF, authorisation="00" * 64),
        # what the owner once signed, for another key or another pool
        body_for(known.pool.id, new=THIEF, authorisation=body_for(known.pool.id)["authorisation"]),
        body_for(known.pool.id, authorisation=body_for(other.id)["authorisation"]),
        # the new key's own signature is not that of the old one
        body_for(known.pool.id, authorisation=body_for(known.pool.id)["signature"]),
        # the new key is that of somebody who did not agree
        body_for(known.pool.id, signs=THIEF),
    ):
        assert (await ask(known, body)) == (400, "bad_signature")
    assert known.pool.keys.heir is None


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"pool": "ab" * 32}, "not_found"),
        ({"pool": "demo"}, "usage"),
        ({"successor": "00"}, "usage"),
        ({"signature": "zz" * 64}, "usage"),
        ({"authorisation": "00" * 63}, "usage"),
        ({"timeout_s": 0}, "usage"),
        ({"more": 1}, "usage"),
    ],
)
async def test_a_wrong_request_is_refused_and_changes_nothing(changed: dict[str, Any], code: str) -> None:
    known = await ground()
    assert (await ask(known, body_for(known.pool.id) | changed))[1] == code
    assert known.pool.keys.heir is None


async def test_only_an_admin_token_may_ask(tmp_path: Path) -> None:
    known = await ground()
    tokens, made = some_tokens(tmp_path)
    async with asking(known, tokens) as http:
        answers = [
            (
                await http.post(
                    "/v1/identity/rotate", json=body_for(known.pool.id), headers={"authorization": f"Bearer {token}"}
                )
            ).status_code
            for _, token in sorted(made.items())
        ]
    assert answers == [403, 403, 200]


# ------------------------------------------------------------ the command


@dataclass
class Held:
    """A node in memory that answers in another thread, in a home with its key."""

    folder: Path
    home: Path
    url: str
    tokens: dict[Scope, str]
    known: Ground

    def rotate(self, *words: str, new: str = "next") -> int:
        return invoke(["--home", str(self.home), "identity", "rotate", "--new-home", str(self.folder / new), *words])

    @property
    def next(self) -> NodePaths:
        return resolve_paths(self.folder / "next")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Held]:
    ready, ended, made = threading.Event(), trio.Event(), list[Held]()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        home = tmp_path / "home"
        home.mkdir()
        async with served(home) as (known, _, url, given):
            save_identity(known.node.identity, home / "node.key")
            tokens.append(trio.lowlevel.current_trio_token())
            made.append(Held(tmp_path, home, url, given, known))
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(30)
    try:
        yield made[0]
    finally:
        tokens[0].run_sync_soon(ended.set)
        thread.join(30)


def shown(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)["data"]


def test_the_new_home_has_a_key_and_the_words_and_nobody_else_may_read_them(
    place: Held, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.home / "config.toml").write_text(
        f'[identity]\npath = "{place.home}/node.key"\n[api]\nsocket = ""\nlisten = []\n'
        f'[network]\npsk_file = "{place.home}/swarm.key"\n[log]\nlevel = "debug"\n'
    )
    (place.home / "network.key").write_bytes(b"a key")
    (place.folder / "secret").write_text("a passphrase\n")
    good, far = f"/ip4/192.0.2.3/tcp/4001/p2p/{peer_of(OWN)}", peer_of(THIEF)
    place.known.node.addresses = (good, "/ip4/192.0.2.3/tcp/4001/p2p/12D3KooWMe")
    place.known.node.fake_peers = [
        FakePeer(THIEF, far, ("/ip4/192.0.2.4/tcp/1", "/ip4/192.0.2.4/udp/1/quic-v1")),
        FakePeer(NEW, peer_of(NEW), ("/ip4/192.0.2.5/tcp/1",), "inbound"),
    ]
    assert place.rotate("--passphrase-file", str(place.folder / "secret"), "--json") == 0
    data = shown(capsys)
    new = load_identity(place.next.key_file, "a passphrase")
    assert (data["old"], data["new"], data["complete"]) == (OWN.id, new.id, True)
    assert [row["outcome"] for row in data["pools"]] == ["handed over"]
    assert place.known.pool.keys.heir == new.public_key
    kept = read_inheritance(place.next)
    assert kept is not None
    assert (kept.old, kept.new, kept.waiting) == (OWN.public_key.hex(), new.public_key.hex(), ())
    (only,) = kept.places
    assert is_signed(place.known.pool.id, new.public_key, kept.word(only))
    assert (only.secrets(), kept.bootstrap) == (b"sealed", (good, f"/ip4/192.0.2.4/tcp/1/p2p/{far}"))
    for file in (place.next.key_file, inheritance_file(place.next), place.next.config_file):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    settings = place.next.config_file.read_text()
    assert "node.key" not in settings, "the new node must not take the old key"
    assert 'level = "debug"' in settings
    assert f'passphrase_file = "{place.folder}/secret"' in settings
    assert (place.next.state_dir / "network.key").read_bytes() == b"a key"
    assert data["settings_to_check"] == ["network.psk_file"]
    assert invoke(["--home", str(place.folder / "next"), "identity", "show", "--json"]) == 0
    item = shown(capsys)
    assert (item["replaces"], item["places_to_take"]) == (OWN.id, [place.known.pool.id.hex()])


def test_what_is_not_done_is_said_for_each_pool_and_the_next_call_goes_on_with_the_same_key(
    place: Held, capsys: pytest.CaptureFixture[str]
) -> None:
    async def more() -> list[FakePool]:
        return [await place.known.node.create_pool(name) for name in ("waits", "left", "broken")]

    waits, left, broken = trio.run(more)
    waits.keys.failure = Undecided("the electors have not agreed yet")
    left.keys.failure = NotAuthorised("this node is not an active member of the pool")
    broken.keys.failure = Conflict("another key took this node's place")
    assert place.rotate("--json") == ExitCode.FAILURE
    data = shown(capsys)
    assert {row["name"]: row["outcome"] for row in data["pools"]} == {
        "demo": "handed over",
        "waits": "waits for the electors",
        "left": "no member, nothing to hand over",
        "broken": "failed",
    }
    assert not data["complete"]
    first = load_identity(place.next.key_file)
    kept = read_inheritance(place.next)
    assert kept is not None
    assert set(kept.waiting) == {waits.id.hex(), broken.id.hex()}
    waits.keys.failure = broken.keys.failure = None
    assert place.rotate() == ExitCode.OK
    assert "start the new node: converge-node --home" in capsys.readouterr().out
    assert load_identity(place.next.key_file).public_key == first.public_key
    kept = read_inheritance(place.next)
    assert kept is not None
    assert {each.pool for each in kept.places} == {pool.id.hex() for pool in (place.known.pool, waits, broken)}
    assert kept.waiting == ()


def test_a_kill_after_any_file_was_written_is_made_good_by_the_next_call(
    place: Held, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    import converge_node.config_change
    import converge_node.inheritance
    import converge_p2p.store.keyfile
    from converge_p2p.store import private_files

    places = [converge_node.config_change, converge_node.inheritance, converge_p2p.store.keyfile]
    real, count = private_files.write_private_file, [0]

    def write(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        count[0] -= 1
        if count[0] == 0:
            raise Killed

    (place.home / "config.toml").write_text('[log]\nlevel = "info"\n')
    for module in places:
        monkeypatch.setattr(module, "write_private_file", write)
    keys = set()
    for kill_at in (1, 2, 3, 4, 5):
        count[0] = kill_at
        try:
            code = place.rotate()
        except Killed:
            code = -1
        if place.next.key_file.exists():
            keys.add(load_identity(place.next.key_file).public_key)
        if code == 0:
            break
    else:
        raise AssertionError("it did not come to an end")
    assert kill_at > 2, "it was killed before it was done"
    assert keys == {place.known.pool.keys.heir}, "one new key, whatever happened"
    kept = read_inheritance(place.next)
    assert kept is not None
    assert (len(kept.places), kept.waiting) == (1, ())


def test_a_home_whose_key_is_not_new_is_refused(place: Held, capsys: pytest.CaptureFixture[str]) -> None:
    used = place.folder / "used"
    assert invoke(["--home", str(used), "init", "-q"]) == 0
    (used / DATABASE_FILE).touch()
    assert place.rotate(new="used") == ExitCode.CONFLICT
    assert "its key is not new" in capsys.readouterr().err
    # a home that was only made will do
    assert invoke(["--home", str(place.folder / "made"), "init", "-q"]) == 0
    key = load_identity(place.folder / "made" / "node.key")
    assert place.rotate(new="made") == 0
    assert place.known.pool.keys.heir == key.public_key
    # one that replaces another key will not, nor the own one, nor a copy of the own key
    foreign = resolve_paths(place.folder / "foreign")
    foreign.create()
    write_inheritance(foreign, Inheritance(old=THIEF.public_key.hex(), new=NEW.public_key.hex()))
    assert place.rotate(new="foreign") == ExitCode.CONFLICT
    assert place.rotate(new="home") == ExitCode.USAGE
    (place.folder / "copy").mkdir()
    save_identity(OWN, place.folder / "copy" / "node.key")
    assert place.rotate(new="copy") == ExitCode.CONFLICT
    assert "is the one that is to be replaced" in capsys.readouterr().err


def test_a_wrong_passphrase_costs_nothing_and_a_key_in_clear_is_sealed(
    place: Held, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = place.folder / "right", place.folder / "wrong"
    right.write_text("a passphrase\n")
    wrong.write_text("another\n")
    assert invoke(["--home", str(place.next.state_dir), "init", "-q"]) == 0
    key = load_identity(place.next.key_file)
    assert place.rotate("--passphrase-file", str(right)) == 0
    assert load_identity(place.next.key_file, "a passphrase").public_key == key.public_key
    with pytest.raises(LocalError, match="sealed"):
        load_identity(place.next.key_file)
    before = place.next.config_file.read_text()
    assert place.rotate("--passphrase-file", str(wrong)) != 0
    assert "wrong passphrase" in capsys.readouterr().err
    assert place.next.config_file.read_text() == before
    assert place.rotate() == 0
    assert place.known.pool.keys.heir == key.public_key


def test_an_inheritance_that_was_damaged_is_written_anew_also_after_the_new_node_ran(place: Held) -> None:
    assert place.rotate() == 0
    whole = inheritance_file(place.next).read_bytes()
    (place.next.state_dir / DATABASE_FILE).touch()
    inheritance_file(place.next).write_bytes(whole[:-9])
    assert place.rotate() == 0
    assert inheritance_file(place.next).read_bytes() == whole


def test_while_the_new_node_runs_its_home_is_left_alone(place: Held, capsys: pytest.CaptureFixture[str]) -> None:
    place.next.create()
    with single_instance(place.next.lock_file):
        assert place.rotate() == ExitCode.CONFLICT
    assert "a node already runs in" in capsys.readouterr().err
    assert place.known.pool.keys.heir is None


def test_the_key_that_gives_up_its_place_has_to_be_that_of_the_node(
    place: Held, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_identity(THIEF, place.folder / "thief.key")
    assert place.rotate("--key", str(place.folder / "thief.key")) == ExitCode.CONFLICT
    assert not place.next.state_dir.exists()
    monkeypatch.setenv(TOKEN_VARIABLE, place.tokens[Scope.ADMIN])
    far = ["--url", place.url, "identity", "rotate", "--new-home", str(place.next.state_dir)]
    assert invoke(far) == ExitCode.USAGE
    assert "has to sign this" in capsys.readouterr().err
    assert invoke([*far, "--key", str(place.home / "node.key")]) == 0
    assert place.known.pool.keys.heir == load_identity(place.next.key_file).public_key


def test_a_node_in_no_pool_has_nothing_to_hand_over(place: Held, capsys: pytest.CaptureFixture[str]) -> None:
    place.known.node.pools.clear()
    assert place.rotate() == 0
    assert "nothing to hand over" in capsys.readouterr().out


# ------------------------------------------------------------ the new node


def inherited(paths: NodePaths, *pools: PoolId, waiting: tuple[PoolId, ...] = ()) -> Inheritance:
    places = tuple(
        Place(pool=pool.hex(), name="x", authorisation=rotation(pool, OWN, NEW)[1].signature.hex(), content_keys="cw==")
        for pool in pools
    )
    made = Inheritance(
        old=OWN.public_key.hex(), new=NEW.public_key.hex(), places=places,
        waiting=tuple(pool.hex() for pool in waiting), bootstrap=("/ip4/192.0.2.1/tcp/1/p2p/x",),
    )  # fmt: skip
    paths.create()
    write_inheritance(paths, made)
    return made


async def test_every_place_is_entered_at_once_and_leaves_the_file_when_it_is_taken(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "converge_node.inheriting")
    paths, node, taken = resolve_paths(tmp_path / "n"), FakeNode(NEW), list[PoolLike]()
    here = await node.create_pool("here")
    far, waits = PoolId(b"f" * 32), PoolId(b"w" * 32)
    made = inherited(paths, here.id, far, waiting=(waits,))
    inheriting = Inheriting(paths, NEW)
    assert inheriting.bootstrap == made.bootstrap
    assert [inheriting.holds(pool) for pool in (here.id, far, waits, PoolId(b"x" * 32))] == [True, True, True, False]
    await inheriting.enter(node)
    assert node.joins.asking.held_back == {waits}
    words = {pool: rotation(pool, OWN, NEW)[1] for pool in (here.id, far)}
    assert node.taken == [(pool, words[pool], b"s", 0.0) for pool in (here.id, far)]
    with trio.move_on_after(1):
        await inheriting.run(node, taken.append)
    assert [pool.id for pool in taken] == [here.id]
    assert "took the place of the old key" in caplog.text
    left = read_inheritance(paths)
    assert left is not None
    assert ([place.id for place in left.places], left.waiting) == ([far], (waits.hex(),))
    # as after a kill: the next start goes on with what is left, and what was taken twice is taken once
    again = Inheriting(paths, NEW)
    node.pools[far] = here
    await again.run(node, taken.append)
    left = read_inheritance(paths)
    assert left is not None
    assert (left.places, again.bootstrap) == ((), ())
    assert again.holds(waits)


async def test_a_place_is_not_taken_before_the_new_node_has_what_the_old_one_may_be_alone_with(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    paths, node, taken = resolve_paths(tmp_path / "n"), FakeNode(NEW), list[PoolLike]()
    pool = await node.create_pool("far")
    pool.member = trio.Event()
    inherited(paths, pool.id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Inheriting(paths, NEW).run, node, taken.append)
        await trio.sleep(1)
        left = read_inheritance(paths)
        assert left is not None
        assert ([place.id for place in left.places], [each.id for each in taken]) == ([pool.id], [pool.id])
        pool.member.set()
    left = read_inheritance(paths)
    assert left is not None
    assert left.places == ()


@pytest.mark.parametrize("waits", [True, False])
def test_a_pool_that_waits_is_not_joined_whatever_the_settings_say(tmp_path: Path, waits: bool) -> None:
    announced, named, other = PoolId(tagged_hash("test", b"index")), PoolId(b"\xab" * 32), PoolId(b"\xcd" * 32)
    paths = resolve_paths(tmp_path)
    inherited(paths, waiting=(announced, named) if waits else ())
    save_identity(NEW, paths.key_file)
    pools = [word for pool in ("open", named.hex(), other.hex()) for word in ("--pool", pool)]
    words = ("--home", str(tmp_path), "--json", *pools, "--handler", "index=run_fake_node:index")
    with started(*words, fault="open-pool") as process:
        first_document(process)
        # every join was started before the announcement; this answer comes after they had their turn
        client = [sys.executable, "-m", "converge_node", "--home", str(tmp_path), "-q", "pool", "ls"]
        subprocess.run(client, env=environment(), check=True, capture_output=True, timeout=20)
        process.terminate()
        code, out, err = finish(process)
    assert code == 0, err
    joined = out.splitlines()[-1]
    assert "cdcdcd" in joined
    assert joined.count("joined-") == (1 if waits else 3), joined
    assert ("has not handed its place over" in err) == waits


async def test_a_node_that_inherits_nothing_holds_nothing(tmp_path: Path) -> None:
    for inheriting in (Inheriting(None, NEW), Inheriting(resolve_paths(tmp_path), NEW)):
        assert not inheriting.holds(PoolId(b"x" * 32))
        assert inheriting.bootstrap == ()
        await inheriting.enter(FakeNode(NEW))
        await inheriting.run(FakeNode(NEW), lambda _pool: None)


def test_an_inheritance_of_another_key_and_a_damaged_one_keep_the_node_from_starting(tmp_path: Path) -> None:
    paths = resolve_paths(tmp_path)
    inherited(paths, PoolId(b"x" * 32))
    with pytest.raises(ConfigError, match="for another key"):
        Inheriting(paths, THIEF)
    whole = inheritance_file(paths).read_bytes()
    for data in (b"", whole[:-9], whole.replace(b'"version":1', b'"version":2'), whole.replace(b"cw==", b"c")):
        inheritance_file(paths).write_bytes(data)
        with pytest.raises(ConfigError, match="is damaged"):
            Inheriting(paths, NEW)


def test_the_word_in_the_file_is_that_of_the_old_key(tmp_path: Path) -> None:
    pool = PoolId(b"x" * 32)
    made = inherited(resolve_paths(tmp_path), pool)
    word = made.word(made.places[0])
    assert word == SucceedBody(OWN.public_key, word.signature)
    assert is_signed(pool, NEW.public_key, word)
