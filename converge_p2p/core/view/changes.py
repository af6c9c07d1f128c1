"""The register of the next epoch: who proposes it, what it is made of, and when it can be installed.

Knows: the promises for an epoch, and which value may be proposed. Must not know: clocks, or how a motion is voted on.
Source: `docs/protocol.md`, epochs. A promise is a grant in this register; it ends the elector's votes in the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.models import ProtocolRules
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.model.task import Outcome
from converge_p2p.core.oplog.bodies import Lock, Purpose, ReportBody, Token
from converge_p2p.core.oplog.cuts import Cut
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.types import OperationId, PublicKey, TaskId, ValueHash
from converge_p2p.core.view.early import EarlyQuota, accepts_of, early_ballots
from converge_p2p.core.view.epochs import Counting, Epochs, EpochValue
from converge_p2p.core.view.register import Grant, Offer, Register, StandingClaim


class Change(NamedTuple):
    """What a carried motion asks for.

    Attributes:
        expelled: authors to remove, sorted.
        spec: the terms of the next epoch.
    """

    expelled: tuple[PublicKey, ...]
    spec: PoolSpec


class EpochRegister(Register):
    """The register of one epoch number, voted on by the electors of the epoch before."""

    __slots__ = ("_carried", "_early_values", "_locks_justified", "_quota", "early", "number", "promises")

    def __init__(
        self,
        subject: TaskId,
        number: int,
        epochs: Epochs,
        carried: Callable[[], Mapping[OperationId, Change]],
        locks_justified: Callable[[Mapping[PublicKey, int]], bool],
    ) -> None:
        """Make the register of an epoch.

        Args:
            subject: what votes on it name.
            number: of the epoch.
            epochs: those installed so far.
            carried: gives the changes that were carried in the epoch before, by motion.
            locks_justified: whether everything that these electors accepted before those seqs was endorsed by a quorum.
        """
        super().__init__(subject, epochs)
        self.number = number
        self.promises: dict[OperationId, Grant] = {}
        """Every promise, kept after settlement too: the epoch is made of them."""
        self.early: dict[OperationId, bytes] = {}
        """Signed votes and reports that were counted while they waited for a predecessor: the log may never hold them,
        and whoever has to prove the epoch, or to learn of it, needs them."""
        self._early_values: dict[ValueHash, dict[OperationId, None]] = {}
        self._quota = EarlyQuota()
        self._carried = carried
        self._locks_justified = locks_justified

    @property
    def is_open(self) -> bool:
        """Whether a change was carried and the next epoch is not certified."""
        return self.settled is None and bool(self._carried())

    @property
    def now(self) -> int:
        """The epoch whose electors vote."""
        return self.number - 1

    @property
    def motions(self) -> Mapping[OperationId, Change]:
        """The changes that may be proposed."""
        return self._carried()

    def counting(self, epoch: int) -> Counting:
        """How its votes are counted."""
        return self.epochs[epoch].changing

    def initial_lock(self, _epoch: int, /) -> Lock | None:
        """None: every number has a register of its own, and its votes are all of one epoch."""
        return None

    def add_grant(self, token: Token, vote: OperationId, grant: Grant) -> None:
        """Count a promise, and keep it."""
        self.promises[vote] = grant
        super().add_grant(token, vote, grant)

    def admit_early(self, operation: Operation, *, trusted: bool) -> tuple[Operation, ...] | None:
        """The operations to count now that this one came, which waits for a predecessor.

        Args:
            operation: of an elector of the epoch before.
            trusted: it was counted before a restart, so no bound holds.

        Returns:
            It; or nothing, if its author said too much. Then it counts, with others of which the same is true, once
            they settle the register, or tell what it is settled on. None if it says nothing of this register.
        """
        body = operation.body
        says = body.task == self.id if isinstance(body, ReportBody) else bool(early_ballots(self.id, operation))
        if not says:
            return None
        if trusted or (isinstance(body, ReportBody) and body.value.hash == self.settled):
            self._quota.force(operation)
        elif not self._quota.take(operation):
            return self._settling(operation)
        return (operation,)

    def _settling(self, operation: Operation) -> tuple[Operation, ...]:
        """What was too much of its authors, and settles the register with what this operation accepts."""
        accepts = list(accepts_of(self.id, operation))
        if self.settled is not None or not accepts:
            return ()
        self._quota.remember(operation)
        for accept in accepts:
            value, token = ValueHash(accept.ref), Token(operation.epoch, accept.round)
            over = [held for held in self._quota.over if accept in accepts_of(self.id, held)]
            accepted = self.rounds[token].accepted if token in self.rounds else {}
            voters = {*accepted.get(value, ()), *(held.author for held in over)}
            counting = self.counting(operation.epoch)
            if counting.enough(counting.rules.accept, voters, {**accepted, value: voters}):
                for held in over:
                    self._quota.force(held)
                return tuple(over)
        return ()

    def keep_early(self, operation: Operation) -> None:
        """Keep what was counted early, if it says what the register is settled on or may be, or accepts that."""
        name, body = operation.id, operation.body
        if isinstance(body, ReportBody):
            self.add_value(body.value)
            if body.value.hash in self.values:
                self._early_values.setdefault(body.value.hash, {})[name] = None
                self.early[name] = operation.signed
        elif any(accepts_of(self.id, operation)):
            if self.settled is None or name in self.certificate.values():
                self.early[name] = operation.signed
            if self.settled is not None:
                certified = {*self.certificate.values(), *self._early_values.get(self.settled, ())}
                self.early = {kept: signed for kept, signed in self.early.items() if kept in certified}

    # ------------------------------------------------------------ the value

    def propose(
        self, claim: StandingClaim, grants: Mapping[OperationId, Grant], key_commit: bytes = b""
    ) -> EpochValue | None:
        """The value that a claim may propose on these promises, or None if they do not fit it.

        Args:
            key_commit: of a private pool, the commitment to the content key that comes with the epoch.
        """
        change = self._carried().get(OperationId(claim.ref))
        if change is None:
            return None
        cuts = []
        for author in change.expelled:
            held = [cut for grant in grants.values() for cut in grant.held if cut.author == author]
            if not held or len(held) != len(grants):
                return None
            # its own promise, if the epoch is made of it, has to stay part of its chain
            held += [Cut(author, grant.seq + 1, vote) for vote, grant in grants.items() if grant.elector == author]
            cuts.append(max(held, key=lambda cut: (cut.length, cut.head or b"")))
        before = self.epochs[self.number - 1].hash
        promises = tuple(sorted(grants))
        return EpochValue(self.number, before, OperationId(claim.ref), change.spec, tuple(cuts), promises, key_commit)

    def allows(self, offer: Offer) -> bool:
        """Whether the value is the change its claim named, on the promises its report names."""
        _, claim, value, grants = offer
        if claim.purpose is not Purpose.EPOCH or value.worker != claim.author or value.outcome is not Outcome.COMPLETED:
            return False
        named = {vote: self.promises[vote] for vote in grants if vote in self.promises}
        try:
            key_commit = EpochValue.from_bytes(value.result).key_commit
        except CodecError:
            return False
        # which key comes with a private pool's epoch is up to whoever proposes it; elsewhere there is none
        if bool(key_commit) is not self.epochs[self.now].spec.private:
            return False
        expected = self.propose(claim, named, key_commit)
        if expected is None or len(named) != len(grants) or expected.to_bytes() != value.result:
            return False
        return self.fit(named.values())

    def usable(self, token: Token, grant: Grant, protocol: ProtocolRules) -> bool:
        """Whether a proposal may rest on a promise: not on one of an elector that forked, or accepted what it may not.

        Nobody endorses an epoch that is made of such a promise, so a proposer that named it would get nowhere.
        """
        return super().usable(token, grant, protocol) and self.fit((grant,))

    def fit(self, promises: Collection[Grant]) -> bool:
        """Whether an epoch may be made of these promises: what their electors accepted before them is justified."""
        if any(grant.elector in self.epochs.frozen for grant in promises):
            return False
        return self._locks_justified({grant.elector: grant.seq for grant in promises})

    def installable(self) -> tuple[EpochValue, dict[PublicKey, int]] | None:
        """The value that was certified and who promised it, at which seq, once all of that is here.

        An elector that promised several times is sealed from the first of the promises named.
        """
        value = self.value
        if value is None:
            return None
        try:
            epoch = EpochValue.from_bytes(value.result)
        except CodecError:
            return None
        promised: dict[PublicKey, int] = {}
        for vote in epoch.promises:
            grant = self.promises.get(vote)
            if grant is None:
                return None
            promised[grant.elector] = min(grant.seq, promised.get(grant.elector, grant.seq))
        return epoch, promised
