"""The secrets of the local identity in a private pool: its prekeys and content keys, and to whom it hands them.

Knows: the keyring, when a key is due here, and which timer that takes. Must not know: how an operation is signed, or
what is sealed (see `contents`).
Source: `docs/protocol.md`, private pools; `docs/decisions/0007-sealed-contents.md`. In a pool that is not private
nothing here does anything.

Randomness. Fresh bytes enter once, when the replica is made. A secret is a hash of them, of the identity's own secret,
of what it is for and of a counter: the fresh bytes alone tell no key, and should the same ones be handed out twice, no
key is that of another epoch or generation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from converge_p2p.core import limits
from converge_p2p.core.codec import encode, tagged_hash
from converge_p2p.core.errors import CodecError, LocalError, SignatureError
from converge_p2p.core.identity import Identity
from converge_p2p.core.model.keyring import Keyring, SplitKey
from converge_p2p.core.model.secrecy import KEY_BYTES, ContentKey
from converge_p2p.core.oplog.bodies import Body, Genesis, JoinBody, LeaveBody
from converge_p2p.core.oplog.key_bodies import ContentKeyBody, PrekeyBody, offer_bodies
from converge_p2p.core.oplog.operation import Operation
from converge_p2p.core.oplog.sealing import ContentSealer
from converge_p2p.core.oplog.succession import SuccessionBody
from converge_p2p.core.replica import events as ev
from converge_p2p.core.replica.contents import Contents
from converge_p2p.core.replica.rotation import Standing, Why, additions_due, offer_delay_ms, rotation_due
from converge_p2p.core.types import PublicKey
from converge_p2p.core.view.fold import View

_OFFER = ev.TimerKey(ev.TimerKind.OFFER)
_OfMembers: TypeAlias = Genesis | JoinBody | LeaveBody | PrekeyBody | SuccessionBody


class _Due(NamedTuple):
    """A key that is to be handed out.

    Attributes:
        name: what tells it from others while its turn is waited for.
        turn: see `offer_delay_ms`.
        key: what is handed out; None is a new one.
        epoch, generation: of the key.
        members: to whom.
    """

    name: tuple[str, int, int]
    turn: int
    key: ContentKey | None
    epoch: int
    generation: int
    members: tuple[PublicKey, ...]


class PrivateContents(Contents):
    """Contents of one pool, with the keyring of the local identity, and its duties about keys."""

    def __init__(
        self,
        identity: Identity,
        view: View,
        entropy: bytes,
        put: Callable[[ev.Effect], None],
        set_timer: Callable[[ev.TimerKey, int], None],
    ) -> None:
        """Begin without any secret.

        Args:
            identity: who signs here.
            view: the fold.
            entropy: 32 fresh random bytes; empty: a private pool is only followed, nothing is sealed or handed out.
            put: called with effects.
            set_timer: called with a key and a delay in milliseconds.

        Raises:
            LocalError: entropy of another length.
        """
        if len(entropy) not in (0, KEY_BYTES):
            raise LocalError(f"entropy has {KEY_BYTES} bytes, not {len(entropy)}")
        ring = Keyring(identity, view.pool) if entropy and identity.can_sign else None
        super().__init__(identity.public_key, view, ring)
        self._identity = identity
        self._entropy = entropy
        self._put = put
        self._set_timer = set_timer
        self._draws = 0
        self._unkept = False
        self._stale = True
        self._news = False
        self._joining = False
        self._writing = False
        self._prekey: tuple[int, bytes] | None = None
        """Epoch and public half of the own prekey that was signed last."""
        self._waiting: tuple[str, int, int] | None = None
        self._over: tuple[str, int, int] | None = None
        self._overdue = -1
        self._counted: set[bytes] = set()
        """Commitments to keys that are held and were found to count since the start."""

    def _emit(self, notice: ev.Notice) -> None:
        self._put(ev.Emit(notice))

    # ------------------------------------------------------------ what is kept

    def restore(self, secrets: bytes) -> None:
        """Take what the store kept; before any operation.

        Raises:
            LocalError: it is damaged, or of another pool or identity.
        """
        if not secrets or self._ring is None:
            return
        try:
            self._ring = Keyring.restore(self._identity, self._view.pool, secrets)
        except CodecError as error:
            raise LocalError(f"the stored content keys cannot be used: {error}") from error
        self._sealer = ContentSealer(self._ring)

    def keep(self) -> None:
        """At the end of a turn, before anything signed in it is handed out: have the secrets stored if they changed."""
        if self._unkept and self._ring is not None:
            self._unkept = False
            self._put(ev.Keep(self._ring.export()))

    def left_to(self, heir: PublicKey) -> bytes:
        """Return the content keys that are held here, sealed to the key that takes this one's place; empty if none is.

        Raises:
            SignatureError: nothing can be sealed to the key.
        """
        return self._ring.leave_to(heir, self._draw("left")) if self._ring is not None and len(self._ring) else b""

    def _draw(self, purpose: str, *numbers: int) -> bytes:
        self._draws += 1
        what = encode([purpose, list(numbers), self._draws])
        return tagged_hash("private-pool-secret", self._entropy, self._identity.seed, self._view.pool, what)

    # ------------------------------------------------------------ hearing

    def note_own(self, epoch: int, body: Body) -> None:
        """Remember an own operation: when signed, and when read back after a restart."""
        if isinstance(body, PrekeyBody):
            self._prekey = (epoch, body.exchange_key)

    def written(self, body: Body) -> None:
        """An own operation is durable and folded."""
        if isinstance(body, ContentKeyBody | PrekeyBody):
            self._writing = False
            self._stale = True
        elif isinstance(body, JoinBody):
            self._joining = False

    def changed(self) -> None:
        """Members or electors are others now, or an author was frozen."""
        self._stale = True

    def applied(self, *operations: Operation) -> None:
        """Operations became part of the fold, or were folded anew."""
        for operation in operations:
            body = operation.body
            if isinstance(body, ContentKeyBody) and self.on:
                self._stale = True
                self._news = self._take(operation, body) or self._news
            elif isinstance(body, _OfMembers):
                self._stale = True

    def has_news(self) -> bool:
        """Whether a content key can be used since the last call that could not before."""
        news, self._news = self._news, False
        return news

    def _take(self, operation: Operation, body: ContentKeyBody) -> bool:
        keys = self._view.keys
        first = keys.first_commitment(body.epoch, body.generation, operation.author)
        if first not in (None, body.commitment):
            self._emit(ev.SplitKeyFound(operation.author, body.epoch, body.generation, proven=True))
        if self._ring is None:
            return False
        offer = keys.addressed(operation, self._key, self._view.epochs.certified_keys)
        if offer is None:
            return False
        held = self._ring.get(offer.commitment)
        try:
            taken = self._ring.take(offer)
        except SignatureError:
            self._emit(ev.KeyUnopenable(operation.author, body.epoch, body.generation))
            return False
        if isinstance(taken, SplitKey):
            self._emit(ev.SplitKeyFound(taken.culprit, taken.epoch, taken.generation, proven=False))
            return False
        if held is None:
            self._unkept = True
        if taken.commitment in self._counted:
            return False
        self._counted.add(taken.commitment)
        self._emit(ev.ContentKeyTaken(taken.epoch, taken.generation))
        return True

    # ------------------------------------------------------------ handing out

    def joining(self) -> None:
        """A join is about to be signed: a prekey goes with it, so that the first key is sealed to that."""
        self._joining = self._stale = True

    def duties(self, *, may_begin: bool) -> list[Body]:
        """Return what this identity has to sign now about keys.

        Args:
            may_begin: whether the own chain is known; a first operation that is not asked for could be a fork.
        """
        if not (self._stale and self.on and may_begin) or self._ring is None or self._writing:
            return []
        self._stale = False
        if not (self._joining or self._view.members.active(self._key)):
            return []
        epoch, prekey = self._view.epochs.number, self._prekey
        if prekey is None or prekey[0] < epoch or prekey[1] not in self._ring.prekeys():
            self._writing = self._unkept = True
            return [PrekeyBody(self._ring.add_prekey(self._draw("prekey", epoch)))]
        return self._offer(self._ring)

    def timer_fired(self) -> None:
        """The turn that was waited for has come."""
        self._over, self._waiting = self._waiting, None
        self._stale = True

    def _offer(self, ring: Keyring) -> list[Body]:
        over, self._over = self._over, None
        due = self._due(ring)
        if due is None:
            self._waiting = None
            return []
        if due.turn and due.name != over:
            if due.name != self._waiting:
                self._waiting = due.name
                step_ms = 2 * self._terms_timer_ms
                self._set_timer(_OFFER, offer_delay_ms(due.turn, step_ms))
            return []
        self._waiting = None
        key = due.key or ContentKey(
            self._view.pool, due.epoch, due.generation, self._draw("content-key", due.epoch, due.generation)
        )
        ring.add(key)
        self._unkept = True
        recipients = self._view.keys.recipients(due.members)
        # electors first: whoever goes on with the rest has to hold it
        order = sorted(recipients, key=lambda member: (member not in self._view.electors, member))
        some = {member: recipients[member] for member in order[: limits.CONTENT_KEY_ENTRIES_PER_TURN_MAX]}
        bodies = offer_bodies(key, self._key, some, self._draw("offer", due.epoch, due.generation))
        self._writing = bool(bodies)
        return list(bodies)

    def _due(self, ring: Keyring) -> _Due | None:
        standing = self._standing()
        rotation = rotation_due(self._view.keys, ring, standing)
        if rotation is None:
            more = additions_due(self._view.keys, ring, standing)
            if more is None:
                return None
            key = more.key
            return _Due(("more", key.epoch, key.generation), more.turn, key, key.epoch, key.generation, more.members)
        if rotation.generation is None:
            if self._overdue != standing.epoch:
                self._overdue = standing.epoch
                self._emit(ev.KeyOverdue(standing.epoch))
            return None
        if self._view.keys.first_commitment(rotation.epoch, rotation.generation, self._key) is not None:
            # a second key of one generation does not count, and would look like a lie
            return None
        # others than the founder may only not have heard of the first key yet
        late = rotation.why is Why.FIRST and self._key != self._view.creator
        name = ("new", rotation.epoch, rotation.generation)
        members = tuple(sorted(standing.members))
        return _Due(name, rotation.turn + late, rotation.held, rotation.epoch, rotation.generation, members)

    def _standing(self) -> Standing:
        view = self._view
        members = frozenset(member for member in view.members.all() if view.members.active(member))
        floor, certified = view.epochs.last_removal, view.epochs.certified_keys
        return Standing(view.pool, view.epochs.number, view.electors, members, view.members.gone(), floor, certified)

    @property
    def _terms_timer_ms(self) -> int:
        assert self._view.spec is not None
        return self._view.spec.policy.grant_timer_ms

    def commitment_for(self, epoch: int) -> bytes | None:
        """Return the commitment to the content key that comes with an epoch this identity proposes.

        Returns:
            Empty in a pool that is not private; None if no key can be made here, so that others have to propose.
        """
        if not self.on:
            return b""
        if self._ring is None:
            return None
        made = self._ring.of(epoch, 0)
        key = made[0] if made else ContentKey(self._view.pool, epoch, 0, self._draw("content-key", epoch, 0))
        if not made:
            self._ring.add(key)
            self._unkept = True
        return key.commitment
