"""What an elector votes, and what it must remember so that it never votes against itself.

Knows: the rules of promising, endorsing and accepting, and local patience. Must not know: how votes travel.
Source: `docs/protocol.md`, task register. Safety is in `Promises`; everything else only decides *when* to vote.

The memory is rebuilt from the elector's own votes, which are durable before they are sent. So a crash forgets nothing
that anybody else has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from converge_p2p.core import limits
from converge_p2p.core.model.pool import AssignmentRule, PoolPolicy
from converge_p2p.core.oplog.bodies import Ballot, Lock, Phase, Purpose, Token
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.replica.holdings import Holdings
from converge_p2p.core.replica.ranking import best_claim, eligible, last_held
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.changes import EpochRegister
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import NOBODY, Register, RoundVotes, StandingClaim
from converge_p2p.core.view.tasks import TaskRegister
from converge_p2p.core.view.vetoes import VetoRegister

SUCCESSOR_PATIENCE = 4
"""The successor of a leader lets it so many grant timers' time to decide a round."""

HOLD_OFF_ROUNDS = 2
"""After so many rounds rival claims are collected for longer and longer."""

LATENCY_FACTOR = 4
"""The grant timer is at least so many times what certificates take lately."""


@dataclass(slots=True)
class Promises:
    """What this elector signed about one subject.

    Attributes:
        promised: highest granted round: endorsing and accepting below it is over.
        granted: claim it granted each round to.
        endorsed, accepted: value it voted for in each round.
    """

    promised: Token | None = None
    granted: dict[Token, OperationId] = field(default_factory=dict)
    endorsed: dict[Token, ValueHash] = field(default_factory=dict)
    accepted: dict[Token, ValueHash] = field(default_factory=dict)

    def lock(self, epoch: int | None) -> Lock | None:
        """The highest value accepted in an epoch: what came before it is in the lock the epoch began with.

        Args:
            epoch: None takes all of them (only the simulator does, to show what that breaks).
        """
        tokens = [token for token in self.accepted if epoch is None or token.epoch == epoch]
        if not tokens:
            return None
        token = max(tokens)
        return Lock(token, self.accepted[token])

    def highest(self, epoch: int) -> Token | None:
        """The highest round of an epoch it said anything in; it grants only above."""
        said = (*self.granted, *self.endorsed, *self.accepted)
        return max((token for token in said if token.epoch == epoch), default=None)

    def note(self, epoch: int, ballot: Ballot) -> None:
        """Remember an own ballot, at the moment it is cast or read back."""
        token = Token(epoch, ballot.round)
        match ballot.phase:
            case Phase.GRANT:
                self.granted[token] = OperationId(ballot.ref)
                self.promised = token if self.promised is None else max(self.promised, token)
            case Phase.ENDORSE:
                self.endorsed[token] = ValueHash(ballot.ref)
            case Phase.ACCEPT:
                self.accepted[token] = ValueHash(ballot.ref)


@dataclass(slots=True)
class Patience:
    """Local timers of one task. They decide when to vote, never what is right.

    Attributes:
        hold_off_over: rival claims were collected long enough for the next grant.
        holding_off: the hold-off timer runs.
        expired: the holder of this round ran out of time.
        stalled: this round got no certificate in time.
        claim_timer: the round whose holder's time is being measured.
        grant_timer: the round whose certificate is being waited for.
        granted_ms: when it was granted, on the monotonic clock; None once the certificate was seen.
        window_runs, window_over: the time runs that vetoers have, or is over.
    """

    hold_off_over: bool = False
    holding_off: bool = False
    expired: Token | None = None
    stalled: Token | None = None
    claim_timer: Token | None = None
    grant_timer: Token | None = None
    granted_ms: int | None = None
    window_runs: bool = False
    window_over: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """A timer the elector wants: (what for, in milliseconds)."""

    what: str
    delay_ms: int


class Elector:
    """The votes of the local identity in one pool. It remembers them also while it is no elector."""

    def __init__(self, key: PublicKey, view: View, held: Callable[[PublicKey], Cut], holdings: Holdings) -> None:
        """Begin without votes.

        Args:
            key: the local identity.
            view: the fold.
            held: how much of an author's chain is held here.
            holdings: whether as much is held here as others say.
        """
        self._key = key
        self._view = view
        self._held = held
        self._holdings = holdings
        self.promises: dict[TaskId, Promises] = {}
        self._latency_ms = 0
        """How long certificates take lately, from the own grant: rises at once, falls slowly."""

    def note_own(self, epoch: int, ballots: tuple[Ballot, ...]) -> None:
        """Remember own ballots: when cast, and when read back after a restart."""
        for ballot in ballots:
            self.promises.setdefault(ballot.task, Promises()).note(epoch, ballot)

    def forget(self, task: TaskId) -> None:
        """Drop what was signed about a settled subject: an elector never votes on it again."""
        self.promises.pop(task, None)

    @property
    def sealed(self) -> bool:
        """Whether it promised the next epoch: that ended its votes on tasks in this one."""
        change = self._view.next_change
        mine = self.promises.get(change.id)
        return mine is not None and any(token.epoch == change.now for token in mine.granted)

    def consider(
        self, register: Register, patience: Patience, now_ms: int, wait: Callable[[Wait], None]
    ) -> list[Ballot]:
        """Return the ballots that are due for a subject now.

        Args:
            register: the subject.
            patience: its local timers.
            now_ms: monotonic clock.
            wait: called for each timer that has to be set.
        """
        self._measure(register, patience, now_ms)
        if not register.is_open or self._key not in self._view.electors:
            return []
        if isinstance(register, VetoRegister) and not patience.window_runs and not register.terms.silence_denies:
            patience.window_runs = True
            wait(Wait("window", register.terms.window_ms))
        protocol = self._view.epochs.protocol
        sealed = protocol.seal_at_promise and not isinstance(register, EpochRegister) and self.sealed
        if sealed and protocol.seal_stops_votes:
            return []
        mine = self.promises.get(register.id) or Promises()
        ballots: list[Ballot] = []
        self._endorse_and_accept(register, mine, ballots)
        grant = None if sealed else self._grant(register, mine, patience, wait)
        if grant is not None:
            patience.granted_ms = now_ms
            ballots.append(grant)
        return ballots

    def _measure(self, register: Register, patience: Patience, now_ms: int) -> None:
        """Learn how long a certificate takes, so that a busy machine or a slow link does not open round after round."""
        if patience.granted_ms is None or patience.grant_timer is None:
            return
        if register.settled is not None or register.certified_id(patience.grant_timer) is not None:
            sample = now_ms - patience.granted_ms
            self._latency_ms = max(sample, (7 * self._latency_ms + sample) // 8)
            patience.granted_ms = None

    # ------------------------------------------------------------ endorse and accept

    def _endorse_and_accept(self, register: Register, mine: Promises, ballots: list[Ballot]) -> None:
        counting = register.counting(register.now)
        protocol = counting.protocol
        endorse = counting.rules.endorse if protocol.endorse_phase else None
        for token, votes in register.voted.items():
            if token.epoch != register.now:
                continue
            if protocol.fence_accepts and mine.promised is not None and token < mine.promised:
                continue
            if token in mine.accepted:
                continue
            phase, value = Phase.ACCEPT, None
            if endorse is None:
                value = self._first_valid(register, token, votes)
            else:
                for candidate, voters in votes.endorsed.items():
                    if counting.enough(endorse, voters, votes.endorsed):
                        value = candidate
                if value is None and token not in mine.endorsed:
                    phase, value = Phase.ENDORSE, self._first_valid(register, token, votes)
            if phase is Phase.ENDORSE and value is not None and not self._may_record(register, votes, value):
                continue
            if value is not None:
                ballots.append(Ballot(phase, register.id, token.round, value))
                # a grant of this same turn has to tell of this accept: its lock is what keeps later rounds to the value
                (mine.accepted if phase is Phase.ACCEPT else mine.endorsed)[token] = value

    def _first_valid(self, register: Register, token: Token, votes: RoundVotes) -> ValueHash | None:
        holder, certified = register.certified_claim(token), register.certified_id(token)
        if certified is None and register.counting(token.epoch).protocol.claims_need_promises:
            return None
        rivals: list[ValueHash] = []
        for report in votes.reports.values():
            # reports of others are passed over before they cost anything; only a lying granter has two holders
            if holder is not None and report.author != holder.author and _granter(register, token) is None:
                continue
            if register.valid(token, report) and self._holdings.supports(register, token, report.grants):
                if not isinstance(register, TaskRegister) or not register.counting(token.epoch).rules.cites:
                    return report.value
                rivals.append(report.value)
        # where several report, the one for which most evidence speaks; of equal ones the first that came
        return self._most_evident(register, token, rivals) if isinstance(register, TaskRegister) else None

    @staticmethod
    def _most_evident(register: TaskRegister, token: Token, rivals: list[ValueHash]) -> ValueHash | None:
        if len(rivals) < 2:
            return rivals[0] if rivals else None
        return max(rivals, key=lambda value: register.preference(value, token.epoch))

    # ------------------------------------------------------------ grant

    def _grant(
        self, register: Register, mine: Promises, patience: Patience, wait: Callable[[Wait], None]
    ) -> Ballot | None:
        token = self._next_round(register, mine, patience, wait)
        if token is None:
            self._wait_again(register, mine, patience, wait)
            return None
        claim = best_claim(self._view, register, token)
        if claim is None or not self._may_pass(register, claim, mine, patience):
            return None
        delay = self._hold_off_ms(register, token)
        decided = self._decided(register, token)
        if register.counting(token.epoch).rules.deciders and decided is not None:
            claim = register.claims.get(decided, claim)
        elif delay is None:
            return None
        if not (patience.hold_off_over or decided is not None or delay == 0):
            if not patience.holding_off:
                patience.holding_off = True
                wait(Wait("hold_off", delay or 0))
            return None
        patience.hold_off_over = patience.holding_off = False
        self._await_certificate(token, patience, wait)
        expired = patience.expired
        tells = expired is not None and expired.epoch == token.epoch and expired < token
        by_epoch = self._view.epochs.protocol.lock_by_epoch
        several = isinstance(register, TaskRegister) and register.speculative
        return Ballot(
            Phase.GRANT,
            register.id,
            token.round,
            NOBODY if several else claim.operation,
            mine.lock(register.now if by_epoch else None),
            expired.round if expired is not None and tells else None,
            self._held_of_expelled(register, claim.ref),
        )

    @staticmethod
    def _may_pass(register: Register, claim: StandingClaim, mine: Promises, patience: Patience) -> bool:
        """Whether vetoers need not be waited for: a promise for a claim to pass says so. None of them denied it yet."""
        if not isinstance(register, VetoRegister) or claim.purpose is not Purpose.PASS:
            return True
        # who accepted a value already is bound to it, and says so in its promise
        return patience.window_over or register.passed_by_all or bool(mine.accepted)

    def _decided(self, register: Register, token: Token) -> OperationId | None:
        """The claim to follow at once: one that another granted this round to; where there are deciders, theirs."""
        grants = [grant for grant in self._round(register, token).grants.values() if grant.elector != self._key]
        for decider in register.counting(token.epoch).rules.deciders:
            for grant in grants:
                if grant.elector == decider and grant.claim in register.claims:
                    return grant.claim
        if register.counting(token.epoch).rules.deciders:
            return None
        return grants[0].claim if grants else None

    def _hold_off_ms(self, register: Register, token: Token) -> int | None:
        """How long to let rival claims arrive before a grant; None for who only records what others decide.

        The successor gives the leader time to speak first, and then follows it.
        """
        policy, deciders = self._policy(), register.counting(token.epoch).rules.deciders
        if deciders and self._key != deciders[0]:
            return SUCCESSOR_PATIENCE * policy.grant_timer_ms if self._key in deciders else None
        # who decides alone need not see rival claims for safety; only where one may be better than the first
        alone = len(self._view.electors) == 1 and policy.assignment is AssignmentRule.FIRST
        if alone or _granter(register, token) is not None:
            return 0
        # rounds that follow each other faster than news of them travel are all split: give it more and more time
        doublings = min(max(0, token.round - HOLD_OFF_ROUNDS), limits.HOLD_OFF_DOUBLINGS_MAX)
        return min((policy.hold_off_ms or bool(doublings)) << doublings, limits.GRANT_TIMER_MS_MAX)

    def _may_record(self, register: Register, votes: RoundVotes, value: ValueHash) -> bool:
        """Whether an endorsement is this elector's to give: a witness gives none before a decider did."""
        deciders = register.counting(register.now).rules.deciders
        return not deciders or self._key in deciders or not votes.endorsed.get(value, set()).isdisjoint(deciders)

    def _held_of_expelled(self, register: Register, motion: bytes) -> tuple[Cut, ...]:
        """In a promise for the next epoch, how much is held of each author that it removes: there they are cut."""
        if not isinstance(register, EpochRegister):
            return ()
        change = register.motions.get(OperationId(motion))
        return () if change is None else tuple(self._held(author) for author in change.expelled)

    def _await_certificate(self, token: Token, patience: Patience, wait: Callable[[Wait], None]) -> None:
        delay = max(self._policy().grant_timer_ms, LATENCY_FACTOR * self._latency_ms) << min(token.round, 8)
        patience.grant_timer = token
        wait(Wait("grant", min(delay, limits.GRANT_TIMER_MS_MAX)))

    def _wait_again(self, register: Register, mine: Promises, patience: Patience, wait: Callable[[Wait], None]) -> None:
        """Set the grant timer that a restart forgot: otherwise a split vote with nobody else to come lasts for ever."""
        last, top = mine.highest(register.now), register.top
        if last is None or last != mine.promised or (top is not None and top > last):
            return
        if patience.grant_timer != last and register.certified_id(last) is None:
            self._await_certificate(last, patience, wait)

    def _next_round(
        self, register: Register, mine: Promises, patience: Patience, wait: Callable[[Wait], None]
    ) -> Token | None:
        """The round this elector may grant now, or None. Nobody may open a round beyond it."""
        highest, top = mine.highest(register.now), register.top
        if top is not None and (highest is None or top > highest):
            if register.certified_id(top) is None:
                return top
            if _granter(register, top) is None and self._key not in register.counting(top.epoch).rules.deciders:
                # more than f electors are ahead and made a certificate: another promise adds nothing. A decider goes on
                # from there: where another one led the witnesses there, and is gone, they wait for this one
                return None
            current = top
        elif highest is None:
            current = Token(register.now, 0)
            granter = _granter(register, current)
            if granter in (None, self._key):
                return current
            # everybody else promised this round to the granter; they only watch whether it speaks
            if patience.grant_timer != current and best_claim(self._view, register, current) is not None:
                self._await_certificate(current, patience, wait)
        else:
            current = highest
        if current.round == limits.ROUND_MAX:
            return None
        following = Token(current.epoch, current.round + 1)
        if self._is_led_to(register, following):
            return following
        if isinstance(register, TaskRegister) and register.denied(current) and not register.denied_by_agent(current):
            # what a rule denies no log shows, so that it counts like a holder that ran out of time: if enough say so
            patience.expired = current
        if patience.expired is not None and patience.expired >= current:
            return following
        # a certificate that came after all ends the impatience
        stalled = patience.stalled is not None and patience.stalled >= current
        if stalled and register.certified_id(current) is None:
            if highest != current or (top is not None and current <= top):
                return following
            # alone ahead of the others, who may not follow one elector that could lie. They come by their own timers,
            # and whoever went on meanwhile would be ahead for ever, and could endorse nothing that they come to
            patience.stalled = None
            self._await_certificate(current, patience, wait)
        return following if self._round_is_over(register, current) else None

    def _is_led_to(self, register: Register, token: Token) -> bool:
        """Whether a decider granted a round that this witness did not: it goes along, for it judges nothing.

        Were it to wait for its own timers, a leader whose clock is quick would be some rounds ahead for ever, and where
        every witness is needed nothing would be settled.
        """
        deciders = register.counting(token.epoch).rules.deciders
        if not deciders or self._key in deciders:
            return False
        return any(grant.elector in deciders for grant in self._round(register, token).grants.values())

    def _round_is_over(self, register: Register, token: Token) -> bool:
        """Whether the log itself shows that nothing more can come of a round, or that it may be superseded."""
        rules, votes = register.counting(token.epoch).rules, self._round(register, token)
        holder = register.certified_claim(token)
        if holder is not None:
            if (holder.author, token) in register.releases:
                return True
            if isinstance(register, TaskRegister) and register.denied_by_agent(token):
                return True
            if holder.purpose is not Purpose.CANCEL and self._cancel_waits(register, token):
                return True
            if rules.endorse is not None and votes.endorsed:
                everybody = {voter for voters in votes.endorsed.values() for voter in voters}
                return not any(
                    rules.endorse.reachable(everybody - voters) for voters in votes.endorsed.values()
                ) and not rules.endorse.reachable(everybody)
            return False
        if register.certified_id(token) is not None or not votes.granted:
            return False
        everybody = {voter for voters in votes.granted.values() for voter in voters}
        undecided_could = rules.grant.reachable(everybody)
        return not undecided_could and not any(
            rules.grant.reachable(everybody - voters) for voters in votes.granted.values()
        )

    def _cancel_waits(self, register: Register, token: Token) -> bool:
        """Whether somebody wants to cancel and had no round for it yet. One that had it and vanished waits its turn."""
        had = last_held(register, token)
        return any(
            claim.purpose is Purpose.CANCEL
            and (claim.author, claim.purpose) not in had
            and eligible(self._view, register, claim)
            for claim in register.claims.values()
        )

    @staticmethod
    def _round(register: Register, token: Token) -> RoundVotes:
        return register.rounds.get(token) or RoundVotes()

    def _policy(self) -> PoolPolicy:
        assert self._view.spec is not None
        return self._view.spec.policy


def _granter(register: Register, token: Token) -> PublicKey | None:
    """Who alone grants a round of the fast path, or None."""
    return register.granter(token) if isinstance(register, TaskRegister) else None
