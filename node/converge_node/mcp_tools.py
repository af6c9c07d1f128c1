"""What a client of the Model Context Protocol can do with the mesh: one entry for each tool.

Knows: the control interface's client and schema. Must not know: the protocol (see `mcp_server`).
Source: docs/mcp.md. Tools that change something are marked, and offered only when that was asked for.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from converge_node.errors import Refused
from converge_p2p.client import Client, agent_schema, mesh_schema, schema
from converge_p2p.client.queries import TaskQuery, TopicQuery, WatchQuery
from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError

HEARD_MAX: Final = 256
"""Messages of a topic that wait to be read; the oldest are lost, and counted."""
TOPICS_READ_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class MeshTool:
    """One tool.

    Attributes:
        parameters: JSON schema of its arguments.
        writes: it changes something.
        run: called in a thread.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    writes: bool
    run: Callable[[Mapping[str, Any]], Any]


class _Heard:
    """Listens to a topic in a thread, from the first time it is asked about."""

    def __init__(self, client: Client, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._waiting: deque[Any] = deque()
        self._lost = 0
        self._ended: ConvergeError | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, name=f"topic {topic}", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the node stopped, or left the topic."""
        return self._ended is not None

    def _listen(self) -> None:
        try:
            for item in self._client.watch_topic(TopicQuery(topic=self._topic)):
                with self._changed:
                    self._waiting.append(msgspec.to_builtins(item))
                    if len(self._waiting) > HEARD_MAX:
                        self._waiting.popleft()
                        self._lost += 1
                    self._changed.notify_all()
            ended: ConvergeError = Refused("not_ready", "the node ended the stream")
        except ConvergeError as error:
            ended = error
        with self._changed:
            self._ended = ended
            self._changed.notify_all()

    def read(self, wait_s: float, limit: int) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended, wait_s)
            if not self._waiting and self._ended is not None:
                raise self._ended
            taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
            lost, self._lost = self._lost, 0
        return {"messages": taken, "lost": lost}


class MeshTools:
    """The tools of one node."""

    def __init__(self, client: Client, *, allow_write: bool) -> None:
        """Offer them.

        Args:
            client: of the node.
            allow_write: offer those that change something, too.
        """
        self._client = client
        self._heard: dict[str, _Heard] = {}
        self._lock = threading.Lock()
        self.tools = {tool.name: tool for tool in self._all() if allow_write or not tool.writes}

    def _all(self) -> tuple[MeshTool, ...]:
        pool, task = {"pool": _text("Id of a pool, or its first digits.")}, {"task": _text("Id of a task.")}
        topic = {"topic": _text("As namespace or namespace@version.")}
        read, write = False, True
        return (
            MeshTool("node_status", "Who the node is, its peers and pools.", _schema({}), read, self._status),
            MeshTool(
                "find_agents",
                "Find agents by what they say they can do, the cheapest first.",
                _schema(
                    {
                        "capabilities": _texts("As name, name@1.2 or name@1.2:10, where 10 is the highest cost."),
                        "topics": _texts("As namespace or namespace@version."),
                        "trust": {"type": "number", "minimum": 0, "maximum": 1, "description": "The least trust."},
                        "limit": _count(limits.QUERY_RESULTS_MAX),
                    }
                ),
                read,
                self._find_agents,
            ),
            MeshTool("list_topics", "The topics that the node takes part in.", _schema({}), read, self._topics),
            MeshTool(
                "read_topic",
                "What was said on a topic since the last call; the first call begins to listen.",
                _schema({**topic, "wait_s": _wait(), "limit": _count(HEARD_MAX)}, "topic"),
                read,
                self._read_topic,
            ),
            MeshTool("list_pools", "Pools that the node is in, or has heard of.", _schema({}), read, self._pools),
            MeshTool("show_pool", "A pool with its members and who decides.", _schema(pool, "pool"), read, self._pool),
            MeshTool(
                "list_tasks",
                "Tasks of a pool.",
                _schema(
                    {**pool, "state": _text("pending, assigned, …"), "limit": _count(schema.TASK_LIST_MAX)}, "pool"
                ),
                read,
                self._tasks,
            ),
            MeshTool(
                "watch_task",
                "Wait until a task is settled, or the time is up; returns it with inputs and result.",
                _schema({**pool, **task, "wait_s": _wait()}, "pool", "task"),
                read,
                self._watch_task,
            ),
            MeshTool(
                "explain_task",
                "Who asked for a task, who holds it or did it, who decides, and what it waits for.",
                _schema({**pool, **task}, "pool", "task"),
                read,
                self._explain_task,
            ),
            MeshTool("join_topic", "Take part in a public topic.", _schema(topic, "topic"), write, self._join_topic),
            MeshTool(
                "publish",
                "Say something on a topic that the node takes part in, signed by the node.",
                _schema({**topic, "payload": {"description": "Any JSON value."}}, "topic", "payload"),
                write,
                self._publish,
            ),
            MeshTool(
                "submit_task",
                "Ask a pool to have a task done.",
                _schema(
                    {
                        **pool,
                        "objective": _text("What kind of task it is; says which workers take it."),
                        "inputs": {"type": "object"},
                        "key": _text("The same key submits the same task: safe to repeat."),
                        "required_capabilities": _texts("What a worker must be able to do."),
                    },
                    "pool",
                    "objective",
                ),
                write,
                self._submit,
            ),
            MeshTool(
                "cancel_task",
                "Cancel a task that the node submitted.",
                _schema({**pool, **task, "reason": _text("For people.")}, "pool", "task"),
                write,
                self._cancel,
            ),
        )

    # ------------------------------------------------------------ reading

    def _status(self, _: Mapping[str, Any]) -> Any:
        return self._client.status()

    def _find_agents(self, given: Mapping[str, Any]) -> Any:
        body = agent_schema.FindAgents(
            topics=given.get("topics", []),
            capabilities=given.get("capabilities", []),
            trust_threshold=given.get("trust", 0.0),
            limit=given.get("limit", 20),
        )
        return self._client.find_agents(body)

    def _topics(self, _: Mapping[str, Any]) -> Any:
        return self._client.mesh()

    def _read_topic(self, given: Mapping[str, Any]) -> Any:
        topic = given["topic"]
        with self._lock:
            heard = self._heard.get(topic)
            if heard is None or heard.ended:
                self._heard = {name: each for name, each in self._heard.items() if not each.ended}
                if len(self._heard) >= TOPICS_READ_MAX:
                    raise Refused("limit_exceeded", f"at most {TOPICS_READ_MAX} topics are read at once")
                heard = self._heard[topic] = _Heard(self._client, topic)
        return heard.read(given.get("wait_s", 0.0), given.get("limit", HEARD_MAX))

    def _pools(self, _: Mapping[str, Any]) -> Any:
        return self._client.pools()

    def _pool(self, given: Mapping[str, Any]) -> Any:
        return self._client.pool(given["pool"])

    def _tasks(self, given: Mapping[str, Any]) -> Any:
        query = TaskQuery(state=given.get("state"), limit=given.get("limit", 50))
        return self._client.tasks(given["pool"], query)

    def _task(self, given: Mapping[str, Any]) -> schema.TaskDetail:
        return self._client.task(given["pool"], given["task"])

    def _watch_task(self, given: Mapping[str, Any]) -> Any:
        last: schema.TaskDetail | None = None
        wait_s = given.get("wait_s", 0.0)
        if wait_s <= 0:
            return self._task(given)
        try:
            for item in self._client.watch_task(given["pool"], given["task"], WatchQuery(timeout_s=wait_s)):
                last = item
        except Refused as error:
            if error.code != "timeout" or last is None:
                raise
        return last

    def _explain_task(self, given: Mapping[str, Any]) -> Any:
        task = self._task(given)
        pool = self._client.pool(task.pool)
        certified = (
            "a certificate of the pool's governance" if task.certified else "nothing certified yet: it may change"
        )
        waits = [
            what
            for what, so in (
                ("the pool's vetoers", task.awaits_veto),
                ("its evaluator", task.awaits_verdict),
                ("a worker that claims it", task.state == "pending"),
                ("its worker", task.state == "assigned" and not (task.awaits_veto or task.awaits_verdict)),
                ("enough electors to be connected", pool.has_quorum is False),
            )
            if so
        ]
        return {
            "task": task.id,
            "objective": task.objective,
            "submitted_by": task.submitter,
            "state": task.state,
            "rests_on": certified,
            "held_by": task.assigned_to,
            "fencing_token": [task.epoch, task.round],
            "attempts": task.attempts,
            "settled_by": task.settled_by,
            "reason": task.reason,
            "waits_for": waits,
            "governance": pool.governance,
            "decided_by": pool.decided_by,
        }

    # ------------------------------------------------------------ writing

    def _join_topic(self, given: Mapping[str, Any]) -> Any:
        body = mesh_schema.JoinTopic(topic=given["topic"])
        return self._client.join_topic(body)

    def _publish(self, given: Mapping[str, Any]) -> Any:
        body = mesh_schema.PublishOnTopic(topic=given["topic"], payload=given["payload"])
        return self._client.publish(body)

    def _submit(self, given: Mapping[str, Any]) -> Any:
        body = schema.SubmitTask(
            objective=given["objective"],
            inputs=given.get("inputs", {}),
            key=given.get("key"),
            required_capabilities=given.get("required_capabilities", []),
        )
        return self._client.submit(given["pool"], body)

    def _cancel(self, given: Mapping[str, Any]) -> Any:
        body = schema.CancelTask(reason=given.get("reason", ""))
        return self._client.cancel(given["pool"], given["task"], body)


def _schema(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": limits.TEXT_BYTES_MAX, "description": description}


def _texts(description: str) -> dict[str, Any]:
    return {"type": "array", "items": _text(""), "maxItems": limits.QUERY_NEEDS_MAX, "description": description}


def _count(most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": most}


def _wait() -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "maximum": limits.MCP_WAIT_S_MAX, "description": "Seconds to wait."}
