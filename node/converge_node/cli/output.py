"""What the terminal shows: JSON in envelopes, ids, or plain tables; and errors.

Knows: the three forms of output. Must not know: what is shown.
Source: docs/operations.md. Standard output is data; what goes wrong for a person to read goes to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
import msgspec

from converge_node.cli.tree import Invocation
from converge_node.errors import ExitCode, UsageError, exit_code_of, known_error
from converge_p2p.client import schema
from converge_p2p.core.errors import ConvergeError


def show(invocation: Invocation, data: Any, *, ids: Callable[[], Iterable[str]], text: Callable[[], str]) -> None:
    """Print an answer in the form that was asked for."""
    if invocation.json:
        print_json(schema.success(data))
    elif invocation.quiet:
        for each in ids():
            print(clean(each))
    else:
        print(text())


def print_json(envelope: Any) -> None:
    """Print one JSON document on one line, at once: a reader of a stream waits for it."""
    sys.stdout.write(msgspec.json.encode(envelope).decode() + "\n")
    sys.stdout.flush()


def print_error(error: Exception, *, json: bool) -> int:
    """Print any error, and return the exit code it stands for."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not json:
        print(error.format_message(), file=sys.stderr)
        return ExitCode.USAGE
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        usage = f"see {context.command_path} --help" if context is not None else ""
        return _print_known(UsageError(error.format_message(), hint=usage), json=json)
    known = known_error(error)
    if known is not None:
        return _print_known(known, json=json)
    import traceback

    traceback.print_exception(error)
    defect = ConvergeError(
        f"internal error: {type(error).__name__}: {error}", hint="this is a defect; please report it"
    )
    return _print_known(defect, json=json)


def _print_known(error: ConvergeError, *, json: bool) -> ExitCode:
    if json:
        print_json(schema.failure(error))
    else:
        print("error: " + "\n       ".join(clean(line) for line in str(error).splitlines()), file=sys.stderr)
        if error.hint:
            print(f"hint:  {clean(error.hint)}", file=sys.stderr)
    return exit_code_of(error.code)


def clean(text: str) -> str:
    """Return text without control characters: names and reasons come from strangers, and a terminal obeys them."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> str:
    """Return rows in aligned columns, or `empty` if there are none."""
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    if not cells:
        return empty
    widths = [max(len(row[column]) for row in [list(headers), *cells]) for column in range(len(headers))]
    lines = [list(headers), *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines
    )


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Return names and values, one pair a line."""
    listed = [(name, clean(str(value))) for name, value in pairs]
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in listed)


def short(identifier: str) -> str:
    """Return the first digits of an id, enough to tell a few thousand apart and to use in the next command."""
    return identifier[:12]
