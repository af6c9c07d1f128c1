"""Commands about blobs: put, get, ls, rm; and what commands about tasks need of them.

Knows: the client and the schema. Must not know: who may have a blob.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import click
import msgspec

from converge_node.cli.client import connect
from converge_node.cli.output import facts, short, show, table
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import UsageError
from converge_p2p.client.blob_schema import BlobItem, PutItem, RemoveBlob
from converge_p2p.client.queries import ContentQuery, PutQuery
from converge_p2p.client.sync import Client

INLINE_BYTES_MAX: Final = 16 * 1024
"""A file that is not larger goes into the task as it is."""
# in a pool that is not private the key stands beside it in clear, and does no harm
_INPUT: Final = PutQuery(sealed=True, form="bytes", hold="kept")


@click.group
def blob() -> None:
    """Keep contents that are too large for a task, and fetch them. REF is what `blob put` prints."""


@blob.command
@click.argument("file", type=click.File("rb"))
@click.option("--sealed", is_flag=True, help="Give others ciphertext; the key stands in the reference.")
@apply_shared
@pass_invocation
def put(invocation: Invocation, file: IO[bytes], *, sealed: bool) -> None:
    """Keep the content of FILE, and print the reference that others fetch it with. FILE - is standard input."""
    item = upload(connect(invocation), file, PutQuery(sealed=sealed))
    pairs = [("reference", item.reference), ("blob", item.id), ("bytes", item.size)]
    show(invocation, item, ids=lambda: [item.reference], text=lambda: facts(pairs))


@blob.command
@click.argument("reference", metavar="REF")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; without it, to standard output.")
@click.option("--pool", metavar="POOL", help="Ask the connected members of this pool, too.")
@apply_shared
@pass_invocation
def get(invocation: Invocation, reference: str, *, output: str | None, pool: str | None) -> None:
    """Fetch a content: from its maker, and, if it is sealed, from whoever is connected and has it."""
    download(connect(invocation), reference, output, pool)


@blob.command
@apply_shared
@pass_invocation
def ls(invocation: Invocation) -> None:
    """List the blobs that this node keeps, the one used last first."""
    items = connect(invocation).blobs()
    rows = [(short(item.id), item.hold, item.size, _share(item), item.used_at) for item in items]
    columns = ("BLOB", "HELD AS", "BYTES", "HERE", "USED")
    show(
        invocation,
        items,
        ids=lambda: [item.id for item in items],
        text=lambda: table(columns, rows, empty="no blob is kept here"),
    )


@blob.command
@click.argument("name", metavar="BLOB")
@apply_shared
@pass_invocation
def rm(invocation: Invocation, name: str) -> None:
    """Keep a blob no longer. BLOB is an id, its first digits (six or more), or a reference."""
    item = connect(invocation).remove_blob(RemoveBlob(blob=name))
    show(invocation, item, ids=lambda: [item.id], text=lambda: f"removed {short(item.id)}")


def _share(item: BlobItem) -> str:
    return f"{100 * item.held_bytes // item.size if item.size else 100} %"


def upload(client: Client, file: IO[bytes], query: PutQuery) -> PutItem:
    """Let the node keep the content of an open file."""
    try:
        with tempfile.TemporaryFile() as spool:
            source: IO[bytes] = file
            if not file.seekable():
                # how long a pipe is shows at its end only
                shutil.copyfileobj(file, spool)
                source = spool
            source.seek(0)
            return client.put_blob(source, query)
    except OSError as error:
        raise UsageError(f"cannot read the file: {error.strerror}") from error


def download(client: Client, reference: str, output: str | None, pool: str | None = None) -> None:
    """Write a content to a file, or to standard output."""
    with open_target(output) as file:
        client.blob(ContentQuery(reference=reference, pool=pool), file)


def write_value(client: Client, value: Any, output: str | None, pool: str) -> None:
    """Write a user's value, as JSON shows it: bytes, texts and blobs as they are, anything else as JSON."""
    match value:
        case {"$blob": str() as reference} if len(value) == 1:
            download(client, reference, output, pool)
            return
        case {"$bytes": str() as coded} if len(value) == 1:
            data = base64.b64decode(coded)
        case str():
            data = value.encode()
        case _:
            data = msgspec.json.encode(value)
    with open_target(output) as file:
        file.write(data)
        if output is None and not (isinstance(value, dict) and "$bytes" in value):
            file.write(b"\n")


def file_inputs(client: Client, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return the inputs that files give, K=FILE: small ones as they are, others as sealed blobs.

    Raises:
        UsageError: a pair of another form, or a file that cannot be read.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"input {pair!r} is not K=FILE")
        try:
            with open(path, "rb") as file:
                data = file.read(INLINE_BYTES_MAX + 1)
                if len(data) <= INLINE_BYTES_MAX:
                    found[name] = {"$bytes": base64.b64encode(data).decode()}
                else:
                    found[name] = {"$blob": upload(client, file, _INPUT).reference}
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return found


@contextmanager
def open_target(output: str | None) -> Iterator[IO[bytes]]:
    """A file that appears when it is whole, or standard output."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=".blob-", delete=False) as file:
            try:
                yield file
            except BaseException:
                os.unlink(file.name)
                raise
        os.replace(file.name, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
