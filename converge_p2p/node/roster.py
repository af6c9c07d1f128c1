"""Who is in a pool, and who is shut out of it, as an application sees it.

Knows: the fold's members. Must not know: the network.
Source: `docs/protocol.md`, membership, chains and forks.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core.identity import fingerprint
from converge_p2p.core.types import AgentId, PublicKey
from converge_p2p.core.view.fold import View


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member of a pool.

    Attributes:
        agent_id: its fingerprint.
        public_key: its key.
        elector: whether it votes.
        capabilities: what it declared when it joined.
    """

    agent_id: AgentId
    public_key: PublicKey
    elector: bool
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrozenView:
    """An agent that signed two operations with one number. The proof is in the log, and spreads.

    Attributes:
        agent_id: its fingerprint.
        public_key: its key.
        seq: the number. Its data from there on counts nowhere; its votes as an elector do.
    """

    agent_id: AgentId
    public_key: PublicKey
    seq: int


def member_views(view: View) -> list[MemberView]:
    """The members, sorted by key."""
    return [
        MemberView(fingerprint(key), key, key in view.electors, view.members.capabilities(key))
        for key in view.members.all()
    ]


def frozen_views(view: View) -> list[FrozenView]:
    """Whoever forked, sorted by key."""
    return [FrozenView(fingerprint(key), key, seq) for key, seq in sorted(view.members.frozen().items())]
