"""The register of a task: who asked for it, who stands for it, how it ended.

Knows: submits, failures and retries, and which value a claimant may propose. Must not know: clocks, or what the local
node wants.
Source: `docs/protocol.md`, task register.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.governance.evaluators import judge_by_rule
from converge_p2p.core.governance.models import VetoTerms
from converge_p2p.core.governance.trust import contexts_of
from converge_p2p.core.model.evaluator import Evaluator, EvaluatorKind, parse_evaluator
from converge_p2p.core.model.task import Outcome, TaskSpec, TaskState, TaskValue
from converge_p2p.core.oplog.bodies import Purpose, Token
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.epochs import Counting, Epochs
from converge_p2p.core.view.evidence import Evidence
from converge_p2p.core.view.register import NOBODY, Offer, Register, RoundVotes, StandingClaim
from converge_p2p.core.view.verdicts import Verdicts


class Submitted(NamedTuple):
    """Who asked for the task, and what for.

    Attributes:
        delegate: who asked in the author's name, or None.
    """

    operation: OperationId
    author: PublicKey
    spec: TaskSpec
    delegate: PublicKey | None = None


class TaskRegister(Register):
    """The register of one task."""

    __slots__ = ("_by_rule", "_evidence", "evaluator", "submitted", "verdicts", "veto")

    def __init__(self, task: TaskId, epochs: Epochs, evidence: Evidence | None = None) -> None:
        super().__init__(task, epochs)
        self._evidence = Evidence() if evidence is None else evidence
        self.submitted: Submitted | None = None
        self.veto: Register | None = None
        """Whether the result it was settled on passes the pool's vetoers; None where nobody may deny it."""
        self.evaluator: Evaluator | None = None
        """Who judges its results; nobody as long as its submit is not known."""
        self.verdicts = Verdicts()
        self._by_rule: dict[ValueHash, bool] = {}

    def set_submitted(self, submitted: Submitted | None) -> None:
        """Note the submit, or take it back. Who may grant the first round alone depends on it."""
        self.submitted = submitted
        self.evaluator = None if submitted is None else parse_evaluator(submitted.spec.evaluator)
        self._by_rule.clear()
        self.recount()

    # ------------------------------------------------------------ what it is about

    @property
    def submitter(self) -> PublicKey | None:
        """Who asked for it, or in whose name it was asked for; None if no submit is known."""
        return None if self.submitted is None else self.submitted.author

    @property
    def contexts(self) -> tuple[bytes, ...]:
        """What work on it says something about (see `governance.trust`)."""
        return () if self.submitted is None else contexts_of(self.submitted.spec)

    @property
    def credited(self) -> tuple[Outcome, PublicKey] | None:
        """The outcome it was settled on, whether or not that is denied, and whose work it was; None if not known."""
        value = self.value
        return None if value is None else (value.outcome, value.worker)

    # ------------------------------------------------------------ how it is voted on

    @property
    def is_open(self) -> bool:
        """Whether its submit is known and it is not settled."""
        return self.submitted is not None and self.settled is None

    @property
    def now(self) -> int:
        """The present epoch."""
        return self.epochs.number

    def counting(self, epoch: int) -> Counting:
        """How the votes of an epoch are counted."""
        return self.epochs[epoch].counting

    def confirms(self, token: Token, voters: Collection[PublicKey], votes: RoundVotes) -> bool:
        """Whether these promises are enough: in round 0 of the fast path, one by whom everybody promised it to."""
        granter = self.granter(token)
        if granter is not None:
            return granter in voters
        return super().confirms(token, voters, votes)

    def granter(self, token: Token) -> PublicKey | None:
        """Who alone may grant a round: round 0, where the pool takes the fast path.

        Nothing was accepted before the first round of an epoch, so that everybody's promise for it says nothing but the
        lock the epoch began with. The submitter grants if it is an elector, otherwise whom rendezvous hashing names.
        """
        epoch = self.epochs[token.epoch]
        submitter = self.submitter
        if token.round or submitter is None or not epoch.spec.policy.fast_path:
            return None
        if submitter in epoch.electors:
            return submitter
        number = token.epoch.to_bytes(8, "big")
        return min(epoch.electors, key=lambda elector: tagged_hash("granter", self.id, number, elector))

    # ------------------------------------------------------------ the end

    @property
    def final(self) -> TaskValue | None:
        """What the task ended with: the settled value, or the failure that a veto made of it."""
        value = self.value
        if self.veto is None or value is None or value.outcome is not Outcome.COMPLETED:
            return value
        said = self.veto.value
        return value if said is not None and said.outcome is Outcome.COMPLETED else said

    @property
    def awaiting(self) -> TaskValue | None:
        """The result that was settled, while it may still be denied."""
        value = self.value
        return value if value is not None and self.final is None else None

    def veto_terms(self) -> VetoTerms | None:
        """Who may deny what it was settled on, by the terms of the epoch in which anything was accepted first.

        Every later certificate repeats that value, because epochs inherit it as a lock. So all replicas find the same
        terms, whichever certificate they saw, and a change of the terms changes nothing for a result that stands.
        """
        if self.settled_token is None:
            return None
        number = self.settled_token.epoch
        if self.epochs.veto_changed:
            while (lock := self.initial_lock(number)) is not None:
                number = lock.token.epoch
        return self.epochs[number].counting.rules.veto

    # ------------------------------------------------------------ its evaluator

    def verdict(self, value: TaskValue) -> bool | None:
        """What the evaluator says about a result; None if it did not speak yet, or its rule is not registered here."""
        if self.evaluator is None or self.submitted is None:
            return True
        if self.evaluator.kind is EvaluatorKind.AGENT:
            return self.verdicts.on(value.hash, self.evaluator)
        said = self._by_rule.get(value.hash)
        if said is None:
            said = judge_by_rule(self.evaluator.name, self.submitted.spec.inputs, value.result)
            if said is not None:
                self._by_rule[value.hash] = said
        return said

    def denied(self, token: Token) -> bool:
        """Whether the evaluator denied everything that whoever holds a round reported in it. Not true for ever."""
        claim, votes = self.certified_claim(token), self.rounds.get(token)
        if self.evaluator is None or claim is None or claim.purpose is not Purpose.WORK or votes is None:
            return False
        reported = {report.value for report in votes.reports.values() if report.author == claim.author}
        values = [self.values.get(value) for value in reported]
        return bool(values) and all(
            value is not None and value.outcome is Outcome.COMPLETED and self.verdict(value) is False
            for value in values
        )

    def denied_by_agent(self, token: Token) -> bool:
        """The same, where an agent judges: then the log itself shows it, to everybody."""
        return self.evaluator is not None and self.evaluator.kind is EvaluatorKind.AGENT and self.denied(token)

    def to_judge(self) -> list[TaskValue]:
        """The results that somebody who may report them reported in the top round, and that nobody judged yet."""
        if self.evaluator is None or self.settled is not None or (top := self.top) is None:
            return []
        votes = self.rounds.get(top)
        if votes is None:
            return []
        if self.certified_id(top) == NOBODY:
            authors = {claim.author for claim in self.workers()}
        else:
            holder = self.certified_claim(top)
            authors = set() if holder is None else {holder.author}
        hashes = {report.value: None for report in votes.reports.values() if report.author in authors}
        values = [value for name in hashes if (value := self.values.get(name)) is not None]
        return [value for value in values if value.outcome is Outcome.COMPLETED and self.verdict(value) is None]

    # ------------------------------------------------------------ evidence

    def evidence_lacking(self, value: TaskValue, epoch: int) -> int:
        """How many more have to cite evidence for a result before it may be endorsed in an epoch. Only falls.

        What its worker cites itself says nothing new.
        """
        need = self.counting(epoch).rules.evidence
        return need and max(0, need - len(self._evidence.backers(self.id, value.hash) - {value.worker}))

    def reported(self) -> list[TaskValue]:
        """The completed results that were reported, by whomever, while none is settled; by hash."""
        if self.settled is not None:
            return []
        named = {report.value for votes in self.rounds.values() for report in votes.reports.values()}
        values = [self.values[name] for name in sorted(named) if name in self.values]
        return [value for value in values if value.outcome is Outcome.COMPLETED]

    def preference(self, value: ValueHash, epoch: int) -> tuple[int, int]:
        """How much evidence speaks for a value in an epoch; of rival reports an elector takes the one with most."""
        return self._evidence.standing(self.id, value, self.counting(epoch).rules.weights)

    # ------------------------------------------------------------ reading

    @property
    def holder(self) -> StandingClaim | None:
        """The claim that holds the highest round, unless it was released, or the evaluator denied what came of it."""
        claim = super().holder
        if claim is None or self.evaluator is None:
            return claim
        top = self.top
        return None if top is not None and self.denied_by_agent(top) else claim

    def _find_top(self, now: int) -> Token | None:
        """The highest round granted; on the fast path the granter's word alone opens the first."""
        top, first = super()._find_top(now), Token(now, 0)
        if top is None and first in self._certified:
            return first
        return top

    @property
    def speculative(self) -> int:
        """How many may work on it at once without a claim certificate; 0: one, and with it."""
        return self.counting(self.now).rules.speculative

    @property
    def state(self) -> TaskState:
        """The derived state."""
        if self.settled is not None:
            value = self.final
            # it may be denied yet, or the content of the value is on its way: nobody has to take it up again
            return TaskState.ASSIGNED if value is None else value.outcome.state
        if self.is_open_to_several:
            return TaskState.ASSIGNED
        holder = self.holder
        return TaskState.ASSIGNED if holder is not None and holder.purpose is Purpose.WORK else TaskState.PENDING

    @property
    def is_open_to_several(self) -> bool:
        """Whether the top round was opened for several workers and somebody stands for the work."""
        top = self.top
        if top is None or self.certified_id(top) != NOBODY:
            return False
        return any(claim.purpose is Purpose.WORK and self.stands(claim) for claim in self.claims.values())

    def decided(self) -> list[object]:
        """What is decided of the task, for the comparison of replicas; empty if nothing of it is known to be one."""
        if self.settled is not None:
            if self.veto is None:
                return [1, self.settled]
            final = self.final
            return [2, self.settled, self.veto.settled] if final is None else [1, final.hash]
        if self.submitted is None:
            return []
        top = self.top
        claim = None if top is None else self.certified_id(top)
        round_now = None if top is None else list(top)
        return [0, self.submitted.operation, round_now, claim, self.holder is None, self.failures()]

    def workers(self) -> list[StandingClaim]:
        """Whose work a round that is open to several is meant for: so many of those who stand, in turn.

        In every round it is the turn of the next: whoever took a place and did nothing must not keep it.
        """
        work = (claim for claim in self.claims.values() if claim.purpose is Purpose.WORK and self.stands(claim))
        standing = list({claim.author: claim for claim in work}.values())
        trusty = [claim for claim in standing if not self.reported_twice(claim.author)] or standing
        trusty.sort(key=lambda claim: tagged_hash("several", self.id, claim.author))
        if len(trusty) <= self.speculative:
            return trusty
        top = self.top
        turn = 0 if top is None else top.round * self.speculative % len(trusty)
        return (trusty * 2)[turn : turn + self.speculative]

    def attempts(self) -> int:
        """Rounds in which work was certified."""
        held = sum(1 for _, claim in self.held_rounds() if claim.purpose is Purpose.WORK)
        return held + sum(1 for claim in self._certified.values() if claim == NOBODY)

    def failures(self) -> int:
        """Rounds of work that failed, that an agent denied, or that more than f electors saw run out of time.

        A round that was merely superseded (its promises came too late, say) is nobody's failure.
        """
        count = 0
        for token, claim_id in self._certified.items():
            claim = self.claims.get(claim_id)
            if claim is None and claim_id != NOBODY:
                continue
            if claim is not None and claim.purpose is not Purpose.WORK:
                continue
            if self.denied_by_agent(token):
                count += 1
                continue
            release = None if claim is None else self.releases.get((claim.author, token))
            if release is not None:
                count += any(release.values())
            elif len(self.expired.get(token, ())) > self.counting(token.epoch).rules.faults:
                count += 1
        return count

    def exhausted(self) -> bool:
        """Whether only a failure (or the value of a lock) may still be settled."""
        if self.submitted is None:
            return False
        allowed = self.submitted.spec.max_retries
        if allowed is None:
            allowed = self.epochs.current.spec.policy.max_retries
        # each failure is one of a round that was certified
        return len(self._certified) > allowed and self.failures() > allowed

    # ------------------------------------------------------------ the rules of a proposal

    def allows(self, offer: Offer) -> bool:
        """Whether a claimant may propose this value where no lock binds it: its own work, as its purpose says."""
        token, claim, value, _ = offer
        if value.worker != claim.author:
            return False
        if self.counting(token.epoch).rules.speculative and not self._entitled(claim):
            return False
        match claim.purpose:
            case Purpose.WORK:
                if value.outcome is Outcome.COMPLETED:
                    return self.verdict(value) is True and self.evidence_lacking(value, token.epoch) == 0
                return value.outcome is not Outcome.CANCELLED
            case Purpose.CANCEL:
                return value.outcome is Outcome.CANCELLED
            case Purpose.FAIL:
                return value.outcome is Outcome.FAILED
            case Purpose.EPOCH | Purpose.PASS | Purpose.DENY:
                return False

    def _entitled(self, claim: StandingClaim) -> bool:
        """Where no promise names a claimant, whether the claim is of somebody who may make it at all."""
        if self.submitted is None:
            return False
        match claim.purpose:
            case Purpose.CANCEL:
                return claim.author == self.submitted.author
            case Purpose.FAIL:
                return self.exhausted()
            case _:
                return True
