"""The command `identity rotate`: a node with a new key takes the place of this one in every pool.

Knows: the client, both homes, and what the two keys sign. Must not know: HTTP, or what the node does with it.
Source: docs/operations.md, a new key. Both keys sign here: neither leaves its home, and the node is asked with the
signature of the key that gives up its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from converge_node.cli.client import connect, url_of
from converge_node.cli.output import facts, show, table
from converge_node.cli.tree import SECONDS, Invocation, apply_shared, pass_invocation
from converge_node.config import load_settings
from converge_node.errors import ExitCode, Refused, UsageError
from converge_node.inheritance import Inheritance, Place
from converge_node.key_files import passphrase_of
from converge_node.paths import resolve_paths
from converge_node.settings_check import check_address
from converge_node.successor_home import SuccessorHome, open_successor_home
from converge_p2p.client import schema
from converge_p2p.client.identity_schema import WAIT_S, RotateIdentity
from converge_p2p.client.sync import Client
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, Conflict
from converge_p2p.core.identity import Identity
from converge_p2p.core.oplog.succession import rotation
from converge_p2p.core.types import PoolId
from converge_p2p.store.keyfile import load_identity

_OUTCOMES: Final = {"undecided": "waits for the electors", "not_authorised": "no member, nothing to hand over"}
"""Of errors that are about one pool and no failure; any other is shown as it is."""

_OF_ALL: Final = {"not_authenticated", "scope_too_small", "not_ready", "busy"}
"""Errors that the next pool would have too."""


@click.command("rotate")
@click.option(
    "--new-home",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the node with the new key: empty, made by `init`, or of a first try.",
)
@click.option(
    "--passphrase-file", default="", metavar="FILE", help="File whose first line seals the new key; none is in clear."
)
@click.option(
    "--key", "key_file", type=click.Path(path_type=Path), metavar="FILE", help="The present key, if not in this home."
)
@click.option("--key-passphrase-file", default="", metavar="FILE", help="File whose first line opens --key.")
@click.option(
    "--timeout",
    type=SECONDS,
    default=WAIT_S,
    show_default=True,
    metavar="S",
    help="Seconds to wait for the electors of each pool.",
)
@apply_shared
@pass_invocation
def rotate(
    invocation: Invocation,
    /,
    *,
    new_home: Path,
    passphrase_file: str,
    key_file: Path | None,
    key_passphrase_file: str,
    timeout: float,
) -> int:
    """Make a node with a new key, and have it take this node's place in every pool. For ever: it cannot be taken back.

    This node has to run. Where it is an elector or has another role, the other electors are asked first; the same
    command, given again, goes on with what was not decided or did not work. Ends with 1 if something is left to do.

    \b
    converge-node identity rotate --new-home ./n2 --passphrase-file secret.txt
    """
    client = connect(invocation)
    node = client.node()
    old = _present_key(invocation, key_file, key_passphrase_file)
    if old.public_key.hex() != node.public_key:
        raise Conflict(
            f"the node that answers is agent {node.id}, and the key is that of agent {old.id}",
            hint="give the key file of that node with --key, or its home with --home",
        )
    paths, old_home = resolve_paths(str(new_home)), None if url_of(invocation) is not None else invocation.paths()
    if old_home is not None and paths.state_dir == old_home.state_dir:
        raise UsageError(
            "--new-home is the home of this node", hint="the node with the new key has a folder of its own"
        )
    pools = [pool for pool in client.pools() if pool.joined]
    invocation.about_to(
        f"make a new key in {paths.state_dir}, and hand {len(pools)} pools of agent {old.id} over to it"
    )
    with open_successor_home(paths, old.public_key, old_home, passphrase_file) as home:
        _begin(home, client, node, pools)
        rows = [_hand_over(home, client, old, pool, timeout) for pool in pools]
        left = list(home.inheritance.waiting)
        data: dict[str, Any] = {
            "old": node.id,
            "new": home.identity.id,
            "public_key": home.identity.public_key.hex(),
            "home": str(paths.state_dir),
            "complete": not left,
            "pools": rows,
            "settings_to_check": list(home.settings_of_old),
            "next": _next(new_home, rows, left, home.settings_of_old),
        }
    show(invocation, data, ids=lambda: [data["new"]], text=lambda: _text(data))
    # what was done is a success for whoever reads it, and the exit code says that it is not all
    return ExitCode.FAILURE if left else ExitCode.OK


def _present_key(invocation: Invocation, key_file: Path | None, passphrase_file: str) -> Identity:
    if key_file is not None:
        return load_identity(key_file, passphrase_of(passphrase_file))
    if url_of(invocation) is not None:
        raise UsageError(
            "the key of a node elsewhere is not here, and has to sign this",
            hint="give a copy with --key (`identity export` there), or run the command on its machine",
        )
    paths = invocation.paths()
    section = load_settings(paths.config_file).config.identity
    return load_identity(paths.chosen_key(section.path), passphrase_of(section.passphrase_file))


def _begin(home: SuccessorHome, client: Client, node: schema.NodeItem, pools: list[schema.PoolItem]) -> None:
    """Write down, before the first request, what is to be handed over, and where the pools are found."""
    found = [*node.addresses]
    for peer in client.peers():
        if peer.direction == "outbound":
            found += [text if "/p2p/" in text else f"{text}/p2p/{peer.peer_id}" for text in peer.addresses]
    bootstrap = tuple(dict.fromkeys(text for text in found if _can_be_dialled(text)))[: limits.EXCHANGED_PEERS_MAX]
    before = home.inheritance
    given = {place.pool for place in before.places}
    waiting = dict.fromkeys((*before.waiting, *(pool.id for pool in pools if pool.id not in given)))
    still = tuple(pool for pool in waiting if any(each.id == pool for each in pools))
    home.keep(Inheritance(before.old, before.new, places=before.places, waiting=still, bootstrap=bootstrap))


def _can_be_dialled(text: str) -> bool:
    """Whether a node would take an address to find others at: one that it refuses would keep it from starting."""
    try:
        check_address(text, peer=True)
    except ConfigError:
        return False
    return "/p2p-circuit" not in text


def _hand_over(
    home: SuccessorHome, client: Client, old: Identity, pool: schema.PoolItem, timeout_s: float
) -> dict[str, Any]:
    consent, word = rotation(PoolId(bytes.fromhex(pool.id)), old, home.identity)
    body = RotateIdentity(
        pool=pool.id,
        successor=home.identity.public_key.hex(),
        signature=consent.signature.hex(),
        authorisation=word.signature.hex(),
        timeout_s=timeout_s,
    )
    row: dict[str, Any] = {"pool": pool.id, "name": pool.name}
    try:
        item = client.rotate(body)
    except Refused as error:
        if error.code in _OF_ALL:
            raise
        if error.code == "not_authorised":
            home.keep(home.inheritance.without(pool.id))
        outcome = _OUTCOMES.get(error.code, "failed")
        return {**row, "outcome": outcome, "code": error.code, "detail": str(error), "others": 0}
    place = Place(pool.id, pool.name, word.signature.hex(), item.content_keys)
    home.keep(home.inheritance.given(place))
    return {**row, "outcome": "handed over", "code": "", "detail": "", "others": item.others}


def _next(new_home: Path, rows: list[dict[str, Any]], left: list[str], settings: tuple[str, ...]) -> list[str]:
    steps = []
    if left:
        steps.append("give this command again: it goes on with the same new key; start the new node after that")
    if settings:
        steps.append(f"the new settings name files in the old home, copy them and change {', '.join(settings)}")
    given = [row for row in rows if row["outcome"] == "handed over"]
    alone = [row["name"] for row in given if not row["others"]]
    start = f"start the new node: converge-node --home {new_home}"
    if alone:
        start += f"; while the old one runs, from which alone it can get {', '.join(alone)}"
    steps.append(start + " (with --listen /ip4/0.0.0.0/tcp/0 if the settings name a port that the old one has)")
    steps.append(f"when `converge-node --home {new_home} identity show` names no pool any more, end the old node:")
    steps.append("`agent revoke` takes back what it said of itself, `shutdown` stops it; never start it again")
    return steps


def _text(data: dict[str, Any]) -> str:
    rows = [(row["name"], row["pool"][:12], row["outcome"], row["detail"]) for row in data["pools"]]
    pairs = [(name, data[name]) for name in ("old", "new", "home")]
    return "\n\n".join(
        (
            facts(pairs),
            table(
                ("POOL", "ID", "OUTCOME", "WHY"), rows, empty="the node is in no pool: there is nothing to hand over"
            ),
            facts(("next" if not number else "", step) for number, step in enumerate(data["next"])),
        )
    )
