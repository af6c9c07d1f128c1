"""Author chains: order, parking, forks, frontiers."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Pool

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.oplog import frontier
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, JoinBody, Phase, VoteBody
from converge_p2p.core.oplog.frontier import FrontierEntry, FrontierIndex, FrontierSum
from converge_p2p.core.oplog.log import Missing, OperationLog
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId

POOL = Pool().id
TASK = TaskId(bytes(32))


def chain_of(author: Author, count: int) -> list[Operation]:
    return [author.sign(ClaimBody(TASK, reason=str(author.seq))) for _ in range(count)]


def vote(author: Author, number: int) -> Operation:
    return author.sign(VoteBody((Ballot(Phase.ACCEPT, TASK, number, bytes(32)),)))


def filled(operations: list[Operation]) -> OperationLog:
    log = OperationLog(POOL)
    for operation in operations:
        log.insert(operation)
    return log


@pytest.fixture
def author() -> Author:
    return Author(1, POOL)


@pytest.fixture
def log() -> OperationLog:
    return OperationLog(POOL)


def test_an_operation_after_a_gap_waits_and_says_what_is_missing(log: OperationLog, author: Author) -> None:
    first, second, third = chain_of(author, 3)
    parked = log.insert(third)
    assert parked.missing == Missing(author.key, 0, 2)
    assert not parked.accepted
    assert log.knows(third.id)
    assert not log.holds(third.id)
    assert log.insert(first).accepted == [first]
    assert log.insert(second).accepted == [second, third]
    assert log.length(author.key) == 3


@given(st.permutations(range(12)))
@settings(max_examples=40, deadline=None)
def test_whatever_the_order_of_arrival_a_chain_is_released_in_order(order: list[int]) -> None:
    log, operations, accepted = OperationLog(POOL), chain_of(Author(1, POOL), 12), []
    for index in order:
        accepted.extend(log.insert(operations[index]).accepted)
    assert accepted == operations
    assert not log.needed_from(operations[0].author) < 12


def test_the_same_operation_twice_does_nothing(log: OperationLog, author: Author) -> None:
    (first,) = chain_of(author, 1)
    log.insert(first)
    digest = log.digest()
    again = log.insert(first)
    assert not again.accepted
    assert not again.loose
    assert log.digest() == digest
    assert len(log) == 1


def test_an_author_may_wait_only_with_so_much_and_not_farther_ahead(
    log: OperationLog, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PARKED_PER_AUTHOR_MAX", 3)
    operations = chain_of(author, 6)
    for operation in operations[1:]:
        missing = log.insert(operation).missing
        assert missing is not None
        assert missing == Missing(author.key, 0, operation.seq), "what is too far ahead is asked for all the same"
    assert [log.knows(operation.id) for operation in operations] == [False, True, True, False, False, False]
    # the bound shuts nobody out for ever: what is in order never waits
    assert log.insert(operations[0]).accepted == operations[:3]
    for operation in operations[3:]:
        assert log.insert(operation).accepted == [operation]


def test_of_what_waits_the_nearest_stays(log: OperationLog, author: Author, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARKED_PER_AUTHOR_MAX", 6)
    operations = chain_of(author, 6)
    monkeypatch.setattr(limits, "PARKED_BYTES_PER_AUTHOR_MAX", 2 * limits.PARKED_OVERHEAD_BYTES + 1000)
    for index in (5, 3):
        log.insert(operations[index])
    liar = author.branch()
    with pytest.raises(RemoteViolation) as caught:
        log.insert(liar.sign(JoinBody(("another",)), seq=5, prev=operations[4].id))
    assert caught.value.reason == "parked_full"
    log.insert(operations[1])
    assert [log.knows(operation.id) for operation in operations] == [False, True, False, True, False, False]


def test_a_flood_turns_out_whoever_waits_longest_and_leaves_no_trace(
    log: OperationLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood = [chain_of(Author(number, POOL), 2)[1] for number in range(1, 30)]
    each = len(flood[0].signed) + limits.PARKED_OVERHEAD_BYTES
    monkeypatch.setattr(limits, "PARKED_BYTES_MAX", 2 * 5 * each)
    for operation in flood:
        log.insert(operation)
    assert sum(log.knows(operation.id) for operation in flood) == 5
    assert (len(log.chains), len(log.index)) == (0, 0), "who only waits has no place in the pool"
    late = chain_of(Author(99, POOL), 2)
    assert log.insert(late[1]).missing == Missing(late[0].author, 0, 1)
    assert log.insert(late[0]).accepted == late


def test_an_operation_waits_for_the_others_it_names(log: OperationLog, author: Author) -> None:
    other = Author(2, POOL)
    (named,) = chain_of(other, 1)
    first = author.sign(ClaimBody(TASK), deps=(named.id,))
    assert not log.insert(first).accepted
    assert not log.has_parked()
    log.insert(named)
    assert log.has_parked()
    assert log.unpark().accepted == [first]
    assert not log.has_parked()


def test_everybody_who_waits_can_be_woken(log: OperationLog) -> None:
    firsts = [chain_of(Author(number, POOL), 2)[1] for number in range(1, 5)]
    for operation in firsts:
        log.insert(operation)
    assert not log.has_parked()
    log.parking.wake_all()
    for _ in firsts:
        assert log.has_parked()
        assert not log.unpark().accepted
    assert not log.has_parked()
    assert len(log.index) == 0


def test_what_was_asked_for_is_not_turned_out_by_what_was_not(
    log: OperationLog, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = chain_of(author, 6)
    each = len(operations[0].signed) + limits.PARKED_OVERHEAD_BYTES
    monkeypatch.setattr(limits, "PARKED_BYTES_MAX", 2 * 5 * each)
    log.parking.expect(author.key, 1, 4)
    for operation in operations[1:]:
        log.insert(operation)
    for number in range(2, 40):
        log.insert(chain_of(Author(number, POOL), 2)[1])
    assert [log.knows(operation.id) for operation in operations] == [False, True, True, True, False, False]
    assert len(log.parking) <= 10
    log.parking.expect_no_more(author.key, 1, 4)
    assert log.insert(operations[0]).accepted == operations[:4]


def test_what_waits_is_charged_for_the_others_it_names(log: OperationLog, author: Author) -> None:
    deps = tuple(sorted(OperationId(bytes([number]) * 32) for number in range(8)))
    log.insert(author.sign(ClaimBody(TASK), deps=deps))
    assert log.parking.bytes_of(author.key) > limits.PARKED_OVERHEAD_BYTES + 8 * limits.PARKED_OVERHEAD_BYTES_PER_DEP


def test_a_pool_that_is_full_of_authors_takes_those_it_has(
    log: OperationLog, author: Author, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AUTHORS_PER_POOL_MAX", 2)
    other, late = Author(2, POOL), Author(3, POOL)
    (named,) = chain_of(other, 1)
    waiting = late.sign(ClaimBody(TASK), deps=(named.id,))
    log.insert(waiting)
    for operation in [*chain_of(author, 1), named]:
        log.insert(operation)
    assert not log.unpark().accepted, "the places were taken while it waited"
    with pytest.raises(RemoteViolation) as caught:
        log.insert(chain_of(Author(4, POOL), 1)[0])
    assert caught.value.reason == "authors_full"
    assert log.insert(other.sign(JoinBody())).accepted


def test_an_epoch_that_is_not_known_waits(log: OperationLog, author: Author) -> None:
    result = log.insert(author.sign(ClaimBody(TASK), epoch=1))
    assert not result.accepted
    assert result.missing is None


# ------------------------------------------------------------ forks


def test_two_operations_of_one_number_freeze_the_author_there(log: OperationLog, author: Author) -> None:
    common = chain_of(author, 2)
    liar = author.branch()
    one, other = chain_of(author, 3), liar.sign(JoinBody())
    for operation in common + one:
        log.insert(operation)
    result = log.insert(other)
    assert result.forked == author.key
    assert result.voided == one
    assert result.loose == [other]
    assert log.frozen_at(author.key) == 2
    assert all(log.holds(operation.id) for operation in [*one, other])


def forked_sets() -> list[list[Operation]]:
    """Liars of many kinds: the operations each signed."""
    sets = []
    for split, left, right in [(0, 1, 1), (0, 3, 1), (2, 1, 4), (2, 3, 3), (5, 1, 1)]:
        author = Author(7, POOL)
        common = [author.sign(JoinBody()) for _ in range(split)]
        liar = author.branch()
        one = [vote(author, number) for number in range(left)]
        other = [vote(liar, 100 + number) for number in range(right)]
        sets.append(common + one + other)
    author = Author(8, POOL)
    common = [author.sign(JoinBody()) for _ in range(2)]
    second = author.branch()
    a = vote(author, 1)
    third = author.branch()
    sets.append([*common, a, vote(author, 2), vote(second, 3), vote(third, 4), vote(third, 5)])
    author = Author(9, POOL)
    common = [author.sign(JoinBody()) for _ in range(3)]
    back = author.branch()
    back.hlc = 0
    backwards = vote(back, 1)
    sets.append([*common, backwards])
    sets.append([*common, vote(author, 2), backwards])
    return sets


@pytest.mark.parametrize("operations", forked_sets(), ids=lambda item: f"{len(item)} operations")
def test_in_any_order_a_fork_ends_in_the_same_log(operations: list[Operation]) -> None:
    orders = list(itertools.permutations(operations))
    logs = [filled(list(order)) for order in orders[:: max(1, len(orders) // 150)]]
    assert len({log.digest() for log in logs}) == 1
    assert len({log.frozen_at(operations[0].author) for log in logs}) == 1
    assert all(log.holds(operation.id) for log in logs for operation in operations)


def test_a_clock_that_runs_backwards_freezes_and_never_extends_the_chain(log: OperationLog, author: Author) -> None:
    log.insert(author.sign(JoinBody(), hlc=10))
    result = log.insert(author.sign(JoinBody(("x",)), hlc=10))
    assert not result.accepted
    assert log.frozen_at(author.key) == 1
    assert log.length(author.key) == 1


def test_after_a_freeze_everything_above_is_loose_on_every_branch(log: OperationLog, author: Author) -> None:
    first = author.sign(JoinBody())
    liar = author.branch()
    one, other = vote(author, 1), vote(liar, 2)
    for operation in (first, one, other):
        log.insert(operation)
    later = vote(author, 3)
    assert log.insert(later).loose == [later]
    assert log.length(author.key) == 1
    far = author.sign(JoinBody(), seq=50, prev=OperationId(bytes(32)))
    assert log.insert(far).loose == [far]


def test_a_branch_that_parts_below_is_asked_for_from_below(log: OperationLog, author: Author) -> None:
    common = chain_of(author, 2)
    liar = author.branch()
    for operation in common + [vote(author, number) for number in range(4)]:
        log.insert(operation)
    branch = [vote(liar, 100 + number) for number in range(5)]
    result = log.insert(branch[4])
    assert result.missing == Missing(author.key, 0, 6)
    assert log.needed_from(author.key) == 0
    # two of them are enough to prove the fork, wherever it is found first
    log.insert(branch[3])
    assert log.frozen_at(author.key) == 5
    log.insert(branch[0])
    assert log.frozen_at(author.key) == 2


def test_full_loose_sets_are_equal_and_votes_are_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FORK_LOOSE_PER_AUTHOR_MAX", 5)
    author = Author(7, POOL)
    liar = author.branch()
    one, other = chain_of(author, 12), [liar.sign(JoinBody((str(index),))) for index in range(12)]
    ahead, behind = filled([*one, other[0]]), filled([*other, one[0]])
    assert ahead.read_loose(author.key) != behind.read_loose(author.key)
    assert ahead.digest() == behind.digest()
    with pytest.raises(RemoteViolation) as caught:
        ahead.insert(other[5])
    assert caught.value.reason == "loose_full"
    extra = vote(author, 1)
    assert ahead.insert(extra).loose == [extra]
    assert ahead.digest() != behind.digest()
    behind.insert(extra)
    assert ahead.digest() == behind.digest()


def test_loose_operations_are_read_as_a_ring(author: Author) -> None:
    liar = author.branch()
    log = filled(chain_of(author, 6) + [liar.sign(JoinBody((str(index),))) for index in range(6)])
    whole = log.read_loose(author.key)
    assert len(whole) == 12
    ids = sorted(log.chains[author.key].loose)
    assert log.read_loose(author.key, ids[5]) == whole[5:] + whole[:5]
    assert log.read_loose(author.key, b"\xff" * 32) == whole


# ------------------------------------------------------------ frontiers

entries = st.builds(
    FrontierEntry,
    st.integers(0, 3).map(lambda number: PublicKey(bytes([number]) * 32)),
    st.integers(0, 3),
    st.none() | st.integers(0, 3).map(lambda number: OperationId(bytes([number]) * 32)),
    st.none() | st.integers(0, 1).map(lambda number: bytes([number]) * 32),
)


@pytest.mark.no_cover
@given(st.lists(entries, unique_by=lambda entry: entry.author), st.lists(entries, unique_by=lambda entry: entry.author))
@settings(max_examples=200, deadline=None)
def test_digests_are_equal_exactly_when_frontiers_are(one: list[FrontierEntry], other: list[FrontierEntry]) -> None:
    def digest(items: list[FrontierEntry]) -> bytes:
        total = FrontierSum()
        for item in items:
            total.replace(None, item.hash)
        return total.digest()

    assert (digest(one) == digest(other)) == (set(one) == set(other))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_running_digest_is_the_digest_of_the_frontier(steps: list[tuple[int, int]]) -> None:
    log = OperationLog(POOL)
    chains = [chain_of(Author(number + 1, POOL), 6) for number in range(4)]
    for number, index in steps:
        log.insert(chains[number][index])
    total = FrontierSum()
    for entry in log.frontier():
        total.replace(None, entry.hash)
    assert total.digest() == log.digest()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3)), max_size=120), st.data())
@settings(max_examples=60, deadline=None)
def test_sums_of_ranges_are_those_of_their_entries(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "_BUCKET_AUTHORS", 3)
        index, plain = FrontierIndex(), dict[PublicKey, bytes]()
        for number, value in steps:
            key = PublicKey(tagged_hash("author", bytes([number])))
            plain[key] = tagged_hash("entry", bytes([value]))
            index.put(key, plain[key])
            if value == 0:
                index.fingerprint(0, len(index))
        keys = sorted(plain)
        assert list(index.authors(0, len(index))) == keys
        bounds = st.binary(max_size=2) | st.sampled_from(keys or [PublicKey(bytes(32))])
        low, high = data.draw(bounds), data.draw(bounds)
        inside = [key for key in keys if key >= low and (not high or key < high)]
        start, stop = index.span(low, high)
        assert list(index.authors(start, stop)) == inside
        assert [index.author(rank) for rank in range(start, stop)] == inside
        total = sum(int.from_bytes(plain[key], "big") for key in inside) % 2**256
        whole = tagged_hash("frontier-range", total.to_bytes(32, "big"), len(inside).to_bytes(8, "big"))
        assert index.fingerprint(start, stop) == whole[:16]


def test_a_range_of_the_frontier_has_its_authors_and_no_others() -> None:
    people = sorted((Author(number, POOL) for number in range(1, 20)), key=lambda person: person.key)
    log = filled([person.sign(JoinBody()) for person in people])
    keys = [person.key for person in people]
    assert [entry.author for entry in log.frontier()] == keys
    assert [entry.author for entry in log.frontier(keys[3], keys[7])] == keys[3:7]
    assert [entry.author for entry in log.frontier(keys[15])] == keys[15:]
    assert log.index.span(keys[3], keys[7]) == (3, 7)
    assert log.index.span(b"", b"") == (0, 19)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)])
def test_an_author_that_goes_back_to_an_earlier_epoch_is_frozen_there(order: tuple[int, ...]) -> None:
    author, log = Author(1, POOL), OperationLog(POOL)
    log.know_epoch(2)
    operations = [
        author.sign(JoinBody(), epoch=1),
        author.sign(JoinBody(("gpu",)), epoch=2),
        author.sign(JoinBody(), epoch=1),
    ]
    for index in order:
        log.insert(operations[index])
    assert log.frozen_at(author.key) == 2
    assert log.length(author.key) == 2


@pytest.mark.parametrize("when", [0, 1, 2, 3, 4])
def test_a_cut_keeps_votes_and_drops_data_whenever_it_becomes_known(when: int) -> None:
    author = Author(1, POOL)
    operations = [*chain_of(author, 2), vote(author, 0), *chain_of(author, 1), vote(author, 1)]
    log, voided = OperationLog(POOL), list[Operation]()
    for index, operation in enumerate([*operations, None]):
        if index == when:
            voided += log.cut(author.key, 2)
        if operation is not None:
            with suppress(RemoteViolation):
                log.insert(operation)
    assert log.length(author.key) == 2
    assert set(log.read_loose(author.key)) == {operations[2].signed, operations[4].signed}
    assert not log.holds(operations[3].id)
    assert voided == ([operations[3]] if when == 4 else [])


def test_a_fork_that_waited_for_an_epoch_is_seen_when_the_epoch_is_known() -> None:
    author, log = Author(1, POOL), OperationLog(POOL)
    first = author.sign(JoinBody())
    liar = author.branch()
    later = liar.sign(JoinBody(("in the next epoch",)), epoch=1)
    for operation in (first, later, *chain_of(author, 3)):
        log.insert(operation)
    assert log.length(author.key) == 4
    log.know_epoch(1)
    while log.has_parked():
        log.unpark()
    assert log.frozen_at(author.key) == 1
    assert log.holds(later.id)


def test_what_waited_for_an_epoch_that_removed_its_author_is_dropped_without_an_error() -> None:
    author, log = Author(1, POOL), OperationLog(POOL)
    first = author.sign(JoinBody())
    beyond = author.sign(JoinBody(("beyond",)), epoch=1)
    log.insert(first)
    log.insert(beyond)
    log.cut(author.key, 0)
    log.know_epoch(1)
    while log.has_parked():
        log.unpark()
    assert not log.knows(beyond.id)
