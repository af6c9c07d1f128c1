"""What every attack is given: where the victims are, what they hold, and new identities to attack with.

Knows: the battlefield. Must not know: single attacks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import trio
from attack_rig import Battlefield, identity
from attack_wire import Attacker

from converge_p2p.core.identity import Identity
from converge_p2p.core.types import PeerId, PoolId, TaskId
from converge_p2p.net import peer_id_of

NEWCOMER_S = 30.0


class Ground:
    """The attackers' knowledge of the battlefield.

    Attributes:
        scale: multiplies how much is sent.
        log: every operation of the pool, as any peer can read them.
        remarks: what went wrong for the victims in the present attack, beyond what is measured.
    """

    def __init__(self, field: Battlefield, scale: int) -> None:
        self.field = field
        self.scale = scale
        self.addresses = field.addresses
        self.pool: PoolId = field.pool
        self.log: list[bytes] = []
        self.remarks: list[str] = []
        self._numbers: Iterator[int] = itertools.count(1)

    def fresh(self) -> int:
        """Number of an attacker that no victim has met."""
        return next(self._numbers)

    def fresh_seed(self) -> bytes:
        """Seed of an identity that no victim has met."""
        return self.fresh_identity().seed

    def fresh_identity(self) -> Identity:
        """An identity that no victim has met."""
        return identity(self.fresh())

    def other_keys(self) -> list[PeerId]:
        """For each victim the peer id of the next one."""
        names = [peer_id_of(key) for key in self.field.keys]
        return [*names[1:], names[0]]

    @property
    def tasks(self) -> list[TaskId]:
        """Tasks that are open."""
        return [TaskId(task) for task in self.field.open_tasks]

    @property
    def settled(self) -> list[TaskId]:
        """Tasks that are settled."""
        return [TaskId(task) for task in self.field.settled_tasks]

    def failed(self, what: str) -> None:
        """Note that a victim did what it must not."""
        self.remarks.append(what)

    async def read_log(self) -> None:
        """Fetch the pool's operations once, as any stranger can."""
        async with Attacker.open(self.fresh()) as attacker:
            peer = await attacker.link(self.addresses[0])
            self.log = await attacker.read_log(peer, self.pool)

    async def newcomer_is_served(self, when: str) -> None:
        """Check that an honest stranger can connect to each victim meanwhile."""
        for address in self.addresses:
            async with Attacker.open(self.fresh()) as newcomer:
                with trio.move_on_after(NEWCOMER_S):
                    while await newcomer.try_link(address) is None:  # noqa: ASYNC110 - as an honest node, it retries
                        await trio.sleep(0.2)
                    continue
                self.failed(f"no newcomer could connect {when}")
