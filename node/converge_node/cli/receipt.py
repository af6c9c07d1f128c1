"""Commands about receipts that need no node: receipt verify.

Knows: the proof of the library. Must not know: a node, or the network.
Source: docs/receipts.md. `scripts/verify_receipt.py` is a second implementation, for those who trust this one not.
"""

from __future__ import annotations

import hashlib
from typing import Any

import click

from converge_node.cli.output import clean, facts, short, show
from converge_node.cli.tree import Invocation, apply_shared, pass_invocation
from converge_node.errors import UsageError
from converge_p2p.client.explain_schema import ReceiptItem
from converge_p2p.client.json_values import to_json_value
from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import CodecError, ConvergeError, SignatureError
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.view.receipt import Proven, Receipt

_POOL_DIGITS = 64


@click.group
def receipt() -> None:
    """Verify receipts, offline. `task receipt` writes them."""


@receipt.command
@click.argument("file")
@click.option("--pool", metavar="ID", help="The pool's id, from a source that you trust: it has to be that pool.")
@click.option("--strict", is_flag=True, help="Refuse it if its terms are provisional, too.")
@apply_shared
@pass_invocation
def verify(invocation: Invocation, file: str, *, pool: str | None, strict: bool) -> None:
    """Verify a receipt: exit code 0 if it holds, 1 if it does not. No node is asked."""
    wanted = None if pool is None else _pool_id(pool)
    item = receipt_item(file, *read_receipt(_content(file)), wanted)
    if strict and any(each.provisional for each in item.terms):
        raise SignatureError(item.warnings[0], hint="without --strict the receipt holds, with a warning")
    show(invocation, item, ids=lambda: [item.task], text=lambda: _text(item))


def read_receipt(data: bytes) -> tuple[Receipt, Proven]:
    """Read a receipt and check its proof.

    Raises:
        SignatureError: it is none, or it does not hold.
    """
    try:
        proof = Receipt.from_bytes(data)
    except CodecError as error:
        raise SignatureError(f"not a receipt, or a damaged one: {error}") from error
    return proof, proof.prove()


def receipt_item(file: str, proof: Receipt, proven: Proven, pool: bytes | None) -> ReceiptItem:
    """Return what a receipt proves.

    Raises:
        SignatureError: it is of another pool.
    """
    from converge_node.control.terms import terms_item

    if pool not in (None, proof.pool):
        raise SignatureError(
            f"the receipt is of pool {proof.pool.hex()}, and not of the one that was named",
            hint="compare the ids; whoever founds a pool can prove anything in it",
        )
    terms = proven.terms
    warnings = [
        f"the terms of epoch {number} are provisional: two sets of electors could decide differently"
        for number, (_, rules) in enumerate(terms)
        if rules.provisional
    ]
    if pool is None:
        warnings.append("the pool was not compared: give its id from a source that you trust with --pool")
    value = proof.value
    return ReceiptItem(
        file=file,
        pool=proof.pool.hex(),
        pool_name=terms[0].spec.name,
        pool_compared=pool is not None,
        task=proof.task.hex(),
        outcome=value.outcome.name.lower(),
        worker=str(fingerprint(value.worker)),
        sha256=hashlib.sha256(value.result).hexdigest(),
        bytes=len(value.result),
        result=_shown(value.result),
        epoch=proven.epoch,
        signers=[str(fingerprint(key)) for key in proven.signers],
        terms=[terms_item(number, spec, rules) for number, (spec, rules) in enumerate(terms)],
        warnings=warnings,
    )


def _shown(result: bytes) -> Any:
    """The result as JSON; nothing if it is sealed, or of another form."""
    try:
        return to_json_value(decode_value(result))
    except ConvergeError:
        return None


def _content(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            data = opened.read(limits.RECEIPT_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > limits.RECEIPT_BYTES_MAX:
        raise UsageError(f"{file} has more than {limits.RECEIPT_BYTES_MAX} bytes")
    return data


def _pool_id(text: str) -> bytes:
    if len(text) != _POOL_DIGITS or set(text.lower()) - set("0123456789abcdef"):
        raise UsageError(
            f"{text!r} is not a pool's id", hint=f"it has {_POOL_DIGITS} hexadecimal digits; see `pool ls`"
        )
    return bytes.fromhex(text)


def _text(item: ReceiptItem) -> str:
    pairs: list[tuple[str, object]] = [
        ("holds", "yes"),
        ("pool", f"{item.pool} ({item.pool_name})"),
        ("task", item.task),
        ("outcome", item.outcome),
        ("worker", item.worker),
        ("result", f"{item.bytes} bytes, SHA-256 {item.sha256}"),
        ("settled in", f"epoch {item.epoch}"),
        ("signed by", ", ".join(map(short, item.signers))),
        *((f"terms of {each.epoch}", f"{each.governance}, {each.decided_by}") for each in item.terms),
    ]
    return "\n".join([facts(pairs), *(f"WARNING: {clean(text)}" for text in item.warnings)])
