"""A node at one moment, collected over its control interface for a view that fits on a screen.

Knows: the client and the schema. Must not know: terminals.
Source: docs/web.md. Everything that is asked is bounded, so that one look costs about the same on any node.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from converge_node.errors import Refused
from converge_p2p.client import Client, schema
from converge_p2p.client.agent_schema import HostedItem
from converge_p2p.client.queries import TaskQuery

POOLS_DETAILED_MAX: Final = 12
"""Pools of which epoch, motions and tasks are asked for; of the others counts are shown."""
TASKS_OF_STATE_MAX: Final = 20
STATES: Final = ("pending", "assigned", "completed", "failed", "cancelled")
OPEN_STATES: Final = STATES[:2]

_GAUGE: Final = re.compile(
    r'^converge_pool_(operations_behind|oldest_task_seconds)\{pool="([0-9a-f]+)"\} (\S+)$', re.MULTILINE
)


def worker_of(task: schema.TaskItem) -> str:
    """Who works on a task, or did it. A failure or an end may be settled by an elector or the submitter."""
    return (task.settled_by if task.state == "completed" else task.assigned_to) or ""


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pool is from convergence.

    Attributes:
        behind: operations that a peer is known to have and this node lacks.
        oldest_task_s: age of the oldest task that is not settled.
    """

    behind: int = 0
    oldest_task_s: float = 0.0


class PoolLook(msgspec.Struct, frozen=True, kw_only=True):
    """A pool with what is in motion there. `tasks`: open ones first heard first, then settled ones, newest first."""

    detail: schema.PoolDetail
    lag: Lag = Lag()
    motions: list[schema.MotionItem] = []
    tasks: list[schema.TaskItem] = []


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A node at one moment. `more_pools`: joined pools beyond the bound."""

    status: schema.StatusItem
    health: schema.HealthItem
    peers: list[schema.PeerItem] = []
    pools: list[PoolLook] = []
    more_pools: int = 0
    hosted: list[HostedItem] = []


def take_snapshot(client: Client) -> Snapshot:
    """Ask a node for everything. What ended between two questions is left out.

    Raises:
        NodeUnreachable, SocketForbidden, TimedOut: see `Client.ask`.
        Refused: the node starts or stops, or knows no such token.
    """
    status = client.status()
    lags = lags_of(client.metrics())
    pools = []
    for item in status.pools[:POOLS_DETAILED_MAX]:
        try:
            pools.append(_look(client, item, lags.get(item.id[:16], Lag())))
        except Refused as refused:
            if refused.code != "not_found":
                raise
    return Snapshot(
        status=status,
        health=client.health(),
        peers=client.peers(),
        pools=pools,
        more_pools=max(0, len(status.pools) - POOLS_DETAILED_MAX),
        hosted=client.hosted(),
    )


def lags_of(metrics: str) -> dict[str, Lag]:
    """Return how far each pool is from convergence, by the first 16 digits of its id, from the text of all metrics."""
    found: dict[str, dict[str, Any]] = {}
    for name, pool, number in _GAUGE.findall(metrics):
        field, kind = ("behind", int) if name == "operations_behind" else ("oldest_task_s", float)
        found.setdefault(pool, {})[field] = kind(float(number))
    return {pool: Lag(**fields) for pool, fields in found.items()}


def _look(client: Client, item: schema.PoolItem, lag: Lag) -> PoolLook:
    tasks: list[schema.TaskItem] = []
    for state in STATES:
        count = item.tasks.get(state, 0)
        if not count:
            continue
        # a node lists what it heard of first first: of settled tasks the last ones are asked for
        offset = 0 if state in OPEN_STATES else max(0, count - TASKS_OF_STATE_MAX)
        query = TaskQuery(state=state, limit=TASKS_OF_STATE_MAX, offset=offset)
        listed = client.tasks(item.id, query).tasks
        tasks += listed if state in OPEN_STATES else reversed(listed)
    return PoolLook(detail=client.pool(item.id), lag=lag, motions=client.motions(item.id), tasks=tasks)
