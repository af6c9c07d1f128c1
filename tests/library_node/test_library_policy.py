"""A node learns whom to trust from what it saw end, and answers motions as it was told to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
from node_library_kit import LOOPBACK, until, who
from trio.testing import wait_all_tasks_blocked

from converge_p2p.core import limits
from converge_p2p.core.codec import encode_value
from converge_p2p.core.errors import LocalError, NotAuthorised
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.decision import ClaimTask, Decision
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.model.query import DiscoveryQuery
from converge_p2p.core.model.task import Outcome, Task, TaskSpec, TaskState, TaskValue, TaskView
from converge_p2p.core.types import PoolId, PublicKey, TaskId
from converge_p2p.core.view.motions import MotionView
from converge_p2p.node import Node, NodeConfig
from converge_p2p.node.policy import NodePolicy, TrustPolicy
from converge_p2p.node.trust_history import HISTORY_KEY, TrustHistory
from converge_p2p.runtime.agent import Agent
from converge_p2p.runtime.executor import Refused
from converge_p2p.runtime.safety import ActionPolicy, ResourceLimits, SafetyPolicy
from converge_p2p.runtime.trust import TrustModel
from converge_p2p.store.memory import MemoryStore

ME, OTHER, WORKER = who(1).public_key, who(2).public_key, who(3).public_key
WORKER_ID = fingerprint(WORKER)


def view(number: int, *, submitter: PublicKey = ME, worker: PublicKey = WORKER, **changes: Any) -> TaskView:
    task = TaskId(number.to_bytes(32, "big"))
    value = TaskValue(Outcome.COMPLETED, worker, encode_value(1))
    return replace(
        TaskView(task, PoolId(b"p" * 32), submitter, TaskSpec(b"k", "x", b""), TaskState.COMPLETED, value=value),
        **changes,
    )


def still_open(ended: TaskView) -> TaskView:
    return replace(ended, state=TaskState.PENDING, value=None)


def history(learn: Any = "own", store: Any = None) -> tuple[TrustHistory, TrustModel]:
    model = TrustModel(rate=0.5)
    return TrustHistory(model, store or MemoryStore(), ME, learn), model


def see(watched: TrustHistory, *views: TaskView) -> None:
    for each in views:
        watched.observe(still_open(each))
        watched.observe(each)


def test_a_task_counts_once_when_it_is_seen_to_end() -> None:
    watched, model = history()
    watched.observe(view(1))
    assert model.score(WORKER_ID) == 0.5, "it had ended before: that was learnt in an earlier run"
    see(watched, view(2))
    assert (model.score(WORKER_ID), model.score(WORKER_ID, "x")) == (0.75, 0.75)
    watched.observe(view(2))
    assert model.score(WORKER_ID) == 0.75


def test_a_failed_task_costs_trust_and_a_cancelled_one_says_nothing() -> None:
    watched, model = history()
    failed = TaskValue(Outcome.FAILED, WORKER, encode_value("no"))
    see(watched, view(1, state=TaskState.FAILED, value=failed))
    assert model.score(WORKER_ID) == 0.25
    cancelled = TaskValue(Outcome.CANCELLED, WORKER, encode_value(""))
    see(watched, view(2, state=TaskState.CANCELLED, value=cancelled))
    assert model.score(WORKER_ID) == 0.25


@pytest.mark.parametrize(("learn", "score"), [("own", 0.5), ("all", 0.75), ("off", 0.5)])
def test_tasks_of_others_count_only_where_that_was_asked_for(learn: Any, score: float) -> None:
    watched, model = history(learn)
    see(watched, view(1, submitter=OTHER))
    assert model.score(WORKER_ID) == score


def test_nobody_learns_of_himself_or_from_what_he_cannot_read() -> None:
    watched, model = history()
    see(watched, view(1, worker=ME), view(2, sealed=True))
    assert model.to_dict() == {}


def test_how_many_open_tasks_are_watched_is_bounded() -> None:
    watched, model = history()
    for number in range(limits.TRUST_WATCHED_TASKS_MAX + 1):
        watched.observe(still_open(view(number)))
    watched.observe(view(0))
    assert model.score(WORKER_ID) == 0.5
    watched.observe(view(1))
    assert model.score(WORKER_ID) == 0.75


async def test_what_was_learnt_is_there_after_a_restart_and_damage_is_forgotten() -> None:
    store = MemoryStore()
    watched, _ = history(store=store)
    see(watched, view(1))
    await watched.save()
    again, model = history(store=store)
    await again.restore()
    assert model.score(WORKER_ID, "x") == 0.75
    for damaged in (b"\xc1", encode_value([1]), encode_value({"a": {"b": 7}})):
        store.put(HISTORY_KEY, damaged)
        fresh, model = history(store=store)
        await fresh.restore()
        assert model.to_dict() == {}


@pytest.mark.parametrize(
    "wrong", [{"default": 2}, {"rate": 0}, {"half_life_s": -1}, {"learn": "x"}, {"join_threshold": float("nan")}]
)
def test_a_policy_of_trust_without_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalError):
        TrustPolicy(**wrong)


# ---------------------------------------------------------------- on a node


def node(policy: NodePolicy) -> Node:
    return Node(identity=who(1), listen=LOOPBACK, config=NodeConfig(policy=policy))


@pytest.mark.network
async def test_thresholds_hold_in_searches_and_where_others_are_let_in() -> None:
    policy = NodePolicy(trust=TrustPolicy(discovery_threshold=0.6, join_threshold=0.6))
    newcomer = f"key:{WORKER.hex()}"
    with trio.fail_after(60):
        async with node(policy) as one:
            await one.discovery.register(["translate"])
            query = DiscoveryQuery(capabilities=())
            pool = await one.create_pool("vouched", admission=AdmissionKind.VOUCHED, admission_need=1)
            invited = await one.create_pool("token", admission=AdmissionKind.TOKEN)
            for ask in (pool.vouch, lambda agent: invited.invite(joiner=agent)):
                with pytest.raises(NotAuthorised, match="trust in"):
                    ask(newcomer)
            assert one.discovery.find(query) == []
            one.discovery.trust.set(WORKER_ID, 0.7)
            one.discovery.trust.set(one.id, 0.7)
            assert pool.vouch(newcomer)
            assert invited.invite(joiner=newcomer)
            assert [found.agent_id for found in one.discovery.find(query)] == [one.id]


class Eager(Agent):
    """Claims what it sees, and keeps what became of that."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Any] = []
        self.told = trio.Event()

    def decide(self, messages: Any, tasks: Any) -> list[Decision]:
        return [ClaimTask(task.pool_id, task.id) for task in tasks if task.claimable]

    def on_results(self, results: Any) -> None:
        self.results += results
        if results:
            self.told.set()


@pytest.mark.network
async def test_the_nodes_policy_holds_for_agents_without_one_and_for_handlers() -> None:
    safety = SafetyPolicy(ResourceLimits(memory_mb=100), ActionPolicy.named(["SendMessage"]))
    done: list[Any] = []
    with trio.fail_after(60):
        async with node(NodePolicy(safety=safety)) as one:
            pool = await one.create_pool("demo")
            agent = Eager()
            await one.host(agent)
            large = await pool.submit(Task("x", {"n": 1}, constraints={"memory_mb": 200}))
            await agent.told.wait()
            assert all(isinstance(result, Refused) for result in agent.results)

            @pool.handler("x")
            def work(task: TaskView, context: Any) -> None:
                done.append(task.inputs["n"])

            small = await pool.submit(Task("x", {"n": 2}))
            await small.result()
            assert done == [2]
            assert large.view.state is TaskState.PENDING


@pytest.mark.network
@pytest.mark.parametrize("kind", ["async", "plain", "raising", "nonsense", "silent"])
async def test_motions_are_answered_by_the_hook_and_its_faults_say_nothing(kind: str) -> None:
    asked: list[MotionView] = []
    seen = trio.Event()

    async def say_yes(motion: MotionView) -> bool:
        asked.append(motion)
        seen.set()
        return True

    def answer(motion: MotionView) -> Any:
        asked.append(motion)
        trio.from_thread.run_sync(seen.set)
        if kind == "raising":
            raise ValueError("asked to fail")
        return {"plain": True, "nonsense": "yes", "silent": None}[kind]

    opinion: Any = say_yes if kind == "async" else answer
    with trio.fail_after(60):
        async with node(NodePolicy(opinion=opinion)) as one:
            pool = await one.create_pool("demo", electors=[f"key:{ME.hex()}", f"key:{OTHER.hex()}"])
            task = await pool.submit(Task("x"))
            name = await pool.council.dispute(task.id, "wrong")

            def said() -> list[Any]:
                return [(elector, choice) for _, elector, choice in pool.council.motion(name).ballots]

            await seen.wait()
            if kind in ("async", "plain"):
                await until(lambda: said() == [(ME, 1)], "the word of this elector")
            else:
                await wait_all_tasks_blocked(0.1)
                assert said() == []
            assert pool.ready
    assert [(motion.motion.id, motion.motion.reason) for motion in asked] == [(name, "wrong")]
