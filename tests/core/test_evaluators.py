"""Evaluators: no result of a judged task is accepted before whoever judges it approved exactly that result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pool_kit import Pool, claim, feed, notices, now, report, signed, value_of
from test_epochs import Live

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import CodecError, Conflict, LocalError, NotAuthorised
from converge_p2p.core.governance.evaluators import forget_evaluator, register_evaluator
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, task_id
from converge_p2p.core.oplog.bodies import Phase, Token
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId, ValueHash

JUDGE = 4
"""Electors 0 to 2; 3 works, 4 judges."""


class Judged(Live):
    """A pool in which `JUDGE` answers each result as `says` wants; None is silence."""

    def __init__(self, says: Callable[[int], bool | None], **terms: Any) -> None:
        super().__init__(3, 3, **terms)
        self.says = says
        self.works = {3, 5}
        self.asked: list[ValueHash] = []
        self.tries = 0
        self.mesh.on_notice = self._judge

    def _judge(self, node: int, notice: object) -> ev.Command | None:
        if isinstance(notice, ev.VerdictWanted):
            assert node == JUDGE
            self.asked.append(notice.value)
            said = self.says(len(self.asked))
            return None if said is None else ev.Judge(notice.task, said, "because", notice.value)
        if isinstance(notice, ev.ClaimWon):
            # never twice the same result
            self.tries += 1
            return ev.Report(notice.task, Outcome.COMPLETED, encode_value(self.tries))
        return self._answer(node, notice)

    def ask(self, evaluator: str, **terms: Any) -> TaskId:
        self.mesh.at(1, 0, ev.Submit(TaskSpec(b"judged", "work", encode_value({"n": 1}), evaluator=evaluator, **terms)))
        return task_id(self.pool.id, self.key(0), b"judged")

    def agent(self) -> str:
        return f"agent:{fingerprint(self.key(JUDGE))}"

    def end_of(self, task: TaskId) -> TaskState:
        self.settle(task)
        (state,) = {replica.view.registers[task].state for replica in self.mesh.replicas}
        assert len(self.states()) == 1
        return state


@pytest.fixture
def rules() -> Iterator[Callable[..., None]]:
    names = []

    def register(name: str, rule: Callable[[Any, Any], bool]) -> None:
        names.append(name)
        register_evaluator(name, rule)

    yield register
    for name in names:
        forget_evaluator(name)


@pytest.mark.parametrize("named_by", ["id", "key"])
def test_an_approved_result_settles_the_task(named_by: str) -> None:
    live = Judged(lambda _: True)
    task = live.ask(live.agent() if named_by == "id" else f"agent:{live.key(JUDGE).hex()}")
    assert live.end_of(task) is TaskState.COMPLETED
    assert live.mesh.replicas[0].view.registers[task].settled == live.asked[0]


def test_a_denied_result_is_a_failed_attempt_and_the_next_one_begins_at_once() -> None:
    live = Judged(lambda number: number > 1)
    task = live.ask(live.agent(), claim_ttl_ms=60_000)
    began = live.mesh.now_ms
    assert live.end_of(task) is TaskState.COMPLETED
    register = live.mesh.replicas[0].view.registers[task]
    assert register.settled == live.asked[1]
    assert register.settled_token is not None
    assert register.settled_token.round >= 1
    assert live.mesh.now_ms - began < 60_000, "nobody waited for the claim to run out of time"


def test_denied_to_the_last_attempt_the_task_fails() -> None:
    live = Judged(lambda _: False)
    task = live.ask(live.agent(), max_retries=1, claim_ttl_ms=60_000)
    assert live.end_of(task) is TaskState.FAILED
    assert len(live.asked) == 2


def test_while_the_evaluator_is_silent_nothing_is_settled_and_the_claim_runs_out_of_time() -> None:
    live = Judged(lambda _: None)
    task = live.ask(live.agent(), claim_ttl_ms=1000, max_retries=9)
    live.mesh.run(lambda: len(live.asked) == 2)
    for replica in live.mesh.replicas:
        register = replica.view.registers[task]
        assert register.settled is None
        assert not any(votes.endorsed for votes in register.rounds.values())
    live.mesh.run(lambda: live.mesh.replicas[0].view.registers[task].failures() >= 1)


def test_an_approval_counts_whatever_is_said_afterwards() -> None:
    pool = Pool()
    (worker, judge), replica = pool.workers, pool.replica()
    task, submit = pool.submit(evaluator=f"agent:{judge.key.hex()}")
    own, value = claim(worker, task), value_of(worker)
    grants = pool.votes(Phase.GRANT, task, 0, own.id)
    feed(replica, [*pool.base, submit, own, *grants, report(worker, task, 0, value, grants)])
    register = replica.view.registers[task]
    proposal = next(iter(register.round(Token(0, 0)).reports.values()))
    assert not register.valid(Token(0, 0), proposal)
    feed(replica, [judge.sign(VerdictBody(task, value.hash, False))])
    assert register.denied(Token(0, 0))
    assert (register.failures(), register.holder) == (1, None)
    feed(replica, [judge.sign(VerdictBody(task, value.hash, True)), judge.sign(VerdictBody(task, value.hash, False))])
    assert register.valid(Token(0, 0), proposal)
    assert (register.failures(), register.denied(Token(0, 0))) == (0, False)


def test_a_verdict_of_anybody_else_or_on_another_value_approves_nothing() -> None:
    pool = Pool(workers=3)
    worker, judge, other = pool.workers
    replica = pool.replica()
    task, submit = pool.submit(evaluator=f"agent:{judge.key.hex()}")
    own, value = claim(worker, task), value_of(worker)
    grants = pool.votes(Phase.GRANT, task, 0, own.id)
    feed(replica, [*pool.base, submit, own, *grants, report(worker, task, 0, value, grants)])
    feed(replica, [other.sign(VerdictBody(task, value.hash, True)), worker.sign(VerdictBody(task, value.hash, True))])
    feed(replica, [judge.sign(VerdictBody(task, value_of(worker, 2).hash, True))])
    assert replica.view.registers[task].verdict(value) is None


def test_an_evaluator_that_forks_takes_its_approval_back_and_a_failure_needs_none() -> None:
    pool = Pool()
    (worker, judge), replica = pool.workers, pool.replica()
    task, submit = pool.submit(evaluator=f"agent:{judge.key.hex()}")
    value, twin = value_of(worker), judge.branch()
    feed(replica, [*pool.base, submit, judge.sign(VerdictBody(task, value.hash, True))])
    register = replica.view.registers[task]
    assert register.verdict(value) is True
    feed(replica, [twin.sign(VerdictBody(task, value.hash, False))])
    assert register.verdict(value) is None
    own, failed = claim(worker, task), value_of(worker, {"error": "x"}, Outcome.FAILED)
    grants = pool.votes(Phase.GRANT, task, 0, own.id)
    feed(replica, [own, *grants, report(worker, task, 0, failed, grants)])
    assert register.valid(Token(0, 0), next(iter(register.round(Token(0, 0)).reports.values())))


def test_only_the_evaluator_judges_and_only_what_was_reported() -> None:
    live = Judged(lambda _: None)
    task = live.ask(live.agent())
    live.mesh.run(lambda: len(live.asked) == 1)
    with pytest.raises(NotAuthorised):
        live.mesh.do(0, ev.Judge(task, True))
    live.mesh.do(JUDGE, ev.Judge(task, True, "good"))
    assert live.end_of(task) is TaskState.COMPLETED
    with pytest.raises(Conflict):
        live.mesh.do(JUDGE, ev.Judge(task, False))


def test_with_nothing_reported_there_is_nothing_to_judge() -> None:
    live = Judged(lambda _: None)
    live.works = set()
    task = live.ask(live.agent())
    live.mesh.run(lambda: task in live.mesh.replicas[JUDGE].view.registers)
    with pytest.raises(Conflict, match="no result waits"):
        live.mesh.do(JUDGE, ev.Judge(task, True))


def test_after_a_restart_the_evaluator_is_told_again_what_it_has_no_verdict_on() -> None:
    pool = Pool()
    worker, judge = pool.workers
    task, submit = pool.submit(evaluator=f"agent:{judge.key.hex()}")
    own, value = claim(worker, task), value_of(worker)
    grants = pool.votes(Phase.GRANT, task, 0, own.id)
    stored = [*pool.base, submit, own, *grants, report(worker, task, 0, value, grants)]
    for said, told in (((), [value.hash]), ((judge.sign(VerdictBody(task, value.hash, False)),), [])):
        replica = Replica(judge.identity, pool.id)
        effects = replica.handle(ev.Restored(signed([*stored, *said])), now())
        assert [notice.value for notice in notices(effects, ev.VerdictWanted)] == told


# ---------------------------------------------------------------- rules


def test_a_rule_is_asked_with_inputs_and_result_and_its_no_costs_an_attempt(rules: Callable[..., None]) -> None:
    rules("bigger", lambda inputs, result: bool(result > inputs["n"]))
    live = Judged(lambda _: None)
    task = live.ask("rule:bigger", claim_ttl_ms=60_000)
    assert live.end_of(task) is TaskState.COMPLETED
    value = live.mesh.replicas[0].view.registers[task].value
    assert value is not None
    assert value.result == encode_value(2)


def test_a_rule_that_stumbles_approves_nothing(rules: Callable[..., None]) -> None:
    rules("stumbles", lambda inputs, _: bool(inputs["missing"]))
    live = Judged(lambda _: None)
    assert live.end_of(live.ask("rule:stumbles", claim_ttl_ms=60_000, max_retries=1)) is TaskState.FAILED


def test_an_elector_without_the_rule_endorses_nothing_and_says_so_once() -> None:
    live = Judged(lambda _: None)
    task = live.ask("rule:nobody registered this", claim_ttl_ms=1000, max_retries=1)
    assert live.end_of(task) is TaskState.FAILED
    said = [(node, notice.rule) for node, notice in live.mesh.told if isinstance(notice, ev.EvaluatorUnknown)]
    assert sorted(said) == [(node, "nobody registered this") for node in range(3)]


def test_a_name_has_one_rule_and_the_register_is_bounded(
    rules: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules("mine", lambda _, __: True)
    with pytest.raises(Conflict):
        register_evaluator("mine", lambda _, __: False)
    monkeypatch.setattr("converge_p2p.core.limits.EVALUATORS_REGISTERED_MAX", 1)
    with pytest.raises(LocalError):
        register_evaluator("another", lambda _, __: True)
    with pytest.raises(LocalError):
        register_evaluator("", lambda _, __: True)


@pytest.mark.parametrize("text", ["agent", "agent:", "agent:" + "0" * 63, "agent:" + "A" * 64, "rule:", "x:y", "words"])
def test_other_names_of_an_evaluator_are_refused(text: str) -> None:
    body = TaskSpec(b"k", "work", b"", evaluator=text).to_body()
    with pytest.raises(CodecError):
        TaskSpec.from_body(body)
