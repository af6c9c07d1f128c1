"""Where the own chain ends, when the own store cannot be trusted to know.

Knows: what others say of the chain of the local identity, and when that is enough. Must not know: how chains are
fetched (see `session`), or why the store is in doubt (the shell says so).
Source: `docs/protocol.md`, restored stores. Amnesia is equivocation: who signs a number a second time has forked.

An answer carries the last operation itself, whose signature is the own one: so nobody can claim more than there is, and
what is claimed truly exists and has to be fetched. A liar can only claim less; hence a quorum is asked, which shares an
honest elector with every quorum that an own vote may have been part of. A vote that is part of none yet may be held by
somebody who is away, and found when it is too late: so nothing is voted in the epochs in which it may have been cast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, OwnChainUnsure, RemoteViolation
from converge_p2p.core.governance.compile import check_rules
from converge_p2p.core.governance.rules import Ruleset
from converge_p2p.core.model.pool import PoolSpec
from converge_p2p.core.oplog.log import Missing, OperationLog
from converge_p2p.core.oplog.operation import decode_operation
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.session import Sessions
from converge_p2p.core.replica.wire import SyncMessage, Tip, TipWanted, encode_message
from converge_p2p.core.types import PeerId, PublicKey
from converge_p2p.core.view.fold import View

ASK_AGAIN_MS = 1000
"""Whoever did not answer is asked again, for a question and an answer may be lost."""

STRAGGLERS_MS = 5000
"""After a quorum answered, so long every other peer that is up is waited for: it may hold what no elector holds."""


class OwnTip:
    """Whether the local identity may sign, and if not, what it learned of its own chain so far."""

    def __init__(
        self,
        key: PublicKey,
        log: OperationLog,
        view: View,
        sessions: Sessions,
        put: Callable[[ev.Effect], None],
        set_timer: Callable[[int], None],
    ) -> None:
        """Begin without doubt.

        Args:
            key: the local identity.
            log: what is held here.
            view: the fold: who votes.
            sessions: fetches what is missing.
            put: takes effects.
            set_timer: called with a delay in milliseconds; `ask` is due then.
        """
        self._key = key
        self._log = log
        self._view = view
        self._sessions = sessions
        self._put = put
        self._set_timer = set_timer
        self._peers: dict[PeerId, PublicKey | None] = {}
        self._answered: dict[PeerId, None] = {}
        self._told: dict[PublicKey, int] = {}
        """The epoch that each elector knew when it answered. Kept when its connection ends."""
        self._goal = 0
        self._quorum_ms: int | None = None
        self._trusted = False
        self._spare: tuple[int, bool] = (-1, False)
        self.unsure = False
        """Whether nothing may be signed yet."""
        self.silent_through = -1
        """Up to this epoch own votes may have been forgotten."""

    def may_vote_now(self) -> bool:
        """Whether the own chain is known, and no own vote may have been forgotten."""
        return not self.unsure and self.may_vote()

    # ------------------------------------------------------------ asking

    def doubt(self) -> None:
        """The store may be an old copy: sign nothing before the end of the own chain is learned."""
        self.unsure = True
        self._set_timer(0)

    def trust(self) -> None:
        """The operator answers for the store."""
        self._trusted = True
        self.silent_through = -1

    def peer_up(self, peer: PeerId, key: PublicKey | None) -> None:
        """Ask a new peer.

        Args:
            peer: the peer.
            key: the identity that its connection proves, if it does; without one its answer is no elector's.
        """
        if peer not in self._peers and len(self._peers) >= limits.PEERS_MAX:
            return
        self._peers[peer] = key
        if self.unsure:
            self._send(peer, TipWanted(self._key))

    def peer_down(self, peer: PeerId) -> None:
        """Wait for a peer no longer. What it answered stands."""
        self._peers.pop(peer, None)
        self._answered.pop(peer, None)

    def ask(self) -> None:
        """Ask whoever did not answer, or became known as an elector since, and see to it that this goes on."""
        if not self.unsure:
            return
        for peer, key in self._peers.items():
            if peer not in self._answered or (key in self._view.electors and key not in self._told):
                self._send(peer, TipWanted(self._key))
        self._set_timer(ASK_AGAIN_MS)

    def _send(self, peer: PeerId, message: SyncMessage) -> None:
        self._put(ev.Send(peer, encode_message(message)))

    # ------------------------------------------------------------ answers

    def on_message(self, peer: PeerId, message: TipWanted | Tip, now_ms: int) -> None:
        """Answer a question, or take an answer."""
        if isinstance(message, TipWanted):
            self._answer(peer, message)
        else:
            self._hear(peer, message, now_ms)

    def _answer(self, peer: PeerId, message: TipWanted) -> None:
        """Tell a peer how far a chain goes here. A store that is in doubt itself is no witness."""
        if self._view.spec is None or self.unsure:
            return
        self._send(peer, Tip(message.author, self._view.epochs.number, self._log.last_of(message.author)))

    def _hear(self, peer: PeerId, message: Tip, now_ms: int) -> None:
        """Take an answer, and ask whoever gave it for what is missing here."""
        if not self.unsure or message.author != self._key or peer not in self._peers:
            return
        length = 0
        if message.last:
            try:
                operation = decode_operation(message.last, self._log.pool)
                if operation.author != self._key:
                    raise RemoteViolation("bad_sync_message", "the operation that was shown is of somebody else")
            except RemoteViolation as violation:
                self._put(ev.Emit(ev.Rejected(peer, violation.reason)))
                return
            length = operation.seq + 1
        self._goal = max(self._goal, length)
        self._answered[peer] = None
        key = self._peers[peer]
        if key is not None and key in self._view.electors:
            self._told[key] = message.epoch
        if length > self._log.length(self._key):
            self._sessions.on_gap(peer, Missing(self._key, 0, length), now_ms)

    # ------------------------------------------------------------ enough

    def learned(self, now_ms: int) -> bool:
        """Whether the doubt is over by now, and was not before."""
        if not self.unsure:
            return False
        if not self._quorum_answered():
            self._quorum_ms = None
        elif self._quorum_ms is None:
            self._quorum_ms = now_ms
        if self.lacking(now_ms) and not self._trusted:
            return False
        self.unsure = False
        if not self._trusted:
            # the epoch after the one in force may have been in force here already, when nobody else knew yet
            self.silent_through = self._view.epochs.number + 1
        return True

    def may_vote(self) -> bool:
        """Whether a vote in the epoch in force cannot contradict one that was forgotten, or does no harm if it does."""
        if self._view.spec is None or self._view.epochs.number > self.silent_through:
            return True
        epoch = self._view.epochs.current
        if self._spare[0] != epoch.number:
            self._spare = epoch.number, _needs(epoch.spec, epoch.counting.rules, self._key)
        return self._spare[1]

    def check_sure(self, now_ms: int) -> None:
        """See to it that nothing is signed in doubt.

        Raises:
            OwnChainUnsure: the store is in doubt.
        """
        if self.unsure:
            raise OwnChainUnsure(
                f"the store may be an old copy, so this agent signs nothing yet: {self.reason(now_ms)}",
                hint="connect to the pool's electors, or give the agent a new key",
            )

    def reason(self, now_ms: int) -> str:
        """Why nothing is signed; empty if all is well."""
        return self.lacking(now_ms) if self.unsure else ""

    def lacking(self, now_ms: int) -> str:
        """What is still missing before anything may be signed; empty if nothing is."""
        if self._view.spec is None:
            return "the pool's founding terms are not known here yet"
        if self._quorum_ms is None or not self._quorum_answered():
            return "too few electors have said how far this agent's own operations go"
        if self._log.frozen_at(self._key) is not None:
            return "this agent's key signed two operations with one number, or was removed"
        if self._log.length(self._key) < self._goal:
            return f"{self._goal - self._log.length(self._key)} of this agent's own operations are not here yet"
        if now_ms < self._quorum_ms + STRAGGLERS_MS and not self._peers.keys() <= self._answered.keys():
            return "not every connected peer has said how far this agent's own operations go"
        return ""

    def _quorum_answered(self) -> bool:
        """Whether every quorum that an own vote was part of shares an elector with those who answered.

        The own key does not count: it is what forgot. Where nothing can be decided without it, all others have to
        answer. Who knows a later epoch than is known here counts as soon as that epoch is known: others may vote in it.
        """
        if self._view.spec is None:
            return False
        epoch, others = self._view.epochs.current, self._view.electors - {self._key}
        answered = {elector for elector in others if self._told.get(elector, limits.EPOCH_MAX + 1) <= epoch.number}
        return bool(answered) and (
            answered == others or (_meets(epoch.counting.rules, others) and _meets(epoch.counting.rules, answered))
        )


def _meets(rules: Ruleset, electors: frozenset[PublicKey] | set[PublicKey]) -> bool:
    """Whether these electors share one with every set that grants, endorses, accepts or makes an epoch."""
    endorse = rules.accept if rules.endorse is None else rules.endorse
    return rules.accept.satisfied_by(electors) and endorse.satisfied_by(electors)


def _needs(spec: PoolSpec, rules: Ruleset, key: PublicKey) -> bool:
    """Whether nothing can be decided without this elector, and nothing twice with it even if it lies.

    All others answered, then. Two quorums share another honest elector, who decides once; only a granter that grants
    alone has nobody beside it.
    """
    others = rules.electors - {key}
    if _meets(rules, others) or rules.provisional or spec.policy.fast_path:
        return False
    try:
        check_rules(replace(rules, faults=rules.faults + 1, trusted=rules.trusted - {key}))
    except CodecError:
        return False
    return True
