"""Vetoes: who may deny a result in time does so everywhere or nowhere, and afterwards nothing changes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from pool_kit import feed, value_of
from test_epochs import Live

from converge_p2p.core.errors import Conflict, NotAuthorised
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms
from converge_p2p.core.model.task import TaskState
from converge_p2p.core.oplog.bodies import VetoBody
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.audit import audit
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
