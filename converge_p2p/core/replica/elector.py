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
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.oplog.bodies import Ballot, Lock, Phase, Purpose, Token
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import RoundVotes, StandingClaim, TaskRegister

LATENCY_FACTOR = 4
"""The grant timer is at least so many times what certificates take lately."""


@dataclass(slots=True)
class Promises:
    """What this elector signed about one task.

    Attributes:
        promised: highest granted round: endorsing and accepting below it is over.
        granted: claim it granted each round to.
        endorsed, accepted: value it voted for in each round.
    """

    promised: Token | None = None
    granted: dict[Token, OperationId] = field(default_factory=dict)
    endorsed: dict[Token, ValueHash] = field(default_factory=dict)
    accepted: dict[Token, ValueHash] = field(default_factory=dict)

    @property
    def lock(self) -> Lock | None:
        """The highest accepted value."""
        if not self.accepted:
            return None
        token = max(self.accepted)
        return Lock(token, self.accepted[token])

    @property
    def highest(self) -> Token | None:
        """The highest round it said anything in; it grants only above."""
        return max((*self.granted, *self.endorsed, *self.accepted), default=None)

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
    """

    hold_off_over: bool = False
    holding_off: bool = False
    expired: Token | None = None
    stalled: Token | None = None
    claim_timer: Token | None = None
    grant_timer: Token | None = None
    granted_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A timer the elector wants: (what for, in milliseconds)."""

    what: str
    delay_ms: int


class Elector:
    """The votes of the local identity in one pool."""

    def __init__(self, key: PublicKey, view: View) -> None:
        self._key = key
        self._view = view
        self.promises: dict[TaskId, Promises] = {}
        self._latency_ms = 0
        """How long certificates take lately, from the own grant: rises at once, falls slowly."""

    def note_own(self, epoch: int, ballots: tuple[Ballot, ...]) -> None:
        """Remember own ballots: when cast, and when read back after a restart."""
        for ballot in ballots:
            self.promises.setdefault(ballot.task, Promises()).note(epoch, ballot)

    def forget(self, task: TaskId) -> None:
        """Drop what was signed about a settled task: an elector never votes on it again."""
        self.promises.pop(task, None)

    def consider(
        self, register: TaskRegister, patience: Patience, now_ms: int, wait: Callable[[Wait], None]
    ) -> list[Ballot]:
        """Return the ballots that are due for a task now.

        Args:
            register: the task.
            patience: its local timers.
            now_ms: monotonic clock.
            wait: called for each timer that has to be set.
        """
        self._measure(register, patience, now_ms)
        if register.settled is not None or register.submitted is None:
            return []
        mine = self.promises.get(register.id) or Promises()
        ballots: list[Ballot] = []
        self._endorse_and_accept(register, mine, ballots)
        grant = self._grant(register, mine, patience, wait)
        if grant is not None:
            patience.granted_ms = now_ms
            ballots.append(grant)
        return ballots

    def _measure(self, register: TaskRegister, patience: Patience, now_ms: int) -> None:
        """Learn how long a certificate takes, so that a busy machine or a slow link does not open round after round."""
        if patience.granted_ms is None or patience.grant_timer is None:
            return
        if register.settled is not None or register.certified_id(patience.grant_timer) is not None:
            sample = now_ms - patience.granted_ms
            self._latency_ms = max(sample, (7 * self._latency_ms + sample) // 8)
            patience.granted_ms = None

    # ------------------------------------------------------------ endorse and accept

    def _endorse_and_accept(self, register: TaskRegister, mine: Promises, ballots: list[Ballot]) -> None:
        protocol = register.counting.protocol
        endorse = register.counting.rules.endorse if protocol.endorse_phase else None
        for token, votes in register.voted.items():
            if protocol.fence_accepts and mine.promised is not None and token < mine.promised:
                continue
            if token in mine.accepted:
                continue
            phase, value = Phase.ACCEPT, None
            if endorse is None:
                value = self._first_valid(register, token, votes)
            else:
                for candidate, voters in votes.endorsed.items():
                    if register.counting.enough(endorse, voters, votes.endorsed):
                        value = candidate
                if value is None and token not in mine.endorsed:
                    phase, value = Phase.ENDORSE, self._first_valid(register, token, votes)
            if value is not None:
                ballots.append(Ballot(phase, register.id, token.round, value))
                # a grant of this same turn has to tell of this accept: its lock is what keeps later rounds to the value
                (mine.accepted if phase is Phase.ACCEPT else mine.endorsed)[token] = value

    @staticmethod
    def _first_valid(register: TaskRegister, token: Token, votes: RoundVotes) -> ValueHash | None:
        holder = register.certified_claim(token)
        for report in votes.reports.values() if holder is not None else ():
            # reports of others are passed over before they cost anything
            if holder is not None and report.author == holder.author and register.valid(token, report):
                return report.value
        return None

    # ------------------------------------------------------------ grant

    def _grant(
        self, register: TaskRegister, mine: Promises, patience: Patience, wait: Callable[[Wait], None]
    ) -> Ballot | None:
        token = self._next_round(register, mine, patience)
        if token is None:
            self._wait_again(register, mine, patience, wait)
            return None
        claim = self._best_claim(register, token)
        if claim is None:
            return None
        policy = self._policy()
        others = any(grant.elector != self._key for grant in self._round(register, token).grants.values())
        alone = len(self._view.electors) == 1
        if not (patience.hold_off_over or others or alone or policy.hold_off_ms == 0):
            if not patience.holding_off:
                patience.holding_off = True
                wait(Wait("hold_off", policy.hold_off_ms))
            return None
        patience.hold_off_over = patience.holding_off = False
        self._await_certificate(token, patience, wait)
        expired = patience.expired
        tells = expired is not None and expired.epoch == token.epoch and expired < token
        return Ballot(
            Phase.GRANT,
            register.id,
            token.round,
            claim.operation,
            mine.lock,
            expired.round if expired is not None and tells else None,
        )

    def _await_certificate(self, token: Token, patience: Patience, wait: Callable[[Wait], None]) -> None:
        delay = max(self._policy().grant_timer_ms, LATENCY_FACTOR * self._latency_ms) << min(token.round, 8)
        patience.grant_timer = token
        wait(Wait("grant", min(delay, limits.GRANT_TIMER_MS_MAX)))

    def _wait_again(
        self, register: TaskRegister, mine: Promises, patience: Patience, wait: Callable[[Wait], None]
    ) -> None:
        """Set the grant timer that a restart forgot: otherwise a split vote with nobody else to come lasts for ever."""
        last, top = mine.highest, register.top
        if last is None or last != mine.promised or (top is not None and top > last):
            return
        if patience.grant_timer != last and register.certified_id(last) is None:
            self._await_certificate(last, patience, wait)

    def _next_round(self, register: TaskRegister, mine: Promises, patience: Patience) -> Token | None:
        """The round this elector may grant now, or None. Nobody may open a round beyond it."""
        highest, top = mine.highest, register.top
        if top is not None and (highest is None or top > highest):
            # more than f electors are ahead; where they already made a certificate, another promise adds nothing
            return None if register.certified_id(top) is not None else top
        if highest is None:
            return Token(0, 0)
        current = highest if top is None else max(highest, top)
        if patience.expired is not None and patience.expired >= current:
            return Token(current.epoch, current.round + 1)
        # a certificate that came after all ends the impatience
        stalled = patience.stalled is not None and patience.stalled >= current
        if stalled and register.certified_id(current) is None:
            return Token(current.epoch, current.round + 1)
        if self._round_is_over(register, current):
            return Token(current.epoch, current.round + 1)
        return None

    def _round_is_over(self, register: TaskRegister, token: Token) -> bool:
        """Whether the log itself shows that nothing more can come of a round, or that it may be superseded."""
        rules, votes = register.counting.rules, self._round(register, token)
        holder = register.certified_claim(token)
        if holder is not None:
            if (holder.author, token) in register.releases:
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

    def _cancel_waits(self, register: TaskRegister, token: Token) -> bool:
        """Whether somebody wants to cancel and had no round for it yet. One that had it and vanished waits its turn."""
        had = _last_held(register, token)
        return any(
            claim.purpose is Purpose.CANCEL
            and (claim.author, claim.purpose) not in had
            and self._eligible(register, claim)
            for claim in register.claims.values()
        )

    def _best_claim(self, register: TaskRegister, token: Token) -> StandingClaim | None:
        """The claim to grant a round to, by the pool's assignment rule, the same for all who know the same claims."""
        claims = [claim for claim in register.claims.values() if self._eligible(register, claim)]
        if not claims:
            return None
        had = _last_held(register, token)
        best = min(claims, key=lambda claim: _rank(register, claim, token, had))
        votes, rules = self._round(register, token), register.counting.rules
        spoken = {voter for claim, voters in votes.granted.items() if claim != best.operation for voter in voters}
        if spoken and not rules.grant.reachable(spoken):
            # the best claim can no longer win this round: help the one that is ahead instead of splitting further
            ahead = [claim for claim in claims if votes.granted.get(claim.operation)]
            if ahead:
                return max(ahead, key=lambda claim: (len(votes.granted[claim.operation]), claim.operation))
        return best

    def _eligible(self, register: TaskRegister, claim: StandingClaim) -> bool:
        submitted, members = register.submitted, self._view.members
        if submitted is None or not register.stands(claim) or not members.active(claim.author):
            return False
        exhausted = register.exhausted(self._policy().max_retries)
        match claim.purpose:
            case Purpose.CANCEL:
                return claim.entitled == submitted.author
            case Purpose.FAIL:
                return exhausted and (claim.author == submitted.author or claim.author in self._view.electors)
            case Purpose.WORK:
                able = set(submitted.spec.required_capabilities) <= set(members.capabilities(claim.author))
                return able and not exhausted

    @staticmethod
    def _round(register: TaskRegister, token: Token) -> RoundVotes:
        return register.rounds.get(token) or RoundVotes()

    def _policy(self) -> PoolPolicy:
        assert self._view.spec is not None
        return self._view.spec.policy


def _last_held(register: TaskRegister, token: Token) -> dict[tuple[PublicKey, Purpose], Token]:
    """Who held a round before this one, for what, and the last such round."""
    had: dict[tuple[PublicKey, Purpose], Token] = {}
    for held, claim in register.held_rounds():
        if held < token:
            who = (claim.author, claim.purpose)
            had[who] = max(held, had.get(who, held))
    return had


def _rank(
    register: TaskRegister, claim: StandingClaim, token: Token, had: dict[tuple[PublicKey, Purpose], Token]
) -> tuple[bool, Token, int, bytes, OperationId]:
    order = {Purpose.CANCEL: 0, Purpose.FAIL: 1, Purpose.WORK: 2}[claim.purpose]
    # whoever had its chance comes after everybody who had none, and then they take turns: a canceller or a worker
    # that died may not keep a round from those who live
    turn = had.get((claim.author, claim.purpose), Token(-1, -1))
    tie = tagged_hash("claim-rank", register.id, token.round.to_bytes(8, "big"), claim.author)
    return register.reported_twice(claim.author), turn, order, tie, claim.operation
