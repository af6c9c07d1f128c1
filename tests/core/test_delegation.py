"""Delegation: what a delegate does counts as its principal's, exactly as far as the delegation goes."""

from __future__ import annotations

import pytest
from coordination_kit import Table, spec_of
from pool_kit import WALL_MS, Author, Mesh, Pool, feed, signed

from converge_p2p.core.errors import Conflict, LocalError, NotAuthorised, NotFound
from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.model.task import TaskState, task_id
from converge_p2p.core.oplog.bodies import ActBody, ClaimBody, LeaveBody, Purpose, SubmitBody
from converge_p2p.core.oplog.coordination import AnswerBody, DelegateBody, PollVoteBody, RevokeBody, Scope
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.coordination import (
    ActFor,
    AnswerProposal,
    CancelFor,
    CastVote,
    CoordinationCommands,
    GiveDelegation,
    OpenNegotiation,
    OpenPoll,
    RevokeDelegation,
    SubmitFor,
)
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId, TaskId
from converge_p2p.core.view.polls import PollPhase

ALL = tuple(Scope)


class Trust(Table):
    """Ann delegates to dan."""

    def __init__(self, scopes: tuple[Scope, ...] = ALL, **limits: object) -> None:
        super().__init__()
        self.given = self.do(self.ann, GiveDelegation(self.dan.key, scopes, **limits))  # type: ignore[arg-type]

    def act(self, what: SubmitFor | CancelFor | CastVote | AnswerProposal) -> Operation:
        return self.do(self.dan, ActFor(self.given.id, what))

    @property
    def acts(self) -> list[OperationId]:
        """Acts that count."""
        delegations = self.coordination.delegations
        given = delegations.get(self.given.id)
        acts = [] if given is None else delegations.acts(given)
        return [act.operation for act in acts if given is not None and delegations.covers(given, act)]

    def submitter(self, task: TaskId) -> bytes | None:
        view = self.view.task(task)
        return None if view is None else view.submitter

    @property
    def task_of_ann(self) -> TaskId:
        return task_id(self.pool.id, self.ann.key, b"k")


def test_a_delegate_submits_as_its_principal() -> None:
    trust = Trust()
    trust.act(SubmitFor(spec_of()))
    assert trust.submitter(trust.task_of_ann) == trust.ann.key
    assert trust.ask(trust.dan, ActFor(trust.given.id, SubmitFor(spec_of()))) is None
    with pytest.raises(Conflict, match="different task"):
        trust.ask(trust.dan, ActFor(trust.given.id, SubmitFor(spec_of(priority=1))))


def test_the_principals_own_submit_goes_first_whichever_came_first() -> None:
    for own_first in (True, False):
        trust = Trust()
        own, acted = SubmitBody(spec_of(priority=1)), ActBody(trust.given.id, SubmitBody(spec_of(priority=2)))
        steps = [(trust.ann, own), (trust.dan, acted)]
        for who, body in steps if own_first else reversed(steps):
            trust.sign(who, body)
        view = trust.view.task(trust.task_of_ann)
        assert view is not None
        assert view.spec.priority == 1


def test_who_forks_loses_its_own_submit_and_its_delegates_and_nobody_elses() -> None:
    trust = Trust()
    trust.sign(trust.dan, ActBody(trust.given.id, SubmitBody(spec_of(priority=2))))
    ben_given = trust.do(trust.ben, GiveDelegation(trust.dan.key, ALL))
    trust.sign(trust.dan, ActBody(ben_given.id, SubmitBody(spec_of(priority=3))))
    # ben forks: his own submit goes, and since nobody acts for who forked, that of his delegate too
    other = trust.ben.branch()
    trust.sign(trust.ben, SubmitBody(spec_of(priority=4)))
    task = task_id(trust.pool.id, trust.ben.key, b"k")
    assert trust.submitter(task) == trust.ben.key
    trust.sign(other, SubmitBody(spec_of(priority=5)))
    assert trust.submitter(task) is None
    assert trust.submitter(trust.task_of_ann) == trust.ann.key


def test_a_delegate_stands_for_cancelling_its_principals_task() -> None:
    trust = Trust()
    task = trust.task(trust.ann)
    act = trust.act(CancelFor(task, "not needed"))
    standing = trust.view.registers[task].claims[act.id]
    assert (standing.author, standing.principal, standing.purpose) == (trust.dan.key, trust.ann.key, Purpose.CANCEL)
    foreign = trust.task(trust.ben)
    with pytest.raises(NotAuthorised, match="submitter"):
        trust.ask(trust.dan, ActFor(trust.given.id, CancelFor(foreign)))


def test_a_delegates_vote_is_its_principals() -> None:
    trust = Trust()
    poll = trust.do(trust.ben, OpenPoll("?", ("a", "b")))
    act = trust.act(CastVote(poll.id, 1))
    view = trust.coordination.polls.view(poll.id)
    assert view is not None
    assert view.votes[trust.ann.key][:2] == (act.id, 1)
    assert trust.dan.key not in view.votes


def test_a_poll_that_rests_on_a_delegates_vote_is_decided_and_not_final() -> None:
    trust = Trust()
    poll = trust.do(trust.ben, OpenPoll("?", ("a", "b")))
    for who in (trust.ben, trust.cid, trust.dan):
        trust.do(who, CastVote(poll.id, 0))
    trust.act(CastVote(poll.id, 0))
    view = trust.coordination.polls.view(poll.id)
    assert view is not None
    assert (view.phase, view.winner, view.final) == (PollPhase.DECIDED, 0, False)
    # the principal may say otherwise
    trust.do(trust.ann, CastVote(poll.id, 1))
    view = trust.coordination.polls.view(poll.id)
    assert view is not None
    assert view.phase is PollPhase.OPEN


def test_a_delegate_accepts_as_its_principal_and_the_principal_may_say_otherwise() -> None:
    trust = Trust()
    offer = trust.do(trust.ben, OpenNegotiation(b"ten", (trust.ann.key,)))
    trust.act(AnswerProposal(offer.id, accepts=True))
    talks = trust.coordination.negotiations.view(offer.id)
    assert talks is not None
    assert (talks.agreement, talks.final) == (offer.id, False)
    trust.do(trust.ann, AnswerProposal(offer.id, accepts=False))
    talks = trust.coordination.negotiations.view(offer.id)
    assert talks is not None
    assert talks.agreement is None


def test_nobody_accepts_its_own_offer_in_anothers_name() -> None:
    trust = Trust()
    offer = trust.do(trust.dan, OpenNegotiation(b"ten", (trust.ann.key,)))
    with pytest.raises(NotAuthorised, match="own proposal"):
        trust.ask(trust.dan, ActFor(trust.given.id, AnswerProposal(offer.id, accepts=True)))
    trust.sign(trust.dan, ActBody(trust.given.id, AnswerBody(offer.id, None, offer.id, accepts=True)))
    talks = trust.coordination.negotiations.view(offer.id)
    assert talks is not None
    assert talks.agreement is None


def test_only_the_delegate_acts_and_only_within_the_scopes() -> None:
    trust = Trust((Scope.CANCEL,))
    with pytest.raises(NotAuthorised, match="another agent"):
        trust.ask(trust.eve, ActFor(trust.given.id, SubmitFor(spec_of())))
    with pytest.raises(NotAuthorised, match="does not cover"):
        trust.ask(trust.dan, ActFor(trust.given.id, SubmitFor(spec_of())))
    for who in (trust.eve, trust.dan):
        trust.sign(who, ActBody(trust.given.id, SubmitBody(spec_of())))
    assert trust.submitter(trust.task_of_ann) is None


def test_a_delegation_for_one_subject_covers_no_other() -> None:
    table = Table()
    first, second = table.do(table.ben, OpenPoll("1?", ("a", "b"))), table.do(table.ben, OpenPoll("2?", ("a", "b")))
    given = table.do(table.ann, GiveDelegation(table.dan.key, ALL, subject=first.id))
    table.do(table.dan, ActFor(given.id, CastVote(first.id, 0)))
    with pytest.raises(NotAuthorised, match="does not cover"):
        table.ask(table.dan, ActFor(given.id, CastVote(second.id, 0)))
    table.sign(table.dan, ActBody(given.id, PollVoteBody(second.id, 0)))
    for poll, counted in ((first, 1), (second, 0)):
        view = table.coordination.polls.view(poll.id)
        assert view is not None
        assert len(view.votes) == counted


def test_a_delegation_for_one_topic_covers_only_tasks_of_that_topic() -> None:
    trust = Trust(ALL, topic=b"tea")
    tea, rum = trust.task(trust.ann, b"tea", topic=b"tea"), trust.task(trust.ann, b"rum", topic=b"rum")
    poll = trust.do(trust.ben, OpenPoll("?", ("a", "b")))
    trust.act(CancelFor(tea))
    trust.act(SubmitFor(spec_of(b"more", topic=b"tea")))
    for what in (CancelFor(rum), SubmitFor(spec_of(b"else", topic=b"rum")), CastVote(poll.id, 0)):
        with pytest.raises(NotAuthorised, match="does not cover"):
            trust.ask(trust.dan, ActFor(trust.given.id, what))
    trust.sign(trust.dan, ActBody(trust.given.id, ClaimBody(rum, Purpose.CANCEL)))
    assert trust.view.registers[rum].claims == {}
    assert len(trust.acts) == 2


def test_a_task_whose_submit_is_void_has_no_topic_any_more() -> None:
    trust = Trust(ALL, topic=b"tea")
    other = trust.ben.branch()
    task = trust.task(trust.ben, topic=b"tea")
    trust.sign(trust.dan, ActBody(trust.given.id, ClaimBody(task, Purpose.CANCEL)))
    assert len(trust.acts) == len(trust.view.registers[task].claims) == 1
    trust.sign(other, SubmitBody(spec_of(b"other")))
    assert trust.acts == []
    assert trust.view.registers[task].claims == {}


def test_a_revocation_is_a_cut_in_the_delegates_chain() -> None:
    trust = Trust()
    before = trust.act(SubmitFor(spec_of(b"before")))
    # an act that the delegator has not seen when it revokes is void, though it is older than the revocation
    unseen = trust.dan.sign(ActBody(trust.given.id, SubmitBody(spec_of(b"unseen"))))
    revoked = trust.do(trust.ann, RevokeDelegation(trust.given.id))
    assert isinstance(revoked.body, RevokeBody)
    assert revoked.body.delegate_length == before.seq + 1
    feed(trust.replica, [unseen])
    assert trust.acts == [before.id]
    with pytest.raises(NotAuthorised, match="revoked"):
        trust.ask(trust.dan, ActFor(trust.given.id, SubmitFor(spec_of(b"after"))))
    assert trust.ask(trust.ann, RevokeDelegation(trust.given.id)) is None


def test_a_revocation_takes_back_what_acts_above_the_cut_did_to_tasks() -> None:
    trust = Trust()
    task = trust.task(trust.ann, b"own")
    trust.act(SubmitFor(spec_of()))
    cancel = trust.act(CancelFor(task))
    assert cancel.id in trust.view.registers[task].claims
    trust.sign(trust.ann, RevokeBody(trust.given.id, 0))
    assert trust.submitter(trust.task_of_ann) is None
    assert trust.view.registers[task].claims == {}


def test_only_the_delegator_revokes_and_only_once() -> None:
    trust = Trust()
    trust.act(SubmitFor(spec_of()))
    for who in (trust.dan, trust.ben):
        with pytest.raises(NotAuthorised, match="delegator"):
            trust.ask(who, RevokeDelegation(trust.given.id))
        trust.sign(who, RevokeBody(trust.given.id, 0))
    assert len(trust.acts) == 1
    trust.do(trust.ann, RevokeDelegation(trust.given.id))
    trust.sign(trust.ann, RevokeBody(trust.given.id, 0))
    assert len(trust.acts) == 1


def test_a_delegation_ends_with_its_epoch() -> None:
    trust = Trust(ALL, until_epoch=1)
    with pytest.raises(Conflict, match="epoch 1"):
        trust.ask(trust.dan, ActFor(trust.given.id, SubmitFor(spec_of())), epoch=2)
    # the log takes an operation once its epoch is known; here the fold is asked directly
    trust.view.apply(trust.dan.sign(ActBody(trust.given.id, SubmitBody(spec_of(b"late"))), epoch=2))
    in_time = trust.dan.sign(ActBody(trust.given.id, SubmitBody(spec_of(b"in time"))), epoch=1)
    trust.view.apply(in_time)
    assert trust.acts == [in_time.id]


def test_after_the_advised_time_the_delegates_node_stops() -> None:
    trust = Trust(ALL, expires_ms=WALL_MS)
    command = ActFor(trust.given.id, SubmitFor(spec_of()))
    with pytest.raises(Conflict, match="over"):
        trust.ask(trust.dan, command, wall_ms=WALL_MS)
    assert trust.ask(trust.dan, command, wall_ms=WALL_MS - 1) is not None


def test_a_delegate_that_is_no_member_does_nothing() -> None:
    trust = Trust()
    trust.sign(trust.dan, LeaveBody())
    with pytest.raises(NotAuthorised, match="active member"):
        trust.ask(trust.dan, ActFor(trust.given.id, SubmitFor(spec_of())))
    trust.sign(trust.dan, ActBody(trust.given.id, SubmitBody(spec_of())))
    assert trust.submitter(trust.task_of_ann) is None


def test_nobody_acts_for_somebody_who_forked() -> None:
    trust = Trust()
    trust.act(SubmitFor(spec_of()))
    other = trust.ann.branch()
    trust.sign(trust.ann, LeaveBody())
    assert len(trust.acts) == 1
    trust.sign(other, SubmitBody(spec_of(b"other")))
    assert trust.view.members.frozen()
    assert trust.acts == []
    assert trust.submitter(trust.task_of_ann) is None


def test_nobody_acts_for_a_removed_member_from_the_epoch_on_that_removed_it() -> None:
    trust = Trust(ALL, until_epoch=5)
    acts = [ActBody(trust.given.id, SubmitBody(spec_of(b"%d" % epoch))) for epoch in range(3)]
    before = trust.dan.sign(acts[0])
    trust.view.apply(before)
    trust.coordination.expel(trust.ann.key, 1)
    # what was done in its name under the old epoch stands, also where it arrives only now
    late = trust.dan.sign(acts[1])
    trust.view.apply(late)
    trust.view.apply(trust.dan.sign(acts[2], epoch=1))
    assert trust.acts == [before.id, late.id]


def test_a_delegate_that_forks_takes_its_acts_back() -> None:
    trust = Trust()
    kept = trust.act(SubmitFor(spec_of(b"kept")))
    other = trust.dan.branch()
    trust.act(SubmitFor(spec_of()))
    trust.sign(other, ActBody(trust.given.id, SubmitBody(spec_of(b"branch"))))
    assert trust.acts == [kept.id]
    assert trust.submitter(trust.task_of_ann) is None


def test_of_delegates_that_contradict_each_other_the_same_one_counts_everywhere() -> None:
    trust = Trust()
    second = trust.do(trust.ann, GiveDelegation(trust.eve.key, ALL))
    poll = trust.do(trust.ben, OpenPoll("?", ("a", "b")))
    offer = trust.do(trust.ben, OpenNegotiation(b"ten", (trust.ann.key,)))
    acts = [
        who.sign(ActBody(given.id, what))
        for who, given, choice in ((trust.dan, trust.given, 0), (trust.eve, second, 1))
        for what in (
            PollVoteBody(poll.id, choice),
            AnswerBody(offer.id, None, offer.id, accepts=bool(choice)),
            SubmitBody(spec_of(priority=choice)),
        )
    ]
    seen = set()
    for order in (acts, acts[3:] + acts[:3]):
        replica = trust.pool.replica()
        feed(replica, [*trust.pool.base, trust.given, second, poll, offer, *order])
        votes = replica.view.coordination.polls.view(poll.id)
        talks = replica.view.coordination.negotiations.view(offer.id)
        task = replica.view.task(trust.task_of_ann)
        assert votes is not None
        assert talks is not None
        assert task is not None
        assert votes.votes[trust.ann.key].operation == min(acts[0].id, acts[3].id)
        assert (talks.agreement is not None) == (acts[4].id < acts[1].id)
        assert task.spec.priority == (0 if acts[2].id < acts[5].id else 1)
        seen.add(replica.view.state_bytes())
    assert len(seen) == 1


def test_the_same_thing_is_done_once_under_a_delegation() -> None:
    trust = Trust()
    first = trust.sign(trust.dan, ActBody(trust.given.id, SubmitBody(spec_of(priority=1))))
    trust.sign(trust.dan, ActBody(trust.given.id, SubmitBody(spec_of(priority=2))))
    assert trust.acts == [first.id]


def test_what_cannot_be_a_delegation_is_refused_before_it_is_signed() -> None:
    table = Table()
    with pytest.raises(LocalError, match="own name"):
        table.ask(table.ann, GiveDelegation(table.ann.key, ALL))
    with pytest.raises(LocalError, match="allows nothing"):
        table.ask(table.ann, GiveDelegation(table.dan.key, ()))
    with pytest.raises(NotFound, match="not a member"):
        table.ask(table.ann, GiveDelegation(Author(99, table.pool.id).key, ALL))
    with pytest.raises(NotFound, match="no delegation"):
        table.ask(table.ann, RevokeDelegation(OperationId(bytes(32))))
    # a self-made delegation to oneself is no way to vote twice
    given = table.sign(table.ann, DelegateBody(table.ann.key, ALL))
    table.sign(table.ann, ActBody(given.id, SubmitBody(spec_of())))
    assert table.view.task(task_id(table.pool.id, table.ann.key, b"k")) is None


class Working:
    """A pool that really works: three electors and dan, each with a replica."""

    def __init__(self) -> None:
        self.pool = Pool(electors=3, workers=1, policy=PoolPolicy(grant_timer_ms=100))
        self.mesh = Mesh([Replica(one.identity, self.pool.id, seed=n) for n, one in enumerate(self.pool.people)])
        self.mesh.connect()
        self.mesh.at(0, 0, ev.Found(self.pool.spec))
        self.mesh.at(1500, 3, ev.Join())
        self.mesh.run_for(4000)

    def do(self, node: int, command: GiveDelegation | ActFor) -> Operation:
        """Let a node give a command, and everybody hear of it."""
        replica, author = self.mesh.replicas[node], self.pool.people[node]
        key = author.key
        body = CoordinationCommands(key, replica.view, replica.log.length).body_for(command)
        assert body is not None
        author.seq, author.prev = replica.log.length(key), replica.log.chains[key].head
        author.hlc = replica.log.chains[key].hlc
        operation = author.sign(body)
        for number in (node, *range(4)):
            self.mesh.do(number, ev.Received(signed([operation])))
        return operation


def test_a_pool_settles_a_cancellation_that_a_delegate_asked_for_while_the_principal_is_away() -> None:
    working = Working()
    mesh = working.mesh
    mesh.do(0, ev.Submit(spec_of()))
    mesh.run_for(2000)
    given = working.do(0, GiveDelegation(working.pool.people[3].key, (Scope.CANCEL,)))
    mesh.run_for(1000)
    task = task_id(working.pool.id, working.pool.people[0].key, b"k")
    # the principal's node is cut off; two of three electors and the delegate go on
    mesh._heap = [event for event in mesh._heap if event[2] != 0]
    away = mesh.replicas[0]
    mesh.replicas[0] = working.pool.replica(201)
    working.do(3, ActFor(given.id, CancelFor(task, "not needed")))
    mesh.run(lambda: all(one.view.registers[task].state is TaskState.CANCELLED for one in mesh.replicas[1:]))
    value = mesh.replicas[1].view.registers[task].value
    assert value is not None
    assert value.worker == working.pool.people[3].key
    assert away.view.registers[task].settled is None
