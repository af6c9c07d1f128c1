"""Fetching chains in pieces from several peers: nothing twice, nobody waits for a liar, no flood gets in the way."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Mesh, Pool, feed, now, signed

from converge_p2p.core import limits
from converge_p2p.core.oplog.bodies import ClaimBody, JoinBody
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Missing
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev, session
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.wire import (
    Comparison,
    Digest,
    Entries,
    Operations,
    Part,
    SyncMessage,
    Want,
    decode_message,
    encode_message,
)
from converge_p2p.core.types import OperationId, PeerId, PublicKey, TaskId

TASK = TaskId(bytes(32))
SYNC_TIMER = ev.TimerFired(ev.TimerKey(ev.TimerKind.SYNC))
PIECE = limits.OPERATIONS_PER_PIECE_MIN

POOL = Pool()
WRITER = POOL.workers[0]
LONG = [WRITER.sign(ClaimBody(TASK, reason=str(number))) for number in range(2000)]
"""A chain that one newcomer lacks; the first operation of its author, a join, is in `POOL.base`."""


def claims(author: PublicKey, length: int) -> Entries:
    return Entries((FrontierEntry(author, length, OperationId(b"h" * 32)),))


class Newcomer:
    """One replica with the pool's base; the peers are played by hand."""

    def __init__(self, *peers: str) -> None:
        self.replica: Replica = POOL.replica()
        self.now_ms = 0
        feed(self.replica, POOL.base)
        for peer in peers:
            self.replica.handle(ev.PeerUp(PeerId(peer)), now())

    def on(self, event: ev.Event) -> list[tuple[str, Missing]]:
        """What is asked of whom, after an event."""
        effects = self.replica.handle(event, now(self.now_ms))
        messages = [(item.peer, decode_message(item.payload)) for item in effects if isinstance(item, ev.Send)]
        return [(peer, item) for peer, message in messages if isinstance(message, Want) for item in message.ranges]

    def say(self, peer: str, message: SyncMessage) -> list[tuple[str, Missing]]:
        return self.on(ev.SyncReceived(PeerId(peer), encode_message(message)))

    def brings(self, peer: str, start: int, stop: int) -> list[tuple[str, Missing]]:
        return self.say(peer, Operations(signed(LONG[start - 1 : stop - 1]), last=True))

    @property
    def length(self) -> int:
        return self.replica.log.length(WRITER.key)


def piece(start: int, stop: int) -> Missing:
    return Missing(WRITER.key, start, stop)


def test_each_peer_is_asked_for_another_piece() -> None:
    newcomer = Newcomer("a", "b", "c")
    assert newcomer.say("a", claims(WRITER.key, 700)) == [("a", piece(1, 1 + PIECE))]
    assert newcomer.say("b", claims(WRITER.key, 700)) == [("b", piece(1 + PIECE, 1 + 2 * PIECE))]
    assert newcomer.say("c", claims(WRITER.key, 700)) == [("c", piece(1 + 2 * PIECE, 700))]
    # what comes first waits for what stands before it
    assert newcomer.brings("c", 1 + 2 * PIECE, 700) == []
    assert newcomer.brings("b", 1 + PIECE, 1 + 2 * PIECE) == []
    assert newcomer.length == 1
    newcomer.brings("a", 1, 1 + PIECE)
    assert newcomer.length == 700


def test_pieces_stand_within_what_may_be_parked() -> None:
    newcomer = Newcomer("a", "b", "c", "d", "e", "f")
    asked = [item for peer in "abcdef" for item in newcomer.say(peer, claims(WRITER.key, 2000))]
    assert [item.start for _, item in asked] == [1, 257, 513, 769]
    assert asked[-1][1].stop <= 1 + limits.PARKED_PER_AUTHOR_MAX


def test_the_piece_of_a_peer_that_goes_away_is_asked_of_another_at_once() -> None:
    newcomer = Newcomer("a", "b")
    newcomer.say("a", claims(WRITER.key, 400))
    newcomer.say("b", claims(WRITER.key, 400))
    newcomer.brings("b", 257, 400)
    assert newcomer.on(ev.PeerDown(PeerId("a"))) == [("b", piece(1, 257))]


def test_the_piece_of_a_peer_that_stalls_is_asked_of_another_after_a_while() -> None:
    newcomer = Newcomer("a", "b")
    newcomer.say("a", claims(WRITER.key, 400))
    newcomer.say("b", claims(WRITER.key, 400))
    newcomer.brings("b", 257, 400)
    # sooner than otherwise: the other one kept its word, and could go on
    newcomer.now_ms = session.HURRY_STRANGER_MS - 1
    assert newcomer.on(SYNC_TIMER) == []
    newcomer.now_ms += 1
    assert newcomer.on(SYNC_TIMER) == [("b", piece(1, 257))]
    # what comes late is taken all the same
    newcomer.brings("a", 1, 257)
    assert newcomer.length == 400


def test_a_peer_that_stalls_is_given_up_even_if_no_other_is_known_to_help() -> None:
    newcomer = Newcomer("a", "b")
    newcomer.say("a", claims(WRITER.key, 200))
    newcomer.say("b", claims(WRITER.key, 200))
    newcomer.now_ms = session.STRANGER_PATIENCE_MS - 1
    assert newcomer.on(SYNC_TIMER) == []
    newcomer.now_ms += 1
    assert newcomer.on(SYNC_TIMER) == [("b", piece(1, 200))]
    # b stalls too; a was left alone for long enough by then
    newcomer.now_ms += session.STRANGER_PATIENCE_MS
    assert newcomer.on(SYNC_TIMER) == [("a", piece(1, 200))]


def test_a_slow_answer_that_goes_on_is_not_given_up() -> None:
    newcomer = Newcomer("a", "b")
    newcomer.say("a", claims(WRITER.key, 200))
    newcomer.say("b", claims(WRITER.key, 200))
    for number in range(10):
        newcomer.now_ms += session.STRANGER_PATIENCE_MS - 1
        assert newcomer.on(SYNC_TIMER) == []
        newcomer.say("a", Operations((LONG[number].signed,)))
    # news that were not asked for are no progress
    other = Author(77, POOL.id)
    for _ in range(4):
        newcomer.now_ms += session.STRANGER_PATIENCE_MS - 1
        asked = newcomer.on(SYNC_TIMER) or newcomer.say("a", Operations((other.sign(JoinBody()).signed,)))
        if asked:
            break
    assert asked == [("b", piece(11, 200))]


def test_who_stalled_does_not_get_the_end_of_a_chain_again_while_another_keeps_its_word() -> None:
    newcomer = Newcomer("liar", "honest")
    newcomer.say("liar", claims(WRITER.key, 2000))
    newcomer.say("honest", claims(WRITER.key, 2000))
    newcomer.now_ms = session.STRANGER_PATIENCE_MS
    newcomer.brings("honest", 257, 513)
    newcomer.now_ms += session.AVOID_MS
    asked = dict(newcomer.on(SYNC_TIMER))
    newcomer.say("liar", claims(WRITER.key, 2000))
    state = newcomer.replica.sessions.peers[PeerId("liar")]
    assert all(item.start > newcomer.length for item in state.asked)
    assert "honest" in asked or newcomer.replica.sessions.peers[PeerId("honest")].asked


def test_what_is_parked_already_is_not_asked_for() -> None:
    newcomer = Newcomer("a")
    newcomer.on(ev.Received(signed(LONG[9:20])))
    assert newcomer.say("a", claims(WRITER.key, 100)) == [("a", piece(1, 10))]
    assert newcomer.brings("a", 1, 10) == [("a", piece(21, 100))]


def test_what_an_author_signs_far_ahead_does_not_take_the_room_of_what_comes_before() -> None:
    newcomer = Newcomer("a", "b")
    newcomer.on(ev.Received(signed(LONG[1500:1999])))
    newcomer.on(ev.Received(signed(LONG[800:1100])))
    newcomer.say("a", claims(WRITER.key, 700))
    newcomer.say("b", claims(WRITER.key, 700))
    newcomer.brings("b", 257, 513)
    newcomer.brings("a", 1, 257)
    assert newcomer.length == 513


def test_an_honest_relay_of_far_ahead_operations_is_not_left_alone() -> None:
    newcomer = Newcomer("relay")
    for number in range(60, 160):
        stranger = Author(number, POOL.id)
        stranger.sign(JoinBody())
        newcomer.on(ev.Received(signed([stranger.sign(ClaimBody(TASK))]), PeerId("relay")))
        newcomer.say("relay", Operations((), last=True))
    state = newcomer.replica.sessions.peers[PeerId("relay")]
    assert (state.barren, len(state.hints) <= limits.SYNC_HINTS_PER_PEER_MAX) == (0, True)
    assert newcomer.say("relay", claims(WRITER.key, 5)) == [("relay", piece(1, 5))]


def flood_of_strangers(each: int) -> list[tuple[Operation, ...]]:
    """Operations of a hundred strangers who never show the first one."""
    flood = []
    for number in range(110, 210):
        stranger = Author(number, POOL.id)
        stranger.sign(JoinBody())
        flood.append([stranger.sign(ClaimBody(TASK, reason="x" * 1000)) for _ in range(each)])
    return list(zip(*flood, strict=True))


def test_no_flood_turns_out_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARKED_BYTES_MAX", 2 * 1024 * 1024)
    newcomer = Newcomer("a", "b", "c")
    for peer in "abc":
        newcomer.say(peer, claims(WRITER.key, 700))
    newcomer.brings("c", 513, 700)
    newcomer.brings("b", 257, 513)
    for batch in flood_of_strangers(each=8):
        newcomer.on(ev.Received(signed(batch), PeerId("a")))
    assert newcomer.replica.log.parking.count(WRITER.key) == 700 - 257
    newcomer.brings("a", 1, 257)
    assert newcomer.length == 700


def test_a_pool_full_of_authors_does_not_make_honest_peers_look_like_liars(monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer = Newcomer("a")
    monkeypatch.setattr(limits, "AUTHORS_PER_POOL_MAX", len(newcomer.replica.log.chains))
    assert newcomer.say("a", claims(Author(77, POOL.id).key, 5)) == []
    assert newcomer.say("a", claims(WRITER.key, 5)) == [("a", piece(1, 5))]


def test_no_list_of_what_a_peer_claims_grows_without_bound() -> None:
    newcomer = Newcomer("liar")
    for page in range(20):
        keys = [bytes([page]) + number.to_bytes(2, "big") + bytes(29) for number in range(1024)]
        entries = tuple(FrontierEntry(PublicKey(key), 2**50, OperationId(key), key) for key in keys)
        newcomer.say("liar", Entries(entries, more=True))
    state = newcomer.replica.sessions.peers[PeerId("liar")]
    assert len(state.targets) + len(state.apart) + len(state.loose) <= limits.SYNC_AUTHORS_PER_PEER_MAX
    assert len(state.asked) <= limits.WANTS_PER_MESSAGE_MAX


# ------------------------------------------------------------ meshes


def mesh_of(holdings: list[list[Operation]]) -> Mesh:
    replicas = [POOL.replica(100 + index, seed=index, digest_interval_ms=2000) for index in range(len(holdings))]
    mesh = Mesh(replicas, gossip=False)
    for index, operations in enumerate(holdings):
        mesh.do(index, ev.Restored(signed(operations)))
    return mesh


def test_a_long_chain_comes_from_all_peers_and_once() -> None:
    whole = [*POOL.base, *LONG]
    mesh = mesh_of([whole, whole, whole, POOL.base])
    mesh.connect([(0, 3), (1, 3), (2, 3)])
    mesh.run(lambda: mesh.equal)
    size = sum(len(operation.signed) for operation in LONG)
    assert min(mesh.sent_bytes[:3]) > 0.2 * size
    assert sum(mesh.sent_bytes[:3]) < 1.1 * size


@pytest.mark.no_cover
def test_a_newcomer_syncs_through_a_flood_of_a_hundred_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARKED_BYTES_MAX", 8 * 1024 * 1024)
    whole = [*POOL.base, *LONG]
    mesh = mesh_of([whole, whole, whole, POOL.base])
    mesh.connect([(0, 3), (1, 3), (2, 3)])
    for moment, batch in enumerate(flood_of_strangers(each=30)):
        mesh.at(2 * moment, 3, ev.Received(signed(batch), PeerId(str(moment % 3))))
    mesh.run(lambda: mesh.replicas[3].log.length(WRITER.key) == len(LONG) + 1)
    size = sum(len(operation.signed) for operation in LONG)
    assert sum(mesh.sent_bytes[:3]) < 1.2 * size
    assert len(mesh.replicas[3].log.chains) == len(mesh.replicas[0].log.chains)


# ------------------------------------------------------------ liars among the peers

LIES = ("silent", "empty", "stalls", "invents", "overstates", "junk", "far_ahead", "half")


class Liar:
    """A peer that holds everything and lies in one or more ways."""

    def __init__(self, replica: Replica, lies: frozenset[str], rng: random.Random) -> None:
        self.replica, self.lies, self.rng = replica, lies, rng

    def answers(self, payload: bytes) -> list[SyncMessage]:
        message, lies = decode_message(payload), self.lies
        if "silent" in lies and self.rng.random() < 0.7:
            return []
        if isinstance(message, Want):
            return self._to_want(message)
        if isinstance(message, Digest | Comparison):
            return list(self._frontiers())
        return []

    def _to_want(self, message: Want) -> list[SyncMessage]:
        if "stalls" in self.lies:
            return []
        found = [data for item in message.ranges for data in self.replica.log.read(item.author, item.start, item.stop)]
        if "half" in self.lies:
            found = found[len(found) // 2 :]
        if "empty" in self.lies:
            found = []
        if "junk" in self.lies:
            found = [bytes([self.rng.randrange(256)]) + data[1:] for data in found[:3]]
        if "far_ahead" in self.lies:
            found = list(signed(LONG[self.rng.randrange(1500) :][:200]))
        return [Operations(tuple(found[:300]), last=True)]

    def _frontiers(self) -> list[SyncMessage]:
        said: list[SyncMessage] = []
        entries = list(self.replica.log.frontier())
        if "overstates" in self.lies:
            entries = [FrontierEntry(entry.author, 10**9, OperationId(bytes(32))) for entry in entries]
        if "invents" in self.lies:
            invented = sorted(self.rng.randbytes(32) for _ in range(500))
            said.append(Entries(tuple(FrontierEntry(PublicKey(key), 7, OperationId(key), key) for key in invented)))
            said.append(Comparison(b"", (Part(b"\x80", self.rng.randbytes(16)), Part(b"", self.rng.randbytes(16)))))
        return [*said, Comparison(b"", (Part(b"", tuple(entries)),)), Digest(self.rng.randbytes(32))]


def sync_among(liars: list[frozenset[str]], seed: int, at_most_ms: int) -> tuple[Replica, int]:
    """Let a newcomer sync from one honest peer among liars; return it and how long it took."""
    rng, order = random.Random(seed), itertools.count()
    newcomer, honest = POOL.replica(90, digest_interval_ms=2000), POOL.replica(91, digest_interval_ms=2000)
    honest.handle(ev.Restored(signed([*POOL.base, *LONG])), now())
    newcomer.handle(ev.Restored(signed(POOL.base)), now())
    played = {f"liar {number}": Liar(honest, lies, rng) for number, lies in enumerate(liars)}
    heap: list[tuple[int, int, Callable[[int], None]]] = []

    def at(time_ms: int, what: Callable[[int], None]) -> None:
        heapq.heappush(heap, (time_ms, next(order), what))

    def give(replica: Replica, event: ev.Event, now_ms: int) -> None:
        for effect in replica.handle(event, now(now_ms)):
            match effect:
                case ev.Send(peer, payload) if peer in played:
                    for reply in played[peer].answers(payload):
                        back = ev.SyncReceived(peer, encode_message(reply))
                        at(now_ms + rng.randint(2, 40), lambda t, back=back: give(newcomer, back, t))
                case ev.Send(_, payload):
                    other, name = (honest, "newcomer") if replica is newcomer else (newcomer, "honest")
                    there = ev.SyncReceived(PeerId(name), payload)
                    at(now_ms + 20, lambda t, other=other, there=there: give(other, there, t))
                case ev.SetTimer(key, at_ms):
                    at(at_ms, lambda t, replica=replica, key=key: give(replica, ev.TimerFired(key), t))

    for peer in rng.sample([*played, "honest"], len(played) + 1):
        at(rng.randint(0, 30), lambda t, peer=peer: give(newcomer, ev.PeerUp(PeerId(peer)), t))
    at(rng.randint(0, 30), lambda t: give(honest, ev.PeerUp(PeerId("newcomer")), t))
    now_ms = 0
    while newcomer.log.digest() != honest.log.digest():
        now_ms, _, what = heapq.heappop(heap)
        assert now_ms <= at_most_ms, f"{len(newcomer.log)} of {len(honest.log)} after {now_ms} ms"
        what(now_ms)
    return newcomer, now_ms


@pytest.mark.no_cover
@given(st.lists(st.frozensets(st.sampled_from(LIES), min_size=1, max_size=3), max_size=5), st.integers(0, 2**16))
@settings(max_examples=8, deadline=None)
def test_liars_of_any_kind_cost_a_newcomer_little(liars: list[frozenset[str]], seed: int) -> None:
    newcomer, _ = sync_among(liars, seed, at_most_ms=20_000)
    assert len(newcomer.log.chains) == len({operation.author for operation in POOL.base})
    states = newcomer.sessions.peers.values()
    assert all(len(state.targets) <= limits.SYNC_AUTHORS_PER_PEER_MAX for state in states)


@pytest.mark.no_cover
@pytest.mark.parametrize("lie", LIES)
def test_ten_liars_of_one_kind_do_not_stop_a_newcomer(lie: str) -> None:
    _, alone = sync_among([], seed=1, at_most_ms=20_000)
    _, among = sync_among([frozenset({lie})] * 10, seed=1, at_most_ms=20_000)
    # stalls of strangers overlap: four pieces of a chain at a time are asked for
    assert among <= alone + 5 * session.STRANGER_PATIENCE_MS
