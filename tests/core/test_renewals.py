"""Renewals stretch a node's patience with a holder, up to a bound, and change nothing else, whoever sends what."""

from __future__ import annotations

from typing import Any

import pool_kit as kit
import pytest
from hypothesis import given, strategies as st

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode, encode_value
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, RemoteViolation
from converge_p2p.core.identity import SIGNATURE_BYTES, Identity
from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.model.task import Outcome, TaskState
from converge_p2p.core.oplog.bodies import Phase, Token
from converge_p2p.core.replica import events as ev, renewing
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.renewal import (
    RENEWAL_TAG,
    Renewal,
    check_signature,
    decode_renewal,
    renewal_interval_ms,
    round_ttl_ms,
    sign_renewal,
)
from converge_p2p.core.types import PeerId, TaskId

TTL_MS = 1000
HOLD_MS = limits.CLAIM_HOLD_FACTOR_MAX * TTL_MS
PAUSE_MS = limits.RENEWAL_PAUSE_MS
PEER = PeerId("peer")

counters = st.integers(0, limits.SEQ_MAX)
notes = st.text(max_size=limits.RENEWAL_NOTE_BYTES_MAX // 4)


class Held:
    """A task that the first worker holds in round 0 since 0 ms, as an observer sees it."""

    def __init__(self, **options: Any) -> None:
        self.pool = kit.Pool(policy=PoolPolicy(claim_ttl_ms=TTL_MS))
        self.holder, self.rival = self.pool.workers
        self.task, submit = self.pool.submit()
        self.claim = kit.claim(self.holder, self.task)
        self.grants = self.pool.votes(Phase.GRANT, self.task, 0, self.claim.id)
        self.replica = self.pool.replica(**options)
        self.operations = [*self.pool.base, submit, self.claim, *self.grants]
        self.effects = kit.feed(self.replica, self.operations)

    def says(self, counter: int, author: kit.Author | None = None, **changed: Any) -> bytes:
        author = author or self.holder
        fields = {"task": self.task, "author": author.key, "token": Token(0, 0), "fraction": 500, "note": "half"}
        return sign_renewal(author.identity, self.pool.id, Renewal(**(fields | {"counter": counter} | changed)))

    def hear(self, signed: bytes, now_ms: int, *, gossiped: bool = False) -> list[ev.Effect]:
        return self.replica.handle(ev.RenewalReceived(signed, PEER, gossiped), kit.now(now_ms))

    def fire(self, now_ms: int) -> list[ev.Effect]:
        return self.replica.handle(ev.TimerFired(ev.TimerKey(ev.TimerKind.CLAIM, self.task)), kit.now(now_ms))


def claim_timer(effects: list[ev.Effect]) -> int | None:
    return kit.timers(effects).get(ev.TimerKind.CLAIM)


# ---------------------------------------------------------------- the statement


@given(
    epoch=counters, number=st.integers(0, limits.ROUND_MAX), fraction=st.integers(0, 1000), note=notes, counter=counters
)
def test_a_statement_comes_back_as_it_was_signed(
    epoch: int, number: int, fraction: int, note: str, counter: int
) -> None:
    pool, author = kit.Pool(), Identity.from_seed(b"a" * 32)
    renewal = Renewal(TaskId(b"t" * 32), author.public_key, Token(epoch, number), fraction, note, counter)
    signed = sign_renewal(author, pool.id, renewal)
    assert len(signed) <= limits.RENEWAL_BYTES_MAX
    assert decode_renewal(signed, pool.id) == renewal
    check_signature(signed, renewal)


def test_the_longest_statement_fits_its_bound():
    held = Held()
    longest = held.says(limits.SEQ_MAX, token=Token(limits.SEQ_MAX, limits.ROUND_MAX), fraction=1000, note="ä" * 128)
    assert len(longest) <= limits.RENEWAL_BYTES_MAX


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_statement_with_a_changed_byte_is_refused(position: int, flip: int) -> None:
    held = Held()
    signed = bytearray(held.says(1))
    signed[position % len(signed)] ^= flip
    effects = held.hear(bytes(signed), 100)
    assert kit.rejected(effects)
    assert claim_timer(effects) is None


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, 2, "bad_version"),
        (0, True, "bad_version"),
        (1, b"p" * 32, "wrong_pool"),
        (2, b"short", "bad_renewal"),
        (2, "text", "bad_renewal"),
        (3, b"k" * 33, "bad_renewal"),
        (4, -1, "bad_renewal"),
        (5, limits.ROUND_MAX + 1, "bad_renewal"),
        (6, 1001, "bad_renewal"),
        (6, True, "bad_renewal"),
        (7, b"bytes", "bad_renewal"),
        (7, "x" * (limits.RENEWAL_NOTE_BYTES_MAX + 1), "bad_renewal"),
        (8, limits.SEQ_MAX + 1, "bad_renewal"),
        (8, None, "bad_renewal"),
    ],
)
def test_a_statement_of_another_shape_is_refused(position: int, value: Any, reason: str) -> None:
    held = Held()
    fields = decode(held.says(1)[SIGNATURE_BYTES:])
    fields[position] = value
    payload = encode(fields)
    signed = held.holder.identity.sign(RENEWAL_TAG, payload) + payload
    with pytest.raises(RemoteViolation) as caught:
        decode_renewal(signed, held.pool.id)
    assert caught.value.reason == reason


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x80", b"\x81\x01", encode([1] * 8), encode({"a": 1}), b"x" * 600])
def test_bytes_that_are_no_statement_are_refused(payload: bytes) -> None:
    effects = Held().hear(bytes(SIGNATURE_BYTES) + payload, 100)
    assert kit.rejected(effects)[0] in {"bad_renewal", "too_large"}
    assert kit.notices(effects, ev.Rejected)[0].guilty


def test_a_signature_of_an_operation_is_none_of_a_statement():
    held = Held()
    payload = held.says(1)[SIGNATURE_BYTES:]
    other = held.holder.identity.sign("operation", payload) + payload
    assert kit.rejected(held.hear(other, 100)) == ["bad_signature"]


# ---------------------------------------------------------------- patience


def test_a_statement_of_the_holder_starts_its_time_anew():
    held = Held()
    assert claim_timer(held.effects) == TTL_MS
    effects = held.hear(held.says(1), 700)
    assert claim_timer(effects) == 700 + TTL_MS
    assert kit.notices(effects, ev.TaskProgress) == [ev.TaskProgress(held.task, 0, 0, 500, "half")]


def test_the_longest_hold_is_counted_from_the_certificate():
    held = Held()
    for counter, now_ms in enumerate(range(900, HOLD_MS, 900)):
        assert claim_timer(held.hear(held.says(counter), now_ms)) == min(now_ms + TTL_MS, HOLD_MS)
    effects = held.hear(held.says(100), HOLD_MS)
    assert claim_timer(effects) is None, "patience has an end"
    assert kit.notices(effects, ev.TaskProgress), "and progress is news all the same"
    held.fire(HOLD_MS)
    held.hear(held.says(101), HOLD_MS + 500)
    assert held.replica.expired(held.task)


def test_a_later_round_has_a_longer_time_and_a_hold_of_its_own():
    held = Held()
    claim = kit.claim(held.rival, held.task)
    effects = kit.feed(held.replica, [claim, *held.pool.votes(Phase.GRANT, held.task, 1, claim.id)], 5000)
    assert claim_timer(effects) == 5000 + 2 * TTL_MS
    effects = held.hear(held.says(0, held.rival, token=Token(0, 1)), 6000)
    assert claim_timer(effects) == 6000 + 2 * TTL_MS
    assert round_ttl_ms(TTL_MS, 1) == 2 * TTL_MS
    assert round_ttl_ms(limits.CLAIM_TTL_MS_MAX, 9) == limits.CLAIM_TTL_MS_MAX


def test_impatience_that_nobody_acted_on_is_taken_back():
    held = Held()
    held.fire(TTL_MS)
    assert held.replica.expired(held.task)
    effects = held.hear(held.says(1), TTL_MS + 300)
    assert not held.replica.expired(held.task)
    assert [notice.task for notice in kit.notices(effects, ev.TaskChanged)] == [held.task]


def test_a_holder_speaks_often_enough_that_two_in_a_row_may_be_lost():
    assert renewal_interval_ms(30_000, 0) * 3 <= round_ttl_ms(30_000, 0)
    assert renewal_interval_ms(30_000, 2) * 3 <= round_ttl_ms(30_000, 2)
    assert renewal_interval_ms(limits.CLAIM_TTL_MS_MIN, 0) == PAUSE_MS


# ---------------------------------------------------------------- what changes nothing


def hostile(held: Held) -> dict[str, bytes]:
    stranger = kit.Author(99, held.pool.id)
    genuine = held.says(7)
    elsewhere = kit.Pool(electors=2)
    signed_for_other_pool = sign_renewal(
        held.holder.identity, elsewhere.id, Renewal(held.task, held.holder.key, Token(0, 0), 1, "", 9)
    )
    forged = held.rival.identity.sign(RENEWAL_TAG, genuine[SIGNATURE_BYTES:]) + genuine[SIGNATURE_BYTES:]
    return {
        "forged": forged,
        "unsigned": bytes(SIGNATURE_BYTES) + genuine[SIGNATURE_BYTES:],
        "of a rival": held.says(8, held.rival),
        "of a stranger": held.says(8, stranger),
        "of a later round": held.says(8, token=Token(0, 1)),
        "of a later epoch": held.says(8, token=Token(1, 0)),
        "of an unknown task": held.says(8, task=TaskId(b"u" * 32)),
        "of another pool": signed_for_other_pool,
        "too large": genuine + bytes(limits.RENEWAL_BYTES_MAX),
        "garbage": b"\x00" * 200,
    }


@pytest.mark.parametrize("what", sorted(hostile(Held())))
def test_what_is_not_the_holders_changes_nothing(what: str) -> None:
    held = Held()
    for gossiped in (False, True):
        effects = held.hear(hostile(held)[what], 500, gossiped=gossiped)
        assert [type(effect) for effect in effects if not isinstance(effect, ev.SetTimer)] == [ev.Emit]
        assert len(kit.rejected(effects)) == 1
        assert claim_timer(effects) is None
    assert held.replica.progress(held.task) is None


def test_a_replayed_or_older_statement_changes_nothing():
    held = Held()
    old, new = held.says(5), held.says(6, note="later")
    held.hear(old, 100)
    held.hear(new, 400)
    for signed in (old, new, held.says(6, note="another of the same count"), held.says(3)):
        effects = held.hear(signed, 900)
        assert claim_timer(effects) is None
        assert not kit.notices(effects, ev.TaskProgress)
    said = held.replica.progress(held.task)
    assert said is not None
    assert said.note == "later"


def test_a_holder_that_says_too_much_is_not_heard_in_between():
    held = Held()
    verified = [bool(kit.notices(held.hear(held.says(at), at), ev.TaskProgress)) for at in range(1000)]
    assert sum(verified) == 1000 // (PAUSE_MS // 2)


def test_only_what_would_count_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    verified: list[bytes] = []

    def counting(signed: bytes, renewal: Renewal) -> None:
        verified.append(signed)
        check_signature(signed, renewal)

    monkeypatch.setattr(renewing, "check_signature", counting)
    held.hear(held.says(7), 100)
    assert len(verified) == 1
    for what, signed in hostile(held).items():
        held.hear(signed, 500)
        assert len(verified) == 1, what
    held.hear(held.says(7), 500)
    assert len(verified) == 1


def test_a_released_or_settled_task_is_not_renewed():
    held = Held()
    kit.feed(held.replica, [kit.release(held.holder, held.task, 0)])
    assert kit.rejected(held.hear(held.says(1), 100)) == ["renewal_unused"]
    held = Held()
    value = kit.value_of(held.holder)
    votes = held.pool.votes(Phase.ENDORSE, held.task, 0, value.hash) + held.pool.votes(
        Phase.ACCEPT, held.task, 0, value.hash
    )
    kit.feed(held.replica, [kit.report(held.holder, held.task, 0, value, held.grants), *votes])
    assert held.replica.view.registers[held.task].state is TaskState.COMPLETED
    assert kit.rejected(held.hear(held.says(1), 100)) == ["renewal_unused"]


@given(
    st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 5), st.sampled_from(["holder", *sorted(hostile(Held()))])),
        max_size=40,
    )
)
def test_whatever_is_said_patience_stays_bounded_and_the_state_as_it_was(said: list[tuple[int, int, str]]) -> None:
    held = Held()
    others = hostile(held)
    state, digest = held.replica.view.state_bytes(), held.replica.log.digest()
    now_ms, due_ms = 0, TTL_MS
    for pause_ms, counter, what in said:
        now_ms += pause_ms
        timer = claim_timer(held.hear(held.says(counter) if what == "holder" else others[what], now_ms))
        if timer is not None:
            assert what == "holder"
            due_ms = timer
        assert due_ms <= HOLD_MS
    assert held.replica.view.state_bytes() == state
    assert held.replica.log.digest() == digest


# ---------------------------------------------------------------- passing on


def test_a_statement_is_passed_on_once_however_it_came_first():
    held = Held()
    signed = held.says(1)
    assert ev.PassOn() not in held.hear(signed, 100), "a stream asks nothing"
    assert ev.PassOn() in held.hear(signed, 150, gossiped=True)
    assert ev.PassOn() not in held.hear(signed, 200, gossiped=True), "or one statement could be multiplied for ever"
    assert ev.PassOn() in held.hear(held.says(2), 300, gossiped=True)


# ---------------------------------------------------------------- the holder itself


def own(held: Held) -> Replica:
    """The holder's own replica."""
    replica = Replica(held.holder.identity, held.pool.id)
    replica.handle(ev.Restored(kit.signed(held.operations)), kit.now())
    return replica


def said(effects: list[ev.Effect]) -> list[bytes]:
    return [effect.payload for effect in effects if isinstance(effect, ev.Broadcast)]


def test_a_holder_says_what_others_take():
    held = Held()
    replica = own(held)
    effects = replica.handle(ev.Renew(held.task, 250, "a quarter"), kit.now(100))
    (signed,) = said(effects)
    assert claim_timer(effects) == 100 + TTL_MS, "its own patience is no shorter"
    assert kit.notices(held.hear(signed, 120), ev.TaskProgress) == [ev.TaskProgress(held.task, 0, 0, 250, "a quarter")]
    # nothing is written
    assert not any(isinstance(effect, ev.Persist) for effect in effects)


def test_the_count_of_a_holder_grows_also_over_a_restart_and_with_a_clock_that_stands():
    held = Held()
    counts = []
    for at_ms in (100, 300):
        replica = own(held)
        for _ in range(3):
            (signed,) = said(replica.handle(ev.Renew(held.task), kit.now(at_ms)))
            counts.append(decode_renewal(signed, held.pool.id).counter)
    assert counts == sorted(set(counts))


def test_who_does_not_hold_a_task_cannot_renew_it():
    held = Held()
    replica = own(held)
    with pytest.raises(Conflict):
        replica.handle(ev.Renew(TaskId(b"u" * 32)), kit.now())
    with pytest.raises(Conflict):
        held.replica.handle(ev.Renew(held.task), kit.now())
    with pytest.raises(LocalError):
        replica.handle(ev.Renew(held.task, 1001), kit.now())
    with pytest.raises(LimitExceeded):
        replica.handle(ev.Renew(held.task, 0, "x" * (limits.RENEWAL_NOTE_BYTES_MAX + 1)), kit.now())


# ---------------------------------------------------------------- together


@pytest.mark.parametrize("renews", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_work_of_four_times_its_time_keeps_its_claim_if_it_is_renewed(renews: bool, seed: int) -> None:
    pool = kit.Pool(policy=PoolPolicy(claim_ttl_ms=TTL_MS, hold_off_ms=0))
    mesh = kit.Mesh([pool.replica(number) for number in range(1, 6)], seed=seed, loss=0.1)
    mesh.connect()
    task, submit = pool.submit()
    for node in range(5):
        mesh.at(0, node, ev.Received(kit.signed([*pool.base, submit])))
    mesh.at(20, 3, ev.Claim(task))
    # a rival stands all the time, and would take over
    mesh.at(500, 4, ev.Claim(task))

    def hear(node: int, notice: Any) -> ev.Command | None:
        if isinstance(notice, ev.ClaimWon) and node == 3 and notice.round == 0:
            for after_ms in range(300, 4 * TTL_MS, 300) if renews else ():
                mesh.at(after_ms, 3, ev.Renew(task))
            mesh.at(4 * TTL_MS, 3, ev.Report(task, Outcome.COMPLETED, encode_value("slow")))
        elif isinstance(notice, ev.ClaimWon) and node == 4:
            return ev.Report(task, Outcome.COMPLETED, encode_value("rival"))
        return None

    mesh.on_notice = hear
    mesh.run(
        lambda: all(task in each.view.registers and each.view.registers[task].state.terminal for each in mesh.replicas)
    )
    register = mesh.replicas[0].view.registers[task]
    assert register.settled_token is not None
    assert (register.settled_token.round == 0) is renews
