"""Who may know of a private topic: only who proves to have its key, to whom, and now."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.errors import LimitExceeded, LocalError
from converge_p2p.net.topic_access import PRIVATE_PREFIX, TAG_BYTES, TopicAccess, is_private, proof_context

ONE, TWO = PRIVATE_PREFIX + "1", PRIVATE_PREFIX + "2"
NOISE_BYTES = limits.PRIVATE_TOPICS_MAX * TAG_BYTES


def access(*names: str) -> TopicAccess:
    made = TopicAccess()
    for name in names:
        made.guard(name, name.encode().ljust(32, b"."))
    return made


def context(role: str = "asker", asker: bytes = b"A", asked: bytes = b"B", mine: bytes = b"1", other: bytes = b"2"):
    return proof_context(role, asker, asked, mine * 32, other * 32)


def tags(of: TopicAccess, bound: bytes) -> bytes:
    return of.tags(bound, os.urandom(NOISE_BYTES))


def test_members_recognise_what_they_share_and_nothing_else():
    here, there = access(ONE, TWO), access(TWO, PRIVATE_PREFIX + "3")
    assert there.recognised(context(), tags(here, context())) == [TWO]
    assert here.recognised(context(), tags(access(), context())) == []
    assert here.recognised(context(), b"") == []


@pytest.mark.parametrize(
    "other",
    [
        context("asked"),
        context(asker=b"C"),
        context(asked=b"C"),
        context(asker=b"B", asked=b"A"),
        context(mine=b"9"),
        context(other=b"9"),
    ],
    ids=["handed back", "by another", "to another", "turned round", "at another time", "replayed"],
)
def test_a_proof_is_worth_nothing_elsewhere(other):
    assert access(ONE).recognised(other, tags(access(ONE), context())) == []


def test_names_of_peers_cannot_be_shifted_into_each_other():
    assert context(asker=b"AB", asked=b"C") != context(asker=b"A", asked=b"BC")


@given(st.integers(0, 70))
def test_the_number_of_topics_is_hidden_in_steps(count):
    shown = tags(access(*(f"{PRIVATE_PREFIX}{number}" for number in range(count))), context())
    assert len(shown) // TAG_BYTES == next(size for size in (4, 16, 64, limits.PRIVATE_TOPICS_MAX) if size >= count)


def test_an_outsider_cannot_tell_topics_from_filling():
    one, other = tags(access(ONE), context()), tags(access(ONE), context(mine=b"9"))
    pieces = {one[start : start + TAG_BYTES] for start in range(0, len(one), TAG_BYTES)}
    assert not any(piece in other for piece in pieces), "nothing repeats from one connection to the next"


def test_only_members_see_a_private_topic_and_everybody_the_others():
    policy = access(ONE)
    assert policy.may_see("peer", "converge/topic/1/ab")
    assert not policy.may_see("peer", ONE)
    assert policy.admit("peer", [ONE, TWO]) == [ONE]
    assert policy.may_see("peer", ONE)
    assert not policy.may_see("other", ONE)
    assert not policy.may_see("peer", TWO), "a private topic that nobody here takes part in is private all the same"
    assert policy.topics_of("peer") == [ONE]
    policy.forget("peer")
    assert not policy.may_see("peer", ONE)


def test_a_topic_that_was_left_stays_private_and_begins_anew_without_members():
    policy = access(ONE)
    policy.admit("peer", [ONE])
    policy.unguard(ONE)
    assert is_private(ONE)
    assert not policy.may_see("peer", ONE)
    policy.guard(ONE, bytes(32))
    assert not policy.may_see("peer", ONE)


def test_a_topic_whose_key_was_replaced_keeps_its_members_and_takes_none():
    here = access(ONE, TWO)
    here.admit("member", [ONE])
    here.retire(ONE)
    assert here.may_see("member", ONE)
    assert here.admit("former", [ONE, TWO]) == [TWO]
    assert not here.may_see("former", ONE)
    assert here.recognised(context(), tags(access(ONE), context())) == []
    assert access(ONE).recognised(context(), tags(here, context())) == []


def test_what_can_be_guarded_is_bounded_and_named():
    policy = access(*(f"{PRIVATE_PREFIX}{number}" for number in range(limits.PRIVATE_TOPICS_MAX)))
    with pytest.raises(LimitExceeded):
        policy.guard(PRIVATE_PREFIX + "more", bytes(32))
    for name, key in (("converge/topic/1/ab", bytes(32)), (ONE, bytes(31))):
        with pytest.raises(LocalError):
            access().guard(name, key)
