"""Requests of newcomers that wait here until somebody lets them in or refuses them.

Knows: the queue, its bounds and its place in the store; how each kind of admission lets somebody in. Must not know: how
a newcomer asks (see `join_asking`), or HTTP.
Source: `docs/protocol.md`, join requests; `docs/governance.md`, letting newcomers in.

Nothing here is a way into a pool of its own: an elector that says yes gives a named invitation or a vouch, and where a
whitelist or a vote decides it moves or supports the motion (see `join_votes`). What a crash forgets is asked again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, Conflict, ConvergeError, LocalError, NotAuthorised, NotFound
from converge_p2p.core.governance.proofs import Invitation, Vouch
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.model.join_request import (
    AnswerKind,
    HeldRequest,
    JoinAnswer,
    JoinAsk,
    JoinState,
    checked_note,
    is_over,
)
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.types import OperationId, PeerId, PoolId, PublicKey
from converge_p2p.core.view.motions import Outcome
from converge_p2p.net import THIS_MACHINE, Network, peer_id_of, public_key_of
from converge_p2p.node.admitting import EPOCHS_AHEAD, from_text, now_ms
from converge_p2p.node.join_votes import carried_vote, is_moved_again, is_recent, is_vote_on, put_to_vote
from converge_p2p.node.switchboard import DECIDED
from converge_p2p.store.api import Store

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle
    from converge_p2p.node.main import Node

_logger = logging.getLogger(__name__)

HELD_KEY = "joins/held/"
_TELL_S = 5.0


class JoinRequests:
    """The requests that wait at one node."""

    def __init__(self, node: Node, store: Store, network: Callable[[], Network]) -> None:
        """Begin with none; `restore` reads those of the last run."""
        self._node = node
        self._store = store
        self._network = network
        self._held: dict[tuple[PoolId, PublicKey], HeldRequest] = {}
        self._changing = trio.Lock()

    async def restore(self) -> None:
        """Read what waited when the node ended. A damaged record is dropped: the newcomer asks again."""
        for name in await trio.to_thread.run_sync(self._store.list, HELD_KEY):
            data = await trio.to_thread.run_sync(self._store.get, name)
            try:
                request = HeldRequest.from_bytes(data or b"")
            except CodecError:
                await trio.to_thread.run_sync(self._store.delete, name)
                continue
            if len(self._held) < limits.JOIN_REQUESTS_MAX:
                self._held[request.pool, request.joiner] = request
        await self._expire()

    # ------------------------------------------------------------ asked by newcomers

    async def on_ask(self, peer: PeerId, payload: bytes) -> bytes:
        """Answer a newcomer.

        Args:
            peer: its key was proven by the handshake.
            payload: a `JoinAsk`.
        """
        try:
            ask = JoinAsk.from_bytes(payload)
        except CodecError:
            return JoinAnswer(AnswerKind.CANNOT, reason="malformed").to_bytes()
        host = self._network().acquaintance.host(peer)
        return (await self._answer(ask, public_key_of(peer), host)).to_bytes()

    async def _answer(self, ask: JoinAsk, joiner: PublicKey, host: str) -> JoinAnswer:
        pool = self._node.pools.get(ask.pool)
        if pool is None or not pool.ready:
            return JoinAnswer(AnswerKind.CANNOT, reason="elsewhere")
        if _needs_nothing(pool, joiner):
            await self._drop(ask.pool, joiner)
            return JoinAnswer(AnswerKind.FREE)
        if pool.spec.admission is AdmissionKind.CUSTOM:
            return JoinAnswer(AnswerKind.CANNOT, reason="rule")
        if not may_admit(pool, self._node.public_key):
            return JoinAnswer(AnswerKind.CANNOT, reason="powerless")
        async with self._changing:
            await self._expire()
            known = self._held.get((ask.pool, joiner))
            if known is None:
                if not await self._make_room(ask.pool, joiner, host):
                    self._node.counters["join_requests_refused"] += 1
                    return JoinAnswer(AnswerKind.CANNOT, reason="full")
                now = now_ms()
                until = now + round(limits.JOIN_REQUEST_TTL_S * 1000)
                known = HeldRequest(ask.pool, joiner, ask.note, now, until, host=host)
                await self._keep(known)
                self._node.counters["join_requests"] += 1
                self._tell("join_asked", known, note=ask.note)
            elif known.state is JoinState.PENDING:
                known = await self._follow_motion(pool, known)
            elif known.state is JoinState.ADMITTED and not self._holds(pool, known):
                known = await self._ask_again(known)
        match known.state:
            case JoinState.REFUSED:
                return JoinAnswer(AnswerKind.REFUSED, reason=known.reason)
            case JoinState.ADMITTED if known.proof:
                return JoinAnswer(AnswerKind.GIVEN, known.proof)
        return JoinAnswer(AnswerKind.PENDING)

    async def _make_room(self, pool: PoolId, joiner: PublicKey, host: str) -> bool:
        """Whether one more is taken. What is of no use any more makes room, the oldest first.

        What waits never does, and what was given and not used neither: strangers cost nothing, and enough of them would
        take back what somebody decided. Keys cost nothing, addresses do: one of them has a part of a pool's places,
        who comes over a relay at that address among it. This machine is its owner's. Of such a share who was refused
        keeps its part, or it could ask for ever under new names; who is in does not.
        """
        outside = [each for each in self._held.values() if not self._is_in(each)]
        of_host = sum(each.host == host and each.pool == pool for each in outside)
        if host != THIS_MACHINE and of_host >= limits.JOIN_REQUESTS_PER_HOST_MAX:
            return False
        if sum(each.joiner == joiner for each in outside) >= limits.JOIN_REQUESTS_PER_KEY_MAX:
            return False
        for bound, there in ((limits.JOIN_REQUESTS_PER_POOL_MAX, pool), (limits.JOIN_REQUESTS_MAX, None)):
            among = [each for each in self._held.values() if there in (None, each.pool)]
            if len(among) < bound:
                continue
            useless = [each for each in among if self._useless(each)]
            if not useless:
                return False
            oldest = min(useless, key=lambda each: each.asked_ms)
            await self._drop(oldest.pool, oldest.joiner)
        return True

    def _useless(self, request: HeldRequest) -> bool:
        if request.pool not in self._node.pools or request.state is JoinState.REFUSED:
            return True
        return self._is_in(request)

    def _is_in(self, request: HeldRequest) -> bool:
        pool = self._node.pools.get(request.pool)
        return pool is not None and pool.ready and _needs_nothing(pool, request.joiner)

    def _holds(self, pool: PoolHandle, request: HeldRequest) -> bool:
        """Whether what was given still lets the newcomer in: terms may have changed, and epochs pass."""
        try:
            match pool.spec.admission:
                case AdmissionKind.TOKEN:
                    invitation = Invitation.from_bytes(request.proof)
                    issuer, until = invitation.issuer, invitation.until_epoch
                case AdmissionKind.VOUCHED:
                    vouch = Vouch.from_bytes(request.proof)
                    issuer, until = vouch.elector, vouch.until_epoch
                case _:
                    return False
        except ConvergeError:
            return False
        return issuer == self._node.public_key and until >= pool.council.epoch

    async def _ask_again(self, request: HeldRequest) -> HeldRequest:
        """Let somebody decide anew. Nothing is signed again because something was signed once."""
        request = replace(request, state=JoinState.PENDING, proof=b"", motion=b"", reason="")
        await self._keep(request)
        self._tell("join_asked", request, note=request.note)
        return request

    # ------------------------------------------------------------ decided by people and programs

    def all(self, pool: PoolId | None = None) -> list[HeldRequest]:
        """What waits here and what was decided lately, the oldest first; of one pool, or of all."""
        now = now_ms()
        found = [
            each for each in self._held.values() if pool in (None, each.pool) and not is_over(each.expires_ms, now)
        ]
        return sorted(found, key=lambda each: (each.asked_ms, each.joiner))

    async def admit(self, pool: PoolHandle, joiner: PublicKey, reason: str = "", *, vote: bool = False) -> HeldRequest:
        """Let a newcomer in, as far as this node can.

        By invitation it is in; by vouches once enough electors did the same; on a whitelist once enough of them said
        yes to the motion, which is moved here or supported. Saying it twice is harmless.

        Args:
            pool: which.
            joiner: who asked; nobody else can be admitted so.
            reason: for the electors, if there is a motion.
            vote: where an invitation is needed, do not give one before the electors carried a motion for it, which is
                moved here or supported.

        Raises:
            NotFound: nobody with this key asked here.
            NotAuthorised: this node can let nobody in, or trusts the newcomer too little.
            Conflict: the electors are voting on the newcomer, and this node shall let it in without waiting for them.
            LocalError: the pool needs nobody's word, or a vote is asked for where each yes is one already.
        """
        async with self._changing:
            request = self._find(pool, joiner)
            self._check_power(pool)
            match pool.spec.admission:
                case AdmissionKind.TOKEN if not vote:
                    self._check_no_vote(pool, request)
                    given = _invitation(pool, joiner)
                    request = replace(request, state=JoinState.ADMITTED, proof=given, motion=b"", reason="")
                case AdmissionKind.VOUCHED if not vote:
                    given = from_text("vouch", pool.vouch(_named(joiner), until_epoch=_until(pool)))
                    request = replace(request, state=JoinState.ADMITTED, proof=given, reason="")
                case AdmissionKind.VOUCHED:
                    raise LocalError(
                        "each vouch is a vote already", hint="admit the newcomer without asking for another one"
                    )
                case AdmissionKind.TOKEN | AdmissionKind.WHITELIST:
                    motion = await put_to_vote(pool, joiner, reason)
                    request = replace(request, state=JoinState.PENDING, motion=motion, reason="")
                case _:
                    raise LocalError("the pool needs nobody's word to let somebody in")
            await self._keep(request)
        if request.state is JoinState.ADMITTED or pool.spec.admission is AdmissionKind.WHITELIST:
            self._tell("join_admitted", request)
        self._node.spawn(self._tell_joiner, request)
        return request

    def _check_no_vote(self, pool: PoolHandle, request: HeldRequest) -> None:
        if not request.motion or request.state is not JoinState.PENDING:
            return
        with suppress(NotFound):
            if pool.council.motion(OperationId(request.motion)).outcome is Outcome.OPEN:
                raise Conflict(
                    "the electors are voting on this newcomer",
                    hint="wait for them; `pool vote` says yes or no, and `pool refuse` ends it here",
                )

    async def refuse(self, pool: PoolHandle, joiner: PublicKey, reason: str = "") -> HeldRequest:
        """Say no. A named invitation or vouch that was given before cannot be taken back.

        Raises:
            NotFound: nobody with this key asked here.
            NotAuthorised: this node has no say in who joins.
            CodecError: the reason is too long.
            Conflict: the newcomer was given what it needs before.
        """
        async with self._changing:
            request = self._find(pool, joiner)
            self._check_power(pool)
            if request.proof and self._holds(pool, request):
                raise Conflict("this node let the newcomer in before, and what it was given is good", hint="expel it")
            request = replace(request, state=JoinState.REFUSED, proof=b"", reason=checked_note(reason))
            await self._keep(request)
        self._tell("join_refused", request, reason=reason)
        self._node.spawn(self._tell_joiner, request)
        return request

    def _find(self, pool: PoolHandle, joiner: PublicKey) -> HeldRequest:
        found = self._held.get((pool.id, joiner))
        if found is None or is_over(found.expires_ms, now_ms()):
            raise NotFound(
                f"agent {fingerprint(joiner)[:12]} did not ask here to join the pool",
                hint="`converge-node pool joins` lists who did",
            )
        return found

    def _check_power(self, pool: PoolHandle) -> None:
        if not may_admit(pool, self._node.public_key):
            raise NotAuthorised("this node has no say in who joins the pool", hint="ask an elector of it")

    async def _follow_motion(self, pool: PoolHandle, request: HeldRequest) -> HeldRequest:
        """A motion that lapsed, as another change was made first, is moved again; one that was turned down is a no.

        It is moved again only in the epoch after its own. Later the newcomer may have been in and sent away meanwhile,
        and a yes of that time must not bring it back. The same where the motion is unknown. Where an invitation is
        needed, one that was carried is reason enough to give it, whoever moved it.
        """
        invited = pool.spec.admission is AdmissionKind.TOKEN
        if not request.motion and not (invited and (carried := carried_vote(pool, request.joiner))):
            return request
        request = request if request.motion else replace(request, motion=carried)
        try:
            view = pool.council.motion(OperationId(request.motion))
        except NotFound:
            return await self._ask_again(request)
        outcome = view.outcome
        if outcome is Outcome.REJECTED:
            request = replace(request, state=JoinState.REFUSED, reason="the electors turned it down")
            self._tell("join_refused", request, reason=request.reason)
        elif outcome is Outcome.LAPSED:
            if not is_moved_again(pool, view, request.joiner):
                return await self._ask_again(request)
            try:
                request = replace(request, motion=await put_to_vote(pool, request.joiner, ""))
            except LocalError as error:
                _logger.info("it was not moved again to let a newcomer in: %s", error)
                return request
        elif outcome is Outcome.CARRIED and invited:
            if not is_recent(pool, view) or not is_vote_on(view, request.joiner):
                return await self._ask_again(request)
            try:
                request = replace(request, state=JoinState.ADMITTED, proof=_invitation(pool, request.joiner))
            except LocalError as error:
                _logger.warning("the electors let a newcomer in, and this node does not: %s", error)
                return request
            self._tell("join_admitted", request)
        else:
            return request
        await self._keep(request)
        return request

    # ------------------------------------------------------------ inside

    async def _tell_joiner(self, request: HeldRequest) -> None:
        """Let the newcomer ask again now, if it is connected; otherwise it does so by itself."""
        try:
            await self._network().request(peer_id_of(request.joiner), DECIDED + request.pool, _TELL_S)
        except ConvergeError as error:
            _logger.debug("a newcomer was not told that something was decided: %s", error)

    def _tell(self, kind: str, request: HeldRequest, **more: str) -> None:
        agent = str(fingerprint(request.joiner))
        self._node.observation.tell(kind, pool=request.pool.hex(), agent=agent, **more)

    async def _keep(self, request: HeldRequest) -> None:
        await trio.to_thread.run_sync(self._store.put, _name(request.pool, request.joiner), request.to_bytes())
        self._held[request.pool, request.joiner] = request

    async def _drop(self, pool: PoolId, joiner: PublicKey) -> None:
        if self._held.pop((pool, joiner), None) is not None:
            await trio.to_thread.run_sync(self._store.delete, _name(pool, joiner))

    async def _expire(self) -> None:
        for request in list(self._expired()):
            await self._drop(request.pool, request.joiner)
            self._tell("join_expired", request)

    def _expired(self) -> Iterator[HeldRequest]:
        now = now_ms()
        return (each for each in self._held.values() if is_over(each.expires_ms, now))


def may_admit(pool: PoolHandle, key: PublicKey) -> bool:
    """Whether an agent's word counts when somebody wants to join a pool."""
    electors = pool.electors
    return key in electors or (key == pool.creator and pool.spec.admission is AdmissionKind.TOKEN)


def _named(joiner: PublicKey) -> str:
    return f"key:{joiner.hex()}"


def _until(pool: PoolHandle) -> int:
    return pool.council.epoch + EPOCHS_AHEAD


def _invitation(pool: PoolHandle, joiner: PublicKey) -> bytes:
    """Return an invitation for one agent. Raises as `PoolHandle.invite`."""
    return from_text("invitation", pool.invite(joiner=_named(joiner), until_epoch=_until(pool)))


def _needs_nothing(pool: PoolHandle, joiner: PublicKey) -> bool:
    spec = pool.spec
    listed = spec.admission is AdmissionKind.WHITELIST and joiner in spec.whitelist
    return spec.admission is AdmissionKind.OPEN or listed or pool.has_member(joiner)


def _name(pool: PoolId, joiner: PublicKey) -> str:
    return f"{HELD_KEY}{pool.hex()}/{joiner.hex()}"
