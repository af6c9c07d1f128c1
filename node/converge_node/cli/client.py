"""Which node a command talks to.

Knows: the settings, the shared options and the environment. Must not know: HTTP (see `converge_p2p.client`).
Source: docs/control.md, and docs/operations.md for the precedence.
"""

from __future__ import annotations

import os
from typing import Any, Final

from converge_node.cli.tree import DryRun, Invocation
from converge_node.errors import UsageError
from converge_p2p.client.routes import Question, Scope
from converge_p2p.client.sync import Client

URL_VARIABLE: Final = "CONVERGE_NODE_URL"
TOKEN_VARIABLE: Final = "CONVERGE_NODE_TOKEN"
"""A token is given in the environment only: a command line can be read by every user of the machine."""


class _DryClient(Client):
    """Asks questions, and changes nothing."""

    def ask(self, question: Question) -> Any:
        """Ask if nothing changes by it. Raises `DryRun` otherwise."""
        if question.route.scope is Scope.READ:
            return super().ask(question)
        body = "" if question.body is None else f" {question.body.decode()}"
        raise DryRun(f"ask {self.place}: {question.route.method} {question.target}{body}")


def url_of(invocation: Invocation) -> str | None:
    """Return the URL of the node that is meant, or None if it is one of this machine.

    Raises:
        UsageError: the command line names a URL and a home.
    """
    if invocation.url and invocation.home is not None:
        raise UsageError("--url and --home name different nodes", hint="give one of them")
    return None if invocation.home is not None else invocation.url or os.environ.get(URL_VARIABLE) or None


def connect(invocation: Invocation) -> Client:
    """Return a client for the node that the command line means. Nothing is opened yet.

    Raises:
        ConfigError: the settings are wrong, which also say where the socket is.
        UsageError, LocalError: a URL and a home are named, or the URL or the token is of another form.
    """
    from converge_node.config import load_settings
    from converge_node.paths import checked_socket

    kind = _DryClient if invocation.dry_run else Client
    url = url_of(invocation)
    if url is not None:
        return kind(url=url, token=os.environ.get(TOKEN_VARIABLE) or None)
    paths = invocation.paths()
    chosen = load_settings(paths.config_file).config.api.socket
    return kind(checked_socket(chosen) if chosen else paths.socket)
