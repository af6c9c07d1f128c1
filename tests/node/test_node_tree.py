"""The whole command tree: every command explains itself, and ends as docs/operations.md says, whatever happens.

A new command has to be entered in `TREE`, or the first test fails.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import trio
from control_kit import served, some_receipt
from peer_fakes import peer_of

from converge_node.cli.client import TOKEN_VARIABLE
from converge_node.cli.main import invoke, root
from converge_node.config import load_settings
from converge_node.control.mesh import Meshes
from converge_node.error_catalogue import CATALOGUE
from converge_node.errors import ExitCode
from converge_node.profiles import PROFILES
from converge_p2p.client.routes import Scope
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.blob_text import reference_text
from converge_p2p.core.model.topic import Topic
from converge_p2p.store.home import DATABASE_FILE
from converge_p2p.store.keyfile import save_identity
from converge_p2p.store.sqlite import SqliteStore

OTHER = Identity.from_seed(b"\1" * 32)
READ, WRITE, LOCAL = "read", "write", "local"

TREE: dict[str, tuple[str, list[str], int]] = {
    # command: what it needs, its arguments for a success, and the exit code of that
    "id": (READ, [], 0),
    "status": (READ, [], 0),
    "top": (READ, ["--once"], 0),
    "health": (READ, [], 0),
    "peers ls": (READ, [], 0),
    "peers info": (READ, ["{peer}"], 0),
    "peers scores": (READ, [], 0),
    "peers add": (WRITE, ["/ip4/192.0.2.1/tcp/1/p2p/{peer}"], 0),
    "peers connect": (WRITE, ["{peer}"], 0),
    "peers disconnect": (WRITE, ["{peer}"], 0),
    "peers forget": (WRITE, ["{peer}"], 0),
    "peers block": (WRITE, ["{peer}", "--for", "60"], 0),
    "peers unblock": (WRITE, ["{peer}"], 0),
    "ping": (READ, ["{peer}", "--count", "2"], 0),
    "bootstrap ls": (READ, [], 0),
    "bootstrap add": (LOCAL, ["/ip4/192.0.2.1/tcp/1/p2p/{peer}"], 0),
    "bootstrap rm": (LOCAL, ["/ip4/192.0.2.9/tcp/1/p2p/{peer}"], ExitCode.NOT_FOUND),
    "metrics": (READ, [], 0),
    "events": (READ, ["--timeout", "0.01"], 0),
    "logs": (READ, [], 0),
    "shutdown": (WRITE, [], 0),
    "pool ls": (READ, [], 0),
    "pool show": (READ, ["demo"], 0),
    "pool audit": (READ, ["demo"], 0),
    "pool motions": (READ, ["demo"], 0),
    "pool create": (WRITE, ["new", "--governance", "democratic"], 0),
    "pool join": (WRITE, ["ab" * 32], 0),
    "pool leave": (WRITE, ["demo"], 0),
    "pool invite": (WRITE, ["demo"], ExitCode.USAGE),  # the pool admits everybody
    "pool joins": (READ, ["demo"], 0),
    "pool admit": (WRITE, ["demo", "{asking}"], 0),
    "pool refuse": (WRITE, ["demo", "{asking}", "--reason", "no room"], 0),
    "pool withdraw": (WRITE, ["ab" * 32], ExitCode.NOT_FOUND),  # nothing was asked for
    "pool expel": (WRITE, ["demo", f"key:{OTHER.public_key.hex()}"], 0),
    "pool members": (READ, ["demo"], 0),
    "pool electors": (READ, ["demo"], 0),
    "pool policy": (READ, ["demo"], 0),
    "pool disputes": (READ, ["demo"], 0),
    "pool vouch": (WRITE, ["demo", f"{Identity.from_seed(bytes(32)).id}"], 0),
    "pool propose": (WRITE, ["demo", "--renew"], 0),
    "pool vote": (WRITE, ["demo", "{motion}", "yes"], 0),
    "agent ls": (READ, [], 0),
    "agent find": (READ, [], 0),
    "agent show": (READ, ["{agent}"], 0),
    "agent hosted": (READ, [], 0),
    "agent checkpoints": (READ, [], 0),
    "agent publish": (WRITE, ["--capability", "index"], 0),
    "agent revoke": (WRITE, [], 0),
    "agent record": (READ, ["a", "--out", "{folder}/turns"], 0),
    "agent replay": (LOCAL, ["{folder}/empty"], 0),
    "task ls": (READ, ["demo"], 0),
    "task show": (READ, ["demo", "{task}"], 0),
    "task result": (READ, ["demo", "{task}", "--timeout", "0.01"], ExitCode.TIMEOUT),
    "task watch": (READ, ["demo", "{task}", "--timeout", "0.01"], ExitCode.TIMEOUT),
    "task evidence": (READ, ["demo", "{task}"], 0),
    "task explain": (READ, ["demo", "{task}"], 0),
    "task receipt": (READ, ["demo", "{task}", "-o", "{folder}/again.receipt"], 0),
    "receipt verify": (LOCAL, ["{folder}/a.receipt"], 0),
    "task submit": (WRITE, ["demo", "index", "--input", "n:=2"], 0),
    "task cancel": (WRITE, ["demo", "{task}"], 0),
    "task claim": (WRITE, ["demo", "{task}"], 0),
    "task release": (WRITE, ["demo", "{task}"], 0),
    "task report": (WRITE, ["demo", "{task}", "--failed", "no time"], 0),
    "task veto": (WRITE, ["demo", "{task}"], 0),
    "task pass": (WRITE, ["demo", "{task}"], ExitCode.CONFLICT),  # no result waits
    "task judge": (WRITE, ["demo", "{task}", "approve"], ExitCode.CONFLICT),
    "task dispute": (WRITE, ["demo", "{task}"], 0),
    "task cite": (WRITE, ["demo", "{task}", "--digest", "00" * 32, "--value", "00" * 32], 0),
    "blob ls": (READ, [], 0),
    "blob put": (WRITE, ["{folder}/empty"], 0),
    "blob get": (READ, ["{blob}", "--output", "{folder}/got"], 0),
    "blob rm": (WRITE, ["{blob}"], 0),
    "mesh ls": (READ, [], 0),
    "mesh invite": (WRITE, [], 0),
    "mesh new": (LOCAL, ["{folder}/swarm.key"], 0),
    "mesh join": (WRITE, ["{line}"], 0),
    "mesh rotate": (LOCAL, ["{folder}/new-swarm.key"], 0),
    "join": (WRITE, ["{line}"], 0),
    "topic ls": (READ, [], 0),
    "topic join": (WRITE, ["acme/more"], 0),
    "topic leave": (WRITE, ["acme/more"], 0),
    "topic peers": (READ, ["acme/kept"], 0),
    "topic pub": (WRITE, ["acme/kept", "1"], 0),
    "topic sub": (READ, ["acme/kept", "--timeout", "0.01"], 0),
    "topic new-key": (LOCAL, ["{folder}/topic.key"], 0),
    "api openapi": (LOCAL, [], 0),
    "api token new": (LOCAL, ["t"], 0),
    "api token ls": (LOCAL, [], 0),
    "api token rm": (LOCAL, ["none"], ExitCode.NOT_FOUND),
    "config show": (LOCAL, [], 0),
    "config get": (LOCAL, ["log.level"], 0),
    "config set": (LOCAL, ["log.level", "debug"], 0),
    "config reload": (WRITE, [], 0),
    "config schema": (LOCAL, [], 0),
    "config paths": (LOCAL, [], 0),
    "config validate": (LOCAL, [], 0),
    "store info": (LOCAL, [], 0),
    "store verify": (LOCAL, [], 0),
    "store backup": (LOCAL, ["{folder}/backup"], 0),
    "store restore": (LOCAL, ["{folder}/backup"], ExitCode.CONFLICT),  # the home has a database
    "store compact": (LOCAL, [], 0),
    "init": (LOCAL, [], 0),
    "identity show": (LOCAL, [], 0),
    "identity export": (LOCAL, ["{folder}/copy.key"], 0),
    "identity import": (LOCAL, ["{folder}/none.key"], ExitCode.NOT_FOUND),
    "identity seal": (LOCAL, [], 0),
    "identity verify": (LOCAL, [], 0),
    "identity rotate": (WRITE, ["--new-home", "{folder}/next", "--key", "{folder}/present.key"], 0),
    "service unit": (LOCAL, [], 0),
    "completion": (LOCAL, ["bash"], 0),
    "errors": (LOCAL, ["busy"], 0),
    "version": (LOCAL, [], 0),
}
ELSEWHERE = {"run", "demo", "sim", "mcp", "doctor", "bootstrap test", "web"}
"""Commands that run for long or look at the whole machine; they have tests of their own."""


def leaves(command: click.Command = root, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    context = click.Context(command, info_name="converge-node")
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from leaves(found, (*path, name))


ALL = dict(leaves())


def test_the_table_names_every_command() -> None:
    assert set(TREE) | ELSEWHERE == set(ALL)


@pytest.mark.parametrize("path", ALL)
def test_a_command_explains_itself_with_an_example_it_understands(
    path: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke([*path.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: converge-node" in shown
    examples = re.findall(rf"^ *(converge-node {path}\b.*)$", shown, re.MULTILINE)
    if path == "mcp":
        return
    assert examples, "its help shows no example"
    monkeypatch.chdir(tmp_path)
    for example in examples:
        words = shlex.split(re.split(r" [<>] ", example)[0])[1 + len(path.split()) :]
        for name in words:
            if name in ("turns.ndjson", "report.pdf"):
                Path(name).touch()
        with ALL[path].make_context("converge-node", words):
            pass


@pytest.mark.parametrize("path", ALL)
def test_wrong_arguments_end_with_2(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = path.split()
    assert invoke([*words, "--no-such-option"]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert "No such option" in captured.err
    assert captured.out == ""
    assert invoke([*words, *["superfluous"] * 7]) == ExitCode.USAGE
    if any(isinstance(each, click.Argument) and each.required for each in ALL[path].params):
        assert invoke(words) == ExitCode.USAGE
        assert "Missing argument" in capsys.readouterr().err


@dataclass
class Place:
    """A node that answers in another thread."""

    home: Path
    url: str
    tokens: dict[Scope, str]
    fitting: dict[str, str]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    ready, ended = threading.Event(), trio.Event()
    places: list[Place] = []
    tokens: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        home = tmp_path / "home"
        home.mkdir()
        (tmp_path / "empty").touch()
        (tmp_path / "a.receipt").write_bytes(some_receipt().to_bytes())
        async with served(home) as (known, _, url, made):
            known.state.meshes = Meshes()
            await known.state.meshes.join(known.node, Topic("acme/kept"), None)
            known.pool.receipts[known.task] = some_receipt()
            agent = known.node.discovery.know(OTHER).agent_id
            line = await known.node.invitations.write(role="worker")
            motion = (await known.pool.council.move(expel=[OTHER.public_key])).hex()
            known.node.joins.requests.hold(known.pool.id, OTHER.public_key)
            save_identity(known.node.identity, tmp_path / "present.key")
            held = await known.node.blobs.put(b"a content")
            fitting = {"blob": reference_text(held), "peer": peer_of(OTHER), "asking": OTHER.id}
            fitting |= {"task": known.task.hex(), "agent": agent, "line": line, "motion": motion}
            places.append(Place(home, url, made, fitting | {"folder": str(tmp_path)}))
            tokens.append(trio.lowlevel.current_trio_token())
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(30)
    assert invoke(["--home", str(places[0].home), "init", "-q"]) == 0
    SqliteStore(places[0].home / DATABASE_FILE).close()
    try:
        yield places[0]
    finally:
        tokens[0].run_sync_soon(ended.set)
        thread.join(30)


def test_every_command_succeeds_against_a_node_and_prints_one_envelope(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    # what removes something for others comes last
    last = {"blob rm": 1, "pool leave": 1, "shutdown": 2}
    for path in sorted(TREE, key=lambda path: last.get(path, 0)):
        _, words, code = TREE[path]
        capsys.readouterr()
        given = [word.format(**place.fitting) for word in words]
        got = invoke(["--home", str(place.home), *path.split(), *given, "--json"])
        captured = capsys.readouterr()
        assert got == code, (path, captured)
        if path in ("api openapi", "task watch", "topic sub", "events", "blob get"):
            continue
        (line,) = captured.out.splitlines()
        envelope = json.loads(line)
        assert (envelope["v"], envelope["ok"]) == (1, code == 0), path
        assert captured.err == "", path


def test_a_token_that_may_only_read_reads_and_writes_nothing(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, place.tokens[Scope.READ])
    for path, (kind, words, code) in TREE.items():
        if kind == LOCAL:
            continue
        given = [word.format(**place.fitting) for word in words]
        capsys.readouterr()
        got = invoke(["--url", place.url, *path.split(), *given])
        captured = capsys.readouterr()
        if kind == READ:
            assert got == code, (path, captured)
        else:
            assert got == ExitCode.NOT_AUTHORISED, (path, captured)
            assert "the token allows to read, and this needs" in captured.err
    monkeypatch.setenv(TOKEN_VARIABLE, place.tokens[Scope.ADMIN])
    monkeypatch.setenv("CONVERGE_NODE_HOME", place.fitting["folder"] + "/unused")
    assert invoke(["--url", place.url, "join", place.fitting["line"]]) == 0
    assert invoke(["--url", "http://127.0.0.1:1", "join", place.fitting["line"]]) == ExitCode.UNREACHABLE
    assert not Path(place.fitting["folder"], "unused").exists(), "a node elsewhere keeps nothing here"
    assert invoke(["--url", place.url, "--home", "x", "pool", "ls"]) == ExitCode.USAGE
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert invoke(["--url", place.url, "pool", "ls"]) == ExitCode.NOT_AUTHORISED
    assert "converge-node api token new" in capsys.readouterr().err


def test_a_dry_run_says_what_it_would_do_and_does_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> list[tuple[str, bytes]]:
        files = sorted(each for each in place.home.rglob("*") if each.is_file())
        return [(each.name, each.read_bytes()) for each in files]

    before = state()
    changes = [path for path, (kind, _, _) in TREE.items() if kind == WRITE]
    changes += ["init", "identity export", "identity seal", "config set", "mesh new", "topic new-key", "api token new"]
    changes += ["store backup", "store compact"]
    for path in changes:
        given = [word.format(**place.fitting) for word in TREE[path][1]]
        capsys.readouterr()
        assert invoke(["--dry-run", "--home", str(place.home), *path.split(), *given]) == 0, path
        assert capsys.readouterr().out.startswith("would "), path
    assert state() == before
    assert invoke(["--home", str(place.home), "pool", "ls", "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    "path", [path for path, (kind, _, _) in TREE.items() if kind != LOCAL and "join" not in path.split()[:2]]
)
def test_without_a_node_a_command_ends_with_4_and_says_how_to_start_one(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    fitting = dict.fromkeys(("task", "agent", "motion", "blob", "peer", "asking"), "ab" * 32)
    fitting |= {"folder": str(tmp_path), "line": ""}
    words = [word.format(**fitting) for word in TREE[path][1]]
    assert invoke(["--home", str(tmp_path / "none"), *path.split(), *words]) == ExitCode.UNREACHABLE
    captured = capsys.readouterr()
    assert f"no node answers on {tmp_path / 'none' / 'control.sock'}" in captured.err
    assert "start one with `converge-node`" in captured.err
    assert captured.out == ""


def test_a_socket_that_this_user_may_not_open_ends_with_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("converge_p2p.client.sync._UnixConnection.connect", refuse)
    assert invoke(["--home", str(tmp_path), "pool", "ls", "--json"]) == ExitCode.NOT_AUTHORISED
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "socket_forbidden"


def codes(kind: type[ConvergeError]) -> Iterator[str]:
    yield kind.code
    for each in kind.__subclasses__():
        if each.__module__.startswith("converge_"):
            yield from codes(each)


def test_the_catalogue_explains_every_code_that_is_raised_and_no_other() -> None:
    sources = itertools.chain(
        *(Path(__file__).parents[2].glob(f"{folder}/**/*.py") for folder in ("converge_p2p", "node/converge_node"))
    )
    found = {
        code
        for source in sources
        for code in re.findall(r'(?:^    code = |Refused\()"([a-z_]+)"', source.read_text("utf-8"), re.MULTILINE)
    }
    assert set(codes(ConvergeError)) <= found
    assert set(CATALOGUE) == found
    for code, entry in CATALOGUE.items():
        assert entry.meaning.endswith("."), code
        assert entry.remedy.endswith("."), code


def test_a_shell_completes_commands_options_and_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def completed(words: str) -> list[str]:
        monkeypatch.setenv("_CONVERGE_NODE_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        with pytest.raises(SystemExit) as ended:
            invoke([])
        assert ended.value.code == 0
        return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()]

    assert "task" in completed("converge-node ")
    assert completed("converge-node pool cr") == ["create"]
    assert "--elector" in completed("converge-node pool create --el")
    assert completed("converge-node pool create x --governance dic") == ["dictatorial"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_changes_defaults_and_nothing_that_was_said(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(
        f'[node]\nprofile = "{profile}"\n[network]\nlisten = ["/ip4/127.0.0.1/tcp/1"]\n'
    )
    assert invoke(["--home", str(tmp_path), "config", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["data"]
    assert shown["settings"]["network"]["listen"] == ["/ip4/127.0.0.1/tcp/1"]
    for path, value in PROFILES[profile].items():
        section, name = path.split(".")
        if path != "network.listen":
            assert (shown["settings"][section][name], shown["sources"][path]) == (value, "profile")


@pytest.mark.parametrize(
    ("profile", "found_on_the_link"),
    [("default", False), ("server", False), ("desktop", True), ("lan", True), ("private", False), ("test", False)],
)
def test_a_node_says_on_its_link_that_it_is_there_only_where_its_profile_is_for_that(
    profile: str, found_on_the_link: bool, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[node]\nprofile = "{profile}"\n')
    assert load_settings(file, environment={}).config.network.mdns is found_on_the_link
    file.write_text(f'[node]\nprofile = "{profile}"\n[network]\nmdns = {str(not found_on_the_link).lower()}\n')
    assert load_settings(file, environment={}).config.network.mdns is not found_on_the_link


def test_settings_are_changed_one_at_a_time_and_comments_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(tmp_path)]
    file = tmp_path / "config.toml"
    file.write_text("# mine\n[log]\nlevel = 'debug'  # loud\n")
    assert invoke([*home, "config", "set", "network.mdns", "true"]) == 0
    assert invoke([*home, "config", "set", "log.level", "error"]) == 0
    assert file.read_text().startswith('# mine\n[log]\nlevel = "error"  # loud\n')
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    for wrong in (["log.levl", "debug"], ["log.level", "loud"], ["tasks.concurrency", "many"], ["network", "x"]):
        assert invoke([*home, "config", "set", *wrong]) == ExitCode.BAD_CONFIGURATION
    assert "did you mean log.level?" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_key_is_exported_sealed_imported_elsewhere_and_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> int:
        capsys.readouterr()
        return invoke(list(words))

    one, two, copy = str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "copy.key")
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    assert run("--home", one, "init", "-q") == 0
    agent = capsys.readouterr().out
    assert run("--home", one, "identity", "export", copy, "--passphrase-file", str(secret)) == 0
    assert run("--home", one, "identity", "export", copy) == ExitCode.CONFLICT
    assert run("--home", two, "identity", "import", copy) != 0
    assert run("--home", two, "identity", "import", copy, "--passphrase-file", str(secret), "-q") == 0
    assert capsys.readouterr().out == agent
    assert run("--home", two, "identity", "import", copy, "--passphrase-file", str(secret)) == ExitCode.CONFLICT
    assert run("--home", two, "identity", "seal", "--passphrase-file", str(secret)) == 0
    assert run("--home", two, "identity", "show") != 0
    assert run("--home", two, "config", "set", "identity.passphrase_file", str(secret)) == 0
    assert run("--home", two, "identity", "show", "-q") == 0
    assert capsys.readouterr().out == agent
