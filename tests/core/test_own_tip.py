"""A restored store: nothing is signed before the end of the own chain was learned, so an honest node never forks."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from pool_kit import (
    Mesh,
    Pool,
    ballots_in,
    claim,
    feed,
    notices,
    now,
    published,
    rejected,
    release,
    settle_writes,
    signed,
    timers,
)
from test_epochs import Live

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import CodecError, OwnChainUnsure
from converge_p2p.core.model.pool import GovernanceKind
from converge_p2p.core.model.task import TaskSpec
from converge_p2p.core.oplog.bodies import Ballot, Phase, Token, VoteBody
from converge_p2p.core.oplog.operation import Operation, decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.own_tip import ASK_AGAIN_MS, STRAGGLERS_MS
from converge_p2p.core.replica.wire import Tip, TipWanted, decode_message, encode_message
from converge_p2p.core.types import PeerId, PublicKey, TaskId


class Disk:
    """What every replica of a mesh wrote, in order."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.written: list[list[bytes]] = [[] for _ in live.mesh.replicas]
        for node, replica in enumerate(live.mesh.replicas):
            self.watch(node, replica)

    def watch(self, node: int, replica: Replica) -> None:
        handle, written = replica.handle, self.written[node]

        def keep(event: ev.Event, at: ev.Now) -> list[ev.Effect]:
            effects = handle(event, at)
            written.extend(item for effect in effects if isinstance(effect, ev.Persist) for item in effect.operations)
            return effects

        replica.handle = keep  # type: ignore[method-assign]

    def restore(self, node: int, keep: int) -> Replica:
        """Start a node again with only the first `keep` operations of its disk."""
        mesh, stored = self.live.mesh, self.written[node][:keep]
        self.written[node][:] = stored
        mesh._due = {key: at for key, at in mesh._due.items() if key[0] != node}
        mesh._heap = [item for item in mesh._heap if item[2] != node]
        replica = Replica(self.live.pool.people[node].identity, self.live.pool.id, seed=99, digest_interval_ms=500)
        mesh.replicas[node] = replica
        self.watch(node, replica)
        mesh.at(0, node, ev.Restored(tuple(stored), unsure=True))
        for other, peer in enumerate(mesh.replicas):
            if other != node:
                for one, two in ((node, other), (other, node)):
                    mesh.at(0, one, ev.PeerDown(PeerId(str(two))))
                mesh.at(1, node, ev.PeerUp(PeerId(str(other)), peer.identity.public_key))
                mesh.at(1, other, ev.PeerUp(PeerId(str(node)), replica.identity.public_key))
        return replica


def no_forks(live: Live) -> bool:
    return not any(isinstance(notice, ev.ForkDetected) for _, notice in live.mesh.told)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("node", [0, 4])
def test_whoever_is_restored_from_an_old_copy_goes_on_without_a_fork(seed: int, node: int) -> None:
    pick = random.Random(seed)
    live = Live(3, 2, seed=seed, loss=0.2)
    disk = Disk(live)
    disk.written[node].extend(read_all(live.mesh.replicas[node]))
    for number in range(3):
        live.settle(live.submit(b"a%d" % number, by=number))
    live.mesh.run(lambda: live.mesh.equal)
    replica = disk.restore(node, pick.randrange(len(disk.written[node])))
    live.mesh.run(lambda: not replica.unsure and replica.ready)
    after = [live.submit(b"b%d" % number, by=number) for number in (node, 1, 2)]
    for task in after:
        live.settle(task)
    live.mesh.run(lambda: live.mesh.equal)
    assert no_forks(live)
    assert len(live.states()) == 1


def read_all(replica: Replica) -> list[bytes]:
    """The operations of a replica, the founding first."""
    rest = [item for author in replica.log.chains for item in replica.log.read(author, 0, 10**6)]
    return [replica.view.genesis, *(item for item in rest if item != replica.view.genesis)]


def test_without_the_doubt_the_same_restart_is_a_fork() -> None:
    live = Live(3, 2)
    disk = Disk(live)
    live.settle(live.submit(b"a", by=4))
    live.mesh.run(lambda: live.mesh.equal)
    replica = disk.restore(4, 0)
    live.mesh.run_for(0)
    replica.handle(ev.Received((live.mesh.replicas[0].view.genesis,)), now(live.mesh.now_ms))
    replica.handle(ev.TrustStore(), now(live.mesh.now_ms))
    live.mesh.do(4, ev.Join(("other",)))
    live.mesh.run_for(3000)
    assert not no_forks(live)


# ------------------------------------------------------------ by hand


class Doubt:
    """One of the people of a pool, restored with the first operations of its store; the others are the test."""

    def __init__(self, pool: Pool, who: int, *known: object) -> None:
        self.pool, self.who, self.now_ms = pool, who, 0
        self.replica = Replica(pool.people[who].identity, pool.id)
        self.do(ev.Restored(signed(known), unsure=True))  # type: ignore[arg-type]

    def do(self, event: ev.Event) -> list[ev.Effect]:
        return settle_writes(self.replica, self.replica.handle(event, now(self.now_ms)), self.now_ms)

    def up(self, *people: int) -> list[ev.Effect]:
        return [effect for one in people for effect in self.do(ev.PeerUp(PeerId(str(one)), self.key(one)))]

    def key(self, one: int) -> PublicKey:
        return self.pool.people[one].key

    def tell(self, one: int, last: bytes = b"", epoch: int = 0) -> list[ev.Effect]:
        payload = encode_message(Tip(self.key(self.who), epoch, last))
        return self.do(ev.SyncReceived(PeerId(str(one)), payload))

    def learned(self, effects: list[ev.Effect]) -> bool:
        return bool(notices(effects, ev.OwnChainLearned))


def asked(effects: list[ev.Effect]) -> set[PeerId]:
    return {
        effect.peer
        for effect in effects
        if isinstance(effect, ev.Send) and isinstance(decode_message(effect.payload), TipWanted)
    }


def test_in_doubt_nothing_is_signed_and_the_error_says_why() -> None:
    pool = Pool(3, 1)
    task, submit = pool.submit()
    doubt = Doubt(pool, 1, *pool.base)
    effects = feed(doubt.replica, [submit])
    assert not published(effects)
    with pytest.raises(OwnChainUnsure, match="too few electors") as caught:
        doubt.do(ev.Submit(TaskSpec(b"x", "work", encode_value({}))))
    assert caught.value.code == "own_chain_unsure"
    for kind in (ev.TimerKind.HOLD_OFF, ev.TimerKind.GRANT, ev.TimerKind.VOTE):
        assert not published(doubt.do(ev.TimerFired(ev.TimerKey(kind, task))))


def test_every_peer_is_asked_and_asked_again_until_it_answers() -> None:
    doubt = Doubt(Pool(3, 1), 1, *Pool(3, 1).base)
    assert asked(doubt.up(0, 2)) == {PeerId("0"), PeerId("2")}
    doubt.tell(0)
    doubt.now_ms += ASK_AGAIN_MS
    assert asked(doubt.do(ev.TimerFired(ev.TimerKey(ev.TimerKind.TIP)))) == {PeerId("2")}


def test_an_elector_is_sure_only_when_a_quorum_of_others_answered() -> None:
    # with the own vote one other elector is a quorum; a result may rest on it and on the vote that was forgotten
    doubt = Doubt(Pool(3, 1), 1, *Pool(3, 1).base)
    doubt.up(0, 2, 3)
    assert not doubt.learned(doubt.tell(0))
    assert not doubt.learned(doubt.tell(3)), "a worker is no elector"
    assert doubt.learned(doubt.tell(2))


def test_an_answer_over_a_connection_that_proves_no_identity_counts_for_nobody() -> None:
    doubt = Doubt(Pool(3, 1), 1, *Pool(3, 1).base)
    doubt.up(0)
    doubt.do(ev.PeerUp(PeerId("2")))
    doubt.tell(0)
    assert not doubt.learned(doubt.tell(2))
    assert "too few electors" in doubt.replica.unsure


def test_an_elector_that_knows_a_later_epoch_counts_only_when_that_epoch_is_known() -> None:
    doubt = Doubt(Pool(3, 1), 1, *Pool(3, 1).base)
    doubt.up(0, 2)
    doubt.tell(0, epoch=1)
    assert not doubt.learned(doubt.tell(2))


def test_what_one_of_those_who_answered_holds_is_fetched_before_anything_is_signed() -> None:
    pool = Pool(3, 1)
    own = [pool.people[1].sign(VoteBody(pool_ballots(pool, number))) for number in range(3)]
    doubt = Doubt(pool, 1, *pool.base, own[0])
    doubt.up(0, 2)
    doubt.tell(0, own[0].signed)
    assert not doubt.learned(doubt.tell(2, own[2].signed))
    assert "2 of this agent's own operations" in doubt.replica.unsure
    assert not doubt.learned(feed(doubt.replica, own[1:2]))
    assert doubt.learned(feed(doubt.replica, own[2:]))


def pool_ballots(pool: Pool, number: int) -> tuple[Ballot, ...]:
    return (Ballot(Phase.GRANT, TaskId(pool.genesis.id), number, pool.genesis.id),)


def test_a_liar_cannot_claim_more_than_was_signed() -> None:
    pool = Pool(3, 1)
    doubt = Doubt(pool, 1, *pool.base)
    doubt.up(0, 2, 3)
    forged = pool.people[3].sign(VoteBody(pool_ballots(pool, 1)), seq=1000)
    assert rejected(doubt.tell(3, forged.signed)) == ["bad_sync_message"]
    torn = pool.people[1].branch().sign(VoteBody(pool_ballots(pool, 2)), seq=1000).signed
    assert rejected(doubt.tell(3, torn[:-1] + bytes([torn[-1] ^ 1]))) != []
    doubt.tell(0)
    doubt.tell(2)
    doubt.now_ms += STRAGGLERS_MS
    assert doubt.learned(doubt.do(ev.TimerFired(ev.TimerKey(ev.TimerKind.TIP))))


def test_after_the_quorum_others_are_waited_for_but_not_for_ever() -> None:
    doubt = Doubt(Pool(3, 1), 1, *Pool(3, 1).base)
    doubt.up(0, 2, 3)
    doubt.tell(0)
    assert not doubt.learned(doubt.tell(2))
    doubt.now_ms += STRAGGLERS_MS - 1
    timer = ev.TimerFired(ev.TimerKey(ev.TimerKind.TIP))
    assert not doubt.learned(doubt.do(timer))
    doubt.now_ms += 1
    assert doubt.learned(doubt.do(timer))


def test_an_only_elector_learns_nothing_from_workers_and_needs_its_operator() -> None:
    pool = Pool(1, 1, governance=GovernanceKind.DICTATORIAL)
    doubt = Doubt(pool, 0, *pool.base)
    doubt.up(1)
    assert not doubt.learned(doubt.tell(1))
    assert doubt.learned(doubt.do(ev.TrustStore()))
    assert not doubt.replica.unsure


@pytest.mark.parametrize("electors", [2, 3])
def test_where_nothing_is_decided_without_the_forgetful_elector_all_others_have_to_answer(electors: int) -> None:
    pool = Pool(electors, 1, quorum=electors)
    doubt = Doubt(pool, 0, *pool.base)
    doubt.up(*range(1, electors))
    told = [doubt.learned(doubt.tell(one, pool.genesis.signed)) for one in range(1, electors)]
    assert told == [False] * (electors - 2) + [True]


def sure_of_its_chain(pool: Pool) -> Doubt:
    doubt = Doubt(pool, 0, *pool.base)
    others = range(1, len(pool.spec.electors))
    doubt.up(*others)
    told = [doubt.learned(doubt.tell(one, pool.genesis.signed)) for one in others]
    assert any(told)
    return doubt


def test_a_vote_that_only_an_absent_elector_holds_is_not_contradicted() -> None:
    # of five, elector 0 granted one claim, only elector 4 saw that, and is away; elector 3 will grant the same
    pool = Pool(5, 2)
    task, submit = pool.submit()
    first, second = claim(pool.people[5], task), claim(pool.people[6], task)
    forgotten = pool.people[0].branch()
    known = [pool.grant(who, task, 0, first) for who in (3, 4)]
    ghost = forgotten.sign(VoteBody((Ballot(Phase.GRANT, task, 0, first.id),)))
    doubt = sure_of_its_chain(pool)
    rivals = [pool.grant(who, task, 0, second) for who in (1, 2)]
    effects = feed(doubt.replica, [submit, second, *rivals])
    doubt.now_ms += 60_000
    effects += doubt.do(ev.TimerFired(ev.TimerKey(ev.TimerKind.HOLD_OFF, task)))
    assert not ballots_in(settle_writes(doubt.replica, effects)), "a second claim of the round would be certified"
    register = doubt.replica.view.registers[task]
    feed(doubt.replica, [first, *known, ghost])
    assert register.certified_id(Token(0, 0)) == first.id


def votes_on(replica: Replica, task: TaskId, operations: list[Operation]) -> list[Ballot]:
    effects = feed(replica, operations)
    effects += replica.handle(ev.TimerFired(ev.TimerKey(ev.TimerKind.HOLD_OFF, task)), now(60_000))
    return ballots_in(settle_writes(replica, effects, 60_000))


def test_the_silence_outlasts_a_restart() -> None:
    for silent_through, votes in ((1, False), (-1, True)):
        pool = Pool(3, 1)
        replica = Replica(pool.people[0].identity, pool.id)
        replica.handle(ev.Restored(signed(pool.base), silent_through=silent_through), now())
        task, submit = pool.submit()
        assert bool(votes_on(replica, task, [submit, claim(pool.people[3], task)])) == votes


def test_an_elector_without_which_nothing_is_decided_votes_once_all_others_answered() -> None:
    pool = Pool(3, 1, quorum=3)
    task, submit = pool.submit()
    doubt = sure_of_its_chain(pool)
    assert votes_on(doubt.replica, task, [submit, claim(pool.people[3], task)])


def test_a_restored_elector_votes_again_in_the_second_epoch_after() -> None:
    live = Live(3, 2)
    disk = Disk(live)
    live.settle(live.submit(b"a", by=4))
    live.mesh.run(lambda: live.mesh.equal)
    replica = disk.restore(0, len(disk.written[0]) // 2)
    live.mesh.run(lambda: not replica.unsure and replica.ready)
    voters = []
    for number in range(3):
        before = own_votes(replica)
        live.settle(live.submit(b"b%d" % number, by=4))
        live.mesh.run(lambda: live.mesh.equal)
        voters.append(own_votes(replica) > before)
        live.move(by=1, terms=live.terms)
        live.reach(number + 1)
    assert voters == [False, False, True]


def own_votes(replica: Replica) -> int:
    chain = replica.log.read(replica.identity.public_key, 0, 10**6)
    return sum(isinstance(decode_operation(item, replica.pool).body, VoteBody) for item in chain)


def test_in_doubt_no_turn_comes_again_and_again() -> None:
    pool = Pool(3, 1)
    task, submit = pool.submit(max_retries=0)
    held = claim(pool.people[3], task)
    grants = [pool.grant(who, task, 0, held) for who in (0, 1)]
    failed = release(pool.people[3], task, 0, failed=True)
    # alone in the pool's store, node 0 is the first in turn to settle the failure
    turns = 0
    for who in range(3):
        doubt = Doubt(pool, who, *pool.base, submit, held, *grants, failed)
        for _ in range(3):
            due = timers(doubt.do(ev.TimerFired(ev.TimerKey(ev.TimerKind.CLOSE, task))))
            turns += due.get(ev.TimerKind.CLOSE) is not None
    assert not turns


def test_a_key_that_forked_stays_silent() -> None:
    pool = Pool(3, 1)
    twin = pool.people[1].branch()
    one, two = pool.people[1].sign(VoteBody(pool_ballots(pool, 1))), twin.sign(VoteBody(pool_ballots(pool, 2)))
    doubt = Doubt(pool, 1, *pool.base)
    doubt.up(0, 2)
    feed(doubt.replica, [one, two])
    doubt.tell(0, one.signed)
    assert not doubt.learned(doubt.tell(2, one.signed))
    assert "two operations with one number" in doubt.replica.unsure


def test_a_store_in_doubt_is_no_witness() -> None:
    pool = Pool(3, 1)
    question = ev.SyncReceived(PeerId("0"), encode_message(TipWanted(pool.people[3].key)))
    doubt = Doubt(pool, 1, *pool.base)
    doubt.up(0)
    assert not tips(doubt.do(question))
    sure = Replica(pool.people[2].identity, pool.id)
    sure.handle(ev.Restored(signed(pool.base)), now())
    (tip,) = tips(sure.handle(question, now()))
    assert decode_operation(tip.last, pool.id).author == pool.people[3].key
    nobody = ev.SyncReceived(PeerId("0"), encode_message(TipWanted(pool.people[2].key)))
    assert [tip.last for tip in tips(sure.handle(nobody, now()))] == [b""]


def tips(effects: list[ev.Effect]) -> list[Tip]:
    messages = [decode_message(effect.payload) for effect in effects if isinstance(effect, ev.Send)]
    return [message for message in messages if isinstance(message, Tip)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: encode_message(TipWanted(PublicKey(b"x" * 31))),
        lambda: encode_message(Tip(PublicKey(b"x" * 32), -1, b"")),
        lambda: encode_message(Tip(PublicKey(b"x" * 32), 0, bytes(65537))),
    ],
)
def test_questions_and_answers_out_of_bounds_are_refused(spoil: Callable[[], bytes]) -> None:
    with pytest.raises(CodecError):
        decode_message(spoil())


def test_two_replicas_that_each_saw_one_branch_both_end_with_the_proof_without_gossip() -> None:
    pool = Pool(3, 1)
    twin = pool.people[3].branch()
    one = pool.people[3].sign(VoteBody(pool_ballots(pool, 1)))
    two = twin.sign(VoteBody(pool_ballots(pool, 2)))
    mesh = Mesh([pool.replica(200, digest_interval_ms=500), pool.replica(201, digest_interval_ms=500)], gossip=False)
    for node, branch in enumerate((one, two)):
        feed(mesh.replicas[node], [*pool.base, branch])
    mesh.connect()
    mesh.run(lambda: mesh.equal and all(replica.log.forked(pool.people[3].key) for replica in mesh.replicas))
    for node, replica in enumerate(mesh.replicas):
        assert replica.view.members.frozen() == {pool.people[3].key: 1}
        assert replica.log.holds(one.id)
        assert replica.log.holds(two.id)
        assert [notice.seq for who, notice in mesh.told if who == node and isinstance(notice, ev.ForkDetected)] == [1]
