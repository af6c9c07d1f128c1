"""One key takes the place of another: by its own word, or by that of a recovery key that was committed to before."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Author, Pool, claim, feed, now, rejected, report, settle_writes, signed, value_of

from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import CodecError, Conflict, LocalError, NotAuthorised
from converge_p2p.core.governance.formula import Threshold, decode_formula, encode_formula
from converge_p2p.core.governance.rename import with_key_replaced
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import AdmissionKind, ModelTerms
from converge_p2p.core.model.task import TaskSpec, task_id
from converge_p2p.core.oplog import operation as operation_module, succession as succession_module
from converge_p2p.core.oplog.bodies import (
    Ballot,
    JoinBody,
    Kind,
    LeaveBody,
    Phase,
    SubmitBody,
    Token,
    VoteBody,
    decode_body,
    encode_body,
)
from converge_p2p.core.oplog.motions import YES, OpinionBody, move_change
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.succession import RecoveryBody, RotateBody, commitment_of, recovery, rotation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.replica.ranking import best_claim
from converge_p2p.core.types import TaskId

RECOVERY_KEY = Identity.from_seed(b"r" * 32)


@pytest.fixture(autouse=True)
def _verify_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (operation_module, succession_module):
        monkeypatch.setattr(module, "verify", functools.lru_cache(None)(module.verify))


def work(author: Author, name: bytes) -> tuple[TaskId, Operation]:
    operation = author.sign(SubmitBody(TaskSpec(name, "work", encode_value({}))))
    return task_id(author.pool, author.key, name), operation


def shown(replica: Replica, *tasks: TaskId) -> list[bool]:
    return [(found := replica.view.registers.get(task)) is not None and found.submitted is not None for task in tasks]


class Case:
    """A pool that only lets in whom its list names; a member of it, and keys that are not on the list."""

    def __init__(self) -> None:
        self.pool = Pool(3, 2, admission=AdmissionKind.WHITELIST, whitelist=(3, 4))
        self.old = self.pool.people[3]
        self.new, self.other = Author(50, self.pool.id), Author(51, self.pool.id)

    def rotate(self, new: Author | None = None) -> tuple[Operation, Operation]:
        new = self.new if new is None else new
        rotate, succeed = rotation(self.pool.id, self.old.identity, new.identity)
        return self.old.sign(rotate), new.sign(succeed)

    def commit(self) -> Operation:
        return self.old.sign(RecoveryBody(commitment_of(RECOVERY_KEY.public_key)))

    def recover(self, new: Author, length: int, key: Identity = RECOVERY_KEY) -> Operation:
        return new.sign(recovery(self.pool.id, self.old.key, length, key=key, new=new.key))

    def replica(self, *operations: Operation) -> Replica:
        replica = self.pool.replica()
        feed(replica, [*self.pool.base, *operations])
        return replica


@pytest.fixture
def case() -> Case:
    return Case()


def test_the_new_key_is_the_member_that_the_old_one_was(case: Case) -> None:
    before, first = work(case.old, b"before")
    rotate, succeed = case.rotate()
    after, second = work(case.new, b"after")
    late, third = work(case.old, b"late")
    replica = case.replica(first, rotate, succeed, second, third)
    assert shown(replica, before, after, late) == [True, True, False]
    members = replica.view.members
    assert (members.has(case.old.key), members.has(case.new.key)) == (False, True)
    assert members.capabilities(case.new.key) == ("gpu",)
    assert replica.view.successions.lineage() == {case.old.key: case.new.key}


def test_a_new_key_that_nobody_named_is_not_let_in_and_one_that_only_it_names_inherits_nothing(case: Case) -> None:
    rotate, succeed = case.rotate()
    forged = case.other.sign(succeed.body)
    assert rejected(feed(case.replica(rotate), [forged])) == ["not_member"]
    # the old key agreed, but its chain does not say so: then it may still say something else
    task, submit = work(case.new, b"x")
    replica = case.replica(succeed, submit)
    assert shown(replica, task) == [False]
    assert not replica.view.members.has(case.new.key)
    feed(replica, [rotate])
    assert shown(replica, task) == [True]


def test_a_rotation_that_the_new_key_did_not_sign_is_none(case: Case) -> None:
    rotate, _ = case.rotate()
    assert isinstance(rotate.body, RotateBody)
    stolen = case.pool.people[4].sign(rotate.body)
    replica = case.replica(stolen)
    assert replica.view.successions.lineage() == {}
    assert replica.view.members.has(case.pool.people[4].key)


def test_whoever_brings_a_successor_before_its_predecessor_is_not_to_blame(case: Case) -> None:
    _, succeed = case.rotate()
    _, submit = work(case.new, b"x")
    replica = case.pool.replica()
    feed(replica, [case.pool.genesis])
    for operation in (submit, succeed):
        effects = replica.handle(ev.Received(signed([operation])), now())
        (notice,) = [effect.notice for effect in effects if isinstance(effect, ev.Emit)]
        assert isinstance(notice, ev.Rejected)
        assert (notice.reason, notice.guilty) == ("no_predecessor", False)


def test_votes_of_an_elector_that_rotated_count_on(case: Case) -> None:
    case.old = case.pool.people[1]
    task, submit = case.pool.submit()
    own = claim(case.pool.people[3], task)
    rotate, _ = case.rotate()
    grants = [case.pool.grant(index, task, 0, own) for index in (0, 1)]
    replica = case.replica(submit, own, rotate, *grants)
    assert replica.view.registers[task].certified_id(Token(0, 0)) == own.id
    assert case.old.key in replica.view.electors


def test_a_claim_of_the_old_key_is_granted_no_more(case: Case) -> None:
    task, submit = case.pool.submit()
    own = claim(case.old, task)
    rotate, succeed = case.rotate()
    replica = case.replica(submit, own)
    assert best_claim(replica.view, replica.view.registers[task], Token(0, 0)) is not None
    feed(replica, [rotate, succeed])
    assert best_claim(replica.view, replica.view.registers[task], Token(0, 0)) is None


def test_a_fork_before_the_rotation_takes_it_and_what_rested_on_it_back(case: Case) -> None:
    twin = case.old.branch()
    rotate, succeed = case.rotate()
    task, submit = work(case.new, b"x")
    fork = twin.sign(LeaveBody())
    replica = case.replica(rotate, succeed, submit)
    assert shown(replica, task) == [True]
    feed(replica, [fork])
    assert shown(replica, task) == [False]
    assert not replica.view.members.has(case.new.key)


def test_recovery_goes_before_what_a_thief_did_with_the_key(case: Case) -> None:
    commit = case.commit()
    length = case.old.seq
    stolen, bad = work(case.old, b"stolen")
    rotate, succeed = case.rotate(case.other)
    theirs, worse = work(case.other, b"theirs")
    replica = case.replica(commit, bad, rotate, succeed, worse)
    assert shown(replica, stolen, theirs) == [True, True]
    recover = case.recover(case.new, length)
    mine, good = work(case.new, b"mine")
    feed(replica, [recover, good])
    assert shown(replica, stolen, theirs, mine) == [False, False, True]
    assert replica.view.members.has(case.new.key)
    assert not replica.view.members.has(case.other.key)
    assert replica.view.successions.lineage() == {case.old.key: case.new.key}


def test_only_the_first_commitment_counts_so_that_a_thief_cannot_replace_it(case: Case) -> None:
    commit = case.commit()
    thief = Identity.from_seed(b"t" * 32)
    again = case.old.sign(RecoveryBody(commitment_of(thief.public_key)))
    replica = case.replica(commit, again)
    feed(replica, [case.recover(case.other, case.old.seq, thief)])
    assert replica.view.successions.lineage() == {}
    nobody = Identity.from_seed(b"n" * 32)
    assert rejected(feed(replica, [case.recover(Author(52, case.pool.id), 1, nobody)])) == ["no_predecessor"]
    feed(replica, [case.recover(case.new, case.old.seq)])
    assert replica.view.successions.lineage() == {case.old.key: case.new.key}


def test_two_recoveries_for_two_keys_make_none(case: Case) -> None:
    commit = case.commit()
    late, submit = work(case.old, b"late")
    length = case.old.seq - 1
    replica = case.replica(commit, submit, case.recover(case.new, length), case.recover(case.other, length))
    assert replica.view.successions.lineage() == {}
    assert shown(replica, late) == [False]
    assert not any(replica.view.members.has(author.key) for author in (case.new, case.other))


def test_a_recovery_that_denies_its_own_commitment_is_none(case: Case) -> None:
    commit = case.commit()
    replica = case.replica(commit, case.recover(case.new, commit.seq))
    assert replica.view.successions.lineage() == {}


def test_places_are_handed_on(case: Case) -> None:
    rotate, succeed = case.rotate()
    again = rotation(case.pool.id, case.new.identity, case.other.identity)
    operations = [rotate, succeed, case.new.sign(again[0]), case.other.sign(again[1])]
    task, submit = work(case.other, b"x")
    for order in itertools.permutations(operations):
        replica = case.replica(*order, submit)
        feed(replica, [*operations, submit])
        feed(replica, [*operations, submit])
        assert shown(replica, task) == [True]
        assert replica.view.members.has(case.other.key)


@pytest.mark.parametrize(
    "body",
    [
        [],
        [0],
        [0, bytes(32)],
        [0, bytes(31), bytes(64)],
        [1, bytes(32), bytes(63)],
        [2, bytes(32), -1, bytes(32), bytes(64)],
        [2, bytes(32), 1, bytes(64)],
        [3, bytes(32), bytes(64)],
        [True, bytes(32), bytes(64)],
    ],
)
def test_other_shapes_are_refused(body: list[object]) -> None:
    with pytest.raises(CodecError):
        decode_body(Kind.ROTATE, body)


@pytest.mark.parametrize("body", [[], [bytes(31)], [b"", b""], ["x" * 32]])
def test_a_commitment_is_one_hash(body: list[object]) -> None:
    with pytest.raises(CodecError):
        decode_body(Kind.RECOVERY, body)


def test_bodies_survive_their_encoding(case: Case) -> None:
    made = [*case.rotate(), case.commit(), case.recover(case.other, 3)]
    for operation in made:
        assert decode_body(operation.kind, encode_body(operation.body)) == operation.body


def test_a_replica_hands_over_and_another_takes_its_place(case: Case) -> None:
    old, new = Replica(case.old.identity, case.pool.id), Replica(case.new.identity, case.pool.id)
    feed(old, case.pool.base)
    feed(new, case.pool.base)
    rotate, succeed = rotation(case.pool.id, case.old.identity, case.new.identity)
    with pytest.raises(LocalError):
        new.handle(ev.Succeed(rotate), now())
    handed = settle_writes(old, old.handle(ev.Succeed(rotate), now()))
    with pytest.raises(NotAuthorised):
        old.handle(ev.Submit(TaskSpec(b"late", "work", encode_value({}))), now())
    taken = settle_writes(new, new.handle(ev.Succeed(succeed), now()))
    for effect in (*handed, *taken):
        if isinstance(effect, ev.Publish):
            new.handle(ev.Received(effect.operations), now())
    settle_writes(new, new.handle(ev.Submit(TaskSpec(b"x", "work", encode_value({}))), now()))
    assert shown(new, task_id(case.pool.id, case.new.key, b"x")) == [True]
    with pytest.raises(Conflict):
        new.handle(ev.Succeed(succeed), now())


def test_terms_name_the_new_key_wherever_they_named_the_old_one(case: Case) -> None:
    keys = tuple(sorted(person.key for person in case.pool.electors))
    model = ModelTerms(leader=keys[0], chambers=((keys[0],), keys[1:]), weights=(5, 6, 7), trusted=keys[:1])
    model = replace(model, formula=encode_formula(Threshold(5, ((5, keys[0]), (1, Threshold.all_of(*keys))))))
    spec = replace(case.pool.spec, model=model)
    changed = with_key_replaced(spec, keys[0], case.new.key)
    after = tuple(sorted((case.new.key, *keys[1:])))
    assert changed.electors == after
    assert dict(zip(changed.electors, changed.model.weights, strict=True)) == {case.new.key: 5, keys[1]: 6, keys[2]: 7}
    assert keys[0] not in decode_formula(changed.model.formula).electors
    assert keys[0].hex() not in repr(changed).replace("\\x", "")
    assert (changed.model.leader, changed.model.chambers[0], changed.model.trusted) == (
        case.new.key,
        (case.new.key,),
        (case.new.key,),
    )
    for old, new in ((case.other.key, case.new.key), (keys[0], keys[1])):
        with pytest.raises(LocalError):
            with_key_replaced(spec, old, new)


# ------------------------------------------------------------ any order


class Script:
    """Rotations, recoveries, thefts, forks, and work of everybody in between."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        whitelist = self.random.random() < 0.5
        terms = {"admission": AdmissionKind.WHITELIST, "whitelist": (3, 4)} if whitelist else {}
        self.pool = Pool(3, 2, **terms)
        self.people = list(self.pool.people)
        self.spare = [Author(60 + number, self.pool.id) for number in range(5)]
        self.keys = [Identity.from_seed(bytes([90 + number]) * 32) for number in range(2)]
        self.made: list[Operation] = list(self.pool.base)

    def write(self, count: int) -> list[Operation]:
        for _ in range(count):
            self.step()
        return self.made

    def step(self) -> None:
        pick, who = self.random, self.random.choice(self.people)
        if pick.random() < 0.04:
            who = who.branch()
            self.people.append(who)
        kind = pick.randrange(10)
        if kind <= 1 and self.spare:
            new = self.spare.pop() if pick.random() < 0.8 else pick.choice(self.spare)
            rotate, succeed = rotation(self.pool.id, who.identity, new.identity)
            self.made += [who.sign(rotate), new.sign(succeed)][: pick.choice((1, 2, 2, 2))]
            self.people.append(new)
        elif kind == 2:
            self.made.append(who.sign(RecoveryBody(commitment_of(pick.choice(self.keys).public_key))))
        elif kind == 3 and self.spare:
            new = self.spare.pop()
            length = max(0, who.seq - pick.randrange(4))
            self.made.append(new.sign(recovery(self.pool.id, who.key, length, key=pick.choice(self.keys), new=new.key)))
            self.people.append(new)
        elif kind == 4:
            self.made.append(who.sign(pick.choice((JoinBody(), LeaveBody(), JoinBody(("gpu",))))))
        elif kind == 5:
            motion = who.sign(move_change((self.pool.people[4].key,), None, "because"))
            self.made.append(motion)
            self.made += [one.sign(OpinionBody(motion.id, YES)) for one in self.pool.electors[: pick.randrange(4)]]
        elif kind == 6:
            task = task_id(self.pool.id, self.pool.people[0].key, b"0")
            own = claim(who, task)
            ballot = Ballot(Phase.GRANT, task, pick.randrange(2), own.id)
            grants = [elector.sign(VoteBody((ballot,))) for elector in self.pool.electors[:2]]
            self.made += [own, *grants, report(who, task, ballot.round, value_of(who), grants)]
        else:
            self.made.append(work(who, b"%d" % pick.randrange(3))[1])


def replayed(script: Script, order: random.Random) -> Replica:
    replica, rest = script.pool.replica(), script.made[1:]
    feed(replica, script.made[:1])
    order.shuffle(rest)
    for start in range(0, len(rest), 5):
        feed(replica, rest[start : start + 5])
    while True:
        # what was refused before its predecessor was known comes again with the next comparison
        before = len(replica.log)
        feed(replica, script.made)
        if len(replica.log) == before:
            return replica


@pytest.mark.no_cover
@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_who_succeeded_whom_is_the_same_in_any_order(seed: int) -> None:
    script = Script(seed)
    script.write(24)
    order = random.Random(seed)
    replicas = [replayed(script, order) for _ in range(3)]
    assert len({replica.log.digest() for replica in replicas}) == 1
    assert len({replica.view.state_bytes() for replica in replicas}) == 1
