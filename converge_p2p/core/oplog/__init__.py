"""Signed operations, author chains, forks and frontiers: the grow-only data plane of a pool."""
