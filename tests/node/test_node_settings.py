"""The rules of the settings: one schema, strict, and one order of precedence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from converge_node.cli.main import invoke
from converge_node.config import Config, all_keys, example_file, load_settings
from converge_node.run import NodeArguments, open_real_node
from converge_node.settings_check import HandlerSpec, parse_handler
from converge_p2p.core.errors import ConfigError
from converge_p2p.core.identity import Identity

PEER = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust"


def write(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, '[log]\nlevel = "error"\n[tasks]\nconcurrency = 2\n[governance]\ndefault = "dictatorial"\n')
    environment = {"CONVERGE_NODE_LOG__LEVEL": "warning", "CONVERGE_NODE_TASKS__CONCURRENCY": "3"}
    settings = load_settings(file, environment=environment, flags={"log.level": "debug"})
    assert settings.config.log.level == "debug"
    assert settings.config.tasks.concurrency == 3
    assert settings.config.governance.default == "dictatorial"
    assert settings.config.log.format == "auto"
    sources = settings.sources
    assert [sources[key] for key in ("log.level", "tasks.concurrency", "governance.default", "log.format")] == [
        "flag", "environment", "file", "default",
    ]  # fmt: skip


def test_a_flag_that_was_not_given_overrides_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, f'[network]\nbootstrap = ["{PEER}"]\n')
    flags = {"network.bootstrap": (), "log.level": None}
    assert load_settings(file, environment={}, flags=flags).config.network.bootstrap == (PEER,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[network]\n\nbootstap = []\n", "line 3: unknown key network.bootstap; did you mean network.bootstrap?"),
        ("# c\n[shutdwn]\ntimeout_s = 1\n", "line 2: unknown section shutdwn; did you mean shutdown?"),
        ('network.lisen = ["x"]\n', "line 1: unknown key network.lisen; did you mean network.listen?"),
        ('\nlog = { level = "info", fil = "x" }\n', "line 2: unknown key log.fil; did you mean log.file?"),
        (
            '[log]\nlevel = "inof"\n',
            "line 2: log.level: 'inof' is none of debug, info, warning, error; did you mean info?",
        ),
        (f"[api]\nsocket = '/{'x' * 120}'\n", "line 2: api.socket: the socket path /x"),
        ("[tasks]\nconcurrency = 0\n", "line 2: tasks.concurrency: expected a whole number >= 1"),
        ("[tasks]\nconcurrency = true\n", "line 2: tasks.concurrency: expected a whole number, got true or false"),
        ("[shutdown]\ntimeout_s = nan\n", "line 2: shutdown.timeout_s"),
        ("[shutdown]\ntimeout_s = 31\n", "line 2: shutdown.timeout_s: expected a number <= 30"),
        ("[network]\nlisten = []\n", "line 2: network.listen: expected a list of length >= 1"),
        ('[network]\ntransport = "slow"\n', "line 2: network.transport: 'slow' is none of fast, stock"),
        ('[network]\nlisten = ["127.0.0.1:4001"]\n', "line 2: network.listen: '127.0.0.1:4001' is not a multiaddr"),
        ('[network]\nlisten = ["/ip4/0.0.0.0/tcp/70000"]\n', "names no TCP port from 0 to 65535"),
        ('[network]\nbootstrap = ["/ip4/192.0.2.1/tcp/1"]\n', "does not say which peer is there"),
        ('[node]\npools = ["demo"]\n', "line 2: node.pools: 'demo' is not a pool id"),
        ('[node]\ntopics = ["bad topic!"]\n', "line 2: node.topics: 'bad topic!' is not a topic"),
        ('[node]\nhandlers = ["index"]\n', "line 2: node.handlers: 'index' is not a handler"),
        ("tasks = 3\n", "line 1: tasks is a section; expected [tasks]"),
        ("[log\n", "not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_settings(write(tmp_path, text), environment={})


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, "[log]\nlevl = 1\n[tasks]\nconcurrency = 0\n"), environment={})
    assert "line 2" in str(caught.value)
    assert "line 4" in str(caught.value)


def test_an_unknown_variable_of_ours_is_an_error_and_a_foreign_one_is_not() -> None:
    with pytest.raises(
        ConfigError, match="CONVERGE_NODE_LOG__LEVL: no such setting; did you mean CONVERGE_NODE_LOG__LEVEL"
    ):
        load_settings(None, environment={"CONVERGE_NODE_LOG__LEVL": "info"})
    load_settings(None, environment={"CONVERGE_NODE_SERVICE_HOST": "10.0.0.1", "CONVERGE_NODE_HOME": "/x"})


def test_a_home_that_is_a_file_or_holds_no_text_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml: Not a directory$") as failed:
        load_settings(write(tmp_path, "") / "config.toml", environment={})
    assert "--home" in failed.value.hint
    (tmp_path / "config.toml").write_bytes(b"#\xff")
    with pytest.raises(ConfigError, match=r"config\.toml: not TOML: byte 2 is no UTF-8$"):
        load_settings(tmp_path / "config.toml", environment={})


def test_what_is_wrong_can_be_looked_up_while_it_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "[log]\nlevl = 1\n")
    assert invoke(["status", "--home", str(tmp_path)]) == 3
    command = re.search(r"`converge-node (config \w+)`", capsys.readouterr().err)
    assert command is not None
    assert invoke([*command[1].split(), "--home", str(tmp_path)]) == 0


def test_a_switch_is_true_or_false() -> None:
    with pytest.raises(ConfigError, match="'maybe' is not true or false"):
        load_settings(None, environment={"CONVERGE_NODE_NETWORK__MDNS": "maybe"})


def test_variables_hold_lists_numbers_and_text() -> None:
    environment = {
        "CONVERGE_NODE_NETWORK__LISTEN": "/ip4/0.0.0.0/tcp/1, /ip6/::/tcp/2",
        "CONVERGE_NODE_NETWORK__BOOTSTRAP": f'["{PEER}"]',
        "CONVERGE_NODE_SHUTDOWN__TIMEOUT_S": "2.5",
        "CONVERGE_NODE_LOG__FILE": "5",
    }
    config = load_settings(None, environment=environment).config
    assert config.network.listen == ("/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/2")
    assert config.network.bootstrap == (PEER,)
    assert config.shutdown.timeout_s == 2.5
    assert config.log.file == "5"


def test_the_example_shows_every_key_with_its_true_default(tmp_path: Path) -> None:
    text = example_file()
    assert load_settings(write(tmp_path, text), environment={}).config == Config()
    uncommented = re.sub(r"(?m)^#(\w+ = )", r"\1", text)
    settings = load_settings(write(tmp_path, uncommented), environment={})
    assert settings.config == Config()
    assert set(settings.sources.values()) == {"file"}
    for key in all_keys().values():
        assert f"# environment: {key.variable}\n" in text
        assert key.description


def test_the_shipped_example_is_the_generated_one() -> None:
    shipped = Path(__file__).parents[2] / "node" / "deploy" / "node.example.toml"
    assert shipped.read_text(encoding="utf-8") == example_file()


def test_a_handler_names_objective_function_and_concurrency() -> None:
    assert parse_handler("index=work.jobs:index") == HandlerSpec("index", "work.jobs", "index", None)
    assert parse_handler("a b=m:C.run@4") == HandlerSpec("a b", "m", "C.run", 4)
    for wrong in ("index", "=m:f", "x=m", "x=m:f@", "x=m:f@0", "x=m:f@257", "x=m:f@99999999999", "x=m.:f"):
        with pytest.raises(ConfigError):
            parse_handler(wrong)


@pytest.mark.parametrize("transport", ["fast", "stock"])
def test_the_transport_that_is_asked_for_reaches_the_network(transport: str) -> None:
    settings = load_settings(None, environment={"CONVERGE_NODE_NETWORK__TRANSPORT": transport})
    arguments = NodeArguments(Identity.from_seed(bytes(32)), None, (), (), (), settings.config.network.transport)
    assert vars(open_real_node(arguments))["_net_config"].transport == transport
