"""Epochs: a carried motion becomes terms in force, exactly once, and what was decided before stays decided."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pool_kit import Mesh, Pool, claim, feed, notices, report, stored_by, value_of

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import LocalError
from converge_p2p.core.governance.custom import DisputeContext, GovernanceModel
from converge_p2p.core.governance.electorate import electorate_of
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms, PoolPolicy, PoolSpec
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, task_id
from converge_p2p.core.oplog.bodies import Phase, VoteBody
from converge_p2p.core.oplog.motions import YES, move_change
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.coordination import CastVote, OpenPoll
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.core.view.register import Grant

QUICK = PoolPolicy(hold_off_ms=5, grant_timer_ms=100, claim_ttl_ms=2000, max_retries=3)


class Live:
    """A pool of replicas that work: electors first, then workers; `agree` of the electors say yes to every change."""

    def __init__(
        self, electors: int = 3, workers: int = 2, *, seed: int = 0, loss: float = 0.0, **terms: object
    ) -> None:
        terms.setdefault("policy", QUICK)
        self.pool = Pool(electors, workers, **terms)  # type: ignore[arg-type]
        replicas = [self.replica(person.identity, index) for index, person in enumerate(self.pool.people)]
        self.mesh = self.make_mesh(replicas, seed, loss)
        self.agree = set(range(electors))
        self.works = set(range(electors, electors + workers))
        self.mesh.on_notice = self._answer
        self.mesh.connect()
        self.mesh.at(0, 0, ev.Found(self.pool.spec))
        self.mesh.run(lambda: all(replica.ready for replica in self.mesh.replicas))
        for index in range(electors, electors + workers):
            self.mesh.at(1, index, ev.Join())
        self.mesh.run(
            lambda: all(len(replica.view.members.all()) == electors + workers for replica in self.mesh.replicas)
        )

    def replica(self, identity: Identity, index: int) -> Replica:
        return Replica(identity, self.pool.id, seed=index, digest_interval_ms=500)

    def make_mesh(self, replicas: list[Replica], seed: int, loss: float) -> Mesh:
        return Mesh(replicas, seed=seed, loss=loss)

    def _answer(self, node: int, notice: object) -> ev.Command | None:
        match notice:
            case ev.MotionMoved(motion) if node in self.agree:
                return ev.Say(motion, YES)
            case ev.TaskChanged(task, TaskState.PENDING) if node in self.works:
                return ev.Claim(task)
            case ev.ClaimWon(task) if node in self.works:
                return ev.Report(task, Outcome.COMPLETED, encode_value(node))
        return None

    def key(self, index: int) -> PublicKey:
        return self.pool.people[index].key

    @property
    def terms(self) -> PoolSpec:
        spec = self.mesh.replicas[0].view.spec
        assert spec is not None
        return spec

    def electors_of(self, *people: int) -> PoolSpec:
        return replace(self.terms, electors=tuple(sorted(self.key(index) for index in people)))

    def move(self, by: int = 0, expel: tuple[int, ...] = (), terms: PoolSpec | None = None) -> None:
        expelled = tuple(self.key(index) for index in expel)
        self.mesh.at(1, by, ev.Move(move_change(expelled, terms, "because")))

    def submit(self, name: bytes, by: int = 0) -> TaskId:
        self.mesh.at(1, by, ev.Submit(TaskSpec(name, "work", encode_value({}))))
        return self.task(name, by)

    def task(self, name: bytes, by: int) -> TaskId:
        """The id of the task that somebody submits under a key."""
        return task_id(self.pool.id, self.key(by), self.mesh.replicas[by].contents.task_key(name))

    def reach(self, epoch: int, among: tuple[int, ...] | None = None) -> None:
        nodes = range(len(self.mesh.replicas)) if among is None else among
        self.mesh.run(lambda: all(self.mesh.replicas[node].epoch == epoch for node in nodes))

    def settled(self, task: TaskId, among: tuple[int, ...] | None = None) -> bool:
        nodes = range(len(self.mesh.replicas)) if among is None else among
        registers = [self.mesh.replicas[node].view.registers.get(task) for node in nodes]
        return all(register is not None and register.state.terminal for register in registers)

    def settle(self, task: TaskId, among: tuple[int, ...] | None = None) -> None:
        self.mesh.run(lambda: self.settled(task, among))

    def states(self) -> set[bytes]:
        self.mesh.run(lambda: self.mesh.equal)
        return {replica.view.state_bytes() for replica in self.mesh.replicas}


@pytest.mark.parametrize("faults", [0, 1])
def test_a_carried_change_of_electors_comes_into_force_everywhere_and_the_pool_works_on(faults: int) -> None:
    live = Live(4, 2, faults=faults)
    before = live.submit(b"before")
    live.settle(before)
    live.move(terms=live.electors_of(0, 1, 2, 3, 4))
    live.reach(1)
    assert live.mesh.replicas[4].is_elector
    after = live.submit(b"after")
    live.settle(after)
    assert live.mesh.replicas[0].view.registers[after].settled_token is not None
    assert live.mesh.replicas[0].view.registers[after].settled_token[0] == 1
    assert len(live.states()) == 1


def test_a_change_that_too_few_want_changes_nothing_and_stops_nothing() -> None:
    live = Live(3, 1)
    live.agree = {0}
    live.move(terms=live.electors_of(0, 1, 2, 3))
    task = live.submit(b"meanwhile")
    live.settle(task)
    assert {replica.epoch for replica in live.mesh.replicas} == {0}


def test_of_two_changes_moved_at_once_one_is_made_and_the_other_lapses() -> None:
    live = Live(3, 2)
    live.move(0, terms=live.electors_of(0, 1, 2, 3))
    live.move(1, terms=live.electors_of(0, 1, 2, 4))
    live.reach(1)
    live.mesh.run_for(20_000)
    assert {replica.epoch for replica in live.mesh.replicas} == {1}
    assert len(live.terms.electors) == 4
    assert len(live.states()) == 1


def test_an_expelled_member_is_cut_and_what_it_submitted_before_survives() -> None:
    live = Live(3, 2)
    kept = live.submit(b"kept", by=4)
    live.settle(kept)
    live.move(expel=(4,))
    live.reach(1)
    for replica in live.mesh.replicas:
        assert not replica.view.members.has(live.key(4))
        assert replica.view.registers[kept].state is TaskState.COMPLETED
    told = [notice for node, notice in live.mesh.told if node == 0 and isinstance(notice, ev.MembersChanged)]
    assert not told[-1].joined
    assert len(live.states()) == 1


def test_an_elector_that_leaves_the_electorate_votes_no_more() -> None:
    live = Live(3, 2)
    live.move(terms=live.electors_of(0, 1, 3))
    live.reach(1)
    assert not live.mesh.replicas[2].is_elector
    task = live.submit(b"x", by=2)
    live.settle(task)
    certificate = live.mesh.replicas[0].view.registers[task].certificate
    assert live.key(2) not in certificate
    assert len(live.states()) == 1


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(6))
def test_changes_and_work_go_on_together_on_links_that_lose(seed: int) -> None:
    live = Live(3, 2, seed=seed, loss=0.2)
    tasks = [live.submit(b"a%d" % number, by=number % 5) for number in range(4)]
    live.move(seed % 3, terms=live.electors_of(0, 1, 2, 3))
    live.reach(1)
    tasks += [live.submit(b"b%d" % number, by=number % 5) for number in range(4)]
    live.move((seed + 1) % 3, terms=live.electors_of(0, 2, 3, 4))
    live.reach(2)
    for task in tasks:
        live.settle(task)
    assert len(live.states()) == 1
    assert not any(register.conflict for replica in live.mesh.replicas for register in replica.view.registers.values())


def test_a_governance_change_is_a_change_like_any_other() -> None:
    live = Live(3, 1)
    alone = replace(live.electors_of(1), governance=GovernanceKind.DICTATORIAL)
    live.move(terms=alone)
    live.reach(1)
    task = live.submit(b"x")
    live.settle(task)
    assert set(live.mesh.replicas[0].view.registers[task].certificate) == {live.key(1)}


def test_a_newcomer_that_reads_everything_at_once_has_the_same_state() -> None:
    live = Live(3, 2)
    task = live.submit(b"x")
    live.settle(task)
    live.move(expel=(4,), terms=live.electors_of(0, 1, 2, 3))
    live.reach(1)
    live.settle(live.submit(b"y"))
    (state,) = live.states()
    late = Replica(live.pool.people[0].identity, live.pool.id)
    stored = [
        signed
        for author in live.mesh.replicas[1].log.chains
        for signed in live.mesh.replicas[1].log.read(author, 0, 10**6)
    ]
    founding = next(signed for signed in stored if signed == live.mesh.replicas[1].view.genesis)
    effects = late.handle(
        ev.Restored((founding, *(signed for signed in reversed(stored) if signed != founding))), ev.Now(0, 0)
    )
    assert not notices(effects, ev.Rejected)
    assert late.view.state_bytes() == state


def test_terms_of_another_pool_are_no_change_of_this_one() -> None:
    live = Live(3, 1)
    motion = move_change((), replace(live.electors_of(0, 1), nonce=b"m" * 16))
    with pytest.raises(LocalError, match="never change"):
        live.mesh.replicas[0].handle(ev.Move(motion), ev.Now(live.mesh.now_ms, 0))


class TheFirstYesDecides(GovernanceModel):
    """A rule of a user: one yes is enough, whatever the formula says."""

    def resolve_dispute(self, context: DisputeContext) -> str | bytes | None:
        return b"yes" if b"yes" in context.ballots.values() else None


class Raises(GovernanceModel):
    def resolve_dispute(self, context: DisputeContext) -> str | bytes | None:
        raise ValueError("not today")


@pytest.mark.parametrize(("model", "found"), [(TheFirstYesDecides(), True), (Raises(), False)])
def test_a_users_model_answers_disputes_and_its_errors_decide_nothing(model: GovernanceModel, found: bool) -> None:
    live = Live(3, 1)
    rules = replace(live.mesh.replicas[0].view.counting.rules, model=model)
    electorate = electorate_of(frozenset(rules.electors), rules, 0)
    assert electorate.resolve is not None
    answer = electorate.resolve(
        b"t" * 32, (b"no", b"yes"), ((live.key(0), 0), (live.key(1), 1)), electorate.electors, ()
    )
    assert answer == (1 if found else None)


def removal_that_the_removed_certified(nonce: int, *, earlier_epochs: int = 0) -> Live:
    """Elector 2 is removed by the quorum of 0 and itself; of what is before its last votes nobody has all."""
    # who founds the epoch depends on the pool's id: the removed elector itself does in some of these
    live = Live(3, 1, nonce=bytes([nonce]) * 16)
    live.settle(live.submit(b"x", by=2))
    for number in range(1, earlier_epochs + 1):
        live.move(terms=replace(live.terms, policy=replace(QUICK, max_retries=3 + number)))
        live.reach(number)
    live.mesh.run(lambda: live.mesh.equal)
    # elector 1 hears nothing more: 0 and 2 are the quorum that removes 2
    live.mesh.deaf = {1}
    live.move(expel=(2,), terms=live.electors_of(0, 1))
    # between its promise and its other votes for the epoch it writes something that nobody keeps
    live.mesh.run(lambda: live.mesh.replicas[2]._elector.sealed)
    live.mesh.do(2, ev.Submit(TaskSpec(b"too late", "work", encode_value({}))))
    live.reach(earlier_epochs + 1, among=(0, 2, 3))
    live.mesh.run_for(3000)
    return live


@pytest.mark.parametrize("nonce", range(5))
def test_a_newcomer_learns_of_a_removal_that_only_the_removed_elector_certified_with_one_other(nonce: int) -> None:
    live = removal_that_the_removed_certified(nonce)
    removed = live.mesh.replicas[0]
    assert removed.log.frozen_at(live.key(2)) is not None
    pair = Mesh([removed, live.pool.replica(digest_interval_ms=500)], gossip=False)
    pair.now_ms = live.mesh.now_ms
    pair.connect()
    stored = stored_by(pair.replicas[1])
    pair.run(lambda: pair.equal and pair.replicas[1].epoch == 1)
    assert pair.replicas[1].view.state_bytes() == removed.view.state_bytes()
    again = live.pool.replica()
    again.handle(ev.Restored(tuple(dict.fromkeys(stored))), ev.Now(0, 0))
    assert again.epoch == 1, "an own operation may name the epoch, so a restart must not forget it"


@pytest.mark.parametrize("nonce", range(5))
def test_votes_on_a_removal_count_also_where_they_came_before_the_epoch_that_they_name(nonce: int) -> None:
    live = removal_that_the_removed_certified(nonce, earlier_epochs=1)
    knows, key = live.mesh.replicas[0], live.key(2)
    loose = knows.log.read_loose(key)
    assert loose
    assert {decode_operation(signed, live.pool.id).epoch for signed in loose} == {1}
    newcomer = live.pool.replica()
    stored = stored_by(newcomer)
    # it knows the elector, so that what names an epoch that it does not know yet waits
    newcomer.handle(ev.Received((knows.view.genesis,)), ev.Now(0, 0))
    newcomer.handle(ev.Received(tuple(knows.log.read(key, 0, 1))), ev.Now(0, 0))
    newcomer.handle(ev.Received(tuple(loose)), ev.Now(0, 0))
    for author in sorted(knows.log.chains):
        newcomer.handle(ev.Received(tuple(knows.log.read(author, 0, knows.log.length(author)))), ev.Now(0, 0))
    assert newcomer.epoch == 2
    assert newcomer.log.digest() == knows.log.digest()
    assert newcomer.view.state_bytes() == knows.view.state_bytes()
    again = live.pool.replica()
    again.handle(ev.Restored(tuple(dict.fromkeys(stored))), ev.Now(0, 0))
    assert again.epoch == 2


def test_nobody_who_was_expelled_can_be_made_an_elector_again() -> None:
    live = Live(3, 2)
    live.move(expel=(4,))
    live.reach(1)
    live.move(terms=live.electors_of(0, 1, 2, 4))
    live.mesh.run_for(20_000)
    assert {replica.epoch for replica in live.mesh.replicas} == {1}


# ------------------------------------------------------------ the fast path, speculation, a successor


def test_on_the_fast_path_one_signature_gives_the_first_round() -> None:
    live = Live(3, 2, policy=replace(QUICK, fast_path=True, hold_off_ms=50))
    task = live.submit(b"x")
    live.settle(task)
    register = live.mesh.replicas[0].view.registers[task]
    assert register.settled_token == (0, 0)
    grants = [
        ballot
        for author in live.mesh.replicas[0].log.chains
        for signed in live.mesh.replicas[0].log.read(author, 0, 10**6)
        if isinstance(body := decode_operation(signed, live.pool.id, trusted=True).body, VoteBody)
        for ballot in body.ballots
        if ballot.task == task and ballot.phase is Phase.GRANT
    ]
    assert len(grants) == 1


def test_if_the_granter_of_the_fast_path_is_silent_the_others_open_the_next_round() -> None:
    live = Live(3, 2, policy=replace(QUICK, fast_path=True))
    task = live.submit(b"x")
    live.mesh.run(lambda: all(task in replica.view.registers for replica in live.mesh.replicas))
    # the submitter is an elector, so it alone could grant round 0; from now on it hears nothing
    live.mesh.deaf = {0}
    others = live.mesh.replicas[1:]
    live.mesh.run(lambda: all(replica.view.registers[task].state.terminal for replica in others))
    token = others[0].view.registers[task].settled_token
    assert token is not None
    assert token >= (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_several_may_work_on_a_task_where_the_pool_speculates_and_one_result_is_settled(seed: int) -> None:
    terms = {"governance": GovernanceKind.EMPIRICAL, "model": ModelTerms(speculative=2)}
    live = Live(3, 3, seed=seed, loss=0.1, **terms)
    tasks = [live.submit(b"%d" % number) for number in range(3)]
    for task in tasks:
        live.settle(task)
    won = {(notice.task, node) for node, notice in live.mesh.told if isinstance(notice, ev.ClaimWon)}
    assert max(sum(name == task for name, _ in won) for task in tasks) >= 2
    assert len(live.states()) == 1


def led(live_seed: int = 0) -> Live:
    people = Pool(3, 2).people
    model = ModelTerms(leader=people[0].key, successor=people[1].key)
    return Live(3, 2, seed=live_seed, governance=GovernanceKind.DICTATORIAL, model=model)


def test_witnesses_record_what_the_leader_decides() -> None:
    live = led()
    live.agree = {0}
    task = live.submit(b"x", by=3)
    live.settle(task)
    live.move(terms=replace(live.terms, policy=replace(QUICK, max_retries=7)))
    live.reach(1)
    assert live.terms.policy.max_retries == 7
    assert len(live.states()) == 1


def test_the_successor_decides_when_the_leader_is_gone() -> None:
    live = led()
    live.mesh.run(lambda: live.mesh.equal)
    live.mesh.deaf = {0}
    task = live.submit(b"x", by=3)
    others = live.mesh.replicas[1:]
    live.mesh.run(
        lambda: all(
            (register := replica.view.registers.get(task)) is not None and register.state.terminal for replica in others
        )
    )
    assert live.key(0) not in others[0].view.registers[task].certificate


def test_members_coordinate_through_the_replica() -> None:
    live = Live(3, 2)
    polls = [replica.view.coordination.polls for replica in live.mesh.replicas]
    live.mesh.at(1, 0, OpenPoll("which day?", ("monday", "friday")))
    live.mesh.run(lambda: all(view.ids for view in polls))
    (poll,) = polls[0].ids
    for node in range(3):
        live.mesh.at(1, node, CastVote(poll, 1))
    live.mesh.run(lambda: all((seen := view.view(poll)) is not None and seen.winner == 1 for view in polls))
    assert len(live.states()) == 1


def test_no_epoch_is_made_of_a_promise_after_an_accept_that_no_quorum_endorsed_even_of_a_settled_task() -> None:
    # who does not know that the task is settled would begin the epoch with that accept as lock, and settle it again
    pool = Pool(4, 1, faults=1)
    task, submit = pool.submit()
    work = claim(pool.workers[0], task)
    grants = pool.votes(Phase.GRANT, task, 0, work.id, (0, 1, 3))
    value, stray = value_of(pool.workers[0], "result"), value_of(pool.workers[0], "stray")
    made = [*pool.base, submit, work, *grants, report(pool.workers[0], task, 0, value, grants)]
    for phase in (Phase.ENDORSE, Phase.ACCEPT):
        made += pool.votes(phase, task, 0, value.hash, (0, 1, 3))
    made += pool.votes(Phase.ACCEPT, task, 5, stray.hash, (2,))
    replica = pool.replica()
    feed(replica, made)
    assert replica.view.registers[task].state is TaskState.COMPLETED

    def fit(*who: int) -> bool:
        promises = [Grant(pool.electors[index].key, work.id, None, seq=pool.electors[index].seq) for index in who]
        return replica.view.next_change.fit(promises)

    assert fit(0, 1, 3)
    assert not fit(0, 1, 2)
