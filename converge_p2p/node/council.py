"""What members put to the electors of a pool, and what an elector answers.

Knows: motions, opinions and the terms in force, as an application asks for them. Must not know: how they are counted.
Source: `docs/governance.md`, changing a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import trio

from converge_p2p.core.errors import LocalError, NotFound
from converge_p2p.core.governance.rename import with_key_replaced
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.oplog.bodies import Body
from converge_p2p.core.oplog.motions import YES, MotionBody, dispute_result, dispute_rivals, move_change
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.coordination import ActFor, CoordinationCommand, SubmitFor
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.coordination import Coordination
from converge_p2p.core.view.motions import MotionView, Outcome
from converge_p2p.node.driver import PoolDriver
from converge_p2p.node.evidence import PoolEvidence
from converge_p2p.node.fanout import Fanout


class Council:
    """Motions of one pool.

    Attributes:
        moved, installed: what `watch_motions` and `watch_epochs` tell.
        evidence: what was cited for and against results.
    """

    def __init__(self, driver: PoolDriver, terms: Callable[[], PoolSpec]) -> None:
        """Made by the pool's handle.

        Args:
            driver: drives the pool's replica.
            terms: gives the terms in force; raises `NotFound` before the founding is known.
        """
        self._driver = driver
        self._view = driver.replica.view
        self._terms = terms
        self.moved: Fanout[MotionView] = Fanout()
        self.installed: Fanout[int] = Fanout()
        self.evidence = PoolEvidence(driver)

    # ------------------------------------------------------------ reading

    @property
    def epoch(self) -> int:
        """The number of the epoch in force here: how many changes were made since the founding."""
        return self._driver.replica.epoch

    def motions(self) -> list[MotionView]:
        """Every motion that is in effect or was carried, by id."""
        return [self._readable(view) for view in self._view.motions.views(self.epoch)]

    def motion(self, name: OperationId) -> MotionView:
        """A motion.

        Raises:
            NotFound: none of this id is in effect here.
        """
        found = self._view.motions.view(name, self.epoch)
        if found is None:
            raise NotFound(f"no motion {name.hex()[:12]} in this pool", hint="it may not have arrived yet")
        return self._readable(found)

    def _readable(self, view: MotionView) -> MotionView:
        return self._driver.replica.contents.open_motion(view)

    # ------------------------------------------------------------ asking

    async def move(
        self, *, expel: Iterable[PublicKey] = (), terms: PoolSpec | None = None, reason: str = ""
    ) -> OperationId:
        """Ask the electors to change the pool: to remove members, to set other terms, or both.

        An elector that asks says yes at once. The change is for the present epoch: if another change is made first, it
        lapses, and has to be moved again.

        Args:
            expel: whom to remove: nothing they sign from then on counts. An elector must not be one in `terms`.
            terms: the terms that shall hold; made with `dataclasses.replace` from the pool's present ones.
            reason: for people.

        Returns:
            The id of the motion.

        Raises:
            LocalError, CodecError: the change contradicts itself, or could not be safe.
            NotAuthorised: this node is no member.
        """
        return await self._put(move_change(tuple(expel), terms, reason))

    async def second(self, same: Callable[[MotionView], bool]) -> OperationId | None:
        """Find a motion for the present epoch that asks for the same, and say yes to it if this node is an elector.

        Args:
            same: says whether a motion asks for what would be moved otherwise.

        Returns:
            Its id, also of one that was just carried; None if there is none.
        """
        for view in self.motions():
            if view.motion.epoch != self.epoch or view.outcome not in {Outcome.OPEN, Outcome.CARRIED} or not same(view):
                continue
            if view.outcome is Outcome.OPEN and self._driver.replica.is_elector:
                await self.say(view.motion.id)
            return view.motion.id
        return None

    async def add_elector(self, key: PublicKey, reason: str = "") -> OperationId:
        """Ask for a further elector. See `move`."""
        terms = self._terms()
        return await self.move(terms=replace(terms, electors=_sorted({*terms.electors, key})), reason=reason)

    async def remove_elector(self, key: PublicKey, *, expel: bool = False, reason: str = "") -> OperationId:
        """Ask that somebody is an elector no more, or, with `expel`, no member either. See `move`.

        Raises:
            LocalError: it is no elector.
        """
        terms = self._terms()
        if key not in terms.electors:
            raise LocalError(f"{key.hex()[:12]} is no elector of the pool")
        without = replace(terms, electors=_sorted(set(terms.electors) - {key}))
        return await self.move(expel=(key,) if expel else (), terms=without, reason=reason)

    async def rotate_elector(self, old: PublicKey, new: PublicKey, reason: str = "") -> OperationId:
        """Ask that another key has an elector's vote, wherever the terms name it. See `move`.

        To be carried before the old key hands over (`PoolKeys.hand_over`), for until then it is the one that votes.

        Raises:
            LocalError: the terms do not name the old key, or name the new one already.
        """
        return await self.move(terms=with_key_replaced(self._terms(), old, new), reason=reason)

    async def dispute(self, task: TaskId, reason: str = "") -> OperationId:
        """Ask the electors to find that the settled result of a task is wrong.

        The task stays as it is settled; what is found counts for the trust in its worker.

        Raises:
            NotFound: no such task.
        """
        return await self._put(dispute_result(task, reason))

    async def dispute_rivals(self, task: TaskId, rivals: Iterable[ValueHash], reason: str = "") -> OperationId:
        """Ask the electors which of several results of a task is right.

        The task stays as it is settled, if it is. In an empirical pool an elector's choice counts only on evidence.

        Args:
            task: the task.
            rivals: hashes of 2 to `limits.MOTION_OPTIONS_MAX` results (see `TaskView.reported`).
            reason: for people.

        Raises:
            NotFound: no such task.
            CodecError: fewer than two results, or too many.
        """
        return await self._put(dispute_rivals(task, tuple(rivals), reason))

    async def _put(self, motion: MotionBody) -> OperationId:
        operations = await self._driver.record(ev.Move(motion))
        return operations[0]

    async def say(self, motion: OperationId, choice: int | None = YES) -> None:
        """Say what this elector thinks of a motion. A yes cannot be taken back.

        Args:
            motion: its id.
            choice: 0 no, 1 yes; of rival results the index of one, or None for that with most evidence.

        Raises:
            NotFound: no such motion here; or a choice among results has to rest on evidence, and there is none.
            NotAuthorised: this node is no elector.
            Conflict: the motion was made for an epoch that is over.
        """
        await self._driver.carry_out(ev.Say(motion, choice))

    def watch_motions(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[MotionView]]:
        """Give a channel of motions as they become known and move. It ends when this node leaves the pool or stops."""
        return self.moved.open()

    def watch_epochs(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[int]]:
        """Give a channel of the numbers of epochs as they come into force. It ends as that of `watch_motions`."""
        return self.installed.open()

    # ------------------------------------------------------------ coordination

    @property
    def coordination(self) -> Coordination:
        """Auctions, polls, negotiations and delegations of the pool, to read."""
        return self._view.coordination

    def content(self, operation: OperationId) -> Body | None:
        """What an operation of this pool says, in clear; None if it is not here, or does not open (yet).

        In a private pool questions, options, terms and reasons are sealed where `coordination` shows them.
        """
        signed = self._driver.replica.log.get(operation)
        if signed is None:
            return None
        return self._driver.replica.contents.open_body(decode_operation(signed, self._driver.pool, trusted=True))

    async def coordinate(self, command: CoordinationCommand) -> OperationId | None:
        """Open or answer an auction, poll or negotiation, give or take back a delegation, or act under one.

        Args:
            command: one of `core.replica.coordination`: `OpenPoll`, `CastVote`, `CommitBid`, `GiveDelegation`, …

        Returns:
            The id of the operation, which names what was opened; None if it was done before.

        Raises:
            StoreFull: it submits a task for somebody, and the store holds as much as it may.
            LocalError, LimitExceeded: it cannot be done; the message says why, and nothing was changed.
        """
        if isinstance(command, ActFor) and isinstance(command.what, SubmitFor) and self._driver.room is not None:
            await self._driver.room.check("the task was not submitted")
        operations = await self._driver.record(command)
        return operations[0] if operations else None

    # ------------------------------------------------------------ inside

    def on_notice(self, notice: ev.Notice) -> None:
        """The replica says something."""
        match notice:
            case ev.MotionMoved(name):
                found = self._view.motions.view(name, self.epoch)
                if found is not None:
                    self.moved.send(self._readable(found))
            case ev.EpochInstalled(number):
                self.installed.send(number)

    def close(self) -> None:
        """The node takes no more part in the pool."""
        self.moved.close()
        self.installed.close()


def _sorted(keys: set[PublicKey]) -> tuple[PublicKey, ...]:
    return tuple(sorted(keys))
