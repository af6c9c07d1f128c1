"""The command that makes a shell complete commands.

Knows: click's completion. Must not know: any command.
"""

from __future__ import annotations

import click

from converge_node.cli.tree import Invocation, apply_shared, pass_invocation


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@apply_shared
@pass_invocation
def completion(invocation: Invocation, shell: str) -> None:
    """Print what makes SHELL complete commands.

    \b
    converge-node completion bash > ~/.local/share/bash-completion/completions/converge-node
    converge-node completion zsh > ~/.zfunc/_converge-node
    converge-node completion fish > ~/.config/fish/completions/converge-node.fish
    """
    from click.shell_completion import get_completion_class

    from converge_node.cli.main import root
    from converge_node.cli.output import show

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(root, {}, "converge-node", "_CONVERGE_NODE_COMPLETE")
    script = made.source_template % made.source_vars()
    show(invocation, {"shell": shell, "script": script}, ids=list, text=lambda: script)
