"""The register of a veto: whether a result that was settled passes.

Knows: what vetoers said, and which value may be proposed. Must not know: clocks, or how long an elector waits.
Source: `docs/protocol.md`, veto. Words of vetoers decide nothing by themselves (where they did, electors that heard
different words decided differently); they only tell electors which claim to promise a round to.

A promise for a claim to pass says: I waited, and heard no veto. One for a claim to deny names the veto itself, so that
nobody can make one up. From there on the register is one like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from converge_p2p.core.codec import encode_value, tagged_hash
from converge_p2p.core.governance.models import VetoTerms
from converge_p2p.core.model.task import Outcome, TaskValue
from converge_p2p.core.oplog.bodies import Purpose, VetoBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.epochs import Counting, Epochs
from converge_p2p.core.view.register import Offer, Register, StandingClaim

if TYPE_CHECKING:
    from converge_p2p.core.view.tasks import TaskRegister


def veto_subject(task: TaskId, value: ValueHash) -> TaskId:
    """The subject that votes on a veto name: it stands where a task's id stands in votes on a task."""
    return TaskId(tagged_hash("veto", task, value))


class Word(NamedTuple):
    """What somebody who calls itself a vetoer said about a result."""

    operation: OperationId
    author: PublicKey
    deny: bool
    reason: str


class VetoRegister(Register):
    """Whether one result of one task passes."""

    __slots__ = ("_words", "task", "terms")

    def __init__(
        self, task: TaskRegister, value: ValueHash, epochs: Epochs, terms: VetoTerms, words: Mapping[OperationId, Word]
    ) -> None:
        """Make the register.

        Args:
            task: that was settled.
            value: what it was settled on.
            epochs: those installed so far.
            terms: who may deny it.
            words: everything that anybody said about this result; it grows.
        """
        super().__init__(veto_subject(task.id, value), epochs)
        self.task = task
        self.terms = terms
        self._words = words

    def adopt(self, other: Register) -> None:
        """Take over what was counted before it was known what the subject is about."""
        for name in Register.__slots__:
            if name not in ("id", "epochs", "_top_at"):
                setattr(self, name, getattr(other, name))

    # ------------------------------------------------------------ how it is voted on

    @property
    def is_open(self) -> bool:
        """Whether the result is one that can be denied, and neither passed nor denied."""
        value = self.task.value
        asked = self.task.submitted is not None and value is not None and value.outcome is Outcome.COMPLETED
        return asked and self.settled is None

    @property
    def now(self) -> int:
        """The present epoch."""
        return self.epochs.number

    def counting(self, epoch: int) -> Counting:
        """How the votes of an epoch are counted: as those on tasks."""
        return self.epochs[epoch].counting

    # ------------------------------------------------------------ what was said

    @property
    def denials(self) -> dict[OperationId, Word]:
        """The vetoes of those who may, by operation."""
        return {name: word for name, word in self._words.items() if word.deny and word.author in self.terms.vetoers}

    @property
    def passed_by_all(self) -> bool:
        """Whether every vetoer lets it pass: then nobody has to be waited for."""
        return self.terms.vetoers <= {word.author for word in self._words.values() if not word.deny}

    def may_hold(self, claim: StandingClaim) -> bool:
        """Whether a round may be granted to a claim, by what the vetoers said as far as is known here."""
        match claim.purpose:
            case Purpose.DENY:
                return claim.ref in self.denials
            case Purpose.PASS:
                return not self.denials
            case _:
                return False

    # ------------------------------------------------------------ the value

    def proposal(self, claim: StandingClaim) -> TaskValue | None:
        """What a claim proposes where no lock binds it; None if it may propose nothing, or its veto is not here."""
        if claim.purpose is Purpose.PASS:
            return TaskValue(Outcome.COMPLETED, claim.author, encode_value("passed"))
        word = self.denials.get(OperationId(claim.ref)) if claim.purpose is Purpose.DENY else None
        if word is None:
            return None
        content = {"error": "vetoed", "by": word.author, "reason": word.reason}
        return TaskValue(Outcome.FAILED, claim.author, encode_value(content))

    def allows(self, offer: Offer) -> bool:
        """Whether the value is the one that the claim stands for."""
        return offer.value == self.proposal(offer.claim)


class Vetoes:
    """The registers of all vetoes of a pool, and what was said about results."""

    def __init__(self, epochs: Epochs, tasks: dict[TaskId, TaskRegister], unsettled: dict[TaskId, None]) -> None:
        """Begin with none.

        Args:
            epochs: those installed so far.
            tasks: the registers of the tasks; votes on a veto stand there until it is known what they are about.
            unsettled: subjects on which votes may still be due; kept up to date here.
        """
        self.registers: dict[TaskId, VetoRegister] = {}
        self._epochs = epochs
        self._tasks = tasks
        self._unsettled = unsettled
        self._words: dict[TaskId, dict[OperationId, Word]] = {}
        self.closed: frozenset[TaskId] = frozenset()
        """Subjects of which a checkpoint says how they were decided: nothing that comes changes anything."""

    def denials(self) -> int:
        """Return how many vetoes of vetoers are known, on whatever results."""
        return sum(len(register.denials) for register in self.registers.values())

    def hear(self, operation: Operation, body: VetoBody) -> tuple[TaskId, ...]:
        """Note what somebody said about a result. Like a vote, it counts whatever becomes of its author."""
        if not self._epochs.was_vetoer(operation.author, operation.epoch):
            return ()
        subject = veto_subject(body.task, body.value)
        if subject in self.closed:
            return ()
        said = self._words.setdefault(subject, {})
        said[operation.id] = Word(operation.id, operation.author, body.deny, body.reason)
        return (subject,)

    def follow(self, register: Register) -> None:
        """A vote on a subject was counted, or the content of its value came: it may be settled now."""
        if register.settled is None:
            return
        if isinstance(register, VetoRegister):
            self._unsettled.pop(register.id, None)
            register = register.task
        task = self._tasks.get(register.id)
        if task is not register:
            return
        terms = task.veto_terms() if task.veto is None else None
        if terms is not None:
            self._ask(task, terms)
        if task.veto is None or task.final is not None:
            self._unsettled.pop(task.id, None)
            if task.veto is not None:
                self._unsettled.pop(task.veto.id, None)

    def _ask(self, task: TaskRegister, terms: VetoTerms) -> None:
        assert task.settled is not None
        subject = veto_subject(task.id, task.settled)
        register = VetoRegister(task, task.settled, self._epochs, terms, self._words.setdefault(subject, {}))
        early = self._tasks.pop(subject, None)
        self._unsettled.pop(subject, None)
        if early is not None:
            register.adopt(early)
            if early.veto is not None:
                # it was settled before it was known to be no task
                del self.registers[early.veto.id]
                self._unsettled.pop(early.veto.id, None)
        task.veto = self.registers[subject] = register
        if register.settled is None:
            self._unsettled[subject] = None

    def close(self, subjects: frozenset[TaskId]) -> None:
        """Let go of what a checkpoint says how it was decided."""
        self.closed = subjects
        for subject in [name for name in self._words if name in subjects]:
            del self._words[subject]
        for subject in [name for name in self.registers if name in subjects]:
            del self.registers[subject]
            self._unsettled.pop(subject, None)

    def twin(self, name: TaskId) -> TaskId | None:
        """The veto of a task, or the task of a veto: what changes with it."""
        register = self.registers.get(name)
        if register is not None:
            return register.task.id
        task = self._tasks.get(name)
        return None if task is None or task.veto is None else task.veto.id
