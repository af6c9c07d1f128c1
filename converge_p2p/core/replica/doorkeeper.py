"""Who may write into a pool at all.

Knows: the founding terms. Must not know: chains, or anything that arrives later.
Source: `docs/protocol.md`, validation.
"""

from __future__ import annotations

from converge_p2p.core.errors import CodecError, RemoteViolation
from converge_p2p.core.governance.admission import admits
from converge_p2p.core.governance.custom import UnknownModel
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.oplog.bodies import Genesis, JoinBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.view.fold import View


def check_author(view: View, operation: Operation) -> None:
    """Refuse what can never have an effect, by the founding terms alone, so that all nodes refuse the same.

    Args:
        view: the fold; only what the founding operation says is asked of it.
        operation: one whose signature was verified.

    Raises:
        RemoteViolation: reason bad_genesis, unknown_model, no_genesis or not_member.
    """
    spec = view.spec
    if isinstance(operation.body, Genesis):
        if not view.is_genesis(operation):
            raise RemoteViolation("bad_genesis", "the operation does not found this pool")
        try:
            compile_rules(operation.body.spec)
        except UnknownModel as error:
            # the terms may be right: whoever sent them is not to blame
            raise RemoteViolation("unknown_model", f"{error}; {error.hint}") from error
        except CodecError as error:
            raise RemoteViolation("bad_genesis", str(error)) from error
        return
    if spec is None:
        raise RemoteViolation("no_genesis", "the pool's founding terms are not known here yet")
    author = operation.author
    if author == view.creator:
        if operation.seq == 0:
            raise RemoteViolation("bad_genesis", "the creator's first operation is the founding of the pool")
    elif author not in view.electors:
        if not admits(spec, author):
            raise RemoteViolation("not_member", "the pool does not admit the author")
        if operation.seq == 0 and not isinstance(operation.body, JoinBody):
            raise RemoteViolation("not_member", "the author's first operation is not a join")
