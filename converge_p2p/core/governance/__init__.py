"""Who decides: threshold formulas, the governance models that compile to them, and admission."""

from converge_p2p.core.governance.models import Democratic, Dictatorial

__all__ = ["Democratic", "Dictatorial"]
