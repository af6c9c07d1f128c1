"""What became of a task and why, found in a real log: who did what, what each signature decided, and what is open."""

from __future__ import annotations

import random

import pytest
from coordination_kit import spec_of
from pool_kit import Author, Pool, claim, feed, release, report, value_of
from private_live_kit import PrivateLive
from test_auctions import Auction
from test_checkpoints import certified, run_timers, settled_pool
from test_delegation import Trust
from test_epochs import Live
from test_private_pool_live import ready, submit_secret
from test_vetoes import Vetoed

from converge_p2p.core import limits
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.model.task import Outcome, TaskState
from converge_p2p.core.oplog.bodies import Ballot, ClaimBody, Phase, Purpose, ReportBody, VoteBody
from converge_p2p.core.oplog.coordination import BidRevealBody
from converge_p2p.core.oplog.motions import YES, OpinionBody, dispute_result
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.oplog.verdicts import VerdictBody
from converge_p2p.core.replica.coordination import CancelFor, SubmitFor
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId
from converge_p2p.core.view.about_task import search, wanted
from converge_p2p.core.view.audit import HeldChain, held_chains
from converge_p2p.core.view.explaining import explain
from converge_p2p.core.view.explanation import Certificate, Decision, Explanation, StepKind, Tentative
from converge_p2p.core.view.receipt import Receipt, receipt_of


def explained(replica: Replica, task: TaskId, chains: list[HeldChain] | None = None) -> Explanation:
    view, log = replica.view, replica.log
    wants = wanted(view, log, task)
    found = search(held_chains(log) if chains is None else chains, wants)
    explanation = explain(
        view,
        log,
        wants,
        found,
        shown=view.task(task),
        opened=replica.contents.open_body,
        readable=replica.contents.open_motion,
    )
    assert explanation is not None
    return explanation


def kinds(explanation: Explanation) -> list[StepKind]:
    return [step.kind for step in explanation.steps]


def certificate(explanation: Explanation, decision: Decision, *, on_veto: bool = False) -> Certificate:
    (found,) = (one for one in explanation.certificates if one.decision is decision and one.on_veto is on_veto)
    return found


class Story:
    """A task of a pool with three electors that two workers want; operations are signed by hand."""

    def __init__(self, *, evaluator: str = "", **terms: object) -> None:
        self.pool = Pool(**terms)
        self.task, self.submit = self.pool.submit(evaluator=evaluator)
        self.worker, self.rival = self.pool.workers
        self.claims = [claim(self.worker, self.task), claim(self.rival, self.task)]
        self.grants = [self.pool.grant(who, self.task, 0, self.claims[0]) for who in (0, 1)]
        self.value = value_of(self.worker)
        self.replica = self.pool.replica()

    @property
    def assigned(self) -> list[Operation]:
        return [*self.pool.base, self.submit, *self.claims, *self.grants]

    def reported(self) -> Operation:
        self.report = report(self.worker, self.task, 0, self.value, self.grants)
        return self.report

    def settled(self) -> list[Operation]:
        """Everything up to the settlement; signed now."""
        self.reported()
        self.endorsements = self.pool.votes(Phase.ENDORSE, self.task, 0, self.value.hash)
        self.accepts = self.pool.votes(Phase.ACCEPT, self.task, 0, self.value.hash, (0, 2))
        return [*self.assigned, self.report, *self.endorsements, *self.accepts]

    def receipt(self) -> Receipt:
        receipt = receipt_of(self.replica.view, self.replica.log, self.task)
        assert receipt is not None
        return receipt

    def explained(self, operations: list[Operation]) -> Explanation:
        feed(self.replica, operations)
        return explained(self.replica, self.task)


def test_a_settled_task_tells_who_asked_claimed_and_won_and_whose_signatures_decided() -> None:
    story = Story()
    electors = [elector.key for elector in story.pool.electors]
    told = story.explained(story.settled())
    assert (told.state, told.submitter, told.worker) == (TaskState.COMPLETED, electors[0], story.worker.key)
    assert (told.value, told.tentative, told.left_out) == (story.value.hash, (), 0)
    counts = {kind: kinds(told).count(kind) for kind in StepKind if kind in kinds(told)}
    assert counts == {
        StepKind.SUBMITTED: 1, StepKind.CLAIMED: 2, StepKind.GRANTED: 2, StepKind.REPORTED: 1,
        StepKind.ENDORSED: 2, StepKind.ACCEPTED: 2,
    }  # fmt: skip
    assert all(step.counts and step.verified and not step.sealed for step in told.steps)
    won = certificate(told, Decision.CLAIM)
    assert (won.holder, won.claim, won.complete, won.granter) == (story.worker.key, story.claims[0].id, True, None)
    assert [signature.elector for signature in won.signatures] == sorted(electors[:2])
    settled = certificate(told, Decision.SETTLEMENT)
    assert told.settled_by is settled
    assert {signature.operation for signature in settled.signatures} == {vote.id for vote in story.accepts}
    assert settled.missing == (electors[1],)
    assert certificate(told, Decision.ENDORSEMENT).complete
    (terms,) = told.terms
    assert (terms.epoch, terms.spec, terms.signatures) == (0, story.pool.spec, ())
    # the receipt is made of the same votes
    assert story.receipt().signers == tuple(signature.elector for signature in settled.signatures)


def test_what_is_not_decided_is_said_to_be_tentative() -> None:
    story = Story()
    told = story.explained([*story.pool.base, story.submit, *story.claims, story.grants[0]])
    assert (told.state, told.tentative) == (TaskState.PENDING, (Tentative.PENDING,))
    assert not certificate(told, Decision.CLAIM).complete
    told = story.explained([story.grants[1]])
    assert (told.state, told.tentative) == (TaskState.ASSIGNED, (Tentative.HELD,))
    assert certificate(told, Decision.CLAIM).complete
    story.settled()
    told = story.explained([story.report, *story.endorsements, story.accepts[0]])
    assert (told.tentative, told.settled_by, told.worker) == ((Tentative.HELD,), None, None)
    lacking = certificate(told, Decision.SETTLEMENT)
    assert (lacking.complete, lacking.decides) == (False, False)
    told = story.explained([story.accepts[1]])
    assert (told.tentative, told.settled_by is not None) == ((), True)


def test_the_same_operations_in_any_order_are_the_same_explanation() -> None:
    story, order = Story(), random.Random(7)
    operations = story.settled()
    told = story.explained(operations)
    for _ in range(5):
        replica = story.pool.replica()
        order.shuffle(operations)
        for _ in range(3):
            # what was refused before it was known who is a member comes again
            feed(replica, operations)
        assert explained(replica, story.task) == told


def test_a_release_and_a_later_round_are_told_with_their_round() -> None:
    story = Story()
    given_back = release(story.worker, story.task, 0, failed=True)
    second = [story.pool.grant(who, story.task, 1, story.claims[1]) for who in (0, 1)]
    told = story.explained([*story.assigned, given_back, *second])
    (step,) = (step for step in told.steps if step.kind is StepKind.RELEASED)
    assert (step.author, step.round, step.counts) == (story.worker.key, 0, True)
    held = [(one.token.round, one.holder) for one in told.certificates if one.complete]
    assert held == [(0, story.worker.key), (1, story.rival.key)]


def test_votes_of_strangers_and_what_a_forked_worker_signed_are_told_and_do_not_count() -> None:
    story = Story()
    stranger = Author(99, story.pool.id)
    fake = stranger.sign(VoteBody((Ballot(Phase.ACCEPT, story.task, 0, story.value.hash),)))
    twin = story.rival.branch()
    forked = [story.rival.sign(ClaimBody(story.task, bid=1)), twin.sign(ClaimBody(story.task, bid=2))]
    feed(story.replica, [*story.settled(), *forked])
    told = story.explained([fake])
    void = {step.operation for step in told.steps if not step.counts}
    assert void >= {forked[0].id, forked[1].id}
    # who is no member may not even be kept; if it is, its vote is in no certificate
    assert fake.id not in {signature.operation for one in told.certificates for signature in one.signatures}
    assert story.claims[1].id not in void, "what it signed before its fork stands"


def test_a_result_that_was_reported_by_whom_the_round_was_not_granted_is_told_and_decides_nothing() -> None:
    story = Story()
    outsider = Author(98, story.pool.id)
    body = ReportBody(story.task, 0, value_of(outsider), ())
    told = story.explained([*story.assigned, report(story.rival, story.task, 0, value_of(story.rival), story.grants)])
    assert StepKind.REPORTED in kinds(told)
    assert told.settled_by is None
    feed(story.replica, [outsider.sign(body)])
    steps = [step for step in explained(story.replica, story.task).steps if step.author == outsider.key]
    assert not any(step.counts for step in steps)


def test_on_the_fast_path_one_elector_grants_the_first_round_and_is_named() -> None:
    story = Story(policy=PoolPolicy(fast_path=True))
    told = story.explained([*story.pool.base, story.submit, *story.claims, story.grants[0]])
    won = certificate(told, Decision.CLAIM)
    assert (won.granter, won.complete) == (story.pool.electors[0].key, True)


def test_a_cancellation_that_won_is_told_as_what_settled_the_task() -> None:
    story = Story()
    submitter = story.pool.electors[0]
    asked = submitter.sign(ClaimBody(story.task, Purpose.CANCEL, reason="no longer needed"))
    grants = [story.pool.grant(who, story.task, 1, asked) for who in (1, 2)]
    value = value_of(submitter, {"reason": "no longer needed"}, Outcome.CANCELLED)
    proposal = report(submitter, story.task, 1, value, grants)
    votes = [*story.pool.votes(Phase.ENDORSE, story.task, 1, value.hash, (1, 2))]
    votes += story.pool.votes(Phase.ACCEPT, story.task, 1, value.hash, (1, 2))
    told = story.explained([*story.assigned, asked, *grants, proposal, *votes])
    assert (told.state, told.value, told.worker) == (TaskState.CANCELLED, value.hash, submitter.key)
    (step,) = (step for step in told.steps if step.operation == asked.id)
    assert isinstance(step.said, ClaimBody)
    assert (step.kind, step.said.purpose, step.said.reason) == (StepKind.CLAIMED, Purpose.CANCEL, "no longer needed")
    assert told.settled_by is not None
    assert told.settled_by.token.round == 1


def test_a_dispute_is_told_with_its_answers_and_its_outcome_and_changes_nothing() -> None:
    story = Story()
    motion = story.rival.sign(dispute_result(story.task, "the sum is wrong"))
    told = story.explained([*story.settled(), motion])
    assert told.tentative == (Tentative.DISPUTED,)
    told = story.explained([story.pool.electors[who].sign(OpinionBody(motion.id, YES)) for who in (0, 1)])
    (dispute,) = told.disputes
    assert (dispute.motion.reason, dispute.outcome.value, len(dispute.ballots)) == ("the sum is wrong", "carried", 2)
    assert kinds(told).count(StepKind.ANSWERED) == 2
    assert (told.state, told.tentative) == (TaskState.COMPLETED, ())


def test_what_was_done_in_anothers_name_is_told_with_the_delegation_it_rests_on() -> None:
    trust = Trust()
    acted = trust.act(SubmitFor(spec_of()))
    cancelled = trust.act(CancelFor(trust.task_of_ann))
    told = explained(trust.replica, trust.task_of_ann)
    assert told.submitter == trust.ann.key
    assert {(step.kind, step.operation, step.author) for step in told.steps} == {
        (StepKind.DELEGATED, trust.given.id, trust.ann.key),
        (StepKind.SUBMITTED, acted.id, trust.dan.key),
        (StepKind.CLAIMED, cancelled.id, trust.dan.key),
    }
    assert all(step.counts for step in told.steps)


def test_in_a_private_pool_members_read_what_others_only_see_signed() -> None:
    live = PrivateLive()
    ready(live)
    task = submit_secret(live, b"x")
    live.settle(task)
    replica = live.mesh.replicas[0]
    told = explained(replica, task)
    assert not any(step.sealed for step in told.steps)
    outside = live.pool.replica()
    feed(outside, [decode_operation(signed, live.pool.id) for signed in live.store.stored[0]])
    theirs = explained(outside, task)
    sealed = {step.kind for step in theirs.steps if step.sealed}
    assert sealed == {StepKind.SUBMITTED, StepKind.REPORTED}
    # whose votes decided, everybody can tell
    assert theirs.certificates == told.certificates
    assert theirs.value == told.value
    (mine,) = (step.said for step in told.steps if step.kind is StepKind.REPORTED)
    (hidden,) = (step.said for step in theirs.steps if step.kind is StepKind.REPORTED)
    assert isinstance(mine, ReportBody)
    assert isinstance(hidden, ReportBody)
    assert (mine.value.hash, mine.value.result) != (hidden.value.hash, hidden.value.result)
    assert mine.value.hash == hidden.value.hash


def test_a_verdict_is_told_and_one_that_is_waited_for_is_said_to_be_open() -> None:
    judge = Author(3, Pool().id)
    story = Story(evaluator=f"agent:{fingerprint(judge.key)}")
    told = story.explained([*story.assigned, story.reported()])
    assert told.tentative == (Tentative.HELD, Tentative.AWAITS_VERDICT)
    verdicts = [author.sign(VerdictBody(story.task, story.value.hash, True, "fine")) for author in (
        story.pool.electors[2], story.rival,
    )]  # fmt: skip
    told = story.explained(verdicts)
    assert told.tentative == (Tentative.HELD,)
    judged = {step.operation: step.counts for step in told.steps if step.kind is StepKind.JUDGED}
    assert judged == {verdicts[0].id: True, verdicts[1].id: False}


def test_sealed_bids_and_what_they_were_are_told() -> None:
    auction = Auction()
    auction.run(dan=7, eve=5)
    told = explained(auction.replica, auction.task_id)
    assert kinds(told).count(StepKind.BID_SEALED) == kinds(told).count(StepKind.BID_OPENED) == 2
    assert {StepKind.AUCTION_OPENED, StepKind.AUCTION_CLOSED, StepKind.AUCTION_SETTLED} <= set(kinds(told))
    opened = {step.author: step.said.amount for step in told.steps if isinstance(step.said, BidRevealBody)}
    assert opened == {auction.dan.key: 7, auction.eve.key: 5}


@pytest.mark.parametrize(("word", "end"), [(True, TaskState.FAILED), (False, TaskState.COMPLETED)])
def test_a_veto_is_told_with_its_own_certificates(word: bool, end: TaskState) -> None:
    live = Vetoed(word=word)
    task = live.submit(b"x")
    live.await_veto(task)
    told = explained(live.mesh.replicas[0], task)
    if told.state is not end:
        assert Tentative.AWAITS_VETO in told.tentative
    assert live.ends(task) == {end}
    told = explained(live.mesh.replicas[0], task)
    assert (told.state, told.tentative) == (end, ())
    assert (StepKind.VETOED if word else StepKind.LET_PASS) in kinds(told)
    deciding = [(one.on_veto, one.decision) for one in told.certificates if one.decides]
    assert deciding == [(False, Decision.SETTLEMENT), (True, Decision.SETTLEMENT)]
    # the record of a live pool reads in the order in which it happened
    order = [kind for kind in kinds(told) if kind in (StepKind.SUBMITTED, StepKind.REPORTED, StepKind.ENDORSED)]
    assert order[:2] == [StepKind.SUBMITTED, StepKind.REPORTED]


def test_the_terms_of_a_later_epoch_are_told_with_the_signatures_that_certified_them() -> None:
    live = Live(3, 2)
    live.move(terms=live.electors_of(0, 1, 2, 3))
    live.reach(1)
    task = live.submit(b"x")
    live.settle(task)
    told = explained(live.mesh.replicas[4], task)
    (terms,) = told.terms
    assert terms.epoch == 1
    assert set(terms.spec.electors) == {live.key(number) for number in range(4)}
    signers = {signature.elector for signature in terms.signatures}
    assert signers <= {live.key(number) for number in range(3)}
    assert len(signers) >= 2
    assert all(signature.verified for signature in terms.signatures)


def test_of_a_task_below_a_checkpoint_the_end_is_told_and_that_the_rest_is_gone() -> None:
    pool, made, tasks = settled_pool(4)
    attested, _ = certified(pool, made)
    replica = pool.replica()
    feed(replica, [*made, *attested])
    before = explained(replica, tasks[0])
    run_timers(replica)
    told = explained(replica, tasks[0])
    assert (told.tentative, told.view, told.steps) == ((Tentative.COMPACTED,), None, ())
    assert (told.state, told.submitter, told.worker, told.value) == (
        before.state, before.submitter, before.worker, before.value
    )  # fmt: skip
    assert told.settled_by is not None
    assert before.settled_by is not None
    signers = [signature.elector for signature in told.settled_by.signatures]
    assert signers == [signature.elector for signature in before.settled_by.signatures]
    assert not any(signature.verified or signature.operation for signature in told.settled_by.signatures)


def test_a_signature_that_does_not_hold_is_shown_as_that() -> None:
    story = Story()
    feed(story.replica, story.settled())
    broken = story.accepts[0]
    chains = [
        chain._replace(
            prefix=tuple(bytes(64) + signed[64:] if signed == broken.signed else signed for signed in chain.prefix)
        )
        for chain in held_chains(story.replica.log)
    ]
    told = explained(story.replica, story.task, chains)
    assert told.tentative == (Tentative.UNVERIFIED,)
    (bad,) = (signature for signature in certificate(told, Decision.SETTLEMENT).signatures if not signature.verified)
    assert bad.operation == broken.id


def test_what_decided_is_kept_where_there_is_too_much_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    monkeypatch.setattr(limits, "EXPLAINED_STEPS_MAX", 4)
    more = [story.rival.sign(ClaimBody(story.task, bid=number)) for number in range(5)]
    told = story.explained([*story.settled(), *more])
    assert len(told.steps) == 4
    assert told.left_out == 15 - 4
    assert Tentative.INCOMPLETE in told.tentative
    assert certificate(told, Decision.SETTLEMENT).decides


def test_a_flood_about_a_task_is_not_looked_at_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    monkeypatch.setattr(limits, "EXPLAINED_BYTES_PER_AUTHOR_MAX", 4096)
    monkeypatch.setattr(limits, "EXPLAINED_BYTES_MAX", 16 * 1024)
    settled = story.settled()
    ballots = tuple(Ballot(Phase.ACCEPT, story.task, number, story.value.hash) for number in range(20))
    flood = [story.rival.sign(VoteBody(ballots)) for _ in range(40)]
    story.explained([*settled, *flood])
    log = story.replica.log
    wants = wanted(story.replica.view, log, story.task)
    looked_at = search(held_chains(log), wants).found
    assert sum(len(item.operation.signed) for item in looked_at if item.operation.author == story.rival.key) <= 4096
    told = explained(story.replica, story.task)
    honest = {step.operation for step in told.steps} - {each.id for each in flood}
    assert {each.id for each in (story.submit, *story.claims, story.report, *story.accepts)} <= honest
    assert told.left_out >= 30
    assert Tentative.INCOMPLETE in told.tentative
    # no room at all: what decided is there even so
    monkeypatch.setattr(limits, "EXPLAINED_BYTES_MAX", 0)
    assert certificate(explained(story.replica, story.task), Decision.SETTLEMENT).decides


def test_a_record_without_the_deciding_votes_says_that_it_is_not_whole() -> None:
    story = Story()
    feed(story.replica, story.settled())
    told = explained(story.replica, story.task, [])
    assert (told.state, told.settled_by) == (TaskState.COMPLETED, None)
    assert told.tentative == (Tentative.INCOMPLETE,)


def test_of_a_task_nobody_heard_of_nothing_is_told() -> None:
    story = Story()
    view, log = story.replica.view, story.replica.log
    for operations in ([], story.pool.base):
        feed(story.replica, operations)
        wants = wanted(view, log, TaskId(bytes(32)))
        assert explain(view, log, wants, search(held_chains(log), wants), shown=None) is None
    told = story.explained([story.claims[0]])
    assert (told.submitter, told.tentative[0]) == (None, Tentative.NEVER_SUBMITTED)
