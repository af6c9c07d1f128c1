"""A change of electors among real processes: one is added, one dies in the middle, one is expelled, all start again.

Everything is done by the commands an operator has. Tasks are submitted all along, and each settles exactly once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Overview, Submitter, run_command

from converge_node.demo.mesh import DemoNode, Mesh, wait_for
from converge_p2p.core.errors import ConvergeError

pytestmark = pytest.mark.network

START_S = 120.0
HANDLER = "async def echo(task, context):\n    return task.inputs\n"


def start_all(nodes: list[DemoNode]) -> None:
    """Start nodes, the first of them the bootstrap of the others."""
    first, *others = nodes
    first.start()
    address = first.wait_up().addresses[0]
    for node in others:
        node.start("--bootstrap", address)
    for node in others:
        node.wait_up()
    wait_for(lambda: all(node.peers() >= len(others) for node in nodes), START_S, "the mesh to connect")


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DemoNode]]:
    (tmp_path / "membership_work.py").write_text(HANDLER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with Mesh(tmp_path) as mesh:
        options = ("--handler", "echo=membership_work:echo@4", "--pool", "open")
        nodes = [mesh.add(f"n{number}", *options) for number in range(4)]
        start_all(nodes)
        yield nodes


def found(nodes: list[DemoNode]) -> Overview:
    """A democratic pool of the first three, in which all four are members."""
    electors = [part for node in nodes[:3] for part in ("--elector", node.id)]
    pool = run_command(
        nodes[0], "pool", "create", "members", "--governance", "democratic", *electors, "--task-type", "echo",
        "--claim-ttl", "20",
    )  # fmt: skip
    overview = Overview(pool)
    everybody = {node.id for node in nodes}

    def joined() -> bool:
        return all({member.agent_id for member in overview.detail(node).member_list} == everybody for node in nodes)

    overview.wait(joined, "everybody to join", nodes)
    return overview


def process_of(node: DemoNode) -> int:
    """The process id of a node that runs."""
    assert node._process is not None
    return node._process.pid


def carry(overview: Overview, motion: str, nodes: list[DemoNode], voters: list[DemoNode]) -> None:
    """Let electors say yes to a motion, each once its node has heard of it."""
    for node in voters:

        def heard(node: DemoNode = node) -> bool:
            return motion in run_command(node, "pool", "motions", overview.pool)

        overview.wait(heard, f"{node.name} to hear of the motion", nodes)
        run_command(node, "pool", "vote", overview.pool, motion, "yes")


def test_electors_come_and_go_while_tasks_settle_exactly_once(nodes: list[DemoNode]) -> None:
    overview = found(nodes)
    one, two, victim, fresh = nodes
    with Submitter(overview, [one, two, fresh], pause_s=0.4, prefix="before") as submitter:
        motion = run_command(one, "pool", "propose", overview.pool, "--add-elector", fresh.id, "--reason", "a fourth")
        carry(overview, motion, nodes, [one])
        # one yes is not enough of three: the change is under way, and an elector dies
        assert overview.detail(one).epoch == 0
        victim.kill()
        living = [one, two, fresh]
        carry(overview, motion, living, [two])
        overview.wait_epoch(1, living)
    # three of four decide now, and one of the four is dead: these settle only with the vote of the new elector
    with Submitter(overview, living, pause_s=0.2, prefix="with the new elector") as later:
        overview.wait(lambda: len(later.tasks) >= 10, "ten submits", living)
    acknowledged = [*submitter.tasks, *later.tasks]
    overview.wait_settled(acknowledged, living)
    assert {m.agent_id for m in overview.detail(fresh).member_list if m.elector} == {node.id for node in nodes}
    victim.start("--bootstrap", one.wait_up().addresses[0])
    victim.wait_up()
    overview.wait_epoch(1, nodes)
    overview.wait_settled(acknowledged, nodes)
    overview.wait_equal(nodes)
    overview.check_settled_once(nodes)

    acknowledged += expel(overview, nodes, victim)
    restart(overview, living, acknowledged)


def expel(overview: Overview, nodes: list[DemoNode], victim: DemoNode) -> list[str]:
    """Expel a node that cannot hear of it. What it submits before it does has no effect at the others.

    Returns:
        Tasks that were acknowledged by the others meanwhile.
    """
    living = [node for node in nodes if node is not victim]
    one, two, three = living
    os.kill(process_of(victim), signal.SIGSTOP)
    asked = threading.Event()
    outcome: list[str | ConvergeError] = []

    def submit_late() -> None:
        asked.set()
        try:
            outcome.append(overview.submit(victim, "of an expelled node"))
        except ConvergeError as error:
            outcome.append(error)

    try:
        with Submitter(overview, living, pause_s=0.4, prefix="while one is expelled") as submitter:
            change = ("--expel", victim.id, "--remove-elector", victim.id, "--reason", "does not answer")
            motion = run_command(one, "pool", "propose", overview.pool, *change)
            carry(overview, motion, living, [one, two, three])
            overview.wait_epoch(2, living)
        late = threading.Thread(target=submit_late)
        late.start()
        asked.wait()
    finally:
        os.kill(process_of(victim), signal.SIGCONT)
    late.join()
    overview.wait_settled(submitter.tasks, living)
    # it hears of its removal from the others, and is refused from then on
    overview.wait(lambda: overview.detail(victim).epoch == 2, "the expelled node to hear of it", nodes)
    with pytest.raises(ConvergeError):
        overview.submit(victim, "of an expelled node that knows")
    overview.wait_equal(living)
    for node in living:
        keys = {item.key for item in overview.tasks(node).values()}
        assert not {key for key in keys if key.startswith("of an expelled node")}, overview.describe(node)
        assert victim.id not in {member.agent_id for member in overview.detail(node).member_list}
    return submitter.tasks


def restart(overview: Overview, nodes: list[DemoNode], acknowledged: list[str]) -> None:
    """Kill every process at once; each knows the epoch from its own store, and the pool works on."""
    before = overview.settled(nodes[0])
    assert set(acknowledged) <= before.keys()
    for node in nodes:
        node.kill()
    start_all(nodes)
    overview.wait_epoch(2, nodes)
    with Submitter(overview, nodes, pause_s=0.2, prefix="after the restart") as submitter:
        overview.wait(lambda: len(submitter.tasks) >= 5, "five submits", nodes)
    overview.wait_settled(submitter.tasks, nodes)
    overview.wait_equal(nodes)
    overview.check_settled_once(nodes)
    after = overview.settled(nodes[0])
    assert before.items() <= after.items(), "what was settled changed"
    assert after.keys() == {*before, *submitter.tasks}
