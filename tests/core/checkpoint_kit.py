"""Cuts of a replica's log, the state there, and a replica that begins from it.

Knows: how to fold a part of what a replica holds. Must not know: a test.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from pool_kit import Pool, now

from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.snapshot import Snapshot
from converge_p2p.core.view.summary import Summary


def summary_at(replica: Replica, lengths: Mapping[PublicKey, int], base: Summary | None = None) -> Summary:
    """Fold the first operations of each author, as far as they can be folded."""
    summary = base or Summary(replica.pool)
    summary.value_of = replica.checkpointer._epoch_value
    moved = True
    while moved:
        moved = False
        for author in sorted(replica.log.chains, key=lambda key: (key != replica.view.creator, key)):
            row = summary.rows.get(author)
            for data in replica.log.read(author, 0 if row is None else row.length, lengths.get(author, 0)):
                operation = decode_operation(data, replica.pool, trusted=True)
                if not summary.add(operation, known=replica.log.holds):
                    break
                moved = True
        if not moved and summary.view.epochs.number < replica.view.epochs.number:
            votes = replica.checkpointer._votes_beside(summary)
            moved = sum(summary.add_vote(vote) for vote in votes) > 0
    return summary


def random_cut(
    replica: Replica, order: random.Random, least: Mapping[PublicKey, int] | None = None
) -> dict[PublicKey, int]:
    """How much of each author is inside, at least so much; of the creator its founding."""
    floor = {**dict.fromkeys(replica.log.chains, 0), **(least or {})}
    if replica.view.creator is not None:
        floor[replica.view.creator] = max(1, floor[replica.view.creator])
    return {author: order.randint(floor[author], len(chain)) for author, chain in replica.log.chains.items()}


def everything(replica: Replica) -> dict[PublicKey, int]:
    """The cut that holds all chains."""
    return {author: len(chain) for author, chain in replica.log.chains.items()}


def compacted_copy(replica: Replica, snapshot: Snapshot, pool: Pool, order: random.Random) -> Replica:
    """A replica that begins with a snapshot, and gets everything above it in any order, some of it twice."""
    copy = pool.replica()
    copy.handle(ev.Restored((), snapshot=snapshot.data), now())
    tail = [data for author in replica.log.chains for data in replica.log.read(author, copy.log.base(author), 10**6)]
    tail += [data for author in replica.log.chains for data in replica.log.read_loose(author)]
    tail += order.sample(tail, len(tail) // 4)
    order.shuffle(tail)
    held = -1
    while held != len(copy.log):
        # what was refused before its predecessor or its epoch was known comes again with the next comparison
        held = len(copy.log)
        for start in range(0, len(tail), 5):
            copy.handle(ev.Received(tuple(tail[start : start + 5])), now())
    return copy
