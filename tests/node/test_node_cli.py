"""The command line by itself: what it loads, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from converge_node.cli.main import invoke
from converge_node.cli.output import table
from converge_node.errors import ExitCode, exit_code_of

ROOT = Path(__file__).parents[2]
HEAVY = ("libp2p", "trio", "starlette", "hypercorn", "httpx", "rich", "structlog", "msgspec", "nacl", "anyio")

_PROBE = """
import json, sys
from converge_node.cli.main import invoke
code = invoke(sys.argv[1:])
print("\\n" + json.dumps([code, sorted(name for name in sys.modules if "." not in name)]))
"""


def modules_after(*words: str) -> tuple[int, set[str]]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'node'}",
        "HOME": "/nonexistent",
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *words], capture_output=True, text=True, env=environment, check=True, timeout=30
    )
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, set(names)


def test_help_and_version_load_nothing_heavy() -> None:
    for words in (["--help"], ["--version"], ["--home", "/nonexistent", "-h"]):
        code, loaded = modules_after(*words)
        assert code == 0
        assert loaded.isdisjoint(HEAVY)


def test_client_commands_load_neither_libp2p_nor_an_event_loop() -> None:
    for words in (["pool", "ls"], ["task", "ls", "demo"], ["status"], ["config", "show"], ["peers", "ls"], ["doctor"]):
        code, loaded = modules_after("--home", "/nonexistent/home", *words)
        assert code == (0 if words[0] in ("config", "doctor") else ExitCode.UNREACHABLE)
        assert loaded.isdisjoint({*HEAVY} - {"msgspec", "nacl"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pol", "ls"], "Did you mean 'pool'?"),
        (["pool", "creat", "x"], "Did you mean 'create'?"),
        (["task", "submit", "demo"], "Missing argument 'OBJECTIVE'"),
        (
            ["pool", "create", "x", "--governance", "anarchic"],
            "'anarchic' is not one of 'democratic', 'dictatorial'",
        ),
        (["--home"], "requires an argument"),
        (["--home", "", "id"], "'--home': it is empty"),
        (["id", "--url", ""], "'--url': it is empty"),
    ],
)
def test_a_mistyped_command_line_ends_with_2_and_a_hint(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(words) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_errors_in_json_are_one_envelope_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--json", "--home", str(tmp_path), "pool", "ls"], ["pool", "ls", "--home", str(tmp_path), "--json"]):
        assert invoke(words) == ExitCode.UNREACHABLE
        captured = capsys.readouterr()
        (line,) = captured.out.splitlines()
        document = json.loads(line)
        assert (document["v"], document["ok"], document["error"]["code"]) == (1, False, "node_unreachable")
        assert "--home" in document["error"]["hint"]
        assert captured.err == ""


def test_shared_options_stand_between_the_words_of_a_command_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["api", "--home", str(tmp_path), "token", "--json", "ls"]) == 0
    assert json.loads(capsys.readouterr().out) == {"v": 1, "ok": True, "data": []}


def test_a_group_without_a_command_shows_its_help_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["pool"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("Usage: converge-node pool")
    assert invoke(["pool", "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_a_reader_that_has_enough_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        try:
            assert invoke(["errors", "--json"]) == 0
        finally:
            monkeypatch.undo()


def test_settings_are_shown_with_their_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("[tasks]\nconcurrency = 4\n")
    monkeypatch.setenv("CONVERGE_NODE_LOG__LEVEL", "debug")
    assert invoke(["--home", str(tmp_path), "config", "show", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["settings"]["tasks"]["concurrency"] == 4
    assert (data["sources"]["tasks.concurrency"], data["sources"]["log.level"]) == ("file", "environment")
    assert invoke(["--home", str(tmp_path), "config", "paths", "-q"]) == 0
    assert str(tmp_path / "control.sock") in capsys.readouterr().out.splitlines()


def test_a_settings_file_is_checked_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVERGE_NODE_TASKS__CONCURRENCY", "bad")
    assert invoke(["config", "validate", str(ROOT / "node" / "deploy" / "node.example.toml")]) == 0
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[network]\nlistn = []\n")
    capsys.readouterr()
    assert invoke(["config", "validate", str(wrong)]) == ExitCode.BAD_CONFIGURATION
    assert "line 2: unknown key network.listn; did you mean network.listen?" in capsys.readouterr().err
    assert invoke(["config", "validate", str(tmp_path / "none.toml")]) == ExitCode.NOT_FOUND
    assert invoke(["--home", str(tmp_path), "config", "validate"]) == ExitCode.BAD_CONFIGURATION


def test_a_checkout_runs_without_an_installation(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "node"), "version", "--json"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=True, timeout=30,
    )  # fmt: skip
    assert json.loads(done.stdout)["data"]["api"] == 1


def test_every_error_of_the_library_has_an_exit_code() -> None:
    expected = {"not_found": 6, "conflict": 7, "not_authorised": 5, "bad_configuration": 3, "node_unreachable": 4,
                "timeout": 8, "network_error": 9, "store_error": 10, "task_failed": 11, "task_cancelled": 11,
                "invalid_request": 2, "usage": 2, "remote_violation": 1, "something_new": 1}  # fmt: skip
    assert {code: int(exit_code_of(code)) for code in expected} == expected


def test_a_table_keeps_its_columns_whatever_a_cell_holds() -> None:
    shown = table(("A", "B"), [("x\ny", 1), ("\x1b]0;t\x07", "é")], empty="none")
    assert len(shown.splitlines()) == 3
    assert "\x1b" not in shown
    assert table(("A",), [], empty="none") == "none"


def page_commands() -> list[list[str]]:
    page = (ROOT / "docs" / "governance.md").read_text(encoding="utf-8")
    return [shlex.split(line)[1:] for line in page.splitlines() if re.match("converge-node (pool|task) ", line)]


@pytest.mark.parametrize("words", page_commands(), ids=lambda words: words[2])
def test_every_command_of_the_governance_page_is_understood(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke([*words, "--home", str(tmp_path)]) == ExitCode.UNREACHABLE, capsys.readouterr().err
