"""Everything that can be asked of a node: the one list of the routes of its control interface.

Knows: the schema. Must not know: how a question is sent, or answered.
Source: docs/control.md. The decorators make of each signature a route, and of each name a method of both clients. What
stands for `pool`, `task`, `motion` or `agent` is an id, a unique prefix of six digits or more, or a pool's name.
"""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from typing import IO, Final

from converge_p2p.client import (
    agent_schema,
    blob_schema,
    identity_schema,
    member_schema,
    mesh_schema,
    peer_schema,
    schema,
    watch_schema,
    work_schema,
)
from converge_p2p.client.explain_schema import ExplanationItem
from converge_p2p.client.queries import (
    AgentQuery,
    ContentQuery,
    EventQuery,
    JoinQuery,
    LogQuery,
    PutQuery,
    RecordQuery,
    TaskQuery,
    TopicQuery,
    WatchQuery,
)
from converge_p2p.client.reach_schema import ReachItem
from converge_p2p.client.routes import Declared, Form, Route, Scope, ask, listen

_TASK = "/v1/pools/{pool}/tasks/{task}"
_TRANSFER_S: Final = 600.0
"""Contents are fetched from other nodes before the first byte comes."""
_PINGS_S: Final = 60.0
_READING_S: Final = 60.0
"""A whole log is read, which takes seconds if it is large."""


class Api:
    """The methods of both clients."""

    # ------------------------------------------------------------ the node

    @ask("GET /healthz")
    def health(self) -> schema.HealthItem:
        """Say whether the node does its work, and what is wrong; status 503 if it does not."""

    @ask("GET /readyz")
    def ready(self) -> schema.HealthItem:
        """Say whether the node takes requests; status 503 while it starts and as soon as it stops."""

    @ask("GET /v1/node")
    def node(self) -> schema.NodeItem:
        """Say who the node is, where it listens, and how the next node finds it."""

    @ask("GET /v1/status")
    def status(self) -> schema.StatusItem:
        """Show the node at a glance, with its counters."""

    @ask("GET /v1/peers")
    def peers(self) -> list[schema.PeerItem]:
        """List connected peers."""

    @ask("GET /v1/peers/reports")
    def peer_reports(self) -> list[peer_schema.PeerReportItem]:
        """Say what is known of connected peers, and of those that are kept out."""

    @ask("GET /v1/peers/{peer}")
    def peer(self, peer: str) -> peer_schema.PeerReportItem:
        """Say what is known of a peer, whether or not it is connected."""

    @ask("POST /v1/peers/ping", wait_s=_PINGS_S)
    def ping(self, body: peer_schema.PingPeer) -> peer_schema.PingItem:
        """Measure how long a few bytes take to a connected peer and back."""

    @ask("POST /v1/peers/add", Scope.WRITE)
    def add_peer(self, body: peer_schema.NamePeer) -> peer_schema.PeerReportItem:
        """Remember an address, to be dialled while there are too few connections."""

    @ask("POST /v1/peers/connect", Scope.WRITE)
    def connect_peer(self, body: peer_schema.ConnectPeer) -> peer_schema.PeerReportItem:
        """Connect to a peer."""

    @ask("POST /v1/peers/disconnect", Scope.WRITE)
    def disconnect_peer(self, body: peer_schema.NamePeer) -> peer_schema.PeerReportItem:
        """Close the connections to a peer; it may come back."""

    @ask("POST /v1/peers/block", Scope.WRITE)
    def block_peer(self, body: peer_schema.BlockPeer) -> peer_schema.PeerReportItem:
        """Disconnect a peer and keep it out, also after a restart."""

    @ask("POST /v1/peers/unblock", Scope.WRITE)
    def unblock_peer(self, body: peer_schema.NamePeer) -> peer_schema.PeerReportItem:
        """Keep a peer out no more."""

    @ask("POST /v1/peers/forget", Scope.WRITE)
    def forget_peer(self, body: peer_schema.NamePeer) -> peer_schema.PeerReportItem:
        """Know no address of a peer any more."""

    @ask("GET /v1/bootstrap")
    def bootstrap(self) -> list[peer_schema.BootstrapItem]:
        """List the addresses that are dialled for ever."""

    @ask("POST /v1/config/reload", Scope.ADMIN)
    def reload(self) -> peer_schema.ReloadItem:
        """Read the settings again, and take over what can be taken over while the node runs."""

    @ask("GET /v1/reach")
    def reach(self) -> ReachItem:
        """Say how others reach the node."""

    @ask("GET /metrics", form=Form.TEXT)
    def metrics(self) -> str:
        """Give all metrics, as Prometheus reads them."""

    @listen("/v1/events")
    def events(self, query: EventQuery | None = None) -> watch_schema.EventItem:
        """Watch what happens in the node."""

    @ask("GET /v1/logs")
    def logs(self, query: LogQuery | None = None) -> list[watch_schema.LogLine]:
        """Give the newest lines of the log."""

    @listen("/v1/logs/follow")
    def follow_logs(self, query: LogQuery | None = None) -> watch_schema.LogLine:
        """Give the newest lines of the log, and go on with new ones."""

    @ask("GET /v1/logs/level")
    def log_level(self) -> watch_schema.LogLevelItem:
        """Say the least severity that is written to the log."""

    @ask("POST /v1/logs/level", Scope.ADMIN)
    def set_log_level(self, body: watch_schema.SetLogLevel) -> watch_schema.LogLevelItem:
        """Change the least severity that is written, until the node ends."""

    @ask("POST /v1/identity/rotate", Scope.ADMIN)
    def rotate(self, body: identity_schema.RotateIdentity) -> identity_schema.RotatedItem:
        """Hand the node's place in a pool over to a new key; what was handed over before is only told again."""

    @ask("POST /v1/shutdown", Scope.ADMIN)
    def shutdown(self) -> schema.ShutdownItem:
        """Stop the node gracefully."""

    # ------------------------------------------------------------ topics and invitations

    @ask("GET /v1/mesh")
    def mesh(self) -> mesh_schema.MeshItem:
        """Show the network the node is in, and its topics."""

    @ask("POST /v1/topics", Scope.WRITE)
    def join_topic(self, body: mesh_schema.JoinTopic) -> mesh_schema.TopicItem:
        """Take part in a topic until the node ends."""

    @ask("POST /v1/topics/leave", Scope.WRITE)
    def leave_topic(self, body: mesh_schema.LeaveTopic) -> list[mesh_schema.TopicItem]:
        """Take part in a topic no more; the answer is the other topics."""

    @ask("POST /v1/topics/publish", Scope.WRITE)
    def publish(self, body: mesh_schema.PublishOnTopic) -> mesh_schema.PublishOnTopic:
        """Say something on a topic that the node takes part in."""

    @ask("GET /v1/topics/peers")
    def topic_peers(self, query: TopicQuery) -> list[peer_schema.TopicPeerItem]:
        """List the connected peers that take part in a topic."""

    @listen("/v1/topics/watch")
    def watch_topic(self, query: TopicQuery) -> mesh_schema.HeardItem:
        """Listen to a topic that the node takes part in."""

    @ask("POST /v1/invitations", Scope.ADMIN)
    def write_invitation(self, body: mesh_schema.WriteInvitation) -> mesh_schema.InvitationText:
        """Write an invitation line, which holds the keys of the network and the topics."""

    @ask("POST /v1/join", Scope.ADMIN)
    def follow(self, body: mesh_schema.FollowInvitation) -> mesh_schema.FollowedItem:
        """Follow an invitation line."""

    # ------------------------------------------------------------ agents

    @ask("GET /v1/agents")
    def agents(self, query: AgentQuery | None = None) -> list[agent_schema.AgentItem]:
        """List agents that are known here, sorted by id."""

    @ask("POST /v1/agents/find")
    def find_agents(self, body: agent_schema.FindAgents) -> list[agent_schema.AgentItem]:
        """Find agents that can do all that is asked, the cheapest first."""

    @ask("POST /v1/agents/publish", Scope.WRITE)
    def publish_agent(self, body: agent_schema.PublishAgent) -> agent_schema.AgentItem:
        """Say what the node's agent can do, from now on and after a restart."""

    @ask("POST /v1/agents/revoke", Scope.WRITE)
    def revoke_agent(self) -> agent_schema.RevokedItem:
        """Take back what was published of the node's agent."""

    @ask("GET /v1/agents/{agent}")
    def agent(self, agent: str) -> agent_schema.AgentItem:
        """Show the newest descriptor of an agent."""

    @ask("GET /v1/checkpoints")
    def checkpoints(self) -> list[watch_schema.AgentCheckpointItem]:
        """List the newest checkpoint of each agent that ran here."""

    @ask("GET /v1/hosted")
    def hosted(self) -> list[agent_schema.HostedItem]:
        """List the agents that the node hosts."""

    @ask("GET /v1/hosted/{name}/record")
    def record(self, name: str, query: RecordQuery | None = None) -> list[agent_schema.RecordItem]:
        """Read up to 64 entries of a hosted agent's replay log."""

    # ------------------------------------------------------------ pools

    @ask("GET /v1/pools")
    def pools(self) -> list[schema.PoolItem]:
        """List joined pools, then announced ones."""

    @ask("POST /v1/pools", Scope.WRITE)
    def create_pool(self, body: schema.CreatePool) -> schema.PoolDetail:
        """Found a pool."""

    @ask("GET /v1/pools/{pool}")
    def pool(self, pool: str) -> schema.PoolDetail:
        """Show a pool with its members, and in words who decides."""

    @ask("POST /v1/pools/{pool}/join", Scope.WRITE)
    def join_pool(self, pool: str, body: schema.JoinPool | None = None) -> schema.PoolDetail:
        """Become a member of a pool."""

    @ask("GET /v1/joins")
    def joins(self, query: JoinQuery | None = None) -> list[member_schema.JoinItem]:
        """List who asks to be let into pools: others, who wait here, and this node itself."""

    @ask("POST /v1/pools/{pool}/ask", Scope.WRITE)
    def ask_to_join(self, pool: str, body: member_schema.AskToJoin | None = None) -> member_schema.JoinItem:
        """Ask the electors of a pool to let this node in, until they answered."""

    @ask("POST /v1/pools/{pool}/withdraw", Scope.WRITE)
    def withdraw_join(self, pool: str) -> list[member_schema.JoinItem]:
        """Ask to be let into a pool no more; the answer is what else is asked for."""

    @ask("POST /v1/pools/{pool}/joins/{agent}/admit", Scope.WRITE)
    def admit(self, pool: str, agent: str, body: member_schema.AdmitJoin | None = None) -> member_schema.JoinItem:
        """Let somebody in who asked, as far as this elector can."""

    @ask("POST /v1/pools/{pool}/joins/{agent}/refuse", Scope.WRITE)
    def refuse(self, pool: str, agent: str, body: member_schema.DecideJoin | None = None) -> member_schema.JoinItem:
        """Refuse somebody who asked to be let in."""

    @ask("GET /v1/pools/{pool}/terms")
    def terms(self, pool: str) -> member_schema.TermsItem:
        """Show the terms of a pool that are in force."""

    @ask("POST /v1/pools/{pool}/leave", Scope.WRITE)
    def leave_pool(self, pool: str) -> list[schema.PoolItem]:
        """Leave a pool; the answer is the other joined ones."""

    @ask("POST /v1/pools/{pool}/invite", Scope.WRITE)
    def invite(self, pool: str, body: schema.InviteRequest | None = None) -> schema.AdmissionText:
        """Write an invitation to a pool."""

    @ask("POST /v1/pools/{pool}/vouch", Scope.WRITE)
    def vouch(self, pool: str, body: schema.VouchRequest) -> schema.AdmissionText:
        """Answer for an agent as an elector."""

    @ask("GET /v1/pools/{pool}/audit")
    def audit(self, pool: str) -> list[schema.FindingItem]:
        """Name electors that broke a rule, with what proves it."""

    @listen("/v1/pools/{pool}/watch")
    def watch_pool(self, pool: str, query: WatchQuery | None = None) -> schema.TaskItem:
        """Watch the tasks of a pool change, and their progress."""

    @ask("GET /v1/pools/{pool}/motions")
    def motions(self, pool: str) -> list[schema.MotionItem]:
        """List what was put to the electors, and what became of it."""

    @ask("POST /v1/pools/{pool}/motions", Scope.WRITE)
    def move(self, pool: str, body: schema.Move) -> schema.MotionItem:
        """Put a change to the electors."""

    @ask("POST /v1/pools/{pool}/motions/{motion}/say", Scope.WRITE)
    def say(self, pool: str, motion: str, body: schema.SayItem) -> schema.MotionItem:
        """Say what this elector thinks of a motion."""

    # ------------------------------------------------------------ tasks

    @ask("GET /v1/pools/{pool}/tasks")
    def tasks(self, pool: str, query: TaskQuery | None = None) -> schema.TaskList:
        """List tasks of a pool."""

    @ask("POST /v1/pools/{pool}/tasks", Scope.WRITE)
    def submit(self, pool: str, body: schema.SubmitTask) -> schema.TaskDetail:
        """Submit a task to a pool."""

    @ask("POST /v1/home/tasks", Scope.WRITE)
    def submit_home(self, body: schema.SubmitTask) -> schema.TaskDetail:
        """Submit a task to the node's home pool; the first one founds it."""

    @ask(f"GET {_TASK}")
    def task(self, pool: str, task: str) -> schema.TaskDetail:
        """Show a task with its inputs and result."""

    @listen(f"{_TASK}/watch")
    def watch_task(self, pool: str, task: str, query: WatchQuery | None = None) -> schema.TaskDetail:
        """Watch a task: as it is now, then each change until it is settled."""

    @ask(f"POST {_TASK}/cancel", Scope.WRITE)
    def cancel(self, pool: str, task: str, body: schema.CancelTask | None = None) -> schema.TaskDetail:
        """Cancel a task that this node submitted."""

    @ask(f"POST {_TASK}/veto", Scope.WRITE)
    def veto(self, pool: str, task: str, body: schema.VetoTask | None = None) -> schema.TaskDetail:
        """Deny the result that a task was settled on, as a vetoer."""

    @ask(f"POST {_TASK}/pass", Scope.WRITE)
    def let_pass(self, pool: str, task: str, body: schema.VetoTask | None = None) -> schema.TaskDetail:
        """Let the result pass that a task was settled on, as a vetoer."""

    @ask(f"POST {_TASK}/judge", Scope.WRITE)
    def judge(self, pool: str, task: str, body: schema.JudgeTask) -> schema.TaskDetail:
        """Approve or deny a reported result, as the task's evaluator."""

    @ask(f"POST {_TASK}/claim", Scope.WRITE)
    def claim(self, pool: str, task: str, body: work_schema.ClaimTask | None = None) -> schema.TaskDetail:
        """Stand for a task as the node's agent; whether the claim is won shows in the task."""

    @ask(f"POST {_TASK}/release", Scope.WRITE)
    def release(self, pool: str, task: str, body: work_schema.ReleaseTask | None = None) -> schema.TaskDetail:
        """Give back a claim of the node's agent."""

    @ask(f"POST {_TASK}/report", Scope.WRITE)
    def report(self, pool: str, task: str, body: work_schema.ReportTask | None = None) -> schema.TaskDetail:
        """Report what came of a task that the node's agent claimed."""

    @ask(f"POST {_TASK}/dispute", Scope.WRITE)
    def dispute(self, pool: str, task: str, body: schema.Dispute | None = None) -> schema.MotionItem:
        """Ask the electors whether a settled result is wrong, or which of several is right."""

    @ask(f"GET {_TASK}/evidence")
    def evidence(self, pool: str, task: str) -> list[schema.EvidenceItem]:
        """List what was cited for and against results of a task."""

    @ask(f"POST {_TASK}/evidence", Scope.WRITE)
    def cite(self, pool: str, task: str, body: schema.CiteEvidence) -> list[schema.EvidenceItem]:
        """Say that a content speaks for a result, or against it."""

    @ask(f"GET {_TASK}/explain", wait_s=_READING_S)
    def explain(self, pool: str, task: str) -> ExplanationItem:
        """Tell what became of a task and why: everything that was signed about it, and what the votes add up to."""

    @ask(f"GET {_TASK}/receipt", form=Form.BYTES)
    def receipt(self, pool: str, task: str, to: IO[bytes]) -> None:
        """Give the receipt of a settled task, which proves offline how it ended."""

    @ask(f"GET {_TASK}/result", wait_s=_TRANSFER_S)
    def result(self, pool: str, task: str) -> schema.TaskDetail:
        """Show a settled task with its whole result, which is fetched if it is a blob."""

    # ------------------------------------------------------------ blobs

    @ask("GET /v1/blobs")
    def blobs(self) -> list[blob_schema.BlobItem]:
        """List the blobs that the node keeps, the one used last first."""

    @ask("POST /v1/blobs", Scope.WRITE, wait_s=_TRANSFER_S)
    def put_blob(self, content: IO[bytes], query: PutQuery | None = None) -> blob_schema.PutItem:
        """Keep a content, and say the reference that others fetch it with."""

    @ask("GET /v1/blobs/content", form=Form.BYTES, wait_s=_TRANSFER_S)
    def blob(self, query: ContentQuery, to: IO[bytes]) -> None:
        """Fetch a content: from its maker, or from whoever is connected and has it."""

    @ask("POST /v1/blobs/remove", Scope.WRITE)
    def remove_blob(self, body: blob_schema.RemoveBlob) -> blob_schema.RemovedBlob:
        """Keep a blob no longer."""


def all_routes() -> dict[str, Route]:
    """Return every route by the name of its method, in the order in which they are matched."""
    return {name: each.route for name, each in vars(Api).items() if isinstance(each, Declared)}
