"""The audit: who breaks a rule is named, who keeps them never is, and two certificates name what two quorums share."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Pool, claim, feed, lock, report, value_of
from test_epochs import Live

from converge_p2p.core.codec import encode_value
from converge_p2p.core.governance.formula import smallest_quorum
from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Lock, Phase, ReportBody, Token, VoteBody
from converge_p2p.core.oplog.log import OperationLog
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PublicKey, TaskId
from converge_p2p.core.view.audit import Finding, Rule, audit, culprits
from converge_p2p.core.view.epochs import epoch_subject

EXAMPLES = int(os.environ.get("CONVERGE_EXAMPLES", "200"))


class Trial:
    """A pool of `electors` of whom `faults` may lie, one task, two values, and votes written by hand."""

    def __init__(self, electors: int = 4, faults: int = 1, **terms: object) -> None:
        self.pool = Pool(electors, 2, faults=faults, **terms)
        self.task, submit = self.pool.submit()
        self.claim = claim(self.pool.workers[0], self.task)
        self.one, self.other = (value_of(self.pool.workers[0], content) for content in ("one", "other"))
        self.made: list[Operation] = [*self.pool.base, submit, self.claim]

    def vote(self, who: int | Author, *ballots: Ballot, epoch: int = 0) -> Operation:
        author = self.pool.electors[who] if isinstance(who, int) else who
        self.made.append(author.sign(VoteBody(ballots), epoch=epoch))
        return self.made[-1]

    def grant(self, number: int, locked: Lock | None = None) -> Ballot:
        return Ballot(Phase.GRANT, self.task, number, self.claim.id, locked)

    def endorse(self, number: int, value: TaskValue) -> Ballot:
        return Ballot(Phase.ENDORSE, self.task, number, value.hash)

    def accept(self, number: int, value: TaskValue) -> Ballot:
        return Ballot(Phase.ACCEPT, self.task, number, value.hash)

    def report(self, number: int, value: TaskValue, grants: Iterable[Operation]) -> Operation:
        self.made.append(report(self.pool.workers[0], self.task, number, value, grants))
        return self.made[-1]

    def replica(self) -> Replica:
        replica = self.pool.replica()
        feed(replica, self.made)
        assert all(replica.log.holds(operation.id) for operation in self.made)
        return replica

    def findings(self) -> list[Finding]:
        replica = self.replica()
        return audit(replica.log, replica.view)

    def only(self) -> Finding:
        """The one finding."""
        (found,) = self.findings()
        return found

    def key(self, index: int) -> PublicKey:
        return self.pool.electors[index].key


def test_who_votes_twice_in_one_round_and_phase_is_named_with_both_votes() -> None:
    trial = Trial()
    first = trial.vote(0, trial.grant(0))
    second = trial.vote(0, Ballot(Phase.GRANT, trial.task, 0, bytes(32)))
    assert trial.only() == Finding(trial.key(0), Rule.TWO_BALLOTS, (first.id, second.id), trial.task)


def test_the_same_ballot_twice_is_no_lie() -> None:
    trial = Trial()
    trial.vote(0, trial.grant(0))
    trial.vote(0, trial.grant(0))
    assert trial.findings() == []


def _round(trial: Trial, number: int, value: TaskValue, who: Iterable[int] = (0, 1, 2)) -> None:
    """A round as it should be, up to the endorsements."""
    grants = [trial.vote(index, trial.grant(number)) for index in who]
    trial.report(number, value, grants)
    for index in who:
        trial.vote(index, trial.endorse(number, value))


@pytest.mark.parametrize("phase", [Phase.ENDORSE, Phase.ACCEPT])
def test_who_votes_below_its_promise_is_named(phase: Phase) -> None:
    trial = Trial()
    _round(trial, 0, trial.one, (1, 2, 3))
    promise = trial.vote(0, trial.grant(1))
    late = trial.vote(0, Ballot(phase, trial.task, 0, trial.one.hash))
    assert trial.only() == Finding(trial.key(0), Rule.VOTE_BELOW_PROMISE, (promise.id, late.id), trial.task)


def test_who_promises_a_round_below_one_it_voted_in_is_named() -> None:
    trial = Trial()
    _round(trial, 0, trial.one)
    above = trial.vote(3, trial.grant(2))
    below = trial.vote(3, trial.grant(1))
    assert trial.only() == Finding(trial.key(3), Rule.PROMISE_TOO_LOW, (above.id, below.id), trial.task)


@pytest.mark.parametrize("told", [None, "another value", "an earlier round"])
def test_who_hides_what_it_accepted_is_named(told: str | None) -> None:
    trial = Trial()
    _round(trial, 0, trial.one)
    _round(trial, 1, trial.one)
    accepted = trial.vote(0, trial.accept(1, trial.one))
    locks = {None: None, "another value": lock(1, trial.other), "an earlier round": lock(0, trial.one)}
    promise = trial.vote(0, trial.grant(2, locks[told]))
    assert trial.only() == Finding(trial.key(0), Rule.HIDDEN_LOCK, (accepted.id, promise.id), trial.task)


def test_an_accept_in_the_same_vote_as_the_promise_may_not_be_hidden_either() -> None:
    trial = Trial()
    _round(trial, 0, trial.one)
    both = trial.vote(0, trial.accept(0, trial.one), trial.grant(1))
    assert trial.only() == Finding(trial.key(0), Rule.HIDDEN_LOCK, (both.id,), trial.task)


def test_who_tells_what_it_accepted_is_not_named() -> None:
    trial = Trial()
    _round(trial, 0, trial.one)
    trial.vote(0, trial.accept(0, trial.one), trial.grant(1, lock(0, trial.one)))
    trial.vote(0, trial.grant(2, lock(0, trial.one)))
    assert trial.findings() == []


def test_who_names_a_value_that_it_never_accepted_is_named() -> None:
    trial = Trial()
    promise = trial.vote(0, trial.grant(1, lock(0, trial.one)))
    assert trial.only() == Finding(trial.key(0), Rule.FALSE_LOCK, (promise.id,), trial.task)


def test_who_endorses_against_the_locks_is_named_unless_some_report_obeys_them() -> None:
    trial = Trial()
    _round(trial, 0, trial.one)
    for index in (0, 1):
        trial.vote(index, trial.accept(0, trial.one))
    grants = [trial.vote(index, trial.grant(1, lock(0, trial.one))) for index in (0, 1)]
    free = [trial.vote(index, trial.grant(1)) for index in (2, 3)]
    trial.report(1, trial.other, [*grants, free[0]])
    endorsed = trial.vote(3, trial.endorse(1, trial.other))
    assert trial.only() == Finding(trial.key(3), Rule.UNSUPPORTED_ENDORSEMENT, (endorsed.id,), trial.task)
    trial = Trial()
    grants = [trial.vote(index, trial.grant(1)) for index in (0, 1, 2)]
    trial.report(1, trial.other, grants[:2])
    trial.report(1, trial.other, grants)
    trial.vote(3, trial.endorse(1, trial.other))
    assert trial.findings() == []


def test_who_endorses_by_a_lock_that_no_quorum_endorsed_is_named_beside_who_made_it_up() -> None:
    trial = Trial()
    grants = [trial.vote(index, trial.grant(1)) for index in (1, 2)]
    grants.append(trial.vote(3, trial.grant(1, lock(0, trial.other))))
    trial.report(1, trial.other, grants)
    endorsed = trial.vote(0, trial.endorse(1, trial.other))
    found = {finding.elector: finding for finding in trial.findings()}
    assert found[trial.key(3)].rule is Rule.FALSE_LOCK
    assert found[trial.key(0)] == Finding(trial.key(0), Rule.UNSUPPORTED_ENDORSEMENT, (endorsed.id,), trial.task)
    assert len(found) == 2


def test_who_accepts_what_no_quorum_endorsed_is_named() -> None:
    trial = Trial()
    _round(trial, 0, trial.one, (0, 1, 2))
    accepted = trial.vote(0, trial.accept(0, trial.other))
    assert trial.only() == Finding(trial.key(0), Rule.UNSUPPORTED_ACCEPT, (accepted.id,), trial.task)
    assert not culprits([trial.only()], contradictions_only=True)


def test_who_votes_on_a_task_after_its_promise_for_the_next_epoch_is_named() -> None:
    trial = Trial()
    _round(trial, 0, trial.one, (0, 1, 2))
    promise = trial.vote(0, Ballot(Phase.GRANT, epoch_subject(trial.pool.id, 1), 0, trial.claim.id))
    late = trial.vote(0, trial.accept(0, trial.one))
    assert trial.only() == Finding(trial.key(0), Rule.VOTE_AFTER_SEAL, (promise.id, late.id), trial.task)


def test_a_promise_for_the_next_epoch_stands_in_a_vote_of_its_own() -> None:
    trial = Trial()
    _round(trial, 0, trial.one, (0, 1, 2))
    both = trial.vote(
        0, trial.accept(0, trial.one), Ballot(Phase.GRANT, epoch_subject(trial.pool.id, 1), 0, trial.claim.id)
    )
    assert trial.only() == Finding(trial.key(0), Rule.VOTE_AFTER_SEAL, (both.id,), trial.task)


def test_an_elector_that_forks_is_named_and_a_worker_that_forks_is_not_an_elector() -> None:
    trial = Trial()
    twin = trial.pool.electors[1].branch()
    votes = [trial.vote(1, trial.grant(0)), trial.vote(twin, trial.grant(1))]
    stranger = trial.pool.workers[1].branch()
    trial.made += [author.sign(ClaimBody(trial.task)) for author in (trial.pool.workers[1], stranger)]
    trial.made[-1:] = [stranger.sign(ClaimBody(trial.task, bid=1))]
    found = trial.findings()
    assert culprits(found) == [trial.key(1)]
    assert [(item.rule, item.proof) for item in found if item.rule is Rule.FORK] == [
        (Rule.FORK, tuple(sorted(vote.id for vote in votes)))
    ]


# ---------------------------------------------------------------- honest electors


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(5))
def test_honest_electors_are_never_named_whatever_is_held_when_the_audit_is_made(seed: int) -> None:
    faults = seed % 2
    live = Live(3 + faults, 2, seed=seed, loss=0.25, faults=faults)
    people = len(live.pool.people)
    tasks = [live.submit(b"a%d" % number, by=number % people) for number in range(3)]
    live.move(seed % 3, terms=live.electors_of(0, 1, 2, people - 1))
    for _ in range(40):
        live.mesh.run_for(50)
        for replica in live.mesh.replicas:
            assert not culprits(audit(replica.log, replica.view), contradictions_only=True)
    live.reach(1)
    tasks += [live.submit(b"b%d" % number, by=number % people) for number in range(3)]
    for task in tasks:
        live.settle(task)
    live.states()
    for replica in live.mesh.replicas:
        assert audit(replica.log, replica.view) == []


def test_nobody_is_named_for_a_vote_on_what_an_expelled_member_reported() -> None:
    live = Live(3, 2)
    live.settle(live.submit(b"x", by=4))
    live.move(expel=(4,))
    live.reach(1)
    live.settle(live.submit(b"y", by=1))
    live.states()
    for replica in live.mesh.replicas:
        assert audit(replica.log, replica.view) == []


@settings(max_examples=EXAMPLES // 8, deadline=None)
@given(st.data())
def test_a_part_of_what_an_honest_pool_signed_contradicts_nobody(data: st.DataObject) -> None:
    live, operations = _finished()
    part = OperationLog(live.pool.id)
    part.know_epoch(live.mesh.replicas[0].epoch)
    keep = data.draw(st.sets(st.integers(0, len(operations) - 1)))
    for index in sorted(keep | {0}):
        part.insert(operations[index])
    assert not culprits(audit(part, live.mesh.replicas[0].view), contradictions_only=True)


_kept: list[tuple[Live, list[Operation]]] = []


def _finished() -> tuple[Live, list[Operation]]:
    """A pool that changed its electors and settled tasks, and all its operations in the order of their chains."""
    if not _kept:
        from converge_p2p.core.oplog.operation import decode_operation

        live = Live(3, 2, seed=3, loss=0.1)
        live.settle(live.submit(b"before"))
        live.move(terms=live.electors_of(0, 1, 2, 3))
        live.reach(1)
        live.settle(live.submit(b"after"))
        live.states()
        chains = live.mesh.replicas[0].log.chains
        made = [decode_operation(signed, live.pool.id) for chain in chains.values() for signed in chain.signed]
        _kept.append((live, made))
    return _kept[0]


# ---------------------------------------------------------------- beyond f


class Riot(Trial):
    """Electors that say anything at all, and two certificates among it."""

    def __init__(self, seed: int, electors: int, faults: int, **terms: object) -> None:
        super().__init__(electors, faults, **terms)
        self.random = random.Random(seed)
        self.quorum = smallest_quorum(electors, faults)
        rounds = sorted(self.random.choices(range(3), k=2))
        self.certified = {(rounds[0], self.one), (rounds[1], self.other)}
        self.plan: dict[int, list[Ballot]] = {index: [] for index in range(electors)}
        self.grants: dict[int, list[Operation]] = {number: [] for number in range(3)}
        self._say()

    def _say(self) -> None:
        electors, rng = range(len(self.pool.electors)), self.random
        quorums = {place: set(rng.sample(electors, self.quorum)) for place in self.certified}
        careful = rng.random() < 0.7
        for number in range(3):
            for index in electors:
                if rng.random() < 0.8:
                    held = self._accepted(index) if careful and rng.random() < 0.8 else None
                    self.grants[number].append(self.vote(index, self.grant(number, held or self._any_lock())))
            for value in (self.one, self.other):
                for _ in range(rng.randint(0, 2)):
                    named = rng.sample(self.grants[number], min(len(self.grants[number]), self.quorum))
                    self.report(number, value, named)
                for index in electors:
                    if rng.random() < 0.45:
                        self.vote(index, self.endorse(number, value))
            for value in (self.one, self.other):
                for index in sorted(quorums.get((number, value), ())):
                    self.vote(index, self.accept(number, value))

    def _accepted(self, index: int) -> Lock | None:
        """What an honest elector would tell."""
        author = self.pool.electors[index].key
        told = [
            lock(ballot.round, self.one if ballot.ref == self.one.hash else self.other)
            for made in self.made
            if made.author == author and isinstance(made.body, VoteBody)
            for ballot in made.body.ballots
            if ballot.phase is Phase.ACCEPT
        ]
        return max(told, default=None)

    def _any_lock(self) -> Lock | None:
        rng = self.random
        if rng.random() < 0.8:
            return None
        return Lock(Token(0, rng.randrange(3)), rng.choice((self.one, self.other)).hash)


@pytest.mark.no_cover
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(
        [(n, f) for n, f in itertools.product(range(3, 8), range(3)) if smallest_quorum(n, f) < n or f == 0]
    ),
    st.booleans(),
)
def test_two_certified_values_name_as_many_electors_as_two_quorums_share(
    seed: int, size: tuple[int, int], direct: bool
) -> None:
    electors, faults = size
    policy = PoolPolicy(trusted_workers=direct and not faults, fast_path=False)
    riot = Riot(seed, electors, faults, policy=policy)
    replica = riot.replica()
    assert replica.view.registers[riot.task].conflict
    named = culprits(audit(replica.log, replica.view))
    assert len(named) >= 2 * riot.quorum - electors
    assert set(named) <= {elector.key for elector in riot.pool.electors}


def test_two_certified_epochs_name_as_many_electors_as_two_quorums_share() -> None:
    trial = Trial(4, 1)
    subject = epoch_subject(trial.pool.id, 1)
    values = [TaskValue(Outcome.COMPLETED, trial.key(index), encode_value(index)) for index in (0, 1)]
    for number, (value, who) in enumerate(zip(values, ((0, 1, 2), (1, 2, 3)), strict=True)):
        grants = [trial.vote(index, Ballot(Phase.GRANT, subject, number, trial.claim.id)) for index in who]
        names = tuple(sorted(grant.id for grant in grants))
        trial.made.append(trial.pool.electors[number].sign(ReportBody(subject, number, value, names)))
        for phase in (Phase.ENDORSE, Phase.ACCEPT):
            for index in who:
                trial.vote(index, Ballot(phase, subject, number, value.hash))
    replica = trial.replica()
    assert replica.view.changes[subject].conflict
    found = audit(replica.log, replica.view)
    assert set(culprits(found)) >= {trial.key(1), trial.key(2)}
    hidden = {item.elector for item in found if item.rule is Rule.HIDDEN_LOCK}
    assert hidden == {trial.key(1), trial.key(2)}


def test_findings_do_not_depend_on_the_order_of_arrival() -> None:
    riot = Riot(7, 5, 1)
    expected = riot.findings()
    assert expected
    for seed in range(5):
        rest = riot.made[1:]
        random.Random(seed).shuffle(rest)
        replica = riot.pool.replica()
        feed(replica, [riot.made[0]])
        feed(replica, rest)
        assert audit(replica.log, replica.view) == expected


def test_an_elector_that_lies_all_the_time_does_not_make_the_audit_endless() -> None:
    trial = Trial()
    for index in range(200):
        trial.vote(0, Ballot(Phase.GRANT, TaskId(bytes([index]) * 32), 1, trial.claim.id, lock(0, trial.one)))
    assert len(trial.findings()) == 64
