"""`converge-node sim`: a function of its seed, true to the network it models, and clear about what it cannot run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from libp2p.pubsub.pb import rpc_pb2

from converge_node.cli.main import invoke
from converge_node.sim import gossip as sizes, measure as measure_module
from converge_node.sim.gossip import HEARTBEAT_MS, Gossip
from converge_node.sim.graph import Graph, draw_graph
from converge_node.sim.measure import Measured, Spread, measure
from converge_node.sim.network import SILENT_MS, VirtualNetwork
from converge_node.sim.plan import DEGREE_MAX, MODELS, Cut, Plan
from converge_node.sim.plot import Line, Panel, plot
from converge_p2p.core.errors import RemoteViolation
from converge_p2p.core.oplog.bodies import JoinBody
from converge_p2p.core.oplog.operation import decode_operation, sign_operation
from converge_p2p.core.replica import machine
from converge_p2p.core.replica.crowd import decoding_once
from converge_p2p.core.types import PoolId
from converge_p2p.net.gossip_queue import encode_rpc
from converge_p2p.node.switchboard import gossip_topic

ROOT = Path(__file__).parents[2]
SMALL = ["sim", "--nodes", "12", "--electors", "4", "--workers", "3", "--tasks", "3", "--json"]


def run(**options: Any) -> Measured:
    return measure(Plan(**({"nodes": 20, "electors": 4, "workers": 3, "tasks": 3} | options)), lambda _progress: None)


# ---------------------------------------------------------------- runs


def test_a_seed_gives_the_same_output_in_every_process_and_another_seed_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*SMALL, "--loss", "0.05", "--partition", "0:2:30"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'node'}", "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-m", "converge_node", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert other.returncode == 0, other.stderr
    assert invoke(words) == 0
    here = capsys.readouterr().out
    assert here == other.stdout
    assert invoke([*words, "--seed", "1"]) == 0
    assert capsys.readouterr().out != here


@pytest.mark.parametrize("model", MODELS)
def test_every_model_settles_its_tasks_at_every_node(model: str) -> None:
    result = run(nodes=9, electors=5, workers=2, tasks=2, model=model)
    assert (result.converged, result.settled) == (True, 2)
    assert 0 < result.settled_ms.p50 <= result.everywhere_ms.max


def test_what_was_lost_and_cut_off_comes_by_sync() -> None:
    result = run(loss=0.2, cuts=(Cut(0, 3000, 0.3),), seed=3)
    assert (result.converged, result.settled, result.everywhere_ms.max > 3000) == (True, 3, True)
    assert result.lost > 100
    whole = run(seed=3)
    assert (whole.lost, whole.converged) == (0, True)
    assert whole.everywhere_ms.max < 3000


def test_a_partition_that_is_noticed_ends_links_and_these_come_back() -> None:
    result = run(tasks=1, cuts=(Cut(0, SILENT_MS + 5000, 0.5),), seed=2)
    assert (result.converged, result.settled) == (True, 1)
    assert result.span_ms >= SILENT_MS + 5000


def test_a_run_that_cannot_end_ends_with_its_patience(capsys: pytest.CaptureFixture[str]) -> None:
    # every elector is needed, so nothing is settled while half of the nodes are away
    words = [*SMALL, "--faults", "1", "--partition", "0:100:99", "--loss", "0.9", "--patience", "1"]
    assert invoke(words) == 1
    (result,) = json.loads(capsys.readouterr().out)["data"]
    assert (result["converged"], result["convergence_ms"]) == (False, -1)


def test_electors_carry_more_than_others_and_nobody_else_signs() -> None:
    roles = {role.name: role for role in run(tasks=5).roles}
    assert [role.nodes for role in roles.values()] == [4, 3, 13]
    assert roles["electors"].sent_bytes > roles["others"].sent_bytes > 0
    assert roles["electors"].signed > roles["workers"].signed > roles["others"].signed == 0


def test_an_interrupted_run_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_plan: Plan, _tell: object) -> Measured:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure_module, "measure", interrupted)
    assert invoke(SMALL) == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "5"], "nobody works"),
        (["--nodes", "20", "--workers", "16"], "20 nodes for 5 electors and 16 workers"),
        (["--sizes", "100,10"], "ascending"),
        (["--sizes", "10,many"], "are not sizes"),
        (["--sizes", "10,30000"], "2 to 20000"),
        (["--latency", "60-10"], "lower number first"),
        (["--latency", "0"], "1 to 10000"),
        (["--latency", "fast"], "not a latency"),
        (["--partition", "1:2"], "not a partition"),
        (["--partition", "1:2:100"], "less than 100"),
        (["--partition", "1:0:50"], "has a length"),
        (["--plot", "x.svg"], "needs sizes"),
        (["--degree", "8", "--links", "4"], "not above the links"),
        (["--electors", "3", "--faults", "3"], "no pool may have these terms"),
        (["--electors", "40"], "40 is not in the range"),
        (["--loss", "1"], "not in the range"),
        (["--electors", "1", "--model", "bicameral"], "two chambers"),
    ],
)
def test_what_cannot_be_run_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["sim", *words]) == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("nodes", [2, 3, 9, 200])
def test_the_graph_is_connected_and_its_mesh_is_part_of_the_links(nodes: int) -> None:
    graph = draw_graph(Plan(nodes, electors=1, workers=1), random.Random(1))
    reached, fresh = {0}, [0]
    while fresh:
        fresh = [other for node in fresh for other in graph.links[node] if other not in reached]
        reached.update(fresh)
    assert len(reached) == nodes
    for node in range(nodes):
        assert sorted((*graph.mesh[node], *graph.lazy[node])) == list(graph.links[node])
        assert all(node in graph.mesh[other] for other in graph.mesh[node])
        assert all(graph.latency[node][other] == graph.latency[other][node] for other in graph.links[node])
        assert min(6, nodes - 1) <= len(graph.mesh[node]) <= DEGREE_MAX
        assert len(graph.links[node]) >= min(8, nodes - 1)


def line_of_three() -> VirtualNetwork:
    """Nodes 0 and 1 in one mesh, 2 linked with 1 beside it; 10 ms a link."""
    graph = Graph(((1,), (0, 2), (1,)), ((1,), (0,), ()), ((), (2,), (1,)), ({1: 10}, {0: 10, 2: 10}, {1: 10}))
    network = VirtualNetwork(Plan(3, electors=1, workers=1), graph, random.Random(0))
    network.up = [{1}, {0, 2}, {1}]
    return network


def test_gossip_reaches_beside_the_mesh_with_a_heartbeat_and_each_node_takes_it_once() -> None:
    network, taken = line_of_three(), []

    def take(node: int, sender: int, operations: tuple[bytes, ...]) -> bool:
        taken.append((network.calendar.now_ms, node, sender, operations))
        return True

    Gossip(network, 3, take).publish(0, (b"one",), 100)
    network.calendar.run_until(10 * HEARTBEAT_MS, lambda: None)
    assert [entry[1:] for entry in taken] == [(1, 0, (b"one",)), (2, 1, (b"one",))]
    # the heartbeat of 1 is 37 ms after the second; then ihave, iwant and the message
    assert [entry[0] for entry in taken] == [10, 37 + 30]
    # 1 told 2 thrice and was asked once; 2 tells nobody but 1, which has it
    assert list(network.traffic.sent) == [1, 4, 4]


def test_what_is_refused_is_not_passed_on() -> None:
    network = line_of_three()
    Gossip(network, 3, lambda *_arguments: False).publish(0, (b"one",), 100)
    network.calendar.run_until(10 * HEARTBEAT_MS, lambda: None)
    assert list(network.traffic.sent) == [1, 0, 0]


def test_a_partition_loses_what_crosses_it_and_nothing_else() -> None:
    network, came = line_of_three(), []
    network.plan_cut(Cut(0, 1000, 0.5), 100, lambda *_: None, lambda *_: None)
    for at_ms in (50, 500, 1200):
        for sender, receiver in ((0, 1), (1, 2)):
            network.calendar.at(at_ms, network.send, sender, receiver, 1, came.append, (at_ms, sender))
    network.calendar.run_until(2000, lambda: None)
    during = [sender for at_ms, sender in came if at_ms == 500]
    assert [at_ms for at_ms, _ in came if at_ms != 500] == [50, 50, 1200, 1200]
    assert network.traffic.lost == 2 - len(during) >= 1


def test_sizes_of_gossip_are_those_of_the_protocol() -> None:
    topic, peer, raw = gossip_topic(PoolId(b"p" * 32)), b"i" * 38, b"x" * 46
    message = rpc_pb2.Message(data=b"d" * 400, topicIDs=[topic], from_id=peer, seqno=b"s" * 8, signature=b"g" * 64)
    assert abs(len(encode_rpc(rpc_pb2.RPC(publish=[message]))) - 400 - sizes.ENVELOPE_BYTES) <= 2
    ids = [raw.hex().encode()] * 3
    for kind, about, each, size, id_bytes in (
        ("ihave", {"topicID": topic}, ids, sizes.IHAVE_BYTES, sizes.ID_BYTES),
        ("iwant", {}, ids, sizes.IWANT_BYTES, sizes.ID_BYTES),
        ("idontwant", {}, [raw] * 3, sizes.IDONTWANT_BYTES, sizes.RAW_ID_BYTES),
    ):
        control = rpc_pb2.ControlMessage()
        getattr(control, kind).add(messageIDs=each, **about)
        assert abs(len(encode_rpc(rpc_pb2.RPC(control=control))) - size - 3 * id_bytes) <= 5


def test_many_replicas_share_what_was_decoded_and_a_forgery_is_refused_all_the_same() -> None:
    plan, pool = Plan(3, electors=1, workers=1), PoolId(b"p" * 32)
    good = sign_operation(plan.identity(0), pool, JoinBody(), seq=0, prev=None, epoch=0, hlc=1).signed
    with decoding_once():
        assert machine.decode_operation(good, pool) is machine.decode_operation(bytes(bytearray(good)), pool)
        with pytest.raises(RemoteViolation, match="signature"):
            machine.decode_operation(bytes([good[0] ^ 1]) + good[1:], pool)
    assert machine.decode_operation is decode_operation


def test_a_spread_is_of_numbers_that_occur() -> None:
    assert Spread.of(range(1, 101)) == Spread(50, 50, 95, 100)
    assert Spread.of([7]) == Spread(7, 7, 7, 7)
    assert Spread.of([]) == Spread(0, 0, 0, 0)


def test_the_plot_is_well_formed_and_leaves_out_what_is_not_known(tmp_path: Path) -> None:
    panel = Panel("a < b", "kB", (Line("p50", (1.0, None, 1000.0)), Line("max", (0.5, 0.5, 0.5))))
    root = ElementTree.fromstring(plot("cost & size", "nodes", [10, 100, 1000], [panel]))
    name = "{http://www.w3.org/2000/svg}"
    assert [len(each.attrib["points"].split()) for each in root.iter(f"{name}polyline")] == [2, 3]
    file = tmp_path / "cost.svg"
    assert invoke(["sim", "--sizes", "4,6", "--electors", "1", "--tasks", "1", "--plot", str(file), "-q"]) == 0
    assert len(list(ElementTree.parse(file).getroot().iter(f"{name}polyline"))) == 9
    assert invoke(["sim", "--sizes", "4", "--electors", "1", "--tasks", "0", "--plot", str(tmp_path), "-q"]) == 2
