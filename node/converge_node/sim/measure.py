"""Run a simulation and say what it cost.

Knows: which numbers describe a run. Must not know: how they are shown.
Source: docs/capacity.md. A result is a function of the plan alone: no clock of the machine is in it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from converge_node.sim.crowd import Crowd, Node
from converge_node.sim.plan import Plan
from converge_p2p.core.replica.crowd import decoding_once


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        nodes: of the run.
        virtual_ms: the time that has passed in it.
        settled: tasks of which every node knows how they ended.
        events: things that happened.
    """

    nodes: int
    virtual_ms: int
    settled: int
    tasks: int
    events: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Some numbers in short; all 0 if there are none."""

    mean: int
    p50: int
    p95: int
    max: int

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Spread:
        """Summarise numbers; a percentile is one of them, the nearest above."""
        ordered = sorted(numbers)
        if not ordered:
            return cls(0, 0, 0, 0)
        count = len(ordered)
        ranks = [(count * percent + 99) // 100 - 1 for percent in (50, 95)]
        return cls(sum(ordered) // count, ordered[ranks[0]], ordered[ranks[1]], ordered[-1])


@dataclass(frozen=True, slots=True)
class Role:
    """What one kind of node had to do: means for each node.

    Attributes:
        name: `electors`, `workers` or `others`.
        signed: operations that it wrote, from the founding on.
    """

    name: str
    nodes: int
    sent_messages: int
    sent_bytes: int
    received_messages: int
    received_bytes: int
    signed: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run came to. Times are virtual; bytes and messages are those from the first task on.

    Attributes:
        formed_ms: until all nodes held the founding and the joins; -1 if they never did, and then there is no more.
        formation_bytes: sent by a node until then.
        converged: whether every node held the same and knew how every task ended.
        convergence_ms: when, after the last task and the last partition; -1 if never.
        span_ms: from the first task to the end of the run.
        settled: tasks whose submitters know how they ended.
        settled_ms: from submission until then.
        everywhere_ms: from submission until every node knew, of the tasks of which all do.
        operations: that a node holds at the end.
        lost: messages.
        gossip_copies: messages of gossip that arrived, and of these
        gossip_duplicates: those that were there already.
        fingerprint: of what the first node holds.
    """

    nodes: int
    seed: int
    model: str
    tasks: int
    formed_ms: int
    formation_bytes: Spread
    converged: bool
    convergence_ms: int
    span_ms: int
    settled: int
    settled_ms: Spread
    everywhere_ms: Spread
    operations: int
    sent_messages: Spread
    sent_bytes: Spread
    received_messages: Spread
    received_bytes: Spread
    roles: tuple[Role, ...]
    lost: int
    gossip_copies: int
    gossip_duplicates: int
    fingerprint: str


def measure(plan: Plan, tell: Callable[[Progress], None]) -> Measured:
    """Run a simulation.

    Args:
        plan: what to run.
        tell: called every few thousand events.
    """
    collecting = gc.isenabled()
    # hundreds of millions of objects that all stay: looking through them again and again would be most of the run
    gc.disable()
    try:
        with decoding_once():
            return _run(plan, tell)
    finally:
        gc.collect()
        if collecting:
            gc.enable()


def _run(plan: Plan, tell: Callable[[Progress], None]) -> Measured:
    def told() -> None:
        calendar, jobs = crowd.network.calendar, crowd.jobs.values()
        settled = sum(job.missing == 0 for job in jobs)
        tell(Progress(plan.nodes, calendar.now_ms, settled, plan.tasks, calendar.events))

    crowd = Crowd(plan, told)
    traffic, calendar, gossip = crowd.network.traffic, crowd.network.calendar, crowd.gossip
    formed = crowd.form()
    began_ms = calendar.now_ms
    formation = Spread.of(traffic.sent_bytes)
    gossip.copies = gossip.duplicates = 0
    traffic.reset()
    last_ms = crowd.work() if formed else began_ms
    converged = formed and crowd.converged()
    jobs = list(crowd.jobs.values())
    return Measured(
        nodes=plan.nodes,
        seed=plan.seed,
        model=plan.model,
        tasks=plan.tasks,
        formed_ms=began_ms if formed else -1,
        formation_bytes=formation,
        converged=converged,
        convergence_ms=calendar.now_ms - last_ms if converged else -1,
        span_ms=calendar.now_ms - began_ms,
        settled=sum(job.known_ms >= 0 for job in jobs),
        settled_ms=Spread.of(job.known_ms - job.submitted_ms for job in jobs if job.known_ms >= 0),
        everywhere_ms=Spread.of(job.everywhere_ms - job.submitted_ms for job in jobs if not job.missing),
        operations=len(crowd.nodes[0].replica.log),
        sent_messages=Spread.of(traffic.sent),
        sent_bytes=Spread.of(traffic.sent_bytes),
        received_messages=Spread.of(traffic.received),
        received_bytes=Spread.of(traffic.received_bytes),
        roles=tuple(_roles(crowd, plan)),
        lost=traffic.lost,
        gossip_copies=gossip.copies,
        gossip_duplicates=gossip.duplicates,
        fingerprint=crowd.nodes[0].replica.log.digest().hex(),
    )


def _roles(crowd: Crowd, plan: Plan) -> Iterable[Role]:
    members = plan.electors + plan.workers
    parts = {
        "electors": crowd.nodes[: plan.electors],
        "workers": crowd.nodes[plan.electors : members],
        "others": crowd.nodes[members:],
    }
    traffic = crowd.network.traffic
    for name, nodes in parts.items():
        if nodes:
            yield Role(
                name,
                len(nodes),
                _mean(traffic.sent, nodes),
                _mean(traffic.sent_bytes, nodes),
                _mean(traffic.received, nodes),
                _mean(traffic.received_bytes, nodes),
                round(sum(node.signed for node in nodes) / len(nodes), 1),
            )


def _mean(numbers: Sequence[int], nodes: list[Node]) -> int:
    return sum(numbers[node.index] for node in nodes) // len(nodes)
