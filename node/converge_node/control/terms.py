"""The terms of an epoch, and who certified them, as the schema shows them.

Knows: the schema. Must not know: HTTP, or a node: a receipt is verified without one.
Source: docs/receipts.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from converge_node.control.governance import rules_text
from converge_p2p.client.explain_schema import SignatureItem, TermsItem
from converge_p2p.core.governance.rules import Ruleset
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.pool import PoolSpec

if TYPE_CHECKING:
    from converge_p2p.core.view.explanation import Signature


def terms_item(epoch: int, spec: PoolSpec, rules: Ruleset, signatures: Iterable[Signature] = ()) -> TermsItem:
    """Return the terms of an epoch as the schema shows them."""
    return TermsItem(
        epoch=epoch,
        pool=spec.name,
        governance=spec.governance.name.lower(),
        decided_by=rules_text(spec, rules),
        electors=[str(fingerprint(key)) for key in spec.electors],
        faults=spec.faults,
        provisional=rules.provisional,
        certified_by=[signature_item(each) for each in signatures],
    )


def signature_item(signature: Signature) -> SignatureItem:
    """Return an elector's vote as the schema shows it."""
    return SignatureItem(
        agent_id=str(fingerprint(signature.elector)),
        public_key=signature.elector.hex(),
        operation="" if signature.operation is None else signature.operation.hex(),
        verified=signature.verified,
    )
