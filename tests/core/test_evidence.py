"""Evidence: who cites what for which result, what a choice among results rests on, and what an elector prefers."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any

import pytest
from pool_kit import (
    Author,
    Pool,
    ballots_in,
    claim,
    feed,
    notices,
    now,
    published,
    rejected,
    report,
    settle_writes,
    signed,
    value_of,
)

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, Conflict, LimitExceeded, LocalError, NotFound, SignatureError
from converge_p2p.core.governance.custom import Choice, DisputeContext, GovernanceModel
from converge_p2p.core.governance.electorate import electorate_of
from converge_p2p.core.governance.model_check import check_model
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.keyring import Keyring
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms
from converge_p2p.core.model.secrecy import ContentKey
from converge_p2p.core.model.task import TaskState, TaskValue
from converge_p2p.core.oplog.bodies import Kind, LeaveBody, Phase, decode_body, encode_body
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.motions import OpinionBody, dispute_rivals
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.sealing import ContentSealer, check_sealed
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, TaskId, ValueHash
from converge_p2p.core.view.register import NOBODY

DIGEST = hashlib.sha256(b"a table").digest()
TASK = TaskId(b"t" * 32)
RIVALS = (ValueHash(b"a" * 32), ValueHash(b"b" * 32))


def evidence(
    author: Author, value: ValueHash, task: TaskId = TASK, *, supports: bool = True, **changed: Any
) -> Operation:
    fields = {"digest": DIGEST, "size": 7, "media": "text/csv", "summary": "a table"} | changed
    return author.sign(EvidenceBody(task, value, supports, **fields))


class Dispute:
    """An empirical pool, or another, in which two values of a task stand against each other."""

    def __init__(self, governance: GovernanceKind = GovernanceKind.EMPIRICAL, **terms: Any) -> None:
        several = governance is GovernanceKind.EMPIRICAL
        self.pool = Pool(3, 2, governance=governance, model=ModelTerms(speculative=2 if several else 0, **terms))
        self.motion = self.pool.workers[0].sign(dispute_rivals(TASK, RIVALS))
        self.base = [*self.pool.base, self.motion]

    def choice(self, elector: int, choice: int, *cited: Operation | OperationId) -> Operation:
        names = tuple(sorted(one.id if isinstance(one, Operation) else one for one in cited))
        return self.pool.electors[elector].sign(OpinionBody(self.motion.id, choice, names))

    def chosen(self, *operations: Operation) -> ValueHash | None:
        replica = self.pool.replica()
        assert not rejected(feed(replica, [*self.base, *operations]))
        return replica.view.motions.chosen(self.motion.id)


# ------------------------------------------------------------ the operation


def test_an_evidence_body_survives_a_round_trip() -> None:
    body = EvidenceBody(TASK, RIVALS[0], False, DIGEST, 0, "text/csv", "")
    assert decode_body(Kind.EVIDENCE, encode_body(body)) == body


@pytest.mark.parametrize(
    "changed",
    [
        {"digest": b"short"},
        {"size": -1},
        {"size": True},
        {"media": ""},
        {"media": "x" * (limits.NAME_BYTES_MAX + 1)},
        {"summary": "x" * (limits.TEXT_BYTES_MAX + 1)},
        {"supports": 1},
        {"task": b""},
        {"value": b"v"},
    ],
)
def test_evidence_out_of_bounds_is_refused(changed: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "task": TASK, "value": RIVALS[0], "supports": True, "digest": DIGEST, "size": 1, "media": "a", "summary": ""
    }  # fmt: skip
    assert decode_body(Kind.EVIDENCE, list(fields.values()))
    with pytest.raises(CodecError):
        decode_body(Kind.EVIDENCE, list((fields | changed).values()))


@pytest.mark.parametrize(
    "cited", [[], [b"short"], [b"b" * 32, b"a" * 32], [b"a" * 32] * 2, [bytes([n]) * 32 for n in range(9)], "ab", None]
)
def test_an_opinion_cites_some_evidence_in_order_or_says_nothing_of_it(cited: Any) -> None:
    plain: list[Any] = [b"m" * 32, 1]
    assert encode_body(decode_body(Kind.OPINION, plain)) == plain
    assert encode_body(decode_body(Kind.OPINION, [*plain, [b"a" * 32]])) == [*plain, [b"a" * 32]]
    for broken in ([*plain, cited], [*plain, [b"a" * 32], 1], plain[:1], []):
        with pytest.raises(CodecError):
            decode_body(Kind.OPINION, broken)


# ------------------------------------------------------------ a choice rests on evidence


def test_in_an_empirical_pool_a_choice_without_evidence_does_not_count() -> None:
    dispute = Dispute()
    assert dispute.chosen(*(dispute.choice(number, 0) for number in range(3))) is None


def test_in_any_other_pool_it_does() -> None:
    dispute = Dispute(GovernanceKind.DEMOCRATIC)
    assert dispute.chosen(*(dispute.choice(number, 0) for number in range(2))) == RIVALS[0]


def test_choices_count_that_rest_on_evidence_for_what_they_choose() -> None:
    dispute = Dispute()
    cited = evidence(dispute.pool.workers[1], RIVALS[1])
    assert dispute.chosen(cited, dispute.choice(0, 1, cited), dispute.choice(2, 1, cited)) == RIVALS[1]


@pytest.mark.parametrize("wrong", ["other value", "other task", "against", "unknown", "no evidence"])
def test_what_is_cited_has_to_speak_for_what_is_chosen(wrong: str) -> None:
    dispute = Dispute()
    worker = dispute.pool.workers[1]
    cited = {
        "other value": lambda: evidence(worker, RIVALS[0]),
        "other task": lambda: evidence(worker, RIVALS[1], TaskId(b"o" * 32)),
        "against": lambda: evidence(worker, RIVALS[1], supports=False),
        "unknown": lambda: evidence(worker.branch(), RIVALS[1]),
        "no evidence": lambda: dispute.motion,
    }[wrong]()
    shown = [cited] if wrong not in ("unknown", "no evidence") else []
    assert dispute.chosen(*shown, *(dispute.choice(number, 1, cited) for number in range(3))) is None


@pytest.mark.parametrize("seed", range(20))
def test_evidence_may_come_after_the_votes_that_rest_on_it_and_its_author_may_fork_or_leave(seed: int) -> None:
    dispute, rng = Dispute(), random.Random(seed)
    author = dispute.pool.workers[1]
    cited = evidence(author, RIVALS[1])
    other = author.branch()
    after = [author.sign(LeaveBody())] + ([other.sign(LeaveBody(), hlc=author.hlc + 5)] if seed % 2 else [])
    made = [*dispute.base, cited, *after, dispute.choice(0, 1, cited), dispute.choice(2, 1, cited)]
    rest = made[1:]
    rng.shuffle(rest)
    replica = dispute.pool.replica()
    feed(replica, made[:1])
    for operation in rest:
        feed(replica, [operation])
    for operation in rest:
        # a join that came late lets in what was refused before it
        feed(replica, [operation])
    assert replica.view.motions.chosen(dispute.motion.id) == RIVALS[1]


def test_a_fork_below_the_evidence_takes_no_choice_back() -> None:
    dispute = Dispute()
    author = dispute.pool.workers[1]
    other = author.branch()
    cited = evidence(author, RIVALS[1])
    votes = [dispute.choice(number, 1, cited) for number in (0, 1)]
    replica = dispute.pool.replica()
    feed(replica, [*dispute.base, cited, *votes])
    assert replica.view.motions.chosen(dispute.motion.id) == RIVALS[1]
    effects = feed(replica, [other.sign(LeaveBody())])
    assert notices(effects, ev.ForkDetected)
    assert replica.view.motions.chosen(dispute.motion.id) == RIVALS[1]
    late = dispute.pool.replica()
    feed(late, [*dispute.base, claim(other, TASK), *votes, cited])
    assert late.view.motions.chosen(dispute.motion.id) == RIVALS[1]


def test_a_choice_that_waits_for_its_evidence_is_shown_to_wait() -> None:
    dispute = Dispute()
    cited = evidence(dispute.pool.workers[1], RIVALS[1])
    vote = dispute.choice(0, 1, cited)
    replica = dispute.pool.replica()
    feed(replica, [*dispute.base, vote])
    key, motions = dispute.pool.electors[0].key, replica.view.motions
    assert motions.waits(dispute.motion.id, 0, key, 1)
    assert not motions.waits(dispute.motion.id, 0, key, 0)
    feed(replica, [cited])
    assert not motions.waits(dispute.motion.id, 0, key, 1)


# ------------------------------------------------------------ what an elector says by itself


class Live:
    """An elector's own replica of a dispute about a task that is known."""

    def __init__(self, **terms: Any) -> None:
        model = ModelTerms(weights=terms.pop("weights", ()), speculative=2, **terms)
        self.pool = Pool(3, 2, governance=GovernanceKind.EMPIRICAL, model=model)
        self.task, submit = self.pool.submit()
        self.claims = [claim(worker, self.task) for worker in self.pool.workers]
        self.values = [value_of(worker, f"of {number}") for number, worker in enumerate(self.pool.workers)]
        self.base = [*self.pool.base, submit, *self.claims]
        self.me = self.pool.electors[2]
        self.replica = Replica(self.me.identity, self.pool.id)
        feed(self.replica, self.base)

    def do(self, command: ev.Command) -> list[Any]:
        return published(settle_writes(self.replica, self.replica.handle(command, now())))

    def reports(self, others: tuple[int, ...] = (0, 1)) -> list[Operation]:
        """Both workers report in round 0, on the promises of two others."""
        grants = self.pool.votes(Phase.GRANT, self.task, 0, NOBODY, others)
        made = [
            report(worker, self.task, 0, value, grants)
            for worker, value in zip(self.pool.workers, self.values, strict=True)
        ]
        return [*grants, *made]

    def dispute(self) -> Operation:
        hashes = tuple(value.hash for value in self.values)
        motion = self.pool.workers[0].sign(dispute_rivals(self.task, hashes))
        feed(self.replica, [motion])
        return motion

    def cited(self, author: Author, which: int, *, supports: bool = True) -> Operation:
        operation = evidence(author, self.values[which].hash, self.task, supports=supports)
        feed(self.replica, [operation])
        return operation

    def index(self, which: int) -> int:
        return sorted(value.hash for value in self.values).index(self.values[which].hash)


@pytest.mark.parametrize("which", [0, 1])
def test_an_elector_chooses_by_the_evidence_and_names_it(which: int) -> None:
    live = Live(weights=(1, 1, 1))
    motion = live.dispute()
    with pytest.raises(NotFound, match="no evidence"):
        live.do(ev.Say(motion.id, None))
    cited = [live.cited(live.pool.workers[1], which), live.cited(live.pool.electors[0], which)]
    live.cited(live.pool.workers[0], 1 - which)
    (said,) = live.do(ev.Say(motion.id, None))
    assert said == OpinionBody(motion.id, live.index(which), tuple(sorted(one.id for one in cited)))
    assert live.do(ev.Say(motion.id, None)) == []


def test_a_choice_that_nothing_speaks_for_is_not_signed() -> None:
    live = Live()
    motion = live.dispute()
    live.cited(live.pool.workers[1], 0)
    live.cited(live.pool.electors[0], 1, supports=False)
    with pytest.raises(NotFound, match="rests on evidence"):
        live.do(ev.Say(motion.id, live.index(1)))


def test_evidence_counts_once_for_each_author_by_weight_and_against_as_well() -> None:
    live = Live()
    known, (one, other) = live.replica.view.evidence, (value.hash for value in live.values)
    a, b = live.pool.electors[:2]
    weights = {a.key: 5, b.key: 3}
    for _ in range(4):
        live.cited(b, 0)
        live.cited(live.pool.workers[0], 0)
    live.cited(a, 1)
    assert known.standing(live.task, one, weights) == (3, 1)
    assert known.standing(live.task, other, weights) == (5, 0)
    assert known.best(live.task, (one, other), weights) == other
    live.cited(b, 1, supports=False)
    live.cited(live.pool.workers[1], 1, supports=False)
    assert known.standing(live.task, other, weights) == (2, -1)
    assert known.best(live.task, (one, other), weights) == one


def test_of_rival_reports_an_elector_endorses_the_one_with_most_evidence() -> None:
    for which in (0, 1):
        live = Live()
        made = live.reports()
        cited = evidence(live.pool.electors[0], live.values[which].hash, live.task)
        effects = settle_writes(live.replica, live.replica.handle(ev.Received(signed([cited, *made])), now()))
        endorsed = [ballot.ref for ballot in ballots_in(effects) if ballot.phase is Phase.ENDORSE]
        assert endorsed == [live.values[which].hash]


def test_a_pool_may_ask_for_evidence_by_others_before_a_result_is_endorsed() -> None:
    live = Live(evidence=2)
    effects = feed(live.replica, live.reports())
    author, other = live.pool.workers

    def endorsed() -> list[bytes]:
        return [ballot.ref for ballot in ballots_in(effects) if ballot.phase is Phase.ENDORSE]

    for by in (author, other, other):
        effects += feed(live.replica, [evidence(by, live.values[0].hash, live.task)])
    assert not endorsed(), "its own worker does not count, and nobody counts twice"
    register = live.replica.view.registers[live.task]
    assert register.evidence_lacking(live.values[0], 0) == 1
    assert register.evidence_lacking(live.values[1], 0) == 2
    effects += feed(live.replica, [evidence(live.pool.electors[0], live.values[0].hash, live.task)])
    assert endorsed() == [live.values[0].hash]


def test_a_failure_needs_no_evidence() -> None:
    live = Live(evidence=2)
    live.values = [TaskValue(type(value.outcome)(1), value.worker, value.result) for value in live.values]
    effects = feed(live.replica, live.reports())
    assert [ballot for ballot in ballots_in(effects) if ballot.phase is Phase.ENDORSE]


# ------------------------------------------------------------ citing


def test_a_member_cites_once_what_it_says_twice() -> None:
    live = Live()
    feed(live.replica, live.reports())
    command = ev.Cite(live.task, DIGEST, 7, "text/csv", "the table", live.values[0].hash)
    (body,) = [body for body in live.do(command) if isinstance(body, EvidenceBody)]
    assert body == EvidenceBody(live.task, live.values[0].hash, True, DIGEST, 7, "text/csv", "the table")
    assert not live.do(command)
    assert live.replica.view.task(live.task).reported  # type: ignore[union-attr]


def test_what_cannot_be_cited_is_refused_with_a_reason() -> None:
    live = Live()
    with pytest.raises(Conflict, match="no result"):
        live.do(ev.Cite(live.task, DIGEST, 7, "text/csv"))
    feed(live.replica, live.reports())
    with pytest.raises(Conflict, match="2 results"):
        live.do(ev.Cite(live.task, DIGEST, 7, "text/csv"))
    with pytest.raises(NotFound, match="no task"):
        live.do(ev.Cite(TASK, DIGEST, 7, "text/csv"))
    with pytest.raises(NotFound, match="no result"):
        live.do(ev.Cite(live.task, DIGEST, 7, "text/csv", value=RIVALS[0]))
    value = live.values[0].hash
    for broken in (b"", b"x" * 31):
        with pytest.raises(LocalError, match="SHA-256"):
            live.do(ev.Cite(live.task, broken, 7, "text/csv", value=value))
    for media in ("", "x" * 257, "a\nb"):
        with pytest.raises(LocalError, match="kind of a content"):
            live.do(ev.Cite(live.task, DIGEST, 7, media, value=value))
    for number in range(limits.EVIDENCE_PER_AUTHOR_MAX):
        live.do(ev.Cite(live.task, bytes([number]) * 32, 7, "text/csv", value=value))
    with pytest.raises(LimitExceeded):
        live.do(ev.Cite(live.task, DIGEST, 7, "text/csv", value=value))


def test_an_elector_of_another_epoch_or_a_stranger_chooses_nothing_with_any_evidence() -> None:
    dispute = Dispute()
    cited = evidence(dispute.pool.workers[1], RIVALS[1])
    names = (cited.id,)
    votes = [one.sign(OpinionBody(dispute.motion.id, 1, names)) for one in dispute.pool.workers]
    assert dispute.chosen(cited, *votes, dispute.choice(0, 1, cited)) is None


# ------------------------------------------------------------ own models


class ByEvidenceAlone(GovernanceModel):
    """Not stable: the next piece of evidence may turn it over."""

    def resolve_dispute(self, context: DisputeContext) -> Choice | None:
        best = max(context.options, key=context.weight_of_evidence)
        return best if context.weight_of_evidence(best) > 0 else None


class EvidenceAndVotes(GovernanceModel):
    """Stable: nothing without a quorum, whatever is cited."""

    def resolve_dispute(self, context: DisputeContext) -> Choice | None:
        return super().resolve_dispute(context)


def test_a_model_that_more_evidence_turns_over_is_found_out() -> None:
    keys = tuple(Identity.from_seed(bytes([number + 1]) * 32).public_key for number in range(4))
    report_of = check_model(ByEvidenceAlone(), keys)
    assert any(problem.startswith("stability") for problem in report_of.problems)
    assert check_model(EvidenceAndVotes(), keys).sound


def test_a_model_is_shown_who_cited_what_and_what_they_weigh() -> None:
    seen: list[DisputeContext] = []

    class Curious(GovernanceModel):
        def resolve_dispute(self, context: DisputeContext) -> Choice | None:
            seen.append(context)
            return None

    live = Live(weights=(1, 2, 4))
    rules = live.replica.view.counting.rules
    rules = replace(rules, model=Curious())
    motions = live.replica.view.motions
    motions._electorates[0] = electorate_of(frozenset(rules.electors), rules, 0)
    motion = live.dispute()
    cited = live.cited(live.pool.electors[1], 1)
    stranger = live.cited(live.pool.workers[0], 1, supports=False)
    ballot = live.pool.electors[1].sign(OpinionBody(motion.id, live.index(1), (cited.id,)))
    feed(live.replica, [ballot])
    motions.decided(motion.id)
    context = seen[-1]
    weight = context.weights[live.pool.electors[1].key]
    assert {(item.author, item.supports, item.weight) for item in context.evidence} == {
        (live.pool.electors[1].key, True, weight),
        (stranger.author, False, 0),
    }
    assert context.weight_of_evidence(live.values[1].hash) == weight
    assert context.weight_of_evidence(live.values[0].hash) == 0
    assert context.ballots == {live.pool.electors[1].key: live.values[1].hash}


def test_the_state_of_two_replicas_with_evidence_is_equal_in_any_order() -> None:
    live = Live()
    motion = live.dispute()
    cited = evidence(live.pool.electors[0], live.values[0].hash, live.task)
    votes = [elector.sign(OpinionBody(motion.id, live.index(0), (cited.id,))) for elector in live.pool.electors[:2]]
    made = [*live.base, motion, cited, *votes, *live.reports()]
    states = set()
    for seed in range(8):
        replica = live.pool.replica()
        feed(replica, made[:1])
        rest = list(made[1:])
        random.Random(seed).shuffle(rest)
        for _ in range(3):
            feed(replica, rest)
        states.add(replica.view.state_bytes())
        assert replica.view.motions.chosen(motion.id) == live.values[0].hash
        assert replica.view.registers[live.task].state is TaskState.ASSIGNED
    assert len(states) == 1


# ------------------------------------------------------------ private pools


def test_in_a_private_pool_what_people_read_of_evidence_is_sealed_and_what_is_judged_is_not() -> None:
    author = Pool().workers[0]
    ring = Keyring(author.identity, author.pool)
    key = ContentKey(author.pool, 0, 0, b"s" * 32)
    ring.add(key)
    sealer = ContentSealer(ring)
    for summary in ("a table", ""):
        clear = EvidenceBody(TASK, RIVALS[0], True, DIGEST, 7, "text/csv", summary)
        sealed = sealer.seal_body(clear, author.key, 3, key)
        assert isinstance(sealed, EvidenceBody)
        assert "csv" not in sealed.media
        assert "table" not in sealed.summary
        assert replace(sealed, media=clear.media, summary=clear.summary) == clear
        check_sealed(sealed)
        assert sealer.open_body(sealed, author.key, 3) == clear
        with pytest.raises(SignatureError):
            sealer.open_body(sealed, author.key, 4)
        with pytest.raises(CodecError):
            check_sealed(replace(sealed, media="text/csv"))
    with pytest.raises(CodecError):
        check_sealed(replace(sealed, summary="a table"))
    with pytest.raises(LimitExceeded):
        sealer.seal_body(EvidenceBody(TASK, RIVALS[0], True, DIGEST, 7, "x" * 200), author.key, 3, key)


def test_of_a_removed_author_evidence_beyond_its_cut_is_kept_and_other_data_is_not() -> None:
    dispute = Dispute()
    author = dispute.pool.workers[1]
    beyond = [claim(author, TASK), evidence(author, RIVALS[1])]
    votes = [dispute.choice(number, 1, beyond[1]) for number in (0, 1)]
    log = OperationLog(dispute.pool.id)
    for operation in (*dispute.base, *beyond, *votes):
        log.insert(operation)
    voided = log.cut(author.key, 1)
    assert [operation.id for operation in voided] == [beyond[0].id]
    assert log.holds(beyond[1].id)
    assert not log.holds(beyond[0].id)
    late = OperationLog(dispute.pool.id)
    late.insert(dispute.pool.joins[1])
    late.cut(author.key, 1)
    late.insert(beyond[1])
    assert late.entry(author.key) == log.entry(author.key)
