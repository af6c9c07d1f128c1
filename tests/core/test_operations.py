"""Operations: one encoding of each body, and a named reason for everything that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Pool, feed, now, rejected

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, LimitExceeded, RemoteViolation
from converge_p2p.core.identity import SIGNATURE_BYTES
from converge_p2p.core.model.pool import AdmissionKind, GovernanceKind, PoolPolicy, PoolSpec
from converge_p2p.core.model.secrecy import exchange_public
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskValue
from converge_p2p.core.oplog.bodies import (
    Ballot,
    Body,
    ClaimBody,
    Genesis,
    JoinBody,
    Kind,
    LeaveBody,
    Lock,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    Token,
    VoteBody,
    decode_body,
    encode_body,
    kind_of,
)
from converge_p2p.core.oplog.checkpoints import AttestBody, CheckpointBody
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, KeyEntry, PrekeyBody
from converge_p2p.core.oplog.motions import OpinionBody, dispute_result, move_change
from converge_p2p.core.oplog.operation import (
    OPERATION_TAG,
    author_of,
    decode_operation,
    merge_hlc,
    next_hlc,
    operation_id,
    sign_operation,
)
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.replica.events import Received
from converge_p2p.core.types import OperationId, PoolId, PublicKey, TaskId, ValueHash

hashes = st.binary(min_size=32, max_size=32)
texts = st.text(max_size=20)
rounds = st.integers(0, limits.ROUND_MAX)
names = st.lists(texts, max_size=4, unique=True).map(lambda items: tuple(sorted(items)))
keys = st.lists(hashes, min_size=1, max_size=5, unique=True).map(lambda items: tuple(sorted(map(PublicKey, items))))
policies = st.builds(
    PoolPolicy,
    st.integers(0, limits.GRANT_TIMER_MS_MAX),
    st.integers(10, limits.GRANT_TIMER_MS_MAX),
    st.integers(limits.CLAIM_TTL_MS_MIN, limits.CLAIM_TTL_MS_MAX),
    st.integers(0, limits.RETRIES_MAX),
    st.booleans(),
)
pools = st.builds(
    PoolSpec,
    name=st.text(min_size=1, max_size=20),
    nonce=st.binary(min_size=16, max_size=16),
    governance=st.just(GovernanceKind.DEMOCRATIC),
    electors=keys,
    admission=st.just(AdmissionKind.WHITELIST),
    whitelist=keys,
    policy=policies,
)
tasks = st.builds(
    TaskSpec,
    key=st.binary(min_size=1, max_size=limits.IDEMPOTENCY_KEY_BYTES_MAX),
    objective=st.text(min_size=1, max_size=20),
    inputs=st.binary(max_size=50),
    required_capabilities=names,
    priority=st.integers(-(2**31), 2**31 - 1),
    claim_ttl_ms=st.just(0) | st.integers(limits.CLAIM_TTL_MS_MIN, limits.CLAIM_TTL_MS_MAX),
    max_retries=st.none() | st.integers(0, limits.RETRIES_MAX),
    deadline_ms=st.integers(0, 2**53 - 1),
    evaluator=st.just("")
    | hashes.map(lambda name: f"agent:{name.hex()}")
    | st.text(min_size=1, max_size=9).map("rule:{}".format),
)
cuts = st.lists(
    st.builds(Cut, hashes.map(PublicKey), st.integers(1, 99), hashes.map(OperationId)),
    max_size=3,
    unique_by=lambda cut: cut.author,
).map(lambda held: tuple(sorted(held)))
locks = st.builds(Lock, st.builds(Token, st.integers(0, 9), rounds), hashes.map(ValueHash))
task_ids = hashes.map(TaskId)
ballots = st.one_of(
    st.builds(
        Ballot,
        st.just(Phase.GRANT),
        task_ids,
        st.integers(1, 9),
        hashes,
        st.none() | locks,
        st.none() | st.just(0),
        cuts,
    ),
    st.builds(
        Ballot,
        st.sampled_from([Phase.ENDORSE, Phase.ACCEPT]),
        task_ids,
        rounds,
        hashes,
        st.none(),
        st.none(),
        st.just(()),
    ),
)
values = st.builds(TaskValue, st.sampled_from(Outcome), hashes.map(PublicKey), st.binary(max_size=50))
entries = st.lists(
    st.builds(KeyEntry, hashes.map(PublicKey), st.binary(min_size=80, max_size=80)), min_size=1, max_size=4
)
offers = st.builds(
    ContentKeyBody,
    st.integers(0, limits.SEQ_MAX),
    st.integers(0, limits.CONTENT_GENERATION_MAX),
    hashes,
    entries.map(lambda items: tuple(sorted({item.member: item for item in items}.values()))),
)
bodies: st.SearchStrategy[Body] = st.one_of(
    offers,
    hashes.map(lambda secret: PrekeyBody(exchange_public(secret))),
    pools.map(Genesis),
    st.builds(JoinBody, names, st.binary(max_size=20)),
    st.just(LeaveBody()),
    tasks.map(SubmitBody),
    st.builds(
        ClaimBody,
        hashes.map(TaskId),
        st.sampled_from([Purpose.WORK, Purpose.CANCEL, Purpose.FAIL]),
        st.integers(-(2**53), 2**53),
        texts,
    ),
    st.builds(ClaimBody, hashes.map(TaskId), st.just(Purpose.EPOCH), st.just(0), texts, hashes),
    st.builds(ReleaseBody, hashes.map(TaskId), rounds | st.just(-1), st.booleans(), texts),
    st.builds(
        ReportBody,
        hashes.map(TaskId),
        rounds,
        values,
        st.lists(hashes.map(OperationId), max_size=4, unique=True).map(tuple),
    ),
    st.lists(ballots, min_size=1, max_size=4, unique_by=lambda item: item[:3]).map(tuple).map(VoteBody),
    st.builds(VerdictBody, hashes.map(TaskId), hashes.map(ValueHash), st.booleans(), texts),
    st.builds(dispute_result, hashes.map(TaskId), texts),
    st.builds(move_change, st.just(()), pools, texts),
    st.builds(OpinionBody, hashes.map(OperationId), st.integers(0, limits.MOTION_OPTIONS_MAX - 1)),
    st.builds(
        CheckpointBody,
        st.integers(1, 2**50),
        hashes,
        cuts.filter(bool),
        st.sets(hashes.map(OperationId), max_size=3).map(lambda items: tuple(sorted(items))),
        hashes,
    ),
    st.builds(AttestBody, hashes.map(OperationId), hashes),
)


@given(bodies)
@settings(max_examples=300, deadline=None)
def test_every_body_survives_its_bytes(body: Body) -> None:
    assert decode_body(kind_of(body), decode(encode(encode_body(body)))) == body


@pytest.mark.no_cover
@given(bodies, st.data())
@settings(max_examples=300, deadline=None)
def test_a_body_of_another_shape_is_a_codec_error(body: Body, data: st.DataObject) -> None:
    plain = list(encode_body(body))
    junk = data.draw(st.none() | st.integers() | st.binary(max_size=3) | st.booleans() | st.just([[]]) | texts)
    if plain:
        plain[data.draw(st.integers(0, len(plain) - 1))] = junk
    else:
        plain.append(junk)
    try:
        again = decode_body(kind_of(body), plain)
    except CodecError:
        return
    # what is accepted has this one encoding
    assert encode(encode_body(again)) == encode(plain)


@pytest.fixture
def pool() -> Pool:
    return Pool()


def refused(pool: Pool, data: bytes) -> str:
    with pytest.raises(RemoteViolation) as caught:
        decode_operation(data, pool.id)
    return caught.value.reason


def resigned(author: Author, fields: list[object]) -> bytes:
    payload = encode(fields)
    return author.identity.sign(OPERATION_TAG, payload) + payload


def fields_of(pool: Pool) -> list[object]:
    return list(decode(pool.genesis.signed[SIGNATURE_BYTES:]))


def test_an_operation_survives_its_bytes(pool: Pool) -> None:
    for operation in pool.base:
        assert decode_operation(operation.signed, pool.id) == operation
        assert operation_id(operation.signed) == operation.id
        assert author_of(operation.signed) == operation.author


def test_the_id_does_not_depend_on_the_signature(pool: Pool) -> None:
    other = bytes(SIGNATURE_BYTES) + pool.genesis.signed[SIGNATURE_BYTES:]
    assert operation_id(other) == pool.genesis.id


def test_every_changed_byte_is_refused(pool: Pool) -> None:
    data = pool.joins[0].signed
    for index in range(len(data)):
        assert refused(pool, data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]) in (
            "bad_signature", "bad_encoding", "wrong_pool", "bad_version",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("index", "value", "reason"),
    [
        (0, 2, "bad_version"),
        (0, True, "bad_version"),
        (1, bytes(32), "wrong_pool"),
        (2, b"short", "bad_encoding"),
        (3, -1, "bad_encoding"),
        (3, limits.SEQ_MAX + 1, "bad_encoding"),
        (3, 1, "bad_encoding"),
        (4, bytes(32), "bad_encoding"),
        (5, [bytes(32)] * 2, "bad_encoding"),
        (5, [b"\2" * 32, b"\1" * 32], "bad_encoding"),
        (5, [bytes([n]) * 32 for n in range(9)], "bad_encoding"),
        (6, -1, "bad_encoding"),
        (6, limits.EPOCH_MAX + 1, "bad_encoding"),
        (7, 2**63, "bad_encoding"),
        (7, False, "bad_encoding"),
        (8, 99, "bad_encoding"),
        (8, True, "bad_encoding"),
        (9, None, "bad_encoding"),
    ],
)
def test_a_field_out_of_bounds_is_refused_though_signed(pool: Pool, index: int, value: object, reason: str) -> None:
    fields = fields_of(pool)
    fields[index] = value
    assert refused(pool, resigned(pool.people[0], fields)) == reason


def test_other_than_canonical_bytes_are_refused_though_signed(pool: Pool) -> None:
    payload = pool.genesis.signed[SIGNATURE_BYTES:]
    assert payload[:2] == b"\x8a\x01"
    longer = payload[:1] + b"\x18\x01" + payload[2:]
    assert refused(pool, pool.people[0].identity.sign(OPERATION_TAG, longer) + longer) == "bad_encoding"
    trailing = payload + b"\0"
    assert refused(pool, pool.people[0].identity.sign(OPERATION_TAG, trailing) + trailing) == "bad_encoding"


def test_a_signature_for_another_purpose_is_refused(pool: Pool) -> None:
    payload = pool.genesis.signed[SIGNATURE_BYTES:]
    assert refused(pool, pool.people[0].identity.sign("message", payload) + payload) == "bad_signature"


def test_sizes_are_bounded_on_both_sides(pool: Pool) -> None:
    assert refused(pool, bytes(limits.OPERATION_BYTES_MAX + 1)) == "too_large"
    assert refused(pool, bytes(SIGNATURE_BYTES)) == "too_large"
    many = VoteBody(tuple(Ballot(Phase.ACCEPT, TaskId(bytes(32)), number, bytes(32)) for number in range(1000)))
    with pytest.raises(LimitExceeded, match="at most"):
        sign_operation(pool.people[0].identity, pool.id, many, seq=0, prev=None, epoch=0, hlc=1)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.VOTE, []),
        (Kind.VOTE, [[0, bytes(32), 0, bytes(32), None, None]] * 2),
        (Kind.VOTE, [[0, bytes(32), n, bytes(32), None, None] for n in range(limits.BALLOTS_PER_VOTE_MAX + 1)]),
        (Kind.VOTE, [[1, bytes(32), 0, bytes(32), [0, 0, bytes(32)], None]]),
        (Kind.VOTE, [[3, bytes(32), 0, bytes(32), None, None]]),
        (Kind.VOTE, [[0, bytes(32), limits.ROUND_MAX + 1, bytes(32), None, None]]),
        (Kind.VOTE, [[0, bytes(32), 1, bytes(32), None, 1]]),
        (Kind.VOTE, [[2, bytes(32), 1, bytes(32), None, 0]]),
        (Kind.REPORT, [bytes(32), 0, 0, bytes(32), b"", [bytes(32)] * 2]),
        (Kind.REPORT, [bytes(32), 0, 3, bytes(32), b"", []]),
        (Kind.REPORT, [bytes(32), 0, 0, bytes(32), bytes(limits.RESULT_BYTES_MAX + 1), []]),
        (Kind.REPORT, [bytes(32), 0, 0, bytes(32), b"", ["text"]]),
        (Kind.RELEASE, [bytes(32), -2, False, ""]),
        (Kind.CLAIM, [bytes(32), 3, 0, ""]),
        (Kind.CLAIM, [bytes(31), 0, 0, ""]),
        (Kind.CLAIM, [bytes(32), 0, 0, "x" * (limits.TEXT_BYTES_MAX + 1)]),
        (Kind.JOIN, [["b", "a"], b""]),
        (Kind.JOIN, [["a", "a"], b""]),
        (Kind.LEAVE, [1]),
    ],
)
def test_a_body_out_of_bounds_is_refused(kind: Kind, body: list[object]) -> None:
    with pytest.raises(CodecError):
        decode_body(kind, body)


@pytest.mark.parametrize("grants", [[1], [None], [[]], [-5], [10**9]])
def test_grants_that_are_not_bytes_are_a_codec_error_and_cost_nothing(grants: list[object]) -> None:
    with pytest.raises(CodecError):
        decode_body(Kind.REPORT, [bytes(32), 0, 0, bytes(32), b"", grants])


def test_unknown_fields_do_not_reach_the_fold(pool: Pool) -> None:
    replica = pool.replica()
    fields = fields_of(pool)
    fields[8] = 77
    effects = feed(replica, [pool.genesis])
    assert not rejected(effects)
    before = replica.view.state_bytes()
    assert rejected(replica.handle(Received((resigned(pool.people[0], fields),)), now())) == ["bad_encoding"]
    assert replica.view.state_bytes() == before


def test_the_clock_goes_on_whatever_the_wall_says() -> None:
    assert next_hlc(5, 0) == 5 << 16
    assert next_hlc(5, 9 << 16) == (9 << 16) + 1
    assert merge_hlc(1000, 1, 2000 << 16) == 2000 << 16
    far = (1000 + 5 * 60 * 1000 + 1) << 16
    assert merge_hlc(1000, 1, far) == 1


def test_a_pool_id_is_not_another_pools() -> None:
    assert Pool(electors=3).id != Pool(electors=5).id
    assert isinstance(Pool().id, bytes)
    assert PoolId(Pool().id) == Pool().id
