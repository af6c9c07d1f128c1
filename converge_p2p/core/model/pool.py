"""A pool: who decides in it, who may join, and the timers its electors use.

Knows: the pool's founding terms and their encoding. Must not know: how a governance model decides (see `governance`).
Source: the concepts page (topics, task types, admission, governance, members); `docs/protocol.md`, genesis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from converge_p2p.core import limits
from converge_p2p.core.codec import encode, tagged_hash
from converge_p2p.core.errors import CodecError
from converge_p2p.core.types import PoolId, PublicKey

NONCE_BYTES = 16
WHITELIST_MAX = 256


class GovernanceKind(IntEnum):
    """The governance models a genesis can name."""

    DICTATORIAL = 0
    DEMOCRATIC = 1


class AdmissionKind(IntEnum):
    """Who may join as a member."""

    OPEN = 0
    WHITELIST = 1
    TOKEN = 2
    VOUCHED = 3
    CUSTOM = 4


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """Timers and defaults of a pool. They cost liveness when badly chosen, never safety.

    Attributes:
        hold_off_ms: how long an elector collects rival claims before it grants the best.
        grant_timer_ms: how long an elector waits for a claim certificate before it opens the next round.
        claim_ttl_ms: how long a certified claim stands without a settlement, if the task names no time of its own.
        max_retries: failures and expiries after which only a failure can be settled, if the task names none.
        trusted_workers: workers are trusted not to report two values in one round, so the endorse phase is left out.
    """

    hold_off_ms: int = limits.HOLD_OFF_MS
    grant_timer_ms: int = limits.GRANT_TIMER_MS
    claim_ttl_ms: int = limits.CLAIM_TTL_MS
    max_retries: int = 3
    trusted_workers: bool = False

    def check(self) -> None:
        """Check every bound.

        Raises:
            CodecError: a number is out of its range.
        """
        for name, low, high in (
            ("hold_off_ms", 0, limits.GRANT_TIMER_MS_MAX),
            ("grant_timer_ms", 10, limits.GRANT_TIMER_MS_MAX),
            ("claim_ttl_ms", limits.CLAIM_TTL_MS_MIN, limits.CLAIM_TTL_MS_MAX),
            ("max_retries", 0, limits.RETRIES_MAX),
        ):
            if not low <= getattr(self, name) <= high:
                raise CodecError(f"pool policy {name} is {getattr(self, name)}; expected {low} to {high}")


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The founding terms of a pool. Its id commits to all of them and to the creator.

    Attributes:
        name: for people, 1 to `limits.TEXT_BYTES_MAX` bytes.
        nonce: 16 bytes that make two pools of equal terms differ.
        governance: the model that decides.
        electors: public keys that vote, sorted, 1 to `limits.ELECTORS_MAX`. Dictatorial: exactly the leader.
        quorum: democratic only: electors that decide together; 0 is the smallest safe number.
        faults: f, how many electors may lie.
        admission: who may join.
        whitelist: public keys that may join, sorted; only with WHITELIST.
        topics: canonical bytes of topics.
        task_types: objectives the pool is for; empty means any.
        policy: timers and defaults.
        admission_need: how many must vouch for a newcomer, where the admission asks for that.
        admission_custom: name under which the admission rule is registered; only with CUSTOM.
    """

    name: str
    nonce: bytes
    governance: GovernanceKind
    electors: tuple[PublicKey, ...]
    quorum: int = 0
    faults: int = 0
    admission: AdmissionKind = AdmissionKind.OPEN
    whitelist: tuple[PublicKey, ...] = ()
    topics: tuple[bytes, ...] = ()
    task_types: tuple[str, ...] = ()
    policy: PoolPolicy = field(default_factory=PoolPolicy)
    admission_need: int = 0
    admission_custom: str = ""

    def check(self) -> None:
        """Check every bound that does not depend on the governance model.

        Raises:
            CodecError: a field is out of bounds, unsorted or of a wrong length.
        """
        if not 1 <= len(self.name.encode()) <= limits.TEXT_BYTES_MAX:
            raise CodecError(f"a pool name has 1 to {limits.TEXT_BYTES_MAX} bytes")
        if len(self.nonce) != NONCE_BYTES:
            raise CodecError(f"a pool nonce has {NONCE_BYTES} bytes")
        if not 1 <= len(self.electors) <= limits.ELECTORS_MAX:
            raise CodecError(f"a pool has 1 to {limits.ELECTORS_MAX} electors, not {len(self.electors)}")
        if len(self.whitelist) > WHITELIST_MAX:
            raise CodecError(f"a whitelist names at most {WHITELIST_MAX} keys")
        for keys in (self.electors, self.whitelist):
            if any(len(key) != 32 for key in keys) or list(keys) != sorted(set(keys)):
                raise CodecError("electors and whitelist are sorted public keys of 32 bytes, without repeats")
        if len(self.topics) > limits.TOPICS_PER_POOL_MAX or len(self.task_types) > limits.TOPICS_PER_POOL_MAX:
            raise CodecError(f"at most {limits.TOPICS_PER_POOL_MAX} topics and task types")
        if any(len(topic) > limits.TEXT_BYTES_MAX for topic in self.topics):
            raise CodecError("a topic is too long")
        if any(not 1 <= len(name.encode()) <= limits.TEXT_BYTES_MAX for name in self.task_types):
            raise CodecError("a task type is empty or too long")
        if not 0 <= self.faults < len(self.electors) or not 0 <= self.quorum <= len(self.electors):
            raise CodecError("quorum and faults must fit the number of electors")
        if not 0 <= self.admission_need <= limits.ADMISSION_NEED_MAX:
            raise CodecError(f"admission_need is {self.admission_need}; expected 0 to {limits.ADMISSION_NEED_MAX}")
        if len(self.admission_custom.encode()) > limits.NAME_BYTES_MAX:
            raise CodecError(f"the name of an admission rule has at most {limits.NAME_BYTES_MAX} bytes")
        self.policy.check()

    def to_body(self) -> list[Any]:
        """Return the array that stands in a genesis operation."""
        policy = self.policy
        return [
            self.name, self.nonce, int(self.governance), list(self.electors), self.quorum, self.faults,
            int(self.admission), list(self.whitelist), list(self.topics), list(self.task_types),
            [policy.hold_off_ms, policy.grant_timer_ms, policy.claim_ttl_ms, policy.max_retries,
             policy.trusted_workers],
            self.admission_need, self.admission_custom,
        ]  # fmt: skip

    @classmethod
    def from_body(cls, body: Any) -> PoolSpec:
        """Read the array of a genesis operation.

        Raises:
            CodecError: not of that shape, or out of bounds.
        """
        kinds: tuple[type, ...] = (str, bytes, int, list, int, int, int, list, list, list, list, int, str)
        if not isinstance(body, list) or len(body) != len(kinds):
            raise CodecError(f"a genesis body is an array of {len(kinds)}")
        if any(type(item) is not kind for item, kind in zip(body, kinds, strict=True)):
            raise CodecError("a field of a genesis body has the wrong type")
        (name, nonce, governance, electors, quorum, faults, admission, whitelist, topics, types, policy, need,
         custom) = body  # fmt: skip
        if any(type(item) is not bytes for item in (*electors, *whitelist, *topics)):
            raise CodecError("electors, whitelist and topics are byte strings")
        if any(type(item) is not str for item in types):
            raise CodecError("task types are text")
        if [type(item) for item in policy] != [int, int, int, int, bool]:
            raise CodecError("a pool policy is an array of four integers and a boolean")
        try:
            governance, admission = GovernanceKind(governance), AdmissionKind(admission)
        except ValueError as error:
            raise CodecError(f"unknown governance or admission: {error}") from error
        spec = cls(
            name, nonce, governance, tuple(electors), quorum, faults, admission, tuple(whitelist), tuple(topics),
            tuple(types), PoolPolicy(*policy), need, custom,
        )  # fmt: skip
        spec.check()
        return spec


def pool_id(creator: PublicKey, spec: PoolSpec) -> PoolId:
    """Return the id of a pool. Whoever knows the id can check that a genesis is the real one."""
    return PoolId(tagged_hash("pool", creator, encode(spec.to_body())))
