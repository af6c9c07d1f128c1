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
KEY_BYTES = 32
WHITELIST_MAX = 256


class GovernanceKind(IntEnum):
    """The governance models a genesis can name."""

    DICTATORIAL = 0
    DEMOCRATIC = 1
    BICAMERAL = 2
    VETO = 3
    EMPIRICAL = 4
    CUSTOM = 5


class AdmissionKind(IntEnum):
    """Who may join as a member."""

    OPEN = 0
    WHITELIST = 1
    TOKEN = 2
    VOUCHED = 3
    CUSTOM = 4


class AssignmentRule(IntEnum):
    """How electors choose among rival claims of one round. It decides who works, never what is settled."""

    FIRST = 0
    BEST_BID = 1
    TRUST = 2
    FIT = 3
    AUCTION = 4


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """Timers and defaults of a pool. They cost liveness when badly chosen, never safety.

    Attributes:
        hold_off_ms: how long an elector collects rival claims before it grants the best.
        grant_timer_ms: how long an elector waits for a claim certificate before it opens the next round.
        claim_ttl_ms: how long a certified claim stands without a settlement, if the task names no time of its own.
        max_retries: failures and expiries after which only a failure can be settled, if the task names none.
        trusted_workers: workers are trusted not to report two values in one round, so the endorse phase is left out.
        fast_path: round 0 of a task is promised beforehand to one granter.
        assignment: how electors choose among rival claims.
    """

    hold_off_ms: int = limits.HOLD_OFF_MS
    grant_timer_ms: int = limits.GRANT_TIMER_MS
    claim_ttl_ms: int = limits.CLAIM_TTL_MS
    max_retries: int = 3
    trusted_workers: bool = False
    fast_path: bool = False
    assignment: AssignmentRule = AssignmentRule.FIRST

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


_TERMS = 14
"""Fields that the terms of every model have."""


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """What the governance model needs beside electors, quorum and faults. A model refuses what it does not use.

    Attributes:
        leader: dictatorial: who decides; empty is the only elector.
        successor: dictatorial: who decides as well; empty is nobody. With one, all electors are witnesses.
        chambers: bicameral: the two chambers, each sorted keys.
        chamber_quorums: bicameral: electors of each that decide together; empty or 0: the smallest safe number.
        tie_breaker: bicameral: decides together with one chamber; empty is nobody.
        vetoers: veto: who may deny a settlement, sorted.
        veto_window_ms: veto: how long electors wait for them, on their own clocks.
        silence_denies: veto: a vetoer who says nothing is waited for, without end.
        weights: empirical: the weight of each elector, in the order of the electors.
        speculative: empirical: how many workers may work on one task at a time.
        trusted: electors that are assumed honest by name, beside the f others, sorted.
        formula: custom: canonical bytes of the formula (see `governance.formula`).
        custom: custom: name under which the model is registered.
        provisional: the founder takes terms that fail the intersection check; decisions are then marked as such.
        evidence: empirical: how many others than the worker must cite evidence for a result before it is endorsed.
    """

    leader: bytes = b""
    successor: bytes = b""
    chambers: tuple[tuple[PublicKey, ...], ...] = ()
    chamber_quorums: tuple[int, ...] = ()
    tie_breaker: bytes = b""
    vetoers: tuple[PublicKey, ...] = ()
    veto_window_ms: int = 0
    silence_denies: bool = False
    weights: tuple[int, ...] = ()
    speculative: int = 0
    trusted: tuple[PublicKey, ...] = ()
    formula: bytes = b""
    custom: str = ""
    provisional: bool = False
    evidence: int = 0

    def check(self, electors: tuple[PublicKey, ...]) -> None:
        """Check every bound that does not depend on the governance model.

        Args:
            electors: the pool's.

        Raises:
            CodecError: a field is out of bounds, unsorted, of a wrong length, or names somebody who is no elector.
        """
        everybody = set(electors)
        for key in (self.leader, self.successor, self.tie_breaker):
            if key and key not in everybody:
                raise CodecError("leader, successor and tie-breaker are electors")
        for keys in (*self.chambers, self.vetoers, self.trusted):
            check_keys("chambers, vetoers and trusted electors", keys)
        if not everybody.issuperset((*self.trusted, *(one for chamber in self.chambers for one in chamber))):
            raise CodecError("trusted electors and the members of chambers are electors")
        if len(self.chambers) not in (0, 2) or len(self.chamber_quorums) not in (0, 2) or () in self.chambers:
            raise CodecError("there are two chambers, neither empty, each with its quorum, or none")
        for quorum, chamber in zip(self.chamber_quorums or (0, 0), self.chambers or ((), ()), strict=True):
            if not 0 <= quorum <= len(chamber):
                raise CodecError("the quorum of a chamber must fit the number of its members")
        if len(self.weights) not in (0, len(electors)):
            raise CodecError("there is one weight for each elector, or none")
        if not all(1 <= weight <= limits.FORMULA_WEIGHT_MAX for weight in self.weights):
            raise CodecError(f"a weight is 1 to {limits.FORMULA_WEIGHT_MAX}")
        for what, number, most in (
            ("vetoers", len(self.vetoers), limits.VETOERS_MAX),
            ("veto_window_ms", self.veto_window_ms, limits.VETO_WINDOW_MS_MAX),
            ("speculative", self.speculative, limits.SPECULATIVE_MAX),
            ("evidence", self.evidence, limits.EVIDENCE_NEED_MAX),
            ("formula bytes", len(self.formula), limits.FORMULA_BYTES_MAX),
            ("custom name bytes", len(self.custom.encode()), limits.NAME_BYTES_MAX),
        ):
            if not 0 <= number <= most:
                raise CodecError(f"governance {what}: {number}; at most {most}")

    def to_body(self) -> list[Any]:
        """Return the array that stands in a genesis operation."""
        return [
            self.leader, self.successor, [list(chamber) for chamber in self.chambers], list(self.chamber_quorums),
            self.tie_breaker, list(self.vetoers), self.veto_window_ms, self.silence_denies, list(self.weights),
            self.speculative, list(self.trusted), self.formula, self.custom, self.provisional,
            *([self.evidence] if self.evidence else []),
        ]  # fmt: skip

    @classmethod
    def from_body(cls, body: Any) -> ModelTerms:
        """Read the array. Bounds are checked with the pool's.

        Raises:
            CodecError: not of that shape.
        """
        # what came later stands at the end, and only where it is used, so that older terms keep their bytes
        evidence = 0
        if type(body) is list and len(body) == _TERMS + 1:
            *body, evidence = body
            if type(evidence) is not int or evidence < 1:
                raise CodecError("governance terms say how much evidence is needed, or nothing about it")
        check_shape(
            "governance terms",
            body,
            bytes,
            bytes,
            list,
            list,
            bytes,
            list,
            int,
            bool,
            list,
            int,
            list,
            bytes,
            str,
            bool,
        )
        (leader, successor, chambers, quorums, tie_breaker, vetoers, window_ms, silence, weights, speculative, trusted,
         formula, custom, provisional) = body  # fmt: skip
        check_items("chambers", chambers, list)
        for keys in (*chambers, vetoers, trusted):
            check_items("keys of governance terms", keys, bytes)
        check_items("quorums and weights", [*quorums, *weights], int)
        return cls(
            leader, successor, tuple(map(tuple, chambers)), tuple(quorums), tie_breaker, tuple(vetoers), window_ms,
            silence, tuple(weights), speculative, tuple(trusted), formula, custom, provisional, evidence,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The founding terms of a pool. Its id commits to all of them and to the creator.

    Attributes:
        name: for people, 1 to `limits.TEXT_BYTES_MAX` bytes.
        nonce: 16 bytes that make two pools of equal terms differ.
        governance: the model that decides.
        electors: all public keys that vote, sorted, 1 to `limits.ELECTORS_MAX`.
        quorum: electors (empirical: weight) that decide together; 0 is the smallest safe number.
        faults: f, how many electors may lie.
        admission: who may join.
        whitelist: public keys that may join, sorted; only with WHITELIST.
        topics: canonical bytes of topics.
        task_types: objectives the pool is for; empty means any.
        policy: timers and defaults.
        admission_need: how many must vouch for a newcomer, where the admission asks for that.
        admission_custom: name under which the admission rule is registered; only with CUSTOM.
        model: what the governance model needs beside electors, quorum and faults.
        private: contents are sealed with a key that only members are given; never changes.
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
    model: ModelTerms = field(default_factory=ModelTerms)
    private: bool = False

    @property
    def fixed(self) -> tuple[str, bytes, bool]:
        """What no change of the pool may touch."""
        return self.name, self.nonce, self.private

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
            check_keys("electors and whitelist", keys)
        if len(self.topics) > limits.TOPICS_PER_POOL_MAX or len(self.task_types) > limits.TOPICS_PER_POOL_MAX:
            raise CodecError(f"at most {limits.TOPICS_PER_POOL_MAX} topics and task types")
        if any(len(topic) > limits.TEXT_BYTES_MAX for topic in self.topics):
            raise CodecError("a topic is too long")
        if any(not 1 <= len(name.encode()) <= limits.TEXT_BYTES_MAX for name in self.task_types):
            raise CodecError("a task type is empty or too long")
        total = sum(self.model.weights) or len(self.electors)
        if not 0 <= self.faults < len(self.electors) or not 0 <= self.quorum <= total:
            raise CodecError("quorum and faults must fit the number of electors")
        if not 0 <= self.admission_need <= limits.ADMISSION_NEED_MAX:
            raise CodecError(f"admission_need is {self.admission_need}; expected 0 to {limits.ADMISSION_NEED_MAX}")
        if len(self.admission_custom.encode()) > limits.NAME_BYTES_MAX:
            raise CodecError(f"the name of an admission rule has at most {limits.NAME_BYTES_MAX} bytes")
        self.policy.check()
        self.model.check(self.electors)

    def to_body(self) -> list[Any]:
        """Return the array that stands in a genesis operation."""
        policy = self.policy
        return [
            self.name, self.nonce, int(self.governance), list(self.electors), self.quorum, self.faults,
            int(self.admission), list(self.whitelist), list(self.topics), list(self.task_types),
            [policy.hold_off_ms, policy.grant_timer_ms, policy.claim_ttl_ms, policy.max_retries,
             policy.trusted_workers, policy.fast_path, int(policy.assignment)],
            self.admission_need, self.admission_custom, self.model.to_body(), self.private,
        ]  # fmt: skip

    @classmethod
    def from_body(cls, body: Any) -> PoolSpec:
        """Read the array of a genesis operation.

        Raises:
            CodecError: not of that shape, or out of bounds.
        """
        check_shape(
            "genesis body", body, str, bytes, int, list, int, int, int, list, list, list, list, int, str, list, bool
        )
        (name, nonce, governance, electors, quorum, faults, admission, whitelist, topics, types, policy, need, custom,
         model, private) = body  # fmt: skip
        check_items("electors, whitelist and topics", [*electors, *whitelist, *topics], bytes)
        check_items("task types", types, str)
        check_shape("pool policy", policy, int, int, int, int, bool, bool, int)
        try:
            governance, admission = GovernanceKind(governance), AdmissionKind(admission)
            hold_off_ms, grant_ms, ttl_ms, retries, trusted_workers, fast_path, rule = policy
            assignment = AssignmentRule(rule)
        except ValueError as error:
            raise CodecError(f"unknown governance, admission or assignment: {error}") from error
        spec = cls(
            name, nonce, governance, tuple(electors), quorum, faults, admission, tuple(whitelist), tuple(topics),
            tuple(types),
            PoolPolicy(hold_off_ms, grant_ms, ttl_ms, retries, trusted_workers, fast_path, assignment),
            need, custom, ModelTerms.from_body(model), private,
        )  # fmt: skip
        spec.check()
        return spec


def check_keys(what: str, keys: tuple[bytes, ...]) -> None:
    """Check that these are sorted public keys without repeats.

    Raises:
        CodecError: they are not.
    """
    if any(len(key) != KEY_BYTES for key in keys) or list(keys) != sorted(set(keys)):
        raise CodecError(f"{what} are sorted public keys of {KEY_BYTES} bytes, without repeats")


def check_shape(what: str, plain: Any, *kinds: type) -> None:
    """Check that this is an array with items of exactly these types.

    Raises:
        CodecError: it is not.
    """
    if type(plain) is not list or len(plain) != len(kinds):
        raise CodecError(f"{what}: expected an array of {len(kinds)}")
    if any(type(item) is not kind for item, kind in zip(plain, kinds, strict=True)):
        raise CodecError(f"{what}: expected the types {', '.join(kind.__name__ for kind in kinds)}")


def check_items(what: str, plain: list[Any], kind: type) -> None:
    """Check that all items of an array are of one type.

    Raises:
        CodecError: they are not.
    """
    if any(type(item) is not kind for item in plain):
        raise CodecError(f"{what}: expected items of type {kind.__name__}")


def pool_id(creator: PublicKey, spec: PoolSpec) -> PoolId:
    """Return the id of a pool. Whoever knows the id can check that a genesis is the real one."""
    return PoolId(tagged_hash("pool", creator, encode(spec.to_body())))
