"""Which public key belongs to which agent id.

Knows: ids and keys that were checked against each other. Must not know: where they were learnt, or whom to trust.
Source: the concepts page (identity registry). An id is the hash of its key, so an entry is either right or refused; no
order of registration can put a foreign key under somebody's id.
"""

from __future__ import annotations

from collections import OrderedDict

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, LocalError, NotFound, SignatureError
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.types import AgentId, PublicKey


class IdentityRegistry:
    """A bounded table of agent ids and their public keys.

    When it is full, the entry that was used the longest ago is forgotten. That is safe: whoever shows the key again is
    checked again.
    """

    def __init__(self, entries_max: int = limits.IDENTITIES_MAX) -> None:
        """Make an empty registry.

        Args:
            entries_max: how many agents are remembered, at least 1.

        Raises:
            LocalError: less than 1.
        """
        if entries_max < 1:
            raise LocalError(f"entries_max is {entries_max}; expected at least 1")
        self._entries_max = entries_max
        self._keys: OrderedDict[AgentId, PublicKey] = OrderedDict()

    def register(self, agent_id: str, public_key: bytes) -> AgentId:
        """Remember the key of an agent, and return the agent id.

        Raises:
            SignatureError: the key does not hash to this id; nothing is remembered.
        """
        key = PublicKey(bytes(public_key))
        try:
            own = fingerprint(key)
        except CodecError as error:
            raise SignatureError(f"no key for agent {agent_id}: {error}") from error
        if own != agent_id:
            raise SignatureError(f"this key belongs to agent {own}, not to {agent_id}")
        self._keys[own] = key
        self._keys.move_to_end(own)
        if len(self._keys) > self._entries_max:
            self._keys.popitem(last=False)
        return own

    def public_key(self, agent_id: AgentId) -> PublicKey:
        """Return the key of an agent.

        Raises:
            NotFound: the agent is not known here.
        """
        try:
            key = self._keys[agent_id]
        except KeyError:
            raise NotFound(
                f"no public key of agent {agent_id} is known", hint="register it from the agent's descriptor"
            ) from None
        self._keys.move_to_end(agent_id)
        return key

    def forget(self, agent_id: AgentId) -> bool:
        """Forget an agent; say whether it was known."""
        return self._keys.pop(agent_id, None) is not None

    def __contains__(self, agent_id: object) -> bool:
        return agent_id in self._keys

    def __len__(self) -> int:
        return len(self._keys)
