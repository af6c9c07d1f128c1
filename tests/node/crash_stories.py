"""Two stories of a node's home, told until they are killed, and told again over what the kill left.

Knows: what a node promises to whom, and how that can be asked for afterwards. Must not know: where it is killed.
A promise is said with `say` once whoever it was given to could rely on it. In the second telling, `said` holds what the
first one promised; it is asked for, and what was cut off is done again.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from converge_node.config import load_settings, write_example
from converge_node.config_change import changed_file, write_settings
from converge_node.control.tokens import Scope, add_token, read_tokens, remove_token
from converge_p2p import Agent, AgentParts, Message, Node, NodeConfig, PoolHandle, PoolPolicy, Task, TaskView
from converge_p2p.core.governance import Dictatorial
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.blob import Manifest
from converge_p2p.core.model.blob_text import reference_text
from converge_p2p.core.model.decision import Decision
from converge_p2p.core.model.join_request import JoinAsk
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.oplog.operation import decode_operation, operation_id
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import BlobId, PoolId
from converge_p2p.net import NetworkConfig, peer_id_of
from converge_p2p.node.declarations import DECLARED_KEY
from converge_p2p.node.join_requests import HELD_KEY
from converge_p2p.node.switchboard import Switchboard
from converge_p2p.store import schema
from converge_p2p.store.archive import backup_home, examine_backup, restore_home
from converge_p2p.store.copies import reading
from converge_p2p.store.home import BLOB_FOLDER, DATABASE_FILE, KEY_FILE
from converge_p2p.store.keyfile import load_identity, load_or_create_identity, save_identity
from converge_p2p.store.migrations import backup_before
from converge_p2p.store.sqlite import SqliteStore
from converge_p2p.store.upkeep import compact_home, examine_database, home_facts

CONFIG = NodeConfig(network=NetworkConfig(listen=(), dht=False))
POLICY = PoolPolicy(hold_off_ms=1, grant_timer_ms=50)
CHECKPOINT_OPERATIONS = 16
TASKS = 4
PATIENCE_S = 60
CONTENT = bytes(range(256)) * 400
TAKEN = b"\x01"

Say = Callable[..., None]
Said = dict[str, list[list[str]]]


def who(number: int) -> Identity:
    """Return the same identity for the same number."""
    return Identity.from_seed(hashlib.sha256(b"crash-%d" % number).digest())


def prepare(say: Say) -> None:
    """Make checkpoints frequent in this process, and say of every operation when it is sent."""
    defaults = Replica.__init__.__kwdefaults__
    assert defaults is not None
    defaults["checkpoint_operations"] = CHECKPOINT_OPERATIONS
    publish = Switchboard.publish_pool

    def publish_pool(self: Switchboard, pool: PoolId, operations: tuple[bytes, ...], peers: Any) -> None:
        for signed in operations:
            operation = decode_operation(signed, pool)
            say("sent", pool.hex(), operation.author.hex(), str(operation.seq), operation_id(signed).hex())
        publish(self, pool, operations, peers)

    Switchboard.publish_pool = publish_pool  # type: ignore[method-assign]


class Reader(Agent):
    """Says which messages it saw."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self.say = say
        self.got: list[str] = []
        self.more = trio.Event()

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        for message in messages:
            self.got.append(message.id.hex())
            self.say("seen", message.id.hex())
        self.more.set()
        self.more = trio.Event()
        return []


class Worker:
    """Does tasks, and remembers which."""

    def __init__(self) -> None:
        self.did: list[int] = []

    async def __call__(self, task: TaskView, context: object) -> int:
        self.did.append(task.inputs["n"])
        return int(task.inputs["n"]) + 1


async def _do_task(pool: PoolHandle, number: int, say: Say) -> str:
    """Submit a task under a key that names it for ever, and wait for its result."""
    handle = await pool.submit(Task("count", {"n": number}, key=f"n{number}"))
    say("task", pool.id.hex(), handle.id.hex(), str(number))
    result = await handle.result()
    assert result.value == number + 1
    say("result", pool.id.hex(), handle.id.hex(), str(number))
    return handle.id.hex()


async def life(home: Path, said: Said, say: Say) -> None:
    """One run of a node, from its start to its orderly end. What earlier runs promised has to hold."""
    with trio.fail_after(PATIENCE_S):
        async with Node(home=home, listen=(), config=CONFIG) as node:
            say("identity", node.id)
            assert {node.id} >= {name for (name,) in said["identity"]}, "another key than before"
            await _check(node, home, said)
            await _pools(node, said, say)
            await _mail(node, said, say)
            await _rest(node, home, said, say)


async def _check(node: Node, home: Path, said: Said) -> None:
    for (pool,) in said["pool"]:
        if [pool] not in said["leaving"]:
            assert bytes.fromhex(pool) in node.pools, "a pool was forgotten"
    for (pool,) in said["left"]:
        assert bytes.fromhex(pool) not in node.pools, "a pool that was left is back"
    me = node.public_key.hex()
    for pool, author, seq, _ in said["sent"]:
        handle = node.pools.get(PoolId(bytes.fromhex(pool)))
        if handle is not None and author == me:
            assert handle.own_operations > int(seq), f"the own chain ends before number {seq}, which was sent"
    for (text,) in said["blob"]:
        assert await node.blobs.get(text) == CONTENT
    for (peer,) in said["blocked"]:
        assert peer in {str(each) for each in node.links.blocked()}
    for (key,) in said["held"]:
        assert any(key in name for name in node._store.list(HELD_KEY)), "a request to join was forgotten"
    if said["fetched"]:
        assert (home.parent / "fetched").read_bytes() == CONTENT
    if said["advertised"]:
        assert node._store.list(DECLARED_KEY), "what the agent says of itself was forgotten"


async def _pools(node: Node, said: Said, say: Say) -> None:
    """Found what is missing, do some tasks until a checkpoint shortens the log, and leave a pool."""
    by_name = {pool.name: pool for pool in node.pools.values() if pool.ready}
    for name, admission in (("work", AdmissionKind.OPEN), ("closed", AdmissionKind.TOKEN)):
        if name not in by_name:
            by_name[name] = await node.create_pool(name, governance=Dictatorial(), policy=POLICY, admission=admission)
            say("pool", by_name[name].id.hex())
    work, closed = by_name["work"], by_name["closed"]
    worker = Worker()
    work.add_handler("count", worker)
    known = {int(number): task for _, task, number in said["task"]}
    first = max(known, default=-1) + 1
    # what was submitted before the kill is finished, and some more
    for number in (*sorted(known), *range(first, first + TASKS)):
        task = await _do_task(work, number, say)
        assert known.get(number, task) == task, "a task that was submitted was forgotten"
    settled = {int(number) for _, _, number in said["result"]}
    assert not settled & set(worker.did), "a task whose result was told is done again"
    while node._store.snapshot(work.id) is None:  # noqa: ASYNC110 - nobody is told when the log was shortened
        await trio.sleep(0.01)
    if not said["line"]:
        await node.invitations.write(pool=closed, uses=2)
        say("line")
    joiner = who(60).public_key
    answer = await node.joins.requests.on_ask(peer_id_of(joiner), JoinAsk(closed.id, "let me in").to_bytes())
    assert answer
    say("held", joiner.hex())
    if not said["left"]:
        brief = by_name.get("brief") or await node.create_pool("brief", governance=Dictatorial(), policy=POLICY)
        say("pool", brief.id.hex())
        say("leaving", brief.id.hex())
        await brief.leave()
        say("left", brief.id.hex())


async def _mail(node: Node, said: Said, say: Say) -> None:
    """Take messages, the old ones again, and show each to the agent."""
    reader = Reader(say)
    await node.host(reader, parts=AgentParts(durable_inbox=True))
    seen = {message for (message,) in said["seen"]}
    owed = {message for message, _ in said["taken"]} - seen
    again = [bytes.fromhex(data) for _, data in said["taken"]]
    fresh = [
        Message.create(who(70).id, {"n": number}, recipient=node.id).stamp(_now_ms()).sign(who(70)) for number in (1, 2)
    ]
    for data in (*again, *(message.to_bytes() for message in fresh)):
        answer = await node._mail.on_request(data)
        assert answer.startswith(TAKEN), f"refused: {answer!r}"
        say("taken", Message.from_bytes(data).id.hex(), data.hex())
    owed |= {message.id.hex() for message in fresh}
    while not owed <= set(reader.got):
        await reader.more.wait()
    assert len(reader.got) == len(set(reader.got)), "the agent was shown a message twice in one run"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _rest(node: Node, home: Path, said: Said, say: Say) -> None:
    """Blobs, a file, a peer that is kept out, and what this agent says of itself."""
    reference = await node.blobs.put(CONTENT)
    say("blob", reference_text(reference))
    await node.blobs.fetch(reference, home.parent / "fetched")
    say("fetched")
    await node.links.block(peer_id_of(who(50).public_key))
    say("blocked", str(peer_id_of(who(50).public_key)))
    own = await node.discovery.register(["count"], keep=True)
    # a descriptor is signed: two with one number are a lie of its author
    say("descriptor", node.id, str(own.sequence), hashlib.sha256(own.to_bytes()).hexdigest())
    say("advertised")


def node_story(folder: Path, said: Said, say: Say) -> None:
    """A node from its first start on: two runs of it, or one after a kill."""
    prepare(say)
    home = folder / "home"
    now: Said = defaultdict(list, {name: list(items) for name, items in said.items()})

    def also(name: str, *values: str) -> None:
        now[name].append(list(values))
        say(name, *values)

    for _ in range(1 if said else 2):
        before: Said = defaultdict(list, {name: list(items) for name, items in now.items()})
        trio.run(life, home, before, also)
    found = examine_database(home / DATABASE_FILE)
    assert not found.wrong, found.findings
    _check_files(folder)


# ------------------------------------------------------------------ files


def make_old_database(path: Path) -> None:
    """What a program of schema version 1 left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in schema.STEPS[0].statements:
            database.execute(statement)
        database.execute("PRAGMA user_version = 1")
        database.execute("INSERT INTO operations (pool, id, data) VALUES (?, ?, ?)", (b"p" * 32, b"1" * 32, b"one"))
        database.execute("INSERT INTO entries VALUES ('a', x'01')")


def _held(path: Path) -> tuple[int, list[bytes], bytes | None]:
    with reading(path) as database:
        return database.version, [data for _, _, data in database.operations()], database.value("a")


def files_story(folder: Path, said: Said, say: Say) -> None:
    """What is done with the files of a home: `folder / "home"` is that of a node that ended."""
    prepare(say)
    home, agent = folder / "home", load_identity(folder / "home" / KEY_FILE)
    for name in said:
        if name.endswith("-key"):
            assert load_identity(folder / name).id == said[name][-1][0], "a key that was told is gone"
    _keys(folder, say)
    _migration(folder, say)
    _settings(folder, said, say)
    blobs = _blobs(home)
    assert blobs
    for name, salvage in (("backup", False), ("saved", True)):
        target = folder / name
        if said[name]:
            assert target.exists()
        if not target.exists():
            backup_home(home, target, agent=agent, secret_files={KEY_FILE: home / KEY_FILE}, salvage=salvage)
        manifest, found = examine_backup(target)
        assert (manifest.agent, found.wrong, manifest.blobs) == (agent.id, 0, len(blobs)), found.findings
        say(name)
    for name, moved in (("moved", True), ("restored", False)):
        target = folder / name
        if said[name]:
            assert (target / DATABASE_FILE).exists()
        if not (target / DATABASE_FILE).exists():
            settings = (target / "config.toml", b"[log]\n")
            restore_home(folder / "backup", target, moved=moved, settings=settings, beside=["config.toml"])
            assert settings[0].read_bytes() == settings[1]
        say(name)
        assert _blobs(target) == blobs
        assert load_identity(target / KEY_FILE).id == agent.id
        facts = home_facts(target)
        assert facts.restored is not moved
        assert all(pool.in_doubt is not moved for pool in facts.pools)
    compact_home(home, left_pools=True)
    say("compacted")
    for each in (home, folder / "moved", folder / "restored"):
        found = examine_database(each / DATABASE_FILE)
        assert not found.wrong, found.findings
    _check_files(folder)


def _blobs(home: Path) -> set[BlobId]:
    """Which blobs a home has, all of which are whole. Nothing is written, so that this is no point of its own."""
    folders = [each for each in (home / BLOB_FOLDER).iterdir() if (each / "manifest").exists()]
    for each in folders:
        manifest = Manifest.from_bytes(BlobId(bytes.fromhex(each.name)), (each / "manifest").read_bytes())
        for index, name in enumerate(manifest.hashes):
            manifest.check_chunk(index, (each / name.hex()).read_bytes())
    return {BlobId(bytes.fromhex(each.name)) for each in folders}


def _keys(folder: Path, say: Say) -> None:
    first = load_or_create_identity(folder / "first-key")
    say("first-key", first.id)
    # as if it were given a passphrase: no other copy of it may stay
    save_identity(first, folder / "first-key", replace=True)
    for number in (80, 81):
        save_identity(who(number), folder / "replaced.key", replace=True)
        assert load_identity(folder / "replaced.key").id == who(number).id


def _migration(folder: Path, say: Say) -> None:
    old = folder / "old" / DATABASE_FILE
    version, *content = _held(old)
    assert content == [[b"one"], b"\x01"]
    if version == schema.SCHEMA_VERSION:
        assert _held(backup_before(old, 1)) == (1, *content)
    SqliteStore(old).close()
    say("migrated")
    assert _held(old) == (schema.SCHEMA_VERSION, *content)


def _settings(folder: Path, said: Said, say: Say) -> None:
    settings, tokens = folder / "config.toml", folder / "tokens"
    write_example(settings)
    load_settings(settings, environment={})
    for level in ("debug", "info"):
        write_settings(settings, changed_file(settings, "log.level", level))
        say("level", level)
        assert f'level = "{level}"' in settings.read_text()
    names = {token.name for token in read_tokens(tokens)}
    assert {"kept"} & names or not said["token"], "a token that was handed out is gone"
    if "kept" not in names:
        add_token(tokens, "kept", Scope.READ)
    say("token")
    if "brief" not in names:
        add_token(tokens, "brief", Scope.READ)
    remove_token(tokens, "brief")
    assert [token.name for token in read_tokens(tokens)] == ["kept"]


async def _one_more(home: Path, said: Said, say: Say) -> None:
    with trio.fail_after(PATIENCE_S):
        async with Node(home=home, listen=(), config=CONFIG) as node:
            (work,) = [pool for pool in node.pools.values() if pool.name == "work"]
            work.add_handler("count", Worker())
            await _do_task(work, 1000, say)


def work_in_moved_home(folder: Path, said: Said, say: Say) -> None:
    """A node in the home that was put back at another place goes on at once."""
    prepare(say)
    trio.run(_one_more, folder / "moved", said, say)
    _check_files(folder)


def _check_files(folder: Path) -> None:
    """Nothing can be read by others, and nothing that a kill cut off stays."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.is_socket():
            continue
        assert path.stat().st_mode & 0o077 == 0 or path.name == "fetched", f"{path} can be read by others"
        if path.suffix == ".key":
            assert path.stat().st_size, f"{path} is empty"
