"""What members coordinate is the same for whoever holds the same operations: in any order, twice, and with forks."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Pool, claim, now, signed

from converge_p2p.core.codec import encode_value
from converge_p2p.core.model.task import TaskSpec, task_id
from converge_p2p.core.oplog import operation as operation_module
from converge_p2p.core.oplog.bodies import ActBody, Body, ClaimBody, JoinBody, LeaveBody, Purpose, SubmitBody
from converge_p2p.core.oplog.coordination import (
    AnswerBody,
    AuctionCloseBody,
    AuctionOpenBody,
    AuctionRule,
    AuctionSettleBody,
    BidCommitBody,
    BidRevealBody,
    DelegateBody,
    PollCloseBody,
    PollOpenBody,
    PollRule,
    PollVoteBody,
    ProposeBody,
    RevokeBody,
    Scope,
    bid_commitment,
)
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import OperationId
from converge_p2p.core.view.auctions import AuctionPhase
from converge_p2p.core.view.polls import PollPhase

EXAMPLES = int(os.environ.get("CONVERGE_EXAMPLES", "250")) // 2


@pytest.fixture(autouse=True)
def _verify_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_module, "verify", functools.lru_cache(None)(operation_module.verify))


class Script:
    """Random coordination: steps that follow each other, steps that do not, forks, and people who come and go."""

    def __init__(self, seed: int, *, forks: bool = True, delegates: bool = True) -> None:
        self.random = random.Random(seed)
        self.pool = Pool(electors=3, workers=2)
        self.people = list(self.pool.people)
        self.made: list[Operation] = list(self.pool.base)
        self.forks, self.delegates = forks, delegates
        self.bids: dict[tuple[OperationId, bytes], tuple[OperationId, int, bytes]] = {}
        self.tasks = [task_id(self.pool.id, person.key, b"0") for person in self.people[:2]]
        for person in self.people[:2]:
            self.put(person, SubmitBody(TaskSpec(b"0", "work", encode_value(0), b"topic")))

    def put(self, author: Author, body: Body) -> Operation:
        self.made.append(author.sign(body))
        return self.made[-1]

    def some(self, *kinds: type) -> Operation | None:
        found = [operation for operation in self.made if isinstance(operation.body, kinds)]
        return self.random.choice(found) if found else None

    def author_of(self, operation: Operation) -> Author:
        """The author, in one of its branches."""
        return self.random.choice([person for person in self.people if person.key == operation.author])

    def write(self, count: int) -> list[Operation]:
        kinds = [self.auction_round, self.poll_round, self.auction, self.auction, self.poll, self.poll]
        kinds += [self.negotiation, self.negotiation]
        if self.delegates:
            kinds += [self.delegation, self.delegation, self.act, self.act]
        for _ in range(count):
            author = self.random.choice(self.people)
            if self.forks and self.random.random() < 0.04:
                author = author.branch()
                self.people.append(author)
            if self.forks and self.random.random() < 0.03:
                self.put(author, self.random.choice((JoinBody(), LeaveBody(), JoinBody())))
            elif self.random.random() < 0.05:
                self.made.append(claim(author, self.random.choice(self.tasks), Purpose.CANCEL))
            else:
                self.random.choice(kinds)(author)
        return self.made

    # ------------------------------------------------------------ what people say

    def auction(self, author: Author) -> None:
        opened = self.some(AuctionOpenBody)
        if opened is None or self.random.random() < 0.15:
            rule = AuctionRule(self.random.random() < 0.5, self.random.random() < 0.5)
            owner = self.people[self.random.randrange(2)] if self.random.random() < 0.8 else author
            self.put(owner, AuctionOpenBody(self.random.choice(self.tasks), rule))
            return
        auction, step = opened.id, self.random.random()
        if self.random.random() < 0.85 and step >= 0.7:
            author = self.author_of(opened)
        bids = {bidder: commit for (one, bidder), (commit, _, _) in self.bids.items() if one == auction}
        if step < 0.4:
            amount, secret = self.random.randrange(4), bytes([self.random.randrange(256)]) * 32
            commit = self.put(author, BidCommitBody(auction, bid_commitment(auction, author.key, amount, secret)))
            self.bids[auction, author.key] = (commit.id, amount, secret)
        elif step < 0.7:
            own = self.bids.get((auction, author.key))
            if own is not None:
                commit_id, amount, secret = own
                self.put(author, BidRevealBody(auction, commit_id, amount + (self.random.random() < 0.1), secret))
        elif step < 0.85:
            named = sorted(bids.items())
            self.put(author, AuctionCloseBody(auction, tuple(named[: self.random.randrange(1, 6)])))
        else:
            self.put(author, AuctionSettleBody(auction, tuple(sorted(bids)[: self.random.randrange(1, 6)])))

    def auction_round(self, author: Author) -> None:
        """An auction as it should be, but for a bidder that stays silent."""
        pick, owner = self.random, self.people[self.random.randrange(2)]
        task = self.tasks[[person.key for person in self.pool.people].index(owner.key)]
        before = [one for one in self.made if isinstance(one.body, AuctionOpenBody) and one.author == owner.key]
        rule = AuctionRule(pick.random() < 0.5, pick.random() < 0.5)
        opened = before[0] if before else self.put(owner, AuctionOpenBody(task, rule))
        bidders = [person for person in self.pool.people if person.key != owner.key and pick.random() < 0.7]
        amounts = {bidder.key: pick.randrange(4) for bidder in bidders}
        commits = {
            bidder.key: self.put(
                bidder, BidCommitBody(opened.id, bid_commitment(opened.id, bidder.key, amounts[bidder.key], bytes(32)))
            ).id
            for bidder in bidders
        }
        self.put(owner, AuctionCloseBody(opened.id, tuple(sorted(commits.items()))))
        told = [bidder for bidder in bidders if pick.random() < 0.9]
        for bidder in told:
            self.put(bidder, BidRevealBody(opened.id, commits[bidder.key], amounts[bidder.key], bytes(32)))
        self.put(owner, AuctionSettleBody(opened.id, tuple(sorted(bidder.key for bidder in told))))

    def poll_round(self, author: Author) -> None:
        """A poll in which everybody asked votes, for anything."""
        asked = self.random.sample(self.pool.people, 4)
        keys = tuple(sorted(person.key for person in asked))
        opened = self.put(author, PollOpenBody("?", ("a", "b"), self.random.choice(list(PollRule)), 0, keys))
        if self.delegates and self.random.random() < 0.5:
            silent, delegate = asked.pop(), asked[0]
            given = self.put(silent, DelegateBody(delegate.key, (Scope.VOTE,), opened.id))
            self.put(delegate, ActBody(given.id, PollVoteBody(opened.id, self.random.randrange(2))))
        for person in asked:
            self.put(person, PollVoteBody(opened.id, self.random.randrange(2)))

    def poll(self, author: Author) -> None:
        opened = self.some(PollOpenBody)
        if opened is None or self.random.random() < 0.15:
            keys = tuple(sorted({person.key for person in self.people}))
            rule, quorum = self.random.choice(list(PollRule)), self.random.choice((0, 0, 2, 4))
            self.put(author, PollOpenBody("?", ("a", "b", "c"), rule, quorum, keys[: self.random.choice((3, 4, 5))]
                                          if quorum < 4 else keys))  # fmt: skip
        elif self.random.random() < 0.8:
            self.put(author, PollVoteBody(opened.id, self.random.choice((0, 0, 0, 1, 2, 5))))
        else:
            votes = {one.id for one in self.made if isinstance(one.body, PollVoteBody | ActBody)}
            chosen = self.random.sample(sorted(votes), min(len(votes), 3))
            self.put(self.author_of(opened), PollCloseBody(opened.id, tuple(sorted(chosen))))

    def negotiation(self, author: Author) -> None:
        answered = self.some(ProposeBody)
        if answered is None or self.random.random() < 0.15:
            others = sorted({person.key for person in self.people} - {author.key})
            count = self.random.choice((1, 1, 2))
            self.put(author, ProposeBody(None, None, b"terms", tuple(sorted(self.random.sample(others, count)))))
            return
        assert isinstance(answered.body, ProposeBody)
        session = answered.body.session or answered.id
        if self.random.random() < 0.3:
            self.put(author, ProposeBody(session, answered.id, b"other"))
        else:
            self.put(author, self.answer(answered))

    def answer(self, answered: Operation) -> AnswerBody:
        assert isinstance(answered.body, ProposeBody)
        session, prev = answered.body.session or answered.id, answered.body.prev
        if self.random.random() < 0.05:
            prev = answered.id
        return AnswerBody(session, prev, answered.id, self.random.random() < 0.8)

    def delegation(self, author: Author) -> None:
        given = self.some(DelegateBody)
        if given is None or self.random.random() < 0.6:
            scopes = tuple(sorted(self.random.sample(list(Scope), self.random.randrange(1, 5))))
            subject = self.random.choice((None, None, self.tasks[0]))
            topic = self.random.choice((b"", b"", b"topic"))
            self.put(author, DelegateBody(self.random.choice(self.people).key, scopes, subject, topic))
        else:
            who = self.author_of(given) if self.random.random() < 0.8 else author
            self.put(who, RevokeBody(given.id, self.random.randrange(12)))

    def act(self, author: Author) -> None:
        given, poll, offer = self.some(DelegateBody), self.some(PollOpenBody), self.some(ProposeBody)
        if given is None:
            return
        assert isinstance(given.body, DelegateBody)
        delegates = [person for person in self.people if person.key == given.body.delegate]
        if self.random.random() < 0.9:
            author = self.random.choice(delegates)
        what: list[SubmitBody | ClaimBody | PollVoteBody | AnswerBody] = [
            SubmitBody(TaskSpec(b"%d" % self.random.randrange(2), "work", encode_value(self.random.randrange(99)),
                                self.random.choice((b"", b"topic")))),
            ClaimBody(self.random.choice(self.tasks), Purpose.CANCEL),
            ClaimBody(task_id(self.pool.id, given.author, b"1"), Purpose.CANCEL),
        ]  # fmt: skip
        if poll is not None:
            what.append(PollVoteBody(poll.id, self.random.randrange(3)))
        if offer is not None:
            what.append(self.answer(offer))
        self.put(author, ActBody(given.id, self.random.choice(what)))


def deliveries(operations: list[Operation], order: random.Random) -> Iterator[tuple[bytes, ...]]:
    yield (operations[0].signed,)
    rest = operations[1:] + order.sample(operations, len(operations) // 4)
    order.shuffle(rest)
    while rest:
        size = order.randrange(1, 8)
        batch, rest = rest[:size], rest[size:]
        yield signed(batch)


def replayed(pool: Pool, operations: list[Operation], order: random.Random) -> Replica:
    replica = pool.replica()
    for batch in deliveries(operations, order):
        replica.handle(ev.Received(batch), now())
        if order.random() < 0.3:
            # reading must change nothing, remembered views least of all
            replica.view.state_bytes()
    return replica


def whole(replica: Replica) -> object:
    """Everything that can be read, the parts that do not stand in the state too."""
    view, coordination = replica.view, replica.view.coordination
    registers = {
        task: (register.submitted, sorted(register.claims.items()))
        for task, register in sorted(view.registers.items())
        if register.submitted is not None or register.claims
    }
    return (
        view.state_bytes(),
        registers,
        coordination.auctions.views(),
        [coordination.polls.view(poll) for poll in coordination.polls.ids],
        [coordination.negotiations.view(session) for session in coordination.negotiations.ids],
        list(coordination.delegations.all()),
        [coordination.auctions.unrevealed(person.key) for person in sorted_people(replica)],
    )


def sorted_people(replica: Replica) -> list[Author]:
    return [Author(number, replica.pool) for number in range(1, 6)]


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_random_coordination_makes_one_state(seed: int) -> None:
    script = Script(seed)
    operations = script.write(45)
    order = random.Random(seed)
    replicas = [replayed(script.pool, operations, order) for _ in range(3)]
    assert len({replica.log.digest() for replica in replicas}) == 1
    first = whole(replicas[0])
    assert all(whole(replica) == first for replica in replicas[1:])


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None)
def test_without_forks_nothing_that_is_final_changes_when_more_arrives(seed: int) -> None:
    script = Script(seed, forks=False)
    operations = script.write(45)
    order = random.Random(seed)
    replica = script.pool.replica()
    polls: dict[OperationId, tuple[PollPhase, int | None]] = {}
    agreed: dict[OperationId, tuple[int, OperationId]] = {}
    won: dict[OperationId, tuple[bytes, int]] = {}
    for batch in deliveries(operations, order):
        replica.handle(ev.Received(batch), now())
        coordination = replica.view.coordination
        for poll_id in coordination.polls.ids:
            poll = coordination.polls.view(poll_id)
            assert poll is not None
            if poll_id in polls:
                assert (poll.final, (poll.phase, poll.winner)) == (True, polls[poll_id])
            if poll.final:
                polls[poll_id] = (poll.phase, poll.winner)
        for session_id in coordination.negotiations.ids:
            session = coordination.negotiations.view(session_id)
            if session is None or session.agreement is None or not session.final:
                # a delegate's answer may make a deeper agreement, but none takes a final one away
                assert session_id not in agreed or (session is not None and session.agreement is not None)
                continue
            proposal = session.proposal(session.agreement)
            assert proposal is not None
            depth = agreed.get(session_id, (-1, session.agreement))[0]
            assert proposal.depth >= depth
            agreed[session_id] = (proposal.depth, session.agreement)
        for auction in coordination.auctions.views():
            if auction.id in won:
                assert (auction.winner, auction.price) == won[auction.id]
            if auction.winner is not None and auction.price is not None:
                won[auction.id] = (auction.winner, auction.price)


@pytest.mark.no_cover
def test_the_random_scripts_reach_every_outcome() -> None:
    seen: set[object] = set()
    for seed in range(80):
        script = Script(seed)
        replica = replayed(script.pool, script.write(40), random.Random(seed))
        coordination = replica.view.coordination
        for auction in coordination.auctions.views():
            seen |= {auction.phase, ("won", auction.winner is not None), ("missing", auction.missing > 0)}
            seen.add(("second", auction.winner is not None and auction.price != auction.ranking[0].amount))
        for poll_id in coordination.polls.ids:
            poll = coordination.polls.view(poll_id)
            assert poll is not None
            seen |= {poll.phase, (poll.phase, poll.final), (poll.rule, poll.winner is not None)}
        for session_id in coordination.negotiations.ids:
            session = coordination.negotiations.view(session_id)
            if session is not None:
                seen |= {("agreed", session.agreement is not None), ("final", session.final)}
        for register in replica.view.registers.values():
            seen.add(("delegated submit", register.submitted is not None and register.submitted.delegate is not None))
            seen.add(("delegated cancel", any(one.principal is not None for one in register.claims.values())))
        seen |= {("revoked", given.revoked_at is not None) for given in coordination.delegations.all()}
        seen.add(("frozen", bool(replica.view.members.frozen())))
    wanted = {*AuctionPhase, *PollPhase, (PollPhase.DECIDED, True), (PollPhase.DECIDED, False)}
    wanted |= {(rule, True) for rule in PollRule}
    names = ("won", "missing", "second", "agreed", "final", "delegated submit", "delegated cancel", "revoked", "frozen")
    assert wanted | {(name, True) for name in names} <= seen
