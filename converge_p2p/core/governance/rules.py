"""What a pool's governance compiles to, and the rules of the register that nobody may turn off.

Knows: the shape of a ruleset. Must not know: how a model becomes one (see `compile`), tasks, or votes.
Source: `docs/protocol.md`, governance; Paxos (Lamport 1998) for who must meet whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from converge_p2p.core.governance.custom import Choice, CitedEvidence, DisputeContext, GovernanceModel
from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.types import PublicKey


@dataclass(frozen=True, slots=True)
class VetoTerms:
    """Who may deny a settlement, and how long electors wait for them.

    Attributes:
        vetoers: their keys.
        window_ms: how long, on each elector's own clock.
        silence_denies: a vetoer who says nothing is waited for, without end.
    """

    vetoers: frozenset[PublicKey]
    window_ms: int
    silence_denies: bool


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What a pool's governance compiles to.

    Attributes:
        grant: who together confirm a claim.
        endorse: who together vouch for a report before it is accepted; None where accepts decide directly.
        accept: who together settle a task.
        epoch: who together certify a change of members or policy.
        faults: f, how many electors may lie.
        trusted: electors that are assumed honest by name.
        deciders: the leader, then the successor, where the other electors only record: they vote for nothing but what a
            decider voted for. Empty where every elector judges.
        speculative: how many workers may work on one task at a time, under grants that name no claimant; 0: one, named.
        cites: a choice among rival reports counts only on evidence that is known; electors prefer what has most.
        evidence: how many others than the worker must cite evidence for a result before it is endorsed.
        veto: who may deny a settlement; None is nobody.
        provisional: the formulas failed the intersection check, and the founder took them all the same.
        model: answers disputes.
    """

    grant: Threshold
    endorse: Threshold | None
    accept: Threshold
    epoch: Threshold
    faults: int = 0
    trusted: frozenset[PublicKey] = frozenset()
    deciders: tuple[PublicKey, ...] = ()
    speculative: int = 0
    cites: bool = False
    evidence: int = 0
    veto: VetoTerms | None = None
    provisional: bool = False
    model: GovernanceModel = field(default_factory=GovernanceModel)

    @property
    def electors(self) -> frozenset[PublicKey]:
        """Everybody who is counted anywhere."""
        return self.grant.electors | self.accept.electors | self.epoch.electors

    @property
    def weights(self) -> dict[PublicKey, int]:
        """What each elector weighs, 1 where the model has no weights."""
        given = {part: weight for weight, part in self.accept.parts if not isinstance(part, Threshold)}
        return {elector: given.get(elector, 1) for elector in sorted(self.accept.electors)}

    def resolve_dispute(
        self,
        options: tuple[Choice, ...],
        ballots: Mapping[PublicKey, Choice],
        *,
        epoch: int,
        subject: bytes,
        evidence: Iterable[CitedEvidence] = (),
    ) -> Choice | None:
        """Return how the model answers a dispute; None as long as it is open.

        Args:
            options: what may be chosen, in an order that all nodes share.
            ballots: what each elector chose so far; others are ignored.
            epoch: whose electors these are.
            subject: what it is about.
            evidence: what was cited about it so far; the weights are filled in.
        """
        weights = self.weights
        electors = tuple(weights)
        context = DisputeContext(
            options=options,
            ballots={elector: ballots[elector] for elector in electors if elector in ballots},
            electors=electors,
            weights=weights,
            formula=self.accept,
            epoch=epoch,
            subject=subject,
            evidence=tuple(item._replace(weight=weights.get(item.author, 0)) for item in evidence),
        )
        return self.model.resolve_dispute(context)


@dataclass(frozen=True, slots=True)
class ProtocolRules:
    """The rules of the registers that safety rests on. All hold, always.

    The simulator turns one off to show that it would notice (see `testing.sim`); nothing else may.

    Attributes:
        lock_rule: a report repeats the value of the highest lock among the promises it names.
        fence_accepts: an elector endorses and accepts only in rounds not below its highest promise.
        endorse_phase: an elector accepts only with a quorum of endorsements.
        count_members: a quorum is counted over all electors, not over the votes cast.
        check_named_grants: an endorser checks that a report names a quorum of valid promises for its claim.
        check_value_against_lock: an endorser checks the value of a report against the locks of those promises.
        claims_need_promises: a claim decides nothing before a quorum promised its round.
        lock_by_epoch: locks are ordered by epoch first, then by round.
        seal_at_promise: a promise for the next epoch seals the elector in this one.
        seal_stops_votes: a seal ends endorsements and accepts too; off, it stops grants only.
        initial_locks: an epoch starts from the highest locks of the promises it embeds.
        epoch_endorse: the epoch register has an endorse phase.
        epoch_locks: a proposal for the next epoch repeats the value of the highest lock among its promises.
        epoch_rounds: an elector endorses and accepts an epoch only in rounds not below its highest promise for it.
        check_cuts: an elector endorses an epoch only if it holds what its promises say is held of the removed authors.
    """

    lock_rule: bool = True
    fence_accepts: bool = True
    endorse_phase: bool = True
    count_members: bool = True
    check_named_grants: bool = True
    check_value_against_lock: bool = True
    claims_need_promises: bool = True
    lock_by_epoch: bool = True
    seal_at_promise: bool = True
    seal_stops_votes: bool = True
    initial_locks: bool = True
    epoch_endorse: bool = True
    epoch_locks: bool = True
    epoch_rounds: bool = True
    check_cuts: bool = True


ALL_RULES = ProtocolRules()
