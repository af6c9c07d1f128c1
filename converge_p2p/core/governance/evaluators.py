"""The register of the rules that judge results, which applications write.

Knows: what a rule is asked, and under which names rules are registered. Must not know: tasks, votes, or who asks.
Source: `docs/protocol.md`, evaluators. A rule is pure and deterministic: the same answer on every node, at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from converge_p2p.core import limits
from converge_p2p.core.codec import decode_value
from converge_p2p.core.errors import Conflict, LocalError

EvaluationRule: TypeAlias = Callable[[Any, Any], bool]
"""Whether a result, decoded, is good for these inputs, decoded. Pure: no clock, randomness, input or output."""

_registered: dict[str, EvaluationRule] = {}


def register_evaluator(name: str, rule: EvaluationRule) -> None:
    """Register a rule that tasks can name as `rule:<name>`. To be called on every elector of the pool.

    Raises:
        LocalError: the name is empty or too long, or there are too many rules.
        Conflict: another rule has the name.
    """
    if not 1 <= len(name.encode()) <= limits.NAME_BYTES_MAX:
        raise LocalError(f"the name of a rule has 1 to {limits.NAME_BYTES_MAX} bytes")
    if _registered.get(name, rule) is not rule:
        raise Conflict(f"another evaluation rule is registered as {name!r}", hint="choose another name")
    if len(_registered) >= limits.EVALUATORS_REGISTERED_MAX and name not in _registered:
        raise LocalError(f"at most {limits.EVALUATORS_REGISTERED_MAX} evaluation rules can be registered")
    _registered[name] = rule


def forget_evaluator(name: str) -> None:
    """Take a registration back. This node then endorses no result that the rule would have to judge."""
    _registered.pop(name, None)


def knows_rule(name: str) -> bool:
    """Whether a rule is registered here."""
    return name in _registered


def judge_by_rule(name: str, inputs: bytes, result: bytes) -> bool | None:
    """Return what a rule says about a result, or None if it is not registered here.

    Args:
        name: of the rule.
        inputs: of the task, encoded.
        result: that was reported, encoded; of a stranger, so that it can be anything.
    """
    rule = _registered.get(name)
    if rule is None:
        return None
    try:
        return rule(decode_value(inputs), decode_value(result)) is True
    except Exception:  # noqa: BLE001 - a stranger chose the result; foreign code that fails on it approves nothing
        return False
