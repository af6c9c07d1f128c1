"""Which node a command talks to.

Knows: the settings, the shared options and the environment. Must not know: HTTP (see `converge_p2p.client`).
Source: docs/control.md, and docs/operations.md for the precedence.
"""

from __future__ import annotations

import os
from typing import Final

from converge_node.cli.tree import Invocation
from converge_p2p.client.sync import Client

URL_VARIABLE: Final = "CONVERGE_NODE_URL"
TOKEN_VARIABLE: Final = "CONVERGE_NODE_TOKEN"
"""A token is given in the environment only: a command line can be read by every user of the machine."""


def connect(invocation: Invocation) -> Client:
    """Return a client for the node that the command line means. Nothing is opened yet.

    Raises:
        ConfigError: the settings are wrong, which also say where the socket is.
        LocalError: the URL or the token is of another form.
    """
    from converge_node.config import load_settings
    from converge_node.paths import checked_socket

    url = invocation.url or os.environ.get(URL_VARIABLE)
    if url and invocation.home is None:
        return Client(url=url, token=os.environ.get(TOKEN_VARIABLE) or None)
    paths = invocation.paths()
    chosen = load_settings(paths.config_file).config.api.socket
    return Client(checked_socket(chosen) if chosen else paths.socket)
