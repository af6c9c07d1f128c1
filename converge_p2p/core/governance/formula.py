"""Threshold formulas over electors: nested, weighted and monotone.

Knows: which sets of electors satisfy a formula, and its one encoding. Must not know: what they decide, or which
formulas are safe together (see `check`).
Source: monotone threshold formulas as general quorum systems (Malkhi and Reiter 1998); `docs/governance.md`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from converge_p2p.core import limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.types import PublicKey

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Threshold:
    """Satisfied by parts that weigh `need` together. Adding electors never unsatisfies it.

    A part is an elector, or a formula that counts once it is satisfied itself. An elector may stand in several places.

    Attributes:
        need: weight that decides, 1 to the weight of all parts.
        parts: (weight, elector or formula); weights are 1 to `limits.FORMULA_WEIGHT_MAX`.
        electors: everybody who is counted somewhere in it. Members are counted, never only the votes cast.
        depth: levels of formulas, 1 for one without a formula inside.
        size: parts on all levels together.

    Raises:
        CodecError: a bound is broken, or no set of electors could satisfy it.
    """

    need: int
    parts: tuple[tuple[int, Part], ...]
    electors: frozenset[PublicKey] = field(init=False, repr=False, compare=False)
    depth: int = field(init=False, repr=False, compare=False)
    size: int = field(init=False, repr=False, compare=False)
    _plain: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        electors: set[PublicKey] = set()
        total, depth, size, plain = 0, 1, len(self.parts), True
        for weight, part in self.parts:
            if not 1 <= weight <= limits.FORMULA_WEIGHT_MAX:
                raise CodecError(f"a weight is {weight}; expected 1 to {limits.FORMULA_WEIGHT_MAX}")
            total += weight
            if isinstance(part, Threshold):
                depth, size, plain = max(depth, 1 + part.depth), size + part.size, False
                electors |= part.electors
            else:
                plain = plain and weight == 1 and part not in electors
                electors.add(part)
        if not 1 <= self.need <= total:
            raise CodecError(
                f"a formula needs {self.need} of {total}; expected 1 to {total}, or nobody could satisfy it"
            )
        if depth > limits.FORMULA_DEPTH_MAX or size > limits.FORMULA_PARTS_MAX:
            raise CodecError(
                f"a formula has {depth} levels and {size} parts; at most {limits.FORMULA_DEPTH_MAX} levels and "
                f"{limits.FORMULA_PARTS_MAX} parts are allowed"
            )
        for name, value in (("electors", frozenset(electors)), ("depth", depth), ("size", size), ("_plain", plain)):
            object.__setattr__(self, name, value)

    @classmethod
    def flat(cls, need: int, electors: Iterable[PublicKey]) -> Threshold:
        """Return "any `need` of these electors".

        Raises:
            CodecError: there are fewer than `need` of them, or none is needed.
        """
        return cls(need, tuple((1, elector) for elector in sorted(set(electors))))

    @classmethod
    def all_of(cls, *parts: Part) -> Threshold:
        """Return "every one of these"."""
        return cls(len(parts), tuple((1, part) for part in parts))

    @classmethod
    def any_of(cls, *parts: Part) -> Threshold:
        """Return "one of these"."""
        return cls(1, tuple((1, part) for part in parts))

    def satisfied_by(self, voters: Collection[PublicKey]) -> bool:
        """Whether these voters are enough. Repeats and strangers count nothing."""
        if self._plain and len(voters) < self.need:
            return False
        present = self.electors.intersection(voters)
        return len(present) >= self.need if self._plain else self._met(present)

    def reachable(self, against: Collection[PublicKey]) -> bool:
        """Whether it can still be satisfied without the electors that spoke against."""
        return self._met(self.electors.difference(against))

    def minimal_quorum(self, electors: Iterable[PublicKey]) -> tuple[PublicKey, ...] | None:
        """Return a set of the given electors of which none can be missed, those first named preferred; None if short.

        Args:
            electors: in the order of preference, which also is the order of the answer.
        """
        taken: list[PublicKey] = []
        for elector in electors:
            if elector in self.electors and elector not in taken:
                taken.append(elector)
                if self.satisfied_by(taken):
                    break
        else:
            return None
        for elector in reversed(tuple(taken)):
            rest = [one for one in taken if one != elector]
            if rest and self.satisfied_by(rest):
                taken = rest
        return tuple(taken)

    def _met(self, present: frozenset[PublicKey]) -> bool:
        if self._plain:
            return len(self.electors & present) >= self.need
        reached = 0
        for weight, part in self.parts:
            if part._met(present) if isinstance(part, Threshold) else part in present:
                reached += weight
                if reached >= self.need:
                    return True
        return False


Part: TypeAlias = "PublicKey | Threshold"
"""What a formula counts: an elector, or another formula."""


def smallest_quorum(electors: int, faults: int) -> int:
    """Return ⌊(n+f)/2⌋+1: any two such sets share more than f electors."""
    return (electors + faults) // 2 + 1


def formula_of(predicate: Callable[[frozenset[PublicKey]], bool], electors: Iterable[PublicKey]) -> Threshold:
    """Return the formula that is satisfied by exactly those electors for whom a predicate is true.

    The predicate is asked once for every set of electors, so that nothing of it is left to be run later.

    Args:
        predicate: whether these electors together decide. Pure; adding electors never makes it false.
        electors: at most `limits.PREDICATE_ELECTORS_MAX`.

    Raises:
        CodecError: too many electors, the predicate is not of that kind, or the formula would be too large.
    """
    order = sorted(set(electors))
    if len(order) > limits.PREDICATE_ELECTORS_MAX:
        raise CodecError(
            f"a predicate is asked about at most {limits.PREDICATE_ELECTORS_MAX} electors; write a formula"
        )
    minimal: list[frozenset[PublicKey]] = []
    for size in range(len(order) + 1):
        for some in itertools.combinations(order, size):
            group = frozenset(some)
            implied = any(group >= smaller for smaller in minimal)
            decides = predicate(group)
            if implied and not decides:
                raise CodecError("the predicate is true for some electors and false for more of them")
            if decides and not implied:
                minimal.append(group)
    if not minimal or not minimal[0]:
        raise CodecError("the predicate is true for nobody, or without anybody")
    return Threshold.any_of(*(Threshold.all_of(*sorted(group)) for group in minimal))


def formula_to_plain(formula: Threshold) -> list[Any]:
    """Return `[need, [weight, part] …]`, where a part is a key or such an array."""
    return [
        formula.need,
        *([weight, formula_to_plain(part) if isinstance(part, Threshold) else part] for weight, part in formula.parts),
    ]


def formula_from_plain(plain: Any) -> Threshold:
    """Read what `formula_to_plain` wrote.

    Raises:
        CodecError: another shape, out of bounds, or nested too deeply.
    """
    budget = iter(range(limits.FORMULA_PARTS_MAX))
    return _read(plain, limits.FORMULA_DEPTH_MAX, budget)


def _read(plain: Any, depth: int, budget: Iterator[int]) -> Threshold:
    if depth == 0:
        raise CodecError(f"a formula has at most {limits.FORMULA_DEPTH_MAX} levels")
    if type(plain) is not list or len(plain) < 2 or type(plain[0]) is not int:
        raise CodecError("a formula is an array of the number needed and at least one [weight, part]")
    parts: list[tuple[int, Part]] = []
    for pair in plain[1:]:
        if next(budget, None) is None:
            raise CodecError(f"a formula has at most {limits.FORMULA_PARTS_MAX} parts")
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not int:
            raise CodecError("a part of a formula is an array of a weight and a key or formula")
        weight, part = pair
        if type(part) is bytes:
            if len(part) != KEY_BYTES:
                raise CodecError(f"an elector in a formula is a public key of {KEY_BYTES} bytes")
            parts.append((weight, PublicKey(part)))
        else:
            parts.append((weight, _read(part, depth - 1, budget)))
    return Threshold(plain[0], tuple(parts))


def encode_formula(formula: Threshold) -> bytes:
    """Return the canonical bytes that stand in a pool's terms."""
    return encode(formula_to_plain(formula))


def decode_formula(data: bytes) -> Threshold:
    """Read the bytes of a formula.

    Raises:
        CodecError: not canonical CBOR, another shape, or out of bounds.
    """
    if len(data) > limits.FORMULA_BYTES_MAX:
        raise CodecError(f"a formula has {len(data)} bytes; at most {limits.FORMULA_BYTES_MAX} are allowed")
    return formula_from_plain(decode(data))
