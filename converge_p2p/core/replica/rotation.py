"""When an elector has to hand out content keys: a new one, or the present one to more members.

Knows: the rules for private pools. Must not know: secrets (it asks the keyring only what it holds), clocks, or how an
operation is signed.
Source: `docs/protocol.md`, private pools. Who offers first is a rendezvous rank, so that usually one elector does; when
two do at the same time both keys count, and nothing is lost but bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum

from converge_p2p.core import limits
from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.model.keyring import Keyring
from converge_p2p.core.model.secrecy import ContentKey
from converge_p2p.core.types import PoolId, PublicKey
from converge_p2p.core.view.keys import KeyFold, Offered

STRANGER_TURNS = 16
"""So long electors wait for the join of somebody who holds the newest key, before they replace it."""


class Why(Enum):
    """Why a new content key is due."""

    FIRST = "first"
    """Nobody has offered any yet."""

    CERTIFIED = "certified"
    """The epoch fixes a key that nobody has handed out."""

    REMOVED = "removed"
    """Somebody who holds the newest key is no longer an active member."""

    PERIOD = "period"
    """The newest key is old."""

    UNREADABLE = "unreadable"
    """This elector was not given the newest key, or another one than was committed to."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A content key that this elector should offer, once it has waited its turn.

    Attributes:
        why: the reason.
        epoch: for which epoch.
        generation: for which generation; None if those of this epoch are used up, so that an epoch is due.
        held: the certified key, if it is held here: this one is offered, not a new one.
        turn: how many steps to wait before offering; see `offer_delay_ms`. If the offer of another elector arrives
            meanwhile, `rotation_due` no longer asks for it.
    """

    why: Why
    epoch: int
    generation: int | None
    held: ContentKey | None
    turn: int


@dataclass(frozen=True, slots=True)
class Additions:
    """The present content key, for members that nobody has sealed it to.

    Attributes:
        key: the content key.
        members: who lacks it, sorted.
        turn: as in `Rotation`.
    """

    key: ContentKey
    members: tuple[PublicKey, ...]
    turn: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the fold says now.

    Attributes:
        pool: the pool.
        epoch: the present epoch.
        electors: of this epoch.
        members: active ones, electors included; a frozen author is none.
        gone: who was a member once and is no active one.
        floor: the last epoch that removed a member, or 0.
        certified: epoch → commitment that its certificate fixes.
        period: after how many epochs a key is old; 0 is never.
    """

    pool: PoolId
    epoch: int
    electors: frozenset[PublicKey]
    members: frozenset[PublicKey]
    gone: frozenset[PublicKey] = frozenset()
    floor: int = 0
    certified: Mapping[int, bytes] = field(default_factory=dict)
    period: int = 0


def rotation_due(keys: KeyFold, keyring: Keyring, standing: Standing) -> Rotation | None:
    """Return the content key that the owner of the ring should offer, or None.

    Args:
        keys: the fold.
        keyring: the owner's secrets.
        standing: members and epoch.
    """
    if keyring.owner not in standing.electors or keyring.owner not in standing.members:
        return None
    newest = next(keys.latest(0, standing.certified), ())
    why = _why(newest, keyring, standing)
    if why is None:
        return None
    if why is Why.CERTIFIED:
        held = keyring.get(standing.certified[standing.epoch])
        if held is not None and (held.epoch, held.generation) == (standing.epoch, 0):
            return Rotation(why, standing.epoch, 0, held, 0)
    generation = _next_generation(newest, standing)
    turn = _rank(standing, -1 if generation is None else generation, keyring.owner)
    return Rotation(why, standing.epoch, generation, None, turn + _handicap(why, newest, standing))


def additions_due(keys: KeyFold, keyring: Keyring, standing: Standing) -> Additions | None:
    """Return which members lack the newest content key that is held here, or None.

    Only while no new key is due: what is about to be replaced is not handed out any more.
    """
    if keyring.owner not in standing.electors or rotation_due(keys, keyring, standing) is not None:
        return None
    for offered in next(keys.latest(standing.floor, standing.certified), ()):
        first = keys.first_commitment(offered.epoch, offered.generation, keyring.owner)
        if first not in (None, offered.commitment):
            # whoever committed to another key of this generation would contradict itself, and not count
            continue
        key = keyring.get(offered.commitment)
        missing = tuple(keys.recipients(standing.members - offered.members))
        if key is not None and missing:
            return Additions(key, missing, _rank(standing, key.generation, keyring.owner))
    return None


def offer_delay_ms(turn: int, step_ms: int) -> int:
    """Return how long an elector waits before it offers.

    Args:
        turn: of a `Rotation` or of `Additions`.
        step_ms: twice the pool's `grant_timer_ms`, as for the other turns among electors.
    """
    return turn * step_ms


def offer_rank(pool: PoolId, epoch: int, generation: int, elector: PublicKey) -> bytes:
    """Return what orders the electors that could offer a key: the least goes first."""
    return tagged_hash("key-rank", pool, epoch.to_bytes(8, "big"), generation.to_bytes(8, "big", signed=True), elector)


def _why(newest: Collection[Offered], keyring: Keyring, standing: Standing) -> Why | None:
    if standing.certified.get(standing.epoch) and not any(item.epoch == standing.epoch for item in newest):
        return Why.CERTIFIED
    if not newest:
        return Why.FIRST
    epoch = max(item.epoch for item in newest)
    holders = frozenset[PublicKey]().union(*(item.members for item in newest))
    if epoch < standing.floor or not holders <= standing.members:
        return Why.REMOVED
    if standing.period and standing.epoch - epoch >= standing.period:
        return Why.PERIOD
    if all(keyring.get(item.commitment) is None for item in newest):
        return Why.UNREADABLE
    return None


def _handicap(why: Why, newest: Collection[Offered], standing: Standing) -> int:
    match why:
        case Why.CERTIFIED | Why.UNREADABLE:
            # whoever proposed the certified key, and others who can read the newest, go first
            return len(standing.electors)
        case Why.REMOVED:
            # a holder that was never heard of is most likely a newcomer whose join is still on its way here
            known = any(item.members & standing.gone or item.epoch < standing.floor for item in newest)
            return 0 if known else STRANGER_TURNS
        case _:
            return 0


def _next_generation(newest: Collection[Offered], standing: Standing) -> int | None:
    used = [item.generation for item in newest if item.epoch == standing.epoch]
    # generation 0 of an epoch that fixes a key is that key, and nobody here holds it
    first = 1 if standing.certified.get(standing.epoch) else 0
    generation = max([first, *(number + 1 for number in used)])
    return generation if generation <= limits.CONTENT_GENERATION_MAX else None


def _rank(standing: Standing, generation: int, owner: PublicKey) -> int:
    order = sorted(standing.electors, key=lambda one: offer_rank(standing.pool, standing.epoch, generation, one))
    return order.index(owner)
