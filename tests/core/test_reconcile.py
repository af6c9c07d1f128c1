"""Comparing frontiers by ranges: both sides find every difference, in few rounds and bytes, whatever the keys are."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Mesh, Pool, signed

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, JoinBody, Phase, VoteBody
from converge_p2p.core.oplog.frontier import FrontierEntry
from converge_p2p.core.oplog.log import Chain, OperationLog
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.reconcile import answer, opening
from converge_p2p.core.replica.wire import Comparison, Entries, Part, decode_message, encode_message
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId

POOL = PoolId(bytes(32))
TASK = TaskId(bytes(32))


def made_up(lengths: dict[PublicKey, int]) -> OperationLog:
    """A log with chains of these lengths, of operations that nobody could verify."""
    log = OperationLog(POOL)
    for author, length in lengths.items():
        if length:
            ids = [OperationId(tagged_hash("id", author, bytes([number]))) for number in range(length)]
            log.chains[author] = Chain(ids)
            log.index.put(author, FrontierEntry(author, length, ids[-1]).hash)
    return log


class Exchange:
    """What two logs say to each other, until they are silent."""

    def __init__(self, one: OperationLog, other: OperationLog) -> None:
        self.found: tuple[dict[PublicKey, int], dict[PublicKey, int]] = ({}, {})
        self.bytes = self.messages = self.rounds = 0
        self.more = False
        under_way = deque([(1, 1, encode_message(opening(one)))])
        while under_way:
            depth, receiver, payload = under_way.popleft()
            self.bytes, self.messages, self.rounds = self.bytes + len(payload), self.messages + 1, depth
            assert len(payload) <= limits.SYNC_FRAME_BYTES_MAX
            message, log = decode_message(payload), (one, other)[receiver]
            theirs: list[FrontierEntry] = []
            if isinstance(message, Comparison):
                result = answer(log, message)
                theirs = [entry for entry, _ in result.theirs]
                under_way.extend((depth + 1, 1 - receiver, encode_message(reply)) for reply in result.messages())
            elif isinstance(message, Entries):
                self.more |= message.more
                theirs = list(message.entries)
            for entry in theirs:
                if entry.length > log.length(entry.author):
                    self.found[receiver][entry.author] = entry.length


def key_of(number: int) -> PublicKey:
    return PublicKey(tagged_hash("author", number.to_bytes(4, "big")))


def crowded_key_of(number: int) -> PublicKey:
    """Keys that differ in their last bytes only."""
    return PublicKey(bytes(29) + (number * 3).to_bytes(3, "big"))


@pytest.mark.no_cover
@given(
    st.integers(0, 300),
    st.dictionaries(st.integers(0, 400), st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_side_finds_all_that_it_lacks(common: int, apart: dict[int, tuple[int, int]], crowded: bool) -> None:
    naming = crowded_key_of if crowded else key_of
    lengths = {naming(number): (2, 2) for number in range(common)}
    lengths.update({naming(number): both for number, both in apart.items()})
    logs = [made_up({author: both[side] for author, both in lengths.items()}) for side in (0, 1)]
    exchange = Exchange(logs[0], logs[1])
    assert exchange.found[0] == {author: right for author, (left, right) in lengths.items() if right > left}
    assert exchange.found[1] == {author: left for author, (left, right) in lengths.items() if left > right}
    assert exchange.rounds <= 6
    assert not exchange.more


@pytest.mark.parametrize("differences", [1, 5, 20])
def test_bytes_are_in_proportion_to_the_differences(differences: int) -> None:
    lengths = {key_of(number): 1 for number in range(5000)}
    longer = lengths | {key_of(number * 200): 2 for number in range(differences)}
    exchange = Exchange(made_up(lengths), made_up(longer))
    assert len(exchange.found[0]) == differences
    assert exchange.bytes < 1400 * differences
    assert exchange.rounds <= 5


def test_equal_frontiers_have_nothing_to_say() -> None:
    lengths = {key_of(number): 1 for number in range(500)}
    exchange = Exchange(made_up(lengths), made_up(lengths))
    assert exchange.messages == 1


def test_a_newcomer_to_a_large_pool_is_told_a_bounded_part_and_that_there_is_more() -> None:
    large = made_up({key_of(number): 1 for number in range(limits.FRONTIER_ENTRIES_PER_ANSWER_MAX + 500)})
    exchange = Exchange(made_up({}), large)
    assert len(exchange.found[0]) == limits.FRONTIER_ENTRIES_PER_ANSWER_MAX
    assert exchange.more
    assert exchange.messages <= 4


def test_when_very_much_differs_no_range_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RANGE_PARTS_PER_ANSWER_MAX", 40)
    monkeypatch.setattr(limits, "RANGE_PARTS_PER_MESSAGE_MAX", 20)
    one = made_up({key_of(number): 1 for number in range(1000)})
    other = made_up({key_of(number): 1 + number % 2 for number in range(1000)})
    exchange = Exchange(one, other)
    assert len(exchange.found[0]) == 500


@pytest.mark.no_cover
@given(st.lists(st.binary(min_size=1, max_size=32), max_size=40, unique=True), st.binary(min_size=16, max_size=16))
@settings(max_examples=40, deadline=None)
def test_whatever_ranges_a_liar_makes_up_the_answer_is_bounded(bounds: list[bytes], lie: bytes) -> None:
    log = made_up({key_of(number): 1 for number in range(600)})
    parts = (*(Part(bound, lie) for bound in sorted(bounds)), Part(b"", lie))
    replies = list(answer(log, Comparison(b"", parts)).messages())
    assert all(decode_message(encode_message(reply)) == reply for reply in replies)
    said = sum(len(reply.parts) for reply in replies if isinstance(reply, Comparison))
    assert said <= 2 * (limits.RANGE_PARTS_PER_ANSWER_MAX + len(parts))


def test_the_largest_comparison_of_lies_has_a_bounded_answer() -> None:
    log = made_up({key_of(number): 1 for number in range(20_000)})
    bounds = [(number * 64).to_bytes(2, "big") for number in range(1, limits.RANGE_PARTS_PER_MESSAGE_MAX)]
    lies = Comparison(b"", (*(Part(bound, bytes(16)) for bound in bounds), Part(b"", bytes(16))))
    payload = encode_message(lies)
    sizes = [len(encode_message(reply)) for reply in answer(log, lies).messages()]
    assert sum(sizes) < 6 * len(payload) + 100_000
    assert max(sizes) <= limits.SYNC_FRAME_BYTES_MAX


# ------------------------------------------------------------ replicas that compare by ranges


def mesh_of(pool: Pool, holdings: list[list[Operation]], *, seed: int, loss: float) -> Mesh:
    replicas = [pool.replica(200 + index, seed=index, digest_interval_ms=2000) for index in range(len(holdings))]
    mesh = Mesh(replicas, gossip=False, seed=seed, loss=loss)
    for index, operations in enumerate(holdings):
        mesh.do(index, ev.Restored(signed(operations)))
    return mesh


PLENTY = Pool()
CHAINS = []
for number_ in range(40):
    author_ = Author(10 + number_, PLENTY.id)
    CHAINS.append([author_.sign(JoinBody()), *(author_.sign(ClaimBody(TASK)) for _ in range(3))])


@pytest.mark.no_cover
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=40, max_size=40), min_size=2, max_size=3),
    st.sampled_from([0.0, 0.1, 0.2]),
    st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None)
def test_any_frontiers_become_equal_by_ranges_whatever_is_lost(held: list[list[int]], loss: float, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "FRONTIER_WHOLE_AUTHORS_MAX", 2)
        holdings = [
            [*PLENTY.base, *itertools.chain(*(chain[:have] for chain, have in zip(CHAINS, lengths, strict=True)))]
            for lengths in held
        ]
        mesh = mesh_of(PLENTY, holdings, seed=seed, loss=loss)
        mesh.connect()
        mesh.run(lambda: mesh.equal, at_most_ms=600_000)
        most = sum(max(lengths) for lengths in zip(*held, strict=True))
        assert len(mesh.replicas[0].log) == len(PLENTY.base) + most


def test_votes_of_a_forked_elector_reach_everybody_by_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRONTIER_WHOLE_AUTHORS_MAX", 2)
    pool = Pool()
    elector = pool.electors[1]
    liar = elector.branch()
    left = [elector.sign(VoteBody((Ballot(Phase.ACCEPT, TASK, number, bytes(32)),))) for number in range(5)]
    right = [liar.sign(VoteBody((Ballot(Phase.ACCEPT, TASK, number, bytes([1] * 32)),))) for number in range(9)]
    crowd = [Author(60 + number, pool.id).sign(JoinBody()) for number in range(20)]
    base = [*pool.base, *crowd]
    mesh = mesh_of(pool, [[*base, *left], [*base, *right], base, base], seed=4, loss=0.1)
    mesh.connect([(0, 2), (2, 3), (3, 1)])
    mesh.run(lambda: mesh.equal and all(r.log.frozen_at(elector.key) == 0 for r in mesh.replicas))
    votes = {operation.id for operation in (*left, *right)}
    assert all(replica.log.holds(vote) for replica in mesh.replicas for vote in votes)
    assert len({replica.view.state_bytes() for replica in mesh.replicas}) == 1
