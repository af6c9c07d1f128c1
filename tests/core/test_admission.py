"""Admission: proofs are bound to who joins, expire with an epoch, and are judged the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_kit import Pool, claim, feed, now, rejected, settle_writes

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, Conflict, LimitExceeded, LocalError, NotAuthorised, SignatureError
from converge_p2p.core.governance.admission import (
    AdmissionContext,
    UnknownAdmission,
    admits,
    check_admission,
    forget_admission,
    judges_key,
    register_admission,
)
from converge_p2p.core.governance.proofs import (
    Invitation,
    Vouch,
    make_invitation,
    make_vouch,
    prove_invitation,
    prove_vouches,
    read_invitation_use,
    read_vouches,
)
from converge_p2p.core.identity import Identity, fingerprint
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, PoolSpec
from converge_p2p.core.oplog.bodies import JoinBody, LeaveBody
from converge_p2p.core.oplog.motions import OpinionBody, move_change
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import AgentId, PoolId, PublicKey, TaskId

POOL, OTHER_POOL = PoolId(b"p" * 32), PoolId(b"o" * 32)
SECRET = b"i" * 32


def person(number: int) -> Identity:
    return Identity.from_seed(bytes([number]) * 32)


ELECTORS = tuple(person(number) for number in range(1, 5))
CREATOR, JOINER, STRANGER = person(9), person(20), person(21)


def spec(kind: AdmissionKind, **terms: Any) -> PoolSpec:
    keys = tuple(sorted(elector.public_key for elector in ELECTORS))
    return PoolSpec("p", b"n" * 16, GovernanceKind.DEMOCRATIC, keys, admission=kind, **terms)


def context(proof: bytes, joiner: Identity = JOINER, **changed: Any) -> AdmissionContext:
    electors = frozenset(elector.public_key for elector in ELECTORS)
    made = AdmissionContext(POOL, 3, electors, CREATOR.public_key, joiner.public_key, proof)
    return replace(made, **changed)


def let_in(kind: AdmissionKind, proof: bytes, joiner: Identity = JOINER, need: int = 0, **changed: Any) -> bool:
    return admits(spec(kind, admission_need=need), joiner.public_key, context(proof, joiner, **changed))


def invitation(issuer: Identity = ELECTORS[0], **terms: Any) -> Invitation:
    return make_invitation(issuer, POOL, **({"secret": SECRET, "until_epoch": 5} | terms))


def invited(joiner: Identity = JOINER, **terms: Any) -> bytes:
    return prove_invitation(invitation(**terms), joiner.public_key)


# ------------------------------------------------------------ invitations


@pytest.mark.parametrize("issuer", [ELECTORS[0], ELECTORS[3], CREATOR])
def test_an_elector_or_the_creator_invites(issuer: Identity) -> None:
    assert let_in(AdmissionKind.TOKEN, invited(issuer=issuer))


def test_nobody_else_invites_and_an_elector_only_as_long_as_it_is_one() -> None:
    assert not let_in(AdmissionKind.TOKEN, invited(issuer=STRANGER))
    assert not let_in(AdmissionKind.TOKEN, invited(), electors=frozenset({ELECTORS[1].public_key}))
    assert not let_in(AdmissionKind.TOKEN, invited(issuer=CREATOR), creator=None)


def test_an_invitation_ends_with_its_epoch() -> None:
    assert let_in(AdmissionKind.TOKEN, invited(), epoch=5)
    assert not let_in(AdmissionKind.TOKEN, invited(), epoch=6)


def test_a_proof_is_worth_nothing_to_somebody_else_who_reads_it() -> None:
    proof = invited(JOINER)
    assert let_in(AdmissionKind.TOKEN, proof, JOINER)
    assert not let_in(AdmissionKind.TOKEN, proof, STRANGER)
    assert SECRET not in proof
    # and who reads a proof of an invitation without a name cannot pass it off as one with a name
    *terms, _ = decode(proof)
    assert not let_in(AdmissionKind.TOKEN, encode([*terms, b""]), STRANGER)


def test_an_invitation_is_for_one_pool() -> None:
    assert not let_in(AdmissionKind.TOKEN, invited(), pool=OTHER_POOL)


def test_an_invitation_by_name_admits_that_agent_and_no_other() -> None:
    named = invitation(secret=b"", joiner=JOINER.public_key)
    assert named.named
    proof = prove_invitation(named, JOINER.public_key)
    assert let_in(AdmissionKind.TOKEN, proof, JOINER)
    assert not let_in(AdmissionKind.TOKEN, proof, STRANGER)
    with pytest.raises(LocalError, match="another agent"):
        prove_invitation(named, STRANGER.public_key)


@pytest.mark.parametrize("index", range(7))
def test_no_field_of_a_proof_can_be_changed(index: int) -> None:
    fields = decode(invited())
    match fields[index]:
        case bytes(old):
            fields[index] = bytes([old[0] ^ 1]) + old[1:]
        case int(old):
            fields[index] = old + 1
        case str(old):
            fields[index] = old + "!"
    assert not let_in(AdmissionKind.TOKEN, encode(fields))


def test_honest_nodes_do_not_use_an_expired_invitation_and_the_log_does_not_ask() -> None:
    short = invitation(expires_ms=1000)
    assert let_in(AdmissionKind.TOKEN, prove_invitation(short, JOINER.public_key, now_ms=999))
    with pytest.raises(LocalError, match="expired"):
        prove_invitation(short, JOINER.public_key, now_ms=1000)
    assert not invitation().expired(2**60)


def test_an_invitation_survives_its_bytes_and_never_shows_its_secret() -> None:
    for made in (invitation(role="reviewer", expires_ms=7), invitation(secret=b"", joiner=JOINER.public_key)):
        again = Invitation.from_bytes(made.to_bytes())
        assert again == made
        assert SECRET.hex() not in repr(again)
        assert repr(SECRET)[2:-1] not in repr(again)


def test_a_forged_invitation_is_refused_when_it_is_read() -> None:
    made = invitation()
    for forged in (
        replace(made, issuer=STRANGER.public_key),
        replace(made, pool=OTHER_POOL),
        replace(made, until_epoch=6),
        replace(made, secret=b"j" * 32),
    ):
        with pytest.raises(SignatureError):
            Invitation.from_bytes(forged.to_bytes())


@pytest.mark.parametrize(
    "terms",
    [
        {"joiner": JOINER.public_key},
        {"secret": b""},
        {"secret": b"short"},
        {"until_epoch": -1},
        {"until_epoch": 2**53},
        {"expires_ms": -1},
        {"role": "r" * (limits.NAME_BYTES_MAX + 1)},
        {"secret": b"", "joiner": PublicKey(b"short")},
    ],
)
def test_an_invitation_out_of_bounds_is_not_made(terms: dict[str, Any]) -> None:
    with pytest.raises(LocalError):
        invitation(**terms)


# ------------------------------------------------------------ vouches


def vouched(*electors: Identity, joiner: Identity = JOINER, until_epoch: int = 5) -> bytes:
    return prove_vouches(make_vouch(elector, POOL, joiner.public_key, until_epoch=until_epoch) for elector in electors)


@pytest.mark.parametrize(("need", "shown", "admitted"), [(1, 1, True), (2, 1, False), (2, 2, True), (2, 4, True)])
def test_enough_electors_vouch(need: int, shown: int, *, admitted: bool) -> None:
    assert let_in(AdmissionKind.VOUCHED, vouched(*ELECTORS[:shown]), need=need) == admitted


def test_only_electors_count_and_a_creator_is_not_one_of_them() -> None:
    assert not let_in(AdmissionKind.VOUCHED, vouched(ELECTORS[0], STRANGER, CREATOR), need=2)
    assert let_in(AdmissionKind.VOUCHED, vouched(ELECTORS[0], STRANGER, ELECTORS[1]), need=2)


def test_a_vouch_is_for_one_joiner_one_pool_and_some_epochs() -> None:
    proof = vouched(*ELECTORS[:2])
    assert not let_in(AdmissionKind.VOUCHED, proof, STRANGER, need=2)
    assert not let_in(AdmissionKind.VOUCHED, proof, need=2, pool=OTHER_POOL)
    assert let_in(AdmissionKind.VOUCHED, proof, need=2, epoch=5)
    assert not let_in(AdmissionKind.VOUCHED, proof, need=2, epoch=6)


def test_a_single_false_vouch_spoils_the_proof() -> None:
    good, bad = (make_vouch(elector, POOL, JOINER.public_key, until_epoch=5) for elector in ELECTORS[:2])
    assert not let_in(AdmissionKind.VOUCHED, prove_vouches([good, replace(bad, until_epoch=6)]), need=1)


def test_the_longer_vouch_of_an_elector_is_shown() -> None:
    short, long = (make_vouch(ELECTORS[0], POOL, JOINER.public_key, until_epoch=end) for end in (4, 9))
    for order in ((short, long), (long, short)):
        assert read_vouches(prove_vouches(order)) == (long,)
    assert Vouch.from_bytes(long.to_bytes()) == long


def test_the_largest_proof_fits_a_join() -> None:
    everybody = [person(number) for number in range(1, limits.ADMISSION_NEED_MAX + 1)]
    proof = vouched(*everybody, until_epoch=limits.SEQ_MAX)
    assert len(proof) <= limits.ADMISSION_PROOF_BYTES_MAX
    assert len(read_vouches(proof)) == limits.ADMISSION_NEED_MAX
    with pytest.raises(LimitExceeded):
        vouched(*everybody, person(99))
    with pytest.raises(LocalError):
        make_vouch(ELECTORS[0], POOL, JOINER.public_key, until_epoch=-1)


# ------------------------------------------------------------ hostile bytes


VOUCH = make_vouch(ELECTORS[0], POOL, JOINER.public_key, until_epoch=5)
VOUCH_PLAIN = [VOUCH.elector, VOUCH.until_epoch, VOUCH.signature]


@pytest.mark.parametrize(
    "plain",
    [
        None, 7, [], {}, [VOUCH_PLAIN, VOUCH_PLAIN], [VOUCH_PLAIN[:2]], [[*VOUCH_PLAIN, 0]],
        [[VOUCH.elector, True, VOUCH.signature]], [[VOUCH.elector, -1, VOUCH.signature]],
        [[VOUCH.elector, 2**53, VOUCH.signature]], [[b"", 5, VOUCH.signature]], [[VOUCH.elector, 5, b""]],
        [VOUCH_PLAIN] * 32, [[b"\2" * 32, 5, bytes(64)], [b"\1" * 32, 5, bytes(64)]],
    ],
)  # fmt: skip
def test_vouches_of_another_shape_are_a_codec_error_and_admit_nobody(plain: Any) -> None:
    with pytest.raises(CodecError):
        read_vouches(encode(plain))
    assert not let_in(AdmissionKind.VOUCHED, encode(plain), need=1)


@given(st.sampled_from(("invitation", "use", "vouches", "vouch")), st.data())
@settings(max_examples=300, deadline=None)
def test_bytes_that_were_tampered_with_are_an_error_of_ours_and_never_admit(what: str, data: st.DataObject) -> None:
    genuine, read = _READERS[what]
    at = data.draw(st.integers(0, len(genuine) - 1))
    false = data.draw(
        st.just(genuine[:at])
        | st.binary(max_size=4).map(lambda junk: genuine[:at] + junk + genuine[at:])
        | st.integers(1, 255).map(lambda bit: genuine[:at] + bytes([genuine[at] ^ bit]) + genuine[at + 1 :])
    )
    if false == genuine:
        return
    try:
        read(false)
    except (CodecError, SignatureError):
        pass
    if what == "use":
        assert not let_in(AdmissionKind.TOKEN, false)
    if what == "vouches":
        assert not let_in(AdmissionKind.VOUCHED, false, need=2)


_READERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "invitation": (invitation().to_bytes(), Invitation.from_bytes),
    "use": (invited(), lambda proof: read_invitation_use(proof, POOL)),
    "vouches": (vouched(*ELECTORS[:2]), read_vouches),
    "vouch": (VOUCH.to_bytes(), Vouch.from_bytes),
}


@pytest.mark.parametrize("kind", [AdmissionKind.TOKEN, AdmissionKind.VOUCHED])
@pytest.mark.parametrize("proof", [b"", b"\x81" * 5000, b"\xd8\x1c\x81\xd8\x1d\x00", bytes(5000), encode([b"x" * 900])])
def test_garbage_admits_nobody(kind: AdmissionKind, proof: bytes) -> None:
    assert not let_in(kind, proof, need=1)


def test_proofs_of_one_kind_are_none_of_the_other() -> None:
    assert not let_in(AdmissionKind.TOKEN, vouched(*ELECTORS[:2]))
    assert not let_in(AdmissionKind.VOUCHED, invited(), need=1)


# ------------------------------------------------------------ own rules, and terms that do not fit each other


@pytest.fixture
def named_rule() -> Iterator[str]:
    yield "tests/rule"
    forget_admission("tests/rule")


def test_an_own_rule_is_asked_with_the_agent_and_everything_the_join_shows(named_rule: str) -> None:
    asked: list[tuple[AgentId, AdmissionContext]] = []

    def can_admit(agent: AgentId, shown: AdmissionContext) -> bool:
        asked.append((agent, shown))
        return shown.proof == b"please"

    register_admission(named_rule, can_admit)
    register_admission(named_rule, can_admit)
    terms = spec(AdmissionKind.CUSTOM, admission_custom=named_rule)
    assert admits(terms, JOINER.public_key, context(b"please"))
    assert not admits(terms, JOINER.public_key, context(b"now"))
    assert asked[0] == (fingerprint(JOINER.public_key), context(b"please"))
    with pytest.raises(Conflict, match="another"):
        register_admission(named_rule, lambda *_: True)


@pytest.mark.parametrize("answer", [1, "yes", None, ZeroDivisionError])
def test_an_own_rule_that_fails_or_says_anything_but_true_admits_nobody(named_rule: str, answer: Any) -> None:
    def can_admit(*_: Any) -> bool:
        if isinstance(answer, type):
            raise answer
        return answer  # type: ignore[no-any-return]

    register_admission(named_rule, can_admit)
    assert not admits(spec(AdmissionKind.CUSTOM, admission_custom=named_rule), JOINER.public_key, context(b""))


def test_a_rule_that_is_not_registered_is_a_clear_error() -> None:
    terms = spec(AdmissionKind.CUSTOM, admission_custom="tests/unknown")
    with pytest.raises(UnknownAdmission, match="tests/unknown") as caught:
        admits(terms, JOINER.public_key, context(b""))
    assert "register_admission" in caught.value.hint
    with pytest.raises(UnknownAdmission):
        check_admission(terms)
    for name in ("", "n" * (limits.NAME_BYTES_MAX + 1)):
        with pytest.raises(LocalError):
            register_admission(name, lambda *_: True)


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        (AdmissionKind.OPEN, {"whitelist": (JOINER.public_key,)}),
        (AdmissionKind.TOKEN, {"admission_need": 1}),
        (AdmissionKind.VOUCHED, {}),
        (AdmissionKind.VOUCHED, {"admission_need": 5}),
        (AdmissionKind.OPEN, {"admission_custom": "rule"}),
        (AdmissionKind.CUSTOM, {}),
    ],
)
def test_terms_of_admission_that_contradict_each_other_are_refused(kind: AdmissionKind, terms: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        check_admission(spec(kind, **terms))


@pytest.mark.parametrize("kind", [AdmissionKind.TOKEN, AdmissionKind.VOUCHED, AdmissionKind.CUSTOM])
def test_where_a_proof_is_asked_for_a_key_alone_is_none(kind: AdmissionKind, named_rule: str) -> None:
    register_admission(named_rule, lambda *_: True)
    terms = spec(kind, admission_custom=named_rule)
    assert not judges_key(terms)
    assert not admits(terms, JOINER.public_key)


# ------------------------------------------------------------ in a pool


def token_pool() -> Pool:
    return Pool(electors=3, workers=2, admission=AdmissionKind.TOKEN)


def proof_for(pool: Pool, number: int, until_epoch: int = 0) -> bytes:
    letter = make_invitation(pool.electors[0].identity, pool.id, secret=SECRET, until_epoch=until_epoch)
    return prove_invitation(letter, pool.workers[number].key)


def fresh(pool: Pool, number: int) -> None:
    """Undo the join that the kit signed."""
    worker = pool.workers[number]
    worker.seq, worker.prev = 0, None


def test_a_chain_begins_with_a_join_whose_proof_admits() -> None:
    pool, replica = token_pool(), token_pool().replica()
    fresh(pool, 0)
    own = pool.workers[0].sign(JoinBody(("gpu",), proof_for(pool, 0)))
    assert rejected(feed(replica, [pool.genesis, own, pool.joins[1]])) == ["not_member"]
    assert replica.view.members.has(pool.workers[0].key)
    assert not replica.view.members.has(pool.workers[1].key)


def test_what_follows_a_join_that_is_not_here_yet_waits_and_counts_then() -> None:
    pool, replica = token_pool(), token_pool().replica()
    fresh(pool, 0)
    worker = pool.workers[0]
    own, work = worker.sign(JoinBody((), proof_for(pool, 0))), claim(worker, TaskId(b"t" * 32))
    assert not rejected(feed(replica, [pool.genesis, work]))
    assert not replica.view.registers
    feed(replica, [own])
    assert work.id in replica.view.registers[TaskId(b"t" * 32)].claims


def test_a_member_declares_more_without_a_new_proof_and_comes_back_only_with_one() -> None:
    pool, replica = token_pool(), token_pool().replica()
    fresh(pool, 0)
    worker = pool.workers[0]
    feed(replica, [pool.genesis, worker.sign(JoinBody((), proof_for(pool, 0))), worker.sign(JoinBody(("gpu",)))])
    assert replica.view.members.capabilities(worker.key) == ("gpu",)
    feed(replica, [worker.sign(LeaveBody()), worker.sign(JoinBody(("gpu",)))])
    assert not replica.view.members.has(worker.key)
    feed(replica, [worker.sign(JoinBody((), proof_for(pool, 0)))])
    assert replica.view.members.has(worker.key)


def test_an_own_join_without_a_proof_is_refused_before_it_is_signed() -> None:
    pool = token_pool()
    replica = Replica(pool.workers[0].identity, pool.id)
    feed(replica, [pool.genesis])
    with pytest.raises(NotAuthorised):
        replica.handle(ev.Join((), proof_for(pool, 1)), now())
    settle_writes(replica, replica.handle(ev.Join((), proof_for(pool, 0)), now()))
    assert replica.view.members.has(pool.workers[0].key)
    with pytest.raises(LimitExceeded):
        replica.handle(ev.Join((), bytes(limits.ADMISSION_PROOF_BYTES_MAX + 1)), now())


def test_a_pool_whose_rule_is_unknown_here_is_not_taken_part_in_and_nobody_is_to_blame() -> None:
    pool = Pool(admission=AdmissionKind.CUSTOM, admission_custom="tests/unknown")
    replica = pool.replica()
    assert rejected(feed(replica, [pool.genesis])) == ["unknown_admission"]
    assert not replica.ready


def test_terms_with_an_admission_that_contradicts_itself_found_no_pool() -> None:
    pool = Pool(admission=AdmissionKind.TOKEN, admission_need=1)
    assert rejected(feed(pool.replica(), [pool.genesis])) == ["bad_genesis"]


def test_a_motion_for_such_terms_or_for_a_rule_that_cannot_be_judged_here_is_void() -> None:
    pool = Pool()
    replica = pool.replica()
    bad = pool.workers[0].sign(move_change(terms=replace(pool.spec, admission_need=1)))
    strange = replace(pool.spec, admission=AdmissionKind.CUSTOM, admission_custom="tests/unknown")
    unknown = pool.workers[0].sign(move_change(terms=strange))
    votes = [elector.sign(OpinionBody(motion.id, 1)) for elector in pool.electors for motion in (bad, unknown)]
    feed(replica, [*pool.base, bad, unknown, *votes])
    assert not replica.view.motions.carried(bad.id)
    assert not replica.view.motions.carried(unknown.id)
