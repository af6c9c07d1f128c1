"""Commands about the control interface itself: its document, and tokens. They need no running node.

Knows: the token file and the document. Must not know: how requests are served.
"""

from __future__ import annotations

from pathlib import Path

import click

from converge_node.cli.output import facts, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation

SCOPES = ("read", "write", "admin")


@click.group
def api() -> None:
    """The control interface: its document, and who may use it over TCP."""


@api.command("openapi")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where it is written to.")
@apply_shared
@pass_invocation
def openapi(invocation: Invocation, out: Path | None) -> None:
    """Print the document of the control interface (OpenAPI 3.1), which a node also serves at /openapi.json.

    \b
    converge-node api openapi --out openapi.json
    """
    import msgspec

    from converge_node.control.openapi import openapi_document
    from converge_p2p.core.errors import ConfigError

    text = msgspec.json.format(msgspec.json.encode(openapi_document())).decode() + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    show(invocation, {"file": str(out)}, ids=lambda: [str(out)], text=lambda: f"written to {out}")


@api.group("token")
def token() -> None:
    """Tokens for the control interface over TCP (`api.listen` of the settings)."""


@token.command("new")
@click.argument("name")
@click.option("--scope", type=click.Choice(SCOPES), default="read", show_default=True, help="What it allows.")
@apply_shared
@pass_invocation
def token_new(invocation: Invocation, name: str, scope: str) -> None:
    """Make a token called NAME, and print it once: only its hash is kept. A running node takes it at once.

    \b
    converge-node api token new dashboard --scope read
    """
    from converge_node.control.tokens import add_token
    from converge_p2p.client.routes import Scope

    invocation.about_to(f"add the token {name} to {chosen_token_file(invocation)}")
    made = add_token(chosen_token_file(invocation), name, Scope[scope.upper()])
    data = {"name": name, "scope": scope, "token": made}
    show(invocation, data, ids=lambda: [made], text=lambda: facts(data.items()))


@token.command("ls")
@apply_shared
@pass_invocation
def token_ls(invocation: Invocation) -> None:
    """List tokens by name."""
    from converge_node.control.tokens import read_tokens

    rows = [(each.name, each.scope.name.lower()) for each in read_tokens(chosen_token_file(invocation))]
    data = [{"name": name, "scope": scope} for name, scope in rows]
    show(
        invocation,
        data,
        ids=lambda: [name for name, _ in rows],
        text=lambda: table(("TOKEN", "SCOPE"), rows, empty="there is no token"),
    )


@token.command("rm")
@click.argument("name")
@apply_shared
@pass_invocation
def token_rm(invocation: Invocation, name: str) -> None:
    """Remove the token called NAME. A running node refuses it from then on."""
    from converge_node.control.tokens import remove_token

    invocation.about_to(f"remove the token {name} from {chosen_token_file(invocation)}")
    remove_token(chosen_token_file(invocation), name)
    show(invocation, {"name": name, "removed": True}, ids=lambda: [name], text=lambda: f"removed {name}")


def chosen_token_file(invocation: Invocation) -> Path:
    """Return the file of the tokens. Raises ConfigError: the settings are wrong, which also say where it is."""
    from converge_node.config import load_settings
    from converge_node.paths import token_file_of

    paths = invocation.paths()
    return token_file_of(load_settings(paths.config_file).config.api.token_file, paths)
