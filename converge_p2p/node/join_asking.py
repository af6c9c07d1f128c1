"""Asking to be let into pools, for as long as it takes.

Knows: whom to ask, how often, and when what was given is enough to join. Must not know: how a request is decided (see
`join_requests`), or HTTP.
Source: `docs/protocol.md`, join requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import trio

from converge_p2p.core import limits
from converge_p2p.core.errors import (
    CodecError,
    Conflict,
    ConvergeError,
    LimitExceeded,
    LocalError,
    NotFound,
    StoreError,
)
from converge_p2p.core.governance.proofs import Invitation, Vouch
from converge_p2p.core.model.join_request import (
    CANNOT_WORDS,
    AnswerKind,
    Application,
    JoinAnswer,
    JoinAsk,
    JoinState,
    checked_note,
    is_over,
)
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.types import PeerId, PoolId, PublicKey
from converge_p2p.net import Network, peer_id_of, public_key_of
from converge_p2p.node.admitting import now_ms
from converge_p2p.node.join_requests import may_admit
from converge_p2p.node.switchboard import ASK
from converge_p2p.store.api import Store

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle
    from converge_p2p.node.main import Node
    from converge_p2p.node.pools import Pools

_logger = logging.getLogger(__name__)

ASKING_KEY = "joins/asking/"
AGAIN_FIRST_S = 5.0
AGAIN_MAX_S = 300.0
_ANSWER_S = 15.0
_JOIN_S = 15.0
_ROUND_PAUSE_S = 0.5


@dataclass(slots=True)
class _Case:
    application: Application
    nudged: trio.Event = field(default_factory=trio.Event)
    ended: trio.CancelScope = field(default_factory=trio.CancelScope)
    round: trio.Lock = field(default_factory=trio.Lock)
    silent: str = ""
    """Why nobody could be asked in the last round."""


class JoinAsking:
    """The pools that one node asks to be let into.

    Attributes:
        when_joined: is called with each pool that this node was let into.
    """

    def __init__(self, node: Node, store: Store, pools: Pools, network: Callable[[], Network]) -> None:
        """Begin with none; `restore` reads those of the last run."""
        self.when_joined: Callable[[PoolHandle], None] = lambda _pool: None
        self._node = node
        self._store = store
        self._pools = pools
        self._network = network
        self._cases: dict[PoolId, _Case] = {}
        self._writing = trio.Lock()
        """What is written and what is removed are in the store in the order in which they were decided."""

    async def restore(self) -> None:
        """Go on asking where the last run was not answered."""
        for name in await trio.to_thread.run_sync(self._store.list, ASKING_KEY):
            data = await trio.to_thread.run_sync(self._store.get, name)
            try:
                application = Application.from_bytes(data or b"")
            except CodecError:
                await trio.to_thread.run_sync(self._store.delete, name)
                continue
            if len(self._cases) < limits.JOIN_APPLICATIONS_MAX:
                case = self._cases[application.pool] = _Case(application)
                if application.state is JoinState.PENDING:
                    self._node.spawn(self._run, case)

    # ------------------------------------------------------------ for people and programs

    def all(self) -> list[Application]:
        """What this node asked for, the oldest first; what was decided stays for a while."""
        return sorted((case.application for case in self._cases.values()), key=lambda each: each.asked_ms)

    def silence(self, pool: PoolId) -> str:
        """Why nobody could be asked lately; empty if somebody was."""
        case = self._cases.get(pool)
        return "" if case is None else case.silent

    async def follow(self, pool: PoolId, timeout_s: float | None) -> PoolHandle:
        """Take part in a pool without being a member, so that its terms can be read. See `Pools.follow`."""
        return await self._pools.follow(pool, timeout_s)

    def hold_back(self, pools: Iterable[PoolId]) -> None:
        """Take part in none of these pools, whoever asks for it, until the node has another key's place there."""
        self._pools.held_back = frozenset(pools)

    async def ask(
        self,
        pool: PoolId,
        *,
        note: str = "",
        capabilities: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Application:
        """Ask the electors of a pool to let this node in, and go on until they did, also after a restart.

        Asked again while it waits it changes nothing; after a refusal it asks anew.

        Args:
            pool: which.
            note: for whoever decides.
            capabilities: what this node will declare there.
            timeout_s: how long to look for a member of the pool.

        Returns:
            What became of it so far: ADMITTED if nobody's word was needed, or it was given at once.

        Raises:
            NetworkError: no member of the pool was found in time.
            Conflict: this node is a member.
            LocalError: the pool's own rule decides, and nobody can be asked.
            CodecError: the note is too long.
            LimitExceeded: it asks for too many pools.
        """
        checked_note(note)
        handle = await self._pools.follow(pool, timeout_s)
        if handle.is_member:
            raise Conflict("this node is a member of the pool already")
        if handle.spec.admission is AdmissionKind.CUSTOM:
            raise LocalError(
                f"the rule {handle.spec.admission_custom!r} decides who joins the pool, and nobody can be asked",
                hint="show what it wants to see: join_pool(…, proof=…)",
            )
        case = self._cases.get(pool)
        if case is None or case.application.state is not JoinState.PENDING:
            await self._make_room(pool)
            now = now_ms()
            expires = now + round(limits.JOIN_REQUEST_TTL_S * 1000)
            case = self._cases[pool] = _Case(Application(pool, note, tuple(capabilities), now, expires))
            # before anything is awaited: who asked may not wait for the answer
            self._node.spawn(self._run, case)
            try:
                await self._keep(case)
            except StoreError:
                self._give_up(case)
                raise
            self._tell("join_pending", pool)
            await self._round(case)
            if case.application.state is not JoinState.PENDING:
                case.nudged.set()
        return case.application

    async def withdraw(self, pool: PoolId) -> None:
        """Ask no more, and follow the pool no more. What others hold of it expires.

        Raises:
            NotFound: this node does not ask for that pool.
        """
        case = self._cases.get(pool)
        if case is None:
            raise NotFound("this node does not ask to join that pool")
        self._give_up(case)
        async with self._writing:
            await trio.to_thread.run_sync(self._store.delete, ASKING_KEY + pool.hex())
        await self._unfollow(pool)

    async def on_decided(self, peer: PeerId, payload: bytes) -> bytes:
        """Somebody says that something was decided; what, only asking tells."""
        case, handle = self._cases.get(PoolId(payload)), self._pools.all().get(PoolId(payload))
        if case is not None and handle is not None and public_key_of(peer) in _deciders(handle):
            case.nudged.set()
        return b""

    # ------------------------------------------------------------ the work

    async def _run(self, case: _Case) -> None:
        pool, pause = case.application.pool, AGAIN_FIRST_S
        with case.ended:
            async with trio.open_nursery() as nursery:
                handle = self._pools.all().get(pool)
                if handle is not None:
                    nursery.start_soon(self._watch_epochs, handle, case)
                while case.application.state is JoinState.PENDING:
                    with trio.move_on_after(pause):
                        await case.nudged.wait()
                        pause = AGAIN_FIRST_S
                    case.nudged = trio.Event()
                    pause = min(2 * pause, AGAIN_MAX_S)
                    await self._round(case)
                    # whoever says again and again that something was decided is not asked more often than this
                    await trio.sleep(_ROUND_PAUSE_S)
                nursery.cancel_scope.cancel()

    async def _watch_epochs(self, handle: PoolHandle, case: _Case) -> None:
        async with handle.council.watch_epochs() as epochs:
            async for _ in epochs:
                case.nudged.set()

    async def _round(self, case: _Case) -> None:
        """Ask everybody who did not answer for good, and join if that is enough now."""
        async with case.round:
            pool = case.application.pool
            handle = self._pools.all().get(pool)
            if case.application.state is not JoinState.PENDING or self._cases.get(pool) is not case:
                return
            if handle is None or is_over(case.application.expires_ms, now_ms()):
                await self._end(case, JoinState.EXPIRED)
                return
            if handle.is_member:
                await self._end(case, JoinState.ADMITTED)
                return
            if not handle.ready:
                case.silent = "no connected peer knows the pool"
                return
            free = await self._ask_everybody(case, handle)
            await self._keep(case)
            if self._cases.get(pool) is not case:
                # withdrawn meanwhile: whoever changed its mind must not find itself in the pool
                return
            if await self._join(case, handle, free=free):
                await self._end(case, JoinState.ADMITTED)
            elif not _possible(case.application, handle):
                await self._end(case, JoinState.REFUSED)

    async def _ask_everybody(self, case: _Case, handle: PoolHandle) -> bool:
        """Return whether somebody says that nothing has to be shown."""
        answers: dict[PublicKey, JoinAnswer] = {}
        reasons: dict[PublicKey, str] = {}
        payload = ASK + JoinAsk(handle.id, case.application.note).to_bytes()

        async def ask(key: PublicKey) -> None:
            peer = peer_id_of(key)
            try:
                await self._network().reach(peer)
                answers[key] = JoinAnswer.from_bytes(await self._network().request(peer, payload, _ANSWER_S))
            except ConvergeError as error:
                reasons[key] = str(error)

        # what was given and counts no more, as it is of an epoch that is over, is asked for again
        decided = {*self._useful(case.application, handle), *case.application.refused}
        async with trio.open_nursery() as nursery:
            for key in sorted(_deciders(handle) - decided - {self._node.public_key}):
                nursery.start_soon(ask, key)
        given, refused = dict(case.application.given), dict(case.application.refused)
        for key, answer in answers.items():
            match answer.kind:
                case AnswerKind.GIVEN:
                    given[key] = answer.proof
                case AnswerKind.REFUSED:
                    refused[key] = answer.reason
                case AnswerKind.CANNOT:
                    reasons[key] = CANNOT_WORDS.get(answer.reason, answer.reason)
        case.application = replace(case.application, given=given, refused=refused)
        case.application = replace(case.application, given=self._useful(case.application, handle))
        heard = any(answer.kind is not AnswerKind.CANNOT for answer in answers.values())
        case.silent = "" if heard or not reasons else reasons[min(reasons)]
        return any(answer.kind is AnswerKind.FREE for answer in answers.values())

    async def _join(self, case: _Case, handle: PoolHandle, *, free: bool) -> bool:
        """Join if what was given is enough. One of several that gave nothing genuine must not keep this node out."""
        application, choices = case.application, list[dict[str, Any]]()
        match handle.spec.admission:
            case AdmissionKind.TOKEN:
                choices = [{"invitation": application.given[key]} for key in sorted(application.given)]
            case AdmissionKind.VOUCHED if len(application.given) >= max(1, handle.spec.admission_need):
                choices = [{"vouches": [application.given[key] for key in sorted(application.given)]}]
            case AdmissionKind.WHITELIST if self._node.public_key in handle.spec.whitelist:
                choices = [{}]
            case AdmissionKind.OPEN:
                choices = [{}]
        # one elector that says so, and lies, must not make this node forget what others gave
        for shown in choices or ([{}] if free else []):
            try:
                joined = await self._node.join_pool(
                    application.pool, capabilities=application.capabilities, timeout_s=_JOIN_S, **shown
                )
            except StoreError:
                raise
            except ConvergeError as error:
                _logger.info("what was given does not let this node in: %s", error, extra={"pool": handle.id.hex()})
            else:
                self.when_joined(joined)
                return True
        if choices:
            # it may be of an epoch that is over: whoever gave it is asked again
            case.application = replace(application, given={})
        return False

    def _useful(self, application: Application, handle: PoolHandle) -> dict[PublicKey, bytes]:
        """What was given and lets this node in now, or does so together with more of its kind.

        What is neither a genuine vouch of a present elector nor an invitation, as the terms ask, counts as not given.
        """
        found = {}
        for key, proof in sorted(application.given.items()):
            try:
                match handle.spec.admission:
                    case AdmissionKind.VOUCHED:
                        vouch = Vouch.from_bytes(proof)
                        good = vouch.elector == key and key in handle.electors
                        good = good and vouch.genuine(handle.id, self._node.public_key)
                        until = vouch.until_epoch
                    case AdmissionKind.TOKEN:
                        invitation = Invitation.from_bytes(proof)
                        good = invitation.pool == handle.id and not invitation.expired(now_ms())
                        until = invitation.until_epoch
                    case _:
                        continue
            except ConvergeError:
                continue
            if good and until >= handle.council.epoch:
                found[key] = proof
        return found

    async def _end(self, case: _Case, state: JoinState) -> None:
        case.application = replace(case.application, state=state, given={})
        pool = case.application.pool
        if state is JoinState.ADMITTED:
            await trio.to_thread.run_sync(self._store.delete, ASKING_KEY + pool.hex())
        else:
            await self._keep(case)
            await self._unfollow(pool)
        self._tell("join_ended", pool, state=str(state), reason="; ".join(_reasons(case.application)))

    async def _unfollow(self, pool: PoolId) -> None:
        handle = self._pools.all().get(pool)
        if handle is not None and not handle.is_member:
            with suppress(NotFound):
                await self._pools.leave(pool)

    # ------------------------------------------------------------ inside

    async def _make_room(self, pool: PoolId) -> None:
        self._cases.pop(pool, None)
        if len(self._cases) < limits.JOIN_APPLICATIONS_MAX:
            return
        ended = [each for each in self.all() if each.state is not JoinState.PENDING]
        if not ended:
            raise LimitExceeded(
                "JOIN_APPLICATIONS_MAX",
                f"this node asks to join {limits.JOIN_APPLICATIONS_MAX} pools",
                hint="leave one",
            )
        del self._cases[ended[0].pool]
        await trio.to_thread.run_sync(self._store.delete, ASKING_KEY + ended[0].pool.hex())

    def _give_up(self, case: _Case) -> None:
        if self._cases.get(case.application.pool) is case:
            del self._cases[case.application.pool]
        case.ended.cancel()

    async def _keep(self, case: _Case) -> None:
        pool = case.application.pool
        async with self._writing:
            if self._cases.get(pool) is case:
                data = case.application.to_bytes()
                await trio.to_thread.run_sync(self._store.put, ASKING_KEY + pool.hex(), data)

    def _tell(self, kind: str, pool: PoolId, **more: str) -> None:
        self._node.observation.tell(kind, pool=pool.hex(), agent=str(self._node.id), **more)


def _deciders(handle: PoolHandle) -> set[PublicKey]:
    creator = {handle.creator} if handle.creator is not None else set()
    return {key for key in {*handle.electors, *creator} if may_admit(handle, key)}


def _possible(application: Application, handle: PoolHandle) -> bool:
    """Whether enough may still say yes."""
    left = _deciders(handle) - set(application.refused)
    return len(left) >= max(1, handle.spec.admission_need)


def _reasons(application: Application) -> list[str]:
    return sorted({why for why in application.refused.values() if why})
