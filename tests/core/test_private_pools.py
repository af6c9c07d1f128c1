"""The keys of a private pool: who may offer them, who can open them, and what a liar leaves behind."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import feed, rejected
from secrecy_kit import PrivatePool, secret

from converge_p2p.core import limits
from converge_p2p.core.codec import encode
from converge_p2p.core.errors import CodecError, LocalError
from converge_p2p.core.model.secrecy import ContentKey, exchange_key_of, exchange_public
from converge_p2p.core.oplog.bodies import Kind, LeaveBody, decode_body, encode_body
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, PrekeyBody, offer_bodies
from converge_p2p.core.oplog.operation import decode_operation, sign_operation
from converge_p2p.core.replica.rotation import STRANGER_TURNS, Why, additions_due, offer_delay_ms, rotation_due
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.keys import writing_key

E0, E1, W0, W1 = range(4)


@pytest.fixture
def pool() -> PrivatePool:
    return PrivatePool()


# ---------------------------------------------------------------- bodies


def plain(pool: PrivatePool) -> list[Any]:
    return encode_body(pool.body(pool.people[E0], pool.key(1), pool.people))


def refused(body: list[Any], kind: Kind = Kind.CONTENT_KEY) -> str:
    with pytest.raises(CodecError) as caught:
        decode_body(kind, body)
    return str(caught.value)


def test_an_offer_of_another_shape_is_refused(pool: PrivatePool) -> None:
    good = plain(pool)
    assert isinstance(decode_body(Kind.CONTENT_KEY, good), ContentKeyBody)
    for index, value in [
        (0, -1), (0, True), (0, None), (1, -1), (1, limits.CONTENT_GENERATION_MAX + 1), (1, False), (2, bytes(31)),
        (2, "x" * 32), (3, []), (3, {}), (3, good[3] * 2), (3, good[3][::-1]), (3, [good[3][0], good[3][0]]),
        (3, [[*good[3][0], 0]]), (3, [good[3][0][:1]]), (3, [[bytes(31), bytes(80)]]), (3, [[bytes(32), bytes(79)]]),
        (3, [[bytes(32), bytes(81)]]), (3, [[bytes(32), "x" * 80]]), (3, [bytes(112)]),
        (3, [[number.to_bytes(32, "big"), bytes(80)] for number in range(limits.CONTENT_KEY_ENTRIES_MAX + 1)]),
    ]:  # fmt: skip
        refused([*good[:index], value, *good[index + 1 :]])
    refused(good[:3])
    refused([*good, 0])


@pytest.mark.parametrize(
    "body", [[], [bytes(32)], [bytes(31)], ["x" * 32], [b"\xff" * 32], [exchange_public(b"1" * 32)] * 2]
)
def test_a_prekey_of_another_shape_is_refused(body: list[Any]) -> None:
    refused(body, Kind.PREKEY)


def test_a_full_offer_fits_an_operation(pool: PrivatePool) -> None:
    members = {PublicKey(number.to_bytes(32, "big")): exchange_public(secret(5)) for number in range(1300)}
    key = ContentKey(pool.id, limits.SEQ_MAX, limits.CONTENT_GENERATION_MAX, secret(1))
    bodies = offer_bodies(key, pool.people[E0].key, members, secret(9))
    assert [len(body.entries) for body in bodies] == [512, 512, 276]
    assert [entry.member for body in bodies for entry in body.entries] == sorted(members)
    for body in bodies:
        author = pool.people[E0]
        deps = tuple(pool.genesis.id for _ in range(limits.OPERATION_DEPS_MAX))
        operation = sign_operation(
            author.identity, pool.id, body, seq=limits.SEQ_MAX, prev=pool.genesis.id, epoch=limits.SEQ_MAX,
            hlc=2**63 - 1, deps=deps,
        )  # fmt: skip
        assert len(operation.signed) <= limits.OPERATION_BYTES_MAX
    assert offer_bodies(key, pool.people[E0].key, {}, secret(9)) == ()


# ---------------------------------------------------------------- who may offer, and to whom


def test_what_electors_offer_counts_and_what_others_offer_does_not(pool: PrivatePool) -> None:
    good, bad = pool.key(1), pool.key(2)
    pool.hear(pool.offer(pool.people[W0], bad, pool.people))
    assert pool.keys.offered(0, 0) == ()
    pool.hear(pool.offer(pool.people[E0], good, pool.people))
    (offered,) = pool.keys.offered(0, 0)
    assert (offered.commitment, offered.authors) == (good.commitment, (pool.people[E0].key,))
    assert pool.holders(good) == {E0, E1, W0, W1}
    assert pool.holders(bad) == set()


def test_a_later_operation_adds_members(pool: PrivatePool) -> None:
    key = pool.key(1)
    pool.hear(pool.offer(pool.people[E0], key, pool.people[:2]))
    assert pool.holders(key) == {E0, E1}
    pool.hear(pool.offer(pool.people[E1], key, pool.people[2:3]), pool.offer(pool.people[E0], key, pool.people[3:]))
    assert pool.holders(key) == {E0, E1, W0, W1}
    (offered,) = pool.keys.offered(0, 0)
    assert offered.authors == tuple(sorted(person.key for person in pool.electors))
    assert offered.members == {person.key for person in pool.people}


def test_a_certificate_fixes_the_key_of_generation_0_only(pool: PrivatePool) -> None:
    mine, other, later = pool.key(1), pool.key(2), pool.key(3, generation=1)
    operation = pool.offer(pool.people[E1], other, pool.people)
    pool.hear(pool.offer(pool.people[E0], mine, pool.people), operation)
    assert {offered.commitment for offered in pool.keys.offered(0, 0)} == {mine.commitment, other.commitment}
    fixed = {0: mine.commitment}
    assert [offered.commitment for offered in pool.keys.offered(0, 0, fixed)] == [mine.commitment]
    assert pool.keys.addressed(operation, pool.people[W0].key, fixed) is None
    assert pool.keys.addressed(operation, pool.people[W0].key, {0: b""}) is not None
    pool.hear(pool.offer(pool.people[E1], later, pool.people))
    assert [offered.commitment for offered in pool.keys.offered(0, 1, fixed)] == [later.commitment]


def test_nobody_offers_a_key_of_an_epoch_that_has_not_begun(pool: PrivatePool) -> None:
    key = pool.key(1, epoch=1)
    early = pool.people[E0].sign(pool.body(pool.people[E0], key, pool.people), epoch=0)
    pool.hear(early)
    assert pool.keys.offered(1, 0) == ()
    assert pool.holders(key) == set()


def test_all_write_with_the_newest_key_and_wait_if_a_removal_asks_for_a_newer_one(pool: PrivatePool) -> None:
    old, new = pool.key(1), pool.key(2, generation=1)
    ring = pool.rings[pool.people[W0].key]
    with pytest.raises(LocalError, match="no content key"):
        writing_key(pool.keys, ring)
    pool.hear(pool.offer(pool.people[E0], old, pool.people), pool.offer(pool.people[E1], new, pool.people[:3]))
    assert writing_key(pool.keys, ring) == new
    # who was not given the newest yet writes with what it has
    assert writing_key(pool.keys, pool.rings[pool.people[W1].key]) == old
    with pytest.raises(LocalError):
        writing_key(pool.keys, ring, floor=1)


def test_of_two_keys_at_the_same_time_all_choose_one(pool: PrivatePool) -> None:
    keys = [pool.key(1), pool.key(2)]
    pool.hear(*(pool.offer(who, key, pool.people) for who, key in zip(pool.electors, keys, strict=True)))
    chosen = {writing_key(pool.keys, ring).commitment for ring in pool.rings.values()}
    assert chosen == {min(key.commitment for key in keys)}


# ---------------------------------------------------------------- liars


def test_an_elector_that_seals_another_key_than_it_commits_to_is_named(pool: PrivatePool) -> None:
    said, inside = pool.key(1), pool.key(2)
    pool.hear(pool.offer(pool.people[E1], said, pool.people[2:3], inside=inside))
    (evidence,) = pool.evidence
    assert (evidence.culprit, evidence.commitment, evidence.opened) == (
        pool.people[E1].key, said.commitment, inside.commitment,
    )  # fmt: skip
    assert pool.holders(said) == pool.holders(inside) == set()


def test_an_elector_that_commits_to_two_keys_of_a_generation_is_named_and_the_first_counts(pool: PrivatePool) -> None:
    first, second = pool.key(1), pool.key(2)
    liar = pool.people[E1]
    one, other = pool.offer(liar, first, pool.people[:2]), pool.offer(liar, second, pool.people[2:])
    assert pool.keys.split() == ()
    pool.hear(one, other)
    (split,) = pool.keys.split()
    assert split == (liar.key, 0, 0, one.id, other.id)
    assert [offered.commitment for offered in pool.keys.offered(0, 0)] == [first.commitment]
    assert pool.holders(second) == set()


def test_offers_of_an_elector_that_forks_are_taken_back(pool: PrivatePool) -> None:
    author = pool.people[E1]
    pool.hear(pool.offer(author, pool.key(1), pool.people))
    late = pool.offer(author, pool.key(2, generation=1), pool.people)
    pool.view.apply(late)
    assert len(pool.keys.offered(0, 1)) == 1
    pool.view.void(author.key, late.seq, [late])
    assert pool.keys.offered(0, 1) == ()
    assert len(pool.keys.offered(0, 0)) == 1


def test_a_prekey_replaces_the_key_of_the_identity_and_a_later_one_the_former(pool: PrivatePool) -> None:
    worker = pool.people[W0]
    assert pool.keys.exchange_key(worker.key) == exchange_key_of(worker.key)
    for number in (21, 22):
        pool.hear(pool.prekey(worker, number))
        assert pool.keys.exchange_key(worker.key) == exchange_public(secret(number))
    key = pool.key(1)
    pool.hear(pool.offer(pool.people[E0], key, [worker]))
    assert pool.holders(key) == {W0}


def test_a_prekey_of_an_author_that_forked_is_ignored_and_nothing_is_sealed_to_a_frozen_author(
    pool: PrivatePool,
) -> None:
    worker = pool.people[W0]
    first = pool.prekey(worker, 21)
    twin = worker.branch()
    stolen, honest = pool.prekey(worker, 22), twin.sign(LeaveBody())
    replica = pool.replica()
    feed(replica, [*pool.base, first, stolen])
    assert replica.view.keys.exchange_key(worker.key) == exchange_public(secret(22))
    feed(replica, [honest])
    assert replica.view.keys.exchange_key(worker.key) == exchange_public(secret(21))
    assert not replica.view.members.active(worker.key)
    # in whatever order it is learned
    again = pool.replica()
    feed(again, [*pool.base, honest, stolen, first])
    assert again.view.keys.to_plain() == replica.view.keys.to_plain()


def test_a_prekey_of_somebody_who_is_no_member_has_no_effect(pool: PrivatePool) -> None:
    worker = pool.people[W0]
    pool.hear(worker.sign(LeaveBody()), pool.prekey(worker, 21))
    assert pool.keys.exchange_key(worker.key) == exchange_key_of(worker.key)


def test_a_prekey_of_low_order_is_refused_at_the_door(pool: PrivatePool) -> None:
    replica = pool.replica()
    feed(replica, pool.base)
    bad = pool.people[W0].sign(PrekeyBody(bytes(32)))
    assert rejected(feed(replica, [bad])) == ["bad_encoding"]


def test_a_member_nothing_can_be_sealed_to_does_not_keep_the_others_from_their_key(pool: PrivatePool) -> None:
    members = [PublicKey(bytes(32)), *(person.key for person in pool.people)]
    assert set(pool.keys.recipients(members)) == {person.key for person in pool.people}


# ---------------------------------------------------------------- any order


def story(pool: PrivatePool) -> list[Any]:
    e0, e1, w0, w1 = pool.people
    told = [
        *pool.base, pool.prekey(w0, 21), pool.offer(e0, pool.key(1), pool.people[:3]), pool.prekey(w0, 22),
        pool.offer(e1, pool.key(2), pool.people), pool.offer(e0, pool.key(1), [w1]),
        pool.offer(e1, pool.key(3), pool.people), pool.offer(w1, pool.key(4), pool.people),
    ]  # fmt: skip
    twin = e0.branch()
    told.append(pool.offer(e0, pool.key(5, generation=1), pool.people))
    told.append(pool.offer(twin, pool.key(6, generation=1), pool.people))
    return told


@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_the_fold_of_keys_does_not_depend_on_the_order_of_arrival(random: Any) -> None:
    operations = story(PrivatePool())
    expected = PrivatePool().replica()
    feed(expected, operations)
    rest = operations[1:] + random.sample(operations, 3)
    random.shuffle(rest)
    replica = PrivatePool().replica()
    feed(replica, operations[:1])
    for operation in rest:
        feed(replica, [operation])
    assert encode(replica.view.keys.to_plain()) == encode(expected.view.keys.to_plain())
    assert replica.view.keys.split() == expected.view.keys.split()
    assert len(expected.view.keys.split()) == 1
    assert expected.view.keys.offered(0, 1) == ()


def test_offers_survive_their_bytes(pool: PrivatePool) -> None:
    for operation in story(pool)[len(pool.base) :]:
        assert decode_operation(operation.signed, pool.id) == operation


# ---------------------------------------------------------------- removal


def test_a_removed_member_cannot_open_later_keys_and_members_that_stay_can(pool: PrivatePool) -> None:
    before, after = pool.key(1), pool.key(2, epoch=1)
    pool.hear(pool.offer(pool.people[E0], before, pool.people))
    staying = [person for index, person in enumerate(pool.people) if index != W1]
    operation = pool.offer(pool.people[E0], after, staying)
    pool.hear(operation)
    assert pool.holders(before) == {E0, E1, W0, W1}
    assert pool.holders(after) == {E0, E1, W0}
    # not with anybody else's entry either
    removed = pool.rings[pool.people[W1].key]
    body = operation.body
    assert isinstance(body, ContentKeyBody)
    assert pool.keys.addressed(operation, removed.owner) is None
    assert writing_key(pool.keys, pool.rings[pool.people[W0].key], floor=1) == after


def rotation(pool: PrivatePool, who: int, **standing: Any) -> Any:
    return rotation_due(pool.keys, pool.rings[pool.people[who].key], pool.standing(**standing))


def test_electors_take_turns_to_offer_the_first_key_and_nobody_else_does(pool: PrivatePool) -> None:
    found = [rotation(pool, who) for who in (E0, E1)]
    assert {(item.why, item.epoch, item.generation, item.held) for item in found} == {(Why.FIRST, 0, 0, None)}
    assert sorted(item.turn for item in found) == [0, 1]
    assert [offer_delay_ms(turn, 800) for turn in (0, 1)] == [0, 800]
    assert rotation(pool, W0) is None
    pool.hear(pool.offer(pool.people[E0], pool.key(1), pool.people))
    assert [rotation(pool, who) for who in range(4)] == [None] * 4


def test_an_elector_that_left_or_is_frozen_offers_nothing(pool: PrivatePool) -> None:
    assert rotation(pool, E1, members=pool.active - {pool.people[E1].key}) is None
    pool.hear(pool.offer(pool.people[E0], pool.key(1), pool.people), pool.people[E1].sign(LeaveBody()))
    assert rotation(pool, E1) is None
    assert rotation(pool, E0).why is Why.REMOVED


def test_the_first_turn_goes_round(pool: PrivatePool) -> None:
    first = set()
    for generation in range(12):
        pool.hear(pool.offer(pool.people[E0], pool.key(generation + 1, generation=generation), pool.people))
        found = [rotation(pool, who, members=pool.active - {pool.people[W0].key}) for who in (E0, E1)]
        assert {item.generation for item in found} == {generation + 1}
        first |= {who for who, item in enumerate(found) if item.turn == 0}
    assert first == {E0, E1}


@pytest.mark.parametrize("how", ["leaves", "forks"])
def test_a_new_key_is_due_when_a_holder_is_no_longer_an_active_member(pool: PrivatePool, how: str) -> None:
    old = pool.key(1)
    pool.hear(pool.offer(pool.people[E0], old, pool.people))
    worker = pool.people[W1]
    if how == "leaves":
        pool.hear(worker.sign(LeaveBody()))
    else:
        pool.view.void(worker.key, 1, [])
    found = rotation(pool, E1)
    assert (found.why, found.generation) == (Why.REMOVED, 1)
    new = pool.key(2, generation=found.generation)
    pool.hear(pool.offer(pool.people[E1], new, [person for person in pool.people if person.key in pool.active]))
    assert rotation(pool, E0) is None
    assert pool.holders(new) == {E0, E1, W0}
    assert writing_key(pool.keys, pool.rings[pool.people[E0].key]) == new


def test_a_holder_whose_join_is_not_here_yet_is_waited_for_before_the_key_is_replaced(pool: PrivatePool) -> None:
    pool.hear(pool.offer(pool.people[E0], pool.key(1), pool.people))
    found = rotation(pool, E1, members=pool.active - {pool.people[W1].key}, gone=frozenset())
    assert found.why is Why.REMOVED
    assert found.turn >= STRANGER_TURNS


def test_a_removal_by_epoch_makes_a_key_of_that_epoch_due_even_if_nobody_held_the_old_one(pool: PrivatePool) -> None:
    pool.hear(pool.offer(pool.people[E0], pool.key(1), pool.people[:3]))
    found = rotation(pool, E0, epoch=2, floor=2)
    assert (found.why, found.epoch, found.generation) == (Why.REMOVED, 2, 0)
    # a change that removed nobody needs none
    assert rotation(pool, E0, epoch=2, floor=0) is None


def test_a_key_grows_old_after_a_number_of_epochs(pool: PrivatePool) -> None:
    pool.hear(pool.offer(pool.people[E0], pool.key(1), pool.people))
    due = [rotation(pool, E0, epoch=epoch, period=3) for epoch in range(5)]
    assert [item and item.why for item in due] == [None, None, None, Why.PERIOD, Why.PERIOD]
    assert rotation(pool, E0, epoch=1000, period=0) is None


def test_the_certified_key_is_offered_by_whoever_holds_it_and_replaced_if_nobody_does(pool: PrivatePool) -> None:
    pool.hear(pool.offer(pool.people[E0], pool.key(1), pool.people))
    key = pool.key(2, epoch=1)
    fixed = {1: key.commitment}
    pool.rings[pool.people[E0].key].add(key)
    mine, other = (rotation(pool, who, epoch=1, certified=fixed) for who in (E0, E1))
    assert (mine.why, mine.generation, mine.held, mine.turn) == (Why.CERTIFIED, 0, key, 0)
    assert (other.why, other.generation, other.held) == (Why.CERTIFIED, 1, None)
    assert other.turn >= 2
    pool.hear(pool.offer(pool.people[E0], key, pool.people))
    assert [rotation(pool, who, epoch=1, certified=fixed) for who in (E0, E1)] == [None, None]


def test_an_elector_that_cannot_read_the_newest_key_offers_another_after_all_who_can(pool: PrivatePool) -> None:
    said, inside = pool.key(1), pool.key(2)
    pool.hear(pool.offer(pool.people[E1], said, pool.people, inside=inside))
    assert len(pool.evidence) == 4
    found = rotation(pool, E0)
    assert (found.why, found.generation) == (Why.UNREADABLE, 1)
    assert found.turn >= len(pool.electors)


def test_when_the_generations_of_an_epoch_are_used_up_an_epoch_is_due(pool: PrivatePool) -> None:
    last = pool.key(1, generation=limits.CONTENT_GENERATION_MAX)
    pool.hear(pool.offer(pool.people[E0], last, pool.people), pool.people[W1].sign(LeaveBody()))
    found = rotation(pool, E0)
    assert (found.why, found.generation) == (Why.REMOVED, None)


def test_newcomers_are_given_the_present_key_by_an_elector_that_holds_it(pool: PrivatePool) -> None:
    key = pool.key(1)
    pool.hear(pool.offer(pool.people[E0], key, [pool.people[E0], pool.people[W0]]))
    ring = pool.rings[pool.people[E0].key]
    found = additions_due(pool.keys, ring, pool.standing())
    assert found is not None
    assert (found.key, found.members) == (key, tuple(sorted(pool.people[who].key for who in (E1, W1))))
    assert additions_due(pool.keys, pool.rings[pool.people[E1].key], pool.standing()) is None
    assert additions_due(pool.keys, pool.rings[pool.people[W0].key], pool.standing()) is None
    recipients = pool.keys.recipients(found.members)
    for body in offer_bodies(found.key, ring.owner, recipients, secret(9)):
        pool.hear(pool.people[E0].sign(body))
    assert pool.holders(key) == {E0, E1, W0, W1}
    assert additions_due(pool.keys, ring, pool.standing()) is None


def test_an_elector_hands_on_no_other_key_of_a_generation_than_its_own(pool: PrivatePool) -> None:
    mine, other = pool.key(1), pool.key(2)
    everybody = [person for index, person in enumerate(pool.people) if index != W1]
    pool.hear(pool.offer(pool.people[E0], mine, pool.people), pool.offer(pool.people[E1], other, everybody))
    # W1 lacks the key of E1, and E0 would contradict itself if it handed that on
    assert additions_due(pool.keys, pool.rings[pool.people[E0].key], pool.standing()) is None
    found = additions_due(pool.keys, pool.rings[pool.people[E1].key], pool.standing())
    assert found is not None
    assert (found.key, found.members) == (other, (pool.people[W1].key,))


def test_a_key_that_is_about_to_be_replaced_is_handed_out_no_more(pool: PrivatePool) -> None:
    pool.hear(pool.offer(pool.people[E0], pool.key(1), pool.people[:3]), pool.people[W0].sign(LeaveBody()))
    assert additions_due(pool.keys, pool.rings[pool.people[E0].key], pool.standing()) is None
    assert rotation(pool, E0).why is Why.REMOVED


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
@settings(max_examples=40, deadline=None)
def test_whoever_is_no_member_when_a_key_is_made_never_opens_it(changes: list[tuple[int, bool]]) -> None:
    pool = PrivatePool(electors=1, workers=4)
    leader, ring = pool.people[0], pool.rings[pool.people[0].key]
    numbers = itertools.count(1)
    for worker, joins in [(0, True), *changes]:
        person = pool.workers[worker]
        if joins != pool.view.members.has(person.key):
            pool.hear(person.sign(pool.joins[worker].body if joins else LeaveBody()))
        found = rotation_due(pool.keys, ring, pool.standing())
        if found is not None:
            key = pool.key(next(numbers), generation=found.generation or 0)
            pool.hear(pool.offer(leader, key, [one for one in pool.people if one.key in pool.active]))
        added = additions_due(pool.keys, ring, pool.standing())
        if added is not None:
            for body in offer_bodies(added.key, leader.key, pool.keys.recipients(added.members), secret(9)):
                pool.hear(leader.sign(body))
        newest = writing_key(pool.keys, ring)
        assert {pool.people[index].key for index in pool.holders(newest)} == pool.active
