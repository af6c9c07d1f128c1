"""The control interface as an ASGI application: routes, bounds, and errors in envelopes.

Knows: requests and answers, and the node through `control.ports`. Must not know: sockets, or who runs the node.
Source: docs/control.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from converge_node import agent_schema, mesh_schema, schema
from converge_node.control import agents, blobs, evidence, mesh, motions, views
from converge_node.control.governance import admission_kind, governance_model
from converge_node.control.observing import Observing
from converge_node.control.ports import NodeLike, PoolLike
from converge_node.control.reach import reach_item
from converge_node.control.requests import body_of, milliseconds, number, read, seconds
from converge_node.control.stream import EventStream, Open
from converge_node.errors import Busy, NotReady, UsageError, http_status_of, known_error
from converge_node.log_book import LogBook
from converge_node.settings_check import parse_topic
from converge_p2p import __version__
from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError, LocalError, NotFound
from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.model.task import TaskState, TaskView
from converge_p2p.core.types import PublicKey, TaskId

_log = logging.getLogger("converge_node.control")
_R = TypeVar("_R")

Endpoint = Callable[[Request], Awaitable[Any]]


@dataclass(slots=True)
class ControlState:
    """What the requests see. The run command owns and changes it.

    Attributes:
        home, socket: shown to clients.
        stage: what the node is doing, for people.
        node: None while it starts and after it closed.
        ready: whether requests that change something are taken.
        stopping: set when the node begins to stop; ends every stream.
        request_stop: begins the shutdown.
        pool_joined: called with each pool that was created or joined through this interface.
        next_command: returns the command that starts a node which finds this one at its addresses.
        meshes: topics that were joined.
        log_book: the newest lines of the log.
    """

    home: str
    socket: str
    request_stop: Callable[[], None]
    stage: str = "starting"
    node: NodeLike | None = None
    ready: bool = False
    stopping: trio.Event = field(default_factory=trio.Event)
    pool_joined: Callable[[PoolLike], None] = lambda _pool: None
    next_command: Callable[[Sequence[str]], str] = lambda _addresses: ""
    meshes: mesh.Meshes = field(default_factory=mesh.Meshes)
    log_book: LogBook | None = None
    started_at_s: float = field(default_factory=time.time)
    requests: int = 0
    streams: int = 0
    refused: int = 0

    def running(self) -> NodeLike:
        """Return the node. Raises `NotReady` while it is starting or stopping."""
        if self.node is None or not self.ready:
            raise NotReady(f"the node is not ready: {self.stage}", hint="wait for `converge-node health --ready`")
        return self.node


class ControlApi:
    """The endpoints."""

    def __init__(self, state: ControlState) -> None:
        self._state = state
        self.observing = Observing(state, self._events)

    def app(self) -> Starlette:
        """Return the ASGI application."""

        def route(path: str, method: str, endpoint: Endpoint) -> Route:
            return Route(path, self._guarded(endpoint), methods=[method])

        task = "/v1/pools/{pool}/tasks/{task}"
        routes = [
            *(route(*each) for each in self.observing.endpoints()),
            route("/v1/node", "GET", self._node),
            route("/v1/status", "GET", self._status),
            route("/v1/peers", "GET", self._peers),
            route("/v1/reach", "GET", self._reach),
            route("/v1/pools", "GET", self._pools),
            route("/v1/pools", "POST", self._create_pool),
            route("/v1/pools/{pool}", "GET", self._pool),
            route("/v1/pools/{pool}/join", "POST", self._join_pool),
            route("/v1/pools/{pool}/invite", "POST", self._invite),
            route("/v1/pools/{pool}/vouch", "POST", self._vouch),
            route("/v1/pools/{pool}/audit", "GET", self._audit),
            route("/v1/pools/{pool}/watch", "GET", self._watch_pool),
            route("/v1/pools/{pool}/tasks", "GET", self._tasks),
            route("/v1/pools/{pool}/tasks", "POST", self._submit),
            route("/v1/home/tasks", "POST", self._submit_home),
            route(task, "GET", self._task),
            route(task + "/watch", "GET", self._watch_task),
            route(task + "/cancel", "POST", self._cancel),
            route(task + "/veto", "POST", self._veto),
            route(task + "/pass", "POST", self._let_pass),
            route(task + "/judge", "POST", self._judge),
            route(task + "/dispute", "POST", self._dispute),
            route(task + "/evidence", "GET", self._evidence),
            route(task + "/evidence", "POST", self._cite),
            route("/v1/pools/{pool}/motions", "GET", self._motions),
            route("/v1/pools/{pool}/motions", "POST", self._move),
            route("/v1/pools/{pool}/motions/{motion}/say", "POST", self._say),
            route("/v1/mesh", "GET", self._mesh),
            route("/v1/topics", "POST", self._join_topic),
            route("/v1/topics/leave", "POST", self._leave_topic),
            route("/v1/topics/publish", "POST", self._publish),
            route("/v1/topics/watch", "GET", self._watch_topic),
            route("/v1/invitations", "POST", self._write_invitation),
            route("/v1/join", "POST", self._follow),
            route("/v1/agents", "GET", self._agents),
            route("/v1/agents/find", "POST", self._find_agents),
            route("/v1/agents/publish", "POST", self._publish_agent),
            route("/v1/agents/revoke", "POST", self._revoke_agent),
            route("/v1/agents/{agent}", "GET", self._agent),
            route("/v1/hosted", "GET", self._hosted),
            route("/v1/hosted/{name}/record", "GET", self._record),
            route("/v1/shutdown", "POST", self._shutdown),
        ]
        routes += blobs.blob_routes(self._state, self._guarded)
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    def _guarded(self, endpoint: Endpoint, whole: bool = True) -> Callable[[Request], Awaitable[Response]]:
        """Count requests, and turn every error into an answer: a request never harms the node."""

        async def serve(request: Request) -> Response:
            self._state.requests += 1
            try:
                request.state.body = await read(request) if whole else b""
                if self._state.requests > limits.CONTROL_REQUESTS_MAX:
                    self._state.refused += 1
                    raise Busy(f"{limits.CONTROL_REQUESTS_MAX} requests are being served", hint="try again later")
                answer = await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:  # noqa: BLE001 - the edge: one bad request must not end the node
                known = known_error(error)
                if known is None:
                    _log.exception("control request %s %s failed", request.method, request.url.path)
                    known = ConvergeError(f"internal error: {type(error).__name__}", hint="see the log of the node")
                return _error(known)
            finally:
                self._state.requests -= 1
            return answer if isinstance(answer, Response) else _json(schema.success(answer), 200)

        return serve

    # ------------------------------------------------------------ the node

    async def _reach(self, _request: Request) -> Any:
        return reach_item(self._state.running())

    async def _node(self, _request: Request) -> schema.NodeItem:
        return node_item(self._state)

    async def _status(self, _request: Request) -> schema.StatusItem:
        node = self._state.running()
        status = node.status()
        own = {"control_requests_refused": self._state.refused}
        return schema.StatusItem(
            node=node_item(self._state),
            ready=self._state.ready,
            started_at=schema.utc_time(self._state.started_at_s),
            uptime_s=round(status.uptime_s, 3),
            peers=len(node.peers()),
            pools=[views.pool_item(pool) for pool in node.pools.values()],
            counters={**status.counters, **own},
        )

    async def _peers(self, _request: Request) -> list[schema.PeerItem]:
        return [views.peer_item(peer) for peer in self._state.running().peers()]

    async def _shutdown(self, _request: Request) -> schema.ShutdownItem:
        self._state.request_stop()
        return schema.ShutdownItem(stopping=True)

    # ------------------------------------------------------------ topics and invitations

    async def _mesh(self, _request: Request) -> mesh_schema.MeshItem:
        return mesh.mesh_item(self._state.running())

    async def _join_topic(self, request: Request) -> mesh_schema.TopicItem:
        return await self._state.meshes.join_topic(self._state.running(), body_of(request, mesh_schema.JoinTopic))

    async def _leave_topic(self, request: Request) -> list[mesh_schema.TopicItem]:
        return await self._state.meshes.leave_topic(self._state.running(), body_of(request, mesh_schema.LeaveTopic))

    async def _publish(self, request: Request) -> mesh_schema.PublishOnTopic:
        self._state.running()
        return await self._state.meshes.publish(body_of(request, mesh_schema.PublishOnTopic))

    async def _watch_topic(self, request: Request) -> EventStream:
        self._state.running()
        return self._events(self._state.meshes.watch(request.query_params.get("topic", "")), request)

    async def _write_invitation(self, request: Request) -> mesh_schema.InvitationText:
        return await mesh.write_invitation(self._state.running(), body_of(request, mesh_schema.WriteInvitation))

    async def _follow(self, request: Request) -> mesh_schema.FollowedItem:
        body = body_of(request, mesh_schema.FollowInvitation)
        item, pool = await self._state.meshes.follow(self._state.running(), body)
        if pool is not None:
            self._state.pool_joined(pool)
        return item

    # ------------------------------------------------------------ agents

    async def _agents(self, request: Request) -> list[agent_schema.AgentItem]:
        limit = number(request.query_params.get("limit", "100"), "limit", 1, limits.QUERY_RESULTS_MAX)
        return agents.list_agents(self._state.running(), limit)

    async def _find_agents(self, request: Request) -> list[agent_schema.AgentItem]:
        return await agents.find_agents(self._state.running(), body_of(request, agent_schema.FindAgents))

    async def _publish_agent(self, request: Request) -> agent_schema.AgentItem:
        return await agents.publish(self._state.running(), body_of(request, agent_schema.PublishAgent))

    async def _revoke_agent(self, _request: Request) -> agent_schema.RevokedItem:
        return agent_schema.RevokedItem(revoked=await self._state.running().discovery.unregister())

    async def _agent(self, request: Request) -> agent_schema.AgentItem:
        return await agents.show_agent(self._state.running(), request.path_params["agent"])

    async def _hosted(self, _request: Request) -> list[agent_schema.HostedItem]:
        return agents.list_hosted(self._state.running())

    async def _record(self, request: Request) -> list[agent_schema.RecordItem]:
        first = number(request.query_params.get("first", "0"), "first", 0, limits.SEQ_MAX)
        name = request.path_params["name"]
        return await agents.read_record(self._state.running(), name, first - 1, agents.RECORD_ENTRIES_MAX)

    # ------------------------------------------------------------ pools

    async def _pools(self, _request: Request) -> list[schema.PoolItem]:
        node = self._state.running()
        joined = [views.pool_item(pool) for pool in node.pools.values()]
        heard = [views.announced_item(pool) for pool in node.known_pools() if pool.id not in node.pools]
        return joined + heard

    async def _pool(self, request: Request) -> schema.PoolDetail:
        return await views.pool_detail(self._find_pool(request))

    async def _create_pool(self, request: Request) -> schema.PoolDetail:
        node, body = self._state.running(), body_of(request, schema.CreatePool)
        model = governance_model(body.governance, body.terms, lambda names: views.elector_keys(node, names))
        policy = PoolPolicy()
        if body.claim_ttl_s is not None:
            policy = replace(policy, claim_ttl_ms=milliseconds(body.claim_ttl_s))
        if body.max_retries is not None:
            policy = replace(policy, max_retries=body.max_retries)
        policy.check()
        pool = await node.create_pool(
            body.name,
            governance=model,
            electors=views.elector_keys(node, body.electors),
            topics=[parse_topic(topic) for topic in body.topics],
            task_types=body.task_types,
            admission=admission_kind(body.admission),
            whitelist=views.elector_keys(node, body.whitelist),
            admission_need=body.admission_need,
            admission_custom=body.admission_custom,
            policy=policy,
            private=body.private,
        )
        self._state.pool_joined(pool)
        return await views.pool_detail(pool)

    async def _join_pool(self, request: Request) -> schema.PoolDetail:
        node, body = self._state.running(), body_of(request, schema.JoinPool)
        pool_id = views.find_pool_id(node, request.path_params["pool"])
        pool = await node.join_pool(
            pool_id,
            capabilities=body.capabilities,
            invitation=body.invitation or None,
            vouches=body.vouches,
            timeout_s=body.timeout_s,
        )
        self._state.pool_joined(pool)
        return await views.pool_detail(pool)

    async def _invite(self, request: Request) -> schema.AdmissionText:
        pool, body = self._find_pool(request), body_of(request, schema.InviteRequest)
        joiner = views.elector_keys(self._state.running(), [body.agent])[0] if body.agent else None
        until = pool.council.epoch + body.epochs
        text = pool.invite(joiner=joiner, until_epoch=until, role=body.role, valid_s=body.valid_s)
        return schema.AdmissionText(pool=pool.id.hex(), text=text)

    async def _vouch(self, request: Request) -> schema.AdmissionText:
        pool, body = self._find_pool(request), body_of(request, schema.VouchRequest)
        (agent,) = views.elector_keys(self._state.running(), [body.agent])
        return schema.AdmissionText(
            pool=pool.id.hex(), text=pool.vouch(agent, until_epoch=pool.council.epoch + body.epochs)
        )

    async def _audit(self, request: Request) -> list[schema.FindingItem]:
        return [views.finding_item(finding) for finding in await self._find_pool(request).audit()]

    async def _motions(self, request: Request) -> list[schema.MotionItem]:
        pool = self._find_pool(request)
        return [motions.motion_item(pool, view) for view in pool.council.motions()]

    async def _move(self, request: Request) -> schema.MotionItem:
        pool, body = self._find_pool(request), body_of(request, schema.Move)
        return motions.motion_item(pool, await motions.move(pool, body, self._keys))

    async def _say(self, request: Request) -> schema.MotionItem:
        pool, body = self._find_pool(request), body_of(request, schema.SayItem)
        view = motions.find_motion(pool, request.path_params["motion"])
        return motions.motion_item(pool, await motions.say(pool, view, body.choice))

    async def _dispute(self, request: Request) -> schema.MotionItem:
        pool, task_id, body = self._about_task(request, schema.Dispute)
        return motions.motion_item(pool, await motions.dispute(pool, task_id, body))

    async def _evidence(self, request: Request) -> list[schema.EvidenceItem]:
        pool = self._find_pool(request)
        return evidence.evidence_items(pool, views.find_task(pool, request.path_params["task"]).id)

    async def _cite(self, request: Request) -> list[schema.EvidenceItem]:
        pool, task_id, body = self._about_task(request, schema.CiteEvidence)
        return await evidence.cite(pool, task_id, body)

    def _keys(self, names: Sequence[str]) -> list[PublicKey]:
        marked = views.elector_keys(self._state.running(), names)
        return [PublicKey(bytes.fromhex(key.removeprefix("key:"))) for key in marked]

    def _find_pool(self, request: Request) -> PoolLike:
        return views.find_pool(self._state.running(), request.path_params["pool"])

    # ------------------------------------------------------------ tasks

    async def _tasks(self, request: Request) -> schema.TaskList:
        pool, query = self._find_pool(request), request.query_params
        wanted = query.get("state")
        if wanted is not None and wanted not in {state.value for state in TaskState}:
            raise LocalError(f"unknown state {wanted!r}; known are {', '.join(state.value for state in TaskState)}")
        limit = number(query.get("limit", "100"), "limit", 1, schema.TASK_LIST_MAX)
        offset = number(query.get("offset", "0"), "offset", 0, 2**53)
        objective = query.get("objective")
        found = [
            view for view in pool.tasks() if wanted in (None, view.state.value) and objective in (None, view.objective)
        ]
        shown = [views.task_item(view) for view in found[offset : offset + limit]]
        return schema.TaskList(tasks=shown, total=len(found))

    async def _submit(self, request: Request) -> schema.TaskDetail:
        pool, body = self._find_pool(request), body_of(request, schema.SubmitTask)
        return views.task_detail((await pool.submit(views.task_of(body))).view)

    async def _submit_home(self, request: Request) -> schema.TaskDetail:
        node, body = self._state.running(), body_of(request, schema.SubmitTask)
        task, before = views.task_of(body), set(node.pools)
        home = await node.home_pool()
        if home.id not in before:
            self._state.pool_joined(home)
        return views.task_detail((await node.submit(task)).view)

    async def _task(self, request: Request) -> schema.TaskDetail:
        return views.task_detail(views.find_task(self._find_pool(request), request.path_params["task"]))

    def _about_task(self, request: Request, kind: type[_R]) -> tuple[PoolLike, TaskId, _R]:
        pool, body = self._find_pool(request), body_of(request, kind)
        return pool, views.find_task(pool, request.path_params["task"]).id, body

    async def _cancel(self, request: Request) -> schema.TaskDetail:
        pool, task_id, body = self._about_task(request, schema.CancelTask)
        await pool.cancel(task_id, reason=body.reason)
        return views.task_detail(pool.task(task_id))

    async def _veto(self, request: Request) -> schema.TaskDetail:
        pool, task_id, body = self._about_task(request, schema.VetoTask)
        await pool.veto(task_id, reason=body.reason)
        return views.task_detail(pool.task(task_id))

    async def _let_pass(self, request: Request) -> schema.TaskDetail:
        pool, task_id, body = self._about_task(request, schema.VetoTask)
        await pool.let_pass(task_id, reason=body.reason)
        return views.task_detail(pool.task(task_id))

    async def _judge(self, request: Request) -> schema.TaskDetail:
        pool, task_id, body = self._about_task(request, schema.JudgeTask)
        await pool.judge(task_id, body.approve, body.reason, value=views.value_hash(body.value))
        return views.task_detail(pool.task(task_id))

    async def _watch_pool(self, request: Request) -> EventStream:
        return self._stream(self._find_pool(request), None, request)

    async def _watch_task(self, request: Request) -> EventStream:
        pool = self._find_pool(request)
        return self._stream(pool, views.find_task(pool, request.path_params["task"]).id, request)

    def _stream(self, pool: PoolLike, task_id: TaskId | None, request: Request) -> EventStream:
        @asynccontextmanager
        async def source() -> AsyncIterator[AsyncGenerator[object, None]]:
            async with pool.watch() as changes:
                yield _changes(pool, changes, task_id)

        return self._events(source, request)

    def _events(self, source: Open, request: Request) -> EventStream:
        timeout_s = seconds(request.query_params.get("timeout_s", "inf"))
        if self._state.streams >= limits.CONTROL_STREAMS_MAX:
            self._state.refused += 1
            raise Busy(f"{limits.CONTROL_STREAMS_MAX} streams are open", hint="close one first")
        self._state.streams += 1

        def ended() -> None:
            self._state.streams -= 1

        return EventStream(source, stopping=self._state.stopping, on_end=ended, timeout_s=timeout_s)


async def _changes(
    pool: PoolLike, changes: trio.MemoryReceiveChannel[TaskView], task_id: TaskId | None
) -> AsyncGenerator[object, None]:
    """Yield every change; of one task: its present state first, and nothing after it is settled.

    The channel is open before the present state is read, so that no change falls between the two.
    """
    if task_id is None:
        async for view in changes:
            yield views.task_item(view)
        return
    view = pool.task(task_id)
    yield views.task_detail(view)
    if view.state.terminal:
        return
    async for view in changes:
        if view.id == task_id:
            yield views.task_detail(view)
            if view.state.terminal:
                return


def node_item(state: ControlState) -> schema.NodeItem:
    """Return who the node is.

    Raises:
        NotReady: it is starting or stopping.
    """
    node = state.running()
    return schema.NodeItem(
        id=str(node.id),
        public_key=node.public_key.hex(),
        peer_id=str(node.peer_id),
        addresses=[str(address) for address in node.addresses],
        version=__version__,
        home=state.home,
        socket=state.socket,
        next_command=state.next_command(node.addresses),
    )


def _json(envelope: dict[str, Any], status: int) -> Response:
    return Response(msgspec.json.encode(envelope), status_code=status, media_type="application/json")


def _error(error: ConvergeError) -> Response:
    return _json(schema.failure(error), http_status_of(error.code))


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    known: ConvergeError = NotFound(f"there is no {request.method} {request.url.path}")
    if status == 405:
        known = UsageError(f"{request.url.path} does not take {request.method}")
    return _error(known)
