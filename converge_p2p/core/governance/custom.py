"""The public base of all governance models, and the register of those that users wrote.

Knows: what a model is asked, and under which names models are registered. Must not know: pools, tasks or votes.
Source: `docs/governance.md`, own models. A model is pure and deterministic: the same answer on every node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeAlias

from converge_p2p.core import limits
from converge_p2p.core.errors import CodecError, Conflict, LocalError
from converge_p2p.core.governance.formula import Threshold, encode_formula, smallest_quorum
from converge_p2p.core.model.pool import GovernanceKind, ModelTerms
from converge_p2p.core.types import PublicKey

Choice: TypeAlias = str | bytes
"""An option of a dispute: text, or a hash."""

KeyOf: TypeAlias = Callable[[str], PublicKey]
"""Finds the public key that a name means."""


class CitedEvidence(NamedTuple):
    """That somebody says which content speaks for a result, or against it.

    Attributes:
        author: who says so; any member.
        value: the result: among rival reports one of the options.
        supports: it speaks for the result; otherwise against it.
        digest: SHA-256 of the content.
        size: of the content, in bytes.
        weight: of the author, if it is an elector; else 0.
    """

    author: PublicKey
    value: Choice
    supports: bool
    digest: bytes
    size: int
    weight: int = 0


@dataclass(frozen=True, slots=True)
class DisputeContext:
    """What a model is asked to resolve.

    Attributes:
        options: what may be chosen, in an order that all nodes share.
        ballots: what each elector chose so far. One ballot each, and only electors.
        electors: who may vote, sorted.
        weights: of each elector; 1 where the model has none.
        formula: who together decide in this pool.
        epoch: whose electors these are.
        subject: what it is about.
        evidence: what was cited about it so far, in an order that all nodes share. It grows like the ballots do.
    """

    options: tuple[Choice, ...]
    ballots: Mapping[PublicKey, Choice]
    electors: tuple[PublicKey, ...]
    weights: Mapping[PublicKey, int]
    formula: Threshold
    epoch: int = 0
    subject: bytes = b""
    evidence: tuple[CitedEvidence, ...] = ()

    def voters_for(self, option: Choice) -> frozenset[PublicKey]:
        """Return the electors that chose an option so far."""
        return frozenset(elector for elector in self.electors if self.ballots.get(elector) == option)

    def weight_of_evidence(self, option: Choice) -> int:
        """Return what the electors weigh that cite evidence for an option, less what those weigh that do against it.

        Each counts once, however much it cites. More evidence may change it: an answer that goes by it alone is not
        stable.
        """
        said = {(item.author, item.supports, item.weight) for item in self.evidence if item.value == option}
        return sum(weight if supports else -weight for _, supports, weight in said)


@dataclass(frozen=True, slots=True)
class Founding:
    """What a model puts into the terms of a new pool.

    Attributes:
        governance: its kind.
        electors: all keys that vote, sorted.
        quorum: electors or weight that decides; 0 is the smallest safe number.
        faults: f.
        model: the rest.
    """

    governance: GovernanceKind
    electors: tuple[PublicKey, ...]
    quorum: int = 0
    faults: int = 0
    model: ModelTerms = field(default_factory=ModelTerms)


class GovernanceModel:
    """Base of all governance models. Subclass it, and override `formula`, `resolve_dispute`, or both.

    What settles tasks is always the formula, so that the intersection check can vouch for it. `resolve_dispute`
    answers questions that are put to the electors. A model must be *stable*: once it returned an outcome, further
    ballots and further evidence never change it. `check_model` looks for a case where it is not, and `register_model`
    refuses such a model.
    """

    __slots__ = ()

    kind: ClassVar[GovernanceKind] = GovernanceKind.CUSTOM

    def formula(self, electors: tuple[PublicKey, ...], faults: int) -> Threshold:
        """Return who together decide. Unless overridden: the smallest number of electors that is safe.

        Args:
            electors: the pool's, sorted.
            faults: how many of them may lie.
        """
        return Threshold.flat(min(smallest_quorum(len(electors), faults), len(electors)), electors)

    def resolve_dispute(self, context: DisputeContext) -> Choice | None:
        """Return the outcome, or None as long as it is open. Unless overridden: what the formula is satisfied with.

        Pure and deterministic: no clock, randomness, input or output, and no floats.
        """
        for option in context.options:
            if context.formula.satisfied_by(context.voters_for(option)):
                return option
        return None

    def founding(self, electors: tuple[PublicKey, ...], founder: PublicKey, key_of: KeyOf) -> Founding:
        """Return what this model puts into the terms of a new pool.

        Args:
            electors: those that the founder named; may be empty.
            founder: who founds the pool.
            key_of: finds the key of an agent that the model names.

        Raises:
            LocalError: the model is not registered, or does not fit the electors.
            CodecError: a formula out of bounds.
        """
        del key_of
        name = next((name for name, model in _registered.items() if model is self), None)
        if name is None:
            raise LocalError(
                "this model is not registered", hint="call register_model(name, model) on every node first"
            )
        return named_founding(name, electors or (founder,), 0, ModelTerms())


def named_founding(name: str, electors: tuple[PublicKey, ...], faults: int, terms: ModelTerms) -> Founding:
    """Return the terms of a pool under a registered model. Its formula is written down in them, so that it is fixed."""
    model = registered_model(name)
    electors = tuple(sorted(set(electors)))
    terms = ModelTerms(
        formula=encode_formula(model.formula(electors, faults)),
        custom=name,
        trusted=terms.trusted,
        provisional=terms.provisional,
    )
    return Founding(GovernanceKind.CUSTOM, electors, 0, faults, terms)


class UnknownModel(CodecError):
    """A pool names a governance model that is not registered here. Its founding terms may be right."""

    code = "unknown_model"


_registered: dict[str, GovernanceModel] = {}


def registered_model(name: str) -> GovernanceModel:
    """Return the model that is registered under a name.

    Raises:
        UnknownModel: there is none.
    """
    model = _registered.get(name)
    if model is None:
        raise UnknownModel(
            f"the governance model {name!r} is not registered here",
            hint=f"call register_model({name!r}, model) before the node takes part in the pool",
        )
    return model


def keep_model(name: str, model: GovernanceModel) -> None:
    """Register a model that was checked (see `model_check.register_model`).

    Raises:
        LocalError: the name is empty or too long.
        Conflict: another model has the name.
    """
    if not 1 <= len(name.encode()) <= limits.NAME_BYTES_MAX:
        raise LocalError(f"the name of a model has 1 to {limits.NAME_BYTES_MAX} bytes")
    if _registered.get(name, model) is not model:
        raise Conflict(f"another governance model is registered as {name!r}", hint="choose another name")
    if len(_registered) >= limits.MODELS_REGISTERED_MAX and name not in _registered:
        raise LocalError(f"at most {limits.MODELS_REGISTERED_MAX} governance models can be registered")
    _registered[name] = model


def forget_model(name: str) -> None:
    """Take a model's registration back. Pools that name it can then not be taken part in."""
    _registered.pop(name, None)
