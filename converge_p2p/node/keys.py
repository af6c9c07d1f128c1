"""Keys that take each other's place in a pool: hand over, commit to a recovery key, take a place.

Knows: the commands for it, and in which order they go. Must not know: key files.
Source: `docs/protocol.md`, succession.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from converge_p2p.core.codec import encode
from converge_p2p.core.errors import (
    Conflict,
    LocalError,
    NotAuthorised,
    NotFound,
    OwnChainUnsure,
    SignatureError,
    Undecided,
)
from converge_p2p.core.governance.rename import gives_role, named, with_key_replaced
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.oplog.motions import MotionKind
from converge_p2p.core.oplog.succession import (
    RecoverBody,
    RecoveryBody,
    RotateBody,
    SucceedBody,
    commitment_of,
    is_signed,
    rotation,
)
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.epochs import Epochs
from converge_p2p.core.view.motions import MotionView
from converge_p2p.node.council import Council
from converge_p2p.node.driver import PoolDriver


@dataclass(frozen=True, slots=True)
class Bequest:
    """What the node of a new key begins with, where it takes the place of another one. See `Node.take_place`.

    Attributes:
        word: of the old key, that it agrees.
        content_keys: of a private pool, sealed to the new key; empty if there are none.
    """

    word: SucceedBody
    content_keys: bytes = field(default=b"", repr=False)


class PoolKeys:
    """The keys of one pool, and what becomes of this node's."""

    def __init__(self, driver: PoolDriver, council: Council, stop_working: Callable[[], Awaitable[None]]) -> None:
        """Made by the pool's handle.

        Args:
            driver: drives the pool's replica.
            council: asks the electors.
            stop_working: hands back what this node claimed.
        """
        self._driver = driver
        self._council = council
        self._stop_working = stop_working
        self._passing = trio.Lock()

    def lineage(self) -> dict[PublicKey, PublicKey]:
        """Every key that was succeeded, with the key that took its place."""
        return self._driver.replica.view.successions.lineage()

    async def commit_recovery(self, key: PublicKey) -> None:
        """Commit to a recovery key, whose holder can replace this node's key. Once, for ever; keep it elsewhere."""
        await self._driver.carry_out(ev.Succeed(RecoveryBody(commitment_of(key))))

    async def hand_over(self, successor: Identity) -> SucceedBody:
        """Hand this node's place over to a new key. Nothing but votes that this node signs afterwards counts.

        Returns:
            What the new key's node begins with: see `take_place`.
        """
        rotate, succeed = rotation(self._driver.pool, self._driver.replica.identity, successor)
        await self._driver.carry_out(ev.Succeed(rotate))
        return succeed

    async def pass_on(self, successor: PublicKey, signature: bytes, *, timeout_s: float | None = None) -> Bequest:
        """Hand this node's place over to a key that is somewhere else, its roles first.

        Where the terms name this node's key, the electors are asked for terms that name the new one, and what was
        claimed here is handed back. Can be called again, whatever came of it before: what is done is not done twice.

        Args:
            successor: the new key, which has signed nothing in the pool.
            signature: of the new key, tag `rotation`, that it agrees: over the CBOR of pool, old and new key.
            timeout_s: how long to wait for the electors; None waits for ever.

        Raises:
            SignatureError: the new key did not sign that.
            Conflict: it has signed something in the pool, or is a member; this node's place, or its roles, went to
                another key; or nothing that this node's key signs counts.
            Undecided: the electors did not agree in time. The motion stands, and nothing was handed over.
            NotAuthorised: this node is no member.
            OwnChainUnsure: the store is in doubt.
            LocalError: the terms name the new key beside the old one.

        Cancellation: what was asked for stands.
        """
        replica = self._driver.replica
        own, rotate = replica.identity.public_key, RotateBody(successor, signature)
        if not is_signed(self._driver.pool, own, rotate):
            raise SignatureError(
                "the new key did not sign that it takes this node's place in the pool",
                hint="sign the pool's id, this node's key and the new one, in this order",
            )
        async with self._passing:
            heir = self.lineage().get(own)
            if heir is None:
                self._check_unused(successor)
                self._check_able()
                await self._pass_roles(successor, timeout_s)
                self._check_unused(successor)
                self._check_roles(successor)
                # last before it cannot fail any more: who stopped working does not begin again
                self._check_able()
                await self._stop_working()
                await self._driver.carry_out(ev.Succeed(rotate))
            elif heir != successor:
                raise Conflict(
                    f"the key {heir.hex()[:12]} took this node's place in the pool",
                    hint="only that key can hand the place on",
                )
        word = replica.identity.sign("succession", encode([self._driver.pool, own, successor]))
        return Bequest(SucceedBody(own, word), replica.contents.left_to(successor))

    @property
    def _terms(self) -> PoolSpec:
        spec = self._driver.replica.view.spec
        if spec is None:
            raise NotFound("the pool's founding terms are not known here yet", hint="wait until a member is connected")
        return spec

    def _check_unused(self, successor: PublicKey) -> None:
        replica = self._driver.replica
        # an epoch that names the key makes it a member: this node asked for that
        named = gives_role(self._terms, successor)
        if replica.log.held(successor) or (replica.view.members.has(successor) and not named):
            raise Conflict(
                "the new key is a member of the pool, or has signed something there: it takes no other key's place",
                hint="take a key that is new",
            )

    def _check_able(self) -> None:
        """See to it that what the own key signs now has an effect."""
        replica = self._driver.replica
        own, members = replica.identity.public_key, replica.view.members
        if reason := replica.unsure:
            raise OwnChainUnsure(
                f"the store may be an old copy, so this agent signs nothing yet: {reason}",
                hint="connect to the pool's electors, then ask again",
            )
        if members.active(own):
            return
        if own in members.frozen() or gives_role(self._terms, own):
            raise Conflict(
                "what this node's key signs in the pool has no effect any more: it signed two operations with one "
                "number, left, or was removed",
                hint="the other electors can name the new key, or let it in; then leave the pool here",
            )
        raise NotAuthorised("this node is not an active member of the pool", hint="join the pool first")

    def _check_roles(self, successor: PublicKey) -> None:
        """See to it that no other key was given the roles of the own one, as by a rotation that was not ended."""
        replica, terms = self._driver.replica, self._terms
        for key in _renamed(replica.view.epochs, replica.identity.public_key) - {successor}:
            # one that has signed something is somebody else, who was given the role and takes no place
            if gives_role(terms, key) and not replica.log.held(key):
                raise Conflict(
                    f"the electors gave the roles of this node's key to {key.hex()[:12]}, which has not got its place",
                    hint="hand over to that key, or have the electors put the new key in its place first",
                )

    async def _pass_roles(self, successor: PublicKey, timeout_s: float | None) -> None:
        """Have every role that the terms give to the own key given to the new one."""
        own = self._driver.replica.identity.public_key
        if not gives_role(self._terms, own):
            return
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
            async with self._council.watch_epochs() as epochs:
                while gives_role(self._terms, own):
                    with trio.CancelScope(shield=True):
                        # a motion that is signed and not folded yet would be moved a second time
                        await self._ask_for(successor)
                    try:
                        await epochs.receive()
                    except trio.EndOfChannel:
                        raise NotFound("this node left the pool meanwhile") from None
        if gives_role(self._terms, own):
            raise Undecided(
                "the electors have not agreed yet that the new key has the role of this node's key",
                hint="ask them to say yes to the motion that this node moved; then ask again",
            )

    async def _ask_for(self, successor: PublicKey) -> OperationId:
        """Have a motion before the electors, one for each epoch, and be for it."""
        council = self._council
        wanted = with_key_replaced(self._terms, self._driver.replica.identity.public_key, successor)

        def same(view: MotionView) -> bool:
            motion = view.motion
            return motion.kind is MotionKind.CHANGE and motion.terms == wanted and not motion.expelled

        if (known := await council.second(same)) is not None:
            return known
        return await council.move(terms=wanted, reason="a key is replaced by a new one of the same owner")

    async def take_place(self, word: SucceedBody | RecoverBody) -> None:
        """Take the place of another key, as the first thing this node's key signs here.

        Args:
            word: what `hand_over` gave, or what `core.oplog.succession.recovery` makes of the recovery key.
        """
        await self._driver.carry_out(ev.Succeed(word))


def _renamed(epochs: Epochs, old: PublicKey) -> set[PublicKey]:
    """Every key that an epoch put in the place of `old` and nothing else."""
    found = set[PublicKey]()
    for number in range(1, len(epochs)):
        before, after = epochs[number - 1].spec, epochs[number].spec
        if gives_role(before, old) and not gives_role(after, old):
            found |= {key for key in named(after) - named(before) if _renames(before, after, old, key)}
    return found


def _renames(before: PoolSpec, after: PoolSpec, old: PublicKey, new: PublicKey) -> bool:
    try:
        return with_key_replaced(before, old, new) == after
    except LocalError:
        return False
