"""Who is kept out, and for how long."""

from __future__ import annotations

from converge_p2p.core import limits
from converge_p2p.core.types import PeerId
from converge_p2p.net.conduct import Conduct

EVE, BOB = PeerId("eve"), PeerId("bob")


def test_the_violation_that_reaches_the_limit_is_told_and_counting_begins_anew():
    conduct = Conduct()
    for _ in range(2):
        told = [conduct.violation(EVE, 100.0) for _ in range(limits.VIOLATIONS_MAX)]
        assert told == [False] * (limits.VIOLATIONS_MAX - 1) + [True]
    assert not conduct.violation(BOB, 100.0)


def test_violations_that_lie_far_apart_never_add_up():
    conduct = Conduct()
    pause = limits.VIOLATION_WINDOW_S / (limits.VIOLATIONS_MAX - 2)
    assert not any(conduct.violation(EVE, number * pause) for number in range(200))


def test_a_ban_ends_at_its_time_and_a_shorter_one_does_not_shorten_it():
    conduct = Conduct()
    conduct.ban(EVE, 10.0)
    conduct.ban(EVE, 5.0)
    assert conduct.banned(EVE, 9.9)
    assert not conduct.banned(EVE, 10.0)
    conduct.ban(BOB)
    assert conduct.banned(BOB, 1e18)
    conduct.unban(BOB)
    assert not conduct.banned(BOB, 0.0)


def test_the_tables_are_bounded_and_the_oldest_goes_first():
    conduct = Conduct()
    conduct.ban(EVE)
    for number in range(limits.BANNED_PEERS_MAX):
        conduct.ban(PeerId(f"peer{number}"))
        conduct.violation(PeerId(f"peer{number}"), 0.0)
    assert not conduct.banned(EVE, 0.0)
    assert conduct.banned(PeerId("peer0"), 0.0)
    conduct.violation(EVE, 0.0)
    assert len(conduct._violations) == limits.BANNED_PEERS_MAX


def test_new_names_that_misbehave_do_not_let_in_who_is_kept_out_for_longer():
    conduct = Conduct()
    conduct.ban(EVE)
    conduct.ban(BOB, 1e6)
    for number in range(2 * limits.BANNED_PEERS_MAX):
        conduct.ban(PeerId(f"peer{number}"), limits.BAN_S + number)
    assert conduct.banned(EVE, 0.0)
    assert conduct.banned(BOB, 0.0)
    assert len(conduct.bans(0.0)) == limits.BANNED_PEERS_MAX
