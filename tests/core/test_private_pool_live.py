"""Private pools end to end: members read, relays and the expelled do not, and nobody loses work or keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pool_kit import Pool, feed, notices, rejected
from private_live_kit import PrivateLive, entropy_of
from secrecy_kit import seal_other

from converge_p2p.core.codec import decode_value, encode_value
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState
from converge_p2p.core.oplog.bodies import Body, ClaimBody, LeaveBody, Purpose, SubmitBody
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, KeyEntry, PrekeyBody
from converge_p2p.core.oplog.motions import MotionBody, move_change
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.sealing import shows_content
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.machine import Replica
from converge_p2p.core.types import TaskId

SECRET = b"the harbour at night"


def submit_secret(live: PrivateLive, key: bytes, by: int = 0) -> TaskId:
    spec = TaskSpec(key, "paint", encode_value({"what": SECRET.decode()}))
    live.mesh.at(1, by, ev.Submit(spec))
    return live.task(key, by)


def ready(live: PrivateLive) -> None:
    live.mesh.run(lambda: live.all_hold(0, set(range(len(live.pool.people)))))


def veto_by_first(electors: int) -> ModelTerms:
    """Terms under which the first of the electors may deny results, for a while."""
    (vetoer, *_) = sorted(person.key for person in Pool(electors, 0).people)
    return ModelTerms(vetoers=(vetoer,), veto_window_ms=2_000)


def told(live: PrivateLive, kind: type, node: int | None = None) -> list[Any]:
    return [notice for at, notice in live.mesh.told if isinstance(notice, kind) and node in (None, at)]


@pytest.mark.parametrize("faults", [0, 1])
def test_a_private_pool_submits_claims_reports_and_settles_and_its_log_shows_no_content(faults: int) -> None:
    live = PrivateLive(4, 2, faults=faults)
    ready(live)
    task = submit_secret(live, b"my-customer")
    live.settle(task)
    for node in range(6):
        view = live.view(node, task)
        assert (view.objective, view.inputs, view.state) == ("paint", {"what": SECRET.decode()}, TaskState.COMPLETED)
        assert view.result in (4, 5)
    for operation in live.operations():
        for word in (SECRET, b"paint", b"my-customer"):
            assert word not in operation.signed
    assert len(live.states()) == 1


def test_a_task_that_is_submitted_again_is_the_same_task_and_a_different_one_is_refused() -> None:
    live = PrivateLive()
    ready(live)
    task = submit_secret(live, b"k")
    live.settle(task)
    count = len(live.mesh.replicas[0].log)
    live.mesh.do(0, ev.Submit(TaskSpec(b"k", "paint", encode_value({"what": SECRET.decode()}))))
    assert len(live.mesh.replicas[0].log) == count
    with pytest.raises(LocalError, match="different task"):
        live.mesh.do(0, ev.Submit(TaskSpec(b"k", "draw", encode_value({}))))


def test_a_submit_without_a_key_is_refused_and_changes_nothing() -> None:
    live = PrivateLive()
    live.mesh.replicas[0].contents._ring._keys.clear()  # type: ignore[union-attr]
    live.mesh.replicas[0].contents._ring._by_name.clear()  # type: ignore[union-attr]
    spec = TaskSpec(b"k", "paint", encode_value({}))
    for _ in range(2):
        with pytest.raises(LocalError, match="no content key"):
            live.mesh.do(0, ev.Submit(spec))
    assert not live.mesh.replicas[0]._own


def test_a_relay_without_a_key_replicates_and_counts_but_reads_nothing() -> None:
    live = PrivateLive()
    relay = live.store.add(Replica(Identity.from_seed(b"r" * 32), live.pool.id, digest_interval_ms=500))
    ready(live)
    task = submit_secret(live, b"k")
    live.settle(task)
    live.mesh.run(lambda: live.mesh.equal)
    view = live.view(relay, task)
    assert (view.state, view.sealed, view.objective, view.inputs, view.result) == (
        TaskState.COMPLETED, True, "sealed", {}, None,
    )  # fmt: skip
    assert not view.claimable
    assert len({replica.view.state_bytes() for replica in live.mesh.replicas}) == 1
    assert relay not in live.readers(task)
    # a stranger with randomness of its own is no better off
    stranger = live.store.add(
        Replica(Identity.from_seed(b"q" * 32), live.pool.id, digest_interval_ms=500, entropy=entropy_of(9))
    )
    live.mesh.run(lambda: live.mesh.equal)
    assert live.view(stranger, task).sealed


def test_an_expelled_member_reads_nothing_of_the_next_epoch_and_those_that_stay_read_on() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    before = submit_secret(live, b"before")
    live.settle(before)
    live.move(expel=(4,))
    live.reach(1)
    live.works.discard(4)
    live.mesh.run(lambda: live.all_hold(1, {0, 1, 2, 3}))
    after = submit_secret(live, b"after")
    live.settle(after)
    live.mesh.run(lambda: live.mesh.equal)
    assert live.readers(before) == {0, 1, 2, 3, 4}
    assert live.readers(after) == {0, 1, 2, 3}
    # whatever it holds, and whoever's entry it tries
    expelled = live.secrets_of(4)
    assert all(key.epoch == 0 for key in expelled)
    fixed = live.mesh.replicas[0].view.epochs.certified_keys
    assert {key.commitment for key in expelled}.isdisjoint(fixed.values())
    assert list(fixed) == [1]


def test_an_expelled_elector_that_proposed_the_epoch_itself_does_not_have_the_key_that_is_used() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    live.move(by=2, expel=(2,), terms=live.electors_of(0, 1))
    live.reach(1, among=(0, 1, 3, 4))
    live.mesh.run(lambda: live.all_hold(1, {0, 1, 3, 4}))
    task = submit_secret(live, b"after")
    live.settle(task, among=(0, 1, 3, 4))
    register = live.mesh.replicas[0].view.registers[task]
    assert register.submitted is not None
    name = register.submitted.spec.inputs[1:9]
    assert name not in {key.name for key in live.secrets_of(2)}
    assert live.readers(task) >= {0, 1, 3, 4}


def test_members_that_stay_do_not_write_with_the_old_key_once_they_know_the_removal() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    live.move(expel=(4,))
    live.mesh.run(lambda: live.mesh.replicas[3].epoch == 1)
    ring = live.mesh.replicas[3].contents._ring
    assert ring is not None
    assert live.keys_of(3) >= {(0, 0)}
    # as if no elector had come to hand the new one out yet
    for key in ring.of(1, 0):
        ring._drop(key)
    with pytest.raises(LocalError, match="no content key of epoch 1"):
        live.mesh.do(3, ev.Submit(TaskSpec(b"k", "paint", encode_value({}))))


def test_work_that_is_done_while_there_is_no_key_is_reported_when_there_is_one() -> None:
    live = PrivateLive(3, 1)
    ready(live)
    live.works.clear()
    task = submit_secret(live, b"k")
    live.mesh.run(lambda: all(task in replica.view.registers for replica in live.mesh.replicas))
    live.mesh.do(3, ev.Claim(task))
    live.mesh.run(lambda: bool(told(live, ev.ClaimWon, 3)))
    ring = live.mesh.replicas[3].contents._ring
    assert ring is not None
    keys = live.secrets_of(3)
    for key in keys:
        ring._drop(key)
    live.mesh.do(3, ev.Report(task, Outcome.COMPLETED, encode_value("done")))
    live.mesh.run_for(300)
    assert live.mesh.replicas[0].view.registers[task].settled is None
    for key in keys:
        ring.add(key)
    live.mesh.replicas[3]._touch_open()
    live.settle(task)
    assert live.view(0, task).result == "done"


def test_a_newcomer_is_given_the_key_and_can_work() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    identity = Identity.from_seed(b"w" * 32)
    number = live.store.add(live.replica(identity, 7))
    live.mesh.run(lambda: live.mesh.replicas[number].caught_up)
    live.mesh.do(number, ev.Join())
    live.mesh.run(lambda: bool(live.keys_of(number)))
    assert live.keys_of(number) == {(0, 0)}
    live.works = {number}
    task = submit_secret(live, b"k")
    live.settle(task)
    assert live.view(0, task).result == number
    # what was sealed to it was sealed to its prekey, which came with its join
    offers = [op.body for op in live.operations() if isinstance(op.body, ContentKeyBody)]
    assert any(body.entry_for(identity.public_key) for body in offers)


def test_a_new_generation_is_offered_when_a_member_leaves_and_the_one_that_left_is_not_given_it() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    live.works.discard(4)
    live.mesh.do(4, ev.Leave())
    live.mesh.run(lambda: all((0, 1) in live.keys_of(node) for node in range(4)))
    task = submit_secret(live, b"k")
    live.settle(task)
    assert live.readers(task) == {0, 1, 2, 3}


def test_an_elector_that_seals_another_key_than_it_committed_to_is_named_and_the_pool_goes_on() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    liar = next(
        op.author for op in live.operations() if isinstance(op.body, ContentKeyBody) and op.body.generation == 0
    )
    number = next(index for index, person in enumerate(live.pool.people) if person.key == liar)
    # the next key that it hands out is a lie to everybody
    contents = live.mesh.replicas[number].contents
    draw = contents._draw

    def lie(body: ContentKeyBody) -> ContentKeyBody:
        recipients = live.mesh.replicas[number].view.keys.recipients(entry.member for entry in body.entries)
        key = next(key for key in live.secrets_of(number) if key.commitment == body.commitment)
        inside = replace(key, secret=draw("content-key", 99))
        entries = tuple(
            KeyEntry(member, seal_other(key, inside, liar, member, exchange_key))
            for member, exchange_key in recipients.items()
        )
        return replace(body, entries=entries)

    duties = contents.duties

    def lying(*, may_begin: bool) -> list[Body]:
        return [lie(body) if isinstance(body, ContentKeyBody) else body for body in duties(may_begin=may_begin)]

    contents.duties = lying  # type: ignore[method-assign]
    live.works.discard(4)
    live.mesh.do(4, ev.Leave())
    others = [node for node in range(4) if node != number]
    live.mesh.run(
        lambda: (
            all(told(live, ev.SplitKeyFound, node) for node in others)
            or all(any(generation >= 1 for _, generation in live.keys_of(node)) for node in others)
        )
    )
    live.mesh.run(lambda: all(any(held[1] >= 1 for held in live.keys_of(node)) for node in others))
    found = told(live, ev.SplitKeyFound)
    assert all((notice.culprit, notice.proven) == (liar, False) for notice in found)
    task = submit_secret(live, b"k", by=others[0])
    live.settle(task)
    assert set(others) <= live.readers(task)


def test_an_elector_that_commits_to_two_keys_of_a_generation_is_proven_to_everybody() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    offer = next(op for op in live.operations() if isinstance(op.body, ContentKeyBody))
    body = offer.body
    assert isinstance(body, ContentKeyBody)
    number = next(index for index, person in enumerate(live.pool.people) if person.key == offer.author)
    replica = live.mesh.replicas[number]
    replica._effects = []
    second = replica._pen.sign(replace(body, commitment=b"x" * 32), 0, 0)
    live.mesh.at(1, (number + 1) % 3, ev.Received((second.signed,)))
    live.mesh.run(lambda: all(told(live, ev.SplitKeyFound, node) for node in range(5) if node != number))
    assert {(found.culprit, found.proven) for found in told(live, ev.SplitKeyFound)} == {(offer.author, True)}


def test_a_key_of_garbage_is_survived_and_nobody_is_blamed() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    first = next(op for op in live.operations() if isinstance(op.body, ContentKeyBody))
    number = next(index for index, person in enumerate(live.pool.people) if person.key == first.author)
    replica = live.mesh.replicas[number]
    members = tuple(sorted(person.key for person in live.pool.people))
    garbage = ContentKeyBody(0, 1, b"g" * 32, tuple(KeyEntry(member, b"\x07" * 80) for member in members))
    operation = replica._pen.sign(garbage, 0, 0)
    live.mesh.at(1, (number + 1) % 3, ev.Received((operation.signed,)))
    # electors that cannot read the newest key replace it
    live.mesh.run(lambda: all(any(held[1] >= 2 for held in live.keys_of(node)) for node in range(5) if node != number))
    assert {notice.author for notice in told(live, ev.KeyUnopenable)} == {replica.identity.public_key}
    assert not told(live, ev.SplitKeyFound)
    by = (number + 1) % 3
    task = submit_secret(live, b"k", by=by)
    live.settle(task, among=(by,))
    assert not live.view(by, task).sealed


@pytest.mark.parametrize("node", [0, 2, 4])
def test_a_node_that_starts_again_reads_what_it_read_and_goes_on(node: int) -> None:
    live = PrivateLive(3, 2)
    ready(live)
    old = submit_secret(live, b"old")
    live.settle(old)
    live.mesh.run(lambda: live.mesh.equal)
    held = {key.commitment for key in live.secrets_of(node)}
    live.restart(node)
    assert {key.commitment for key in live.secrets_of(node)} == held
    assert not live.view(node, old).sealed
    live.works = {node} if node > 2 else live.works
    new = submit_secret(live, b"new")
    live.settle(new)
    assert live.readers(new) == set(range(5))
    # it neither made a new key nor a new prekey for it
    assert len([op for op in live.operations(0) if isinstance(op.body, PrekeyBody)]) == 5
    assert {op.body.generation for op in live.operations(0) if isinstance(op.body, ContentKeyBody)} == {0}


def test_a_node_that_starts_again_in_the_middle_of_a_change_keeps_the_key_it_proposed() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    live.move(terms=live.electors_of(0, 1, 2, 3))

    def made() -> list[int]:
        return [node for node in range(3) if any(key.epoch == 1 for key in live.secrets_of(node))]

    live.mesh.run(lambda: bool(made()))
    proposer = made()[0]
    key = next(key for key in live.secrets_of(proposer) if key.epoch == 1)
    live.restart(proposer)
    assert key in live.secrets_of(proposer)
    live.reach(1)
    live.mesh.run(lambda: live.all_hold(1, set(range(5))))
    task = submit_secret(live, b"k")
    live.settle(task)
    assert live.readers(task) == set(range(5))


def test_every_epoch_brings_a_new_key_and_every_member_a_new_prekey() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    live.move(terms=live.electors_of(0, 1, 3))
    live.reach(1)
    live.mesh.run(lambda: live.all_hold(1, set(range(5))))
    live.mesh.run(lambda: live.mesh.equal)
    live.mesh.run(
        lambda: (
            sorted((op.epoch, op.author) for op in live.operations() if isinstance(op.body, PrekeyBody))
            == sorted((epoch, person.key) for epoch in (0, 1) for person in live.pool.people)
        )
    )
    fixed = live.mesh.replicas[0].view.epochs.certified_keys[1]
    assert all(fixed in {key.commitment for key in live.secrets_of(node)} for node in range(5))


def test_an_epoch_without_a_key_is_not_endorsed_in_a_private_pool_and_one_with_a_key_nowhere_else() -> None:
    live = PrivateLive(3, 1)
    ready(live)
    for replica in live.mesh.replicas:
        replica.contents.commitment_for = lambda _epoch: b""  # type: ignore[method-assign]
    live.move(terms=live.electors_of(0, 1))
    live.mesh.run_for(5_000)
    assert {replica.epoch for replica in live.mesh.replicas} == {0}
    for replica in live.mesh.replicas:
        del replica.contents.__dict__["commitment_for"]
    live.reach(1)


def test_reasons_are_sealed_and_read_by_members() -> None:
    live = PrivateLive(3, 1)
    ready(live)
    live.agree = set()
    live.works = set()
    live.move(terms=live.electors_of(0, 1))
    task = submit_secret(live, b"k")
    live.mesh.run(lambda: all(task in replica.view.registers for replica in live.mesh.replicas))
    live.mesh.do(0, ev.Cancel(task, "no longer wanted"))
    live.settle(task)
    assert live.view(1, task).result == {"reason": "no longer wanted"}
    for operation in live.operations():
        assert b"because" not in operation.signed
        assert b"no longer" not in operation.signed
    operation = next(op for op in live.operations() if isinstance(op.body, MotionBody))
    opened = live.mesh.replicas[1].contents.open_body(operation)
    assert isinstance(opened, MotionBody)
    assert opened.reason == "because"


def test_a_task_that_fails_for_good_is_settled_with_a_sealed_reason() -> None:
    live = PrivateLive(3, 1)
    ready(live)
    live.works = set()
    live.mesh.at(1, 0, ev.Submit(TaskSpec(b"k", "paint", encode_value({}), max_retries=0)))
    task = live.task(b"k", 0)
    live.mesh.run(lambda: all(task in replica.view.registers for replica in live.mesh.replicas))
    live.mesh.do(3, ev.Claim(task))
    live.mesh.run(lambda: bool(told(live, ev.ClaimWon, 3)))
    live.mesh.do(3, ev.Release(task, failed=True, reason="out of paint"))
    live.settle(task)
    assert live.view(1, task).state is TaskState.FAILED
    assert live.view(1, task).result == {"error": "every attempt failed or ran out of time"}
    assert all(b"attempt failed" not in op.signed and b"paint" not in op.signed for op in live.operations())


def test_an_evaluator_reads_and_judges_what_was_reported_and_a_rule_cannot() -> None:
    live = PrivateLive(3, 2)
    ready(live)
    live.works = {3}
    judge = live.pool.people[4]
    spec = TaskSpec(b"k", "paint", encode_value({}), evaluator=f"agent:{judge.key.hex()}")
    live.mesh.at(1, 0, ev.Submit(spec))
    task = live.task(b"k", 0)
    live.mesh.run(lambda: bool(told(live, ev.VerdictWanted, 4)))
    view = live.view(4, task)
    (waiting,) = view.unjudged
    assert decode_value(waiting.result) == 3
    assert waiting.hash == told(live, ev.VerdictWanted, 4)[0].value
    live.mesh.do(4, ev.Judge(task, True, "a fine picture"))
    live.settle(task)
    assert live.view(0, task).result == 3
    assert all(b"fine picture" not in operation.signed for operation in live.operations())
    with pytest.raises(LocalError, match="rule cannot judge"):
        live.mesh.do(0, ev.Submit(replace(spec, key=b"r", evaluator="rule:any")))


def test_a_denied_result_says_why_to_members_and_to_nobody_else() -> None:
    live = PrivateLive(3, 2, governance=GovernanceKind.VETO, model=veto_by_first(3))
    ready(live)
    task = submit_secret(live, b"k")
    vetoer = next(node for node in range(3) if live.key(node) in live.terms.model.vetoers)

    def waits() -> bool:
        view = live.mesh.replicas[vetoer].view.task(task)
        return view is not None and view.awaiting is not None

    live.mesh.run(waits)
    assert not live.view(vetoer, task).sealed
    live.mesh.do(vetoer, ev.Veto(task, True, "not in this light"))
    live.settle(task)
    assert live.view(4, task).state is TaskState.FAILED
    assert live.view(4, task).result == {"error": "vetoed", "by": live.key(vetoer), "reason": "not in this light"}
    assert all(b"this light" not in operation.signed for operation in live.operations())


# ---------------------------------------------------------------- the door


def test_an_operation_that_shows_its_content_is_refused_and_whoever_sends_it_is_to_blame() -> None:
    pool = Pool(3, 1, private=True)
    replica = pool.replica()
    feed(replica, pool.base)
    author = pool.workers[0]
    bodies: list[Body] = [
        SubmitBody(TaskSpec(b"k", "paint", encode_value({}))),
        ClaimBody(TaskId(b"t" * 32), Purpose.CANCEL, 0, "why"),
        move_change((pool.people[1].key,), None, "why"),
    ]
    for body in bodies:
        assert shows_content(body)
        effects = feed(replica, [author.branch().sign(body)])
        assert rejected(effects) == ["clear_content"]
        assert notices(effects, ev.Rejected)[0].guilty
    assert rejected(feed(replica, [author.sign(LeaveBody())])) == []


def test_in_a_pool_that_is_not_private_keys_are_ignored_and_contents_are_clear() -> None:
    pool = Pool(3, 1)
    replica = pool.replica(entropy=entropy_of(1))
    feed(replica, pool.base)
    _, submitted = pool.submit()
    entry = KeyEntry(pool.people[1].key, bytes(80))
    offer = pool.people[0].sign(ContentKeyBody(0, 0, b"c" * 32, (entry,)))
    assert rejected(feed(replica, [submitted, offer])) == []
    assert not replica.contents.on
    assert replica.view.keys.offered(0, 0) == ()


def test_nobody_makes_a_pool_private_or_public_by_a_motion() -> None:
    live = PrivateLive(3, 1)
    ready(live)
    with pytest.raises(LocalError, match="private never changes"):
        live.mesh.do(0, ev.Move(move_change((), replace(live.terms, private=False))))
    body = move_change((), replace(live.terms, private=False))
    replica = live.mesh.replicas[0]
    operation = replica._pen.sign(body, 0, 0)
    live.mesh.at(1, 1, ev.Received((operation.signed,)))
    live.mesh.run_for(3_000)
    assert {one.epoch for one in live.mesh.replicas} == {0}


def test_a_pool_on_links_that_lose_loses_no_key() -> None:
    for seed in range(3):
        live = PrivateLive(3, 2, seed=seed, loss=0.2)
        ready(live)
        live.move(expel=(4,))
        live.reach(1)
        live.works.discard(4)
        live.mesh.run(lambda live=live: live.all_hold(1, {0, 1, 2, 3}))  # type: ignore[misc]
        task = submit_secret(live, b"k", by=3)
        live.settle(task)
        assert live.readers(task) == {0, 1, 2, 3}


def test_a_pool_founded_without_randomness_is_refused() -> None:
    pool = Pool(1, 0, private=True)
    with pytest.raises(LocalError, match="entropy"):
        Replica(pool.people[0].identity, pool.id).handle(ev.Found(pool.spec), ev.Now(0, 0))


def test_secrets_are_kept_before_what_rests_on_them_is_written() -> None:
    pool = Pool(1, 0, private=True)
    replica = Replica(pool.people[0].identity, pool.id, entropy=entropy_of(1))
    effects: list[ev.Effect] = replica.handle(ev.Found(pool.spec), ev.Now(0, 0))
    order: list[type] = []
    while effects:
        effect = effects.pop(0)
        order.append(type(effect))
        if isinstance(effect, ev.Persist) and effect.durable:
            effects += replica.handle(ev.Persisted((effect.token,)), ev.Now(0, 0))
    bodies = [operation.body for operation in _own(replica)]
    assert [type(body).__name__ for body in bodies] == ["Genesis", "PrekeyBody", "ContentKeyBody"]
    keeps = [index for index, kind in enumerate(order) if kind is ev.Keep]
    persists = [index for index, kind in enumerate(order) if kind is ev.Persist]
    assert len(keeps) == 2
    assert all(any(before < after for before in keeps) for after in persists[1:])
    assert keeps[0] < persists[1]
    assert keeps[1] < persists[2]


def _own(replica: Replica) -> list[Operation]:
    from converge_p2p.core.oplog.operation import decode_operation

    key = replica.identity.public_key
    return [decode_operation(signed, replica.pool) for signed in replica.log.read(key, 0, 10**6)]
