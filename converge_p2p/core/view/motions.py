"""Motions and opinions: what was put to the electors of each epoch, and what enough of them said.

Knows: which motions are in effect, and who said what in which epoch. Must not know: what a carried motion leads to
(the proposer of epochs and the trust ledger read it here), or time.
Source: `docs/protocol.md`, motions.

Two kinds of sets. Motions are data: those of an author that forked are void. Opinions are votes: they count for ever
under the electorate of the epoch they name, so a motion that was carried stays carried, whatever becomes of its author.
Everything derived is a function of these sets; the order of arrival does not matter.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.errors import ConvergeError
from converge_p2p.core.governance.admission import check_admission
from converge_p2p.core.governance.custom import CitedEvidence
from converge_p2p.core.governance.electorate import Electorate
from converge_p2p.core.governance.models import compile_rules
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.oplog.motions import YES, MotionBody, MotionKind, OpinionBody
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.evidence import Evidence


class Outcome(Enum):
    """What became of a motion. CARRIED is for ever.

    REJECTED says that as things stand it cannot be carried any more; should an elector that said no also say yes, it
    can. LAPSED: a change, or a choice among rivals, that was not carried in the epoch it was moved in.
    """

    OPEN = "open"
    CARRIED = "carried"
    REJECTED = "rejected"
    LAPSED = "lapsed"


@dataclass(frozen=True, slots=True)
class Motion:
    """A motion whose content is known.

    Attributes:
        id: of its operation; opinions name it.
        author, seq, epoch: of its operation.
        kind: what is asked.
        task: the task in dispute, None for a change.
        expelled, terms: of a change.
        options: what an opinion chooses from, by index. A change and a disputed result have "no" and "yes".
        reason: for people.
        safe: its terms found a pool that can decide; a motion that is not safe is void.
    """

    id: OperationId
    author: PublicKey
    seq: int
    epoch: int
    kind: MotionKind
    task: TaskId | None
    expelled: tuple[PublicKey, ...]
    terms: PoolSpec | None
    options: tuple[bytes, ...]
    reason: str
    safe: bool


@dataclass(frozen=True, slots=True)
class MotionView:
    """A motion as an application sees it.

    Attributes:
        motion: what was moved.
        outcome: what became of it.
        decided: the index of the carried option, None if none is.
        conflict: two options were carried, which needs more than f lying electors.
        ballots: (epoch, elector, index of an option), sorted.
    """

    motion: Motion
    outcome: Outcome
    decided: int | None
    conflict: bool
    ballots: tuple[tuple[int, PublicKey, int], ...]


_ANSWERS = (b"no", b"yes")

_Said = dict[int, dict[PublicKey, set[int]]]
"""Epoch → elector → choices. A choice is never taken out."""


_Docket = list[tuple[int, OperationId]]
"""Motions of one author that name one epoch and stand in its chain: (seq, id), the lowest of them."""


class Motions:
    """All motions of a pool."""

    def __init__(self, safe: Callable[[PoolSpec], None] | None = None, evidence: Evidence | None = None) -> None:
        """Start without motions.

        Args:
            safe: raises `ConvergeError` for terms that no pool may have; the same everywhere. Unless given: the
                checks that founding terms have to pass.
            evidence: what was cited; without, nothing ever is.
        """
        self._evidence = Evidence() if evidence is None else evidence
        self._cited: dict[tuple[OperationId, int, PublicKey, int], set[OperationId]] = {}
        """What a choice rests on: by motion, epoch, elector and choice. Like the choice, never taken back."""
        self._safe = _check_terms if safe is None else safe
        self._known: dict[OperationId, Motion] = {}
        self._dockets: dict[PublicKey, dict[int, _Docket]] = {}
        self._standing: set[OperationId] = set()
        """Motions in effect: in the chain of a member that did not fork below them, and within its bound."""
        self._said: dict[OperationId, _Said] = {}
        self._electorates: dict[int, Electorate] = {}
        self._by_task: dict[TaskId, set[OperationId]] = {}
        self._changes: dict[int, set[OperationId]] = {}

    # ------------------------------------------------------------ adding

    def open_epoch(self, number: int, electorate: Electorate) -> set[TaskId]:
        """Say who decides in an epoch. Opinions that named it before are counted from now on.

        Returns:
            Tasks in disputes that this may decide.
        """
        touched: set[TaskId] = set()
        if number in self._electorates:
            return touched
        self._electorates[number] = electorate
        for name, said in self._said.items():
            heard = said.get(number)
            if heard is not None:
                motion = self._known.get(name)
                if motion is not None and motion.task is not None:
                    touched.add(motion.task)
                for stranger in [key for key in heard if key not in electorate.electors]:
                    del heard[stranger]
        return touched

    def add_motion(self, operation: Operation) -> None:
        """Take up a motion that became part of its author's chain, of somebody who is a member there.

        Of each author only the first `limits.MOTIONS_PER_AUTHOR_MAX` that name an epoch have an effect.
        """
        docket = self._dockets.setdefault(operation.author, {}).setdefault(operation.epoch, [])
        place = (operation.seq, operation.id)
        if place in docket:
            return
        insort(docket, place)
        self._standing.add(operation.id)
        self._learn(operation)
        if len(docket) > limits.MOTIONS_PER_AUTHOR_MAX:
            _, beyond = docket.pop()
            self._standing.discard(beyond)
            self._forget(beyond)

    def add_void_motion(self, operation: Operation) -> None:
        """Remember the content of a motion that has no effect, as of an author that forked: it may be carried already.

        Without its content a replica that heard of the fork first would not know what the electors carried.
        """
        if operation.id not in self._standing:
            self._learn(operation)

    def void(self, author: PublicKey, seq: int, voided: Collection[Operation] = ()) -> set[OperationId]:
        """Take back the motions of an author from `seq` on, because it forked or was cut off. Opinions stay.

        Args:
            author: whose.
            seq: the first sequence number without effect.
            voided: its operations from there on that were applied; others among them do not matter.

        Returns:
            The motions that have no effect any more, unless they are carried.
        """
        gone: set[OperationId] = set()
        for docket in self._dockets.get(author, {}).values():
            gone.update(name for number, name in docket if number >= seq)
            docket[:] = [place for place in docket if place[0] < seq]
        self._standing -= gone
        for operation in voided:
            if isinstance(operation.body, MotionBody):
                # one beyond its author's bound was forgotten; who hears of the fork first knows it
                self.add_void_motion(operation)
        return gone

    def forget_beyond(self, author: PublicKey, seq: int) -> None:
        """Forget the motions of a removed author beyond its cut, carried ones too: their content is held by nobody."""
        for name in [name for name, motion in self._known.items() if motion.author == author and motion.seq >= seq]:
            self._standing.discard(name)
            self._forget(name)

    def add_opinion(self, operation: Operation) -> OperationId | None:
        """Count an opinion, of a frozen author as well.

        Returns:
            The motion it is about, or None if its author is no elector of the epoch it names.
        """
        body = operation.body
        assert isinstance(body, OpinionBody)
        electorate = self._electorates.get(operation.epoch)
        if electorate is not None and operation.author not in electorate.electors:
            return None
        said = self._said.setdefault(body.motion, {}).setdefault(operation.epoch, {})
        said.setdefault(operation.author, set()).add(body.choice)
        if body.evidence:
            place = (body.motion, operation.epoch, operation.author, body.choice)
            self._cited.setdefault(place, set()).update(body.evidence)
        return body.motion

    def _learn(self, operation: Operation) -> None:
        body = operation.body
        assert isinstance(body, MotionBody)
        expelled: tuple[PublicKey, ...] = ()
        terms: PoolSpec | None = None
        options: tuple[bytes, ...] = _ANSWERS
        if body.motion is MotionKind.CHANGE:
            change = body.change
            expelled, terms = change.expelled, change.terms
        elif body.motion is MotionKind.RIVAL_REPORTS:
            options = body.rivals
        task = None if body.motion is MotionKind.CHANGE else TaskId(body.subject)
        self._known[operation.id] = Motion(
            operation.id, operation.author, operation.seq, operation.epoch, body.motion, task, expelled, terms,
            options, body.reason, self._is_safe(terms),
        )  # fmt: skip
        if task is None:
            self._changes.setdefault(operation.epoch, set()).add(operation.id)
        else:
            self._by_task.setdefault(task, set()).add(operation.id)

    def _is_safe(self, terms: PoolSpec | None) -> bool:
        if terms is None:
            return True
        try:
            self._safe(terms)
        except ConvergeError:
            # also where a rule that they name is not registered: who cannot judge terms must not endorse them
            return False
        return True

    def _forget(self, name: OperationId) -> None:
        motion = self._known.pop(name)
        if motion.task is None:
            self._changes[motion.epoch].discard(name)
        else:
            self._by_task[motion.task].discard(name)

    # ------------------------------------------------------------ counting

    def decided(self, name: OperationId) -> int | None:
        """The index of the option that is carried, or None.

        A yes, once carried, stays, and so does a choice among rivals: two of them are carried only if more than f
        electors lie, and then the lower index counts.
        """
        carried = self._carried_options(name)
        if not carried:
            return None
        rivals = self._known[name].kind is MotionKind.RIVAL_REPORTS
        return min(carried) if rivals else max(carried)

    def carried(self, name: OperationId) -> bool:
        """Whether a change or a dispute is carried, or one of rival values chosen. True stays true."""
        motion, decided = self._known.get(name), self.decided(name)
        if motion is None or decided is None:
            return False
        return motion.kind is MotionKind.RIVAL_REPORTS or decided == YES

    def _carried_options(self, name: OperationId) -> set[int]:
        motion = self._known.get(name)
        if motion is None or not motion.safe:
            return set()
        out: set[int] = set()
        for _, electorate, heard in self._counted(motion):
            if motion.kind is not MotionKind.CHANGE and electorate.resolve is not None:
                ballots = tuple(sorted((key, choice) for key, said in heard.items() for choice in sorted(said)))
                choice = electorate.resolve(
                    motion.task or b"", motion.options, ballots, electorate.electors, self._evidence_about(motion)
                )
                # a hook can decide a no; by count a no is what is left when a yes is out of reach
                if choice is not None and 0 <= choice < len(motion.options):
                    out.add(choice)
                continue
            formula = electorate.change if motion.kind is MotionKind.CHANGE else electorate.dispute
            for option in self._positive(motion):
                if formula.satisfied_by({key for key, said in heard.items() if option in said}):
                    out.add(option)
        return out

    def _counted(self, motion: Motion) -> Iterator[tuple[int, Electorate, dict[PublicKey, set[int]]]]:
        """What was said about a motion in each epoch that may decide it.

        A change is for the epoch it was moved in, and of rival reports one electorate chooses, so that two of its
        choices meet in an elector. Whether a result is wrong may be said in a later epoch as well, but never in an
        earlier one: electors that were replaced are not asked about what came after them.
        """
        for epoch, heard in sorted(self._said.get(motion.id, {}).items()):
            electorate = self._electorates.get(epoch)
            late = epoch > motion.epoch and motion.kind is MotionKind.REJECT_RESULT
            if electorate is not None and (epoch == motion.epoch or late):
                yield (
                    epoch,
                    electorate,
                    {
                        key: {choice for choice in said if self._counts(motion, epoch, electorate, key, choice)}
                        for key, said in heard.items()
                    },
                )

    def _counts(self, motion: Motion, epoch: int, electorate: Electorate, key: PublicKey, choice: int) -> bool:
        """Whether what an elector chose is an option, and rests on evidence where it has to. True stays true."""
        if choice >= len(motion.options):
            return False
        if motion.kind is not MotionKind.RIVAL_REPORTS or not electorate.cites or motion.task is None:
            return True
        cited = self._cited.get((motion.id, epoch, key, choice), ())
        return self._evidence.supports(cited, motion.task, ValueHash(motion.options[choice]))

    def _evidence_about(self, motion: Motion) -> tuple[CitedEvidence, ...]:
        cited = self._evidence.about(motion.task) if motion.task is not None else ()
        return tuple(CitedEvidence(one.author, one.value, one.supports, one.digest, one.size) for one in cited)

    @staticmethod
    def _positive(motion: Motion) -> Collection[int]:
        return range(len(motion.options)) if motion.kind is MotionKind.RIVAL_REPORTS else (YES,)

    def outcome(self, name: OperationId, epoch: int) -> Outcome:
        """What became of a motion whose content is known.

        Args:
            name: the motion.
            epoch: the epoch that holds now; a change of an earlier one has lapsed if it was not carried.
        """
        motion, decided = self._known[name], self.decided(name)
        if decided is not None:
            return Outcome.CARRIED if self.carried(name) else Outcome.REJECTED
        if not motion.safe or any(self._hopeless(motion, *counted) for counted in self._counted(motion)):
            return Outcome.REJECTED
        if motion.kind is not MotionKind.REJECT_RESULT and motion.epoch < epoch:
            return Outcome.LAPSED
        return Outcome.OPEN

    def rejected(self, name: OperationId) -> bool:
        """Whether the electors of some epoch turned a motion down, as things stand."""
        motion = self._known.get(name)
        return motion is not None and self.outcome(name, motion.epoch) is Outcome.REJECTED

    def _hopeless(self, motion: Motion, _epoch: int, electorate: Electorate, heard: dict[PublicKey, set[int]]) -> bool:
        if motion.kind is not MotionKind.CHANGE and electorate.resolve is not None:
            return False
        formula = electorate.change if motion.kind is MotionKind.CHANGE else electorate.dispute
        return not any(
            formula.reachable({key for key, said in heard.items() if said and option not in said})
            for option in self._positive(motion)
        )

    # ------------------------------------------------------------ reading

    def get(self, name: OperationId) -> Motion | None:
        """A motion in effect, or one that was carried, or None."""
        motion = self._known.get(name)
        return motion if motion is not None and (name in self._standing or self.carried(name)) else None

    def carried_changes(self, epoch: int) -> list[Motion]:
        """The changes moved in an epoch that its electors carried, by id."""
        names = [name for name in self._changes.get(epoch, ()) if self.carried(name)]
        return [self._known[name] for name in sorted(names)]

    def open_changes(self, epoch: int) -> list[Motion]:
        """The changes moved in an epoch that are in effect and not decided yet, by id."""
        names = sorted(self._changes.get(epoch, set()) & self._standing)
        return [self._known[name] for name in names if self.outcome(name, epoch) is Outcome.OPEN]

    def disputes(self, task: TaskId) -> list[Motion]:
        """The disputes about a task that are in effect or carried, by id."""
        found = [self.get(name) for name in sorted(self._by_task.get(task, ()))]
        return [motion for motion in found if motion is not None]

    def chosen(self, name: OperationId) -> ValueHash | None:
        """The value that was chosen among rival reports, or None."""
        motion, decided = self._known.get(name), self.decided(name)
        if motion is None or decided is None or motion.kind is not MotionKind.RIVAL_REPORTS:
            return None
        return ValueHash(motion.options[decided])

    def opinion(self, name: OperationId, epoch: int, elector: PublicKey) -> frozenset[int]:
        """What an elector said about a motion in an epoch; empty if nothing."""
        return frozenset(self._said.get(name, {}).get(epoch, {}).get(elector, ()))

    def must_cite(self, name: OperationId, epoch: int) -> bool:
        """Whether what an elector of an epoch chooses here counts only on evidence."""
        motion, electorate = self._known.get(name), self._electorates.get(epoch)
        rivals = motion is not None and motion.kind is MotionKind.RIVAL_REPORTS
        return rivals and electorate is not None and electorate.cites

    def waits(self, name: OperationId, epoch: int, elector: PublicKey, choice: int) -> bool:
        """Whether an elector chose something that does not count yet, because its evidence is not known."""
        motion, electorate = self._known.get(name), self._electorates.get(epoch)
        if motion is None or electorate is None or choice not in self.opinion(name, epoch, elector):
            return False
        return choice < len(motion.options) and not self._counts(motion, epoch, electorate, elector, choice)

    def preferred(self, name: OperationId, epoch: int) -> int | None:
        """The index of the rival that most evidence speaks for, by the weights of an epoch; None if there is none."""
        motion, electorate = self._known.get(name), self._electorates.get(epoch)
        if motion is None or motion.task is None or electorate is None or motion.kind is not MotionKind.RIVAL_REPORTS:
            return None
        values = [ValueHash(option) for option in motion.options]
        best = self._evidence.best(motion.task, values, electorate.weights)
        return None if best is None else motion.options.index(best)

    def view(self, name: OperationId, epoch: int) -> MotionView | None:
        """A motion as an application sees it in an epoch, or None if it has no effect."""
        motion = self.get(name)
        if motion is None:
            return None
        ballots = tuple(
            (number, key, choice)
            for number, _, heard in self._counted(motion)
            for key in sorted(heard)
            for choice in sorted(heard[key])
        )
        carried = self._carried_options(name)
        return MotionView(motion, self.outcome(name, epoch), self.decided(name), len(carried) > 1, ballots)

    def views(self, epoch: int) -> list[MotionView]:
        """Every motion in effect or carried, by id."""
        views = [self.view(name, epoch) for name in sorted(self._known)]
        return [view for view in views if view is not None]

    def state(self) -> list[list[Any]]:
        """What is decided, to compare replicas: id and decided option of each motion in effect or carried."""
        return [[name, self.decided(name)] for name in sorted(self._known) if self.get(name) is not None]


def _check_terms(spec: PoolSpec) -> None:
    compile_rules(spec)
    check_admission(spec)
