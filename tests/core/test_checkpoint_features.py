"""Whatever members do, a checkpoint and the tail make the state of the whole, and the way to a cut does not show."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable

import pytest
from checkpoint_kit import compacted_copy, everything, random_cut, summary_at
from hypothesis import given, settings, strategies as st
from pool_kit import Pool, claim, feed, release, report, value_of
from private_live_kit import PrivateLive
from test_coordination_any_order import Script as CoordinationScript, replayed as coordinated
from test_epochs import Live
from test_motions import Story as MotionStory
from test_succession import Script as SuccessionScript, replayed as succeeded
from test_trust import Story as TrustStory
from test_vetoes import Vetoed

from converge_p2p.core.oplog import operation as operation_module
from converge_p2p.core.oplog.bodies import Ballot, Phase, VoteBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.succession import RecoverBody
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.snapshot import Snapshot
from converge_p2p.core.view.summary import Summary

EXAMPLES = int(os.environ.get("CONVERGE_EXAMPLES", "250")) // 5


@pytest.fixture(autouse=True)
def _verify_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_module, "verify", functools.lru_cache(None)(operation_module.verify))


def coordination(seed: int) -> tuple[Pool, Replica]:
    script = CoordinationScript(seed)
    return script.pool, coordinated(script.pool, script.write(40), random.Random(seed))


def settled_coordination(seed: int) -> tuple[Pool, Replica]:
    """The tasks that are auctioned, cancelled and delegated are settled meanwhile."""
    script, pick = CoordinationScript(seed, forks=seed % 2 == 0), random.Random(seed)
    script.write(20)
    for task in script.tasks:
        script.made += settle(script.pool, task, pick)
    return script.pool, coordinated(script.pool, script.write(20), random.Random(seed))


def settle(pool: Pool, task: bytes, pick: random.Random) -> list[Operation]:
    """A round of a task as it should be, now and then after one that failed, and votes that come too late."""
    name, made, number = TaskId(task), list[Operation](), 0
    worker = pick.choice(pool.workers)
    value = value_of(worker, pick.randrange(2))
    while True:
        own = claim(worker, name)
        expired = number - 1 if number and pick.random() < 0.5 else None
        ballot = Ballot(Phase.GRANT, name, number, own.id, None, expired)
        grants = [elector.sign(VoteBody((ballot,))) for elector in pool.electors]
        made += [own, *grants]
        if number == 2 or pick.random() < 0.6:
            break
        made.append(release(worker, name, number, failed=pick.random() < 0.7))
        number += 1
    made.append(report(worker, name, number, value, grants[:2]))
    made += [elector.sign(VoteBody((Ballot(Phase.ACCEPT, name, number, value.hash),))) for elector in pool.electors]
    return made


def successions(seed: int) -> tuple[Pool, Replica]:
    script = SuccessionScript(seed)
    script.write(24)
    return script.pool, succeeded(script, random.Random(seed))


def trust(seed: int) -> tuple[Pool, Replica]:
    story = TrustStory()
    story.write(seed)
    return story.pool, story.replica(seed)


def motions(seed: int) -> tuple[Pool, Replica]:
    story = MotionStory(seed)
    replica, operations = story.pool.replica(), story.write(30)
    for operation in operations:
        feed(replica, [operation])
    return story.pool, replica


SOURCES: list[Callable[[int], tuple[Pool, Replica]]] = [
    coordination, settled_coordination, successions, trust, motions,
]  # fmt: skip


def shown(replica: Replica) -> tuple[object, ...]:
    """Everything that is decided, and what can be read beside it."""
    view = replica.view
    coordination = view.coordination
    return (
        view.state_bytes(),
        replica.log.digest(),
        coordination.auctions.views(),
        [coordination.polls.view(poll) for poll in coordination.polls.ids],
        [coordination.negotiations.view(session) for session in coordination.negotiations.ids],
        list(coordination.delegations.all()),
        {member: view.members.capabilities(member) for member in view.members.all()},
        view.keys.to_plain()[0],
        {member: view.keys.exchange_key(member) for member in view.members.all()},
        view.motions.views(view.epochs.number),
        {subject: register.settled for subject, register in view.changes.items()},
    )


def check_cuts(pool: Pool, replica: Replica, seed: int, *, late: bool = False) -> None:
    """Compare a whole replica with one that begins at a random cut, and two ways to a cut."""
    order = random.Random(seed)
    if any(register.conflict for register in replica.view.registers.values()):
        return
    least = {author: len(chain) * 3 // 4 for author, chain in replica.log.chains.items()}
    end = random_cut(replica, order, least if late else None)
    at_once = summary_at(replica, end)
    assert at_once.sound
    snapshot = at_once.snapshot()
    copy = compacted_copy(replica, Snapshot.read(snapshot.data, pool.id), pool, order)
    assert shown(copy) == shown(replica)
    chains = [item.body for author in replica.log.chains for item in replica.log.decoded(author)]
    if not any(isinstance(body, RecoverBody) for body in chains):
        # a recovery takes back what a key did, but no points of tasks that were settled below a checkpoint
        assert copy.view.trust.ledger.state() == replica.view.trust.ledger.state()
    middle = random_cut(replica, order)
    middle = {author: min(middle[author], row.length) for author, row in at_once.rows.items()}
    first = summary_at(replica, middle).snapshot()
    in_two = summary_at(replica, end, Summary.restore(Snapshot.read(first.data, pool.id)))
    if in_two.votes == at_once.votes:
        # which votes beside the chains are inside is part of the cut
        assert in_two.snapshot().data == snapshot.data
    assert Summary.restore(snapshot).snapshot().data == snapshot.data


@pytest.mark.no_cover
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_histories_of_every_feature(source: Callable[[int], tuple[Pool, Replica]], seed: int) -> None:
    pool, replica = source(seed)
    if replica.log.length(pool.people[0].key):
        check_cuts(pool, replica, seed)


def vetoed(word: bool | None) -> Live:
    live = Vetoed(word=word, seed=1)
    live.settle(live.submit(b"x"))
    live.word = None
    live.submit(b"y")
    live.mesh.run_for(3000)
    return live


def faulty() -> Live:
    """Epochs of a pool that bears a lying elector; one is removed, and a worker is."""
    live = Live(4, 2, faults=1)
    live.settle(live.submit(b"before"))
    live.move(expel=(5,))
    live.reach(1)
    live.settle(live.submit(b"after"))
    live.works = set()
    live.submit(b"open")
    live.mesh.run_for(2000)
    return live


def private() -> Live:
    live = PrivateLive(3, 3)
    live.mesh.run(lambda: live.all_hold(0, set(range(6))))
    live.settle(live.submit(b"x"))
    live.move(expel=(5,))
    live.reach(1)
    live.mesh.run_for(5000)
    live.settle(live.submit(b"y"))
    return live


LIVE: dict[str, Callable[[], Live]] = {
    "a result that was denied": lambda: vetoed(True),
    "a result that passed": lambda: vetoed(False),
    "epochs and faults": faulty,
    "a private pool": private,
}


@pytest.mark.parametrize("name", LIVE)
def test_live_pools_at_many_cuts(name: str) -> None:
    live = LIVE[name]()
    live.mesh.run(lambda: live.mesh.equal)
    for seed in range(16):
        check_cuts(live.pool, live.mesh.replicas[0], seed, late=seed >= 6)
    snapshot = summary_at(live.mesh.replicas[0], everything(live.mesh.replicas[0])).snapshot()
    assert len(snapshot.settled) >= 1
