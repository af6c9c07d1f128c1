"""Who judges the results of a task: nobody, an agent, or a rule.

Knows: how a task names its evaluator. Must not know: verdicts (see `view.verdicts`), or registered rules (see
`governance.evaluators`).
Source: `docs/protocol.md`, evaluators.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from converge_p2p.core import limits
from converge_p2p.core.errors import LocalError
from converge_p2p.core.identity import fingerprint
from converge_p2p.core.types import PublicKey

_AGENT = re.compile(r"[0-9a-f]{64}")


class EvaluatorKind(Enum):
    """Who judges."""

    AGENT = "agent"
    RULE = "rule"


class Evaluator(NamedTuple):
    """What a task says about who judges its results.

    Attributes:
        name: of an agent its id or its public key, 64 hexadecimal digits; of a rule the name it is registered under.
    """

    kind: EvaluatorKind
    name: str

    def is_agent(self, key: PublicKey) -> bool:
        """Whether the holder of a key is the agent that judges."""
        return self.kind is EvaluatorKind.AGENT and self.name in (key.hex(), fingerprint(key))


def parse_evaluator(text: str) -> Evaluator | None:
    """Read the evaluator of a task; empty is nobody.

    Raises:
        LocalError: not of the form `agent:<64 lowercase hexadecimal digits>` or `rule:<name>`.
    """
    if not text:
        return None
    kind, _, name = text.partition(":")
    if kind == "agent" and _AGENT.fullmatch(name):
        return Evaluator(EvaluatorKind.AGENT, name)
    if kind == "rule" and 1 <= len(name.encode()) <= limits.NAME_BYTES_MAX:
        return Evaluator(EvaluatorKind.RULE, name)
    raise LocalError(
        f"{text!r} names no evaluator",
        hint="write agent:<agent id or public key, 64 lowercase hexadecimal digits>, rule:<name>, or nothing",
    )
