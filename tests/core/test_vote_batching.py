"""Ballots travel together when there are many, and alone at once when there is one."""

from __future__ import annotations

from pool_kit import Pool, ballots_in, claim, feed, now, published, settle_writes

from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.oplog.bodies import VoteBody
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.voting import VOTE_PAUSE_MS


def elector_of_many_tasks(count: int) -> tuple[Pool, Replica, list[bytes]]:
    """An elector that knows `count` tasks, and no claims yet."""
    pool = Pool(policy=PoolPolicy(hold_off_ms=0))
    replica = Replica(pool.electors[1].identity, pool.id)
    submits = [pool.submit(b"k%d" % number) for number in range(count)]
    feed(replica, [*pool.base, *(operation for _, operation in submits)])
    return pool, replica, [task for task, _ in submits]


def test_a_single_task_is_voted_on_at_once_again_and_again() -> None:
    pool, replica, tasks = elector_of_many_tasks(3)
    for number, task in enumerate(tasks):
        effects = feed(replica, [claim(pool.workers[0], task)], now_ms=number)  # type: ignore[arg-type]
        assert len(ballots_in(effects)) == 1


def test_after_a_vote_on_several_tasks_ballots_collect_for_a_moment_and_then_go_under_one_signature() -> None:
    pool, replica, tasks = elector_of_many_tasks(6)
    worker = pool.workers[0]
    first = feed(replica, [claim(worker, task) for task in tasks[:2]], now_ms=100)  # type: ignore[arg-type]
    assert len(ballots_in(first)) == 2
    collected = [effect for effect in first if isinstance(effect, ev.SetTimer)]
    for number, task in enumerate(tasks[2:]):
        effects = feed(replica, [claim(worker, task)], now_ms=101 + number)  # type: ignore[arg-type]
        assert ballots_in(effects) == []
        collected += [effect for effect in effects if isinstance(effect, ev.SetTimer)]
    timer = [effect for effect in collected if effect.key.kind is ev.TimerKind.VOTE]
    assert [effect.at_ms for effect in timer] == [100 + VOTE_PAUSE_MS], "one timer for all that wait"
    due = 100 + VOTE_PAUSE_MS
    effects = settle_writes(replica, replica.handle(ev.TimerFired(timer[0].key), now(due)), due)
    votes = [body for body in published(effects) if isinstance(body, VoteBody)]
    assert [len(vote.ballots) for vote in votes] == [4]
    # a timer that fires again finds nothing to do
    assert published(replica.handle(ev.TimerFired(timer[0].key), now(due + 1))) == []
