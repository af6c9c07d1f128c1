"""Governance: formulas, the governance models that compile to them, and admission."""

from converge_p2p.core.governance.custom import Choice, DisputeContext, GovernanceModel
from converge_p2p.core.governance.formula import Threshold
from converge_p2p.core.governance.models import Bicameral, Custom, Democratic, Dictatorial, Empirical, Veto

__all__ = [
    "Bicameral",
    "Choice",
    "Custom",
    "Democratic",
    "Dictatorial",
    "DisputeContext",
    "Empirical",
    "GovernanceModel",
    "Threshold",
    "Veto",
]
