"""Commands about bootstrap peers: ls, add, rm, test.

Knows: the settings, the client and the schema. Must not know: HTTP, or libp2p.
Source: docs/operations.md. They stand in the settings file; a running node takes a change over at once.
"""

from __future__ import annotations

import json
import socket
from typing import Any, Final

import click

from converge_node.cli.client import connect, url_of
from converge_node.cli.output import show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import ExitCode, NodeUnreachable, UsageError
from converge_p2p.core.errors import NotFound

KEY: Final = "network.bootstrap"
_TEST_S: Final = 3.0


@click.group
def bootstrap() -> None:
    """Say through which peers the node finds the network. They are dialled for ever, whatever happens to them."""


@bootstrap.command("ls")
@apply_shared
@pass_invocation
def bootstrap_list(invocation: Invocation) -> None:
    """List the bootstrap peers of the running node, and whether each is connected."""
    items = connect(invocation).bootstrap()
    rows = [(item.address, "connected" if item.connected else "not connected") for item in items]
    show(
        invocation,
        items,
        ids=lambda: [item.address for item in items],
        text=lambda: table(("ADDRESS", "STATE"), rows, empty="there is no bootstrap peer"),
    )


@bootstrap.command("add")
@click.argument("address")
@apply_shared
@pass_invocation
def add(invocation: Invocation, address: str) -> None:
    """Add ADDRESS, with /p2p/…, to the settings. A running node dials it from now on."""
    known = _own(invocation)
    _change(invocation, list(dict.fromkeys([*known, address])), known)


@bootstrap.command("rm")
@click.argument("address", metavar="ADDRESS|PEER")
@apply_shared
@pass_invocation
def remove(invocation: Invocation, address: str) -> None:
    """Remove ADDRESS, or all addresses of PEER, from the settings. What is connected stays."""
    known = _own(invocation)
    left = [each for each in known if address not in (each, each.rpartition("/p2p/")[2])]
    if left == known:
        raise NotFound(f"{address} is no bootstrap peer of the settings", hint="see `converge-node bootstrap ls`")
    _change(invocation, left, known)


@bootstrap.command("test")
@click.argument("address", required=False)
@apply_shared
@pass_invocation
def test(invocation: Invocation, address: str | None) -> int:
    """Open a TCP connection to each bootstrap peer, or to ADDRESS. Exit code 9 if none can be reached.

    It needs no running node, and says nothing about who answers: `peers connect` does.
    """
    from converge_node.config import all_keys, checked_value

    chosen = checked_value(all_keys()[KEY], [address] if address else _own(invocation))
    found = [{"address": each, "trouble": _trouble(each)} for each in chosen]
    rows = [(each["address"], each["trouble"] or "reached") for each in found]
    show(
        invocation,
        found,
        ids=lambda: [each["address"] for each in found if not each["trouble"]],
        text=lambda: table(("ADDRESS", "RESULT"), rows, empty="there is no bootstrap peer"),
    )
    return ExitCode.NO_PEER if found and all(each["trouble"] for each in found) else ExitCode.OK


def _trouble(address: str) -> str:
    _, kind, host, _, port, *rest = address.split("/")
    if "p2p-circuit" in rest:
        return "leads through a relay: only `peers connect` can try it"
    family = {"ip4": socket.AF_INET, "dns4": socket.AF_INET, "ip6": socket.AF_INET6, "dns6": socket.AF_INET6}
    try:
        places = socket.getaddrinfo(host, int(port), family.get(kind, socket.AF_UNSPEC), socket.SOCK_STREAM)
        with socket.create_connection((str(places[0][4][0]), int(port)), timeout=_TEST_S):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _own(invocation: Invocation) -> list[str]:
    if url_of(invocation) is not None:
        raise UsageError("the settings of a node elsewhere cannot be changed from here", hint="run it on its machine")
    from converge_node.config import load_settings

    # what a flag or the environment names is not of the file, and must not get into it
    return list(load_settings(invocation.paths().config_file, environment={}).config.network.bootstrap)


def _change(invocation: Invocation, addresses: list[str], before: list[str]) -> None:
    from converge_node.config_change import changed_file, write_settings

    paths = invocation.paths()
    new = changed_file(paths.config_file, KEY, json.dumps(addresses))
    invocation.about_to(f"set {KEY} in {paths.config_file} to {', '.join(addresses) or 'nothing'}")
    data: dict[str, Any] = {"file": str(paths.config_file), "addresses": addresses, "running": False}
    if addresses != before:
        paths.create()
        write_settings(paths.config_file, new)
    client, dialled = connect(invocation), set[str]()
    try:
        client.reload()
        dialled = {item.address for item in client.bootstrap()}
    except NodeUnreachable:
        pass
    else:
        data["running"] = True

    def effect(address: str) -> str:
        if not data["running"]:
            return "dialled at the next start"
        # a flag or the environment comes before the file
        return "dialled" if address in dialled else "kept: the running node was told other ones at its start"

    rows = [(each, effect(each)) for each in addresses]
    show(
        invocation,
        data,
        ids=lambda: addresses,
        text=lambda: table(("ADDRESS", "STATE"), rows, empty="there is no bootstrap peer"),
    )
