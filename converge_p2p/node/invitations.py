"""Inviting others to a network, its topics and pools, with one line of text; and following such a line.

Knows: what is put into a line, which of the own lines are still good, and for how many. Must not know: how a line looks
(see `core.governance.invitation_line`), or who may join a pool.
Source: `docs/protocol.md`, invitations. An invitation that anybody can show in a log admits as many as get hold of it,
for whoever reads a log cannot tell which of two came first. So a line holds a ticket, and this node exchanges it for
invitations that name their agents, as often as was said and no more: it alone counts, in its store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from nacl.utils import random as random_bytes

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import (
    CodecError,
    ConvergeError,
    LimitExceeded,
    LocalError,
    NetworkError,
    NotAuthorised,
    NotFound,
    StoreError,
)
from converge_p2p.core.governance.invitation_line import InvitationLine, PoolInvitation
from converge_p2p.core.governance.proofs import INVITED_TAG, WORKER
from converge_p2p.core.identity import PUBLIC_KEY_BYTES, SEED_BYTES, SIGNATURE_BYTES, Identity, fingerprint, verify
from converge_p2p.core.model.join_request import JoinState
from converge_p2p.core.model.network_key import NetworkKey
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import PeerId, PoolId, PublicKey
from converge_p2p.net import Network, peer_id_of, public_key_of
from converge_p2p.node.admitting import EPOCHS_AHEAD, from_text, now_ms
from converge_p2p.node.switchboard import REDEEM
from converge_p2p.store.api import Store

if TYPE_CHECKING:
    from converge_p2p.node.handles import PoolHandle
    from converge_p2p.node.main import Node
    from converge_p2p.node.topics import TopicHandle

TICKET_KEY = "invitations/ticket/"
_GIVEN, _REFUSED = b"\x01", b"\x00"
_REDEEM_S = 15.0

_REASONS = {
    "unknown": "this invitation is not known to who issued it",
    "expired": "the invitation has expired",
    "used_up": "the invitation was used as often as its issuer allowed",
    "forged": "the invitation is not genuine",
    "powerless": "who issued the invitation can invite nobody to the pool (any more)",
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """What came of an invitation.

    Attributes:
        line: the invitation.
        topics: handles of its topics.
        pool: the pool that was joined, or None.
        pending: whether the pool's electors were asked to let this node in, and did not answer yet (see `Joins`).
    """

    line: InvitationLine
    topics: tuple[TopicHandle, ...]
    pool: PoolHandle | None
    pending: bool = False


class Invitations:
    """The invitations of one node."""

    def __init__(self, node: Node, store: Store, network: Callable[[], Network], key: NetworkKey | None) -> None:
        """Args:
        node: the node.
        store: where tickets are counted.
        network: gives the running network.
        key: of the node's private network.
        """
        self.network_key = key
        self._node = node
        self._store = store
        self._network = network
        self._counting = trio.Lock()

    @property
    def accepted_network(self) -> tuple[bytes, int] | None:
        """During a change of the network's key: the other key's network, and how many connections came with it."""
        network = self._network()
        name = network.accepted_network
        return None if name is None else (name, network.by_accepted_key)

    # ------------------------------------------------------------ inviting

    async def write(
        self,
        *,
        pool: PoolHandle | PoolId | None = None,
        topics: Sequence[Topic] = (),
        joiner: str | None = None,
        uses: int | None = 1,
        role: str = WORKER,
        epochs: int = 0,
        valid_s: float | None = None,
        approval: bool = False,
    ) -> str:
        """Return an invitation to this node's network as one line, for `accept`.

        Args:
            pool: to become a member of; or its id.
            topics: to take part in; of private ones the keys are in the line.
            joiner: the only agent that may use it for the pool, named as in `Node.create_pool`.
            uses: how many agents it lets into the pool, as long as this node is up to count them; None lets in whoever
                holds the line, whether or not this node is up.
            role: what the newcomer is meant to be.
            epochs: how many epochs after the present one it is good for; a ticket is good in every epoch.
            valid_s: seconds after which honest nodes do not use it any more; None is without end.
            approval: it lets nobody in by itself: whoever follows it asks the pool's electors (see `Joins`).

        Raises:
            NotFound: a topic or pool that this node does not take part in.
            NotAuthorised: this node can invite nobody to the pool.
            LimitExceeded: too many topics, or too many lines that are still good.
        """
        expires_ms = 0 if valid_s is None else now_ms() + round(valid_s * 1000)
        keys = self._node.topics()
        for topic in topics:
            if topic not in keys:
                raise NotFound(f"this node takes no part in topic {topic.namespace}", hint="join it first")
        if len(topics) > limits.INVITATION_TOPICS_MAX:
            raise LimitExceeded("INVITATION_TOPICS_MAX", f"at most {limits.INVITATION_TOPICS_MAX} topics in one line")
        if uses is not None and not 1 <= uses <= limits.INVITATION_USES_MAX:
            raise LocalError(f"an invitation is for 1 to {limits.INVITATION_USES_MAX} agents")
        invited = None
        if pool is not None:
            handle = self._node.pools.get(pool) if isinstance(pool, bytes) else pool
            if handle is None:
                raise NotFound("this node takes no part in the pool to invite to", hint="join it first")
            if approval:
                invited = PoolInvitation(handle.id)
            else:
                invited = await self._to_pool(handle, joiner, uses, role, epochs, valid_s, expires_ms)
        line = InvitationLine(
            self._node.public_key,
            expires_ms,
            role,
            tuple(self._node.addresses[: limits.ADDRESSES_PER_PEER_MAX]),
            self.network_key,
            tuple((topic, keys[topic]) for topic in topics),
            invited,
        )
        return line.sign(self._node.identity).to_text()

    async def _to_pool(
        self,
        pool: PoolHandle,
        joiner: str | None,
        uses: int | None,
        role: str,
        epochs: int,
        valid_s: float | None,
        expires_ms: int,
    ) -> PoolInvitation:
        if pool.spec.admission is not AdmissionKind.TOKEN:
            # nothing to show: the pool lets in whom its terms let in
            return PoolInvitation(pool.id)
        until = pool.council.epoch + epochs
        if joiner is not None or uses is None:
            text = pool.invite(joiner=joiner, until_epoch=until, role=role, valid_s=valid_s)
            return PoolInvitation(pool.id, from_text("invitation", text))
        # it says now, and not to the newcomer, if this node may invite nobody
        pool.invite(until_epoch=until)
        seed = random_bytes(SEED_BYTES)
        name = TICKET_KEY + Identity.from_seed(seed).public_key.hex()
        record = encode([pool.id, uses, expires_ms, role, []])
        async with self._counting:
            await trio.to_thread.run_sync(self._make_room_now)
            await trio.to_thread.run_sync(self._store.put, name, record)
        return PoolInvitation(pool.id, ticket=seed)

    def _make_room_now(self) -> None:
        names = self._store.list(TICKET_KEY)
        if len(names) < limits.INVITATIONS_OPEN_MAX:
            return
        for name in names:
            _, uses, expires_ms, _, used = self._ticket_now(name)
            if len(used) >= uses or (expires_ms and expires_ms <= now_ms()):
                self._store.delete(name)
        if len(self._store.list(TICKET_KEY)) >= limits.INVITATIONS_OPEN_MAX:
            raise LimitExceeded(
                "INVITATIONS_OPEN_MAX",
                f"{limits.INVITATIONS_OPEN_MAX} invitations are still good",
                hint="let them expire",
            )

    def _ticket_now(self, name: str) -> tuple[PoolId, int, int, str, list[bytes]]:
        data = self._store.get(name)
        if data is None:
            raise NotFound("no such invitation")
        try:
            match decode(data):
                case [bytes(pool), int(uses), int(expires_ms), str(role), list(used)]:
                    return PoolId(pool), uses, expires_ms, role, used
        except CodecError as error:
            raise StoreError(f"the record of an invitation is damaged: {error}") from error
        raise StoreError("the record of an invitation is damaged")

    async def redeem(self, peer: PeerId, request: bytes) -> bytes:
        """Answer a newcomer that shows a ticket: with an invitation in its name, or with why there is none.

        Args:
            peer: the newcomer; its key was proven by the handshake.
            request: what `_request` made.
        """
        joiner = public_key_of(peer)
        try:
            key, use = _read_request(request)
            async with self._counting:
                return _GIVEN + await self._exchange(joiner, key, use)
        except (NotFound, CodecError):
            return _REFUSED + b"unknown"
        except NotAuthorised as error:
            return _REFUSED + str(error).encode()

    async def _exchange(self, joiner: PublicKey, key: bytes, use: bytes) -> bytes:
        name = TICKET_KEY + key.hex()
        pool_id, uses, expires_ms, role, used = await trio.to_thread.run_sync(self._ticket_now, name)
        if not verify(PublicKey(key), INVITED_TAG, encode([pool_id, joiner]), use):
            raise NotAuthorised("forged")
        if expires_ms and expires_ms <= now_ms():
            raise NotAuthorised("expired")
        pool = self._node.pools.get(pool_id)
        if joiner not in used and len(used) >= uses:
            raise NotAuthorised("used_up")
        if pool is None:
            raise NotAuthorised("powerless")
        try:
            until = pool.council.epoch + EPOCHS_AHEAD
            invitation = pool.invite(joiner=f"key:{joiner.hex()}", until_epoch=until, role=role)
        except ConvergeError as error:
            raise NotAuthorised("powerless") from error
        if joiner not in used:
            # counted before it is given: a crash may cost a place, and never gives one too many
            record = encode([pool_id, uses, expires_ms, role, [*used, joiner]])
            await trio.to_thread.run_sync(self._store.put, name, record)
        return from_text("invitation", invitation)

    # ------------------------------------------------------------ following

    async def accept(self, text: str, *, capabilities: Sequence[str] = (), timeout_s: float | None = None) -> Accepted:
        """Follow an invitation: connect, take part in its topics, and become a member of its pool.

        The pool is kept for the next start of the node; topics are not (see `take_part`).

        Args:
            text: the line.
            capabilities: what this node can do in the pool.
            timeout_s: how long to look for a member of the pool.

        Raises:
            CodecError, SignatureError: the line is no good; it says why.
            NotAuthorised: it expired, or was used as often as its issuer allowed; or the pool does not admit this node.
            LocalError: it is for another network.
            NetworkError: nobody that it names can be reached.
        """
        line = InvitationLine.from_text(text)
        line.check_for(self.network_key, now_ms())
        await self._connect(line)
        topics = await self.take_part(line)
        if line.pool is None:
            return Accepted(line, topics, None)
        shown = line.pool.invitation or None
        if line.pool.ticket and line.pool.pool not in self._node.pools:
            shown = await self._redeem(line.issuer, line.pool)
        elif shown is None and not await self._lets_in(line.pool.pool, timeout_s):
            note = f"follows an invitation of agent {fingerprint(line.issuer)}"
            asking = self._node.joins.asking
            asked = await asking.ask(line.pool.pool, note=note, capabilities=capabilities, timeout_s=timeout_s)
            joined = self._node.pools[line.pool.pool] if asked.state is JoinState.ADMITTED else None
            return Accepted(line, topics, joined, pending=asked.state is JoinState.PENDING)
        pool = await self._node.join_pool(
            line.pool.pool, capabilities=capabilities, invitation=shown, timeout_s=timeout_s
        )
        return Accepted(line, topics, pool)

    async def _lets_in(self, pool: PoolId, timeout_s: float | None) -> bool:
        """Whether a pool lets this node in without anything to show, or by a rule that nobody can be asked about."""
        handle = await self._node.joins.asking.follow(pool, timeout_s)
        spec, kind = handle.spec, handle.spec.admission
        listed = kind is AdmissionKind.WHITELIST and self._node.public_key in spec.whitelist
        free = kind in (AdmissionKind.OPEN, AdmissionKind.CUSTOM) or listed
        return free or handle.is_member or self._node.public_key in {*handle.electors, handle.creator}

    async def take_part(self, line: InvitationLine) -> tuple[TopicHandle, ...]:
        """Take part in the topics of an invitation that was followed before, whether or not it expired since.

        Raises:
            Conflict, LimitExceeded: see `Node.join`.
        """
        return tuple([await self._node.join(topic, key=key) for topic, key in line.topics])

    async def _connect(self, line: InvitationLine) -> None:
        own = self._node.peer_id
        reasons = []
        for address in line.bootstrap:
            if address.endswith(f"/p2p/{own}"):
                raise LocalError("this node wrote the invitation", hint="hand it to another node")
            try:
                await self._network().connect(address)
            except ConvergeError as error:
                reasons.append(str(error))
            else:
                return
        if reasons:
            raise NetworkError(
                f"nobody that the invitation names can be reached: {reasons[0]}",
                hint="the node that wrote the invitation has to be up",
            )

    async def _redeem(self, issuer: PublicKey, invited: PoolInvitation) -> bytes:
        peer = peer_id_of(issuer)
        network = self._network()
        await network.reach(peer)
        answer = await network.request(peer, REDEEM + _request(invited, self._node.public_key), _REDEEM_S)
        if answer[:1] == _GIVEN:
            return answer[1:]
        reason = answer[1:].decode("ascii", "replace")[:64]
        raise NotAuthorised(_REASONS.get(reason, f"the invitation was refused: {reason}"), hint="ask for a new one")


def _request(invited: PoolInvitation, joiner: PublicKey) -> bytes:
    ticket = Identity.from_seed(invited.ticket)
    return ticket.public_key + ticket.sign(INVITED_TAG, encode([invited.pool, joiner]))


def _read_request(request: bytes) -> tuple[bytes, bytes]:
    if len(request) != PUBLIC_KEY_BYTES + SIGNATURE_BYTES:
        raise CodecError("a request for an invitation is a key and a signature")
    return request[:PUBLIC_KEY_BYTES], request[PUBLIC_KEY_BYTES:]
