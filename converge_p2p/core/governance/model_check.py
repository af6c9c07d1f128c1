"""The checker for governance models that users write, and their registration.

Knows: how to look for a case in which a model contradicts itself. Must not know: pools or votes.
Source: `docs/governance.md`, own models; stability is what lets every replica stop at the first outcome it sees. The
cases are drawn from hashes of a seed, so that a problem that was found is found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from converge_p2p.core.codec import tagged_hash
from converge_p2p.core.errors import LocalError
from converge_p2p.core.governance.check import must_share_honest
from converge_p2p.core.governance.custom import Choice, CitedEvidence, DisputeContext, GovernanceModel, keep_model
from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.types import PublicKey

OPTIONS: tuple[Choice, ...] = ("accept", "reject", "again")
TRIES = 200
SAMPLE_SIZES = (1, 3, 4, 7)


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What the checker found.

    Attributes:
        problems: one sentence each, with the case; empty if none was found.
        tries: how many cases were looked at.
    """

    problems: tuple[str, ...]
    tries: int

    @property
    def sound(self) -> bool:
        """Whether nothing was found. It is evidence, not a proof."""
        return not self.problems


def check_model(
    model: GovernanceModel,
    electors: tuple[PublicKey, ...],
    *,
    faults: int = 0,
    trusted: frozenset[PublicKey] = frozenset(),
    tries: int = TRIES,
    seed: int = 0,
) -> ModelReport:
    """Look for a case in which a model contradicts itself.

    * *intersection*: two sets that satisfy its formula share no honest elector;
    * *determinism*: the same ballots give two answers, or the order in which they came matters;
    * *stability*: more ballots, or more evidence, change an outcome;
    * *agreement*: two nodes that hold different ballots of one vote, in which at most f electors voted twice, get
      different outcomes.

    Args:
        model: what to check.
        electors: who votes.
        faults: f, how many of them may lie.
        trusted: electors that never do.
        tries: how many cases to look at.
        seed: which cases.

    Returns: what was found; at most one problem of each kind.
    """
    electors = tuple(sorted(electors))
    found: dict[str, str] = {}
    try:
        formula = model.formula(electors, faults)
        if formula.electors != frozenset(electors):
            found["formula"] = "formula: it counts others than the electors, or not all of them"
        elif not must_share_honest(formula, formula, faults=faults, trusted=trusted):
            found["intersection"] = "intersection: two sets that satisfy the formula need not share an honest elector"
    except Exception as error:  # noqa: BLE001 - whatever a user's model raises is a finding
        return ModelReport((f"formula: it raised {type(error).__name__}: {error}",), 0)
    for number in range(tries):
        case = _Case(model, electors, formula, _Draw(seed, number), seed=seed, case=number)
        for problem in case.problems(faults, trusted):
            found.setdefault(problem.partition(":")[0], problem)
    return ModelReport(tuple(found.values()), tries)


def register_model(
    name: str,
    model: GovernanceModel,
    *,
    electors: tuple[PublicKey, ...] = (),
    faults: int = 0,
    tries: int = TRIES,
) -> None:
    """Register an own model, so that pools can name it. Every node that takes part in such a pool registers it.

    Args:
        name: what pools call it.
        model: pure, deterministic and stable.
        electors: whom to check it with; empty takes pools of several sizes.
        faults: how many of them may lie, in the check.
        tries: how many cases to look at for each pool.

    Raises:
        LocalError: the check found a problem; the message is the first. Or the name is empty or too long.
        Conflict: another model has the name.
    """
    if not isinstance(model, GovernanceModel):
        raise LocalError(
            f"{type(model).__name__} is no governance model", hint="subclass converge_p2p.governance.GovernanceModel"
        )
    pools = [electors] if electors else [_sample(size) for size in SAMPLE_SIZES]
    for pool in pools:
        report = check_model(model, pool, faults=faults, tries=tries)
        if not report.sound:
            raise LocalError(
                f"the governance model {name!r} is refused: {report.problems[0]}",
                hint="check_model(model, electors) looks for such cases; give register_model the electors it is for",
            )
    keep_model(name, model)


def _sample(size: int) -> tuple[PublicKey, ...]:
    return tuple(sorted(PublicKey(tagged_hash("model-check", bytes([size, number]))) for number in range(size)))


def _weights(formula: Threshold) -> dict[PublicKey, int]:
    return {part: weight for weight, part in formula.parts if not isinstance(part, Threshold)}


class _Draw:
    """Choices that follow from a seed."""

    def __init__(self, seed: int, case: int) -> None:
        self._state = tagged_hash("model-check", str(seed).encode(), str(case).encode())

    def below(self, bound: int) -> int:
        """Return one of 0 to bound − 1."""
        self._state = tagged_hash("model-check", self._state)
        return int.from_bytes(self._state[:8], "big") % bound

    def shuffled(self, items: tuple[PublicKey, ...]) -> list[PublicKey]:
        """Return the items in another order."""
        left, order = list(items), []
        while left:
            order.append(left.pop(self.below(len(left))))
        return order


class _Case:
    """One vote, and what a model says to it as the ballots come in."""

    def __init__(
        self,
        model: GovernanceModel,
        electors: tuple[PublicKey, ...],
        formula: Threshold,
        draw: _Draw,
        *,
        seed: int,
        case: int,
    ) -> None:
        self._model = model
        self._electors = electors
        self._formula = formula
        self._draw = draw
        self._options = OPTIONS[: 2 + draw.below(2)]
        # often a clear favourite, or hardly any vote would have an outcome
        favourite, bias = draw.below(len(self._options)), draw.below(4)
        self._ballots = {
            elector: self._options[favourite if draw.below(4) < bias else draw.below(len(self._options))]
            for elector in electors
        }
        self._evidence = tuple(self._cited(_Draw(seed, -1 - number - len(electors) * case)) for number in range(3))

    def _cited(self, draw: _Draw) -> CitedEvidence:
        """Some evidence, of an elector or of somebody else, for some option or against it."""
        author = (*self._electors, PublicKey(tagged_hash("model-check", b"stranger")))[
            draw.below(len(self._electors) + 1)
        ]
        weight = 0 if author not in self._electors else _weights(self._formula).get(author, 1)
        option = self._options[draw.below(len(self._options))]
        return CitedEvidence(author, option, draw.below(4) > 0, tagged_hash("model-check", author), 1, weight)

    def problems(self, faults: int, trusted: frozenset[PublicKey]) -> Iterator[str]:
        """Yield what is wrong with the model, each with its kind before a colon."""
        try:
            yield from self._as_ballots_come()
            yield from self._apart(faults, trusted)
        except Exception as error:  # noqa: BLE001 - whatever a user's model raises is a finding
            yield f"failure: it raised {type(error).__name__}: {error}"

    def _ask(self, ballots: Mapping[PublicKey, Choice], evidence: tuple[CitedEvidence, ...] = ()) -> Choice | None:
        weights = _weights(self._formula)
        return self._model.resolve_dispute(
            DisputeContext(
                options=self._options,
                ballots=dict(ballots),
                electors=self._electors,
                weights={elector: weights.get(elector, 1) for elector in self._electors},
                formula=self._formula,
                subject=b"model-check",
                evidence=evidence,
            )
        )

    def _as_ballots_come(self) -> Iterator[str]:
        seen: dict[PublicKey, Choice] = {}
        before: Choice | None = None
        for elector in (None, *self._draw.shuffled(self._electors)):
            if elector is not None:
                seen[elector] = self._ballots[elector]
            outcome = self._ask(seen)
            if outcome is not None and (type(outcome) not in (str, bytes) or outcome not in self._options):
                yield f"outcome: it returned {outcome!r}, which is not one of the options {self._options}"
                return
            again = self._ask({one: seen[one] for one in self._draw.shuffled(tuple(sorted(seen)))})
            if again != outcome:
                yield f"determinism: the same {len(seen)} ballots of {self._count()} gave {outcome!r} and {again!r}"
            if before is not None and outcome != before:
                yield f"stability: {before!r} became {outcome!r} when ballot {len(seen)} of {self._count()} came"
                return
            before = outcome
        for count in range(1, len(self._evidence) + 1):
            outcome = self._ask(seen, self._evidence[:count])
            if outcome is None or outcome in self._options:
                if before is not None and outcome != before:
                    yield f"stability: {before!r} became {outcome!r} when evidence came to ballots of {self._count()}"
                    return
                before = outcome

    def _apart(self, faults: int, trusted: frozenset[PublicKey]) -> Iterator[str]:
        """Two nodes hold some ballots each; of those that may lie they hold different ones."""
        liars = [one for one in self._draw.shuffled(self._electors) if one not in trusted][:faults]
        outcomes = []
        for number in range(2):
            told = self._options[number]
            held = {elector: choice for elector, choice in self._ballots.items() if self._draw.below(4)}
            known = self._evidence[: self._draw.below(len(self._evidence) + 1)]
            outcomes.append(self._ask({**held, **dict.fromkeys(liars, told)}, known))
        if None not in outcomes and outcomes[0] != outcomes[1]:
            yield (
                f"agreement: two nodes with different ballots of {self._count()} got {outcomes[0]!r} and "
                f"{outcomes[1]!r}, {faults} electors lying"
            )

    def _count(self) -> str:
        return f"{len(self._electors)} electors"
