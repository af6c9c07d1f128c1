"""Who may write into a pool at all.

Knows: the terms of each epoch. Must not know: chains, or anything that arrives later.
Source: `docs/protocol.md`, validation.
"""

from __future__ import annotations

from collections.abc import Callable

from converge_p2p.core.errors import CodecError, RemoteViolation
from converge_p2p.core.governance.admission import UnknownAdmission, admits, check_admission, judges_key
from converge_p2p.core.governance.custom import UnknownModel
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.oplog.bodies import Genesis, JoinBody, ReportBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.sealing import shows_content
from converge_p2p.core.oplog.succession import RecoverBody, SucceedBody, is_signed
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.epochs import epoch_subject
from converge_p2p.core.view.fold import View


def _check_successor(
    view: View, operation: Operation, body: SucceedBody | RecoverBody, *, predecessor_known: Callable[[PublicKey], bool]
) -> None:
    """Let in whoever shows that a known key, or its recovery key, agreed. Whether it inherits the fold decides."""
    if not is_signed(view.pool, operation.author, body):
        raise RemoteViolation("not_member", "nobody agreed that the author takes another's place")
    old = body.predecessor
    known = predecessor_known(old) if isinstance(body, SucceedBody) else view.successions.committed(old, body.recovery)
    if not known:
        raise RemoteViolation("no_predecessor", "whose place the author takes is not known here yet")


def check_author(
    view: View, operation: Operation, *, known: bool, predecessor_known: Callable[[PublicKey], bool] = lambda _: False
) -> None:
    """Refuse what can never have an effect, by the terms of the epoch it names, so that all nodes refuse the same.

    Into a private pool nothing is let that shows its content: whoever passed it on would help to publish it.

    Args:
        view: the fold; only its epochs are asked, which are the same everywhere.
        operation: one whose signature was verified.
        known: whether something of the author is held.
        predecessor_known: whether something of another author is held.

    Raises:
        RemoteViolation: reason bad_genesis, unknown_model, unknown_admission, no_genesis, no_epoch,
            no_predecessor, not_member or clear_content.
    """
    if isinstance(operation.body, Genesis):
        if not view.is_genesis(operation):
            raise RemoteViolation("bad_genesis", "the operation does not found this pool")
        try:
            compile_rules(operation.body.spec)
            check_admission(operation.body.spec)
        except (UnknownModel, UnknownAdmission) as error:
            # the terms may be right: whoever sent them is not to blame
            raise RemoteViolation(error.code, f"{error}; {error.hint}") from error
        except CodecError as error:
            raise RemoteViolation("bad_genesis", str(error)) from error
        return
    if not len(view.epochs):
        raise RemoteViolation("no_genesis", "the pool's founding terms are not known here yet")
    _check_content(view, operation)
    author = operation.author
    if author == view.creator:
        if operation.seq == 0:
            raise RemoteViolation("bad_genesis", "the creator's first operation is the founding of the pool")
        return
    named = view.epochs.was_elector(author, operation.epoch) or view.epochs.was_vetoer(author, operation.epoch)
    if (operation.seq and known) or named:
        # its first operation was looked at; whether each of the others has an effect is decided in the fold
        return
    epoch = view.epochs.find(operation.epoch)
    if epoch is None:
        # it may be right, and comes again with the next comparison of frontiers; a stranger may not fill the parking
        raise RemoteViolation("no_epoch", "a stranger names an epoch that is not known here yet")
    if operation.seq:
        # by a proof only the join is judged that the chain begins with; what follows it waits for it. A chain may also
        # begin with the word of a predecessor, so nobody is to blame
        if epoch.number == 0 and judges_key(epoch.spec) and not admits(epoch.spec, author):
            raise RemoteViolation("no_predecessor", "the pool does not admit the author by its key")
        return
    if isinstance(operation.body, SucceedBody | RecoverBody):
        _check_successor(view, operation, operation.body, predecessor_known=predecessor_known)
        return
    if not isinstance(operation.body, JoinBody):
        raise RemoteViolation("not_member", "the author's first operation is not a join")
    if not view.may_join(author, epoch.number, operation.body.proof):
        raise RemoteViolation("not_member", "the pool does not admit the author")


def _check_content(view: View, operation: Operation) -> None:
    body = operation.body
    # the value of an epoch is judged by everybody
    if isinstance(body, ReportBody) and body.task == epoch_subject(view.pool, operation.epoch + 1):
        return
    if view.epochs.private and shows_content(body):
        raise RemoteViolation("clear_content", "the pool is private, and the operation shows its content")
