"""Commands about evidence: to cite some, and to choose among rival reports by it.

Knows: what is worth signing. Must not know: how opinions are counted, or where a content is.
Source: `docs/protocol.md`, evidence.
"""

from __future__ import annotations

from converge_p2p.core import limits
from converge_p2p.core.errors import Conflict, LimitExceeded, LocalError, NotFound
from converge_p2p.core.oplog.evidence import EvidenceBody
from converge_p2p.core.oplog.motions import OpinionBody
from converge_p2p.core.replica import events as ev
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.fold import View

_DIGEST_BYTES = 32


def cite(view: View, key: PublicKey, command: ev.Cite) -> EvidenceBody | None:
    """Return the evidence to sign, or None if the same was cited before.

    Raises:
        NotFound: no such task, or no such result of it.
        Conflict: several results were reported and none is named.
        LimitExceeded: this identity cited so much about the task already.
        LocalError: something of the command is out of bounds.
    """
    task, media = command.task, command.media
    register = view.registers.get(task)
    if register is None or register.submitted is None:
        raise NotFound(f"no task {task.hex()[:12]} in this pool")
    if len(command.digest) != _DIGEST_BYTES or not 0 <= command.size <= limits.SEQ_MAX:
        raise LocalError("evidence names the SHA-256 of a content, 32 bytes, and its size")
    if not 1 <= len(media.encode()) <= limits.NAME_BYTES_MAX or not media.isprintable():
        raise LocalError(f"the kind of a content is a text of 1 to {limits.NAME_BYTES_MAX} bytes, such as text/csv")
    value = _value(view, task, command.value)
    own = [cited for cited in view.evidence.about(task) if cited.author == key]
    if any((cited.value, cited.supports, cited.digest) == (value, command.supports, command.digest) for cited in own):
        return None
    if len(own) >= limits.EVIDENCE_PER_AUTHOR_MAX:
        raise LimitExceeded("EVIDENCE_PER_AUTHOR_MAX", "so much was cited about this task already")
    summary = command.summary.encode()[: limits.TEXT_BYTES_MAX].decode(errors="ignore")
    return EvidenceBody(task, value, command.supports, command.digest, command.size, media, summary)


def _value(view: View, task: TaskId, given: ValueHash | None) -> ValueHash:
    """The result that is meant: the one that is named, or the only one there is."""
    register = view.registers[task]
    known = {value.hash for value in register.reported()}
    if register.settled is not None:
        known = {register.settled}
    if given is None:
        if len(known) != 1:
            raise Conflict(
                f"{len(known)} results of the task are known here" if known else "no result of the task is known here",
                hint="name the result by its hash" if known else "wait until somebody reports one",
            )
        return known.pop()
    # what is in dispute may be a report that lost, and is kept no more
    rivals = {option for motion in view.motions.disputes(task) for option in motion.options}
    if given not in known and given not in rivals and given not in register.values:
        raise NotFound(f"no result {given.hex()[:12]} of the task is known here")
    return given


def choose(view: View, key: PublicKey, name: OperationId, choice: int | None) -> OpinionBody | None:
    """Return the opinion to sign about a motion, with the evidence it rests on where it needs some.

    Args:
        view: the fold.
        key: the local identity, an elector.
        name: a motion in effect here.
        choice: the index of an option; None goes by the evidence.

    Raises:
        NotFound: nothing is known that speaks for the choice, or for any.
    """
    motion, epoch = view.motions.get(name), view.epochs.number
    assert motion is not None, "the caller looked"
    must_cite = view.motions.must_cite(name, epoch)
    if choice is None:
        choice = view.motions.preferred(name, epoch)
    if choice is None:
        raise NotFound("no evidence is known here that speaks for one of the options", hint="name the choice yourself")
    waits = view.motions.waits(name, epoch, key, choice)
    if choice in view.motions.opinion(name, epoch, key) and not waits:
        return None
    if not must_cite or motion.task is None:
        return OpinionBody(name, choice)
    evidence = view.evidence.to_cite(motion.task, ValueHash(motion.options[choice]), limits.CITATIONS_MAX)
    if not evidence:
        raise NotFound(
            "in an empirical pool a choice among results rests on evidence, and none is known for this one",
            hint="cite some first: converge-node task cite",
        )
    return OpinionBody(name, choice, evidence)
