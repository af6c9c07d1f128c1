"""Join requests where nothing is real but the store: what strangers, old words, lying electors and clocks can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from node_library_kit import terms, who

from converge_p2p.core import limits
from converge_p2p.core.errors import NotFound
from converge_p2p.core.governance.proofs import make_invitation, make_vouch
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.join_request import (
    AnswerKind,
    Application,
    JoinAnswer,
    JoinAsk,
    JoinState,
    is_over,
)
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.types import OperationId, PoolId
from converge_p2p.core.view.motions import Outcome
from converge_p2p.net import THIS_MACHINE, peer_id_of
from converge_p2p.node.admitting import EPOCHS_AHEAD, now_ms
from converge_p2p.node.join_asking import ASKING_KEY, JoinAsking, _Case
from converge_p2p.node.join_requests import JoinRequests
from converge_p2p.store.memory import MemoryStore

ME, NEW = who(1), who(2)
POOL = PoolId(b"p" * 32)
WEEK_MS = round(limits.JOIN_REQUEST_TTL_S * 1000)


class Council:
    def __init__(self) -> None:
        self.epoch = 0
        self.moved: list[Any] = []
        self.outcomes: dict[OperationId, tuple[Outcome, int]] = {}

    def motions(self) -> list[Any]:
        return []

    def motion(self, name: OperationId) -> Any:
        if name not in self.outcomes:
            raise NotFound("no such motion")
        outcome, epoch = self.outcomes[name]
        return SimpleNamespace(
            outcome=outcome, motion=SimpleNamespace(epoch=epoch, expelled=(), **self.moved[name[0] - 1])
        )

    async def second(self, _same: Any) -> None:
        return None

    async def move(self, **what: Any) -> OperationId:
        self.moved.append(what)
        name = OperationId(bytes([len(self.moved)]) * 32)
        self.outcomes[name] = (Outcome.OPEN, self.epoch)
        return name


class Pool:
    """A pool with one elector."""

    id, ready, is_member, creator = POOL, True, False, None

    def __init__(self, admission: AdmissionKind, need: int = 0, electors: tuple[Identity, ...] = (ME,)) -> None:
        self.spec = replace(terms(ME), admission=admission, admission_need=need)
        self.electors = tuple(each.public_key for each in electors)
        self.members = {ME.public_key}
        self.council = Council()

    def has_member(self, key: Any) -> bool:
        return key in self.members

    def invite(self, *, joiner: str, until_epoch: int) -> bytes:
        key = bytes.fromhex(joiner.removeprefix("key:"))
        return make_invitation(ME, POOL, joiner=key, until_epoch=until_epoch).to_bytes()  # type: ignore[arg-type]

    def vouch(self, joiner: str, *, until_epoch: int) -> bytes:
        key = bytes.fromhex(joiner.removeprefix("key:"))
        return make_vouch(ME, POOL, key, until_epoch=until_epoch).to_bytes()  # type: ignore[arg-type]


def node_of(identity: Identity, pool: Pool) -> Any:
    return SimpleNamespace(
        pools={POOL: pool},
        public_key=identity.public_key,
        id=identity.id,
        counters=Counter(),
        observation=SimpleNamespace(tell=lambda *_what, **_about: None),
        spawn=lambda *_what: None,
    )


def requests_at(pool: Pool, store: MemoryStore | None = None, hosts: Mapping[str, str] | None = None) -> JoinRequests:
    """`hosts`: from which host a peer asks; the others are on this machine."""
    known = SimpleNamespace(host=lambda peer: (hosts or {}).get(peer, THIS_MACHINE))
    network: Any = SimpleNamespace(acquaintance=known)
    return JoinRequests(node_of(ME, pool), store or MemoryStore(), lambda: network)


async def ask(requests: JoinRequests, who_asks: Identity = NEW) -> JoinAnswer:
    payload = JoinAsk(POOL, "let me in").to_bytes()
    return JoinAnswer.from_bytes(await requests.on_ask(peer_id_of(who_asks.public_key), payload))


def stranger(number: int) -> Identity:
    return Identity.from_seed(b"stranger" + number.to_bytes(24, "big"))


async def test_strangers_cannot_take_back_what_was_given_by_asking_in_numbers() -> None:
    pool = Pool(AdmissionKind.TOKEN)
    requests = requests_at(pool)
    await ask(requests)
    await requests.admit(pool, NEW.public_key)  # type: ignore[arg-type]
    for number in range(limits.JOIN_REQUESTS_PER_POOL_MAX - 1):
        assert (await ask(requests, stranger(number))).kind is AnswerKind.PENDING
    assert (await ask(requests, stranger(99))).reason == "full"
    assert (await ask(requests)).kind is AnswerKind.GIVEN
    # who was refused, and who is in, makes room
    await requests.refuse(pool, stranger(0).public_key)  # type: ignore[arg-type]
    assert (await ask(requests, stranger(99))).kind is AnswerKind.PENDING
    pool.members.add(NEW.public_key)
    assert (await ask(requests, stranger(100))).kind is AnswerKind.PENDING
    assert (await ask(requests, stranger(101))).reason == "full"
    assert len(requests.all()) == limits.JOIN_REQUESTS_PER_POOL_MAX


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::/64", ""])
async def test_one_address_or_all_relays_together_cannot_fill_the_queue(host: str) -> None:
    pool, store = Pool(AdmissionKind.TOKEN), MemoryStore()
    hosts = {peer_id_of(stranger(number).public_key): host for number in range(100)}
    requests = requests_at(pool, store, hosts)
    answers = [await ask(requests, stranger(number)) for number in range(30)]
    bound = limits.JOIN_REQUESTS_PER_HOST_MAX
    assert [answer.kind for answer in answers[:bound]] == [AnswerKind.PENDING] * bound
    assert {answer.reason for answer in answers[bound:]} == {"full"}
    # also after a restart
    again = requests_at(pool, store, hosts)
    await again.restore()
    assert (await ask(again, stranger(50))).reason == "full"
    assert (await ask(again, stranger(0))).kind is AnswerKind.PENDING, "who waits goes on waiting"
    assert (await ask(again, NEW)).kind is AnswerKind.PENDING, "others have their places"


async def test_who_is_in_takes_no_place_of_its_address_or_key_from_others() -> None:
    """Eight nodes of one house may not keep the ninth out for a week."""
    pool, bound = Pool(AdmissionKind.TOKEN), limits.JOIN_REQUESTS_PER_HOST_MAX
    requests = requests_at(pool, hosts={peer_id_of(stranger(number).public_key): "192.0.2.1" for number in range(100)})
    for number in range(bound):
        await ask(requests, stranger(number))
        await requests.admit(pool, stranger(number).public_key)  # type: ignore[arg-type]
    assert (await ask(requests, stranger(50))).reason == "full", "what was given and not used keeps its place"
    for number in range(bound):
        pool.members.add(stranger(number).public_key)
    assert (await ask(requests, stranger(50))).kind is AnswerKind.PENDING
    await requests.refuse(pool, stranger(50).public_key)  # type: ignore[arg-type]
    answers = [await ask(requests, stranger(number)) for number in range(60, 60 + bound)]
    assert [answer.kind for answer in answers].count(AnswerKind.PENDING) == bound - 1, "who was refused keeps its place"


@pytest.mark.parametrize("kind", [AdmissionKind.TOKEN, AdmissionKind.VOUCHED])
async def test_what_was_given_ends_with_its_epochs_and_terms_and_is_not_signed_again_unasked(
    kind: AdmissionKind,
) -> None:
    pool = Pool(kind)
    requests = requests_at(pool)
    await ask(requests)
    await requests.admit(pool, NEW.public_key)  # type: ignore[arg-type]
    pool.council.epoch = EPOCHS_AHEAD
    assert (await ask(requests)).kind is AnswerKind.GIVEN
    pool.council.epoch += 1
    assert (await ask(requests)).kind is AnswerKind.PENDING
    assert requests.all()[0].state is JoinState.PENDING
    await requests.admit(pool, NEW.public_key)  # type: ignore[arg-type]
    assert (await ask(requests)).kind is AnswerKind.GIVEN
    pool.council.epoch += EPOCHS_AHEAD + 1
    # it is worth nothing any more, so that saying no now is no contradiction
    await requests.refuse(pool, NEW.public_key)  # type: ignore[arg-type]
    assert (await ask(requests)).kind is AnswerKind.REFUSED
    await requests.admit(pool, NEW.public_key)  # type: ignore[arg-type]
    other = AdmissionKind.VOUCHED if kind is AdmissionKind.TOKEN else AdmissionKind.TOKEN
    pool.spec = replace(pool.spec, admission=other)
    assert (await ask(requests)).kind is AnswerKind.PENDING


@pytest.mark.parametrize("kind", [AdmissionKind.WHITELIST, AdmissionKind.TOKEN])
async def test_a_motion_that_lapsed_is_moved_again_at_once_but_not_long_afterwards_or_under_other_terms(
    kind: AdmissionKind,
) -> None:
    pool, vote = Pool(kind), kind is AdmissionKind.TOKEN
    requests, council = requests_at(pool), pool.council

    async def lapse(epochs: int) -> None:
        name = OperationId(requests.all()[0].motion)
        council.outcomes[name] = (Outcome.LAPSED, council.epoch)
        council.epoch += epochs
        assert (await ask(requests)).kind is AnswerKind.PENDING

    await ask(requests)
    await requests.admit(pool, NEW.public_key, vote=vote)  # type: ignore[arg-type]
    await lapse(1)
    assert len(council.moved) == 2
    # within two changes the newcomer may have been let in by others, and expelled
    await lapse(2)
    assert (len(council.moved), requests.all()[0].motion) == (2, b"")
    await requests.admit(pool, NEW.public_key, vote=vote)  # type: ignore[arg-type]
    council.outcomes.clear()
    await ask(requests)
    assert (len(council.moved), requests.all()[0].motion) == (3, b"")
    await requests.admit(pool, NEW.public_key, vote=vote)  # type: ignore[arg-type]
    pool.spec = replace(pool.spec, admission=AdmissionKind.WHITELIST if vote else AdmissionKind.TOKEN)
    await lapse(1)
    assert (len(council.moved), requests.all()[0].motion) == (4, b"")


async def test_a_clock_that_was_far_ahead_leaves_no_request_behind_that_never_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, pool = MemoryStore(), Pool(AdmissionKind.TOKEN)
    monkeypatch.setattr("converge_p2p.node.join_requests.now_ms", lambda: now_ms() + 1000 * WEEK_MS)
    await ask(requests_at(pool, store))
    monkeypatch.undo()
    requests = requests_at(pool, store)
    await requests.restore()
    assert (requests.all(), store.list("joins/")) == ([], [])
    now = 10 * WEEK_MS
    over = {each: is_over(now + each, now) for each in (0, 1, WEEK_MS, 2 * WEEK_MS, 2 * WEEK_MS + 1)}
    assert over == {0: True, 1: False, WEEK_MS: False, 2 * WEEK_MS: False, 2 * WEEK_MS + 1: True}


# ------------------------------------------------------------ the newcomer's side


class Answers:
    """Electors that say what they are told to say."""

    def __init__(self) -> None:
        self.said: dict[str, JoinAnswer] = {}
        self.asked: list[str] = []
        self.holding: trio.Event | None = None

    async def reach(self, peer: str) -> None:
        return None

    async def request(self, peer: str, _payload: bytes, _timeout_s: float) -> bytes:
        self.asked.append(peer)
        if self.holding is not None:
            await self.holding.wait()
        return self.said[peer].to_bytes()


class Asking:
    def __init__(self, pool: Pool) -> None:
        self.pool, self.answers, self.store = pool, Answers(), MemoryStore()
        self.node = node_of(NEW, pool)
        self.spawned: list[Any] = []
        self.joined: list[dict[str, Any]] = []
        self.node.spawn = lambda run, *args: self.spawned.append((run, args))
        self.node.join_pool = self.join_pool

        async def follow(_pool: PoolId, _timeout_s: float | None) -> Pool:
            return pool

        async def leave(_pool: PoolId) -> None:
            return None

        pools = SimpleNamespace(all=lambda: {POOL: pool}, follow=follow, leave=leave)
        self.asking = JoinAsking(self.node, self.store, pools, lambda: self.answers)  # type: ignore[arg-type,return-value]

    async def join_pool(self, _pool: PoolId, **shown: Any) -> Pool:
        if not shown.get("vouches"):
            raise NotFound("nothing was shown")
        self.joined.append(shown)
        return self.pool

    def vouch(self, elector: Identity, until_epoch: int) -> None:
        proof = make_vouch(elector, POOL, NEW.public_key, until_epoch=until_epoch).to_bytes()
        self.answers.said[peer_id_of(elector.public_key)] = JoinAnswer(AnswerKind.GIVEN, proof)


async def test_a_vouch_of_an_epoch_that_is_over_is_asked_for_again_and_a_lie_takes_none_away() -> None:
    one, two, liar = who(3), who(4), who(5)
    asking = Asking(Pool(AdmissionKind.VOUCHED, need=2, electors=(one, two, liar)))
    for each in (two, liar):
        asking.answers.said[peer_id_of(each.public_key)] = JoinAnswer(AnswerKind.PENDING)
    asking.answers.said[peer_id_of(liar.public_key)] = JoinAnswer(AnswerKind.FREE)
    asking.vouch(one, 3)
    await asking.asking.ask(POOL)
    assert list(asking.asking.all()[0].given) == [one.public_key]
    case = asking.asking._cases[POOL]
    asking.answers.asked.clear()
    await asking.asking._round(case)
    assert peer_id_of(one.public_key) not in asking.answers.asked
    asking.pool.council.epoch = 4
    asking.vouch(one, 20)
    asking.vouch(two, 20)
    await asking.asking._round(case)
    assert asking.asking.all()[0].state is JoinState.ADMITTED
    assert [len(shown["vouches"]) for shown in asking.joined] == [2]


async def test_who_withdraws_while_electors_are_asked_is_not_joined_afterwards_nor_after_a_restart() -> None:
    elector = who(3)
    asking = Asking(Pool(AdmissionKind.VOUCHED, need=1, electors=(elector,)))
    asking.vouch(elector, 20)
    asking.answers.holding = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking.asking.ask, POOL)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert asking.store.list(ASKING_KEY)
        await asking.asking.withdraw(POOL)
        asking.answers.holding.set()
    assert (asking.joined, asking.store.list(ASKING_KEY), asking.asking.all()) == ([], [], [])


async def test_who_asked_and_does_not_wait_for_the_answer_is_asked_for_all_the_same() -> None:
    elector = who(3)
    asking = Asking(Pool(AdmissionKind.VOUCHED, need=1, electors=(elector,)))
    asking.answers.holding = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking.asking.ask, POOL)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert [run for run, _ in asking.spawned] == [asking.asking._run]
    kept = Application.from_bytes(asking.store.get(ASKING_KEY + POOL.hex()) or b"")
    assert (kept.state, isinstance(asking.spawned[0][1][0], _Case)) == (JoinState.PENDING, True)
