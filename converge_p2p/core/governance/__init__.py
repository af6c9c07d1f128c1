"""Governance: formulas, the governance models that compile to them, and admission."""

from converge_p2p.core.governance.custom import Choice, DisputeContext, GovernanceModel
from converge_p2p.core.governance.formula import Threshold, formula_of
from converge_p2p.core.governance.model_check import ModelReport, check_model, register_model
from converge_p2p.core.governance.models import Bicameral, Custom, Democratic, Dictatorial, Empirical, Veto, rules_for

__all__ = [
    "Bicameral",
    "Choice",
    "Custom",
    "Democratic",
    "Dictatorial",
    "DisputeContext",
    "Empirical",
    "GovernanceModel",
    "ModelReport",
    "Threshold",
    "Veto",
    "check_model",
    "formula_of",
    "register_model",
    "rules_for",
]
