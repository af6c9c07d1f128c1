"""The command `run`, which is also what `converge-node` alone does.

Knows: its flags and which settings they override. Must not know: how a node runs (see `converge_node.run`).
"""

from __future__ import annotations

import functools

import click

from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.profiles import PROFILES


@click.command("run")
@click.option("--bootstrap", multiple=True, metavar="MA", help="A peer to find the network through. Repeatable.")
@click.option("--listen", multiple=True, metavar="MA", help="An address to listen on. Repeatable.")
@click.option("--announce", multiple=True, metavar="MA", help="An address to tell others. Repeatable.")
@click.option("--mesh", "psk_file", metavar="KEYFILE", help="The key of the private network to be in (swarm.key).")
@click.option(
    "--mesh-accept",
    "psk_accept_file",
    metavar="KEYFILE",
    help="A second key, of nodes that dial this one, while the network changes its key.",
)
@click.option(
    "--transport",
    type=click.Choice(["fast", "stock"]),
    help="Whose code carries connections: this project's, or the transport library's. They understand each other.",
)
@click.option("--topic", "topics", multiple=True, metavar="T", help="A topic to join. Repeatable.")
@click.option(
    "--pool",
    "pools",
    multiple=True,
    metavar="P",
    help="A pool to join: its id, or 'open' for every announced one that has work for a handler. Repeatable.",
)
@click.option(
    "--handler",
    "handlers",
    multiple=True,
    metavar="OBJECTIVE=MODULE:FUNCTION[@N]",
    help="Who does tasks of an objective, N at a time. Repeatable.",
)
@click.option("--agent", "agents", multiple=True, metavar="NAME=MODULE:CLASS", help="An agent to host. Repeatable.")
@click.option("--record", is_flag=True, default=None, help="Record what hosted agents see and decide.")
@click.option("--profile", type=click.Choice(tuple(PROFILES)), help="Defaults for a kind of node.")
@click.option("--ephemeral", is_flag=True, help="A new identity, and nothing kept.")
@apply_shared
@pass_invocation
def run_command(
    invocation: Invocation,
    *,
    bootstrap: tuple[str, ...],
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    psk_file: str | None,
    psk_accept_file: str | None,
    transport: str | None,
    topics: tuple[str, ...],
    pools: tuple[str, ...],
    handlers: tuple[str, ...],
    agents: tuple[str, ...],
    record: bool | None,
    profile: str | None,
    ephemeral: bool,
) -> int:
    """Run a node until SIGTERM, SIGINT or `converge-node shutdown`.

    It prints its id, its addresses and the command for the next node on standard output, and its log on standard
    error. A peer that cannot be reached does not stop it: it keeps trying.
    """
    from converge_node.config import load_settings
    from converge_node.errors import UsageError
    from converge_node.run import RunOptions, run

    if ephemeral and invocation.home is not None:
        raise UsageError("--ephemeral keeps nothing, so it takes no --home")
    paths = invocation.paths()
    flags = {
        "network.bootstrap": bootstrap,
        "network.listen": listen,
        "network.announce": announce,
        "network.psk_file": psk_file,
        "network.psk_accept_file": psk_accept_file,
        "network.transport": transport,
        "node.topics": topics,
        "node.pools": pools,
        "node.handlers": handlers,
        "node.agents": agents,
        "node.record": record,
        "node.profile": profile,
    }
    settings = load_settings(paths.config_file, flags=flags)
    invocation.about_to(f"run a node in {paths.state_dir}")
    reread = functools.partial(load_settings, paths.config_file, flags=flags)
    return run(RunOptions(settings, paths, ephemeral=ephemeral, json=invocation.json, reread=reread))
