"""Commands about evidence: task cite, evidence.

Knows: the client and the schema. Must not know: how electors weigh it.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO

import click

from converge_node.cli.client import connect
from converge_node.cli.output import short, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import UsageError
from converge_p2p.client import schema

_CHUNK = 1 << 20


@click.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@click.argument("file", metavar="[FILE]", required=False, type=click.File("rb"))
@click.option("--digest", default="", metavar="SHA256", help="Instead of a file: the hash of the content.")
@click.option("--size", type=click.IntRange(0), metavar="N", help="With --digest: how many bytes the content has.")
@click.option("--value", default="", metavar="HASH", help="Which result, if there are several: see `task show`.")
@click.option("--against", is_flag=True, help="It speaks against the result, not for it.")
@click.option("--media", default="application/octet-stream", show_default=True, help="What kind of content it is.")
@click.option("--summary", default="", metavar="TEXT", help="For people.")
@apply_shared
@pass_invocation
def cite(
    invocation: Invocation,
    /,
    pool: str,
    reference: str,
    *,
    file: BinaryIO | None,
    digest: str,
    size: int | None,
    value: str,
    against: bool,
    media: str,
    summary: str,
) -> None:
    """Say that a content speaks for a result of TASK, or against it. FILE is only hashed, and sent to nobody."""
    if (file is None) == (not digest):
        raise UsageError("give a file, or the digest of a content", hint="- is standard input")
    if file is not None:
        digest, size = _hash(file)
    body = schema.CiteEvidence(
        digest=digest, size=size or 0, value=value, supports=not against, media=media, summary=summary
    )
    items = connect(invocation).cite(pool, reference, body)
    _show(invocation, items)


@click.command
@click.argument("pool")
@click.argument("reference", metavar="TASK")
@apply_shared
@pass_invocation
def evidence(invocation: Invocation, pool: str, reference: str) -> None:
    """List what was cited for and against the results of TASK."""
    _show(
        invocation,
        connect(invocation).evidence(pool, reference),
    )


def _show(invocation: Invocation, items: list[schema.EvidenceItem]) -> None:
    rows = [
        (
            short(item.id),
            "for" if item.supports else "against",
            short(item.value),
            short(item.author),
            str(item.weight),
            item.media,
            item.digest,
            item.summary,
        )
        for item in items
    ]
    columns = ("EVIDENCE", "SPEAKS", "RESULT", "AUTHOR", "WEIGHT", "MEDIA", "SHA-256", "SUMMARY")
    show(
        invocation,
        items,
        ids=lambda: [item.id for item in items],
        text=lambda: table(columns, rows, empty="no evidence was cited"),
    )


def _hash(file: BinaryIO) -> tuple[str, int]:
    hashed, size = hashlib.sha256(), 0
    try:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
            size += len(chunk)
    except OSError as error:
        raise UsageError(f"cannot read the file: {error.strerror}") from error
    return hashed.hexdigest(), size
