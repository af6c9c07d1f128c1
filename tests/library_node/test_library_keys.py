"""A node that cannot hand its place over says so before it stops working."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from node_library_kit import DriverRig, founding, who

from converge_p2p.core.errors import Conflict, ConvergeError, OwnChainUnsure
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
