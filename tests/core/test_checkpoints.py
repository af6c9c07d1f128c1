"""Checkpoints: the state at a cut, its root, what a replica keeps after compaction, and what a newcomer needs."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from checkpoint_kit import compacted_copy, summary_at
from hypothesis import given, settings, strategies as st
from pool_kit import Mesh, Pool, claim, feed, notices, now, published, rejected, report, signed, value_of
from test_any_order import Script, deliveries
from test_epochs import Live as LiveEpochs

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import CodecError, Conflict
from converge_p2p.core.governance.trust import TrustSums
from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, task_id
from converge_p2p.core.oplog import operation as operation_module
from converge_p2p.core.oplog.bodies import Ballot, Phase, SubmitBody, Token, VoteBody
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.operation import Operation, operation_id
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.wire import Chunk, Offer, SnapshotWanted, decode_message, encode_message
from converge_p2p.core.types import PeerId, PoolId, PublicKey, TaskId
from converge_p2p.core.view.ended import Ended
from converge_p2p.core.view.past import SEVERAL, Attempts, Past
from converge_p2p.core.view.settled import RECORD_BYTES, SettledTable
from converge_p2p.core.view.snapshot import Manifest, Snapshot, chunk_hash
from converge_p2p.core.view.summary import Summary


@pytest.fixture(autouse=True)
def _verify_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_module, "verify", functools.lru_cache(None)(operation_module.verify))


EXAMPLES = int(os.environ.get("CONVERGE_EXAMPLES", "60"))


# ------------------------------------------------------------ the state at a cut


def whole(pool: Pool, operations: list[Operation], order: random.Random) -> Replica:
    replica = pool.replica()
    for batch in deliveries(operations, order):
        replica.handle(ev.Received(batch), now())
    return replica


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_checkpoint_and_the_tail_make_the_state_of_the_whole(seed: int) -> None:
    script, order = Script(seed), random.Random(seed)
    replica = whole(script.pool, script.write(30), order)
    if any(register.conflict for register in replica.view.registers.values()):
        return
    lengths = {author: order.randint(0, len(chain)) for author, chain in replica.log.chains.items()}
    lengths[script.pool.people[0].key] = max(1, lengths.get(script.pool.people[0].key, 0))
    if not replica.log.length(script.pool.people[0].key):
        return
    snapshot = summary_at(replica, lengths).snapshot()
    copy = compacted_copy(replica, snapshot, script.pool, order)
    assert copy.view.state_bytes() == replica.view.state_bytes()
    assert copy.view.trust.ledger.state() == replica.view.trust.ledger.state()
    assert copy.log.digest() == replica.log.digest()


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_root_depends_on_the_cut_and_not_on_the_checkpoints_before_it(seed: int) -> None:
    script, order = Script(seed), random.Random(seed)
    replica = whole(script.pool, script.write(30), order)
    creator = script.pool.people[0].key
    if not replica.log.length(creator) or any(register.conflict for register in replica.view.registers.values()):
        return
    middle = {author: order.randint(0, len(chain)) for author, chain in replica.log.chains.items()} | {creator: 1}
    end = {author: order.randint(middle[author], len(chain)) for author, chain in replica.log.chains.items()}
    at_once = summary_at(replica, end).snapshot()
    first = summary_at(replica, middle).snapshot()
    again = Snapshot.read(first.data, script.pool.id)
    assert again.root == first.root
    in_two = summary_at(replica, end, Summary.restore(again)).snapshot()
    assert in_two.data == at_once.data
    assert Summary.restore(at_once).snapshot().data == at_once.data


def settled_pool(tasks: int, electors: int = 3) -> tuple[Pool, list[Operation], list[TaskId]]:
    """A pool in which tasks were submitted, claimed, reported and settled by the rules."""
    pool = Pool(electors=electors, workers=2, policy=PoolPolicy(trusted_workers=True))
    made, names = list(pool.base), []
    for number in range(tasks):
        task, submitted = pool.submit(b"%d" % number)
        own = claim(pool.workers[number % 2], task)
        grants = pool.votes(Phase.GRANT, task, 0, own.id)
        value = value_of(pool.workers[number % 2], number)
        reported = report(pool.workers[number % 2], task, 0, value, grants)
        made += [submitted, own, *grants, reported, *pool.votes(Phase.ACCEPT, task, 0, value.hash)]
        names.append(task)
    return pool, made, names


def snapshot_of(pool: Pool, operations: list[Operation]) -> Snapshot:
    replica = pool.replica()
    feed(replica, operations)
    return summary_at(replica, {author: len(chain) for author, chain in replica.log.chains.items()}).snapshot()


def test_settled_tasks_leave_nothing_but_a_record_of_fixed_size() -> None:
    few, many = (snapshot_of(*settled_pool(count)[:2]) for count in (20, 60))
    assert (len(few.settled), len(many.settled)) == (20, 60)
    assert len(many.retained) == 3, "the founding, and two joins"
    assert len(many.data) - len(few.data) <= 40 * RECORD_BYTES + 64
    assert RECORD_BYTES <= 200


def test_an_open_task_keeps_every_operation_that_concerns_it() -> None:
    pool, made, _ = settled_pool(3)
    task, submitted = pool.submit(b"open")
    own = claim(pool.workers[0], task)
    grants = pool.votes(Phase.GRANT, task, 0, own.id)
    snapshot = snapshot_of(pool, [*made, submitted, own, *grants])
    assert set(map(operation_id, snapshot.retained)) == {
        *(item.id for item in made[:3]),
        submitted.id,
        own.id,
        *(vote.id for vote in grants),
    }


def test_a_settled_task_of_which_the_content_is_not_inside_stays_whole() -> None:
    pool, made, _ = settled_pool(1)
    reported = next(item for item in made if item.author == pool.workers[0].key and item.seq == 2)
    replica = pool.replica()
    feed(replica, made)
    lengths = {author: len(chain) for author, chain in replica.log.chains.items()} | {reported.author: reported.seq}
    snapshot = summary_at(replica, lengths).snapshot()
    assert len(snapshot.settled) == 0
    assert len(snapshot.retained) == 9


tokens = st.builds(Token, st.integers(0, 3), st.integers(0, 9))
hashes = st.binary(min_size=32, max_size=32)
keys = st.sampled_from([PublicKey(bytes([number]) * 32) for number in range(5)])
bits = st.integers(1, 31)


def rows(*parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sets(st.tuples(*parts), max_size=3).map(lambda items: tuple(sorted(items)))


pasts = st.builds(
    Past,
    hashes,
    hashes,
    st.booleans(),
    st.sampled_from(Outcome),
    keys,
    keys,
    st.sampled_from(((b"a",), (b"a", b"b"), ())),
    tokens,
    bits,
    st.builds(
        Attempts,
        rows(tokens, bits),
        rows(tokens, hashes, bits),
        rows(tokens, bits),
        rows(hashes, keys),
        rows(keys, tokens, st.booleans()),
        rows(tokens, keys, hashes | st.just(SEVERAL)),
        rows(tokens, hashes, keys, st.integers(0, 99)),
    ),
).flatmap(lambda past: st.sampled_from((past, past._replace(final=past.value, attempts=past.plain))))


@pytest.mark.no_cover
@given(st.dictionaries(hashes, pasts, max_size=12), st.integers(0, 12))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_table_of_settled_tasks_is_the_same_however_it_grew(tasks: dict[bytes, Past], split: int) -> None:
    values = {TaskId(task): past for task, past in tasks.items()}
    names = list(values)
    sums = TrustSums.of_plain([(PublicKey(bytes(32)), b"", 3, 10, 0)])
    table = SettledTable().extended(dict.fromkeys(names[:split], next(iter(values.values()), None)), sums)  # type: ignore[arg-type]
    table = table.extended({name: values[name] for name in names}, sums)
    assert table.plain() == SettledTable().extended(values, sums).plain()
    read = SettledTable.read(table.plain()) if values else table
    assert read.plain() == table.plain()
    assert {name: read.get(name) for name in names} == values
    assert dict(read.endings()) == {name: past.final for name, past in values.items()}
    assert TaskId(b"\x01" * 31) not in read


def test_a_snapshot_is_read_strictly() -> None:
    pool, made, _ = settled_pool(2)
    snapshot = snapshot_of(pool, made)
    with pytest.raises(CodecError):
        Snapshot.read(snapshot.data + b"\0", pool.id)
    with pytest.raises(CodecError):
        Snapshot.read(snapshot.data, PoolId(bytes(32)))
    keys, contexts, records, extras, sums = snapshot.settled.plain()
    for damaged in (records[RECORD_BYTES:] + records[:RECORD_BYTES], records[:-1], records[:-1] + b"\x02"):
        with pytest.raises(CodecError):
            SettledTable.read([keys, contexts, damaged, extras, sums])
    with pytest.raises(CodecError):
        SettledTable.read([keys, [*contexts, [b"x"]], records, extras, sums])
    with pytest.raises(CodecError):
        SettledTable.read([keys, contexts, records, extras, sums[::-1]])


# ------------------------------------------------------------ proposing, attesting, compacting


class Live:
    """A pool that works, with small checkpoints."""

    def __init__(self, *, electors: int = 3, every: int = 60, observers: int = 0, loss: float = 0.0, seed: int = 0):
        self.pool = Pool(electors=electors, workers=1, policy=PoolPolicy(hold_off_ms=0, trusted_workers=True))
        people = [person.identity for person in self.pool.people]
        replicas = [
            Replica(identity, self.pool.id, seed=index, digest_interval_ms=500, checkpoint_operations=every)
            for index, identity in enumerate(people)
        ]
        replicas += [self.pool.replica(200 + number, digest_interval_ms=500) for number in range(observers)]
        self.mesh = Mesh(replicas, seed=seed, loss=loss)
        self.worker = electors
        self.stores: list[dict[bytes, bytes]] = [{} for _ in replicas]
        self.snapshots: list[bytes | None] = [None for _ in replicas]
        self.kept: dict[TaskId, bytes] = {}
        self.mesh.on_notice = self.answer
        for index in range(len(replicas)):
            self.record(index)

    def record(self, node: int) -> None:
        """Keep what a replica writes, as a store does."""
        handle = self.mesh.replicas[node].handle

        def recorded(event: ev.Event, when: ev.Now) -> list[ev.Effect]:
            effects = handle(event, when)
            for effect in effects:
                match effect:
                    case ev.Persist(_, operations):
                        self.stores[node].update({operation_id(item): item for item in operations})
                    case ev.Compact(snapshot, drop, kept):
                        self.snapshots[node] = snapshot
                        self.kept.update(kept)
                        for name in drop:
                            self.stores[node].pop(name, None)
            return effects

        self.mesh.replicas[node].handle = recorded  # type: ignore[method-assign]

    def restart(self, node: int) -> None:
        old = self.mesh.replicas[node]
        new = Replica(old.identity, self.pool.id, seed=node + 50, digest_interval_ms=500, checkpoint_operations=60)
        self.mesh.replicas[node] = new
        self.record(node)
        self.mesh.do(node, ev.Restored(tuple(self.stores[node].values()), snapshot=self.snapshots[node]))
        for peer in old.peers:
            self.mesh.do(node, ev.PeerUp(peer))

    def answer(self, node: int, notice: object) -> ev.Command | None:
        match notice:
            case ev.TaskChanged(task, TaskState.PENDING) if node == self.worker:
                return ev.Claim(task)
            case ev.ClaimWon(task) if node == self.worker:
                return ev.Report(task, Outcome.COMPLETED, encode_value(task))
        return None

    def start(self, *, connect: int | None = None) -> None:
        count = len(self.mesh.replicas) if connect is None else connect
        self.mesh.connect((one, other) for one in range(count) for other in range(one))
        self.mesh.at(0, 0, ev.Found(self.pool.spec))
        self.mesh.run(lambda: all(replica.ready for replica in self.mesh.replicas[:count]))
        self.mesh.do(self.worker, ev.Join())
        self.mesh.run_for(2000)

    def submit(self, count: int, prefix: bytes = b"t") -> list[TaskId]:
        names = []
        for number in range(count):
            spec = TaskSpec(prefix + b"%d" % number, "work", encode_value(number))
            self.mesh.do(0, ev.Submit(spec))
            names.append(task_id(self.pool.id, self.pool.people[0].key, spec.key))
        return names

    def until_compacted(self, number: int, nodes: Iterator[int] | range) -> None:
        members = list(nodes)
        self.mesh.run(lambda: all((self.number(node) or 0) >= number for node in members))

    def number(self, node: int) -> int | None:
        return self.mesh.replicas[node]._compaction.checkpointer.number


def test_a_working_pool_compacts_and_goes_on() -> None:
    live = Live()
    live.start()
    first = live.submit(30)
    live.until_compacted(1, range(4))
    second = live.submit(30, b"u")
    live.until_compacted(2, range(4))
    live.mesh.run(lambda: live.mesh.equal)
    replicas = live.mesh.replicas
    assert len({replica.view.state_bytes() for replica in replicas}) == 1
    view = replicas[0].view
    assert all(task in view.compacted or view.registers[task].state.terminal for task in (*first, *second))
    assert len(view.compacted) >= 30
    # what the submitter wants of its own tasks is handed to its store
    task = first[0]
    assert Ended.from_bytes(live.kept[task]).value.result == encode_value(task)
    assert replicas[0].view.registers.get(task) is None
    with pytest.raises(Conflict):
        replicas[0].handle(ev.Cancel(task), now(live.mesh.now_ms))


def test_a_restart_after_compaction_gives_the_same_state_and_the_same_chain() -> None:
    live = Live()
    live.start()
    live.submit(30)
    live.until_compacted(1, range(4))
    opened = live.submit(3, b"open")
    for node in range(4):
        state, digest = live.mesh.replicas[node].view.state_bytes(), live.mesh.replicas[node].log.digest()
        in_flight = bool(live.mesh.replicas[node]._in_flight)
        live.restart(node)
        if not in_flight:
            assert live.mesh.replicas[node].log.digest() == digest
            assert live.mesh.replicas[node].view.state_bytes() == state
    live.mesh.run(lambda: all(live.mesh.replicas[0].view.registers[task].state.terminal for task in opened))
    live.submit(30, b"more")
    live.until_compacted(2, range(4))
    assert not any(replica.view.members.frozen() for replica in live.mesh.replicas), "nobody forked"


def test_a_replica_that_was_away_and_a_newcomer_begin_from_the_checkpoint() -> None:
    live = Live(observers=2, loss=0.2)
    live.start(connect=5)
    live.submit(20)
    live.mesh.run_for(300)
    # one observer is cut off in the middle, the other was never there
    for node in range(4):
        live.mesh.at(0, node, ev.PeerDown(PeerId("4")))
        live.mesh.at(0, 4, ev.PeerDown(PeerId(str(node))))
    live.mesh.gossip = False
    live.submit(40, b"u")
    live.until_compacted(1, range(4))
    live.mesh.connect([(4, 0), (4, 2), (5, 1), (5, 2)])
    live.mesh.run(lambda: live.mesh.equal)
    assert len({replica.view.state_bytes() for replica in live.mesh.replicas}) == 1
    forwarded = [node for node, notice in live.mesh.told if isinstance(notice, ev.Compacted) and notice.forwarded]
    assert 5 in forwarded
    # it offers the checkpoint to others itself now
    live.mesh.run(lambda: live.number(5) is not None)


def test_compacted_and_whole_replicas_sync_both_ways() -> None:
    live = Live(observers=1)
    live.start()
    # this one keeps everything
    live.mesh.replicas[4]._compaction.checkpointer._next_job = lambda now_ms: None  # type: ignore[method-assign]
    live.submit(40)
    live.until_compacted(1, range(4))
    live.submit(5, b"v")
    live.mesh.run_for(3000)
    live.mesh.run(lambda: live.mesh.equal)
    assert live.number(4) == 0
    assert len({replica.view.state_bytes() for replica in live.mesh.replicas}) == 1


def proposal(pool: Pool, operations: list[Operation], *, root: bytes | None = None) -> tuple[Operation, Snapshot]:
    """A checkpoint of everything, by the first elector."""
    snapshot = snapshot_of(pool, operations)
    delta = tuple(Cut(row.author, row.length, row.head) for row in snapshot.rows)
    return pool.electors[0].sign(CheckpointBody(1, pool.id, delta, (), root or snapshot.root)), snapshot


def run_timers(replica: Replica, start_ms: int = 0, turns: int = 40) -> list[ev.Effect]:
    """Let the checkpoint timer fire again and again."""
    effects: list[ev.Effect] = []
    waiting: list[ev.Effect] = []
    for turn in range(turns):
        waiting = replica.handle(ev.TimerFired(ev.TimerKey(ev.TimerKind.CHECKPOINT)), now(start_ms + turn * 300))
        effects += waiting
        for effect in waiting:
            if isinstance(effect, ev.Persist) and effect.durable:
                effects += replica.handle(ev.Persisted((effect.token,)), now(start_ms + turn * 300))
    return effects


def test_an_elector_attests_what_it_computed_itself_and_nothing_else() -> None:
    for lie in (False, True):
        pool, made, _ = settled_pool(4)
        replica = Replica(pool.electors[2].identity, pool.id, checkpoint_operations=0)
        feed(replica, made)
        proposed, snapshot = proposal(pool, made, root=b"\x07" * 32 if lie else None)
        feed(replica, [proposed])
        bodies = published(run_timers(replica))
        assert bodies == ([] if lie else [AttestBody(proposed.id, snapshot.root)])


def test_an_elector_attests_no_cut_that_it_does_not_hold() -> None:
    pool, made, _ = settled_pool(4)
    replica = Replica(pool.electors[2].identity, pool.id, checkpoint_operations=0)
    missing = next(item for item in reversed(made) if item.author == pool.workers[0].key)
    feed(replica, [item for item in made if item != missing])
    proposed, snapshot = proposal(pool, made)
    feed(replica, [proposed])
    assert published(run_timers(replica)) == []
    feed(replica, [missing])
    assert published(run_timers(replica)) == [AttestBody(proposed.id, snapshot.root)]


def certified(pool: Pool, made: list[Operation]) -> tuple[list[Operation], Snapshot]:
    proposed, snapshot = proposal(pool, made)
    return [
        proposed,
        *(pool.electors[index].sign(AttestBody(proposed.id, snapshot.root)) for index in (0, 1)),
    ], snapshot


def test_two_of_three_electors_certify_and_one_does_not() -> None:
    pool, made, tasks = settled_pool(4)
    ops, snapshot = certified(pool, made)
    replica = pool.replica()
    feed(replica, [*made, *ops[:2]])
    assert not any(isinstance(effect, ev.Compact) for effect in run_timers(replica))
    feed(replica, ops[2:])
    digest, state = replica.log.digest(), replica.view.state_bytes()
    (compact,) = [effect for effect in run_timers(replica) if isinstance(effect, ev.Compact)]
    assert compact.snapshot == snapshot.data
    assert set(compact.drop) == {item.id for item in made}
    assert (replica.log.digest(), replica.view.state_bytes()) == (digest, state)
    assert all(task in replica.view.compacted for task in tasks)
    # the founding, two joins and the ends of four chains stay
    assert len(replica.log) == len(ops) + 7


def test_what_comes_late_for_a_compacted_place_is_nobodys_fault_and_changes_nothing() -> None:
    pool, made, tasks = settled_pool(2)
    fork = pool.workers[0].branch()
    ops, _ = certified(pool, made)
    replica = pool.replica()
    feed(replica, [*made, *ops])
    run_timers(replica)
    state = replica.view.state_bytes()
    effects = feed(replica, [made[3]])
    assert rejected(effects) == ["compacted"]
    assert not any(notice.guilty for notice in notices(effects, ev.Rejected))
    # late votes for a task that is in the table
    late = pool.votes(Phase.ACCEPT, tasks[0], 1, b"\x05" * 32, who=(0, 1, 2))
    feed(replica, late)
    assert replica.view.state_bytes() == state
    # a second branch below the base proves nothing any more; above it, it freezes from there
    fork.seq, fork.prev = 2, made[2].id
    assert rejected(feed(replica, [fork.sign(SubmitBody(TaskSpec(b"x", "work", encode_value(1))))])) == ["compacted"]
    other = pool.workers[0].branch()
    feed(replica, [claim(pool.workers[0], tasks[1]), claim(other, tasks[0])])
    assert replica.view.members.frozen() == {pool.workers[0].key: replica.log.base(pool.workers[0].key)}


def test_own_votes_on_open_tasks_are_remembered_by_a_restart_from_a_snapshot() -> None:
    pool, made, _ = settled_pool(2)
    task, submitted = pool.submit(b"open")
    own = claim(pool.workers[0], task)
    grant = pool.electors[2].sign(VoteBody((Ballot(Phase.GRANT, task, 0, own.id),)))
    operations = [*made, submitted, own, grant]
    snapshot = snapshot_of(pool, operations)
    elector = Replica(pool.electors[2].identity, pool.id)
    elector.handle(ev.Restored((), snapshot=snapshot.data), now())
    assert elector._elector.promises[task].granted == {(0, 0): own.id}
    # and it goes on where its chain ended
    effects = elector.handle(ev.Submit(TaskSpec(b"next", "work", encode_value(1))), now())
    (stored,) = [item for effect in effects if isinstance(effect, ev.Persist) for item in effect.operations]
    following = operation_module.decode_operation(stored, pool.id)
    assert (following.seq, following.prev) == (grant.seq + 1, grant.id)


# ------------------------------------------------------------ fast-forward


def offer_of(ops: list[Operation], snapshot: Snapshot) -> Offer:
    return Offer(ops[0].signed, tuple(item.signed for item in ops[1:]), snapshot.manifest)


def test_a_newcomer_believes_a_certificate_and_no_liar() -> None:
    pool, made, tasks = settled_pool(4)
    ops, snapshot = certified(pool, made)
    newcomer = pool.replica()
    for name in ("liar", "honest"):
        newcomer.handle(ev.PeerUp(PeerId(name)), now())
    newcomer.handle(ev.Received((made[0].signed,), PeerId("honest")), now())
    # too few attest; the founding terms are known, so it shows before anything is fetched
    short = newcomer.handle(ev.SyncReceived(PeerId("liar"), encode_message(offer_of(ops[:2], snapshot))), now())
    assert [notice.reason for notice in notices(short, ev.Rejected)] == ["bad_offer"]
    for name in ("liar", "honest"):
        newcomer.handle(ev.SyncReceived(PeerId(name), encode_message(offer_of(ops, snapshot))), now())
    wrong = Chunk(snapshot.root, 0, snapshot.chunk(0)[:-1] + b"\0")
    effects = newcomer.handle(ev.SyncReceived(PeerId("liar"), encode_message(wrong)), now())
    assert [(notice.reason, notice.guilty) for notice in notices(effects, ev.Rejected)] == [("bad_chunk", True)]
    effects = newcomer.handle(
        ev.SyncReceived(PeerId("honest"), encode_message(Chunk(snapshot.root, 0, snapshot.chunk(0)))), now()
    )
    (compacted,) = notices(effects, ev.Compacted)
    assert (compacted.forwarded, compacted.tasks) == (True, 4)
    assert all(task in newcomer.view.compacted for task in tasks)
    feed(newcomer, ops)
    complete = pool.replica()
    feed(complete, [*made, *ops])
    assert newcomer.view.state_bytes() == complete.view.state_bytes()
    assert newcomer.log.digest() == complete.log.digest()


def test_a_newcomer_that_knows_no_terms_checks_the_certificate_after_the_snapshot() -> None:
    pool, made, _ = settled_pool(2)
    ops, snapshot = certified(pool, made)
    for forged in (True, False):
        newcomer = pool.replica()
        newcomer.handle(ev.PeerUp(PeerId("a")), now())
        certificate = [ops[0], *([pool.workers[0].sign(AttestBody(ops[0].id, snapshot.root))] if forged else ops[1:])]
        newcomer.handle(ev.SyncReceived(PeerId("a"), encode_message(offer_of(certificate, snapshot))), now())
        effects = newcomer.handle(
            ev.SyncReceived(PeerId("a"), encode_message(Chunk(snapshot.root, 0, snapshot.chunk(0)))), now()
        )
        assert bool(notices(effects, ev.Compacted)) is not forged
        assert newcomer.ready is not forged
        assert [notice.reason for notice in notices(effects, ev.Rejected)] == (["bad_offer"] if forged else [])


def test_a_founding_that_nobody_signed_makes_no_state() -> None:
    pool, made, _ = settled_pool(1)
    snapshot = snapshot_of(pool, made)
    founding = bytes(64) + made[0].signed[64:]
    unsigned = Snapshot.make(
        pool.id,
        snapshot.rows,
        settled=snapshot.settled,
        epochs=(),
        retained=tuple(founding if item == made[0].signed else item for item in snapshot.retained),
        last=snapshot.last,
    )
    assert Summary.restore(snapshot).check_signatures()
    assert not Summary.restore(unsigned).check_signatures()


def froze_a_worker_below_the_cut() -> tuple[Pool, list[Operation], list[Operation], Snapshot, Replica]:
    """A replica saw another branch of a worker at number 1 first, and froze it there, below a certified cut."""
    pool, made, _ = settled_pool(2)
    other = pool.workers[0].branch()
    ops, snapshot = certified(pool, made)
    other.seq, other.prev, other.hlc = 1, made[1].id, 1
    rival = other.sign(SubmitBody(TaskSpec(b"x", "work", encode_value(1))))
    apart = pool.replica()
    apart.handle(ev.PeerUp(PeerId("a")), now())
    feed(apart, [*made, rival, *ops])
    return pool, made, ops, snapshot, apart


def test_who_forked_before_the_checkpoint_was_heard_of_is_put_right() -> None:
    pool, made, ops, snapshot, apart = froze_a_worker_below_the_cut()
    assert apart.view.members.frozen() == {pool.workers[0].key: 1}
    assert not any(isinstance(effect, ev.Compact) for effect in run_timers(apart))
    apart.handle(ev.SyncReceived(PeerId("a"), encode_message(offer_of(ops, snapshot))), now())
    apart.handle(ev.SyncReceived(PeerId("a"), encode_message(Chunk(snapshot.root, 0, snapshot.chunk(0)))), now())
    plain = pool.replica()
    feed(plain, [*made, *ops])
    run_timers(plain)
    assert apart.view.state_bytes() == plain.view.state_bytes()
    assert apart.log.digest() == plain.log.digest()


def test_who_froze_an_author_below_a_certified_cut_asks_for_the_snapshot_and_takes_a_later_one() -> None:
    pool, made, ops, snapshot, apart = froze_a_worker_below_the_cut()
    wanted = [decode_message(item.payload) for item in run_timers(apart) if isinstance(item, ev.Send)]
    assert SnapshotWanted(snapshot.root) in wanted
    # whoever is asked may have put a later one in force, whose delta says nothing of the frozen author
    later = summary_at(
        whole(pool, [*made, *ops], random.Random(1)), {pool.electors[0].key: 10**6}, Summary.restore(snapshot)
    )
    following = later.snapshot()
    grown = [row for row in following.rows if row not in snapshot.rows]
    delta = tuple(Cut(row.author, row.length, row.head) for row in grown)
    second = pool.electors[0].sign(CheckpointBody(2, snapshot.root, delta, (), following.root))
    attests = [pool.electors[index].sign(AttestBody(second.id, following.root)) for index in (0, 1)]
    offer = offer_of([second, *attests], following)
    apart.handle(ev.SyncReceived(PeerId("a"), encode_message(offer)), now())
    apart.handle(ev.SyncReceived(PeerId("a"), encode_message(Chunk(following.root, 0, following.chunk(0)))), now())
    assert apart.checkpointer.root == following.root
    assert apart.view.members.frozen() == {}


def test_a_newcomer_follows_the_chain_of_epochs_inside_a_snapshot_and_finds_who_was_removed() -> None:
    live = LiveEpochs(4, 2)
    first = live.submit(b"before")
    live.settle(first)
    live.move(terms=live.electors_of(0, 1, 2), expel=(3,))
    live.reach(1)
    # the expulsion of an elector needs its seat first, so it is gone and removed at once; then a worker goes too
    live.move(expel=(5,))
    live.reach(2)
    open_task = live.submit(b"open", by=1)
    live.works = set()
    live.mesh.run(lambda: all(open_task in replica.view.registers for replica in live.mesh.replicas))
    live.mesh.run(lambda: live.mesh.equal)
    whole_one = live.mesh.replicas[0]
    summary = summary_at(whole_one, {author: len(chain) for author, chain in whole_one.log.chains.items()})
    assert summary.sound
    snapshot = summary.snapshot()
    again = Summary.restore(Snapshot.read(snapshot.data, live.pool.id))
    assert again.check_signatures()
    assert again.view.epochs.number == 2
    assert again.view.epochs.current.hash == whole_one.view.epochs.current.hash
    copy = live.pool.replica()
    copy.handle(ev.Restored((), snapshot=snapshot.data), now())
    tail = [data for author in whole_one.log.chains for data in whole_one.log.read_loose(author)]
    copy.handle(ev.Received(tuple(tail)), now())
    assert copy.view.state_bytes() == whole_one.view.state_bytes()
    assert copy.log.digest() == whole_one.log.digest()
    assert copy.view.members.expelled() == whole_one.view.members.expelled() != {}


def test_a_pool_that_removed_an_elector_goes_on_making_checkpoints() -> None:
    live = LiveEpochs(4, 1)
    for replica in live.mesh.replicas:
        replica._compaction.checkpointer._every = 40
    live.move(terms=live.electors_of(0, 1, 2), expel=(3,))
    live.reach(1)
    tasks = [live.submit(b"%d" % number) for number in range(8)]
    members = [live.mesh.replicas[node] for node in (0, 1, 2, 4)]
    live.mesh.run(lambda: all(replica._compaction.checkpointer.number for replica in members))
    assert all(replica.view.epochs.number == 1 for replica in members)
    live.mesh.run(lambda: all(replica.view.compacted for replica in members))
    live.mesh.run(lambda: live.mesh.equal)
    assert len({replica.view.state_bytes() for replica in live.mesh.replicas}) == 1
    # whoever knows nothing gets the epoch from the checkpoint, though what it is made of stands beyond its author's end
    newcomer = live.pool.replica(digest_interval_ms=500)
    live.mesh.replicas.append(newcomer)
    live.mesh.sent_bytes.append(0)
    live.mesh.connect([(5, 0), (5, 1)])
    live.mesh.run(lambda: live.mesh.equal)
    assert newcomer.epoch == 1
    assert newcomer.view.state_bytes() == members[0].view.state_bytes()
    assert all(task in newcomer.view.compacted or task in newcomer.view.registers for task in tasks)


# ------------------------------------------------------------ the wire


def test_sync_messages_about_snapshots_are_read_as_they_were_written() -> None:
    pool, made, _ = settled_pool(1)
    ops, snapshot = certified(pool, made)
    for message in (offer_of(ops, snapshot), Chunk(snapshot.root, 0, b"x")):
        assert decode_message(encode_message(message)) == message
    with pytest.raises(CodecError):
        decode_message(encode_message(Chunk(snapshot.root, limits.SNAPSHOT_CHUNKS_MAX, b"x")))
    with pytest.raises(CodecError):
        decode_message(encode_message(Chunk(snapshot.root, 0, bytes(limits.SNAPSHOT_CHUNK_BYTES + 1))))
    manifest = Manifest(limits.SNAPSHOT_CHUNK_BYTES + 1, (chunk_hash(b"x"),))
    with pytest.raises(CodecError):
        decode_message(encode_message(Offer(ops[0].signed, (), manifest)))
    assert signed([ops[0]])
