"""What a node needs, looked at one by one: files, clock, ports, peers, and each way that others reach it.

Knows: what to look at, and what to do about it. Must not know: how it is shown; libp2p, whose import costs seconds.
Source: docs/operations.md, "When something does not work".

With a running node it is asked; what only it can know is skipped otherwise. Nothing is changed, and nothing is sent but
attempts to open a connection to the bootstrap peers that the settings name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from converge_node.config import Config, load_settings
from converge_node.errors import NodeUnreachable
from converge_node.key_files import accepted_key_of, network_key_of
from converge_node.paths import NodePaths, checked_socket
from converge_p2p.client import Client, schema
from converge_p2p.client.reach_schema import CheckItem, DoctorItem, ReachItem, Verdict
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, ConvergeError, NotFound, StoreError
from converge_p2p.store.keyfile import load_identity
from converge_p2p.store.upkeep import home_facts

DISK_FAIL_BYTES: Final = 64 * 1024 * 1024
DISK_WARN_BYTES: Final = 1024 * 1024 * 1024
DIAL_S: Final = 3.0
CLOCK_SKEW_S: Final = 300.0
WRITTEN_SINCE_S: Final = 1_767_225_600
"""The first second of 2026: this program is younger than a clock that shows less."""
MDNS_PORT: Final = 5353
_DIALS_MAX: Final = 8
_UNSYNCHRONISED: Final = 5


def examine(paths: NodePaths) -> DoctorItem:
    """Look at everything."""
    try:
        config = load_settings(paths.config_file).config
    except ConfigError as error:
        checks = [CheckItem(name="settings", verdict="fail", text=str(error), hint=error.hint)]
        return DoctorItem(healthy=False, running=False, checks=checks)
    told = f"read from {paths.config_file}" if paths.config_file.exists() else "no file: all defaults"
    checks = [CheckItem(name="settings", verdict="pass", text=told)]
    node = _ask(paths, config)
    checks += [_key(paths, config), _network_key(paths, config), _disk(paths)]
    checks += [_database(paths, config.store.max_bytes), _clock(paths, node)]
    if isinstance(node, CheckItem):
        checks.append(node)
        checks += [*_listen_alone(config), *_bootstrap(config, ()), *_unknown_alone(config)]
    else:
        checks += _running(config, node)
    running = isinstance(node, _Node)
    return DoctorItem(healthy=all(check.verdict != "fail" for check in checks), running=running, checks=checks)


@dataclass(frozen=True, slots=True)
class _Node:
    """What a running node says."""

    health: schema.HealthItem
    status: schema.StatusItem
    peers: list[schema.PeerItem]
    reach: ReachItem


def _ask(paths: NodePaths, config: Config) -> _Node | CheckItem:
    chosen = config.api.socket
    try:
        client = Client(checked_socket(chosen) if chosen else paths.socket)
        health = client.health()
        return _Node(
            health,
            client.status(),
            client.peers(),
            client.reach(),
        )
    except NodeUnreachable as error:
        hint = "start it with `converge-node`, and look again: a running node knows more"
        return CheckItem(name="node", verdict="skip", text=f"none runs here: {error}", hint=hint)
    except ConvergeError as error:
        return CheckItem(name="node", verdict="warn", text=f"it does not answer in full: {error}", hint=error.hint)


# ---------------------------------------------------------------- files, disk, clock


def _key(paths: NodePaths, config: Config) -> CheckItem:
    path = Path(config.identity.path).expanduser() if config.identity.path else paths.key_file
    try:
        passphrase = None
        if config.identity.passphrase_file:
            lines = Path(config.identity.passphrase_file).expanduser().read_text(encoding="utf-8").splitlines()
            passphrase = lines[0] if lines else ""
        load_identity(path, passphrase)
    except NotFound:
        return CheckItem(name="key file", verdict="skip", text=f"{path} is made at the first start")
    except (OSError, UnicodeDecodeError) as error:
        text = f"cannot read the passphrase file: {error}"
        return CheckItem(name="key file", verdict="fail", text=text, hint="see identity.passphrase_file")
    except ConvergeError as error:
        return CheckItem(name="key file", verdict="fail", text=str(error), hint=error.hint)
    return CheckItem(name="key file", verdict="pass", text=f"{path} is readable by its owner alone")


def _network_key(paths: NodePaths, config: Config) -> CheckItem:
    try:
        key = network_key_of(config.network.psk_file, paths)
        accepted = accepted_key_of(config.network.psk_accept_file, key)
    except ConfigError as error:
        return CheckItem(name="network key", verdict="fail", text=str(error), hint=error.hint)
    if key is None:
        return CheckItem(name="network key", verdict="skip", text="the node is in the public network")
    for path in (Path(text).expanduser() for text in (config.network.psk_file, config.network.psk_accept_file) if text):
        if path.stat().st_mode & 0o077:
            text = f"others may read {path}, and so get into the network"
            return CheckItem(name="network key", verdict="warn", text=text, hint=f"chmod 600 {path}")
    if accepted is not None:
        text = (
            f"private network {key.network.hex()}; nodes that dial with the key of {accepted.network.hex()} get in, too"
        )
        hint = "this is for a change of the key: once every node has the new one, take network.psk_accept_file away"
        return CheckItem(name="network key", verdict="warn", text=text, hint=hint)
    return CheckItem(name="network key", verdict="pass", text=f"private network {key.network.hex()}")


def _disk(paths: NodePaths) -> CheckItem:
    folder = paths.state_dir
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        hint = "give the node's user the folder, or choose another with --home DIR"
        return CheckItem(name="disk", verdict="fail", text=f"{folder} cannot be written", hint=hint)
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return CheckItem(name="disk", verdict="warn", text=f"the room in {folder} is not known: {error.strerror}")
    text = f"{free / 1e9:.1f} GB free in {folder}"
    verdict: Verdict = "fail" if free < DISK_FAIL_BYTES else "warn" if free < DISK_WARN_BYTES else "pass"
    return CheckItem(name="disk", verdict=verdict, text=text, hint="" if verdict == "pass" else "make room")


def _database(paths: NodePaths, bytes_max: int) -> CheckItem:
    """Whether it can be read at all; `store verify` reads all of it, which takes its time."""
    try:
        found = home_facts(paths.state_dir)
    except NotFound:
        return CheckItem(name="database", verdict="skip", text="it is made at the first start")
    except StoreError as error:
        return CheckItem(name="database", verdict="fail", text=str(error), hint=error.hint)
    doubted = sum(each.in_doubt and each.member for each in found.pools)
    if doubted:
        text = f"it is a copy that was put back: nothing is signed in {doubted} pools yet"
        hint = "connect the node to electors of these pools, see `converge-node pool show`"
        return CheckItem(name="database", verdict="warn", text=text, hint=hint)
    text = f"schema {found.version}, {found.size / 1e6:.1f} MB, {len(found.pools)} pools"
    held = found.size - found.free
    if bytes_max and held >= limits.STORE_WARN_SHARE * bytes_max:
        text += f"; it holds {held / 1e6:.1f} of {bytes_max / 1e6:.1f} MB that store.max_bytes allows"
        hint = "allow more, leave pools that are not needed, or keep results for less time (store.results_days)"
        return CheckItem(name="database", verdict="warn", text=text, hint=hint)
    return CheckItem(name="database", verdict="pass", text=text)


def _clock(paths: NodePaths, node: _Node | CheckItem) -> CheckItem:
    """A node whose clock is wrong writes what others refuse; and its own number must not go back."""
    now, hint = time.time(), "set the clock, and keep it right with NTP"
    files = [paths.state_dir / name for name in ("node.key", "node.sqlite", "node.sqlite-wal", "node.age")]
    written = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    if now < WRITTEN_SINCE_S:
        text = f"it shows {schema.utc_time(now)}, which is before this program was written"
        return CheckItem(name="clock", verdict="fail", text=text, hint=hint)
    if written > now + CLOCK_SKEW_S:
        text = f"it shows {schema.utc_time(now)}, and files of the node were written at {schema.utc_time(written)}"
        return CheckItem(name="clock", verdict="fail", text=text, hint=hint)
    if isinstance(node, _Node):
        names = ("refused_message_from_future", "refused_message_stale", "agents_untimely")
        untimely = sum(node.status.counters.get(name, 0) for name in names)
        if untimely:
            text = f"{untimely} messages of others were refused for their time: a clock is wrong, here or there"
            return CheckItem(name="clock", verdict="warn", text=text, hint=hint)
    if _clock_state() == _UNSYNCHRONISED:
        text = f"it shows {schema.utc_time(now)}; the system says that nothing keeps it right"
        return CheckItem(name="clock", verdict="warn", text=text, hint=hint)
    return CheckItem(name="clock", verdict="pass", text=f"it shows {schema.utc_time(now)}")


def _clock_state() -> int:
    """Return what `adjtimex` says of the clock; 0 where it cannot be asked."""
    try:
        # nothing is changed with no mode set; the structure has 208 bytes
        return int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return 0


# ---------------------------------------------------------------- without a node


def _listen_alone(config: Config) -> Iterator[CheckItem]:
    """Whether the addresses could be listened on."""
    for address in config.network.listen:
        try:
            host, port = _endpoint(address)
        except ValueError:
            hint = "write /ip4/0.0.0.0/tcp/4001"
            yield CheckItem(name="listen", verdict="fail", text=f"{address} is no TCP address", hint=hint)
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                hint = (
                    "stop the other program, or choose another port"
                    if error.errno == errno.EADDRINUSE
                    else "listen on an address of this machine"
                )
                text = f"{address} cannot be listened on: {error.strerror}"
                yield CheckItem(name="listen", verdict="fail", text=text, hint=hint)
            else:
                yield CheckItem(name="listen", verdict="pass", text=f"{address} is free")


def _unknown_alone(config: Config) -> Iterator[CheckItem]:
    for name in ("reachable", "relay"):
        yield CheckItem(name=name, verdict="skip", text="only a running node knows")
    yield _link_alone() if config.network.mdns else _LINK_OFF


def _link_alone() -> CheckItem:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind(("0.0.0.0", MDNS_PORT))
        except OSError as error:
            return _link_trouble(f"UDP port {MDNS_PORT} cannot be used: {error.strerror}")
    return CheckItem(name="same link", verdict="pass", text=f"UDP port {MDNS_PORT} can be used")


_LINK_OFF: Final = CheckItem(
    name="same link", verdict="skip", text="nodes there are not looked for", hint="network.mdns = true does"
)


def _link_trouble(text: str) -> CheckItem:
    hint = "stop the program that holds it alone, or set network.mdns = false"
    return CheckItem(name="same link", verdict="fail", text=text, hint=hint)


# ---------------------------------------------------------------- bootstrap peers, with a node and without


def _bootstrap(config: Config, connected: Sequence[str], *, alone: bool = False) -> Iterator[CheckItem]:
    """Whether each peer to begin with is connected, or at least opens a connection.

    Args:
        connected: peer ids that the node is connected to.
        alone: the node runs, and is connected to nobody.
    """
    addresses = config.network.bootstrap
    if not addresses:
        lonely = alone and not config.network.mdns
        hint = "name one with --bootstrap, or follow an invitation" if lonely else ""
        yield CheckItem(name="bootstrap", verdict="warn" if lonely else "skip", text="no peer is named", hint=hint)
        return
    for address in addresses[:_DIALS_MAX]:
        if address.rpartition("/p2p/")[2] in connected:
            yield CheckItem(name="bootstrap", verdict="pass", text=f"{address} is connected")
            continue
        trouble = _dial(address)
        if trouble:
            # with others connected the network is there, and this one is retried for ever
            verdict: Verdict = "warn" if connected else "fail"
            hint = "check that the node there runs, its address, and the firewalls between"
            yield CheckItem(name="bootstrap", verdict=verdict, text=f"{address}: {trouble}", hint=hint)
        elif alone or connected:
            hint = "is it the right peer id, and the same network key? The log of the node says why it was refused"
            text = f"{address} opens a connection, and is not connected"
            yield CheckItem(name="bootstrap", verdict="warn", text=text, hint=hint)
        else:
            yield CheckItem(name="bootstrap", verdict="pass", text=f"{address} opens a connection")


def _dial(address: str) -> str:
    """Return why no connection can be opened, or nothing."""
    try:
        socket.create_connection(_endpoint(address), timeout=DIAL_S).close()
    except ValueError:
        return "it names no host and TCP port"
    except TimeoutError:
        return f"no answer within {DIAL_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _endpoint(address: str) -> tuple[str, int]:
    """Return host and port of an address that the settings took; of the relay, if it leads through one."""
    parts = address.split("/")
    return parts[2], int(parts[parts.index("tcp") + 1])


# ---------------------------------------------------------------- with a node


def _running(config: Config, node: _Node) -> Iterator[CheckItem]:
    ready = node.health.ready
    hint = "" if ready else "wait for `converge-node health --ready`"
    yield CheckItem(name="node", verdict="pass" if ready else "warn", text=f"runs, {node.health.stage}", hint=hint)
    yield CheckItem(name="listen", verdict="pass", text=", ".join(node.status.node.addresses) or "on nothing")
    peers = [peer.peer_id for peer in node.peers]
    yield from _bootstrap(config, peers, alone=not peers)
    relayed = sum(peer.relayed for peer in node.peers)
    text = f"{len(peers)} connected, {relayed} of them through a relay"
    hint = "" if peers else "without peers nothing is heard: see bootstrap and same link"
    yield CheckItem(name="peers", verdict="pass" if peers else "warn", text=text, hint=hint)
    yield _reachable(node.reach)
    yield _relay(config, node.reach)
    if config.network.relay_service:
        yield _relay_service(node.reach)
    yield _link(node.reach)


def _reachable(reach: ReachItem) -> CheckItem:
    match reach.reachable:
        case "yes":
            where = f" at {', '.join(reach.confirmed)}" if reach.confirmed else ""
            return CheckItem(name="reachable", verdict="pass", text=f"others can dial this node{where}")
        case "no":
            verdict: Verdict = "pass" if reach.relays else "warn"
            text = "others cannot dial this node" + (", and reach it through relays" if reach.relays else "")
            hint = "open the port in the firewall or forward it and set network.announce, or use relays"
            return CheckItem(name="reachable", verdict=verdict, text=text, hint="" if reach.relays else hint)
        case _:
            text = "nobody has said yet whether this node can be dialled"
            return CheckItem(name="reachable", verdict="skip", text=text, hint="it takes a peer, and a minute")


def _relay(config: Config, reach: ReachItem) -> CheckItem:
    if reach.relays:
        return CheckItem(name="relay", verdict="pass", text=f"reached through {', '.join(reach.relays)}")
    if reach.wants_relays:
        hint = "connect it to a node with network.relay_service = true"
        return CheckItem(name="relay", verdict="warn", text="no peer has given a place as a relay", hint=hint)
    text = {"off": "relays are not used (network.relay_client)", "on": "none yet"}
    return CheckItem(name="relay", verdict="skip", text=text.get(config.network.relay_client, "none is needed"))


def _relay_service(reach: ReachItem) -> CheckItem:
    if reach.relay_reservations is None:
        hint = "restart it: the setting is newer than the node"
        return CheckItem(name="relay service", verdict="warn", text="the node does not serve", hint=hint)
    text = f"{reach.relay_reservations} places and {reach.relay_circuits} circuits given away"
    if reach.reachable == "no":
        hint = "a relay has to be where everybody can dial it"
        return CheckItem(name="relay service", verdict="warn", text=f"others cannot dial this node; {text}", hint=hint)
    return CheckItem(name="relay service", verdict="pass", text=text)


def _link(reach: ReachItem) -> CheckItem:
    if reach.link_trouble:
        return _link_trouble(reach.link_trouble)
    if reach.link_peers is None:
        return _LINK_OFF
    return CheckItem(name="same link", verdict="pass", text=f"{reach.link_peers} nodes were found there")
