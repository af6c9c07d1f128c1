"""The entry point: the command tree, and how every error ends the process.

Knows: which commands there are and where each lives. Must not know: what they do; a command's module is imported
when it is used, which keeps `--help` quick.
Source: docs/operations.md, commands and exit codes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from converge_node.cli.tree import DryRun, Invocation, Lazy, LazyGroup, apply_shared

_COMMANDS = {
    "run": Lazy("converge_node.cli.run:run_command", "Run a node (the default command)."),
    "id": Lazy("converge_node.cli.node:id_command", "Show who the node is and where it listens."),
    "status": Lazy("converge_node.cli.node:status", "Show the node at a glance."),
    "health": Lazy("converge_node.cli.node:health", "Say whether the node lives, or is ready."),
    "top": Lazy("converge_node.cli.top:top", "Show the node live in the terminal."),
    "web": Lazy("converge_node.cli.web:web", "Show the node live in a browser."),
    "metrics": Lazy("converge_node.cli.watch:metrics", "Print the metrics of the running node."),
    "events": Lazy("converge_node.cli.watch:events", "Print what happens in the node, as it happens."),
    "logs": Lazy("converge_node.cli.watch:logs", "Show the log of the running node, and change its level."),
    "doctor": Lazy("converge_node.cli.doctor:doctor", "Look at everything a node needs, and say what to do."),
    "ping": Lazy("converge_node.cli.peers:ping", "Measure how far away a connected peer is."),
    "peers": Lazy("converge_node.cli.peers:peers", "Show, connect, disconnect, keep out and forget peers."),
    "bootstrap": Lazy("converge_node.cli.bootstrap:bootstrap", "Say through which peers the node finds the network."),
    "pool": Lazy("converge_node.cli.pool:pool", "Create, join, show, change and audit pools, and say who may join."),
    "agent": Lazy("converge_node.cli.agent:agent", "Publish this agent, and find others by what they can do."),
    "task": Lazy("converge_node.cli.task:task", "Submit, list, show, watch, explain, cancel, veto and judge tasks."),
    "receipt": Lazy("converge_node.cli.receipt:receipt", "Verify receipts, offline."),
    "blob": Lazy("converge_node.cli.blob:blob", "Keep contents that are too large for a task, and fetch them."),
    "mesh": Lazy("converge_node.cli.mesh:mesh", "Make private networks, and invite others."),
    "topic": Lazy("converge_node.cli.mesh:topic", "Take part in topics, public or private."),
    "join": Lazy("converge_node.cli.mesh:join", "Follow an invitation."),
    "api": Lazy("converge_node.cli.api:api", "Print the control interface's document, and manage its tokens."),
    "mcp": Lazy("converge_node.cli.mcp:mcp", "Serve the running node to an MCP client."),
    "config": Lazy("converge_node.cli.config:config", "Show, check, change and reload the settings."),
    "store": Lazy("converge_node.cli.store:store", "Look at the database, check, back up, restore and compact it."),
    "demo": Lazy("converge_node.demo.cli:demo", "Run a mesh of processes on this machine doing real work."),
    "sim": Lazy("converge_node.sim.cli:sim", "Simulate many nodes in one process, and say what a pool costs."),
    "shutdown": Lazy("converge_node.cli.node:shutdown", "Stop the running node gracefully."),
    "init": Lazy("converge_node.cli.identity:init", "Make the key and the settings file, without starting."),
    "identity": Lazy("converge_node.cli.identity:identity", "Show, export, import and seal the node's key."),
    "completion": Lazy("converge_node.cli.completion:completion", "Print what makes a shell complete commands."),
    "service": Lazy("converge_node.cli.service:service", "Print what lets systemd run the node."),
    "errors": Lazy("converge_node.cli.errors:errors", "Explain an error code."),
    "version": Lazy("converge_node.cli.node:version", "Show the version."),
}

_TAKES_VALUE = ("--home", "--url")
_ROOT_FLAGS = ("--json", "--dry-run", "-q", "--quiet", "-h", "--help", "--version")


class Root(LazyGroup):
    """The top of the tree: without a command it runs a node."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `run` where a command should stand and none does."""
        if ctx.resilient_parsing:
            # a shell asks what could stand here
            return super().parse_args(ctx, args)
        index = 0
        while index < len(args):
            word = args[index]
            if word in _TAKES_VALUE and index + 1 < len(args):
                index += 2
            elif word in (*_ROOT_FLAGS, *_TAKES_VALUE) or word.startswith(tuple(f"{name}=" for name in _TAKES_VALUE)):
                index += 1
            else:
                break
        # click itself says what is wrong with a last option that lacks its value
        asks = {"-h", "--help", "--version"} & set(args[:index]) or args[:index][-1:] in [
            [name] for name in _TAKES_VALUE
        ]
        if not asks and (index >= len(args) or args[index].startswith("-")):
            args = [*args[:index], "run", *args[index:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. Raises `ReaderGone` where click would end the process as if something had failed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error


class ReaderGone(Exception):
    """Whoever read the output has enough."""


def _show_version(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked:
        from converge_p2p import __version__

        click.echo(f"converge-node {__version__}")
        ctx.exit(0)


@click.group(cls=Root, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@apply_shared
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def root() -> None:
    """One node of a converge-p2p network, and the commands that talk to it.

    Without a command it runs a node: converge-node --bootstrap /ip4/192.0.2.1/tcp/4001/p2p/12D3…
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with one of `errors.ExitCode`."""
    sys.exit(invoke(list(sys.argv[1:] if arguments is None else arguments)))


def invoke(arguments: list[str]) -> int:
    """Run the command line and return its exit code. Every error is printed, none is raised."""
    invocation = Invocation()
    try:
        result = root.main(arguments, prog_name="converge-node", standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (ReaderGone, BrokenPipeError):
        # the interpreter must not try to flush the output again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except DryRun as ended:
        from converge_node.cli.output import show

        action = str(ended)
        show(invocation, {"would": action}, ids=list, text=lambda: f"would {action}")
        return 0
    except Exception as error:  # noqa: BLE001 - the edge: an error becomes an exit code
        from converge_node.cli.output import print_error

        return print_error(error, json=invocation.json or "--json" in arguments)
    return result if isinstance(result, int) else 0
