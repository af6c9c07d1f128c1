"""Contents of a private pool's operations: what is sealed, what stays clear, and what a reader refuses."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Pool, claim, feed, report, value_of
from secrecy_kit import secret

from converge_p2p.core import limits
from converge_p2p.core.codec import encode, encode_value
from converge_p2p.core.errors import CodecError, LimitExceeded, LocalError, NotFound, SignatureError
from converge_p2p.core.model.keyring import Keyring
from converge_p2p.core.model.secrecy import ContentKey, seal_content
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, TaskValue, task_id
from converge_p2p.core.oplog.bodies import (
    Body,
    ClaimBody,
    JoinBody,
    Kind,
    LeaveBody,
    Phase,
    Purpose,
    ReleaseBody,
    ReportBody,
    SubmitBody,
    decode_body,
    encode_body,
    kind_of,
)
from converge_p2p.core.oplog.sealing import (
    SEALED_INPUT_BYTES_MAX,
    SEALED_OBJECTIVE,
    SEALED_RESULT_BYTES_MAX,
    SEALED_TEXT_BYTES_MAX,
    ContentSealer,
    check_sealed,
    cut_reason,
)
from converge_p2p.core.types import PublicKey, TaskId, ValueHash

POOL = Pool()
AUTHOR, READER, STRANGER = POOL.workers[0], POOL.electors[0], POOL.electors[1]
KEY = ContentKey(POOL.id, 2, 1, secret(7))
TASK = TaskId(b"t" * 32)
WORDS = "the secret plan"
SPEC = TaskSpec(
    b"k" * 32,
    WORDS,
    encode_value({WORDS: WORDS}),
    WORDS.encode(),
    ("gpu",),
    3,
    1000,
    2,
    60_000,
    9,
    1,
    1,
    "agent:" + "ab" * 32,
)


def sealer(author: Author = READER, *keys: ContentKey) -> ContentSealer:
    ring = Keyring(author.identity, POOL.id)
    for key in keys or (KEY,):
        ring.add(key)
    return ContentSealer(ring)


def value(result: Any = WORDS, outcome: Outcome = Outcome.COMPLETED) -> TaskValue:
    return TaskValue(outcome, AUTHOR.key, encode_value(result))


texts = st.text(max_size=80)

CLAIMED = (Purpose.WORK, Purpose.CANCEL, Purpose.FAIL)
bodies: st.SearchStrategy[Body] = st.one_of(
    st.builds(
        TaskSpec,
        key=st.binary(min_size=1, max_size=40),
        objective=st.text(min_size=1, max_size=20),
        inputs=st.one_of(texts, st.integers(-9, 9), st.lists(texts)).map(encode_value),
        topic=st.binary(max_size=20),
        priority=st.integers(-9, 9),
        evaluator=st.sampled_from(["", "rule:x", "agent:" + "0" * 64]),
    ).map(SubmitBody),
    st.builds(ClaimBody, st.just(TASK), st.sampled_from(CLAIMED), st.integers(-9, 9), texts),
    st.builds(ReleaseBody, st.just(TASK), st.integers(-1, 9), st.booleans(), texts),
    st.builds(lambda result, outcome: ReportBody(TASK, 0, value(result, outcome), ()), texts, st.sampled_from(Outcome)),
    st.sampled_from([JoinBody(("gpu",), b"proof"), LeaveBody()]),
)


@given(bodies, st.integers(0, limits.SEQ_MAX))
@settings(max_examples=150, deadline=None)
def test_a_sealed_body_is_a_body_of_its_kind_and_opens_for_every_member(body: Body, seq: int) -> None:
    sealed = sealer(AUTHOR).seal_body(body, AUTHOR.key, seq, KEY)
    assert decode_body(kind_of(body), encode_body(sealed)) == sealed
    check_sealed(sealed)
    assert sealer(READER).open_body(sealed, AUTHOR.key, seq) == body


@pytest.mark.parametrize(
    "body",
    [SubmitBody(SPEC), ClaimBody(TASK, Purpose.CANCEL, 7, WORDS), ReleaseBody(TASK, 3, True, WORDS),
     ReportBody(TASK, 3, value({WORDS: WORDS}), ())],
    ids=lambda body: type(body).__name__,
)  # fmt: skip
def test_contents_are_hidden_and_what_electors_judge_by_is_not(body: Body) -> None:
    with pytest.raises(CodecError, match="clear"):
        check_sealed(body)
    sealed = sealer().seal_body(body, AUTHOR.key, 5, KEY)
    data = encode(encode_body(sealed))
    assert WORDS.encode() not in data
    assert encode_value(WORDS) not in data
    hidden = {"objective", "inputs", "topic", "reason", "result"}
    for before, after in parts(body, sealed):
        for field in fields(before):
            if field.name not in hidden and field.name not in ("spec", "value"):
                assert getattr(before, field.name) == getattr(after, field.name)


def parts(body: Any, sealed: Any) -> list[tuple[Any, Any]]:
    inner = [(getattr(body, name), getattr(sealed, name)) for name in ("spec", "value") if hasattr(body, name)]
    return [(body, sealed), *inner]


def test_an_empty_reason_stays_empty() -> None:
    for body in (ClaimBody(TASK), ReleaseBody(TASK, 0)):
        assert sealer().seal_body(body, AUTHOR.key, 5, KEY) == body
        assert sealer().open_body(body, AUTHOR.key, 5) == body


# ---------------------------------------------------------------- moved, changed, unknown


def test_a_reason_opens_only_in_the_operation_it_was_written_for() -> None:
    sealed = sealer().seal_body(ReleaseBody(TASK, 3, True, WORDS), AUTHOR.key, 5, KEY)
    assert isinstance(sealed, ReleaseBody)
    moved = [
        (sealed, STRANGER.key, 5),
        (sealed, AUTHOR.key, 6),
        (ClaimBody(TASK, Purpose.CANCEL, 0, sealed.reason), AUTHOR.key, 5),
    ]
    for body, author, seq in moved:
        with pytest.raises(SignatureError):
            sealer().open_body(body, author, seq)


def test_a_task_opens_only_under_its_author_and_key() -> None:
    sealed = sealer().seal_spec(AUTHOR.key, SPEC, KEY)
    for author, spec in ((STRANGER.key, sealed), (AUTHOR.key, replace(sealed, key=b"other"))):
        with pytest.raises(SignatureError):
            sealer().open_spec(author, spec)


def test_a_result_opens_only_for_its_task_outcome_and_worker() -> None:
    sealed = sealer().seal_value(TASK, value(), KEY)
    moved = [
        (TaskId(b"u" * 32), sealed), (TASK, replace(sealed, worker=STRANGER.key)),
        (TASK, replace(sealed, outcome=Outcome.FAILED)),
    ]  # fmt: skip
    for task, other in moved:
        with pytest.raises(SignatureError):
            sealer().open_value(task, other)


def test_whoever_was_not_given_the_key_is_told_so() -> None:
    later = ContentKey(POOL.id, 3, 0, secret(8))
    sealed = sealer(AUTHOR, later).seal_body(SubmitBody(SPEC), AUTHOR.key, 0, later)
    with pytest.raises(NotFound):
        sealer().open_body(sealed, AUTHOR.key, 0)


def test_of_two_keys_of_one_name_the_right_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContentKey, "name", property(lambda key: b"the same"))
    keys = [ContentKey(POOL.id, 2, 1, secret(number)) for number in range(3)]
    everything = sealer(READER, *keys)
    for key in keys:
        sealed = everything.seal_value(TASK, value(), key)
        assert everything.open_value(TASK, sealed) == value()
    with pytest.raises(SignatureError):
        sealer(READER, keys[0]).open_value(TASK, everything.seal_value(TASK, value(), keys[1]))


@pytest.mark.parametrize(
    "body",
    [
        SubmitBody(SPEC),
        SubmitBody(replace(SPEC, objective=SEALED_OBJECTIVE, topic=b"")),
        SubmitBody(replace(sealer().seal_spec(AUTHOR.key, SPEC, KEY), objective="shown")),
        SubmitBody(replace(sealer().seal_spec(AUTHOR.key, SPEC, KEY), topic=b"shown")),
        ReportBody(TASK, 0, value(), ()),
        ClaimBody(TASK, Purpose.CANCEL, 0, WORDS),
        ClaimBody(TASK, Purpose.CANCEL, 0, sealer().seal_text(WORDS, [4, AUTHOR.key, 5], KEY) + "="),
        ClaimBody(TASK, Purpose.CANCEL, 0, "wé"),
        ReleaseBody(TASK, 0, False, "wcHB"),
    ],
)
def test_clear_content_is_seen_without_any_key_and_never_read_as_sealed(body: Body) -> None:
    with pytest.raises(CodecError):
        check_sealed(body)
    with pytest.raises((LocalError, CodecError)):
        sealer().open_body(body, AUTHOR.key, 5)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", encode([]), encode([WORDS, b""]), encode([b"", b"", b""]),
     encode([WORDS, b"", b"", ""]), encode(["", b"", b""]),
     encode(["x" * 1025, b"", b""]), encode([WORDS, b"", bytes(1025)])],
)  # fmt: skip
def test_a_member_that_seals_nonsense_is_refused_by_name(content: bytes) -> None:
    inputs = seal_content(KEY, [int(Kind.SUBMIT), AUTHOR.key, SPEC.key], content)
    nonsense = replace(SPEC, objective=SEALED_OBJECTIVE, inputs=inputs, topic=b"")
    with pytest.raises(CodecError):
        sealer().open_spec(AUTHOR.key, nonsense)


def test_a_sealed_text_that_is_no_text_is_refused() -> None:
    ring = sealer()
    text = ring.seal_text("plain", [4, AUTHOR.key, 5], KEY)
    assert ring.open_text(text, [4, AUTHOR.key, 5]) == "plain"
    bad = urlsafe_b64encode(seal_content(KEY, [4, AUTHOR.key, 5], b"\xff")).rstrip(b"=").decode()
    with pytest.raises(CodecError):
        ring.open_text(bad, [4, AUTHOR.key, 5])


# ---------------------------------------------------------------- bounds


def test_the_largest_contents_fit_and_larger_ones_are_refused_before_they_are_encrypted() -> None:
    ring = sealer()
    result = replace(value(), result=bytes(SEALED_RESULT_BYTES_MAX))
    assert len(ring.seal_value(TASK, result, KEY).result) == limits.RESULT_BYTES_MAX
    with pytest.raises(LimitExceeded, match=str(SEALED_RESULT_BYTES_MAX)):
        ring.seal_value(TASK, replace(result, result=bytes(SEALED_RESULT_BYTES_MAX + 1)), KEY)
    text = "x" * SEALED_TEXT_BYTES_MAX
    assert len(ring.seal_text(text, [1], KEY)) == limits.TEXT_BYTES_MAX
    with pytest.raises(LimitExceeded):
        ring.seal_text(text + "x", [1], KEY)
    room = SEALED_INPUT_BYTES_MAX - len(encode([WORDS, b"", b""])) - 2
    spec = TaskSpec(b"k", WORDS, bytes(room))
    sealed = ring.seal_spec(AUTHOR.key, spec, KEY)
    assert len(sealed.inputs) == limits.TASK_INPUT_BYTES_MAX
    assert ring.open_spec(AUTHOR.key, sealed) == spec
    with pytest.raises(LimitExceeded, match=str(SEALED_INPUT_BYTES_MAX)):
        ring.seal_spec(AUTHOR.key, replace(spec, inputs=bytes(room + 1)), KEY)
    with pytest.raises(LocalError):
        ring.seal_spec(AUTHOR.key, replace(spec, objective=""), KEY)


@given(st.text(max_size=1000))
def test_a_reason_is_cut_to_what_can_be_sealed_at_a_whole_character(text: str) -> None:
    cut = cut_reason(text * 3)
    assert (text * 3).startswith(cut)
    assert len(sealer().seal_text(cut, [1], KEY).encode()) <= limits.TEXT_BYTES_MAX


# ---------------------------------------------------------------- in a pool


def test_sealing_twice_is_sealing_once_so_a_locked_value_keeps_its_hash() -> None:
    ring = sealer()
    later = ContentKey(POOL.id, 3, 0, secret(8))
    locked = ring.seal_value(TASK, value(), KEY)
    assert ring.seal_value(TASK, locked, later).hash == locked.hash
    body = ring.seal_body(ReportBody(TASK, 7, locked, ()), STRANGER.key, 9, later)
    assert isinstance(body, ReportBody)
    assert body.value.hash == locked.hash
    task = ring.seal_spec(AUTHOR.key, SPEC, KEY)
    assert ring.seal_spec(AUTHOR.key, task, later) == task
    # the same submit, retried under the same key, is the same bytes
    assert ring.seal_spec(AUTHOR.key, SPEC, KEY) == task


def test_electors_without_the_key_settle_a_sealed_result_that_members_can_read() -> None:
    pool = Pool(electors=3, workers=1)
    worker, submitter = pool.workers[0], pool.electors[0]
    key = ContentKey(pool.id, 0, 0, secret(7))
    ring = Keyring(submitter.identity, pool.id)
    ring.add(key)
    seals = ContentSealer(ring)
    spec = TaskSpec(ring.blind(b"invoice 7"), WORDS, encode_value({"a": 1}))
    submit = submitter.sign(seals.seal_body(SubmitBody(spec), submitter.key, 1, key))
    task = task_id(pool.id, submitter.key, spec.key)
    standing = claim(worker, task)
    grants = [pool.grant(who, task, 0, standing) for who in (0, 1)]
    sealed = seals.seal_value(task, value_of(worker, WORDS), key)
    reported = report(worker, task, 0, sealed, grants)
    votes = [vote for phase in (Phase.ENDORSE, Phase.ACCEPT) for vote in pool.votes(phase, task, 0, sealed.hash)]
    observer = pool.replica()
    feed(observer, [*pool.base, submit, standing, *grants, reported, *votes])
    view = observer.view.task(task)
    assert view is not None
    assert view.state is TaskState.COMPLETED
    assert view.value is not None
    assert (view.value, ValueHash(view.value.hash)) == (sealed, sealed.hash)
    assert WORDS.encode() not in b"".join(observer.log.get(one) or b"" for one in (submit.id, reported.id))
    assert seals.open_value(task, view.value) == value_of(worker, WORDS)
    assert seals.open_spec(PublicKey(submitter.key), view.spec) == spec
