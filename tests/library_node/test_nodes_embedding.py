"""Real nodes on loopback: what the README and the page on embedding promise to somebody who embeds one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from node_library_kit import LOOPBACK, POLICY, QUICK, linked, real_node, until, who

from converge_p2p import Agent, Node, Task, TaskCancelled, TaskFailed, TaskView, Topic, governance
from converge_p2p.core.errors import ConvergeError, LocalError, NetworkError, NotAuthorised, NotFound, StoreError
from converge_p2p.core.model.decision import ClaimTask, Decision, ReportTask
from converge_p2p.core.model.message import Message
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.model.task import TaskState
from converge_p2p.core.view.receipt import Receipt
from converge_p2p.node.known_peers import PEERS_KEY
from converge_p2p.store.memory import MemoryStore

pytestmark = pytest.mark.network

ROOT = Path(__file__).resolve().parents[2]
DEAD = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWB8ByWevpkhVFdFUEu13bju4ATMQXMdK2pY25hCSqBLUy"


async def result_of(handle: Any, timeout_s: float = 20.0) -> Any:
    with trio.fail_after(timeout_s):
        return await handle.result()


def open_files() -> set[str]:
    """What this process has open, beside what the event loop of the test itself holds."""
    names = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(("socket:", "/")) and "/dev/" not in target:
            names.add(f"{name} {target}")
    return names


def test_the_readme_example_runs_as_it_stands_and_again(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for _ in range(2):
        # the second run goes on in the same home, where the task of that key is in another pool
        run = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
        assert run.stdout.splitlines()[-1].startswith("{'text': 'HELLO'} ")


async def test_a_worker_on_another_node_does_the_work_and_the_receipt_proves_it() -> None:
    async with real_node(1) as one, real_node(2, one, bootstrap=(DEAD,)) as two:
        topic = await one.join("acme/translate")
        pool = await one.create_pool(
            "workers", topics=[topic], governance=governance.Democratic(), task_types=["translate"], policy=POLICY
        )
        await two.advertise(["translate"])
        remote = await two.join_pool(pool.id, timeout_s=15)

        @remote.handler("translate", concurrency=4, claim_ttl=30)
        async def translate(task: TaskView, context: Any) -> Any:
            await context.progress(0.5)
            return {"text": task.inputs["text"][::-1], "token": list(context.token)}

        handle = await pool.submit(
            Task("translate", {"text": "hi"}, key="invoice-17", required_capabilities=("translate",))
        )
        result = await result_of(handle)
        assert (result.value, result.by) == ({"text": "ih", "token": [0, 0]}, two.id)
        assert result.receipt is not None
        assert Receipt.from_bytes(result.receipt.to_bytes()).verify()
        with trio.fail_after(10):
            assert (await remote.settled(handle.id)).value == result.view.value
        await until(lambda: remote.state_digest == pool.state_digest, "equal state")
        assert [item.id for item in two.known_pools()] == [pool.id]
        assert {member.agent_id for member in pool.members()} == {one.id, two.id}
        status = one.status()
        assert (status.peers, status.pools, status.id) == (1, 1, one.id)
        assert status.counters.get("rejected", 0) == 0


async def test_a_restart_resumes_pools_tasks_and_claims_and_a_key_still_names_its_task(tmp_path: Path) -> None:
    begun, attempts = trio.Event(), []

    async def hang(task: TaskView, context: Any) -> None:
        attempts.append(context.token)
        begun.set()
        await trio.sleep_forever()

    async def finish(task: TaskView, context: Any) -> str:
        attempts.append(context.token)
        return "done"

    home = tmp_path / "home"
    async with Node(home=home, listen=LOOPBACK, config=QUICK) as node:
        pool = await node.create_pool("demo", policy=POLICY)
        pool.add_handler("count", hang)
        task = await pool.submit(Task("count", key="k"))
        with trio.fail_after(15):
            await begun.wait()
        first, pool_id = node.id, pool.id
    async with Node(home=home, listen=LOOPBACK, config=QUICK) as node:
        assert node.id == first
        pool = node.pools[pool_id]
        assert (pool.name, pool.ready, pool.is_member) == ("demo", True, True)
        # the claim was handed back, so nobody has to wait for it to run out
        assert pool.task(task.id).state is TaskState.PENDING or pool.task(task.id).claimable
        again = await pool.submit(Task("count", key="k"))
        assert again.id == task.id
        pool.add_handler("count", finish)
        assert (await result_of(again)).value == "done"
        assert len(attempts) == 2
        assert attempts[1] > attempts[0], "the fencing token only grows"
    async with Node(home=home, listen=LOOPBACK, config=QUICK) as node:
        assert (await result_of(await node.pools[pool_id].submit(Task("count", key="k")))).value == "done"


async def test_a_killed_node_finds_its_claim_again(tmp_path: Path) -> None:
    script = f"""
import os, trio
from converge_p2p import Node, Task
async def main():
    async with Node(home={str(tmp_path / "home")!r}, listen=["/ip4/127.0.0.1/tcp/0"]) as node:
        pool = await node.create_pool("demo")
        async def die(task, context):
            print(pool.id.hex(), task.id.hex(), flush=True)
            os._exit(9)
        pool.add_handler("count", die)
        await pool.submit(Task("count", constraints={{"claim_ttl_sec": 3600}}))
        await trio.sleep_forever()
trio.run(main)
"""
    run = await trio.run_process([sys.executable, "-c", script], capture_stdout=True, capture_stderr=True, check=False)
    assert run.returncode == 9, run.stderr
    pool_id, task_id = (bytes.fromhex(text) for text in run.stdout.decode().split())

    async def finish(task: TaskView, context: Any) -> str:
        return "done"

    async with Node(home=tmp_path / "home", listen=LOOPBACK, config=QUICK) as node:
        pool = node.pools[pool_id]  # type: ignore[index]
        pool.add_handler("count", finish)
        with trio.fail_after(15):
            assert (await pool.settled(task_id)).result == "done"  # type: ignore[arg-type]


async def test_a_handler_that_fails_is_retried_and_at_last_the_task_fails_and_the_node_lives() -> None:
    attempts = 0

    async def fail(task: TaskView, context: Any) -> None:
        nonlocal attempts
        attempts += 1
        raise RuntimeError(f"no luck {attempts}")

    async with real_node(1) as node:
        pool = await node.create_pool("demo", policy=POLICY)
        pool.add_handler("count", fail)
        handle = await pool.submit(Task("count", constraints={"max_retries": 2}))
        with pytest.raises(TaskFailed):
            await result_of(handle)
        assert attempts >= 3
        pool.add_handler("other", _answer)
        assert (await result_of(await pool.submit(Task("other")))).value == 42


async def _answer(task: TaskView, context: Any) -> int:
    return 42


async def test_a_failed_attempt_is_retried_on_another_node() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        pool = await one.create_pool("demo", policy=POLICY)
        remote = await two.join_pool(pool.id, timeout_s=15)
        failed: list[str] = []

        async def fail(task: TaskView, context: Any) -> None:
            failed.append("one")
            # somebody else should have a try
            await until(lambda: remote.workers is not None, "the other worker")
            raise RuntimeError("not here")

        pool.add_handler("count", fail, concurrency=1)
        handle = await pool.submit(Task("count", constraints={"max_retries": 20}))
        await until(lambda: failed, "the first attempt")
        remote.add_handler("count", _answer)
        result = await result_of(handle)
        assert (result.value, result.by) == (42, two.id)


async def test_a_claim_that_ran_out_is_lost_its_handler_cancelled_and_another_node_does_the_work() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        pool = await one.create_pool("demo", policy=POLICY)
        remote = await two.join_pool(pool.id, timeout_s=15)
        began, cancelled = trio.Event(), trio.Event()

        async def hang(task: TaskView, context: Any) -> None:
            began.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                cancelled.set()
                raise

        remote.add_handler("count", hang)
        handle = await pool.submit(Task("count", constraints={"claim_ttl_sec": 0.5}))
        with trio.fail_after(15):
            await began.wait()
        pool.add_handler("count", _answer)
        result = await result_of(handle)
        assert (result.value, result.by) == (42, one.id)
        with trio.fail_after(10):
            await cancelled.wait()


async def test_a_running_task_is_cancelled_and_its_handler_with_it() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        pool = await one.create_pool("demo", policy=POLICY)
        remote = await two.join_pool(pool.id, timeout_s=15)
        began, ended = trio.Event(), trio.Event()

        async def hang(task: TaskView, context: Any) -> None:
            began.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        remote.add_handler("count", hang)
        handle = await pool.submit(Task("count", constraints={"claim_ttl_sec": 2}))
        with trio.fail_after(15):
            await began.wait()
        with pytest.raises(NotAuthorised):
            await remote.cancel(handle.id)
        await handle.cancel("changed my mind")
        with pytest.raises(TaskCancelled, match="changed my mind"):
            await result_of(handle)
        with trio.fail_after(10):
            await ended.wait()


async def test_of_rival_claims_one_wins_and_the_work_is_done_once() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three:
        pool = await one.create_pool("demo", policy=POLICY)
        done: list[bytes] = []
        for node in (two, three):
            remote = await node.join_pool(pool.id, timeout_s=15)

            async def work(task: TaskView, context: Any, by: str = node.id) -> str:
                done.append(task.id)
                await trio.sleep(0.02)
                return by

            remote.add_handler("count", work, concurrency=4)
        handles = [await pool.submit(Task("count", {"n": number})) for number in range(20)]
        results = [await result_of(handle) for handle in handles]
        assert all(result.value == result.by for result in results)
        assert sorted(done) == sorted(handle.id for handle in handles)
        for node in (one, two, three):
            assert node.pools[pool.id].counters["conflicting_settlements"] == 0


async def test_a_pool_is_left_and_joined_again_without_forking_the_own_chain() -> None:
    store = MemoryStore()
    async with real_node(1) as one:
        async with real_node(2, one, store=store) as two:
            pool = await one.create_pool("demo", policy=POLICY)
            remote = await two.join_pool(pool.id, timeout_s=15)
            handle = await remote.submit(Task("count", key="k"))
            await until(lambda: pool.find_task(handle.id), "the task on the other node")
            await remote.leave()
            assert two.pools == {}
            await until(lambda: len(pool.members()) == 1, "the member gone")
            with pytest.raises(NotFound):
                await remote.submit(Task("count"))
            with pytest.raises(NotFound):
                await two.leave_pool(pool.id)
        # alone: nothing of its own chain can come back from others before it signs again
        store.delete(PEERS_KEY)
        async with real_node(2, store=store) as two:
            assert (two.pools, two.peers()) == ({}, ())
            rejoined = await two.join_pool(pool.id, timeout_s=1)
            second = await rejoined.submit(Task("count", key="second"))
            assert (await rejoined.submit(Task("count", key="k"))).id == handle.id
            assert rejoined.own_operations == 5, "join, submit, leave, join, submit"
            await two.connect(one.addresses[0])
            await until(lambda: pool.find_task(second.id), "the new task on the other node")
            for each in (pool, rejoined):
                assert each.driver.replica.view.members.frozen() == {}
                each.add_handler("count", _answer)
            assert (await result_of(second)).value == 42


async def test_a_pool_joined_by_several_at_once_has_one_replica() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        pool = await one.create_pool("demo", policy=POLICY)
        handles: list[Any] = []

        async def join() -> None:
            handles.append(await two.join_pool(pool.id, timeout_s=15))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(join)
        assert handles[0] is handles[1]
        assert handles[1] is handles[2]
        assert handles[0].driver.replica.view.members.frozen() == {}


async def test_a_founding_that_is_cancelled_leaves_nothing_behind() -> None:
    store = MemoryStore()
    async with real_node(1, store=store) as node:
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.create_pool("demo")
        assert node.pools == {}
        assert node.known_pools() == []
        assert store.list("pool/") == []


async def test_a_pool_of_invited_agents_refuses_others_who_can_forget_it_again() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three:
        await linked(one, two)
        pool = await one.create_pool(
            "private", admission=AdmissionKind.WHITELIST, whitelist=[two.id], electors=[one.id], policy=POLICY
        )
        with pytest.raises(NotAuthorised, match="admit"):
            await three.join_pool(pool.id, timeout_s=15)
        assert not three.pools[pool.id].is_member
        # what it advertises concerns the pools it is a member of
        await three.advertise(["count"])
        await three.leave_pool(pool.id)
        assert three.pools == {}
        remote = await two.join_pool(pool.id, timeout_s=15)
        assert remote.is_member
        with pytest.raises(NotFound, match="known here"):
            await one.create_pool("other", electors=[who(77).id])
        with pytest.raises(NetworkError, match="no connected peer"):
            await one.join_pool(bytes(32), timeout_s=0.2)  # type: ignore[arg-type]


async def test_electors_on_several_nodes_decide_together_and_declare_what_they_can() -> None:
    async with real_node(1) as one, real_node(2, one) as two, real_node(3, one) as three:
        await linked(one, two)
        pool = await one.create_pool(
            "together", electors=[one.id, two.id, f"key:{three.public_key.hex()}"], policy=POLICY
        )
        assert len(pool.spec.electors) == 3
        for node in (two, three):
            remote = await node.join_pool(pool.id, capabilities=["gpu"], timeout_s=15)
            assert remote.own_capabilities == ("gpu",)
            # declaring more keeps what was declared before
            await node.advertise(["count"])
            assert remote.own_capabilities == ("count", "gpu")
            remote.add_handler("count", _answer)
        await until(lambda: pool.has_quorum, "a quorum")
        result = await result_of(await pool.submit(Task("count", required_capabilities=("gpu",))))
        assert result.receipt is not None
        assert (result.value, result.receipt.verify()) == (42, True)
        assert len(result.receipt.votes) >= 2


async def test_messages_go_to_topics_to_everybody_and_to_one_agent() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        await linked(one, two)
        listener = Listener(topics=[Topic("acme/news")])
        await two.host(listener)
        topic = await one.join("acme/news")
        with trio.fail_after(20):
            while not {"on topic", "to all"} <= set(listener.got):
                # gossip promises nothing, least of all while its meshes form, and these are two
                await topic.publish("on topic")
                await one.send(Message.create(one.id, "to all"))
                await trio.sleep(0.3)
            await one.send(Message.create(one.id, "to you", recipient=two.id))
        await until(lambda: {"on topic", "to all", "to you"} <= set(listener.got), "all three kinds")
        assert listener.got.count("to you") == 1
        sent = await one.send(Message.create(one.id, "once", recipient=two.id))
        # again, as if the receipt had been lost: it is acknowledged, and not taken a second time
        again, receipt = await one.deliver(sent)
        assert again == sent
        assert receipt.proves(sent)
        with pytest.raises(NetworkError, match="not known here"):
            await one.send(Message.create(one.id, "x", recipient=who(77).id))
        await until(lambda: "once" in listener.got, "the message")
        assert listener.got.count("once") == 1


class Listener(Agent):
    """Keeps what it is told."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.got: list[Any] = []

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        self.got.extend(message.payload for message in messages)
        return []


class Counter(Agent):
    """Claims every task it sees, and reports what it won."""

    def __init__(self, me: bytes) -> None:
        super().__init__()
        self.me = me

    def decide(self, messages: Sequence[Message], tasks: Sequence[TaskView]) -> list[Decision]:
        decisions: list[Decision] = []
        for task in tasks:
            if task.assigned_to == self.me:
                decisions.append(ReportTask(task.pool_id, task.id, task.inputs["n"] + 1))
            elif task.claimable:
                decisions.append(ClaimTask(task.pool_id, task.id))
        return decisions


async def test_a_hosted_agent_claims_and_reports() -> None:
    async with real_node(1) as one, real_node(2, one) as two:
        pool = await one.create_pool("demo", policy=POLICY)
        await two.join_pool(pool.id, timeout_s=15)
        await two.host(Counter(two.public_key))
        handles = [await pool.submit(Task("count", {"n": number})) for number in range(3)]
        assert [(await result_of(handle)).value for handle in handles] == [1, 2, 3]


class FailingStore(MemoryStore):
    """A store whose disk is full from some moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.full = threading.Event()

    def append_many(self, batches: Any, *, durable: bool) -> None:
        if self.full.is_set():
            raise StoreError("the disk is full")
        super().append_many(batches, durable=durable)

    def put(self, key: str, value: bytes) -> None:
        if self.full.is_set():
            raise StoreError("the disk is full")
        super().put(key, value)


async def test_a_store_that_fails_ends_the_node_with_its_error_and_at_once() -> None:
    store = FailingStore()
    full_since: list[float] = []

    async def live() -> None:
        async with real_node(1, store=store) as node:
            pool = await node.create_pool("demo")
            pool.add_handler("count", _answer)
            store.full.set()
            full_since.append(trio.current_time())
            await pool.submit(Task("count"))

    with trio.fail_after(20), pytest.raises(StoreError, match="disk is full"):
        await live()
    assert trio.current_time() - full_since[0] < 4, "nothing waits for a disk that is not there"
    assert store.list() != [], "a store that was given is not closed"


async def test_the_applications_own_error_comes_out_as_it_is_and_so_does_a_cancellation() -> None:
    async def fail() -> None:
        async with real_node(1) as node:
            await node.create_pool("demo")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    with trio.move_on_after(1.0) as scope:
        async with real_node(1) as node:
            pool = await node.create_pool("demo")
            pool.add_handler("count", _forever)
            await result_of(await pool.submit(Task("count")), 60)
    assert scope.cancelled_caught


async def _forever(task: TaskView, context: Any) -> None:
    await trio.sleep_forever()


async def test_a_start_that_fails_says_why_in_one_error(tmp_path: Path) -> None:
    async with real_node(1) as node:
        taken = node.addresses[0].partition("/p2p/")[0]
        with pytest.raises(NetworkError, match="another program holds this port"):
            async with real_node(2, listen=[taken]):
                pass
    async with Node(home=tmp_path, listen=LOOPBACK, config=QUICK):
        with pytest.raises(StoreError, match="another node runs"):
            async with Node(home=tmp_path, listen=LOOPBACK, config=QUICK):
                pass
    closed = MemoryStore()
    closed.close()
    with pytest.raises(StoreError, match="closed"):
        async with real_node(1, store=closed):
            pass
    stopped = real_node(1)
    with pytest.raises(LocalError, match="not running"):
        _ = stopped.id  # type: ignore[attr-defined]
    async with stopped:
        pass
    with pytest.raises(LocalError, match="started before"):
        async with stopped:
            pass


async def test_after_the_end_nothing_is_open_and_nothing_runs(tmp_path: Path) -> None:
    async with Node(home=tmp_path / "warm-up", listen=LOOPBACK, config=QUICK):
        pass
    files, tasks, threads = open_files(), trio.lowlevel.current_statistics().tasks_living, threading.active_count()
    for number in range(2):
        async with (
            Node(home=tmp_path / f"a{number}", listen=LOOPBACK, config=QUICK, bootstrap=[DEAD]) as one,
            real_node(2, one) as two,
        ):
            pool = await one.create_pool("demo", policy=POLICY)
            remote = await two.join_pool(pool.id, timeout_s=15)
            remote.add_handler("count", _answer)
            await one.host(Listener())
            await result_of(await pool.submit(Task("count")))
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert open_files() - files == set()
    # worker threads of the event loop stay for a while, and are shared
    assert threading.active_count() <= threads + 8


async def test_a_known_peer_leads_back_when_the_bootstrap_is_gone(tmp_path: Path) -> None:
    async with real_node(2) as survivor:
        async with real_node(1) as bootstrap, real_node(3, bootstrap, survivor, home=tmp_path) as node:
            await linked(node, survivor)
        async with real_node(3, home=tmp_path, bootstrap=(DEAD,)) as node:
            await linked(node, survivor)


async def test_an_agent_is_found_by_what_it_advertises() -> None:
    assert QUICK.network is not None
    config = replace(QUICK, network=replace(QUICK.network, dht=True))
    async with real_node(1, config=config) as one, real_node(2, one, config=config) as two:
        await two.advertise(["translate"])
        with trio.fail_after(20):
            while True:
                try:
                    descriptor = await one.lookup(two.id)
                    break
                except ConvergeError:
                    await trio.sleep(0.2)
        assert [skill.name for skill in descriptor.capabilities] == ["translate"]
        assert descriptor.agent_id == two.id
