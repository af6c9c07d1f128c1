"""The command `web`: the way from a terminal to the web page of a node.

Knows: which of the two places the page is served from, and tokens. Must not know: what the page shows.
Source: docs/web.md.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from converge_node.cli.client import connect, url_of
from converge_node.cli.output import show
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import ExitCode, UsageError

TOKEN_NAME: Final = "web"


@click.command
@click.option("--open", "opened", is_flag=True, help="Serve the page and open it in a browser.")
@click.option("--port", type=click.IntRange(1, 65535), help="Serve the page here, on this port of 127.0.0.1.")
@apply_shared
@pass_invocation
def web(invocation: Invocation, opened: bool, port: int | None) -> int:
    """Print the address of the node's web page, which shows it live. The page can change nothing.

    A node with `api.listen` serves the page itself: a read token named `web` is made, in place of the one before, and
    the command ends. Without that setting, or with --open or --port, the page is served here until Ctrl-C, and
    everything else stays as closed as it was. Whoever knows the address may read what the node knows.

    \b
    converge-node web --open
    """
    url = url_of(invocation)
    if url is not None:
        if opened or port:
            raise UsageError("the page of a node elsewhere is served there", hint="leave --open and --port out")
        return _say(invocation, f"{url.rstrip('/')}/", "the page asks for a token: `converge-node api token new` there")
    client = connect(invocation)
    own = client.node().api_urls
    if own and not (opened or port):
        from converge_node.cli.api import chosen_token_file
        from converge_node.control.tokens import replace_token
        from converge_p2p.client.routes import Scope

        file = chosen_token_file(invocation)
        invocation.about_to(f"make the token {TOKEN_NAME} in {file}")
        token = replace_token(file, TOKEN_NAME, Scope.READ)
        return _say(
            invocation, _address(_dialled(own[0]), token), f"`converge-node api token rm {TOKEN_NAME}` closes it again"
        )
    invocation.about_to("serve the web page")
    _serve(invocation, Path(client.place.socket), port or 0, opened)
    return ExitCode.OK


def _serve(invocation: Invocation, socket: Path, port: int, opened: bool) -> None:
    import signal

    import trio

    from converge_node.control.tokens import new_token
    from converge_node.web.gateway import run_gateway

    # known to this process and to whoever reads what it prints; it ends with the process
    token = new_token()

    async def main() -> None:
        with ExitStack() as stack, trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                url: str = await nursery.start(run_gateway, socket, token, port)
                address = _address(url, token)
                _say(invocation, address, "Ctrl-C ends it; with api.listen in the settings the node serves it itself")
                if opened:
                    page = stack.enter_context(_leading_to(address))
                    await trio.to_thread.run_sync(_open_browser, page)
                async for _ in signals:
                    nursery.cancel_scope.cancel()

    trio.run(main, strict_exception_groups=True)


def _say(invocation: Invocation, address: str, note: str) -> int:
    import sys

    show(invocation, {"url": address}, ids=lambda: [address], text=lambda: address)
    sys.stdout.flush()
    if not (invocation.json or invocation.quiet):
        print(note, file=sys.stderr)
    return ExitCode.OK


def _address(url: str, token: str) -> str:
    """Return where the page is; a browser keeps what stands behind the number sign to itself."""
    return f"{url}/#token={token}"


def _dialled(url: str) -> str:
    """Return the URL with an address that can be dialled from here in place of one that means every interface."""
    parts = urlsplit(url)
    try:
        host = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return url
    if not host.is_unspecified:
        return url
    return f"http://{'127.0.0.1' if host.version == 4 else '[::1]'}:{parts.port}"


@contextmanager
def _leading_to(address: str) -> Iterator[Path]:
    """Write a file of the user's own that leads to the address: what a browser is started with all users can read."""
    with tempfile.TemporaryDirectory(prefix="converge-node-") as folder:
        page = Path(folder, "open.html")
        with open(page, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}"><title>…</title>\n')
        yield page


def _open_browser(page: Path) -> None:
    import webbrowser

    webbrowser.open(page.as_uri())
