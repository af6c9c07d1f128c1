"""The intersection check: whoever satisfies one formula must meet whoever satisfies another, in an honest elector.

Knows: how to find the two sets that share least, exactly, within bounded work. Must not know: the governance models.
Source: dissemination quorum systems (Malkhi and Reiter 1998): two quorums share more than f; dynamic programming over
classes of interchangeable electors, so that it need not look at 2ⁿ sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError
from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.types import PublicKey


class TooIrregular(CodecError):
    """Two formulas treat so many electors differently that their overlap cannot be checked within bounds."""


def must_share_honest(first: Threshold, second: Threshold, *, faults: int, trusted: frozenset[PublicKey]) -> bool:
    """Whether every two satisfying sets share more than `faults` untrusted electors, or a trusted one.

    Args:
        first, second: the formulas; they may be the same.
        faults: f, how many electors may lie.
        trusted: electors that are assumed honest by name.

    Raises:
        TooIrregular: the answer would take more than `limits.FORMULA_CHECK_STATES_MAX` steps.
    """
    if _weights_suffice(first, second, faults=faults, trusted=trusted):
        return True
    return least_honest_overlap(first, second, trusted=trusted, enough=faults + 1) is None


def least_honest_overlap(
    first: Threshold, second: Threshold, *, trusted: frozenset[PublicKey], enough: int | None = None
) -> int | None:
    """Return how few electors two satisfying sets can share that share no trusted one; None if they always do.

    Args:
        first, second: the formulas.
        trusted: electors that are assumed honest by name.
        enough: look only for overlaps below this; None where there is none.

    Raises:
        TooIrregular: it would take more than `limits.FORMULA_CHECK_STATES_MAX` steps.
    """
    nodes = [*_nodes(first), *_nodes(second)]
    roots = (len(_nodes(first)) - 1, len(nodes) - 1)
    _shift(nodes, len(_nodes(first)))
    groups = _groups(nodes, roots[0], trusted)
    if enough is None:
        enough = len(first.electors | second.electors) + 1
    done_after = _done_after(nodes, groups)
    # state: weight reached at each formula that is still open → for each such state, the fewest electors shared
    states: dict[tuple[int, ...], int] = {tuple([0] * len(nodes)): 0}
    work = 0
    for index, group in enumerate(groups):
        following: dict[tuple[int, ...], int] = {}
        choices = group.choices(nodes)
        closing = [number for number, last in enumerate(done_after) if last == index]
        work += len(states) * len(choices)
        if work > limits.FORMULA_CHECK_STATES_MAX:
            raise TooIrregular(
                "the formulas treat too many electors differently to be checked; give more electors the same weight "
                "and place"
            )
        for state, shared in states.items():
            for gains, cost in choices:
                if shared + cost >= enough:
                    continue
                reached = _close(state, gains, nodes, closing)
                if following.get(reached, enough) > shared + cost:
                    following[reached] = shared + cost
        states = _undominated(following)
    left = [shared for state, shared in states.items() if all(state[root] for root in roots)]
    return min(left, default=None)


@dataclass(slots=True)
class _Node:
    """One formula inside another, in an order in which the inner ones come first."""

    need: int
    leaves: tuple[tuple[int, PublicKey], ...]
    parent: int
    weight: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Electors that both formulas treat alike.

    Attributes:
        count: how many.
        in_first, in_second: (formula, weight) of each place where such an elector stands.
        shareable: whether two sets may share one of them; not if they are trusted.
    """

    count: int
    in_first: tuple[tuple[int, int], ...]
    in_second: tuple[tuple[int, int], ...]
    shareable: bool

    def choices(self, nodes: list[_Node]) -> list[tuple[tuple[tuple[int, int], ...], int]]:
        """Return what the group can add to the formulas, each with how many of it both sets then share."""
        if not self.in_second or not self.in_first:
            return [(self._gains(self.count, self.count), 0)]
        splits = [
            (first, second)
            for first in range(self.count + 1)
            for second in range(self.count - first, self.count + 1 if self.shareable else self.count - first + 1)
        ]
        cheapest: dict[tuple[tuple[int, int], ...], int] = {}
        for first, second in splits:
            gains = tuple((node, min(weight, nodes[node].need)) for node, weight in self._gains(first, second))
            cost = first + second - self.count
            cheapest[gains] = min(cost, cheapest.get(gains, cost))
        return list(cheapest.items())

    def _gains(self, first: int, second: int) -> tuple[tuple[int, int], ...]:
        return (
            *((node, weight * first) for node, weight in self.in_first),
            *((node, weight * second) for node, weight in self.in_second),
        )


def _nodes(formula: Threshold) -> list[_Node]:
    """Return the formula and those inside it, inner ones first; the formula itself is the last."""
    found: list[_Node] = []

    def visit(part: Threshold, weight: int) -> int:
        inner = [visit(child, heft) for heft, child in part.parts if isinstance(child, Threshold)]
        leaves = tuple((heft, child) for heft, child in part.parts if not isinstance(child, Threshold))
        found.append(_Node(part.need, leaves, -1, weight))
        for child_index in inner:
            found[child_index].parent = len(found) - 1
        return len(found) - 1

    visit(formula, 1)
    return found


def _shift(nodes: list[_Node], start: int) -> None:
    for node in nodes[start:]:
        if node.parent >= 0:
            node.parent += start


def _groups(nodes: list[_Node], first_root: int, trusted: frozenset[PublicKey]) -> list[_Group]:
    """Return the electors in groups, those of one inner formula next to each other."""
    places: dict[PublicKey, Counter[tuple[int, int]]] = {}
    for number, node in enumerate(nodes):
        for weight, elector in node.leaves:
            places.setdefault(elector, Counter())[number, weight] += 1
    alike: Counter[tuple[tuple[tuple[int, int, int], ...], bool]] = Counter()
    for elector, where in places.items():
        alike[tuple(sorted((*place, times) for place, times in where.items())), elector not in trusted] += 1
    return [
        _Group(
            count,
            tuple((node, weight * times) for node, weight, times in where if node <= first_root),
            tuple((node, weight * times) for node, weight, times in where if node > first_root),
            shareable,
        )
        for (where, shareable), count in sorted(alike.items())
    ]


def _done_after(nodes: list[_Node], groups: list[_Group]) -> list[int]:
    """Return for each formula the group after which nothing can be added to it any more."""
    last = [0] * len(nodes)
    for index, group in enumerate(groups):
        for place, _ in (*group.in_first, *group.in_second):
            last[place] = index
    for number, node in enumerate(nodes):
        # inner formulas come first, so that theirs is known by now
        if node.parent >= 0:
            last[node.parent] = max(last[node.parent], last[number])
    return last


def _close(
    state: tuple[int, ...], gains: Iterable[tuple[int, int]], nodes: list[_Node], closing: list[int]
) -> tuple[int, ...]:
    """Add to a state, never more than is needed. A finished formula only tells the outer one whether it is met."""
    reached = list(state)
    for place, weight in gains:
        reached[place] = min(nodes[place].need, reached[place] + weight)
    for number in closing:
        node = nodes[number]
        met = reached[number] == node.need
        if node.parent < 0:
            reached[number] = 1 if met else 0
            continue
        reached[number] = 0
        if met:
            reached[node.parent] = min(nodes[node.parent].need, reached[node.parent] + node.weight)
    return tuple(reached)


def _undominated(states: dict[tuple[int, ...], int]) -> dict[tuple[int, ...], int]:
    """Leave out a state that reached less at the last formula than another that is equal otherwise."""
    best: dict[tuple[tuple[int, ...], int], int] = {}
    for state, shared in states.items():
        key = state[:-1], shared
        best[key] = max(state[-1], best.get(key, -1))
    return {(*front, last): shared for (front, shared), last in best.items()}


def _weights_suffice(first: Threshold, second: Threshold, *, faults: int, trusted: frozenset[PublicKey]) -> bool:
    """Whether two formulas of one level with the same weights must share more weight than f electors can have.

    It says yes without looking at single sets, which weights that all differ would make many.
    """
    weights: dict[PublicKey, int] = {}
    for formula in (first, second):
        own: dict[PublicKey, int] = {}
        for weight, part in formula.parts:
            if isinstance(part, Threshold):
                return False
            own[part] = own.get(part, 0) + weight
        if any(weights.setdefault(elector, weight) != weight for elector, weight in own.items()):
            return False
    heaviest = sorted((weight for elector, weight in weights.items() if elector not in trusted), reverse=True)
    return first.need + second.need - sum(weights.values()) > sum(heaviest[:faults])
