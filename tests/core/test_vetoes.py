"""Vetoes: who may deny a result in time does so everywhere or nowhere, and afterwards nothing changes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from pool_kit import Pool, ballots_in, claim, feed, now, report, settle_writes, value_of
from test_epochs import Live

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import Conflict, NotAuthorised, SignatureError
from converge_p2p.core.governance.models import ALL_RULES, compile_rules
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms
from converge_p2p.core.model.task import Outcome, TaskState, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Phase, Purpose, Token, VetoBody
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.audit import audit
from converge_p2p.core.view.epochs import Epochs
from converge_p2p.core.view.receipt import Receipt, receipt_of
from converge_p2p.core.view.register import Vote
from converge_p2p.core.view.tasks import TaskRegister
from converge_p2p.core.view.vetoes import veto_subject
from converge_p2p.testing.checkers import held_operations

WINDOW_MS = 3_000


class Vetoed(Live):
    """A live pool of three electors, a worker, and a vetoer who is no elector; `word` says what it does."""

    def __init__(
        self,
        *,
        word: bool | None = None,
        seed: int = 0,
        loss: float = 0.0,
        silence_denies: bool = False,
        electors: int = 3,
        window_ms: int = WINDOW_MS,
        vetoers: int = 1,
        **terms: object,
    ) -> None:
        self.word = word
        first = electors + 1
        keys = [Identity.from_seed(bytes([number + 1]) * 32).public_key for number in range(first, first + vetoers)]
        model = ModelTerms(vetoers=tuple(sorted(keys)), veto_window_ms=window_ms, silence_denies=silence_denies)
        self.vetoers = set(range(first, first + vetoers))
        super().__init__(
            electors, 1 + vetoers, seed=seed, loss=loss, governance=GovernanceKind.VETO, model=model, **terms
        )
        self.works = {electors}

    def _answer(self, node: int, notice: object) -> ev.Command | None:
        match notice:
            case ev.TaskChanged(task) if node in self.vetoers and self.word is not None:
                view = self.mesh.replicas[node].view.task(task)
                if view is not None and view.awaiting is not None:
                    return ev.Veto(task, self.word, "not like this")
        return super()._answer(node, notice)

    def await_veto(self, task: TaskId) -> None:
        """Until everybody knows that the task was settled on a result."""
        registers = [replica.view.registers for replica in self.mesh.replicas]
        self.mesh.run(lambda: all(task in held and held[task].value is not None for held in registers))

    def subject(self, task: TaskId) -> TaskId:
        """What votes on the veto of its result name."""
        subject = self.mesh.replicas[0].view.vetoes.twin(task)
        assert subject is not None
        return subject

    def ends(self, task: TaskId) -> set[TaskState]:
        self.settle(task)
        assert len(self.states()) == 1
        assert not any(
            register.conflict for replica in self.mesh.replicas for register in replica.view.vetoes.registers.values()
        )
        return {replica.view.registers[task].state for replica in self.mesh.replicas}


def test_a_result_that_is_vetoed_in_time_fails_everywhere_with_the_reason() -> None:
    live = Vetoed(word=True)
    task = live.submit(b"x")
    assert live.ends(task) == {TaskState.FAILED}
    view = live.mesh.replicas[0].view.task(task)
    assert view is not None
    assert (view.result["error"], view.result["reason"]) == ("vetoed", "not like this")
    assert view.result["by"] == live.key(4)
    assert view.awaiting is None


def test_a_result_that_every_vetoer_lets_pass_is_settled_without_waiting() -> None:
    live = Vetoed(word=False, vetoers=2)
    task = live.submit(b"x")
    start = live.mesh.now_ms
    assert live.ends(task) == {TaskState.COMPLETED}
    assert live.mesh.now_ms - start < WINDOW_MS


def test_a_vetoer_that_is_silent_is_waited_for_and_then_the_result_stands() -> None:
    live = Vetoed()
    task = live.submit(b"x")
    live.await_veto(task)
    start = live.mesh.now_ms
    live.mesh.run_for(WINDOW_MS // 2)
    assert {replica.view.registers[task].state for replica in live.mesh.replicas} == {TaskState.ASSIGNED}
    assert live.ends(task) == {TaskState.COMPLETED}
    assert live.mesh.now_ms - start >= WINDOW_MS


def test_where_silence_denies_nothing_is_settled_before_every_vetoer_spoke() -> None:
    live = Vetoed(silence_denies=True, vetoers=2)
    task = live.submit(b"x")
    live.await_veto(task)
    live.mesh.at(1, 4, ev.Veto(task, deny=False))
    live.mesh.run_for(20 * WINDOW_MS)
    assert {replica.view.registers[task].state for replica in live.mesh.replicas} == {TaskState.ASSIGNED}
    live.mesh.at(1, 5, ev.Veto(task, deny=False))
    assert live.ends(task) == {TaskState.COMPLETED}


def test_failures_and_cancellations_need_no_veto() -> None:
    live = Vetoed()
    live.works = set()
    task = live.submit(b"x")
    live.mesh.run_for(50)
    live.mesh.at(1, 0, ev.Cancel(task, "no"))
    start = live.mesh.now_ms
    assert live.ends(task) == {TaskState.CANCELLED}
    assert live.mesh.now_ms - start < WINDOW_MS


def test_a_late_veto_changes_nothing() -> None:
    live = Vetoed(word=False)
    task = live.submit(b"x")
    assert live.ends(task) == {TaskState.COMPLETED}
    before = live.states()
    register = live.mesh.replicas[0].view.registers[task]
    assert register.settled is not None
    with pytest.raises(Conflict, match="for ever"):
        live.mesh.replicas[4].handle(ev.Veto(task), ev.Now(10**9, 0))
    log, key = live.mesh.replicas[4].log, live.key(4)
    author = live.pool.people[4]
    last = decode_operation(log.read(key, log.length(key) - 1, log.length(key))[0], live.pool.id)
    author.seq, author.prev, author.hlc = last.seq + 1, last.id, last.hlc
    late = author.sign(VetoBody(task, register.settled, True, "after all"))
    for replica in live.mesh.replicas:
        feed(replica, [late], live.mesh.now_ms)
        assert replica.log.holds(late.id)
    live.mesh.run_for(10 * WINDOW_MS)
    assert live.states() == before


def test_only_vetoers_deny_and_only_what_is_settled() -> None:
    live = Vetoed()
    live.works = set()
    task = live.submit(b"x")
    live.mesh.run_for(100)
    with pytest.raises(Conflict, match="no result"):
        live.mesh.replicas[4].handle(ev.Veto(task), ev.Now(live.mesh.now_ms, 0))
    live.works = {3}
    live.mesh.at(1, 3, ev.Claim(task))
    live.await_veto(task)
    with pytest.raises(NotAuthorised, match="vetoers"):
        live.mesh.replicas[0].handle(ev.Veto(task), ev.Now(live.mesh.now_ms, 0))


def test_a_word_of_somebody_who_is_no_vetoer_counts_for_nothing() -> None:
    live = Vetoed()
    task = live.submit(b"x")
    live.await_veto(task)
    settled = live.mesh.replicas[0].view.registers[task].settled
    assert settled is not None
    worker, log = live.pool.people[3], live.mesh.replicas[3].log
    last = decode_operation(log.read(worker.key, log.length(worker.key) - 1, log.length(worker.key))[0], live.pool.id)
    worker.seq, worker.prev, worker.hlc = last.seq + 1, last.id, last.hlc
    false = worker.sign(VetoBody(task, settled, True, "I would rather not"))
    for replica in live.mesh.replicas:
        feed(replica, [false], live.mesh.now_ms)
    assert live.ends(task) == {TaskState.COMPLETED}


@pytest.mark.parametrize("seed", range(8))
def test_a_veto_that_only_some_electors_hear_in_time_has_one_outcome_everywhere(seed: int) -> None:
    rng = random.Random(seed)
    live = Vetoed(seed=seed, loss=0.2, electors=3 + seed % 2, faults=seed % 2)
    nodes = range(len(live.mesh.replicas))
    task = live.submit(b"x")
    live.await_veto(task)
    # about when the window ends, some hear it and some do not
    live.mesh.run_for(WINDOW_MS - rng.randrange(60))
    (vetoer,) = live.vetoers
    cut = set(rng.sample(list(nodes), rng.randint(0, 2))) - {vetoer}
    live.mesh.cut(cut)
    live.mesh.at(1, vetoer, ev.Veto(task, reason="late or not"))
    live.mesh.run_for(rng.randrange(3_000))
    live.mesh.cut(set())
    (end,) = live.ends(task)
    assert end in (TaskState.COMPLETED, TaskState.FAILED)
    for replica in live.mesh.replicas:
        assert audit(replica.log, replica.view) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("word", [True, False, None])
def test_who_becomes_an_elector_while_vetoers_are_asked_decides_by_the_same_terms(seed: int, word: bool | None) -> None:
    live = Vetoed(seed=seed, loss=0.1, window_ms=30_000)
    task = live.submit(b"x")
    live.await_veto(task)
    live.move(terms=live.electors_of(0, 1, 2, 3))
    live.reach(1)
    assert not live.settled(task)
    if word is not None:
        live.mesh.at(1, 4, ev.Veto(task, word))
    assert live.ends(task) == {TaskState.FAILED if word else TaskState.COMPLETED}
    token = live.mesh.replicas[0].view.vetoes.registers[live.subject(task)].settled_token
    assert token is not None
    assert token.epoch == 1


@pytest.mark.parametrize("seed", range(10))
def test_an_epoch_that_changes_while_a_veto_is_decided_changes_no_decision(seed: int) -> None:
    live = Vetoed(seed=seed, loss=0.15, window_ms=20_000)
    task = live.submit(b"x")
    live.await_veto(task)
    rng = random.Random(seed)
    live.mesh.at(rng.randrange(1, 60), 4, ev.Veto(task, seed % 2 == 0))
    live.move(rng.randrange(3), terms=live.electors_of(1, 2, 3))
    live.reach(1)
    assert live.ends(task) == {TaskState.COMPLETED if seed % 2 else TaskState.FAILED}
    for replica in live.mesh.replicas:
        assert audit(replica.log, replica.view) == []


def test_a_change_to_governance_without_vetoers_does_not_free_a_result_that_waits_for_them() -> None:
    live = Vetoed(silence_denies=True)
    waits = live.submit(b"waits")
    live.await_veto(waits)
    live.move(terms=replace(live.terms, governance=GovernanceKind.DEMOCRATIC, model=ModelTerms()))
    live.reach(1)
    free = live.submit(b"free")
    assert live.ends(free) == {TaskState.COMPLETED}
    live.mesh.run_for(5 * WINDOW_MS)
    assert {replica.view.registers[waits].state for replica in live.mesh.replicas} == {TaskState.ASSIGNED}
    live.mesh.at(1, 4, ev.Veto(waits, reason="still my right"))
    assert live.ends(waits) == {TaskState.FAILED}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("word", [True, False])
def test_the_same_operations_make_the_same_state_in_any_order(seed: int, word: bool) -> None:
    live = Vetoed(word=word, seed=1)
    live.settle(live.submit(b"x"))
    live.word = None
    waits = live.submit(b"y")
    live.await_veto(waits)
    (state,) = live.states()
    operations = list(held_operations(live.mesh.replicas[0]))
    genesis = live.mesh.replicas[0].view.genesis
    rng = random.Random(seed)
    operations += rng.sample(operations, len(operations) // 3)
    rng.shuffle(operations)
    late = live.pool.replica()
    late.handle(ev.Received((genesis,)), ev.Now(0, 0))
    for operation in operations:
        late.handle(ev.Received((operation,)), ev.Now(0, 0))
    assert late.view.state_bytes() == state
    assert set(late.view.open) == set(live.mesh.replicas[0].view.open)


def test_an_elector_that_restarts_while_it_waits_waits_again_and_decides() -> None:
    live = Vetoed()
    task = live.submit(b"x")
    live.await_veto(task)
    stored = tuple(held_operations(live.mesh.replicas[0]))
    again = Replica(live.pool.people[0].identity, live.pool.id)
    effects = again.handle(ev.Restored(stored), ev.Now(0, 0))
    (window,) = [
        effect for effect in effects if isinstance(effect, ev.SetTimer) and effect.key.kind is ev.TimerKind.WINDOW
    ]
    assert window.at_ms == WINDOW_MS


def test_the_content_of_a_veto_is_bound_to_the_word_it_names() -> None:
    live = Vetoed(word=True)
    task = live.submit(b"x")
    live.settle(task)
    register = live.mesh.replicas[0].view.registers[task]
    final = register.final
    assert final is not None
    assert final != register.value
    assert final != value_of(live.pool.people[0], {"error": "vetoed"})
    assert final.worker in live.mesh.replicas[0].view.electors


@pytest.mark.parametrize("word", [True, False])
def test_a_receipt_carries_both_certificates_and_neither_is_enough(word: bool) -> None:
    live = Vetoed(word=word)
    task = live.submit(b"x")
    live.settle(task)
    replica = live.mesh.replicas[1]
    receipt = receipt_of(replica.view, replica.log, task)
    assert receipt is not None
    assert receipt.veto is not None
    assert receipt.value.outcome is (Outcome.FAILED if word else Outcome.COMPLETED)
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt
    receipt.check()
    with pytest.raises(SignatureError, match="might deny"):
        replace(receipt, value=receipt.veto.result, veto=None).check()
    with pytest.raises(SignatureError, match="decide the veto"):
        replace(receipt, veto=replace(receipt.veto, votes=receipt.votes)).check()
    with pytest.raises(SignatureError, match="settle the task"):
        replace(receipt, votes=receipt.veto.votes).check()
    other = replace(receipt.value, result=encode_value("other"))
    with pytest.raises(SignatureError, match="another value"):
        replace(receipt, value=other).check()


def test_a_result_that_still_waits_for_its_vetoers_has_no_receipt() -> None:
    live = Vetoed()
    task = live.submit(b"x")
    live.await_veto(task)
    replica = live.mesh.replicas[1]
    assert receipt_of(replica.view, replica.log, task) is None


class Courtroom:
    """A veto pool of four electors of whom one may lie, and a task that is settled on a result, signed by hand."""

    def __init__(self) -> None:
        vetoer = Identity.from_seed(bytes([5]) * 32).public_key
        model = ModelTerms(vetoers=(vetoer,), veto_window_ms=WINDOW_MS)
        self.pool = Pool(4, 2, governance=GovernanceKind.VETO, model=model, faults=1)
        self.vetoer, self.worker = self.pool.workers
        self.task, submit = self.pool.submit()
        work = claim(self.worker, self.task)
        self.result = value_of(self.worker)
        self.made = [*self.pool.base, submit, work, *self.pool.votes(Phase.GRANT, self.task, 0, work.id, (0, 1, 2))]
        self.made.append(report(self.worker, self.task, 0, self.result, self.made[-3:]))
        for phase in (Phase.ENDORSE, Phase.ACCEPT):
            self.made += self.pool.votes(phase, self.task, 0, self.result.hash, (0, 1, 2))
        self.subject = veto_subject(self.task, self.result.hash)

    def stand(self, who: int, purpose: Purpose, ref: bytes = b"") -> Operation:
        return self.pool.electors[who].sign(ClaimBody(self.subject, purpose, ref=ref))

    def endorsed(self, *more: Operation, window_over: bool = True) -> list[Ballot]:
        """What the fourth elector votes after all this."""
        replica = Replica(self.pool.electors[3].identity, self.pool.id)
        ballots = ballots_in(feed(replica, self.made))
        if window_over:
            key = ev.TimerKey(ev.TimerKind.WINDOW, self.subject)
            effects = replica.handle(ev.TimerFired(key), now(WINDOW_MS))
            ballots += ballots_in(settle_writes(replica, effects, WINDOW_MS))
        ballots += ballots_in(feed(replica, more, WINDOW_MS))
        key = ev.TimerKey(ev.TimerKind.HOLD_OFF, self.subject)
        effects = replica.handle(ev.TimerFired(key), now(WINDOW_MS + 50))
        ballots += ballots_in(settle_writes(replica, effects, WINDOW_MS + 50))
        return [ballot for ballot in ballots if ballot.task == self.subject]


def test_an_elector_promises_nothing_to_a_claim_that_names_no_veto_it_holds() -> None:
    court = Courtroom()
    word = court.vetoer.sign(VetoBody(court.task, court.result.hash, True, "no"))
    assert court.endorsed(court.stand(0, Purpose.DENY, word.id)) == []
    assert court.endorsed(court.stand(0, Purpose.DENY, court.made[3].id)) == []
    (promise,) = court.endorsed(word, court.stand(1, Purpose.DENY, word.id))
    assert promise.phase is Phase.GRANT


def test_an_elector_promises_a_pass_only_when_the_window_is_over_and_it_heard_no_veto() -> None:
    court = Courtroom()
    stands = court.stand(0, Purpose.PASS)
    assert court.endorsed(stands, window_over=False) == []
    (promise,) = court.endorsed(stands)
    assert promise.ref == stands.id
    court = Courtroom()
    word = court.vetoer.sign(VetoBody(court.task, court.result.hash, True, "no"))
    assert court.endorsed(word, court.stand(0, Purpose.PASS)) == []
    court = Courtroom()
    early = court.vetoer.sign(VetoBody(court.task, court.result.hash, False))
    assert len(court.endorsed(early, court.stand(0, Purpose.PASS), window_over=False)) == 1


def test_who_claims_to_pass_cannot_propose_a_denial_and_the_other_way_round() -> None:
    court = Courtroom()
    word = court.vetoer.sign(VetoBody(court.task, court.result.hash, True, "no"))
    passes = court.stand(0, Purpose.PASS)
    grants = court.pool.votes(Phase.GRANT, court.subject, 0, passes.id, (0, 1, 2))
    content = {"error": "vetoed", "by": court.vetoer.key, "reason": "no"}
    denial = TaskValue(Outcome.FAILED, court.pool.electors[0].key, encode_value(content))
    lie = report(court.pool.electors[0], court.subject, 0, denial, grants)
    assert not any(ballot.phase is Phase.ENDORSE for ballot in court.endorsed(word, passes, *grants, lie))
    court = Courtroom()
    word = court.vetoer.sign(VetoBody(court.task, court.result.hash, True, "no"))
    denies = court.stand(0, Purpose.DENY, word.id)
    grants = court.pool.votes(Phase.GRANT, court.subject, 0, denies.id, (0, 1, 2))
    passed = TaskValue(Outcome.COMPLETED, court.pool.electors[0].key, encode_value("passed"))
    lie = report(court.pool.electors[0], court.subject, 0, passed, grants)
    assert not any(ballot.phase is Phase.ENDORSE for ballot in court.endorsed(word, denies, *grants, lie))


def test_an_elector_endorses_what_a_quorum_promised_although_it_heard_the_veto_itself() -> None:
    court = Courtroom()
    word = court.vetoer.sign(VetoBody(court.task, court.result.hash, True, "no"))
    passes = court.stand(0, Purpose.PASS)
    grants = court.pool.votes(Phase.GRANT, court.subject, 0, passes.id, (0, 1, 2))
    right = TaskValue(Outcome.COMPLETED, court.pool.electors[0].key, encode_value("passed"))
    voted = court.endorsed(word, passes, *grants, report(court.pool.electors[0], court.subject, 0, right, grants))
    assert [ballot.ref for ballot in voted if ballot.phase is Phase.ENDORSE] == [right.hash]


def test_a_veto_counts_although_its_author_forks_later() -> None:
    court = Courtroom()
    word = court.vetoer.sign(VetoBody(court.task, court.result.hash, True, "no"))
    twins = [court.vetoer.branch().sign(VetoBody(court.task, court.result.hash, False, text)) for text in ("a", "b")]
    states = set()
    for order in ([word, *twins], [*reversed(twins), word]):
        replica = court.pool.replica()
        feed(replica, [*court.made, *order])
        states.add(replica.view.state_bytes())
        assert set(replica.view.vetoes.registers[court.subject].denials) == {word.id}
    assert len(states) == 1


def _epochs(*models: ModelTerms) -> tuple[Epochs, list[PublicKey]]:
    """Epochs of four electors; everybody promised each next one with its tenth operation."""
    pool = Pool(4, 1, faults=1)
    epochs, keys = Epochs(pool.id, ALL_RULES), [elector.key for elector in pool.electors]
    for number, model in enumerate(models):
        governance = GovernanceKind.VETO if model.vetoers else GovernanceKind.DEMOCRATIC
        spec = replace(pool.spec, governance=governance, model=model)
        value = TaskValue(Outcome.COMPLETED, keys[0], encode_value(number)) if number else None
        epochs.add(spec, compile_rules(spec), value=value, promised=dict.fromkeys(keys, 10))
    return epochs, keys


@pytest.mark.parametrize("early", [True, False])
def test_the_terms_are_those_of_the_epoch_whose_lock_the_result_repeats(early: bool) -> None:
    judge = ModelTerms(vetoers=(Identity.from_seed(bytes([9]) * 32).public_key,))
    epochs, keys = _epochs(judge, ModelTerms())
    register, value = TaskRegister(TaskId(bytes(32)), epochs), ValueHash(b"v" * 32)
    vote = OperationId(b"o" * 32)
    if early:
        for key in keys[:3]:
            register.add_endorsement(Token(0, 0), key, value)
        register.add_accept(Token(0, 0), keys[0], value, Vote(5, vote))
    for key in keys[:3]:
        register.add_accept(Token(1, 0), key, value, Vote(11, vote))
    assert register.settled_token == Token(1, 0)
    terms = register.veto_terms()
    assert (terms is not None) is early
    # a certificate of the first epoch that is heard of later says the same
    if early:
        other = TaskRegister(TaskId(bytes(32)), epochs)
        for key in keys[:3]:
            other.add_accept(Token(0, 0), key, value, Vote(5, vote))
        assert other.veto_terms() == terms


def test_a_vetoer_of_later_terms_has_no_say_in_a_result_that_was_settled_before() -> None:
    live = Vetoed(silence_denies=True, vetoers=2)
    first, second = sorted(live.vetoers)
    terms = replace(live.terms, model=replace(live.terms.model, vetoers=(live.key(first),)))
    live.move(terms=terms)
    live.reach(1)
    task = live.submit(b"x")
    live.await_veto(task)
    with pytest.raises(NotAuthorised):
        live.mesh.replicas[second].handle(ev.Veto(task), ev.Now(live.mesh.now_ms, 0))
    settled = live.mesh.replicas[0].view.registers[task].settled
    assert settled is not None
    author = live.pool.people[second]
    late = author.sign(VetoBody(task, settled, True, "I once was one"), seq=0, prev=None, epoch=1)
    for replica in live.mesh.replicas:
        feed(replica, [late], live.mesh.now_ms)
        assert replica.log.holds(late.id)
    assert not live.mesh.replicas[0].view.vetoes.registers[live.subject(task)].denials
    live.mesh.at(1, first, ev.Veto(task, deny=False))
    assert live.ends(task) == {TaskState.COMPLETED}
