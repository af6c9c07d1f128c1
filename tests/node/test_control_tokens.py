"""Tokens: who may do what over TCP, and that whoever has none may do nothing."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from control_kit import asking, ground, some_tokens

from converge_node.cli.main import invoke
from converge_node.control import tokens
from converge_node.control.tokens import Tokens, add_token, read_tokens, remove_token
from converge_node.errors import ExitCode
from converge_p2p.client.api import all_routes
from converge_p2p.client.routes import Scope
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, Conflict, LimitExceeded, NotFound


async def test_without_a_known_token_nothing_is_answered_and_with_a_small_one_nothing_is_written(
    tmp_path: Path,
) -> None:
    known = await ground()
    tokens, made = some_tokens(tmp_path)
    before = (dict(known.node.pools), known.pool.tasks())
    async with asking(known, tokens) as http:
        for route in all_routes().values():
            path = route.path.format(
                pool="demo", task=known.task.hex(), motion="0" * 6, agent="0" * 64, name="a", peer="x"
            )
            for wrong in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {made[Scope.ADMIN]}"},
                          {"authorization": "Bearer "}, {"authorization": f"Bearer {made[Scope.ADMIN]}x"}):  # fmt: skip
                answer = await http.request(route.method, path, headers=wrong)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "not_authenticated")
                assert answer.headers["www-authenticate"].startswith("Bearer")
            for scope in Scope:
                if scope >= route.scope:
                    continue
                answer = await http.request(
                    route.method, path, content=b"{}", headers={"authorization": f"Bearer {made[scope]}"}
                )
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_too_small")
        assert (await http.get("/openapi.json")).status_code == 401
    assert before == (dict(known.node.pools), known.pool.tasks())
    assert known.stops == []
    assert known.state.tokens_refused > 0


async def test_a_damaged_file_lets_nobody_in_and_tells_strangers_nothing_of_it(tmp_path: Path) -> None:
    known = await ground()
    (tmp_path / "api-tokens").write_text("damaged")
    async with asking(known, Tokens(tmp_path / "api-tokens")) as http:
        answer = await http.get("/v1/node", headers={"authorization": "Bearer x"})
    assert answer.status_code == 401
    assert str(tmp_path) not in answer.text


async def test_strangers_cannot_fill_the_log_while_the_file_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = await ground()
    tokens, _ = some_tokens(tmp_path)
    async with asking(known, tokens) as http:
        for text in ("nonsense\n", "name lord 00\n", "nonsense\n"):
            (tmp_path / "api-tokens").write_text("# a comment\n" * len(text) + text)
            for _ in range(5):
                assert (await http.get("/v1/node", headers={"authorization": "Bearer x"})).status_code == 401
    assert len([record for record in caplog.records if "nobody is let in" in record.message]) == 3


async def test_a_token_opens_what_its_scope_holds(tmp_path: Path) -> None:
    known = await ground()
    tokens, made = some_tokens(tmp_path)
    async with asking(known, tokens) as http:

        async def status(scope: Scope, verb: str, path: str, body: object = None) -> int:
            headers = {"authorization": f"bearer {made[scope]}"}
            return (await http.request(verb, path, json=body, headers=headers)).status_code

        assert await status(Scope.READ, "GET", "/v1/pools") == 200
        assert await status(Scope.READ, "POST", "/v1/agents/find", {}) == 200
        assert await status(Scope.WRITE, "POST", "/v1/pools/demo/tasks", {"objective": "index"}) == 200
        assert await status(Scope.WRITE, "POST", "/v1/invitations", {}) == 403
        assert await status(Scope.ADMIN, "POST", "/v1/invitations", {}) == 200
        assert await status(Scope.ADMIN, "POST", "/v1/shutdown") == 200


def test_which_routes_write_is_declared_by_hand_and_only_questions_are_for_readers() -> None:
    posts_for_readers = {
        name for name, route in all_routes().items() if route.method == "POST" and route.scope is Scope.READ
    }
    assert posts_for_readers == {"find_agents", "ping"}
    assert {name for name, route in all_routes().items() if route.scope is Scope.ADMIN} == {
        "shutdown", "write_invitation", "follow", "set_log_level", "reload", "rotate",
    }  # fmt: skip


def test_a_token_that_was_removed_opens_nothing_from_then_on(tmp_path: Path) -> None:
    tokens, made = some_tokens(tmp_path)
    assert tokens.scope_of(made[Scope.WRITE]) is Scope.WRITE
    remove_token(tmp_path / "api-tokens", "write")
    assert tokens.scope_of(made[Scope.WRITE]) is None
    assert tokens.scope_of(made[Scope.READ]) is Scope.READ
    (tmp_path / "api-tokens").unlink()
    assert tokens.scope_of(made[Scope.READ]) is None
    with pytest.raises(NotFound):
        remove_token(tmp_path / "api-tokens", "write")


def test_the_file_holds_no_token_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    _, made = some_tokens(tmp_path)
    file = tmp_path / "api-tokens"
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert not any(token in file.read_text() for token in made.values())
    assert len(read_tokens(file)) == 3


@pytest.mark.parametrize(
    "text", ["a read", "a own " + "0" * 64, "a read zz", "a read 00", "a read " + "0" * 64 + "\na admin " + "1" * 64]
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "api-tokens"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"line [12]"):
        Tokens(file).scope_of("x")


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "api-tokens"
    file.write_text("")
    file.chmod(0o622)
    with pytest.raises(ConfigError, match="written by others"):
        read_tokens(file)


def test_names_are_unique_and_their_number_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "api-tokens"
    add_token(file, "one", Scope.READ)
    with pytest.raises(Conflict):
        add_token(file, "one", Scope.ADMIN)
    with pytest.raises(ConfigError):
        add_token(file, "one admin", Scope.READ)
    monkeypatch.setattr(limits, "API_TOKENS_MAX", 1)
    with pytest.raises(LimitExceeded):
        add_token(file, "two", Scope.READ)


def test_a_token_that_is_made_while_another_is_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write, lock, made = tmp_path / "api-tokens", tokens._write, fcntl.flock, []
    waits = threading.Event()

    def second() -> None:
        made.append(add_token(file, "second", Scope.WRITE))
        waits.set()

    other = threading.Thread(target=second)

    def lock_and_say(handle: int, how: int) -> None:
        if threading.current_thread() is other:
            waits.set()
        lock(handle, how)

    def write_late(*arguments: Any) -> None:
        if threading.current_thread() is not other:
            other.start()
            assert waits.wait(20)
        write(*arguments)

    monkeypatch.setattr(tokens, "_write", write_late)
    monkeypatch.setattr(fcntl, "flock", lock_and_say)
    made.append(add_token(file, "first", Scope.READ))
    other.join(20)
    assert [token.name for token in read_tokens(file)] == ["first", "second"]
    assert sorted(map(str, map(Tokens(file).scope_of, made))) == sorted(map(str, (Scope.READ, Scope.WRITE)))
    assert os.listdir(tmp_path) == ["api-tokens"]


def test_tokens_are_made_listed_and_removed_by_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path)]
    assert invoke([*home, "api", "token", "new", "ci", "--scope", "write", "-q"]) == 0
    token = capsys.readouterr().out.strip()
    assert Tokens(tmp_path / "api-tokens").scope_of(token) is Scope.WRITE
    assert invoke([*home, "api", "token", "ls"]) == 0
    listed = capsys.readouterr().out
    assert "ci" in listed
    assert token not in listed
    assert invoke([*home, "api", "token", "new", "ci"]) == ExitCode.CONFLICT
    assert invoke([*home, "api", "token", "rm", "ci"]) == 0
    assert invoke([*home, "api", "token", "rm", "ci"]) == ExitCode.NOT_FOUND
