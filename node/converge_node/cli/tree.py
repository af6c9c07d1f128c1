"""Commands that are imported when they are used, and the options that every command takes.

Knows: click. Must not know: any command.
Source: click's documentation of lazily loaded subcommands.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from converge_node.paths import NodePaths

_F = TypeVar("_F", bound=Callable[..., Any])

SECONDS: Final = click.FloatRange(min=0, min_open=True)
"""The kind of an option that is a length of time."""


class Lazy(NamedTuple):
    """Where a command lives ("module:attribute"), and its line in the list of commands."""

    place: str
    summary: str


class DryRun(Exception):
    """What would be done, and was not."""


@dataclass(slots=True)
class Invocation:
    """What the shared options say, wherever on the command line they stand.

    Attributes:
        home: folder of the node, or None for the usual places.
        url: of a node elsewhere, or None.
        json: print JSON in envelopes.
        quiet: print ids only.
        dry_run: change nothing, and say what would be done.
    """

    home: str | None = None
    url: str | None = None
    json: bool = False
    quiet: bool = False
    dry_run: bool = False

    def about_to(self, action: str) -> None:
        """Say what is about to be changed. Raises `DryRun` if nothing may be."""
        if self.dry_run:
            raise DryRun(action)

    def paths(self) -> NodePaths:
        """Return the places of the node that is meant."""
        from converge_node.paths import resolve_paths

        return resolve_paths(self.home)


class LazyGroup(click.Group):
    """A group whose commands are imported one at a time, and which knows what a mistyped command meant."""

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order they were given."""
        return [*self._lazy, *(name for name in super().list_commands(ctx) if name not in self._lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None if there is none of that name."""
        lazy = self._lazy.get(cmd_name)
        if lazy is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = lazy.place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        _give_examples(command, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run.

        Raises:
            click.UsageError: there is none of that name.
        """
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        rows = [(name, lazy.summary) for name, lazy in self._lazy.items()]
        for name in super().list_commands(ctx):
            command = super().get_command(ctx, name)
            if name not in self._lazy and command is not None:
                rows.append((name, command.get_short_help_str(100)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _give_examples(command: click.Command, path: str) -> None:
    from converge_node.cli.examples import example_of

    if isinstance(command, click.Group):
        if not command.params:
            apply_shared(command)
            # as they stand in the help of a command, which collects them from the last to the first
            command.params.reverse()
        for name, each in command.commands.items():
            _give_examples(each, f"{path} {name}")
    elif example := example_of(path):
        command.epilog = f"\b\nExample:\n  {example}"


def apply_shared(command: _F) -> _F:
    """Give a command the options that all commands share; they may stand before or after its name."""
    for option in (
        click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, callback=_note("quiet"), help="Print ids only."
        ),
        click.option(
            "--dry-run", is_flag=True, expose_value=False, callback=_note("dry_run"), help="Say what would be changed."
        ),
        click.option("--json", is_flag=True, expose_value=False, callback=_note("json"), help="Print JSON."),
        click.option(
            "--url", metavar="URL", expose_value=False, callback=_note("url"), help="A node elsewhere, asked by token."
        ),
        click.option(
            "--home", metavar="DIR", expose_value=False, callback=_note("home"), help="Folder of the node's files."
        ),
    ):
        command = option(command)
    return command


def _note(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value == "":
            # a variable of the shell that is not set must not mean another node than was thought
            raise click.BadParameter("it is empty", ctx, param)
        # absent after the command's name must not undo what was said before it
        if value:
            setattr(ctx.ensure_object(Invocation), name, value)

    return callback


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
"""Gives a command its `Invocation` as the first argument."""
