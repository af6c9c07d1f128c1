"""The settings of a node: one schema, and the precedence flag > environment > file > default.

Knows: every key, its type, default and meaning. Must not know: how the node obeys them.
Source: docs/operations.md. A key stands here only if it has an effect.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from converge_node.complaints import in_words
from converge_node.config_file import KeyLines
from converge_node.paths import checked_socket
from converge_node.policy_sections import AdmissionSection, GovernanceSection, SafetySection, TrustSection
from converge_node.profiles import PROFILES
from converge_node.settings_check import (
    check_address,
    check_host_port,
    check_kind,
    check_place,
    check_pool,
    parse_agent,
    parse_handler,
    parse_private_topic,
    parse_rule,
    parse_topic,
)
from converge_node.store_sections import BlobsSection, StoreSection
from converge_p2p.client.watch_schema import LogLevel
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, Conflict, StoreError
from converge_p2p.store.private_files import write_private_file

_log = logging.getLogger("converge_node.config")

ENVIRONMENT_PREFIX: Final = "CONVERGE_NODE_"
SHUTDOWN_TIMEOUT_S_MAX: Final = 30.0

TransportName = Literal["fast", "stock"]
RelayClientName = Literal["auto", "on", "off"]
ProfileName = Literal["default", "server", "desktop", "lan", "private", "test"]
LogFormat = Literal["auto", "console", "json"]


class NodeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node takes part in."""

    profile: Annotated[
        ProfileName, Meta(description="Defaults for a kind of node; see docs/operations.md for what each one changes.")
    ] = "default"
    pools: Annotated[
        tuple[str, ...], Meta(description="Pools to join at start: ids, or 'open' for every open one.")
    ] = ()
    topics: Annotated[
        tuple[str, ...], Meta(description="Topics to join at start: namespace or namespace@version.")
    ] = ()
    private_topics: Annotated[
        tuple[str, ...], Meta(description="Private topics to join at start: TOPIC=path of its key file.")
    ] = ()
    handlers: Annotated[
        tuple[str, ...], Meta(description="Who does which tasks: OBJECTIVE=module:function, with @N for N at a time.")
    ] = ()
    agents: Annotated[tuple[str, ...], Meta(description="Agents to host: NAME=module:Class.")] = ()
    record: Annotated[
        bool, Meta(description="Record what hosted agents see and decide, for `converge-node agent record`.")
    ] = False


class IdentitySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key that names the node."""

    path: Annotated[str, Meta(description="Key file; empty is node.key in the state folder.")] = ""
    passphrase_file: Annotated[
        str, Meta(description="File whose first line is the passphrase of the key file; empty is a key file in clear.")
    ] = ""


class NetworkSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the node listens and whom it looks for."""

    listen: Annotated[
        tuple[str, ...], Meta(min_length=1, description="Addresses to listen on; port 0 is any free.")
    ] = ("/ip4/0.0.0.0/tcp/0",)
    announce: Annotated[
        tuple[str, ...], Meta(description="Addresses to tell others instead of the own ones, behind a translated port.")
    ] = ()
    bootstrap: Annotated[
        tuple[str, ...], Meta(description="Peers to find the network through, each with /p2p/<peer id>.")
    ] = ()
    psk_file: Annotated[
        str, Meta(description="Key file (swarm.key) of the private network to be in; empty is a public network.")
    ] = ""
    psk_accept_file: Annotated[
        str,
        Meta(description="Second key file, of nodes that dial this one, while the network changes its key."),
    ] = ""
    connections_per_address: Annotated[
        int,
        Meta(
            ge=1,
            le=limits.PEERS_MAX,
            description="Connections that one address may open; more where many nodes share one.",
        ),
    ] = limits.CONNECTIONS_PER_HOST_MAX
    connections_on_this_machine: Annotated[
        int,
        Meta(
            ge=1,
            le=limits.PEERS_MAX,
            description="Connections that this machine's processes may open; fewer if a tunnel ends here.",
        ),
    ] = limits.PEERS_MAX
    transport: Annotated[
        TransportName,
        Meta(description="Whose code carries connections: fast is this project's, stock the library's; they mix."),
    ] = "fast"
    mdns: Annotated[bool, Meta(description="Look for nodes on the same link by multicast DNS, and be found there.")] = (
        False
    )
    relay_client: Annotated[
        RelayClientName,
        Meta(
            description="When to be reached through relays: auto is while others say that they cannot dial this node."
        ),
    ] = "auto"
    hole_punch: Annotated[
        bool, Meta(description="Try for direct connections with peers that are reached through relays.")
    ] = True
    relay_service: Annotated[
        bool, Meta(description="Serve as a relay: pass bytes on, within bounds, to nodes that others cannot dial.")
    ] = False


class TasksSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How handlers work."""

    concurrency: Annotated[
        int,
        Meta(
            ge=1, le=limits.HANDLER_CONCURRENCY_MAX, description="Tasks at a time for a handler that names no number."
        ),
    ] = 1


class ApiSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The control interface."""

    socket: Annotated[
        str, Meta(description="Path of the Unix socket; empty is control.sock in the runtime folder.")
    ] = ""
    listen: Annotated[
        tuple[str, ...],
        Meta(
            max_length=limits.API_LISTEN_MAX, description="Addresses host:port to answer on by TCP, to token holders."
        ),
    ] = ()
    token_file: Annotated[
        str, Meta(description="File of the tokens for TCP; empty is api-tokens in the state folder.")
    ] = ""


class LogSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The log, which goes to standard error or to a file."""

    level: Annotated[LogLevel, Meta(description="The least severity that is written.")] = "info"
    format: Annotated[LogFormat, Meta(description="auto is console on a terminal and json elsewhere.")] = "auto"
    file: Annotated[str, Meta(description="File to append to; empty is standard error.")] = ""


class MetricsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where metrics and health can be read beside the control interface."""

    listen: Annotated[
        str,
        Meta(description="HOST:PORT for /metrics, /healthz and /readyz; whoever gets there may read. Empty: nowhere."),
    ] = ""


class TraceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Traces: what caused what, across nodes."""

    file: Annotated[str, Meta(description="File for spans, one JSON object a line; empty is none.")] = ""
    sample: Annotated[float, Meta(ge=0, le=1, description="Which share of the traces is recorded.")] = 1.0


class ShutdownSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the node ends."""

    timeout_s: Annotated[
        float,
        Meta(gt=0, le=SHUTDOWN_TIMEOUT_S_MAX, description="Seconds for a graceful end, then the process ends hard."),
    ] = SHUTDOWN_TIMEOUT_S_MAX


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings, by section."""

    node: NodeSection = NodeSection()
    identity: IdentitySection = IdentitySection()
    network: NetworkSection = NetworkSection()
    tasks: TasksSection = TasksSection()
    blobs: BlobsSection = BlobsSection()
    store: StoreSection = StoreSection()
    governance: GovernanceSection = GovernanceSection()
    admission: AdmissionSection = AdmissionSection()
    trust: TrustSection = TrustSection()
    safety: SafetySection = SafetySection()
    api: ApiSection = ApiSection()
    log: LogSection = LogSection()
    metrics: MetricsSection = MetricsSection()
    trace: TraceSection = TraceSection()
    shutdown: ShutdownSection = ShutdownSection()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the schema.

    Attributes:
        path: "section.key".
        kind: its annotated type.
        default: its default value.
        description: one sentence.
    """

    path: str
    kind: Any
    default: Any
    description: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.path.upper().replace(".", "__")

    @property
    def bare_kind(self) -> Any:
        """The type without its annotations."""
        return get_args(self.kind)[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """The only values it takes, or empty."""
        return get_args(self.bare_kind) if get_origin(self.bare_kind) is Literal else ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings in force, and for each key where its value came from: default, profile, file, environment or flag."""

    config: Config
    sources: Mapping[str, str]


def sections() -> Iterator[tuple[str, str, tuple[Key, ...]]]:
    """Yield (section, what it is about, its keys) in the order of the schema."""
    for section in msgspec.structs.fields(Config):
        keys = tuple(
            Key(f"{section.name}.{field.name}", field.type, field.default, _description(field.type))
            for field in msgspec.structs.fields(section.type)
        )
        yield section.name, (section.type.__doc__ or "").strip(), keys


def all_keys() -> dict[str, Key]:
    """Return every key by its path."""
    return {key.path: key for _, _, keys in sections() for key in keys}


def load_settings(
    file: Path | None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the settings from all their sources.

    Args:
        file: TOML file; None or a missing file is no settings.
        environment: variables to read; None is those of the process.
        flags: values from the command line by key path. None and empty tuples are not given.

    Raises:
        ConfigError: every wrong key and value, each with its place and what was expected.
    """
    keys = all_keys()
    values: dict[str, Any] = {path: key.default for path, key in keys.items()}
    sources = dict.fromkeys(keys, "default")
    problems: list[str] = []
    given = [(path, value, "the command line") for path, value in (flags or {}).items() if value not in (None, ())]
    layers = (
        ("file", _file_values(file, problems)),
        ("environment", _environment_values(os.environ if environment is None else environment, keys, problems)),
        ("flag", given),
    )
    for source, layer in layers:
        for path, value, place in layer:
            key = keys.get(path)
            if key is None:
                problems.append(f"{place}: unknown key {path}{nearest(path, keys)}")
                continue
            try:
                values[path], sources[path] = checked_value(key, value), source
            except ConfigError as error:
                problems.append(f"{place}: {path}: {error}")
    for path, value in PROFILES.get(values["node.profile"], {}).items():
        if sources[path] == "default":
            values[path], sources[path] = value, "profile"
    if problems:
        raise ConfigError("\n".join(problems), hint="`converge-node config schema` lists every key and its meaning")
    tree: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, name = path.split(".")
        tree.setdefault(section, {})[name] = value
    return Settings(msgspec.convert(tree, Config), sources)


def checked_value(key: Key, value: Any) -> Any:
    """Return `value` in the type of the key.

    Raises:
        ConfigError: of another type, out of bounds, or of a form that cannot work.
    """
    if key.choices and value not in key.choices:
        raise ConfigError(f"{value!r} is none of {', '.join(key.choices)}{nearest(str(value), key.choices)}")
    try:
        converted = msgspec.convert(value, key.kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{in_words(str(error))} (value {value!r})") from error
    match key.path:
        case "network.listen" | "network.announce":
            for address in converted:
                check_address(address, peer=False)
        case "network.bootstrap":
            for address in converted:
                check_address(address, peer=True)
        case "api.listen":
            for place in converted:
                check_host_port(place)
        case "node.pools":
            for pool in converted:
                check_pool(pool)
        case "node.topics":
            for topic in converted:
                parse_topic(topic)
        case "node.private_topics":
            for topic in converted:
                parse_private_topic(topic)
        case "node.handlers":
            for handler in converted:
                parse_handler(handler)
        case "node.agents":
            for agent in converted:
                parse_agent(agent)
        case "governance.models" | "governance.evaluators" | "admission.rules":
            for rule in converted:
                parse_rule(rule)
        case "governance.opinion":
            check_place(converted)
        case "store.max_bytes" if 0 < converted < limits.STORE_HELD_BYTES_MIN:
            raise ConfigError(f"{converted} is too little; expected 0, or at least {limits.STORE_HELD_BYTES_MIN}")
        case "api.socket" if converted:
            checked_socket(converted)
        case "metrics.listen" if converted:
            check_host_port(converted)
        case "safety.allow" | "safety.deny":
            for kind in converted:
                check_kind(kind, any_allowed=key.path == "safety.allow")
    return converted


def example_file() -> str:
    """Return a settings file that shows every key, its meaning, variable and default, all commented out."""
    lines = [
        "# Settings of converge-node. Every key shows its default; remove the # to change it.",
        "# A command line flag overrides the environment variable, which overrides this file.",
    ]
    for section, purpose, keys in sections():
        lines += ["", f"# {purpose}", f"[{section}]"]
        for key in keys:
            choices = f" One of: {', '.join(key.choices)}." if key.choices else ""
            lines += [f"# {key.description}{choices}", f"# environment: {key.variable}"]
            # a TOML value of these types is written as in JSON
            lines.append(f"#{key.path.split('.')[1]} = {json.dumps(key.default)}")
    return "\n".join(lines) + "\n"


def write_example(file: Path) -> None:
    """Write the example file, if there is no settings file and one may be made."""
    try:
        # settings that a kill cut off in the middle of a line would keep the node from starting
        write_private_file(file, example_file().encode())
    except Conflict:
        pass
    except StoreError as error:
        # settings may well stand in a folder that the node's user may only read
        _log.debug("no settings file was written", extra={"file": str(file), "error": str(error)})


def _description(kind: Any) -> str:
    return next(extra.description or "" for extra in get_args(kind)[1:] if isinstance(extra, Meta))


def _file_values(file: Path | None, problems: list[str]) -> list[tuple[str, Any, str]]:
    if file is None:
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        hint = "check that --home names the folder of a node, and who owns it"
        raise ConfigError(f"cannot read {file}: {error.strerror}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not TOML: byte {error.start + 1} is no UTF-8") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    lines, known = KeyLines(text), [section for section, _, _ in sections()]
    found: list[tuple[str, Any, str]] = []
    for section, body in tree.items():
        if section not in known:
            problems.append(f"{file}, line {lines.of(section)}: unknown section {section}{nearest(section, known)}")
        elif not isinstance(body, dict):
            problems.append(f"{file}, line {lines.of(section)}: {section} is a section; expected [{section}]")
        else:
            found += [
                (f"{section}.{name}", value, f"{file}, line {lines.of(section, name)}") for name, value in body.items()
            ]
    return found


def _environment_values(
    variables: Mapping[str, str], keys: Mapping[str, Key], problems: list[str]
) -> list[tuple[str, Any, str]]:
    by_variable = {key.variable: key for key in keys.values()}
    found: list[tuple[str, Any, str]] = []
    for name, text in sorted(variables.items()):
        # other tools own variables of this prefix too (container platforms inject service addresses): "__" marks ours
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        key = by_variable.get(name)
        if key is None:
            problems.append(f"environment variable {name}: no such setting{nearest(name, by_variable)}")
            continue
        try:
            found.append((key.path, value_from_text(key, text), f"environment variable {name}"))
        except ConfigError as error:
            problems.append(f"environment variable {name}: {error}")
    return found


def value_from_text(key: Key, text: str) -> Any:
    """Return what an environment variable gives a key, not checked yet. Raises `ConfigError` if it cannot be read."""
    if key.choices or key.bare_kind is str:
        return text
    if get_origin(key.bare_kind) is tuple and not text.lstrip().startswith("["):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return json.loads(text)
    except ValueError as error:
        wanted = "true or false" if key.bare_kind is bool else "a number or list"
        raise ConfigError(f"{text!r} is not {wanted}") from error


def nearest(name: str, known: Any) -> str:
    """Return "; did you mean …?" for a mistyped name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
