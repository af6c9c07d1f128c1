"""Attacks on the choice of electors: members and strangers that speak of motions and epochs as if they decided them.

Knows: motions, opinions, votes on epochs. Must not know: how links are made.
"""

from __future__ import annotations

import os

from attack_ground import Ground
from attack_members import deliver
from attack_wire import Chain

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue
from converge_p2p.core.oplog.bodies import (
    Ballot,
    ClaimBody,
    JoinBody,
    Phase,
    Purpose,
    ReportBody,
    SubmitBody,
    VoteBody,
)
from converge_p2p.core.oplog.motions import YES, OpinionBody, move_change
from converge_p2p.core.types import OperationId, PublicKey
from converge_p2p.core.view.epochs import epoch_subject


async def motion_floods(ground: Ground) -> int:
    """A member that moves far more than counts, against everybody, and says yes to all of it itself."""
    chain = Chain(ground.fresh_identity(), ground.pool)
    operations = [chain.sign(JoinBody())]
    for number in range(limits.MOTIONS_PER_AUTHOR_MAX * 20 * ground.scale):
        expelled = (PublicKey(os.urandom(32)), *ground.field.keys) if number % 2 else (ground.field.keys[0],)
        motion = chain.sign(move_change(tuple(sorted(expelled)), None, f"reason {number}"))
        operations += [motion, chain.sign(OpinionBody(motion.id, YES))]
    return await deliver(ground, [operation.signed for operation in operations])


async def opinions_of_strangers(ground: Ground) -> int:
    """Many who are no electors, all of one opinion; and opinions on motions that do not exist."""
    mover = Chain(ground.fresh_identity(), ground.pool)
    join, motion = mover.sign(JoinBody()), mover.sign(move_change((ground.field.keys[0],), None, "all of us want it"))
    operations = [join.signed, motion.signed]
    # the first that is refused ends a batch, so those who joined come before those who did not
    for joined in (True, False):
        for _ in range(50 * ground.scale):
            stranger = Chain(ground.fresh_identity(), ground.pool)
            if joined:
                operations.append(stranger.sign(JoinBody()).signed)
            operations.append(stranger.sign(OpinionBody(motion.id, YES)).signed)
            operations.append(stranger.sign(OpinionBody(OperationId(os.urandom(32)), YES)).signed)
    return await deliver(ground, operations)


async def votes_on_epochs(ground: Ground) -> int:
    """A member that votes, claims and reports on the next epochs, in rounds without end, as an elector would."""
    chain = Chain(ground.fresh_identity(), ground.pool)
    operations = [chain.sign(JoinBody())]
    value = TaskValue(Outcome.COMPLETED, chain.who.public_key, encode_value("an epoch of my own"))
    for number in (1, 2, 2**31 - 1):
        subject = epoch_subject(ground.pool, number)
        operations.append(chain.sign(ClaimBody(subject)))
        claim = chain.sign(ClaimBody(subject, Purpose.EPOCH, ref=os.urandom(32)))
        operations.append(claim)
        for round_ in (0, 1, *range(1000, 1000 + 50 * ground.scale), limits.ROUND_MAX):
            ballots = (
                Ballot(Phase.GRANT, subject, round_, claim.id),
                Ballot(Phase.ENDORSE, subject, round_, value.hash),
                Ballot(Phase.ACCEPT, subject, round_, value.hash),
            )
            operations.append(chain.sign(VoteBody(ballots)))
            operations.append(chain.sign(ReportBody(subject, round_, value, (OperationId(os.urandom(32)),))))
    return await deliver(ground, [operation.signed for operation in operations])


async def future_and_past_epochs(ground: Ground) -> int:
    """Chains that name epochs which are not there yet, and then go back to the first."""
    operations = []
    for epoch in (1, 2, 1000, limits.EPOCH_MAX):
        chain = Chain(ground.fresh_identity(), ground.pool)
        operations.append(chain.sign(JoinBody()))
        ballots = (Ballot(Phase.ACCEPT, ground.tasks[0], 0, os.urandom(32)),)
        operations += [chain.sign(VoteBody(ballots), epoch=epoch) for _ in range(400 * ground.scale)]
        operations.append(chain.sign(SubmitBody(TaskSpec(b"back", "echo", encode_value({}))), epoch=0))
    return await deliver(ground, [operation.signed for operation in operations])
