"""Signing by hand, and showing different things to different nodes: what every liar needs.

Knows: how to continue an own chain, or to fork it. Must not know: which lie is worth telling (see `byzantine` and
`lying_electors`). Source: `docs/protocol.md`, equivocation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from converge_p2p.core.oplog.bodies import Body
from converge_p2p.core.oplog.operation import Operation, sign_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.testing.machine import Machine

if TYPE_CHECKING:
    from converge_p2p.testing.world import World

LATER_HLC = (1, 1, 1, 10**9)
"""By how much the clock of a forged operation is ahead of the one before it."""


class Forger:
    """The hand of one machine that lies."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.world = world
        self.machine = machine
        self.rng = world.rng

    @property
    def replica(self) -> Replica:
        """The own replica. Only while the machine is up."""
        assert self.machine.replica is not None
        return self.machine.replica

    @property
    def able(self) -> bool:
        """Whether something can be signed now: a number taken by an operation that is being written is taken."""
        machine = self.machine
        return machine.replica is not None and not machine.writing and not self.world.quiet and machine.replica.ready

    def sign(self, body: Body, after: Operation | None = None, epoch: int | None = None) -> Operation:
        """Sign on top of the own chain, or of an operation that was signed by hand just now."""
        key, log = self.machine.identity.public_key, self.replica.log
        chain = log.chains.get(key)
        # what a checkpoint covers is not held any more, but where the chain ends is known
        seq, prev, hlc = (0, None, 0) if chain is None else (len(chain), chain.head, chain.hlc)
        if after is not None:
            seq, prev, hlc = after.seq + 1, after.id, after.hlc
        operation = sign_operation(
            self.machine.identity,
            log.pool,
            body,
            seq=seq,
            prev=prev,
            epoch=self.replica.epoch if epoch is None else epoch,
            hlc=hlc + self.rng.choice(LATER_HLC),
        )
        self.world.ledger.signed(operation)
        return operation

    def chain(self, bodies: Iterable[Body], epoch: int | None = None) -> list[Operation]:
        """Sign several, one after the other."""
        operations: list[Operation] = []
        for body in bodies:
            operations.append(self.sign(body, operations[-1] if operations else None, epoch))
        return operations

    def show_apart(self, one: list[Operation], other: list[Operation]) -> None:
        """Show one list to some and the other to the rest; the own replica believes the first."""
        machine, world = self.machine, self.world
        split = self.rng.randint(1, len(world.machines) - 1)
        order = [node for node in range(len(world.machines)) if node != machine.index]
        self.rng.shuffle(order)
        for place, node in enumerate(order):
            self.show(node, one if place < split else other)
        self.keep(one)

    def show(self, node: int, operations: list[Operation]) -> None:
        """Send operations to one node."""
        if operations:
            event = ev.Received(tuple(operation.signed for operation in operations), self.machine.peer)
            self.world.deliver(self.machine.index, node, event)

    def keep(self, operations: list[Operation]) -> None:
        """Let the own replica know them, as if others had shown them."""
        self.machine.feed(ev.Received(tuple(operation.signed for operation in operations)))
