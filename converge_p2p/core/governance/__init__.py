"""Who decides: threshold formulas, the governance models that compile to them, and admission."""
