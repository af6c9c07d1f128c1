"""Commands about tasks: submit, ls, show, result, watch, cancel, veto, pass, judge; others stand in files of their own.

Knows: the client and the schema. Must not know: claims and votes.
"""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from converge_node.cli.blob import file_inputs, write_value
from converge_node.cli.client import connect
from converge_node.cli.evidence import cite, evidence
from converge_node.cli.explain import explain, receipt
from converge_node.cli.motions import dispute
from converge_node.cli.output import clean, facts, print_json, short, show, table
from converge_node.cli.tree import SECONDS, Invocation, apply_shared, pass_invocation
from converge_node.cli.work import claim, release, report
from converge_node.errors import ExitCode, UsageError
from converge_node.snapshot import worker_of
from converge_p2p.client import Client, Refused, schema
from converge_p2p.client.queries import State, TaskQuery, WatchQuery
from converge_p2p.core import limits

HOME_POOL = "-"
_SETTLED = ("completed", "failed", "cancelled")


@click.group
def task() -> None:
    """Submit, list, show, explain, cancel, veto and judge tasks. TASK is an id, or its first digits (six or more)."""


for _command in (dispute, cite, evidence, explain, receipt, claim, release, report):
    task.add_command(_command)


@task.command
@click.argument("pool")
@click.argument("objective")
@click.option("--input", "pairs", multiple=True, metavar="K=V", help="An input: K=text, or K:=JSON. Repeatable.")
@click.option("--inputs-json", metavar="FILE", help="All inputs as a JSON map from a file; - is standard input.")
@click.option(
    "--input-file",
    "files",
    multiple=True,
    metavar="K=FILE",
    help="An input: the bytes of a file, as a blob if large.",
)
@click.option("--key", help="Submitting twice with one key is submitting once.")
@click.option("--wait", is_flag=True, help="Wait until it is settled; exit code 11 if it failed or was cancelled.")
@click.option("--timeout", type=SECONDS, metavar="S", help="With --wait: wait at most so many seconds (exit code 8).")
@click.option("--priority", type=int, default=0, metavar="N", help="Higher is done first.")
@click.option("--claim-ttl", type=float, metavar="S", help="Seconds a claim stands without a result.")
@click.option("--max-retries", type=int, metavar="N", help="Failures and expiries before the task fails.")
@click.option("--attempt-timeout", type=float, metavar="S", help="Seconds that one attempt may work.")
@click.option("--require", "required", multiple=True, metavar="CAP", help="What a worker must be able to do.")
@click.option("--topic", default="", metavar="T", help="What it is about. A home pool is announced on it.")
@click.option(
    "--evaluator", default="", metavar="E", help="Who judges results: agent:<agent id or public key>, or rule:<name>."
)
@apply_shared
@pass_invocation
def submit(
    invocation: Invocation,
    /,
    pool: str,
    objective: str,
    *,
    pairs: tuple[str, ...],
    inputs_json: str | None,
    files: tuple[str, ...],
    wait: bool,
    timeout: float | None,
    **given: Any,
) -> int:
    """Submit a task to POOL; handlers of OBJECTIVE do it. POOL - is this node's home pool, founded on first use."""
    if timeout is not None and not wait:
        raise UsageError("--timeout bounds the waiting, so it needs --wait", hint="--attempt-timeout bounds the work")
    client = connect(invocation)
    body = schema.SubmitTask(
        objective=objective,
        inputs=_inputs(pairs, inputs_json) | file_inputs(client, files),
        key=given["key"],
        required_capabilities=sorted(set(given["required"])),
        priority=given["priority"],
        claim_ttl_s=given["claim_ttl"],
        max_retries=given["max_retries"],
        attempt_timeout_s=given["attempt_timeout"],
        evaluator=given["evaluator"],
        topic=given["topic"],
    )
    item = client.submit_home(body) if pool == HOME_POOL else client.submit(pool, body)
    if wait and item.state not in _SETTLED:
        item = _settled(client, item, timeout)
    show(invocation, item, ids=lambda: [item.id], text=lambda: task_text(item))
    return _outcome(item) if wait else ExitCode.OK


@task.command("ls")
@click.argument("pool")
@click.option("--state", type=click.Choice(["pending", "assigned", *_SETTLED]), help="Only tasks in this state.")
@click.option("--objective", help="Only tasks of this objective.")
@click.option("--limit", type=click.IntRange(1, schema.TASK_LIST_MAX), default=100, show_default=True)
@click.option("--offset", type=click.IntRange(0), default=0)
@apply_shared
@pass_invocation
def task_list(
    invocation: Invocation, pool: str, *, state: State | None, objective: str | None, limit: int, offset: int
) -> None:
    """List the tasks of POOL."""
    query = TaskQuery(state=state, objective=objective, limit=limit, offset=offset)
    found = connect(invocation).tasks(pool, query)

    def text() -> str:
        rows = [
            (short(item.id), item.objective, _state(item), short(worker_of(item)), item.key) for item in found.tasks
        ]
        shown = table(("TASK", "OBJECTIVE", "STATE", "WORKER", "KEY"), rows, empty="no task matches")
        more = found.total - offset - len(found.tasks)
        return shown + (f"\n… and {more} more: --offset {offset + len(found.tasks)}" if more > 0 else "")

    show(invocation, found, ids=lambda: [item.id for item in found.tasks], text=text)


@task.command("show")
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@apply_shared
@pass_invocation
def task_show(invocation: Invocation, pool: str, reference: str) -> None:
    """Show a task with its inputs and result."""
    item = connect(invocation).task(pool, reference)
    show(invocation, item, ids=lambda: [item.id], text=lambda: task_text(item))


@task.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; without it, to standard output.")
@click.option("--timeout", type=SECONDS, metavar="S", help="Wait at most so many seconds for its end (exit code 8).")
@apply_shared
@pass_invocation
def result(invocation: Invocation, pool: str, reference: str, *, output: str | None, timeout: float | None) -> int:
    """Wait until TASK is settled, and write its result: bytes and texts as they are, anything else as JSON."""
    client = connect(invocation)
    item = client.task(pool, reference)
    if item.state not in _SETTLED:
        item = _settled(client, item, timeout)
    if item.state == "completed":
        item = client.result(item.pool, item.id)
    if output is None and (invocation.json or invocation.quiet):
        show(invocation, item, ids=lambda: [item.id], text=lambda: "")
    elif item.state == "completed":
        write_value(client, item.result, output, item.pool)
    else:
        print(f"{item.state}: {clean(item.reason)}", file=sys.stderr)
    return _outcome(item)


@task.command
@click.argument("pool")
@click.argument("reference", metavar="[TASK]", required=False)
@click.option("--timeout", type=SECONDS, metavar="S", help="Stop after so many seconds (exit code 8).")
@apply_shared
@pass_invocation
def watch(invocation: Invocation, pool: str, reference: str | None, *, timeout: float | None) -> int:
    """Print every change of a pool's tasks, or of one TASK until it is settled."""
    query = WatchQuery(timeout_s=timeout)
    client = connect(invocation)
    if reference is None:
        for item in client.watch_pool(pool, query):
            _print_change(invocation, item)
        return ExitCode.OK
    last: schema.TaskDetail | None = None
    for last in client.watch_task(pool, reference, query):
        _print_change(invocation, last)
    return ExitCode.FAILURE if last is None else _outcome(last)


@task.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.option("--reason", default="", help="For people.")
@apply_shared
@pass_invocation
def cancel(invocation: Invocation, pool: str, reference: str, *, reason: str) -> None:
    """Cancel a task that this node submitted. It is settled when the pool's electors confirm it."""
    _show(invocation, connect(invocation).cancel(pool, reference, schema.CancelTask(reason=reason)))


@task.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.option("--reason", default="", help="For people.")
@apply_shared
@pass_invocation
def veto(invocation: Invocation, pool: str, reference: str, *, reason: str) -> None:
    """Deny the result that a task was settled on, as a vetoer of the pool. It counts if electors hear it in time."""
    _show(invocation, connect(invocation).veto(pool, reference, schema.VetoTask(reason=reason)))


@task.command("pass")
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.option("--reason", default="", help="For people.")
@apply_shared
@pass_invocation
def let_pass(invocation: Invocation, pool: str, reference: str, *, reason: str) -> None:
    """Let the result pass that a task was settled on, as a vetoer of the pool: nobody waits for this one any longer."""
    _show(invocation, connect(invocation).let_pass(pool, reference, schema.VetoTask(reason=reason)))


@task.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.argument("verdict", type=click.Choice(["approve", "deny"]))
@click.option("--reason", default="", help="For people.")
@click.option("--value", default="", metavar="HASH", help="Which result, if several wait: see `task show`.")
@apply_shared
@pass_invocation
def judge(invocation: Invocation, pool: str, reference: str, verdict: str, *, reason: str, value: str) -> None:
    """Approve or deny the result that was reported, as the task's evaluator. An approval is never taken back."""
    body = schema.JudgeTask(approve=verdict == "approve", reason=reason, value=value)
    _show(invocation, connect(invocation).judge(pool, reference, body))


def _show(invocation: Invocation, item: schema.TaskDetail) -> None:
    show(invocation, item, ids=lambda: [item.id], text=lambda: task_text(item))


def task_text(item: schema.TaskDetail) -> str:
    """Return a task as a person reads it."""
    pairs: list[tuple[str, object]] = [
        ("task", item.id),
        ("pool", item.pool),
        ("objective", item.objective),
        ("state", _state(item)),
        ("key", item.key),
        ("submitter", item.submitter),
        ("worker", worker_of(item) or "none"),
        ("claim", f"epoch {item.epoch}, round {item.round}" if item.round >= 0 else "none"),
        ("progress", _progress(item) or "none"),
        ("attempts", item.attempts),
        ("inputs", _json(item.inputs)),
    ]
    if item.evaluator:
        pairs.append(("evaluator", item.evaluator))
    pairs.extend((f"to judge, by {short(each.by)}", f"{_json(each.result)}  {each.value}") for each in item.unjudged)
    pairs.extend((f"reported by {short(each.by)}", f"{_json(each.result)}  {each.value}") for each in item.reported)
    if item.awaits_veto:
        pairs.append(("awaits its vetoers", _json(item.awaiting)))
    if item.state == "completed":
        pairs.append(("result", _json(item.result)))
    elif item.state in _SETTLED:
        pairs += [("settled by", item.settled_by or "none"), ("reason", item.reason)]
        if item.state == "failed":
            pairs.append(("each attempt", f"`converge-node task explain {item.pool[:12]} {item.id[:12]}`"))
    return facts(pairs)


def _settled(client: Client, item: schema.TaskDetail, timeout: float | None) -> schema.TaskDetail:
    """Return the task once it is settled.

    Raises:
        Refused: with the code `timeout` after `timeout` seconds, or `not_ready` when the node stops.
    """
    query = WatchQuery(timeout_s=timeout)
    # whoever submitted it has not seen its id yet
    later = f"`converge-node task watch {short(item.pool)} {short(item.id)}` waits on, `task cancel` gives up"
    try:
        for change in client.watch_task(item.pool, item.id, query):
            item = change
    except Refused as refused:
        raise Refused(refused.code, f"task {item.id} is not settled yet: {refused}", hint=later) from refused
    except KeyboardInterrupt:
        print(f"task {item.id} is not settled yet\nhint:  {later}", file=sys.stderr)
        raise
    return item


def _outcome(item: schema.TaskItem) -> ExitCode:
    return ExitCode.OK if item.state == "completed" else ExitCode.TASK_NOT_COMPLETED


def _print_change(invocation: Invocation, item: schema.TaskItem) -> None:
    if invocation.json:
        print_json(schema.success(item))
    elif invocation.quiet:
        print(item.id, flush=True)
    else:
        words = (short(item.id), _state(item), item.objective, short(worker_of(item)), _progress(item), item.reason)
        print("  ".join(clean(word) for word in words if word), flush=True)


def _progress(item: schema.TaskItem) -> str:
    """What the worker says of its work, or nothing."""
    return "" if item.progress is None else f"{item.progress:.0%} {item.note}".rstrip()


def _state(item: schema.TaskItem) -> str:
    if item.awaits_verdict:
        return f"{item.state} (awaits a verdict)"
    if item.awaits_veto:
        return f"{item.state} (awaits its vetoers)"
    return item.state if item.certified or item.state == "pending" else f"{item.state} (tentative)"


def _inputs(pairs: tuple[str, ...], file: str | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    if file is not None:
        try:
            with click.open_file(file, "rb") as handle:
                # one byte more than is allowed shows that there is too much, without reading all of it
                data = handle.read(limits.CONTROL_REQUEST_BYTES_MAX + 1)
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from error
        if len(data) > limits.CONTROL_REQUEST_BYTES_MAX:
            raise UsageError(f"{file} has more than {limits.CONTROL_REQUEST_BYTES_MAX} bytes")
        try:
            inputs = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"{file} is not a JSON map: {error}") from error
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.removesuffix(":"):
            raise UsageError(f"input {pair!r} is not K=text or K:=JSON")
        if not name.endswith(":"):
            # what the shell passed as undecodable bytes cannot be sent as JSON text
            inputs[name] = value.encode(sys.getfilesystemencoding(), "surrogateescape").decode("utf-8", "replace")
            continue
        try:
            inputs[name[:-1]] = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"input {name[:-1]!r} is not JSON: {error}", hint="text is given as K=text") from error
    return inputs


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
