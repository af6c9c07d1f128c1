"""Commands about a task's record: task explain, task receipt.

Knows: the client and the schema. Must not know: how votes are counted.
Source: docs/receipts.md.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator

import click

from converge_node.cli.blob import open_target
from converge_node.cli.client import connect
from converge_node.cli.output import clean, facts, short, show
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_p2p.client.explain_schema import CertificateItem, ExplanationItem, SignatureItem, StepItem


@click.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@apply_shared
@pass_invocation
def explain(invocation: Invocation, pool: str, reference: str) -> None:
    """Tell who submitted, claimed and won TASK, by which rule, and whose signatures decided."""
    item = connect(invocation).explain(pool, reference)
    show(invocation, item, ids=lambda: [item.id], text=lambda: explanation_text(item))


@click.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.option("-o", "--output", metavar="FILE", required=True, help="Where to write it.")
@apply_shared
@pass_invocation
def receipt(invocation: Invocation, pool: str, reference: str, *, output: str) -> None:
    """Write a proof of how TASK was settled, for anybody who knows the pool's id. It verifies offline."""
    from converge_node.cli.receipt import read_receipt

    invocation.about_to(f"write the receipt of task {reference} to {output}")
    content = io.BytesIO()
    connect(invocation).receipt(pool, reference, content)
    # a node that is wrong or lies is found out here, not by whoever gets the file
    proof, _ = read_receipt(content.getvalue())
    with open_target(output) as file:
        file.write(content.getvalue())
    written = {
        "file": output,
        "pool": proof.pool.hex(),
        "task": proof.task.hex(),
        "bytes": len(content.getvalue()),
        "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
    }
    pairs = [*written.items(), ("verify", f"converge-node receipt verify {output} --pool {proof.pool.hex()}")]
    show(invocation, written, ids=lambda: [proof.task.hex()], text=lambda: facts(pairs))


def explanation_text(item: ExplanationItem) -> str:
    """Return an explanation as a person reads it."""
    return "\n\n".join(_sections(item))


def _sections(item: ExplanationItem) -> Iterator[str]:
    yield facts(_ending(item))
    if item.steps:
        lines = [f"{step.at}  {short(step.agent_id)}  {clean(step.text)}{_doubts(step)}" for step in item.steps]
        yield "Timeline (by the clocks of those who signed, which decide nothing)\n" + _indented(lines)
    if item.left_out:
        yield f"… and {item.left_out} more steps"
    if item.certificates:
        yield "Votes (every signature was verified now, unless it is marked)\n" + _indented(
            _certificate(each) for each in item.certificates
        )
    for each in item.terms:
        signed = f"; certified by {_signers(each.certified_by)}" if each.certified_by else ""
        yield f"Terms of epoch {each.epoch} ({each.governance})\n  {clean(each.decided_by)}{signed}"
    if item.disputes:
        told = [
            f"{short(each.id)}  {each.state}{f' ({short(each.decided)})' if each.decided else ''}: "
            f"{clean(', '.join(each.asks))}{f' – {clean(each.reason)}' if each.reason else ''}; "
            f"{len(each.opinions)} answers"
            for each in item.disputes
        ]
        yield "Disputes\n" + _indented(told)
    said = item.renewed
    if said is not None:
        words = f"{said.at}  {short(said.agent_id)} in round {said.round}: {said.progress:.0%} {clean(said.note)}"
        yield "Last renewal heard here (gossip, proves nothing)\n  " + words.rstrip()
    if item.tentative:
        yield "Tentative\n" + _indented(each.text for each in item.tentative)


def _ending(item: ExplanationItem) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = [("task", item.id), ("pool", item.pool)]
    if item.task is not None:
        pairs += [("objective", item.task.objective), ("key", item.task.key)]
    certain = "for ever" if item.final and not item.tentative else "see below what is tentative"
    pairs += [("state", f"{item.state} ({certain})"), ("submitted by", item.submitter or "nobody known here")]
    deciding = next((each for each in item.certificates if each.decides and not each.on_veto), None)
    if deciding is not None:
        ended = "won by" if item.state == "completed" else "reported by"
        rule = f": {deciding.rule}" if deciding.rule else ""
        pairs += [
            (ended, item.worker),
            ("decided", f"in epoch {deciding.epoch}, round {deciding.round}{rule}"),
            ("signed by", _signers(deciding.signatures)),
        ]
    elif item.task is not None and item.task.assigned_to:
        pairs.append(("held by", f"{item.task.assigned_to} in epoch {item.task.epoch}, round {item.task.round}"))
    if item.task is not None and item.task.reason:
        pairs.append(("reason", item.task.reason))
    return pairs


def _certificate(each: CertificateItem) -> str:
    what = short(each.value)
    if each.decision == "claim":
        unknown = "for a claim that is not here" if each.claim else "for several"
        what = f"for {short(each.holder)}" if each.holder else unknown
    where = f"epoch {each.epoch}, round {each.round}{' (veto)' if each.on_veto else ''}"
    end = "decides" if each.decides else "enough" if each.complete else "not enough"
    rule = f", needed: {each.rule}" if each.rule else ""
    missing = f"; not by {', '.join(map(short, each.missing))}" if each.missing else ""
    return clean(f"{where}  {each.decision} {what}: {end}{rule}; signed by {_signers(each.signatures)}{missing}")


def _signers(signatures: Iterable[SignatureItem]) -> str:
    """Who signed; a signature that was not found to hold is marked."""
    named = (
        f"{short(each.agent_id)}{'' if each.verified else ' (PRUNED)' if not each.operation else ' (DOES NOT VERIFY)'}"
        for each in signatures
    )
    return ", ".join(named) or "nobody"


def _doubts(step: StepItem) -> str:
    doubts = {"has no effect": not step.counts, "SIGNATURE DOES NOT VERIFY": not step.verified, "sealed": step.sealed}
    said = ", ".join(text for text, true in doubts.items() if true)
    return f"  [{said}]" if said else ""


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
