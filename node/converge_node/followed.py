"""The invitations that a node has followed or is to follow, kept in its home.

Knows: one file of lines. Must not know: what a node makes of them.
Source: docs/operations.md, private networks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from converge_node.key_files import NETWORK_KEY_FILE, network_key_of, write_key_file
from converge_node.paths import NodePaths
from converge_p2p.core import limits
from converge_p2p.core.errors import ConfigError, Conflict, ConvergeError
from converge_p2p.core.governance.invitation_line import InvitationLine
from converge_p2p.store.private_files import write_private_file

INVITATIONS_FILE: Final = "invitations"


def read_followed(paths: NodePaths) -> tuple[InvitationLine, ...]:
    """Return the invitations, the oldest first.

    Raises:
        ConfigError: the file cannot be read, or a line of it is damaged.
    """
    found = []
    for number, text in enumerate(_lines(_file(paths)), 1):
        try:
            found.append(InvitationLine.from_text(text))
        except ConvergeError as error:
            raise ConfigError(f"{_file(paths)}, line {number}: {error}", hint="remove the line") from error
    return tuple(found)


def keep(paths: NodePaths, line: InvitationLine) -> None:
    """Keep an invitation for every start from now on; of more than `limits.INVITATIONS_FOLLOWED_MAX` the newest.

    Raises:
        ConfigError, StoreError: the file cannot be read or written.
    """
    text = line.to_text()
    others = [known for known in _lines(_file(paths)) if known != text]
    kept = [*others, text][-limits.INVITATIONS_FOLLOWED_MAX :]
    write_private_file(_file(paths), "".join(f"{item}\n" for item in kept).encode(), replace=True)


def enter_network(paths: NodePaths, line: InvitationLine, psk_file: str) -> None:
    """Put a node that does not run yet into the network of an invitation.

    Raises:
        Conflict: the node is in another network.
        ConfigError, StoreError: a file cannot be read or written.
    """
    own = network_key_of(psk_file, paths)
    if own == line.network_key:
        return
    if own is not None or line.network_key is None or (paths.state_dir / "node.sqlite").exists():
        raise Conflict(
            "the invitation is not for this network: the node of this home is in another one",
            hint="a node is in one network: give the new one a home of its own with --home DIR",
        )
    write_key_file(paths.state_dir / NETWORK_KEY_FILE, line.network_key.to_file())


def _file(paths: NodePaths) -> Path:
    return paths.state_dir / INVITATIONS_FILE


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
