"""Every error code: what it means, what to do, and how it ends a command or a request.

Knows: all codes of the library and the program. Must not know: how an error is shown.
Source: docs/operations.md, exit codes. A test holds the catalogue complete. Codes are part of the interface and keep
their meaning; `converge-node errors CODE` explains one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from converge_node.errors import ExitCode


class Entry(NamedTuple):
    """What stands behind a code.

    Attributes:
        status: of HTTP at the control interface; 500 is for what is the node's own fault.
        meaning, remedy: for people.
    """

    exit_code: ExitCode
    status: int
    meaning: str
    remedy: str


CATALOGUE: Final[dict[str, Entry]] = {
    # what was asked for
    "usage": Entry(
        ExitCode.USAGE, 400, "The request or command line makes no sense as written.", "See --help of the command."
    ),
    "invalid_request": Entry(
        ExitCode.USAGE,
        400,
        "What was asked for cannot be done; nothing was changed.",
        "The message names the part that is wrong, and what was expected.",
    ),
    "bad_encoding": Entry(
        ExitCode.USAGE, 400, "Bytes or text are not in the one accepted encoding.", "Copy them again, whole."
    ),
    "bad_signature": Entry(
        ExitCode.FAILURE,
        400,
        "A signature does not verify, or a key does not belong to the id it is used for.",
        "Ask whoever wrote it for a fresh copy; do not use this one.",
    ),
    "bad_arguments": Entry(
        ExitCode.USAGE, 400, "The arguments of a tool are not as its schema says.", "See the schema of the tool."
    ),
    "limit_exceeded": Entry(
        ExitCode.FAILURE, 413, "A named bound was reached.", "The message names the bound; ask for less at a time."
    ),
    "bad_configuration": Entry(
        ExitCode.BAD_CONFIGURATION,
        400,
        "A key or value of the settings is wrong.",
        "The message names file and line; `converge-node config validate` checks again.",
    ),
    "unknown_model": Entry(
        ExitCode.FAILURE,
        400,
        "A pool names a governance model that is not registered on this node.",
        "Register it under `governance.models` of the settings, and start the node again.",
    ),
    "unknown_admission": Entry(
        ExitCode.FAILURE,
        400,
        "A pool names an admission rule that is not registered on this node.",
        "Register it under `admission.rules` of the settings, and start the node again.",
    ),
    # who may
    "not_authorised": Entry(
        ExitCode.NOT_AUTHORISED,
        403,
        "This agent may not do that.",
        "`converge-node pool show` says who may: members, electors, the submitter of a task.",
    ),
    "not_authenticated": Entry(
        ExitCode.NOT_AUTHORISED,
        401,
        "The control interface was asked over TCP without a token that it knows.",
        "Make one on the node's machine with `converge-node api token new`, and put it into CONVERGE_NODE_TOKEN.",
    ),
    "scope_too_small": Entry(
        ExitCode.NOT_AUTHORISED,
        403,
        "The token does not allow that.",
        "Make one with a larger scope: `converge-node api token new NAME --scope write`, or admin.",
    ),
    "socket_forbidden": Entry(
        ExitCode.NOT_AUTHORISED,
        403,
        "The control socket is there, and this user may not open it.",
        "Run the command as the user of the node, or use a token over TCP.",
    ),
    # what there is
    "not_found": Entry(
        ExitCode.NOT_FOUND,
        404,
        "The pool, task, agent, topic or key that was named is not known here.",
        "List what is known: `pool ls`, `task ls POOL`, `agent ls`, `topic ls`.",
    ),
    "conflict": Entry(
        ExitCode.CONFLICT,
        409,
        "It contradicts what is settled, or a name or prefix means several things.",
        "Give more digits of the id, or another name.",
    ),
    "already_running": Entry(
        ExitCode.CONFLICT,
        409,
        "Another process holds the lock of this home.",
        "Use that node, stop it with `converge-node shutdown`, or give this one another --home.",
    ),
    "no_content_key": Entry(
        ExitCode.FAILURE,
        409,
        "The content key of a private pool is not here (yet), so nothing can be sealed or opened.",
        "Wait until an elector handed one out; `pool show` says whether the node is a member.",
    ),
    "undecided": Entry(
        ExitCode.CONFLICT,
        409,
        "The electors of the pool have not agreed to it yet; the motion stands.",
        "Ask the electors to vote (`converge-node pool motions`, `pool vote`), then repeat the request: it goes on.",
    ),
    "own_chain_unsure": Entry(
        ExitCode.FAILURE,
        409,
        "The store may be an old copy, so nothing is signed until others said how far the own operations go.",
        "Connect the node to electors of the pool, and wait. See docs/operations.md, back-up.",
    ),
    "claim_lost": Entry(
        ExitCode.FAILURE,
        409,
        "The claim is no longer held, so a result cannot be reported in its round.",
        "Let the work be shorter than the claim's time, or pass a longer one when the task is submitted.",
    ),
    # the node and its network
    "node_unreachable": Entry(
        ExitCode.UNREACHABLE,
        503,
        "No node answers at the control interface.",
        "Start one with `converge-node`, or name its folder with --home; `converge-node doctor` looks further.",
    ),
    "not_ready": Entry(
        ExitCode.UNREACHABLE,
        503,
        "The node runs, but is still starting or already stopping.",
        "Wait for `converge-node health --ready`.",
    ),
    "busy": Entry(
        ExitCode.FAILURE, 429, "The control interface serves as many requests or streams as it may.", "Try again later."
    ),
    "timeout": Entry(
        ExitCode.TIMEOUT, 504, "What was waited for did not happen in time.", "Wait longer with --timeout, or look why."
    ),
    "network_error": Entry(
        ExitCode.NO_PEER,
        502,
        "A peer cannot be reached, or an address cannot be listened on.",
        "`converge-node doctor` looks at ports, peers and relays.",
    ),
    "remote_violation": Entry(
        ExitCode.FAILURE,
        502,
        "A peer broke the protocol.",
        "Nothing here: the peer is counted and, if it goes on, banned. `status` shows the counters.",
    ),
    "store_error": Entry(
        ExitCode.STORE,
        500,
        "The store is damaged, locked, full, or of another schema version.",
        "`converge-node store verify` looks; see docs/operations.md, back-up. Delete nothing before you have a copy.",
    ),
    "store_full": Entry(
        ExitCode.FAILURE,
        507,
        "The database holds as much as `store.max_bytes` allows, so the node begins nothing more of its own.",
        "Leave pools that are no longer needed, or give it more. See docs/operations.md, room on the disk.",
    ),
    # tasks and agents
    "task_failed": Entry(
        ExitCode.TASK_NOT_COMPLETED, 409, "The task was settled as failed.", "`task show` says with what reason."
    ),
    "task_cancelled": Entry(
        ExitCode.TASK_NOT_COMPLETED, 409, "The task was settled as cancelled by its submitter.", "Submit it again."
    ),
    "permanent_failure": Entry(
        ExitCode.FAILURE, 500, "A handler said that the task can never succeed.", "Change its inputs."
    ),
    "tool_failed": Entry(ExitCode.FAILURE, 500, "A tool raised an error.", "See the message, and the agent's log."),
    "tool_timeout": Entry(
        ExitCode.FAILURE, 500, "A tool did not end within its time limit.", "Give it more time, or less to do."
    ),
    "tool_isolation": Entry(
        ExitCode.FAILURE,
        500,
        "An untrusted tool cannot be isolated on this machine.",
        "See docs/tools.md for what the kernel has to offer.",
    ),
    "bad_answer": Entry(
        ExitCode.FAILURE, 500, "A language model answered in another form, again and again.", "Try another model."
    ),
    "llm_error": Entry(
        ExitCode.FAILURE, 500, "A language model refused the request.", "The message holds what its provider says."
    ),
    "llm_unavailable": Entry(
        ExitCode.FAILURE, 500, "A language model cannot be reached.", "Look at its address and its state."
    ),
    "llm_rate_limited": Entry(
        ExitCode.FAILURE, 500, "A language model was asked too often.", "Wait, or ask for a higher quota."
    ),
    "error": Entry(ExitCode.FAILURE, 500, "A defect of this program.", "Please report it, with the log of the node."),
}


def http_status_of(code: str) -> int:
    """Return the HTTP status for a code; an unknown one is the node's own failure."""
    known = CATALOGUE.get(code)
    return 500 if known is None else known.status


def http_statuses() -> dict[int, list[str]]:
    """Return the codes that stand behind each HTTP status of an error."""
    found: dict[int, list[str]] = {}
    for code, entry in CATALOGUE.items():
        found.setdefault(entry.status, []).append(code)
    return found
