"""What an application sees of a member of a pool.

Knows: its fields. Must not know: how members come and go.
Source: `docs/tutorial.md`, embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from converge_p2p.core.types import AgentId, PublicKey


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
