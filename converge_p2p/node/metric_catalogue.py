"""Every metric of a node: its name, what it says, its unit, and the label that tells its series apart.

Knows: words. Must not know: where a number comes from. A test compares it with the names that the code counts under.
Source: Prometheus' naming: base units, counters end with `_total`; `docs/observability.md`.

`status` shows most of these counters too, under their short names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "converge_"

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as Prometheus knows it, for a counter without `_total`.
        kind: what it is.
        help: one sentence.
        unit: seconds, bytes, or empty for numbers of things. It ends the name.
        label: what tells its series apart, or empty.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    label: str = ""


def _named(kind: Kind, rows: Mapping[str, tuple[str, ...]], ending: str = "") -> dict[str, Metric]:
    """Name metrics after the short names of their rows, which say: help, unit, label."""
    return {name: Metric(f"{PREFIX}{name}{ending}", kind, *row) for name, row in rows.items()}


MEASURED: Final = _named("counter", {
    "tasks_submitted": ("Tasks that this node submitted.",),
    "tasks_heard": ("Tasks that this node heard of before they were settled.",),
    "claims": ("Claims of this node: asked for, granted, lost.", "", "result"),
    "grants": ("Claims of whomever that were certified, as heard here.",),
    "results_reported": ("Results that this node reported.",),
    "settlements": ("Tasks that were settled, as heard here since the start.", "", "outcome"),
    "vetoes": ("Vetoes that this node spoke.",),
    "motions": ("Motions that were heard: change, dispute (of a result), rivals.", "", "kind"),
    "forks": ("Authors found to have signed two operations with one number.",),
    "epochs": ("Epochs that came into force.",),
    "checkpoints": ("Checkpoints that came into force.",),
    "operations_checked": ("Operations whose signature was verified and that were decoded.",),
    "operation_check_seconds": ("Time spent on verifying and decoding operations.", "seconds"),
    "store_written_bytes": ("Bytes of operations that were committed.", "bytes"),
})  # fmt: skip
"""What is counted through the port (`runtime.metrics`), by the name used there."""

SPREADS: Final = _named("histogram", {
    "task_settle": ("From first hearing of a task to its settlement.", "seconds"),
    "claim_settle": ("From a certified claim to the settlement of its task.", "seconds"),
    "claim_grant": ("From asking for a claim to being granted it.", "seconds"),
    "store_commit": ("Commits of the store.", "seconds"),
}, "_seconds")  # fmt: skip
"""Durations measured through the port, by the name used there."""

GAUGES: Final = _named("gauge", {
    "up_seconds": ("Time since the node started.", "seconds"),
    "event_loop_tasks": ("Tasks that live in the event loop; of an idle node, a few for each peer.",),
    "peers": ("Connected peers: direct, or relayed.", "", "path"),
    "relays": ("Relays that this node is reached through.",),
    "relay_reservations": ("Places kept for others as a relay.",),
    "relay_circuits": ("Connections passed on as a relay.",),
    "accepted_key_connections": ("Connections of others with the second key of a private network.",),
    "reachable": ("1 if others say they can dial this node, 0 if not, -1 unknown.",),
    "link_peers": ("Nodes found on the same link.",),
    "agents": ("Agents that this node hosts.",),
    "agents_failing": ("Hosted agents that fail, hang, or have ended.",),
    "conflicting_settlements": ("Tasks with two certified outcomes: a defect, or traitors.",),
    "queue_used": ("How full each queue is; of several, the fullest.", "", "queue"),
    "queue_bound": ("How much each queue takes.", "", "queue"),
    "limit_used": ("How much of each limit is used; of several, the most.", "", "limit"),
    "limit_bound": ("The limits themselves.", "", "limit"),
    "store_bytes": ("Size of the database and its log of writes.", "bytes"),
    "store_held_bytes": ("What the database holds; 0 where it has no bound.", "bytes"),
    "store_allowed_bytes": ("What it may hold before nothing more is begun from here; 0 is no bound.", "bytes"),
    "blobs": ("Blobs that are kept.",),
    "blob_bytes": ("Bytes of blobs that are kept.", "bytes"),
    "disk_free_bytes": ("Free room where the database is.", "bytes"),
    "store_stalled_seconds": ("How long the commit under way has taken so far.", "seconds"),
    "ready": ("1 while the node takes requests.",),
    "pool_tasks_open": ("Tasks that are not settled.", "", "pool"),
    "pool_tasks_known": ("Tasks since the last checkpoint.", "", "pool"),
    "pool_operations": ("Operations that are held.", "", "pool"),
    "pool_parked": ("Operations that wait for others.", "", "pool"),
    "pool_members": ("Active members.", "", "pool"),
    "pool_peers": ("Peers that this pool is synchronised with.", "", "pool"),
    "pool_epoch": ("The epoch in force.", "", "pool"),
    "pool_quorum": ("1 if enough electors are connected to decide.", "", "pool"),
    "pool_unsure": ("1 while this node signs nothing in the pool.", "", "pool"),
    "pool_frozen": ("Authors that forked.", "", "pool"),
    "pool_vetoes": ("Vetoes known since the last checkpoint.", "", "pool"),
    "pool_operations_behind": ("Operations that a peer is known to have and this node lacks.", "", "pool"),
    "pool_oldest_task_seconds": ("Age of the oldest task that is not settled.", "seconds", "pool"),
    "pool_oldest_claim_seconds": ("Age of the oldest certified claim without a settlement.", "seconds", "pool"),
})  # fmt: skip
"""What is read when somebody asks (`gauges`), by its short name."""

FAMILIES: Final[Mapping[str, Metric]] = {
    "rejected_": Metric("converge_operations_rejected", "counter", "Operations that were refused.", "", "reason"),
    "refused_": Metric("converge_messages_refused", "counter", "Messages that were refused.", "", "reason"),
    "work_": Metric("converge_work", "counter", "What became of claims and attempts of handlers.", "", "event"),
    "gossip_": Metric("converge_gossip_violations", "counter", "Gossip that broke its protocol.", "", "reason"),
    "yamux_": Metric("converge_connection_violations", "counter", "Connections that broke it.", "", "reason"),
    "noise_": Metric("converge_encryption_violations", "counter", "Connections with a bad record.", "", "reason"),
    "sync_": Metric("converge_sync_violations", "counter", "Replication that broke its protocol.", "", "reason"),
}  # fmt: skip
"""Counters whose name ends with a reason: by what it begins with, looked at after `COUNTERS`."""

COUNTERS: Final[Mapping[str, str]] = {
    # the node
    "advertise_failed": "Announcements of this node's agents to the hash table that failed.",
    "announcements_dropped": "Announced pools that slow readers did not get.",
    "announcements_refused": "Announcements of pools that were malformed or unproven.",
    "changes_dropped": "Changes of tasks that slow readers did not get.",
    "clock_jumps": "Times that the wall clock was found to have been set.",
    "commits": "Commits of the store.",
    "control_requests_refused": "Control requests refused because too many were served.",
    "control_tokens_refused": "Control requests without a token that allows them.",
    "descriptor_contested": "Descriptors of this node's own agent that it did not write.",
    "frames_dropped_writer_full": "Frames dropped because too much waited to be written.",
    "frames_malformed": "Frames of peers that could not be read.",
    "frames_not_sent": "Frames for peers that were gone or too slow.",
    "gossip_bad_encoding": "Gossiped operations that could not be decoded.",
    "gossip_dropped": "Payloads dropped because too many waited to be gossiped.",
    "gossip_failed": "Payloads that could not be gossiped.",
    "join_requests": "Requests to be let into pools that were heard.",
    "join_requests_refused": "Requests to be let into pools for which there was no room.",
    "kept_too_long": "Results, recorded turns, blobs and left pools that were removed for their age.",
    "peers_silent": "Peers given up because nothing was heard of them.",
    "rejected": "Operations of others that were refused, for whatever reason.",
    "renewals_dropped": "Renewals of claims dropped because a peer sent too many.",
    "subscriptions_refused": "Gossip topics of pools that could not be subscribed to.",
    # hosted agents
    "agent_failures": "Errors of hosted agents.",
    "agent_restarts": "Hosted agents started again because they failed too often.",
    "agent_turns": "Calls of decide that returned.",
    "events_dropped": "Events that agents were not told of, for want of room.",
    "inbox_blocked": "Messages that had to wait with their sender because an inbox was full.",
    "inbox_dropped": "Messages that inboxes dropped for want of room.",
    "tasks_left_out": "Tasks that agents were not shown, for want of room.",
    # messages
    "dropped_flood": "Messages dropped because too many of their sender waited.",
    "dropped_slow_reader": "Messages that slow readers of topics did not get.",
    "not_delivered": "Messages that their recipient did not take in time.",
    "received": "Messages that were taken.",
    "received_sealed": "Messages handed on unopened, for their agent has the key.",
    "repeats_acknowledged": "Messages that came again and got another receipt.",
    "sent": "Messages that were sent.",
    "sent_again": "Attempts to send a message again.",
    # agents heard of
    "agent_rounds": "Comparisons of known agents with peers.",
    "agent_rounds_refused": "Comparisons of known agents refused because a peer asked too often.",
    "agents_heard": "Descriptors of agents that were news.",
    "agents_malformed": "Descriptors or comparisons that could not be read.",
    "agents_bad_signature": "Descriptors with a signature that is not their agent's.",
    "agents_no_room": "Descriptors not kept for want of room.",
    "agents_rate_limited": "Descriptors not looked at because a peer sent too many.",
    "agents_too_often": "Descriptors of agents that change too often.",
    "agents_untimely": "Descriptors that are expired or from the future.",
    # connections
    "connection_errors": "Connections that ended with an error.",
    "connections_refused_by_peer": "Connections that the peer refused.",
    "connections_silent": "Connections given up because no answer came.",
    "connections_stalled": "Connections given up because the peer did not read.",
    "dials_failed": "Attempts to connect that failed.",
    "dials_succeeded": "Attempts to connect that succeeded.",
    "handler_errors": "Errors of this node's own code while it handled what a peer sent.",
    "handshakes_given_up": "Handshakes of others that took too long or were too many.",
    "inbound_connection_denied": "Connections of others that were not let in.",
    "connections_over_share": "Of these, because their address, or their relay, has as many as it gets.",
    "connections_too_fast": "Of these, because their address, or their relay, made too many in a short time.",
    "inbound_connection_failed": "Connections of others whose handshake failed.",
    "inbound_stream_refused": "Streams of others refused because there were too many.",
    "outbound_stream_refused": "Own streams that the peer or a bound refused.",
    "peer_exchange_failed": "Exchanges of addresses that failed.",
    "peer_exchange_refused": "Exchanges of addresses refused because a peer asked too often.",
    "peers_banned": "Peers that were banned for a while.",
    "peers_refused": "Peers refused because they are banned, or too many.",
    "stream_frames_stray": "Frames for streams that do not exist.",
    "stream_handler_errors": "Streams whose handler failed.",
    "stream_window_overrun": "Peers that sent more than they were allowed to.",
    "streams_lingered_out": "Streams that were closed here and never closed there.",
    "streams_overfull": "Streams reset because more was held than a connection may hold.",
    "streams_stalled": "Streams given up because the peer gave no room.",
    "strangers_refused": "Connections of hosts without this network's key.",
    "violations": "Breaches of a protocol that were held against peers.",
    # replication, requests, gossip
    "direct_requests_answered": "Direct requests of others that were answered.",
    "direct_requests_broken": "Direct requests of others that broke off.",
    "direct_requests_refused": "Direct requests of others refused because there were too many.",
    "gossip_delivered": "Gossiped messages that were handed on.",
    "gossip_errors": "Errors while gossip was handled.",
    "gossip_heartbeat_errors": "Heartbeats of gossip that failed.",
    "gossip_idontwant_dropped": "Messages not sent because the peer had them already.",
    "gossip_idontwant_sent": "Notes to peers that a message is here already.",
    "gossip_send_dropped": "Gossip dropped because too much waited for a peer.",
    "gossip_streams_refused": "Gossip streams refused because a peer opened too many.",
    "gossip_work_throttled": "Times that gossip of a peer waited because it cost too much.",
    "sync_frames_dropped": "Frames of replication streams that were dropped.",
    "sync_frames_received": "Frames of replication streams that came.",
    "sync_streams_lost": "Replication streams that broke.",
    "sync_throttled": "Times that a peer's frames waited because there were too many.",
    "sync_work_throttled": "Times that a peer's frames waited because they cost too much.",
    "sync_writes_failed": "Writes to replication streams that failed.",
    "topic_members_proven": "Peers that proved that they have the key of a private topic.",
    "topic_proofs_failed": "Proofs of the key of a private topic that failed.",
    "topic_proofs_refused": "Proofs of the key of a private topic refused, for they were too many.",
    # the hash table
    "dht_claims_refused": "Claims in the hash table that were refused.",
    "dht_records_refused": "Records for the hash table that were refused.",
    # how the node is reached
    "circuits_accepted": "Connections that came through a relay.",
    "circuits_dialled": "Connections that were made through a relay.",
    "circuits_refused": "Connections through a relay that were refused.",
    "mdns_answers": "Answers on the same link that were sent.",
    "mdns_dropped": "Packets on the same link dropped because there were too many.",
    "mdns_failed": "Packets on the same link that could not be sent.",
    "mdns_found": "Nodes found on the same link.",
    "mdns_questions": "Questions on the same link that were asked.",
    "mdns_refused": "Packets on the same link that were malformed or unwanted.",
    "punches_broken": "Attempts at a direct connection that broke off.",
    "punches_refused": "Attempts of others at a direct connection that were refused.",
    "punches_succeeded": "Direct connections made past a relay.",
    "punches_tried": "Attempts at a direct connection past a relay.",
    "reach_answers": "Answers of peers whether they can dial this node.",
    "reach_requests_answered": "Questions of peers whether they can be dialled, answered.",
    "reach_requests_broken": "Questions of peers whether they can be dialled that broke off.",
    "reach_requests_refused": "Questions of peers whether they can be dialled, refused.",
    "reach_unanswered": "Questions whether this node can be dialled without an answer.",
    "relay_bytes": "Bytes passed on as a relay.",
    "relay_circuits_expired": "Circuits of others that ended because their time was over.",
    "relay_circuits_opened": "Circuits of others that were opened.",
    "relay_circuits_spent": "Circuits of others that ended because they carried too much.",
    "relay_places_lost": "Places at relays that were lost.",
    "relay_places_refused": "Places at relays that were refused.",
    "relay_places_renewed": "Places at relays that were renewed.",
    "relay_places_taken": "Places at relays that were given.",
    "relay_requests_broken": "Requests to this relay that broke off.",
    "relay_requests_refused": "Requests to this relay that were refused.",
    "relay_reservations_granted": "Places at this relay that were given away.",
    # blobs
    "blob_bytes_fetched": "Bytes of blobs that came from others.",
    "blob_bytes_given": "Bytes of blobs that were given to others.",
    "blob_chunks_corrupt": "Chunks of blobs that were damaged on the disk.",
    "blob_lies": "Chunks and manifests of others that were not what they said.",
    "blob_requests_malformed": "Requests for blobs that broke their protocol.",
    "blob_streams_refused": "Requests for blobs over a peer's share.",
    "blobs_evicted": "Blobs that made room for others.",
    # observation
    "node_events_dropped": "Events that slow watchers of the node did not get.",
    "spans_dropped": "Spans that came faster than they could be kept.",
    "spans_failed": "Spans that an exporter failed at.",
}
"""Counters by their short names; the metric is `converge_<name>`."""


def metric_of(counter: str) -> tuple[Metric, str]:
    """Return the metric that a counter belongs to, and its label there.

    A counter that is not known (of another version, or an application) is part of `converge_other`.
    """
    if counter in COUNTERS:
        unit = "bytes" if counter.endswith("_bytes") else ""
        return Metric(PREFIX + counter, "counter", COUNTERS[counter], unit), ""
    if counter in GAUGES:
        return GAUGES[counter], ""
    for begin, metric in FAMILIES.items():
        if counter.startswith(begin):
            return metric, counter.removeprefix(begin)
    return OTHERS, counter


OTHERS: Final = Metric("converge_other", "counter", "Counters that have no description.", label="name")


def all_metrics() -> dict[str, Metric]:
    """Return every metric, by the name of its samples: counters with `_total`, histograms as they are."""
    listed = [*MEASURED.values(), *SPREADS.values(), *GAUGES.values(), *FAMILIES.values(), OTHERS]
    listed += [metric_of(name)[0] for name in COUNTERS]
    return {metric.name + ("_total" if metric.kind == "counter" else ""): metric for metric in listed}
