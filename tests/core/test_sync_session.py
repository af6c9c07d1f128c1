"""Anti-entropy: everybody ends with the same frontier, whatever was lost, whoever lies."""

from __future__ import annotations

import itertools
from operator import attrgetter, itemgetter

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Mesh, Pool, claim, feed, now, signed

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.oplog.bodies import ClaimBody, JoinBody
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Missing
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev, session
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.peer import PeerState
from converge_p2p.core.replica.wire import (
    Comparison,
    Digest,
    Entries,
    GenesisWanted,
    LooseWanted,
    Operations,
    Part,
    SyncMessage,
    Want,
    decode_message,
    encode_message,
)
from converge_p2p.core.types import OperationId, PeerId, PublicKey, TaskId

TASK = TaskId(bytes(32))
PEER = PeerId("peer")

# ------------------------------------------------------------ the wire

hashes = st.binary(min_size=32, max_size=32)
counts = st.integers(0, limits.SEQ_MAX - 1)
heads = st.tuples(st.integers(1, limits.SEQ_MAX - 1), hashes.map(OperationId), st.none() | hashes)
frontier_entries = st.lists(
    st.tuples(hashes.map(PublicKey), heads | st.tuples(st.just(0), st.none(), hashes)),
    max_size=4,
    unique_by=itemgetter(0),
).map(lambda items: tuple(FrontierEntry(author, *rest) for author, rest in sorted(items)))


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    entries = draw(frontier_entries)
    bounds = [b"", *sorted(draw(st.sets(st.binary(min_size=1, max_size=32), max_size=5)))]
    parts = []
    for low, bound in itertools.pairwise([*bounds, b""] if draw(st.booleans()) or len(bounds) == 1 else bounds):
        inside = tuple(entry for entry in entries if entry.author >= low and (not bound or entry.author < bound))
        parts.append(Part(bound, draw(st.sampled_from([None, bytes(range(16)), inside]))))
    return Comparison(b"", tuple(parts))


sync_messages: st.SearchStrategy[SyncMessage] = st.one_of(
    hashes.map(Digest),
    comparisons(),
    st.builds(
        Want,
        st.lists(counts.flatmap(lambda n: st.builds(Missing, hashes.map(PublicKey), st.just(n), st.just(n + 1))))
        .map(tuple)
        .filter(lambda items: len(items) < 20),
        st.lists(st.builds(LooseWanted, hashes.map(PublicKey), hashes), max_size=4).map(tuple),
    ),
    st.builds(Operations, st.lists(st.binary(max_size=20), max_size=4).map(tuple), st.booleans()),
    st.just(GenesisWanted()),
    st.builds(Entries, frontier_entries, st.booleans()),
)


@given(sync_messages)
@settings(max_examples=200, deadline=None)
def test_every_sync_message_survives_its_bytes(message: SyncMessage) -> None:
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize(
    "plain",
    [
        [], [9], 5, [0, b"short"], [1, b""], [1, b"", []], [1, b"", [[b"", bytes(15)]]], [1, b"", [[b"", 1]]],
        [1, b"", [[b"", None], [b"", None]]], [1, b"b", [[b"a", None]]], [1, b"b", [[b"b", None]]],
        [1, b"", [[bytes(33), None]]], [1, bytes(33), [[b"", None]]], [1, b"", [[b"a"]]],
        [1, b"", [[b"a", [[b"a" * 32, 1, bytes(32), None]]]]], [1, b"b", [[b"", [[b"a" * 32, 1, bytes(32), None]]]]],
        [1, b"", [[number.to_bytes(2, "big"), None] for number in range(1, limits.RANGE_PARTS_PER_MESSAGE_MAX + 2)]],
        [5, [[bytes(32), -1, None, None]], True], [5, [[bytes(32), 1, bytes(32), None]] * 2, True], [5, [], 1],
        [5, [[bytes(32), 0, bytes(32), None]], True], [5, [[bytes(32), 1, None, None]], True],
        [5, [[bytes(32), 0, None, None]], True],
        [5, [[number.to_bytes(32, "big"), 1, bytes(32), None]
             for number in range(limits.FRONTIER_ENTRIES_PER_MESSAGE_MAX + 1)], True],
        [2, [[bytes(32), 5, 5]], []], [2, [[bytes(32), 0, 1]] * (limits.WANTS_PER_MESSAGE_MAX + 1), []],
        [2, [], [bytes(32)]], [2, [], [[bytes(32), b"x"]]], [3, [1], True], [3, [], 0], [4, 1],
    ],
)  # fmt: skip
def test_another_shape_is_refused_and_told(plain: object) -> None:
    with pytest.raises(CodecError):
        decode_message(encode(plain))
    replica = Pool().replica()
    effects = replica.handle(ev.SyncReceived(PEER, encode(plain)), now())
    assert ev.Emit(ev.Rejected(PEER, "bad_sync_message")) in effects


# ------------------------------------------------------------ meshes


def mesh_of(pool: Pool, holdings: list[list[Operation]], **options: float) -> Mesh:
    """Observers that hold what is said; nobody votes."""
    replicas = [pool.replica(100 + index, seed=index, digest_interval_ms=2000) for index in range(len(holdings))]
    mesh = Mesh(replicas, gossip=False, **options)  # type: ignore[arg-type]
    for index, operations in enumerate(holdings):
        mesh.do(index, ev.Restored(signed(operations)))
    return mesh


def crowd(pool: Pool, authors: int, each: int) -> list[Operation]:
    """Operations of many authors beside the founders."""
    found = list(pool.base)
    for number in range(authors):
        author = Author(10 + number % 190, pool.id)
        if number >= 190:
            raise ValueError("at most 190 authors")
        found.append(author.sign(JoinBody()))
        found.extend(author.sign(ClaimBody(TASK, reason=str(index))) for index in range(each - 1))
    return found


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_newcomer_gets_thousands_of_operations_over_links_that_lose(loss: float) -> None:
    pool = Pool()
    operations = crowd(pool, 12, 250)
    mesh = mesh_of(pool, [operations, operations, operations, []], loss=loss, seed=3)
    mesh.connect([(0, 3), (1, 3), (2, 3)])
    mesh.run(lambda: mesh.equal, at_most_ms=60_000)
    assert len(mesh.replicas[3].log) == len(operations)
    assert mesh.replicas[3].view.state_bytes() == mesh.replicas[0].view.state_bytes()


def test_several_peers_are_not_asked_for_the_same() -> None:
    pool = Pool()
    operations = crowd(pool, 12, 250)
    mesh = mesh_of(pool, [operations, operations, operations, []])
    mesh.connect([(0, 3), (1, 3), (2, 3)])
    mesh.run(lambda: mesh.equal)
    once = sum(len(operation.signed) for operation in operations)
    assert sum(mesh.sent_bytes[:3]) < 1.3 * once


def test_an_interrupted_fetch_goes_on_where_it_ended() -> None:
    pool = Pool()
    author = pool.workers[0]
    operations = [*pool.base, *(author.sign(ClaimBody(TASK, reason="x" * 900)) for _ in range(3000))]
    mesh = mesh_of(pool, [operations, operations, []])
    mesh.connect([(0, 2)])
    mesh.run(lambda: len(mesh.replicas[2].log) > 1000)
    mesh.at(0, 2, ev.PeerDown(PeerId("0")))
    mesh.at(0, 0, ev.PeerDown(PeerId("2")))
    half = len(mesh.replicas[2].log)
    assert half < len(operations)
    mesh.at(1, 1, ev.PeerUp(PeerId("2")))
    mesh.at(1, 2, ev.PeerUp(PeerId("1")))
    mesh.run(lambda: mesh.equal)
    whole = sum(len(operation.signed) for operation in operations)
    assert mesh.sent_bytes[1] < whole * (1 - half / len(operations)) + 2 * limits.SYNC_FRAME_BYTES_MAX


def test_frontiers_of_many_authors_are_compared_whole() -> None:
    pool = Pool()
    everything = crowd(pool, 180, 2)
    assert len({operation.author for operation in everything}) > 2 * limits.FRONTIER_WHOLE_AUTHORS_MAX
    left = [op for op in everything if op.author[0] < 170 or op in pool.base]
    right = [op for op in everything if op.author[0] > 80 or op in pool.base]
    mesh = mesh_of(pool, [left, right, pool.base])
    mesh.connect()
    mesh.run(lambda: mesh.equal)
    assert len(mesh.replicas[0].log) == len(everything)


def test_a_frontier_too_long_for_one_answer_is_continued_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRONTIER_WHOLE_AUTHORS_MAX", 4)
    monkeypatch.setattr(limits, "FRONTIER_ENTRIES_PER_MESSAGE_MAX", 4)
    monkeypatch.setattr(limits, "FRONTIER_ENTRIES_PER_ANSWER_MAX", 8)
    monkeypatch.setattr(limits, "RANGE_PARTS_PER_ANSWER_MAX", 24)
    pool = Pool()
    everything = crowd(pool, 60, 1)
    one, other = (pool.base + [op for op in everything if op.author[0] % 2 == odd] for odd in (0, 1))
    mesh = mesh_of(pool, [one, other, pool.base], seed=1)
    mesh.connect([(0, 1), (1, 2)])
    mesh.run(lambda: mesh.equal)
    assert len(mesh.replicas[0].log) == len(everything)
    assert mesh.now_ms > 2 * session.RECONCILE_PAUSE_MS, "it took more than one turn"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_peers_of_any_lengths_become_equal(lengths: list[tuple[int, int, int]]) -> None:
    pool = Pool()
    chains = []
    for number, _ in enumerate(lengths):
        author = Author(10 + number, pool.id)
        chains.append([author.sign(JoinBody()), *(author.sign(ClaimBody(TASK)) for _ in range(6))])
    held = [
        [*pool.base, *(op for chain, have in zip(chains, lengths, strict=True) for op in chain[: have[index]])]
        for index in range(3)
    ]
    mesh = mesh_of(pool, held, seed=len(lengths), loss=0.1)
    mesh.connect([(0, 1), (1, 2)])
    mesh.run(lambda: mesh.equal)
    assert len(mesh.replicas[0].log) == len(pool.base) + sum(map(max, lengths))


# ------------------------------------------------------------ forks


@pytest.mark.parametrize(
    ("split", "left", "right"), [(1, 1, 1), (1, 8, 2), (1, 2, 8), (5, 3, 3), (1, 700, 3), (2, 3, 700)]
)
def test_branches_of_a_fork_become_one_set_everywhere(split: int, left: int, right: int) -> None:
    pool = Pool()
    author = pool.workers[0]
    common = [author.sign(ClaimBody(TASK)) for _ in range(split - 1)]
    liar = author.branch()
    one = [author.sign(ClaimBody(TASK, reason="one")) for _ in range(left)]
    other = [liar.sign(ClaimBody(TASK, reason="other")) for _ in range(right)]
    mesh = mesh_of(pool, [[*pool.base, *common, *one], [*pool.base, *common, *other], pool.base], seed=2)
    mesh.connect()
    mesh.run(lambda: mesh.equal and mesh.replicas[0].log.frozen_at(author.key) is not None)
    assert {replica.log.frozen_at(author.key) for replica in mesh.replicas} == {split}
    assert all(len(replica.log) == len(pool.base) + split - 1 + left + right for replica in mesh.replicas)
    assert len({replica.view.state_bytes() for replica in mesh.replicas}) == 1
    before = mesh.messages
    mesh.run_for(20_000)
    assert mesh.messages - before < 200, "equal replicas are quiet"


def test_a_loose_set_larger_than_an_answer_comes_over_whole() -> None:
    pool = Pool()
    author = pool.workers[0]
    liar = author.branch()
    long = [author.sign(ClaimBody(TASK, reason="x" * 1000)) for _ in range(2500)]
    assert sum(len(operation.signed) for operation in long) > 2 * limits.ANSWER_BATCHES_MAX * limits.BATCH_BYTES_MAX
    mesh = mesh_of(pool, [[*pool.base, *long], [*pool.base, liar.sign(JoinBody())]])
    mesh.connect()
    mesh.run(lambda: mesh.equal)
    assert all(len(replica.log) == len(pool.base) + 2501 for replica in mesh.replicas)


def test_a_fork_larger_than_the_bound_still_ends_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORK_LOOSE_PER_AUTHOR_MAX", 40)
    pool = Pool()
    author = pool.workers[0]
    liar = author.branch()
    long = [author.sign(ClaimBody(TASK)) for _ in range(100)]
    other = [liar.sign(JoinBody((str(index),))) for index in range(100)]
    mesh = mesh_of(pool, [[*pool.base, *long], [*pool.base, *other], pool.base])
    mesh.connect()
    mesh.run(lambda: mesh.equal)
    before = mesh.messages
    mesh.run_for(20_000)
    assert mesh.messages - before < 200


# ------------------------------------------------------------ liars


def sends(effects: list[ev.Effect]) -> list[tuple[str, SyncMessage]]:
    return [(effect.peer, decode_message(effect.payload)) for effect in effects if isinstance(effect, ev.Send)]


def entry(author: PublicKey, length: int) -> FrontierEntry:
    return FrontierEntry(author, length, OperationId(b"h" * 32))


class Alone:
    """One replica; the peers are played by hand."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.replica: Replica = self.pool.replica()
        self.now_ms = 0
        feed(self.replica, self.pool.base)
        for peer in ("liar", "helper"):
            self.replica.handle(ev.PeerUp(PeerId(peer)), now())

    def say(self, peer: str, message: SyncMessage) -> list[tuple[str, SyncMessage]]:
        effects = self.replica.handle(ev.SyncReceived(PeerId(peer), encode_message(message)), now(self.now_ms))
        return sends(effects)

    def claims_to_have(self, peer: str, *entries: FrontierEntry) -> list[tuple[str, SyncMessage]]:
        return self.say(peer, Entries(tuple(sorted(entries, key=attrgetter("author")))))


def wants(messages: list[tuple[str, SyncMessage]]) -> list[tuple[str, Want]]:
    return [(peer, message) for peer, message in messages if isinstance(message, Want)]


def test_a_peer_that_has_not_what_it_claims_is_left_for_one_that_has() -> None:
    alone = Alone()
    author = alone.pool.workers[0]
    more = [author.sign(ClaimBody(TASK)) for _ in range(3)]
    lie = entry(author.key, 10**9)
    assert wants(alone.claims_to_have("liar", lie)) == [("liar", Want((Missing(author.key, 1, 257),)))]
    # while the liar is asked, nobody else is asked for the same
    assert wants(alone.claims_to_have("helper", entry(author.key, 4))) == []
    assert wants(alone.say("liar", Operations((), True))) == [("helper", Want((Missing(author.key, 1, 4),)))]
    # and the liar cannot take the place again at once
    assert wants(alone.claims_to_have("liar", lie)) == []
    alone.say("helper", Operations(signed(more), True))
    assert alone.replica.log.length(author.key) == 4


def test_answers_that_bring_nothing_are_not_asked_for_without_end() -> None:
    alone = Alone()
    lie = entry(alone.pool.workers[0].key, 50)
    asked = 0
    for _ in range(1000):
        alone.now_ms += 1
        asked += len(wants(alone.claims_to_have("liar", lie)))
        asked += len(wants(alone.say("liar", Operations((alone.pool.genesis.signed,), True))))
    assert asked < 6


def test_a_peer_taken_for_one_that_has_just_a_fork_is_asked_again_after_a_while() -> None:
    alone = Alone()
    author = alone.pool.workers[0]
    fork = author.branch().sign(ClaimBody(TASK), epoch=10**6)
    branch = [author.sign(ClaimBody(TASK)) for _ in range(3)]
    # the fork waits for an epoch that never comes, at the end of the chain here
    alone.say("liar", Operations(signed([fork]), False))
    look = [("helper", Want((Missing(author.key, 1, 2),)))]
    has = entry(author.key, 4)
    assert wants(alone.claims_to_have("helper", has)) == look
    # a late answer, to another request: it brings nothing, and looks like one to this
    alone.say("helper", Operations((), True))
    alone.now_ms += session.LOOK_AGAIN_MS - 1
    assert wants(alone.claims_to_have("helper", has)) != look
    alone.say("helper", Operations((), True))
    alone.now_ms += 60_000
    assert wants(alone.claims_to_have("helper", has)) == look
    alone.say("helper", Operations(signed(branch), True))
    assert alone.replica.log.length(author.key) == 4


def test_looks_at_what_waits_take_bounded_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SYNC_AUTHORS_PER_PEER_MAX", 2)
    state = PeerState()
    keys = [PublicKey(bytes([number]) * 32) for number in range(3)]
    for length, key in enumerate(keys):
        state.look(key, length, 100)
    assert len(state.looked_at) == 2
    assert [state.has_just(key, length, 99) for length, key in enumerate(keys)] == [False, True, True]
    assert not state.has_just(keys[2], 2, 100)
    assert not state.has_just(keys[2], 3, 99)


def test_claims_about_invented_authors_take_bounded_room() -> None:
    alone = Alone()
    for page in range(200):
        invented = [PublicKey(page.to_bytes(2, "big") + bytes([n]) + bytes(29)) for n in range(64)]
        alone.claims_to_have("liar", *(entry(author, 5) for author in invented))
    state = alone.replica.sessions.peers[PeerId("liar")]
    assert len(state.targets) <= limits.SYNC_AUTHORS_PER_PEER_MAX
    assert len(alone.replica.sessions._fetch) <= limits.WANTS_PER_MESSAGE_MAX


def test_peers_that_were_never_up_take_bounded_room() -> None:
    alone = Alone()
    for number in range(10 * limits.PEERS_MAX):
        alone.say(f"stranger {number}", Digest(bytes(32)))
    assert len(alone.replica.sessions.peers) <= limits.PEERS_MAX


def test_an_answer_to_a_want_is_bounded_and_always_ends() -> None:
    alone = Alone()
    author = alone.pool.workers[0]
    feed(alone.replica, [author.sign(ClaimBody(TASK, reason="x" * 1000)) for _ in range(1500)])
    answer = [message for _, message in alone.say("helper", Want((Missing(author.key, 0, 1501),) * 60))]
    assert [message.last for message in answer if isinstance(message, Operations)] == [False, False, False, True]
    size = sum(len(data) for message in answer if isinstance(message, Operations) for data in message.operations)
    assert size <= limits.ANSWER_BATCHES_MAX * limits.BATCH_BYTES_MAX
    assert alone.say("helper", Want((Missing(author.key, 9000, 9001),))) == [("helper", Operations((), True))]


def test_a_gap_is_asked_of_whoever_sent_it() -> None:
    alone = Alone()
    author = alone.pool.workers[0]
    more = [author.sign(ClaimBody(TASK)) for _ in range(5)]
    effects = alone.replica.handle(ev.Received((more[4].signed,), PeerId("helper")), now())
    assert wants(sends(effects)) == [("helper", Want((Missing(author.key, 1, 5),)))]


def test_frontiers_are_sent_to_a_peer_at_most_so_often() -> None:
    alone = Alone()
    sent = 0
    for _ in range(1000):
        alone.now_ms += 1
        sent += len([m for _, m in alone.say("liar", Digest(bytes(32))) if isinstance(m, Comparison)])
    assert sent <= 1 + 1000 // session.RECONCILE_PAUSE_MS


def test_a_stranger_to_the_pool_learns_the_genesis_first() -> None:
    pool = Pool()
    mesh = mesh_of(pool, [pool.base, []], loss=0.3, seed=5)
    mesh.connect()
    mesh.run(lambda: mesh.replicas[1].ready and mesh.equal)
    assert mesh.replicas[1].view.spec == pool.spec


def test_operations_of_nobody_known_are_refused_until_the_genesis_is_here() -> None:
    pool = Pool()
    replica = pool.replica()
    task, submit = pool.submit()
    effects = feed(replica, [*pool.joins, submit, claim(pool.workers[0], task)])
    reasons = [e.notice.reason for e in effects if isinstance(e, ev.Emit) and isinstance(e.notice, ev.Rejected)]
    assert set(reasons) == {"no_genesis"}
    assert len(replica.log) == 0
