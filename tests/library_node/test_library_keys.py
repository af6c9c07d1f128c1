"""A node that cannot hand its place over says so before it stops working."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing
from node_library_kit import DriverRig, founding, who

from converge_p2p.core.errors import Conflict, ConvergeError, OwnChainUnsure
from converge_p2p.core.governance.rename import with_key_replaced
from converge_p2p.core.oplog.bodies import JoinBody
from converge_p2p.core.oplog.motions import move_change
from converge_p2p.core.oplog.operation import sign_operation
from converge_p2p.core.oplog.succession import rotation
from converge_p2p.core.replica import events as ev
from converge_p2p.node.council import Council
from converge_p2p.node.keys import PoolKeys


def in_doubt() -> DriverRig:
    pool, genesis = founding(who(2))
    rig = DriverRig(who(1), pool)
    rig.driver.feed(ev.Restored((), unsure=True))
    rig.driver.feed(ev.Received((genesis.signed,)))
    return rig


def elector_that_left() -> DriverRig:
    rig = DriverRig()
    rig.found().propose(ev.Leave())
    rig.writer.commit()
    return rig


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [(in_doubt, OwnChainUnsure, "old copy"), (elector_that_left, Conflict, "has no effect any more")],
    ids=["in doubt", "an elector that left"],
)
async def test_who_cannot_hand_over_goes_on_working(
    made: Callable[[], DriverRig], error: type[ConvergeError], said: str
) -> None:
    rig, stopped = made(), list[bool]()

    async def stop() -> None:
        stopped.append(True)

    keys = PoolKeys(rig.driver, Council(rig.driver, lambda: rig.spec), stop)
    consent, _ = rotation(rig.driver.pool, rig.identity, who(3))
    with pytest.raises(error, match=said):
        await keys.pass_on(who(3).public_key, consent.signature, timeout_s=1)
    assert stopped == []


async def test_a_role_that_was_given_to_somebody_who_is_there_is_no_handover(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig, other = DriverRig(), who(2)
    terms = with_key_replaced(rig.spec, who(1).public_key, other.public_key)
    rig.found().propose(ev.Move(move_change((), terms, "")))

    async def stop() -> None:
        pass

    keys = PoolKeys(rig.driver, Council(rig.driver, lambda: rig.spec), stop)
    consent, word = rotation(rig.driver.pool, rig.identity, who(3))
    async with rig.running(), trio.open_nursery() as nursery:
        await rig.passes(5)
        assert rig.driver.replica.epoch == 1
        with pytest.raises(Conflict, match="gave the roles"):
            await keys.pass_on(who(3).public_key, consent.signature, timeout_s=1)
        joined = sign_operation(other, rig.driver.pool, JoinBody((), b""), seq=0, prev=None, epoch=1, hlc=1)
        rig.driver.feed(ev.Received((joined.signed,)))
        nursery.start_soon(rig.passes, 5)
        assert (await keys.pass_on(who(3).public_key, consent.signature, timeout_s=1)).word == word
