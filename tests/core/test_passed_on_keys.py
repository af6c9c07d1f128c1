"""A key that is to take another one's place says so first, whatever it hears before; and it reads what was sealed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from pool_kit import Author, Pool, claim, feed, notices, now, settle_writes, signed
from test_epochs import Live

from converge_p2p.core.codec import encode, encode_value
from converge_p2p.core.errors import CodecError, NotAuthorised, SignatureError
from converge_p2p.core.governance.formula import Threshold, encode_formula
from converge_p2p.core.governance.rename import gives_role, with_key_replaced
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.keyring import Keyring, _left_header
from converge_p2p.core.model.pool import ModelTerms
from converge_p2p.core.model.secrecy import ContentKey, exchange_key_of, seal_bytes
from converge_p2p.core.model.task import TaskSpec
from converge_p2p.core.oplog.bodies import Body, VoteBody
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.oplog.succession import SucceedBody, rotation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import PoolId

POOL = PoolId(b"p" * 32)
OLD, NEW, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (61, 62, 63))


def bodies(replica: Replica) -> list[Body]:
    own = replica.identity.public_key
    return [decode_operation(each, replica.pool).body for each in replica.log.read(own, 0, 99)]


def run(replica: Replica, operations: tuple[bytes, ...]) -> None:
    """Give operations, and let timers fire until nothing is signed any more."""
    effects = settle_writes(replica, replica.handle(ev.Received(operations), now()))
    for turn in itertools.count(1):
        due = [effect for effect in effects if isinstance(effect, ev.SetTimer) and effect.key.task is not None]
        if not due or turn > 9:
            return
        effects = []
        for effect in due:
            effects += settle_writes(
                replica, replica.handle(ev.TimerFired(effect.key), now(effect.at_ms)), effect.at_ms
            )


class Heir:
    """A worker hands over to a key that is an elector and has voted on nothing yet, while a task waits for votes."""

    def __init__(self) -> None:
        self.pool = Pool(3, 2)
        self.old, self.new = self.pool.workers[0], self.pool.electors[1]
        self.rotate, self.word = rotation(self.pool.id, self.old.identity, self.new.identity)
        self.old_again = self.old.branch()
        task, submit = self.pool.submit()
        waiting = [submit, claim(self.pool.workers[1], task), self.old.sign(self.rotate)]
        self.operations = signed([*self.pool.base, *waiting])

    def replica(self, first: Body | None) -> Replica:
        return Replica(self.new.identity, self.pool.id, first=first)


def test_the_word_is_the_first_thing_signed_though_the_pool_asks_for_votes() -> None:
    heir = Heir()
    hasty = heir.replica(None)
    run(hasty, heir.operations)
    assert isinstance(bodies(hasty)[0], VoteBody), "otherwise this test shows nothing"
    careful = heir.replica(heir.word)
    run(careful, heir.operations)
    found = bodies(careful)
    assert found[0] == heir.word
    assert any(isinstance(body, VoteBody) for body in found[1:])
    assert careful.view.successions.lineage() == {heir.old.key: heir.new.key}


def test_the_word_waits_until_the_pool_is_known() -> None:
    heir = Heir()
    replica = heir.replica(heir.word)
    assert not any(isinstance(effect, ev.Persist) for effect in replica.handle(ev.Received(()), now()))
    settle_writes(replica, replica.handle(ev.Received(heir.operations[:1]), now()))
    assert bodies(replica) == [heir.word]


def test_who_is_a_member_by_succession_is_told_when_the_old_key_s_word_arrives() -> None:
    heir = Heir()
    new = Author(70, heir.pool.id)
    rotate, word = rotation(heir.pool.id, heir.old.identity, new.identity)
    replica = Replica(new.identity, heir.pool.id, first=word)
    feed(replica, heir.pool.base)
    assert bodies(replica) == [word]
    assert replica.view.members.capabilities(new.key) == ()
    told = notices(feed(replica, [heir.old_again.sign(rotate)]), ev.MembersChanged)
    assert {(notice.agent, notice.joined) for notice in told} == {
        (heir.old.identity.id, False),
        (new.identity.id, True),
    }
    assert replica.view.members.capabilities(new.key) == ("gpu",)


def test_after_a_restart_the_word_is_not_signed_again() -> None:
    heir = Heir()
    before = heir.replica(heir.word)
    run(before, heir.operations)
    stored = tuple(before.log.read(heir.new.key, 0, 99))
    again = heir.replica(heir.word)
    settle_writes(again, again.handle(ev.Restored((heir.operations[0], *stored)), now()))
    run(again, heir.operations)
    assert sum(isinstance(body, SucceedBody) for body in bodies(again)) == 1
    assert again.log.frozen_at(heir.new.key) is None


def test_a_store_in_doubt_signs_no_word_before_its_chain_is_known() -> None:
    heir = Heir()
    replica = heir.replica(heir.word)
    replica.handle(ev.Restored((), unsure=True), now())
    run(replica, heir.operations)
    assert bodies(replica) == []
    settle_writes(replica, replica.handle(ev.TrustStore(), now()))
    settle_writes(replica, replica.handle(ev.Received(()), now()))
    assert bodies(replica)[0] == heir.word


@pytest.mark.parametrize(
    "command", [ev.Join(("more",)), ev.Submit(TaskSpec(b"late", "work", encode_value({}))), ev.Leave()]
)
def test_a_key_whose_place_was_taken_is_told_so(command: ev.Command) -> None:
    heir = Heir()
    old = Replica(heir.old.identity, heir.pool.id)
    old.handle(ev.Received(heir.operations), now())
    with pytest.raises(NotAuthorised, match="another key took the place") as refused:
        old.handle(command, now())
    assert "new key" in refused.value.hint


def test_nothing_is_acknowledged_behind_a_handover_that_is_not_on_the_disk_yet() -> None:
    heir = Heir()
    old = Replica(heir.old.identity, heir.pool.id)
    old.handle(ev.Received(signed([*heir.pool.base])), now())
    old.handle(ev.Succeed(heir.rotate), now())
    with pytest.raises(NotAuthorised, match="another key took the place"):
        old.handle(ev.Submit(TaskSpec(b"late", "work", encode_value({}))), now())
    # who gave up waiting for it may ask again
    assert not any(isinstance(effect, ev.Persist) for effect in old.handle(ev.Succeed(heir.rotate), now()))


@pytest.mark.parametrize("who", [0, 4])
def test_an_old_key_that_is_expelled_afterwards_takes_nothing_from_the_new_one(who: int) -> None:
    live = Live(3, 2)
    old, new = live.pool.people[who], Identity.from_seed(b"h" * 32)
    rotate, word = rotation(live.pool.id, old.identity, new)
    heir = Replica(new, live.pool.id, seed=9, digest_interval_ms=500, first=word)
    live.mesh.replicas.append(heir)
    live.mesh.sent_bytes.append(0)
    live.mesh.connect((other, 5) for other in range(5))
    epoch = 0
    if who == 0:
        # the founder is an elector: its vote goes first
        live.move(terms=with_key_replaced(live.terms, old.key, new.public_key))
        live.agree |= {5}
        epoch = 1
        live.reach(1)
    live.mesh.at(1, who, ev.Succeed(rotate))
    live.mesh.run(lambda: all(new.public_key in each.view.successions.heirs() for each in live.mesh.replicas))
    live.move(by=1, expel=(who,))
    live.reach(epoch + 1)
    assert bodies(heir)[0] == word
    for replica in live.mesh.replicas:
        assert old.key in replica.view.members.expelled()
        assert replica.view.members.active(new.public_key)
        assert replica.view.successions.lineage() == {old.key: new.public_key}
    task = live.submit(b"after", by=1)
    live.settle(task)
    assert len(live.states()) == 1


# ------------------------------------------------------------ roles


def test_terms_that_only_list_a_key_for_admission_give_it_no_role() -> None:
    pool = Pool(3, 2)
    (one, two, three), stranger = pool.spec.electors, OTHER.public_key
    spec = replace(pool.spec, whitelist=(stranger,))
    assert not gives_role(spec, stranger)
    assert all(gives_role(spec, key) for key in (one, two, three))
    formula = encode_formula(Threshold.all_of(one, two))
    for model in (
        ModelTerms(leader=stranger),
        ModelTerms(successor=stranger),
        ModelTerms(tie_breaker=stranger),
        ModelTerms(vetoers=(stranger,)),
        ModelTerms(trusted=(stranger,)),
        ModelTerms(chambers=((one,), (stranger,))),
    ):
        assert gives_role(replace(spec, model=model), stranger), model
    assert not gives_role(replace(spec, model=ModelTerms(formula=formula)), stranger)


# ------------------------------------------------------------ content keys


def ring_of(identity: Identity, *numbers: int) -> Keyring:
    ring = Keyring(identity, POOL)
    for number in numbers:
        ring.add(ContentKey(POOL, number, 0, bytes([number]) * 32))
    return ring


def test_the_new_key_holds_every_content_key_that_the_old_one_held_and_no_prekey() -> None:
    old, new = ring_of(OLD, 1, 2, 3), ring_of(NEW, 3, 4)
    old.add_prekey(b"e" * 32)
    sealed = old.leave_to(NEW.public_key, b"r" * 32)
    assert not any(bytes([number]) * 32 in sealed for number in (1, 2, 3))
    new.inherit(OLD.public_key, sealed)
    assert len(new) == 4
    assert all(new.of(number, 0) for number in (1, 2, 3, 4))
    assert new.prekeys() == ()


def test_what_was_left_opens_for_nobody_else_and_in_no_other_pool_and_from_no_other_key() -> None:
    sealed = ring_of(OLD, 1).leave_to(NEW.public_key, b"r" * 32)
    elsewhere = Keyring(NEW, PoolId(b"q" * 32))
    for ring, old, data in (
        (ring_of(OTHER), OLD, sealed),
        (ring_of(NEW), OTHER, sealed),
        (elsewhere, OLD, sealed),
        (ring_of(NEW), OLD, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (ring_of(NEW), OLD, b""),
    ):
        with pytest.raises(SignatureError):
            ring.inherit(old.public_key, data)
        assert len(ring) == 0


@pytest.mark.parametrize("plain", [[], [2, []], [True, []], [1, [[0, 0, b"short"]]], [1, [[0, 0]]], [1, {}], b"\xff"])
def test_what_was_left_in_another_form_is_refused(plain: object) -> None:
    data = plain if isinstance(plain, bytes) else encode(plain)
    header = _left_header(POOL, OLD.public_key, NEW.public_key)
    sealed = seal_bytes(data, exchange_key_of(NEW.public_key), header, b"r" * 32)
    with pytest.raises(CodecError):
        ring_of(NEW).inherit(OLD.public_key, sealed)
